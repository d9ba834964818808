"""Judgements into a loaded model: whoever judged learns, nobody else's numbers move by a bit."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from prm.checkpoint import Checkpoint
from prm.comparison import Comparison, last_told
from prm.conditioned import conditioned_on
from prm.errors import PrmError
from prm.heads import PairFeatures
from prm.model import RewardModel
from prm.own import fit_heads, fit_prompts, penalty_of, rates_of
from prm.requests import Requests
from prm.user_models import Bayes


def learn_people(
    checkpoint: Checkpoint[Any],
    requests: Requests,
    comparisons: Sequence[Comparison],
    users: Iterable[str] = (),
    anew: bool = False,
) -> int:
    """Take judgements into the numbers of those who judged, in memory; returns the number of steps.

    Args:
        requests: reads the texts.
        users: who is to be known besides, judgements or not.
        anew: the comparisons are all that is known of these people.

    Raises `PrmError` for a policy and for a uniform model.
    """
    model, index, device = checkpoint.model, checkpoint.users, requests.device
    if not isinstance(model, RewardModel):
        raise PrmError("the run holds a policy, whose people are not learnt apart: train it with all judgements")
    if not model.user_model.per_row():
        raise PrmError("the run's model is uniform: it holds nobody's own numbers")
    known, everybody = index.n_rows, list(dict.fromkeys([*users, *(c.user_id for c in comparisons)]))
    penalty = penalty_of(checkpoint) if comparisons else 0.0  # raises before anybody is touched
    index.grow(everybody)
    index.learn(comparisons, anew=everybody if anew else ())
    if index.n_rows > known:
        model.user_model.grow(index.n_rows)
    rows = [0, *(index.row(user) for user in everybody)]
    fresh = [row > 0 and (anew or row >= known) for row in rows]
    for row in itertools.compress(rows, fresh):
        model.user_model.forget_row(row)
    if not comparisons:
        return 0
    where = torch.tensor(rows, device=device)
    people, place = model.user_model.taken(where), {user: i for i, user in enumerate(everybody, start=1)}
    judges = [place[c.user_id] for c in comparisons]
    if isinstance(people, Bayes) and people.told is not None:
        told = {place[c.user_id]: c.user_text for c in last_told(comparisons)}
        people.expect(torch.tensor(list(told), dtype=torch.long, device=device), requests.alone(told.values()))
    if model.is_linear:
        pairs = pairs_of(model, requests, comparisons, judges)
        steps = fit_heads(people, pairs, torch.tensor(fresh, device=device), penalty)
    else:
        with conditioned_on(model.backbone, people):
            rates = rates_of(checkpoint)
            steps = fit_prompts(model, people, requests.encoder, comparisons, judges, rates, penalty)
    model.user_model.put(where, people)
    return steps


@torch.no_grad()
def pairs_of(
    model: RewardModel, requests: Requests, comparisons: Sequence[Comparison], judges: Sequence[int]
) -> PairFeatures:
    """The comparisons as a linear head sees them, for judges with these rows."""
    n, texts = len(comparisons), [c.user_text for c in comparisons]
    prompts, both = [c.prompt for c in comparisons], [c.chosen for c in comparisons]
    both += [c.rejected for c in comparisons]
    pooled, index = requests.pooled([*prompts, *prompts], both, [*texts, *texts])
    labels = torch.tensor([[c.p_chosen, c.weight] for c in comparisons], device=requests.device)
    states, base = model.head_input(pooled)
    rows = torch.tensor(judges, device=requests.device)
    return PairFeatures(states, index[:n], index[n:], rows, labels[:, 0], labels[:, 1], base)
