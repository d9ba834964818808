"""When a kernel is taken instead of a linear head: one rule for settings, for user models and for baselines."""

from collections.abc import Callable, Sequence


def lowest(losses: Sequence[float], is_kernel: Sequence[bool], by_fold: Callable[[int], Sequence[float]]) -> int:
    """The position of the lowest loss; that of a kernel only if it beats the best other one in every fold.

    A lower total alone is no evidence: the losses of one fold are no independent draws where few texts were compared
    often, and on new texts a kernel can lose much.

    Args:
        losses: log loss of each candidate by cross-validation; at least one.
        is_kernel: whether the candidate has a kernel.
        by_fold: the losses of the candidate at a position, one for each fold; asked for two positions at most.
    """

    def best(kernel: bool) -> int | None:
        return min((i for i, k in enumerate(is_kernel) if k == kernel), key=losses.__getitem__, default=None)

    other, kernel = best(False), best(True)
    if other is None or kernel is None:
        return next(i for i in (other, kernel) if i is not None)
    wins = all(a < b for a, b in zip(by_fold(kernel), by_fold(other), strict=True))
    return kernel if wins else other
