"""Fit users of a loaded model to comparisons; the parameters of all others stay the same to the bit."""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from prm.checkpoint.checkpoint import Checkpoint
from prm.data.comparison import Comparison, naming_rows, placed
from prm.errors import PrmError, some
from prm.models.backbone_state import lock_of
from prm.models.reward_model import RewardModel
from prm.scoring.text_reader import TextReader
from prm.training.heads.objective import PairFeatures
from prm.training.user_fit import fit_heads, fit_prompts, penalty_of, rates_of
from prm.users.index import GENERIC_ROW, UserIndex
from prm.users.user_model import UserModel

logger = logging.getLogger(__name__)


def update_users(
    checkpoint: Checkpoint[Any],
    reader: TextReader,
    comparisons: Sequence[Comparison],
    users: Iterable[str] = (),
    anew: bool = False,
) -> int:
    """Fit the users of the comparisons, in memory; returns the number of steps.

    The fit is on a copy: scores computed meanwhile use the earlier parameters, and a failure changes nothing. One
    thread fits at a time.

    Args:
        reader: the model's.
        users: further users to add, with or without comparisons.
        anew: fit users to these comparisons only, and discard what the model knew of them.

    Raises `PrmError` for a policy and for a uniform model, and `DataError` naming the first comparison that the model
    cannot read.
    """
    model, index = checkpoint.model, checkpoint.users
    if not isinstance(model, RewardModel):
        raise PrmError("the run holds a policy, to which users cannot be added: train it on all comparisons")
    if not model.user_model.per_row():
        raise PrmError("the run's model is uniform: it has no user parameters")
    all_users = list(dict.fromkeys([*users, *(c.user_id for c in comparisons)]))
    with lock_of(index):
        user_l2 = penalty_of(checkpoint) if comparisons else 0.0
        with lock_of(model.user_model):
            known_rows = [index.row(user) for user in all_users]
            fitted = model.user_model.subset(torch.tensor([GENERIC_ROW, *known_rows], device=reader.device))
        if not (anew or model.is_linear):
            _warn_of_earlier(index, comparisons)
        is_new = [False, *(anew or row == GENERIC_ROW for row in known_rows)]
        for i, new in enumerate(is_new):
            if new:
                fitted.forget_row(i)
        with naming_rows(placed(comparisons), reader.check_comparison):
            steps = _fit(checkpoint, reader, comparisons, fitted, all_users, is_new, user_l2) if comparisons else 0
        with lock_of(model.user_model):
            index.grow(all_users)
            index.learn(comparisons, anew=all_users if anew else ())
            model.user_model.grow(index.n_rows)
            rows = [GENERIC_ROW, *(index.row(user) for user in all_users)]
            model.user_model.scatter_(torch.tensor(rows, device=reader.device), fitted)
    return steps


def _warn_of_earlier(index: UserIndex, comparisons: Sequence[Comparison]) -> None:
    """Warn of users of soft prompts whom the model knows by more comparisons than they get now."""
    new = Counter(c.user_id for c in comparisons)
    outweighed = [user for user, n in new.items() if (index.num_comparisons(user) or 0) > n]
    if outweighed:
        logger.warning(
            "a few comparisons may outweigh the earlier ones in the soft prompts of %s: fit these users to all their "
            "comparisons ('fit_user', or 'prm adapt --refit'), or train with users.kind bayes",
            some([repr(user) for user in outweighed]),
        )


def _fit(
    checkpoint: Checkpoint[RewardModel],
    reader: TextReader,
    comparisons: Sequence[Comparison],
    user_model: UserModel,
    all_users: Sequence[str],
    is_new: Sequence[bool],
    user_l2: float,
) -> int:
    """Fit `user_model`, which holds the generic user and `all_users`; `is_new` marks rows without earlier data."""
    model = checkpoint.model
    position = {user: i for i, user in enumerate(all_users, start=1)}
    rows = [position[c.user_id] for c in comparisons]
    if model.is_linear:
        pairs = pairs_of(model, reader, comparisons, rows)
        return fit_heads(user_model, pairs, torch.tensor(is_new, device=reader.device), user_l2)
    return fit_prompts(model, user_model, reader.encoder, comparisons, rows, rates_of(checkpoint), user_l2)


@torch.no_grad()
def pairs_of(
    model: RewardModel, reader: TextReader, comparisons: Sequence[Comparison], user_rows: Sequence[int]
) -> PairFeatures:
    """The comparisons as input of a linear head, for users with these rows."""
    n, texts = len(comparisons), [c.user_text for c in comparisons]
    prompts, responses = [c.prompt for c in comparisons], [c.chosen for c in comparisons]
    responses += [c.rejected for c in comparisons]
    pooled, index = reader.pooled([*prompts, *prompts], responses, [*texts, *texts])
    labels = torch.tensor([[c.p_chosen, c.weight] for c in comparisons], device=reader.device)
    states, base = model.head_input(pooled)
    rows = torch.tensor(user_rows, device=reader.device)
    return PairFeatures(states, index[:n], index[n:], rows, labels[:, 0], labels[:, 1], base)
