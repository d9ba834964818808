"""Attention over packs: in parts, as on CPUs, and by masks, as on accelerators, is what the definition gives."""

import random

import pytest
import torch
from torch import Tensor

from prm.attention import prefix_tree, tree_attention
from prm.attention.prefix_tree import Pack, Plan, make_plan
from prm.attention.tree_attention import Block, Part, make_blocks, make_parts, masked_attention

CPU = torch.device("cpu")
SCALE = 0.3


def tree(seed: int) -> list[list[int]]:
    """Sequences that leave those before them at random tokens: spans of 1 to 60 tokens, several levels deep."""
    draw = random.Random(seed)
    sequences = [[draw.randrange(500) for _ in range(draw.randrange(1, 60))]]
    for _ in range(draw.randrange(3, 14)):
        start = draw.choice(sequences)
        start = start[: draw.randrange(len(start) + 1)]
        sequences.append([*start, *(draw.randrange(500) for _ in range(draw.randrange(1, 60)))])
    return sequences


def visible(plan: Plan, sequences: list[list[int]]) -> Tensor:
    """Which token attends to which, bool [t, t]: to those before it in its own sequences, and itself."""
    sees = torch.zeros(len(plan.ids), len(plan.ids), dtype=torch.bool)
    for i, ids in enumerate(sequences):
        path = torch.from_numpy(plan.tokens(i, 0, len(ids)))
        for n, token in enumerate(path):
            sees[token, path[: n + 1]] = True
    return sees


def by_definition(q: Tensor, k: Tensor, v: Tensor, sees: Tensor) -> Tensor:
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * SCALE
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~sees, -torch.inf).softmax(-1), v)


def prepared(pack: Pack, masks: bool, dtype: torch.dtype = torch.float32) -> list[Part] | list[Block]:
    return make_blocks(pack, CPU, dtype) if masks else make_parts(pack, dtype)


def pack_by_pack(plan: Plan, q: Tensor, k: Tensor, v: Tensor, max_tokens: int, masks: bool) -> Tensor:
    """`tree_attention` of a plan, [t, h, d], with the keys and values that each pack carries to the next."""
    carried, out = torch.zeros(0, dtype=torch.int64), []
    for pack in plan.packs(max_tokens):
        keys = torch.cat([carried, torch.arange(pack.start, pack.stop)])
        calls = prepared(pack, masks, q.dtype)
        out.append(tree_attention.tree_attention(q[pack.start : pack.stop], k[keys], v[keys], calls, SCALE))
        carried = keys[torch.from_numpy(pack.keep)]
    return torch.cat(out)


def random_input(tokens: int, width: int = 8, value_width: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of four heads, keys and values of two."""
    torch.manual_seed(0)
    shapes = ((tokens, 4, width), (tokens, 2, width), (tokens, 2, value_width))
    q, k, v = (torch.randn(shape, requires_grad=True) for shape in shapes)
    return q, k, v


def assert_alike(outputs: list[Tensor], sources: tuple[Tensor, ...]) -> None:
    """Outputs and gradients agree to 1e-5 with those of the first one."""
    weights = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(1))
    first, *others = [(out, *torch.autograd.grad((out * weights).sum(), sources)) for out in outputs]
    for other in others:
        for found, expected in zip(other, first, strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("max_tokens", [20, 90, 10_000])
@pytest.mark.parametrize("block", [1, 32, 1024])
@pytest.mark.parametrize("seed", range(6))
def test_masks_and_parts_give_what_the_definition_gives(
    seed: int, block: int, max_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs and gradients over random trees, whatever is cut into packs, and packs into blocks."""
    monkeypatch.setattr(tree_attention, "_BLOCK", block)
    monkeypatch.setattr(prefix_tree, "_MIN_SAVED_TOKENS", 1 + 7 * (seed % 2))
    sequences = tree(seed)
    plan = make_plan(sequences)
    q, k, v = random_input(len(plan.ids))
    parts, masks = (pack_by_pack(plan, q, k, v, max_tokens, masks) for masks in (False, True))
    assert_alike([by_definition(q, k, v, visible(plan, sequences)), parts, masks], (q, k, v))


@pytest.mark.parametrize("seed", range(4))
def test_a_boolean_mask_gives_what_the_parts_give(seed: int) -> None:
    """Of the whole tree at once, with values of another width than keys."""
    sequences = tree(seed)
    plan = make_plan(sequences)
    q, k, v = random_input(len(plan.ids), value_width=8 + seed % 2)
    parts = pack_by_pack(plan, q, k, v, 10_000, masks=False)
    assert_alike([parts, masked_attention(q, k, v, visible(plan, sequences), SCALE)], (q, k, v))


@pytest.mark.parametrize("tiny_rows", [0, 16, 1000])
def test_attention_and_its_gradient_by_the_definition(tiny_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two trees, three and two deep, spans of 1 to 46 tokens: by torch's kernel, by plain products, and by both."""
    monkeypatch.setattr(tree_attention, "_MAX_PLAIN_KEYS", tiny_rows)
    draw = random.Random(3)
    text = [draw.randrange(500) for _ in range(100)]
    ends = [(30, 12), (30, 1), (55, 40), (55, 17), (0, 9)]
    sequences = [[*text[:at], 1000 + i, *(draw.randrange(500) for _ in range(n))] for i, (at, n) in enumerate(ends)]
    sequences += [[*text[60:87], 2000 + n, *text[:n]] for n in (40, 45)]  # almost as long as what is behind the first
    plan = make_plan(sequences)
    assert len(plan.first) > 6
    (pack,) = plan.packs(10_000)
    assert any(part.mask is not None for part in make_parts(pack, torch.float32))
    q, k, v = random_input(len(plan.ids))
    parts = pack_by_pack(plan, q, k, v, 10_000, masks=False)
    assert_alike([by_definition(q, k, v, visible(plan, sequences)), parts], (q, k, v))


def test_both_ways_to_compute_a_part_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's kernel and plain products, with padding and without; the normalisers as well."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 4, 30, 16), torch.randn(3, 4, 30, 16), torch.randn(3, 4, 30, 16)
    mask = torch.zeros(3, 1, 1, 30)
    mask[1, ..., 20:] = -torch.inf
    for given, causal in ((None, True), (None, False), (mask, False)):
        kernel = tree_attention._attend(q, k, v, given, SCALE, causal)
        with monkeypatch.context() as patch:
            patch.setattr(tree_attention, "_MAX_PLAIN_KEYS", 100)
            products = tree_attention._attend(q, k, v, given, SCALE, causal)
        for a, b in zip(kernel, products, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_the_memory_of_masks_is_linear_in_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many columns as a block and the longest sequence have tokens, not as the pack has."""
    monkeypatch.setattr(tree_attention, "_BLOCK", 64)
    draw = random.Random(0)
    prompt = [draw.randrange(500) for _ in range(100)]
    plan = make_plan([[*prompt, *(draw.randrange(500) for _ in range(50))] for _ in range(60)])
    (pack,) = plan.packs(10_000)
    blocks = make_blocks(pack, CPU, torch.bfloat16)
    assert sum(block.mask.numel() for block in blocks) <= len(plan.ids) * (64 + 150) < len(plan.ids) ** 2 / 10


def test_layers_share_the_masks() -> None:
    """What they keep for the backward pass holds one mask a block. Kernels on CUDA would copy rows of odd sizes."""
    plan = make_plan(tree(0))
    (pack,) = plan.packs(10_000)
    (block,) = make_blocks(pack, CPU, torch.float32)
    assert block.mask.stride(0) % 16 == 0
    q, k, v = random_input(len(plan.ids))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        for _ in range(3):
            q = tree_attention.tree_attention(q, k, v, [block], SCALE)
    masks = [x.data_ptr() for x in kept if x.shape[-2:] == block.mask.shape]
    assert len(masks) == 3
    assert len(set(masks)) == 1
