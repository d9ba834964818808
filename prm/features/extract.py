"""Computes pooled hidden states and log-probabilities of many texts, with shared prefixes processed once.

Dropout is off, whatever mode the model is in.
Backbones that cannot process packs get padded batches of complete sequences; tests check that both agree.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from prm.attention.prefix_tree import Ints, Pack, Plan, make_plan
from prm.config import LayerPooling
from prm.data.encoding import Batch, Encoded, batches, pad
from prm.io.progress import Bar
from prm.models.backbone_state import switched
from prm.models.backbones import final_norm
from prm.models.packing import can_pack, read_packs
from prm.models.policy_model import LOGITS_AT_ONCE, Policy
from prm.models.reward_model import RewardModel
from prm.users.user_model import UserModel

Key = TypeVar("Key")
Out = TypeVar("Out")
States = dict[int, Tensor]  # hidden states by depth


@torch.no_grad()
def read_pooled(
    model: RewardModel,
    texts: Sequence[Encoded],
    settings: Sequence[LayerPooling],
    max_tokens: int,
    bar: Bar,
    user_model: UserModel | None = None,
) -> dict[LayerPooling, Tensor]:
    """Pooled hidden states of the texts, float32 [n, width] per setting, on the model's device.

    Args:
        max_tokens: maximum number per pass of the backbone; bounds memory.
        bar: advanced by one per text.
        user_model: the user model whose rows the user ids name; the model's own if not given.
    """
    device = model.standard_mean.device
    if not texts:
        return {setting: torch.empty(0, model.width, device=device) for setting in settings}
    if not can_pack(model.backbone):

        def batch_states(batch: Batch) -> dict[LayerPooling, Tensor]:
            with switched(model.backbone, user_model=user_model, evaluating=True):
                return model.pooled_at(batch, settings)

        return _in_batches(texts, max_tokens, device, bar, batch_states)
    plan = make_plan([text.ids for text in texts])
    pooled_tokens = {pooling: _PooledTokens(plan, texts, pooling) for _, pooling in settings}
    pooled = {setting: torch.zeros(len(texts), model.width, device=device) for setting in settings}
    depths = {layers for layers, _ in settings} - {model.layers}
    packs = read_packs(model.backbone, plan, max_tokens, user_model=user_model, evaluating=True, depths=depths)
    for pack, out, captured in _with_progress(packs, plan, bar):
        for layers, pooling in settings:
            index, owners, weights = (x.to(device) for x in pooled_tokens[pooling].within(pack))
            states = (out.last_hidden_state if layers == model.layers else captured[layers])[0, index]
            states = states if layers == model.layers else final_norm(model.backbone)(states)
            pooled[layers, pooling].index_add_(0, owners, states.float() * weights[:, None])
    return pooled


@torch.no_grad()
def read_logps(
    policy: Policy, sequences: Sequence[Encoded], max_tokens: int, bar: Bar, user_model: UserModel | None = None
) -> Tensor:
    """log pi(response | prompt, user) of each sequence, nats, float32 [n], on the policy's device.

    Args:
        user_model: the user model whose rows the user ids name; the policy's own if not given.
    """
    if not sequences:
        return torch.empty(0, device=policy.device)
    if not can_pack(policy.backbone):

        def batch_logps(batch: Batch) -> dict[int, Tensor]:
            with switched(policy.backbone, user_model=user_model, evaluating=True):
                return {0: policy.logps(batch)}

        return _in_batches(sequences, max_tokens, policy.device, bar, batch_logps)[0]
    plan = make_plan([s.ids for s in sequences])
    tokens, owners = _responses(plan, sequences)
    targets = np.unique(tokens)
    targets = targets[np.argsort(plan.before[targets], kind="stable")]  # in the order of the tokens that predict them
    sources, logps = plan.before[targets], torch.zeros(len(plan.ids), device=policy.device)

    def entries_of(pack: Pack) -> slice:
        return slice(*np.searchsorted(sources, (pack.start, pack.stop)).tolist())

    def options(pack: Pack) -> dict[str, Tensor]:
        index = np.unique(sources[entries_of(pack)]) - pack.start
        return {"logits_to_keep": torch.from_numpy(index).to(policy.device)}

    packs = read_packs(policy.backbone, plan, max_tokens, options, user_model, evaluating=True)
    for pack, out, _ in _with_progress(packs, plan, bar):
        part = entries_of(pack)
        rows = np.unique(sources[part], return_inverse=True)[1]
        logps[torch.from_numpy(targets[part]).to(policy.device)] = _predicted(
            out.logits[0], rows, plan.ids[targets[part]]
        )
    sums = torch.zeros(len(sequences), device=policy.device)
    return sums.index_add_(0, _tensor(owners, policy.device), logps[_tensor(tokens, policy.device)])


def read_reference_logps(policy: Policy, sequences: Sequence[Encoded], max_tokens: int, bar: Bar) -> Tensor:
    """log pi_ref(response | prompt) of sequences without users, as `read_logps`. Raises `ValueError` for a user id."""
    policy.refuse_users(i for s in sequences for i in s.ids)
    with policy.reference() as start:
        return read_logps(start, sequences, max_tokens, bar)


def _predicted(logits: Tensor, rows: Ints, ids: Ints) -> Tensor:
    """Log-probabilities, float32 [k], of ids [k] under rows [k] of logits [r, V]."""
    totals = torch.cat([part.float().logsumexp(-1) for part in logits.split(LOGITS_AT_ONCE)])
    row, token = _tensor(rows, logits.device), _tensor(ids, logits.device)
    return logits[row, token].float() - totals[row]


class _PooledTokens:
    """The tokens that a pooling averages, with their texts and weights, in processing order."""

    def __init__(self, plan: Plan, texts: Sequence[Encoded], pooling: str):
        if pooling == "mean":
            tokens, owners = _responses(plan, texts)
            weights = 1.0 / np.bincount(owners)[owners]
        else:
            tokens, owners, weights = plan.last, np.arange(len(texts)), np.ones(len(texts))
        order = np.argsort(tokens, kind="stable")
        self._tokens, self._owners, self._weights = tokens[order], owners[order], weights[order].astype(np.float32)

    def within(self, pack: Pack) -> tuple[Tensor, Tensor, Tensor]:
        """(indices in the pack, texts, weights) of the pack's tokens."""
        part = slice(*np.searchsorted(self._tokens, (pack.start, pack.stop)).tolist())
        index = self._tokens[part] - pack.start
        return torch.from_numpy(index), torch.from_numpy(self._owners[part]), torch.from_numpy(self._weights[part])


def _responses(plan: Plan, texts: Sequence[Encoded]) -> tuple[Ints, Ints]:
    """(token indices, sequence indices) of all responses."""
    tokens = [plan.tokens(i, *text.response) for i, text in enumerate(texts)]
    owners = np.repeat(np.arange(len(texts)), [len(t) for t in tokens])
    return np.concatenate(tokens), owners


def _with_progress(
    packs: Iterator[tuple[Pack, Out, States]], plan: Plan, bar: Bar
) -> Iterator[tuple[Pack, Out, States]]:
    """The packs; advances the bar by the texts that end in each."""
    ends = np.sort(plan.last)
    for pack, out, inner in packs:
        yield pack, out, inner
        done = np.searchsorted(ends, (pack.start, pack.stop))
        bar.update(int(done[1] - done[0]))


def _in_batches(
    sequences: Sequence[Encoded],
    max_tokens: int,
    device: torch.device,
    bar: Bar,
    read: Callable[[Batch], dict[Key, Tensor]],
) -> dict[Key, Tensor]:
    """`read` of every sequence, [n, ...] by key, in padded batches; duplicates are processed once."""
    unique = {(*s.ids, *s.response): s for s in sequences}
    position = {key: i for i, key in enumerate(unique)}
    index, distinct = [position[*s.ids, *s.response] for s in sequences], list(unique.values())
    out: dict[Key, Tensor] = {}
    for chunk in batches([len(s.ids) for s in distinct], max_tokens):
        batch = pad([distinct[i] for i in chunk])
        for key, rows in read(Batch(*(field.to(device) for field in batch))).items():
            out.setdefault(key, rows.new_empty(len(distinct), *rows.shape[1:]))[chunk] = rows
        bar.update(len(chunk))
    return {key: rows[index] for key, rows in out.items()}


def _tensor(numbers: Ints, device: torch.device) -> Tensor:
    return torch.from_numpy(numbers).to(device)
