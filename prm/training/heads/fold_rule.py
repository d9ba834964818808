"""Which of several candidates is taken: one rule for settings, kernels, user models and baselines."""

from collections.abc import Callable, Sequence


def lowest(losses: Sequence[float], must_win: Sequence[bool], by_fold: Callable[[int], Sequence[float]]) -> int:
    """The position of the lowest loss; one of those that must win only if it beats the best other in every fold.

    A lower total alone is no evidence: the losses of one fold are no independent draws where few texts were compared
    often, and on new texts a kernel can lose much.

    Args:
        losses: log loss of each candidate by cross-validation; at least one.
        must_win: whether the candidate must win in every fold, such as one with a kernel.
        by_fold: the losses of the candidate at a position, one for each fold; asked for two positions at most.
    """

    def best(must: bool) -> int | None:
        return min((i for i, m in enumerate(must_win) if m == must), key=losses.__getitem__, default=None)

    other, risky = best(False), best(True)
    if other is None or risky is None:
        return next(i for i in (other, risky) if i is not None)
    wins = all(a < b for a, b in zip(by_fold(risky), by_fold(other), strict=True))
    return risky if wins else other
