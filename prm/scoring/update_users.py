"""Judgements into a loaded model: whoever judged learns, nobody else's numbers move by a bit."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from prm.checkpoint.checkpoint import Checkpoint
from prm.data.comparison import Comparison, latest_user_texts
from prm.errors import PrmError
from prm.features.batcher import Batcher
from prm.models.backbone_state import lock_of
from prm.models.reward_model import RewardModel
from prm.training.head_objective import PairFeatures
from prm.training.user_fit import fit_heads, fit_prompts, penalty_of, rates_of
from prm.users.index import GENERIC_ROW
from prm.users.models import Bayes, UserModel


def learn_people(
    checkpoint: Checkpoint[Any],
    requests: Batcher,
    comparisons: Sequence[Comparison],
    users: Iterable[str] = (),
    anew: bool = False,
) -> int:
    """Take judgements into the numbers of those who judged, in memory; returns the number of steps.

    They are learnt on a copy: who scores meanwhile gets what was known before, and nothing has changed where this
    fails. One thread learns at a time.

    Args:
        requests: reads the texts.
        users: who is to be known besides, judgements or not.
        anew: the comparisons are all that is known of these people.

    Raises `PrmError` for a policy and for a uniform model.
    """
    model, index = checkpoint.model, checkpoint.users
    if not isinstance(model, RewardModel):
        raise PrmError("the run holds a policy, whose people are not learnt apart: train it with all judgements")
    if not model.user_model.per_row():
        raise PrmError("the run's model is uniform: it holds nobody's own numbers")
    everybody = list(dict.fromkeys([*users, *(c.user_id for c in comparisons)]))
    with lock_of(index):
        penalty = penalty_of(checkpoint) if comparisons else 0.0
        with lock_of(model.user_model):
            known = [index.row(user) for user in everybody]
            people = model.user_model.subset(torch.tensor([GENERIC_ROW, *known], device=requests.device))
        fresh = [False, *(anew or row == GENERIC_ROW for row in known)]
        for place, new in enumerate(fresh):
            if new:
                people.forget_row(place)
        steps = _fit(checkpoint, requests, comparisons, people, everybody, fresh, penalty) if comparisons else 0
        with lock_of(model.user_model):
            index.grow(everybody)
            index.learn(comparisons, anew=everybody if anew else ())
            model.user_model.grow(index.n_rows)
            rows = [GENERIC_ROW, *(index.row(user) for user in everybody)]
            model.user_model.scatter_(torch.tensor(rows, device=requests.device), people)
    return steps


def _fit(
    checkpoint: Checkpoint[RewardModel],
    requests: Batcher,
    comparisons: Sequence[Comparison],
    people: UserModel,
    everybody: Sequence[str],
    fresh: Sequence[bool],
    penalty: float,
) -> int:
    """Teach `people`, who are the unknown user and `everybody`; `fresh` says of whom nothing is known yet."""
    model, device = checkpoint.model, requests.device
    place = {user: i for i, user in enumerate(everybody, start=1)}
    judges = [place[c.user_id] for c in comparisons]
    if isinstance(people, Bayes) and people.text_prior is not None:
        latest = {place[c.user_id]: c.user_text for c in latest_user_texts(comparisons)}
        people.set_text_prior(
            torch.tensor(list(latest), dtype=torch.long, device=device), requests.alone(latest.values())
        )
    if model.is_linear:
        pairs = pairs_of(model, requests, comparisons, judges)
        return fit_heads(people, pairs, torch.tensor(fresh, device=device), penalty)
    return fit_prompts(model, people, requests.encoder, comparisons, judges, rates_of(checkpoint), penalty)


@torch.no_grad()
def pairs_of(
    model: RewardModel, requests: Batcher, comparisons: Sequence[Comparison], judges: Sequence[int]
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
