"""Best-of-k as judged by a gold reward model: curves over k with intervals, pooled and person by person."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from prm.io.tables import plain
from prm.metrics import Array, Estimate, crossed
from rerank.curves.estimators import distinct, kl_bound, picks, win_bound, win_rates
from rerank.ranking.candidates import Pool

PERSONAL, GENERIC, ORACLE = "personal", "generic user", "oracle"


@dataclass(frozen=True)
class Curve:
    """A way to pick one of k, for k = 1 to n.

    Args:
        gain: what the judge gives the pick beyond a random answer, in the judge's logits.
        wins: how often it beats a fresh answer by the judge; a tie is half a win.
    """

    gain: tuple[Estimate, ...]
    wins: tuple[Estimate, ...]


@dataclass(frozen=True)
class BestOf:
    """Curves for k = 1 to n, from pools of n + 1 answers: the last of them is somebody's opponent.

    Args:
        pooled: over all people and prompts, by the way to pick: the personal rewards, those of the unknown user, and
            the judge itself, which no way to pick can beat.
        believed: gain of the personal pick in its own eyes, in its own logits.
        by_person: the same ways, person by person; intervals over prompts.
        distinct: expected number of distinct texts among k.
        kl_bound, win_bound: log k - (k - 1) / k in nats, and k / (k + 1).
    """

    n: int
    prompts: int
    pooled: dict[str, Curve]
    believed: tuple[Estimate, ...]
    by_person: dict[str, dict[str, Curve]]
    distinct: tuple[float, ...]
    kl_bound: tuple[float, ...]
    win_bound: tuple[float, ...]

    @property
    def peak(self) -> int:
        """The k at which the judge gives most to the personal pick: below n, more answers were too many."""
        return 1 + int(np.argmax([e.value for e in self.pooled[PERSONAL].gain]))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return plain(asdict(self)) | {"peak": self.peak}


def best_of(pools: Sequence[Sequence[Pool]]) -> BestOf:
    """The curves of pools [prompts][people] of equal size, at least 2, in the same order of people everywhere."""
    n, users = len(pools[0][0].texts) - 1, [pool.user for pool in pools[0]]
    found = [[_pool_curves(pool, n) for pool in row] for row in pools]
    # [ways, gain or wins, k, people, prompts]
    values = {name: np.array([[c[name] for c in row] for row in found]).transpose(2, 3, 1, 0) for name in found[0][0]}
    ways = (PERSONAL, GENERIC, ORACLE)
    k = np.arange(1, n + 1)
    return BestOf(
        n=n,
        prompts=len(pools),
        pooled={name: _curve(values[name]) for name in ways},
        believed=tuple(crossed(values["believed"][0])),
        by_person={user: {name: _curve(values[name][:, :, [i]]) for name in ways} for i, user in enumerate(users)},
        distinct=tuple(np.mean([distinct(pool.texts)[:n] for row in pools for pool in row], axis=0).tolist()),
        kl_bound=tuple(kl_bound(k).tolist()),
        win_bound=tuple(win_bound(k).tolist()),
    )


def _pool_curves(pool: Pool, n: int) -> dict[str, list[Array]]:
    """[gain, wins] [n] of one pool, by way; of what is believed the gain alone."""
    proxies = {PERSONAL: pool.personal, GENERIC: pool.generic, ORACLE: pool.gold}
    curves = {
        name: [_gain(picks(proxy), pool.gold)[:n], win_rates(proxy, pool.gold)] for name, proxy in proxies.items()
    }
    return curves | {"believed": [_gain(picks(pool.personal), pool.personal)[:n]]}


def _gain(chosen: Array, values: Array) -> Array:
    return np.asarray(chosen @ values - values.mean())


def _curve(values: Array) -> Curve:
    return Curve(*(tuple(crossed(part)) for part in values))
