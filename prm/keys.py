"""Keys and values of texts: what a backbone without adapters makes of them, each token once."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from prm.behind import KeptBatch, without_adapters
from prm.packed import read_packs
from prm.plan import Pack, make_plan, shared_start

Ids = Sequence[int]


class KeyTable(NamedTuple):
    """Keys and values of some texts, in the backbone's dtype; what texts begin with alike is there once.

    Args:
        keys, values: [t, layers, groups, d], a row for each token, positions in the keys.
        tokens: rows of the texts' tokens, one text behind the other, int32.
        ends: where each text ends in `tokens`, int64 [n].
    """

    keys: Tensor
    values: Tensor
    tokens: Tensor
    ends: Tensor

    def rows(self, text: int) -> Tensor:
        """The tokens of a text, int32 [l]."""
        return self.tokens[int(self.ends[text - 1]) if text else 0 : int(self.ends[text])]


@torch.no_grad()
def read_keys(backbone: nn.Module, texts: Sequence[Ids], max_tokens: int = 4096) -> KeyTable:
    """Keys and values of texts, without any adapter and without dropout.

    Args:
        max_tokens: that go through the backbone at once.
    """
    plan = make_plan([list(text) for text in texts])
    caches: list[DynamicCache] = []

    def options(pack: Pack) -> dict[str, Any]:
        caches.append(DynamicCache())
        return {"past_key_values": caches[-1]}

    training = backbone.training
    backbone.eval()
    with without_adapters(backbone):
        for _ in read_packs(backbone, plan, max_tokens, options):
            pass
    backbone.train(training)
    keys, values = (
        torch.cat([torch.stack([getattr(layer, side)[0].transpose(0, 1) for layer in c.layers], 1) for c in caches])
        for side in ("keys", "values")
    )
    tokens = [torch.from_numpy(plan.tokens(i, 0, len(text))).int() for i, text in enumerate(texts)]
    ends = torch.tensor([len(rows) for rows in tokens]).cumsum(0)
    return KeyTable(keys, values, torch.cat(tokens), ends)


def kept_batch(texts: Sequence[tuple[KeyTable, int]], users: Tensor, device: torch.device) -> KeptBatch:
    """Users, ids [b, k, T_u], behind b texts, each of which is the n-th of its table; all tables lie on one device."""
    rows = [table.rows(n) for table, n in texts]
    longest, first = max(map(len, rows)), texts[0][0]
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    sides = [side.new_zeros(len(rows), longest, *side.shape[1:]) for side in (first.keys, first.values)]
    for i, ((table, _), own) in enumerate(zip(texts, rows, strict=True)):
        mask[i, : len(own)] = True
        for side, kept in zip(sides, (table.keys, table.values), strict=True):
            torch.index_select(kept, 0, own.to(kept.device), out=side[i, : len(own)])
    return KeptBatch(*(x.to(device) for x in (users, mask, *sides)))


def portions(texts: Sequence[Ids], max_tokens: int) -> list[tuple[list[int], int]]:
    """(places of texts, tokens to be read for them): texts that begin alike together, about `max_tokens` each.

    A single text may be longer; so may a text's first portion by what it would have shared with the one before.
    """
    order = sorted(range(len(texts)), key=lambda i: list(texts[i]))
    shared = [0, *(shared_start(texts[a], texts[b]) for a, b in pairwise(order))][: len(order)]
    found: list[tuple[list[int], int]] = []
    for i, alike in zip(order, shared, strict=True):
        if found and found[-1][1] + len(texts[i]) - alike <= max_tokens:
            found[-1] = [*found[-1][0], i], found[-1][1] + len(texts[i]) - alike
        else:
            found.append(([i], len(texts[i])))
    return found
