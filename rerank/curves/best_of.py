"""Best-of-k under a gold reward model: curves over k with confidence intervals, pooled and per user."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from prm.io.rows import Json
from prm.io.tables import plain
from prm.metrics import Array, Estimate, crossed
from rerank.curves.estimators import distinct, kl_bound, picks, win_bound, win_rates
from rerank.ranking.candidates import Pool

PERSONAL, GENERIC, ORACLE = "personal", "generic user", "oracle"


@dataclass(frozen=True)
class Curve:
    """Gain and win rate of one proxy's picks, for k = 1 to n.

    Args:
        gain: the judge's reward of the pick minus that of a random response, in the judge's logits.
        wins: win rate of the pick against a fresh response, by the judge; a tie is half a win.
    """

    gain: tuple[Estimate, ...]
    wins: tuple[Estimate, ...]


@dataclass(frozen=True)
class BestOf:
    """Curves for k = 1 to n, from pools of n + 1 responses: one is always left over as the opponent.

    Args:
        pooled: curves over all users and prompts, by proxy: the user's rewards, the generic user's rewards, and the
            judge's own (the oracle, an upper bound).
        believed: gain of the personal pick under the reward model itself, in its logits.
        per_user: the same curves per user; intervals over prompts.
        distinct: expected number of distinct texts among k.
        kl_bound, win_bound: log k - (k - 1) / k in nats, and k / (k + 1).
    """

    n: int
    prompts: int
    pooled: dict[str, Curve]
    believed: tuple[Estimate, ...]
    per_user: dict[str, dict[str, Curve]]
    distinct: tuple[float, ...]
    kl_bound: tuple[float, ...]
    win_bound: tuple[float, ...]

    @property
    def peak(self) -> int:
        """The k with the highest gain of the personal pick; below n, more responses did not help."""
        return 1 + int(np.argmax([e.value for e in self.pooled[PERSONAL].gain]))

    def to_dict(self) -> dict[str, Json]:
        """Return a JSON-ready dict."""
        return plain(asdict(self)) | {"peak": self.peak}


def best_of(pools: Sequence[Sequence[Pool]]) -> BestOf:
    """Compute the curves of pools [prompts][users] of equal size, at least 2, with the users in the same order."""
    n, users = len(pools[0][0].texts) - 1, [pool.user for pool in pools[0]]
    curves = [[_pool_curves(pool, n) for pool in row] for row in pools]
    # by proxy: [gain or wins, k, users, prompts]
    values = {name: np.array([[c[name] for c in row] for row in curves]).transpose(2, 3, 1, 0) for name in curves[0][0]}
    proxies = (PERSONAL, GENERIC, ORACLE)
    k = np.arange(1, n + 1)
    return BestOf(
        n=n,
        prompts=len(pools),
        pooled={name: _curve(values[name]) for name in proxies},
        believed=tuple(crossed(values["believed"][0])),
        per_user={user: {name: _curve(values[name][:, :, [i]]) for name in proxies} for i, user in enumerate(users)},
        distinct=tuple(np.mean([distinct(pool.texts)[:n] for row in pools for pool in row], axis=0).tolist()),
        kl_bound=tuple(kl_bound(k).tolist()),
        win_bound=tuple(win_bound(k).tolist()),
    )


def _pool_curves(pool: Pool, n: int) -> dict[str, list[Array]]:
    """[gain, wins], each [n], of one pool by proxy; for `believed` the gain alone."""
    proxies = {PERSONAL: pool.personal, GENERIC: pool.generic, ORACLE: pool.gold}
    curves = {
        name: [_gain(picks(proxy), pool.gold)[:n], win_rates(proxy, pool.gold)] for name, proxy in proxies.items()
    }
    return curves | {"believed": [_gain(picks(pool.personal), pool.personal)[:n]]}


def _gain(chosen: Array, values: Array) -> Array:
    return np.asarray(chosen @ values - values.mean())


def _curve(values: Array) -> Curve:
    return Curve(*(tuple(crossed(part)) for part in values))
