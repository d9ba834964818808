"""A backbone reads the packs of a plan: tokens of many sequences in one row, each of which sees its own past alone.

Linear layers see no padding. Attention is computed part by part, a span upon itself and all that follows a span upon
it, and the parts are joined by their normalisers: softmax over two sets of keys is the mean of both, weighed by
their summed exponentials. No keys or values are copied for each of the many that see them.
"""

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel

from prm.plan import Call, Pack, Plan, make_plan

_NAME = "prm_packed"
_TINY = 16  # rows of so few tokens are quicker as plain products
_PROBE = [[*range(40, 60)], [*range(40, 50), *range(80, 100)], [*range(60, 70)]]  # ids that any vocabulary has
_can_pack: "weakref.WeakKeyDictionary[nn.Module, bool]" = weakref.WeakKeyDictionary()
_lock = threading.Lock()  # the attention is a setting of the backbone: two threads would change it for each other


class _Part(NamedTuple):
    """A call, ready for the device: places [m, l], padding at 0; `take` are the rows that are real, and `put` where."""

    queries: Tensor
    keys: Tensor
    take: Tensor
    put: Tensor
    mask: Tensor | None


class _Packed:
    """What attention needs to know of the pack that is read, and the keys and values that are carried on, by layer."""

    def __init__(self, device: torch.device, dtype: torch.dtype):
        self.device, self.dtype = device, dtype
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def enter(self, pack: Pack) -> None:
        self.within = [self._part(call, causal=True) for call in pack.within]
        self.above = [self._part(call, causal=False) for call in pack.above]
        self.keep = torch.from_numpy(pack.keep).to(self.device)

    def _part(self, call: Call, causal: bool) -> _Part:
        queries, keys = (torch.from_numpy(side).to(self.device) for side in call)
        take = (queries.flatten() >= 0).nonzero().squeeze(1)
        mask = None
        if not causal and bool((keys < 0).any()):  # a causal row never sees what pads it on the right
            mask = torch.zeros(keys.shape, dtype=self.dtype, device=self.device)
            mask = mask.masked_fill(keys < 0, -torch.inf)[:, None, None, :]
        return _Part(queries.clamp_min(0), keys.clamp_min(0), take, queries.flatten()[take], mask)


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
    out, sums = q.new_empty(*q.shape[:2], v.shape[-1]), q.new_empty(q.shape[:2], dtype=torch.float32)
    for part in packed.within:
        found, total = _rows(q, k, v, part, scale, causal=True)
        out[part.put], sums[part.put] = found, total
    for part in packed.above:
        found, total = _rows(q, k, v, part, scale, causal=False)
        mine, own = out[part.put], sums[part.put]
        out[part.put] = mine.lerp(found, torch.sigmoid(total - own)[..., None].to(mine.dtype))
        sums[part.put] = torch.logaddexp(own, total)
    return out[None], None


def _rows(q: Tensor, k: Tensor, v: Tensor, part: _Part, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    """(attention [r, h, d], its log normalisers [r, h]) of the real rows of a part."""
    heads, groups = q.shape[1], k.shape[1]
    m, length = part.queries.shape
    asked = q[part.queries].transpose(1, 2)  # [m, h, l, d]
    keys, values = (x[part.keys].transpose(1, 2) for x in (k, v))
    if causal:
        keys, values = (x.repeat_interleave(heads // groups, 1) for x in (keys, values))
    else:  # heads that share keys ask as if they were further tokens
        asked = asked.reshape(m, groups, heads // groups * length, -1)
    found, total = _attend(asked, keys, values, part.mask, scale, causal)
    found, total = found.reshape(m, heads, length, -1), total.reshape(m, heads, length)
    return (x.transpose(1, 2).flatten(0, 1)[part.take] for x in (found, total))  # type: ignore[return-value]


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    """(softmax(q k' scale) v, log of the summed exponentials in float32) for [m, h, l, d]."""
    if q.device.type == "cpu" and q.shape[-1] == v.shape[-1] and k.shape[-2] > _TINY:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, attn_mask=mask, scale=scale
        )
    scores = (q @ k.mT).float() * scale
    if mask is not None:
        scores = scores + mask
    if causal:
        past = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        scores = scores.masked_fill(~past, -torch.inf)
    total = scores.logsumexp(-1)
    return (scores - total[..., None]).exp().to(v.dtype) @ v, total


AttentionInterface.register(_NAME, _attention)


@contextmanager
def attention_of(backbone: nn.Module, name: str) -> Iterator[None]:
    """The backbone attends by the registered function of that name, as long as the block lasts."""
    config: Any = _plain(backbone).config
    with _lock:
        before = config._attn_implementation
        config._attn_implementation = name
        try:
            yield
        finally:
            config._attn_implementation = before


def _plain(backbone: nn.Module) -> nn.Module:
    return backbone.get_base_model() if isinstance(backbone, PeftModel) else backbone


def read_packs(
    backbone: nn.Module, plan: Plan, max_tokens: int, options: Callable[[Pack], dict[str, Any]] | None = None
) -> Iterator[tuple[Pack, Any]]:
    """(pack, what the backbone returns for its tokens as one row), each token of the plan once.

    Args:
        max_tokens: of a pack; a single span may be longer.
        options: further arguments of the backbone for a pack.
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
        with attention_of(backbone, _NAME):
            out = backbone(input_ids=ids, position_ids=positions, use_cache=False, packed=packed, **further)
        yield pack, out


def can_pack(backbone: nn.Module) -> bool:
    """Whether the backbone can read packs: all its layers are full attention that transformers lets be replaced.

    Sliding windows, score caps and recurrent layers cannot; they read sequence by sequence. What the architecture
    says of itself is tried out, once per backbone, on a few tokens.
    """
    if backbone not in _can_pack:
        _can_pack[backbone] = _claims(_plain(backbone)) and _agrees(backbone)
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
    plan, training = make_plan(_PROBE), backbone.training
    backbone.eval()
    device = next(backbone.parameters()).device
    states = torch.cat([_first(out) for _, out in read_packs(backbone, plan, max_tokens=12)])
    alike = []
    for i, ids in enumerate(_PROBE[1:], start=1):  # the first one would be right without a tree, too
        alone = _first(backbone(input_ids=torch.tensor([ids], device=device), use_cache=False))
        found = states[torch.from_numpy(plan.tokens(i, 0, len(ids))).to(device)]
        alike.append(F.cosine_similarity(found.float(), alone.float(), dim=-1))
    backbone.train(training)
    return bool(torch.cat(alike).median() > 0.95)


def _first(out: Any) -> Tensor:
    """States of the one row, or logits where there is a head."""
    return out[0][0]
