"""Runs a backbone on the packs of a plan: tokens of many sequences in one row, without padding.

Attention is that of `prm.attention.tree_attention`: each token attends to its own sequences' prefix alone.
"""

import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel

from prm.attention.prefix_tree import Pack, Plan, make_plan
from prm.attention.tree_attention import prepare, tree_attention
from prm.models.backbone_state import InUse, adapter_in_use, plain, switched
from prm.users.user_model import UserModel

_NAME = "prm_packed"
_TEST_SEQUENCES = [[*range(40, 60)], [*range(40, 50), *range(80, 100)], [*range(60, 70)]]
_SHARED = 10  # tokens with which the first two begin
_can_pack: "weakref.WeakKeyDictionary[nn.Module, dict[str, bool]]" = weakref.WeakKeyDictionary()  # by type of device


class _PackState:
    """What attention needs of the current pack, and the carried keys and values by layer."""

    def __init__(self, device: torch.device, dtype: torch.dtype):
        self.device, self.dtype = device, dtype
        self.carried: dict[int, tuple[Tensor, Tensor]] = {}

    def enter(self, pack: Pack) -> None:
        self.prepared = prepare(pack, self.device, self.dtype)
        self.keep = torch.from_numpy(pack.keep).to(self.device)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed: _PackState,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention interface: query [1, h, t, d], key and value [1, g, t, d]; returns [1, t, h, d]."""
    layer: int = module.layer_idx  # type: ignore[assignment]
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [t, heads, d]
    if layer in packed.carried:
        k, v = (torch.cat(pair) for pair in zip(packed.carried.pop(layer), (k, v), strict=True))
    if len(packed.keep):
        packed.carried[layer] = k[packed.keep], v[packed.keep]
    scale = scaling if scaling is not None else q.shape[-1] ** -0.5
    return tree_attention(q, k, v, packed.prepared, scale)[None], None


AttentionInterface.register(_NAME, _attention)


def checkpointing(backbone: nn.Module) -> dict[str, Any]:
    """Arguments for `activation_checkpointing_enable` of transformers: recomputed layers are those of the forward pass.

    They are recomputed in the backward pass, after the backbone's attention and adapter have been switched back.
    """
    return {"use_reentrant": False, "context_fn": partial(_contexts, backbone)}


def _contexts(backbone: nn.Module) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Those of a layer's forward pass and of its recomputation."""
    config: Any = plain(backbone).config
    return nullcontext(), _as_in_forward(backbone, config._attn_implementation, adapter_in_use(backbone))


@contextmanager
def _as_in_forward(backbone: nn.Module, attention: str, adapter: InUse | None) -> Iterator[None]:
    change = adapter._asdict() if adapter is not None and adapter != adapter_in_use(backbone) else {}
    with switched(backbone, attention=attention, **change):
        yield


def read_packs(
    backbone: nn.Module,
    plan: Plan,
    max_tokens: int,
    options: Callable[[Pack], dict[str, Any]] | None = None,
    user_model: UserModel | None = None,
    evaluating: bool = False,
    depths: Collection[int] = (),
) -> Iterator[tuple[Pack, Any, dict[int, Tensor]]]:
    """Yield (pack, the backbone's output for it as one row, outputs of blocks); each token of the plan comes once.

    Other threads may use the backbone between two packs.

    Args:
        max_tokens: of a pack; a single span may be longer.
        options: further arguments of the backbone for a pack.
        user_model, evaluating, depths: as of `switched`.
    """
    parameter = next(backbone.parameters())
    packed = _PackState(parameter.device, parameter.dtype)
    for pack in plan.packs(max_tokens):
        packed.enter(pack)
        ids, positions = (
            torch.from_numpy(side[pack.start : pack.stop])[None].to(packed.device)
            for side in (plan.ids, plan.positions)
        )
        extra = options(pack) if options is not None else {}
        with switched(backbone, attention=_NAME, user_model=user_model, evaluating=evaluating, depths=depths) as inner:
            out = backbone(input_ids=ids, position_ids=positions, use_cache=False, packed=packed, **extra)
        yield pack, out, inner


def forward_packed(
    backbone: nn.Module, ids: Tensor, mask: Tensor, predicted: Tensor | None = None
) -> tuple[Any, Tensor]:
    """(the backbone's output for a batch as one pack, the index [b, l] of each of the batch's tokens in its row).

    Shared prefixes are processed once, with gradients.

    Args:
        ids: [b, l]; mask: [b, l], bool, True on real tokens; padding gets index 0.
        predicted: [b, l], bool, for a language model: return logits at these tokens only, in their order.
    """
    plan = make_plan([row[real].tolist() for row, real in zip(ids, mask, strict=True)])
    tokens = [plan.tokens(i, 0, int(length)) for i, length in enumerate(mask.sum(1))]
    indices = torch.zeros_like(ids)
    indices[mask] = torch.from_numpy(np.concatenate(tokens)).to(ids.device)
    options = {"logits_to_keep": indices[predicted]} if predicted is not None else {}
    ((_, out, _),) = read_packs(backbone, plan, len(plan.ids), lambda _: options)
    return out, indices


def can_pack(backbone: nn.Module) -> bool:
    """Whether the backbone can process packs: all its layers have full attention, which transformers can replace.

    Backbones with sliding windows, score caps or recurrent layers cannot. Beside the settings, a test on a few tokens
    decides, once per backbone and type of device.
    """
    device = next(backbone.parameters()).device.type
    if (result := _can_pack.get(backbone, {}).get(device)) is not None:
        return result
    with switched(backbone, evaluating=True):
        results = _can_pack.setdefault(backbone, {})
        if device not in results:  # another thread may have tested it meanwhile
            results[device] = _is_supported(plain(backbone)) and _works(backbone)
        return results[device]


def _is_supported(backbone: nn.Module) -> bool:
    assert isinstance(backbone, PreTrainedModel)
    config = backbone.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    full = set(kinds) == {"full_attention"} if kinds else getattr(config, "sliding_window", None) is None
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    attends = bool(backbone._supports_attention_backend and not backbone._is_stateful)
    return attends and full and not capped and not backbone.config.is_encoder_decoder


@torch.no_grad()
def _works(backbone: nn.Module) -> bool:
    """Whether small packs give the same states as separate sequences, for most tokens: bfloat16 may change a few.

    And whether sequences can share a beginning at all: its states must not depend on what follows.
    """
    config: Any = plain(backbone).config
    vocabulary = config.get_text_config().vocab_size
    sequences = [[i % vocabulary for i in ids] for ids in _TEST_SEQUENCES]  # ids past the vocabulary would be user ids
    plan, device = make_plan(sequences), next(backbone.parameters()).device
    try:
        states = torch.cat([_only_row(out) for _, out, _ in read_packs(backbone, plan, max_tokens=12)])
    except (NotImplementedError, RuntimeError, TypeError):  # it does not pass `packed` on to the attention
        return False
    alone = [_only_row(backbone(input_ids=torch.tensor([ids], device=device), use_cache=False)) for ids in sequences]
    first, second = alone[0][:_SHARED].float(), alone[1][:_SHARED].float()
    if not float((first - second).abs().max()) <= 1e-2 * float(first.abs().max()):
        return False
    similarities = []
    for i, expected in enumerate(alone[1:], start=1):  # the first one would agree in any case
        packed = states[torch.from_numpy(plan.tokens(i, 0, len(expected))).to(device)]
        similarities.append(F.cosine_similarity(packed.float(), expected.float(), dim=-1))
    return bool(torch.cat(similarities).median() > 0.95)


def _only_row(out: Any) -> Tensor:
    """Hidden states of the only row, or its logits if the model has a head."""
    logits = getattr(out, "logits", None)  # by name: a mixture of experts may return a loss first
    return (logits if logits is not None else out.last_hidden_state)[0]
