"""A backbone reads the packs of a plan: tokens of many sequences in one row, each of which sees its own past alone.

Linear layers see no padding. Attention is that of `prm.attention.tree_attention`.
"""

import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel

from prm.attention.prefix_tree import Pack, Plan, make_plan
from prm.attention.tree_attention import make_part, tree_attention
from prm.models.backbone_state import plain, switched
from prm.users.models import UserModel

_NAME = "prm_packed"
_PROBE = [[*range(40, 60)], [*range(40, 50), *range(80, 100)], [*range(60, 70)]]
_can_pack: "weakref.WeakKeyDictionary[nn.Module, bool]" = weakref.WeakKeyDictionary()


class _Packed:
    """What attention needs to know of the pack that is read, and the keys and values that are carried on, by layer."""

    def __init__(self, device: torch.device, dtype: torch.dtype):
        self.device, self.dtype = device, dtype
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def enter(self, pack: Pack) -> None:
        calls = [(call, True) for call in pack.within] + [(call, False) for call in pack.above]
        self.parts = [make_part(call, causal, self.device, self.dtype) for call, causal in calls]
        self.keep = torch.from_numpy(pack.keep).to(self.device)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed: _Packed,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it: query [1, h, t, d], key and value [1, g, t, d]; returns [1, t, h, d]."""
    layer: int = module.layer_idx  # type: ignore[assignment]
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # a row for each token
    if layer in packed.kept:
        k, v = (torch.cat(pair) for pair in zip(packed.kept.pop(layer), (k, v), strict=True))
    if len(packed.keep):
        packed.kept[layer] = k[packed.keep], v[packed.keep]
    scale = scaling if scaling is not None else q.shape[-1] ** -0.5
    return tree_attention(q, k, v, packed.parts, scale)[None], None


AttentionInterface.register(_NAME, _attention)


def checkpointing(backbone: nn.Module) -> dict[str, Any]:
    """What transformers' `gradient_checkpointing_enable` takes: a layer that is read again attends as it did at first.

    It is read again in the backward pass, when the backbone's setting is no longer that of the pack.
    """
    return {"use_reentrant": False, "context_fn": partial(_same_attention, backbone)}


def _same_attention(backbone: nn.Module) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    config: Any = plain(backbone).config
    return nullcontext(), switched(backbone, attention=config._attn_implementation)


def read_packs(
    backbone: nn.Module,
    plan: Plan,
    max_tokens: int,
    options: Callable[[Pack], dict[str, Any]] | None = None,
    people: UserModel | None = None,
    depths: Collection[int] = (),
) -> Iterator[tuple[Pack, Any, dict[int, Tensor]]]:
    """(pack, what the backbone returns for its tokens as one row, what blocks put out), each token of the plan once.

    Other threads may read between two packs.

    Args:
        max_tokens: of a pack; a single span may be longer.
        options: further arguments of the backbone for a pack.
        people, depths: as of `switched`.
    """
    parameter = next(backbone.parameters())
    packed = _Packed(parameter.device, parameter.dtype)
    for pack in plan.packs(max_tokens):
        packed.enter(pack)
        ids, positions = (
            torch.from_numpy(side[pack.start : pack.stop])[None].to(packed.device)
            for side in (plan.ids, plan.positions)
        )
        further = options(pack) if options is not None else {}
        with switched(backbone, attention=_NAME, people=people, depths=depths) as inner:
            out = backbone(input_ids=ids, position_ids=positions, use_cache=False, packed=packed, **further)
        yield pack, out, inner


def read_together(
    backbone: nn.Module, ids: Tensor, mask: Tensor, predicted: Tensor | None = None
) -> tuple[Any, Tensor]:
    """(what the backbone returns for a batch as one pack, where in its one row each token of the batch stands).

    What sequences share is read once, and gradients flow through it.

    Args:
        ids: [b, l]; mask: [b, l], bool, True on real tokens; the place [b, l] of the others is 0.
        predicted: [b, l], bool, for a language model: only behind these tokens are logits wanted, in their order.
    """
    plan = make_plan([row[real].tolist() for row, real in zip(ids, mask, strict=True)])
    tokens = [plan.tokens(i, 0, int(length)) for i, length in enumerate(mask.sum(1))]
    places = torch.zeros_like(ids)
    places[mask] = torch.from_numpy(np.concatenate(tokens)).to(ids.device)
    options = {"logits_to_keep": places[predicted]} if predicted is not None else {}
    ((_, out, _),) = read_packs(backbone, plan, len(plan.ids), lambda _: options)
    return out, places


def can_pack(backbone: nn.Module) -> bool:
    """Whether the backbone can read packs: all its layers are full attention that transformers lets be replaced.

    Sliding windows, score caps and recurrent layers cannot; they read sequence by sequence. What the architecture
    says of itself is tried out, once per backbone, on a few tokens.
    """
    if (known := _can_pack.get(backbone)) is not None:
        return known
    with switched(backbone, evaluating=True):
        if backbone not in _can_pack:  # another thread may have tried it meanwhile
            _can_pack[backbone] = _claims(plain(backbone)) and _agrees(backbone)
        return _can_pack[backbone]


def _claims(backbone: nn.Module) -> bool:
    assert isinstance(backbone, PreTrainedModel)
    config = backbone.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    full = set(kinds) == {"full_attention"} if kinds else getattr(config, "sliding_window", None) is None
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    attends = bool(backbone._supports_attention_backend and not backbone._is_stateful)
    return attends and full and not capped and not backbone.config.is_encoder_decoder


@torch.no_grad()
def _agrees(backbone: nn.Module) -> bool:
    """A tree in small packs gives what its sequences give alone, for most tokens: bfloat16 may upset a few."""
    config: Any = plain(backbone).config
    vocabulary = config.get_text_config().vocab_size
    probe = [[i % vocabulary for i in ids] for ids in _PROBE]  # a small vocabulary's other ids would be people's
    plan, device = make_plan(probe), next(backbone.parameters()).device
    try:
        states = torch.cat([_first(out) for _, out, _ in read_packs(backbone, plan, max_tokens=12)])
    except (NotImplementedError, RuntimeError, TypeError):  # it does not hand on what attention needs to know
        return False
    alike = []
    for i, ids in enumerate(probe[1:], start=1):  # the first one would be right without a tree, too
        alone = _first(backbone(input_ids=torch.tensor([ids], device=device), use_cache=False))
        found = states[torch.from_numpy(plan.tokens(i, 0, len(ids))).to(device)]
        alike.append(F.cosine_similarity(found.float(), alone.float(), dim=-1))
    return bool(torch.cat(alike).median() > 0.95)


def _first(out: Any) -> Tensor:
    """States of the one row, or logits where there is a head."""
    found = getattr(out, "logits", None)  # a mixture of experts may put a loss before them
    return (found if found is not None else out.last_hidden_state)[0]
