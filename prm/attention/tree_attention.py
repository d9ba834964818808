"""Attention over a pack: each token attends to its own sequences' prefix alone.

On CPUs it is computed in parts: each span attends to itself, and its descendants attend to it. The parts are joined by
their normalisers: softmax over two sets of keys is the mean of both, weighted by their summed exponentials. Shared keys
and values are not copied. The backward pass of a part needs only the joint output: with the joint normaliser Z its
weights are exp(s - Z), and the gradient of a score is its weight times (g . v - g . out), independent of the other
parts.

On accelerators it is torch's own attention with a mask, in blocks of queries.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from prm.attention.prefix_tree import Call, Pack

_MAX_PLAIN_KEYS = 16  # up to here, plain matrix products are faster than the kernel
_BLOCK = 1024  # queries that share a mask; bounds its memory, and the work for keys that few of them attend to
_MASK_ALIGNMENT = 16  # of a mask's rows, in numbers: torch would copy other masks in every layer


class Side(NamedTuple):
    """Tokens of a call: `padded` [m, l], padding at 0; of the real ones, `positions` among the m l and `tokens`."""

    padded: Tensor
    positions: Tensor
    tokens: Tensor


class Part(NamedTuple):
    """A call as tensors; the mask [m, 1, 1, lk] is -inf on padded keys, `None` without padding."""

    queries: Side
    keys: Side
    mask: Tensor | None
    causal: bool


class Block(NamedTuple):
    """Queries start to stop, half open, the keys [n] that they attend to, and their mask [stop - start, n], 0 or -inf.

    The mask is added to the scores. A boolean one would be converted in every layer, and each layer would keep its own
    for the backward pass.
    """

    start: int
    stop: int
    keys: Tensor
    mask: Tensor


def prepare(pack: Pack, device: torch.device, dtype: torch.dtype) -> list[Part] | list[Block]:
    """What `tree_attention` needs of a pack on the device; `dtype` is that of queries and keys."""
    return make_parts(pack, dtype) if device.type == "cpu" else make_blocks(pack, device, dtype)


def make_parts(pack: Pack, dtype: torch.dtype) -> list[Part]:
    """The pack's calls as tensors on the CPU, causal ones first."""
    calls = [(call, True) for call in pack.within] + [(call, False) for call in pack.above]
    return [_part(call, causal, dtype) for call, causal in calls]


def _part(call: Call, causal: bool, dtype: torch.dtype) -> Part:
    queries, keys = (torch.from_numpy(side) for side in call)
    mask = None
    if not causal and bool((keys < 0).any()):  # a causal row never attends to its right padding
        mask = torch.zeros(keys.shape, dtype=dtype).masked_fill(keys < 0, -torch.inf)[:, None, None, :]
    return Part(_side(queries), _side(keys), mask, causal)


def make_blocks(pack: Pack, device: torch.device, dtype: torch.dtype) -> list[Block]:
    """The pack's queries in blocks, each with the keys that it attends to.

    A mask has at most as many columns as a block and the longest sequence have tokens, so that the masks' memory is
    linear in the pack's tokens.
    """
    blocks, tokens = [], pack.stop - pack.start
    begins = np.arange(len(pack.ends)) - pack.carried  # the first query that attends to each key, or below 0
    for start in range(0, tokens, _BLOCK):
        stop = min(start + _BLOCK, tokens)
        keys = np.flatnonzero((begins < stop) & (pack.ends > start))
        begin, end = (torch.from_numpy(side[keys]).to(device) for side in (begins, pack.ends))
        queries = torch.arange(start, stop, device=device)[:, None]
        mask = _additive((begin <= queries) & (queries < end), dtype)
        blocks.append(Block(start, stop, torch.from_numpy(keys).to(device), mask))
    return blocks


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where the mask [t, n] is True, else -inf."""
    rows, columns = mask.shape
    out = torch.zeros(rows, -(-columns // _MASK_ALIGNMENT) * _MASK_ALIGNMENT, dtype=dtype, device=mask.device)
    return out[:, :columns].masked_fill_(~mask, -torch.inf)


def _side(tokens: Tensor) -> Side:
    flat = tokens.flatten()
    positions = (flat >= 0).nonzero().squeeze(1)
    return Side(tokens.clamp_min(0), positions, flat[positions])


def tree_attention(q: Tensor, k: Tensor, v: Tensor, prepared: list[Part] | list[Block], scale: float) -> Tensor:
    """Attention [t, h, d] of a pack's queries [t, h, d] over its keys and values [s, g, d]; carried ones come first."""
    if not isinstance(prepared[0], Block):
        return _TreeAttention.apply(q, k, v, prepared, scale)  # type: ignore[no-untyped-call, no-any-return]
    return torch.cat(
        [masked_attention(q[start:stop], k[keys], v[keys], mask, scale) for start, stop, keys, mask in prepared]
    )


def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Attention [t, h, d] of queries [t, h, d] over keys and values [s, g, d], by torch's own function.

    Args:
        mask: [t, s], True where a query attends to a key, or numbers to add to the scores.
    """
    # repeated: on CUDA no kernel but the one that materialises the scores takes both groups (`enable_gqa`) and a mask
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)[0].transpose(0, 1)


class _Context(Protocol):
    """What autograd keeps between the passes of `_TreeAttention`."""

    parts: Sequence[Part]
    scale: float
    saved_tensors: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class _TreeAttention(torch.autograd.Function):
    """Joins parts. Each query's causal part must come before its other parts; no part has a token twice."""

    @staticmethod
    def forward(ctx: _Context, q: Tensor, k: Tensor, v: Tensor, parts: Sequence[Part], scale: float) -> Tensor:
        out = q.new_empty(*q.shape[:2], v.shape[-1])
        totals = q.new_full(q.shape[:2], -torch.inf, dtype=torch.float32)
        for part in parts:
            rows, total = _rows(q, k, v, part, scale)
            tokens = part.queries.tokens
            if part.causal:  # first, so it initialises
                out[tokens], totals[tokens] = rows, total
            else:
                previous = totals[tokens]
                out[tokens] = out[tokens].lerp(rows, torch.sigmoid(total - previous)[..., None].to(out.dtype))
                totals[tokens] = torch.logaddexp(previous, total)
        ctx.save_for_backward(q, k, v, out, totals)
        ctx.parts, ctx.scale = parts, scale
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, totals = ctx.saved_tensors
        gradients = [torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (q, k, v)]
        for part in ctx.parts:
            for gradient, part_gradient, side in zip(
                gradients,
                _rows_backward(grad, q, k, v, out, totals, part, ctx.scale),
                (part.queries, part.keys, part.keys),
                strict=True,
            ):
                gradient[side.tokens] += part_gradient
        return *(gradient.to(x.dtype) for gradient, x in zip(gradients, (q, k, v), strict=True)), None, None


def _rows(q: Tensor, k: Tensor, v: Tensor, part: Part, scale: float) -> tuple[Tensor, Tensor]:
    """(attention [r, h, d], log normalisers [r, h]) of the real queries of a part."""
    queries, keys, values = _gather_queries(q, k, part), _gather_keys(k, q, part), _gather_keys(v, q, part)
    out, total = _attend(queries, keys, values, part.mask, scale, part.causal)
    return _scatter_output(out, q, part), _scatter_output(total[..., None], q, part)[..., 0]


def _rows_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, totals: Tensor, part: Part, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """A part's gradients of its real queries [r, h, d], and of its real keys and values [s, g, d]."""
    grad_rows, queries, out_rows = (_gather_queries(x, k, part) for x in (grad, q, out))
    is_padding = torch.ones(part.queries.padded.numel(), dtype=torch.bool, device=q.device)
    is_padding[part.queries.positions] = False
    total = totals[part.queries.padded].masked_fill(is_padding.view_as(part.queries.padded)[..., None], torch.inf)
    total = total.transpose(1, 2).reshape(queries.shape[:3])  # padding gets weight exp(-inf) = 0
    keys, values = _gather_keys(k, q, part), _gather_keys(v, q, part)
    dq, dk, dv = _attend_backward(grad_rows, queries, keys, values, out_rows, total, part.mask, scale, part.causal)
    return _scatter_output(dq, q, part), _scatter_grad(dk, k, part), _scatter_grad(dv, v, part)


def _gather_queries(x: Tensor, k: Tensor, part: Part) -> Tensor:
    """Rows [m, h, l, d] of x [t, h, d]; in non-causal parts, heads that share keys are stacked as more tokens."""
    rows = x[part.queries.padded].transpose(1, 2)
    return rows if part.causal else rows.reshape(len(rows), k.shape[1], -1, x.shape[-1])


def _scatter_output(rows: Tensor, q: Tensor, part: Part) -> Tensor:
    """The real rows [r, h, d], from the shape that `_gather_queries` returns."""
    m, length = part.queries.padded.shape
    return rows.reshape(m, q.shape[1], length, -1).transpose(1, 2).flatten(0, 1)[part.queries.positions]


def _gather_keys(x: Tensor, q: Tensor, part: Part) -> Tensor:
    """Rows [m, g, lk, d] of keys or values; in causal parts repeated for all heads that share them."""
    rows = x[part.keys.padded].transpose(1, 2)
    return rows.repeat_interleave(q.shape[1] // x.shape[1], 1) if part.causal else rows


def _scatter_grad(rows: Tensor, x: Tensor, part: Part) -> Tensor:
    """The real rows [s, g, d] of a gradient in the shape that `_gather_keys` returns, summed over copies."""
    if part.causal:
        rows = rows.unflatten(1, (x.shape[1], -1)).sum(2)
    return rows.transpose(1, 2).flatten(0, 1)[part.keys.positions]


def _has_kernel(q: Tensor, k: Tensor, v: Tensor) -> bool:
    return q.shape[-1] == v.shape[-1] and k.shape[-2] > _MAX_PLAIN_KEYS


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    """(softmax(q k' scale) v, log of the summed exponentials in float32) for [m, h, l, d]."""
    if _has_kernel(q, k, v):
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, attn_mask=mask, scale=scale
        )
    scores = _scores(q, k, mask, scale, causal)
    total = scores.logsumexp(-1)
    return (scores - total[..., None]).exp().to(v.dtype) @ v, total


def _attend_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    total: Tensor,
    mask: Tensor | None,
    scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; `out` [m, h, l, d] and `total` [m, h, l] may include other parts' keys."""
    if _has_kernel(q, k, v):
        # the kernel takes twice as long in bfloat16 as casting and float32 do
        grad, q, k, v, out = (x.float() for x in (grad, q, k, v, out))
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, total, 0.0, causal, attn_mask=mask if mask is None else mask.float(), scale=scale
        )
    weights = (_scores(q, k, mask, scale, causal) - total[..., None]).exp()
    grad = grad.float()
    mean = (grad * out.float()).sum(-1, keepdim=True)
    inner = weights * (grad @ v.float().mT - mean) * scale
    return inner @ k.float(), inner.mT @ q.float(), weights.mT @ grad


def _scores(q: Tensor, k: Tensor, mask: Tensor | None, scale: float, causal: bool) -> Tensor:
    scores = (q @ k.mT).float() * scale
    if mask is not None:
        scores = scores + mask
    if causal:
        past = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        scores = scores.masked_fill(~past, -torch.inf)
    return scores
