"""Win rates per duel and per user, with the paper's ways to count ties and with ties as halves, with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike

from policy.judging.judges.duels import Judge, duels_between, with_history
from prm.data.comparison import Comparison, prompt_key
from prm.errors import PrmError
from prm.metrics import Array, Average, Estimate, average, estimate, over_both, per_user, ratio
from prm.report.text.evaluation import percent, with_error


@dataclass(frozen=True)
class WinRate:
    """How often the first arm wins, in [0, 1]; intervals by bootstrap over users, that of `user` also over prompts.

    Args:
        wins, ties, losses, unjudged: numbers of duels; the unjudged are left out of everything else.
        sample: mean over duels, a tie is half a win. Both arms' rates add up to 1.
        sample_error: its standard error, clustered by user: duels of one user are not independent.
        user: mean over users of each one's rate, a tie is half a win. If users share prompts, the interval is also over
            prompts: ten users owners get the same responses are not ten independent observations.
        user_error: its standard error.
        strict: as `user`, but a tie is no win (the paper's Table 1).
        both_win: over duels, a tie is a win of both sides (Table 2, per sample): (wins + ties) / (wins + losses +
            2 ties), as the authors' notebook computes it; both arms' rates add up to 1.
        dominant: share of users for whom the arm wins at least as often as it loses (Table 2, per user, as in the
            paper's text). Both arms can win a user. The notebook is more lenient: wins + ties >= losses.
    """

    wins: int
    ties: int
    losses: int
    unjudged: int
    sample: Estimate
    sample_error: float
    user: Estimate
    user_error: float
    strict: Average
    both_win: Estimate
    dominant: Estimate


@dataclass(frozen=True)
class WinMatrix:
    """Win rates of every arm against every other, over the same prompts and users; `notes` are the judge's."""

    arms: tuple[str, ...]
    rates: Mapping[tuple[str, str], WinRate]
    notes: tuple[str, ...]


def win_rate(scores: ArrayLike, users: ArrayLike, prompts: Sequence[str], seed: int = 0) -> WinRate:
    """The win rate of the first responses.

    Intervals over users and prompts need one duel for each user and prompt; if a user has a prompt twice, the interval
    of `user` is over users alone. Raises `PrmError` for other scores, for unequal lengths, and if no duel was judged.

    Args:
        scores: of each duel: 1, 0.5, 0, or NaN if it was not judged.
        users, prompts: user id and `prompt_key` of each duel.
    """
    values, names, keys = np.asarray(scores, np.float64), np.asarray(users), np.asarray(prompts)
    if not values.shape == names.shape == keys.shape:
        raise PrmError(f"scores, users and prompts differ in number: {values.size}, {names.size}, {keys.size}")
    judged = ~np.isnan(values)
    if invalid := sorted(set(values[judged].tolist()) - {0.0, 0.5, 1.0}):
        raise PrmError(f"scores of duels are 1, 0.5 or 0, got {invalid[0]}")
    if not judged.any():
        raise PrmError(f"none of {len(values)} duels was judged: there is no win rate")
    v, owners = values[judged], names[judged]
    win, tie, loss = ((v == x).astype(np.float64) for x in (1.0, 0.5, 0.0))
    w, t, lost = (per_user(x, owners)[0] for x in (win, tie, loss))
    return WinRate(
        wins=int(win.sum()),
        ties=int(tie.sum()),
        losses=int(loss.sum()),
        unjudged=int((~judged).sum()),
        sample=estimate(v, owners, seed),
        sample_error=_clustered_error(*per_user(v, owners)),
        user=over_both(v, owners, keys[judged]),
        user_error=average(v, owners).error,
        strict=average(win, owners),
        both_win=ratio(w + t, w + lost + 2.0 * t, seed),
        dominant=ratio((w >= lost).astype(np.float64), np.ones(len(w)), seed),
    )


def win_matrix(
    judge: Judge,
    cases: Sequence[Comparison],
    arms: Mapping[str, Sequence[str]],
    log: Sequence[Comparison] = (),
    max_history: int = 5,
) -> WinMatrix:
    """Judge the responses of every pair of arms once, and return all win rates.

    Args:
        cases: users and prompts; their chosen and rejected responses are used only if `arms` has them.
        arms: responses by name, one for each case.
        log: comparisons that the judge may see, at most `max_history` of the user for each duel.

    Raises `PrmError` for fewer than two arms, and if an arm has too few responses.
    """
    names = tuple(arms)
    if len(names) < 2:
        raise PrmError("a win rate needs two arms")
    pairs = list(combinations(names, 2))
    duels = [duel for a, b in pairs for duel in duels_between(cases, arms[a], arms[b])]
    judged = judge(with_history(duels, log, max_history) if log else duels)
    users, prompts = [case.user_id for case in cases], [prompt_key(case.prompt) for case in cases]
    rates = {}
    for (a, b), scores in zip(pairs, judged.scores.reshape(len(pairs), -1), strict=True):
        rates[a, b], rates[b, a] = (win_rate(s, users, prompts) for s in (scores, 1.0 - scores))
    return WinMatrix(names, rates, tuple(judged.notes()))


def matrix_table(matrix: WinMatrix) -> tuple[list[str], list[list[str]]]:
    """(header, rows) for `report.table`: mean over users ± standard error in percent, a tie is half a win."""
    rows = [[a, *(_cell(matrix.rates.get((a, b))) for b in matrix.arms)] for a in matrix.arms]
    return ["wins % against", *matrix.arms], rows


def rate_table(rate: WinRate) -> tuple[list[str], list[list[str]]]:
    """(header, rows) for `report.table`: the rates of the first arm in percent, with 95% intervals."""
    strict = with_error(rate.strict.value, rate.strict.error)
    rows = [
        ["over duels, a tie is half a win", percent(rate.sample)],
        ["over users, a tie is half a win", percent(rate.user)],
        ["over users, a tie is no win (the paper's Table 1)", strict],
        ["over duels, a tie is a win of both (Table 2, per sample)", percent(rate.both_win)],
        ["users won at least as often as lost (Table 2, per user)", percent(rate.dominant)],
    ]
    return ["", "first wins %"], rows


def _cell(rate: WinRate | None) -> str:
    return "" if rate is None else with_error(rate.user.value, rate.user_error)


def _clustered_error(sums: Array, counts: Array) -> float:
    """Standard error of sum(sums) / sum(counts), clustered by user; NaN for one user."""
    n = len(sums)
    if n < 2:
        return float("nan")
    residuals = sums - counts * (sums.sum() / counts.sum())
    return float(np.sqrt(n / (n - 1) * (residuals**2).sum()) / counts.sum())
