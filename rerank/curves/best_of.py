"""Best-of-k under a gold reward model: curves over k with confidence intervals, pooled and per user."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike

from prm.data.baselines import count_words
from prm.io.rows import Json
from prm.io.tables import plain
from prm.metrics import Array, Estimate, crossed, crossed_share
from rerank.curves.estimators import distinct, kl_bound, picks, win_bound, win_rates
from rerank.ranking.candidates import Pool

PERSONAL, GENERIC, UNIFORM, LONGEST = "personal", "generic user", "uniform", "longest"
RANDOM, ORACLE = "random", "oracle"
PICKS = (PERSONAL, GENERIC, UNIFORM, LONGEST, RANDOM, ORACLE)


@dataclass(frozen=True)
class Curve:
    """Gain and win rate of one proxy's picks, for k = 1 to n.

    Args:
        gain: the judge's reward of the pick minus that of a random response, in the judge's logits.
        wins: win rate of the pick against a fresh response, by the judge; a tie is half a win.
        share: share of the headroom that the pick captures: its gain over that of the judge's own pick. `None` where
            there is no headroom, as for k = 1 and where the judge rewards all responses alike.
    """

    gain: tuple[Estimate, ...]
    wins: tuple[Estimate, ...]
    share: tuple[Estimate | None, ...]


@dataclass(frozen=True)
class BestOf:
    """Curves for k = 1 to n, from pools of n + 1 responses: one is always left over as the opponent.

    Args:
        pooled: curves over all users and prompts, by proxy: the user's rewards, the generic user's rewards, those of
            the tuned uniform model (if there is one), the number of words, none (random), and the judge's own (the
            oracle, an upper bound).
        believed: gain of the personal pick under the reward model itself, in its logits.
        per_user: curves of the user's and the generic user's rewards and of the oracle, per user; intervals over
            prompts.
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
        at_n = {name: curve.share[-1] for name, curve in self.pooled.items()}
        share = {name: None if e is None else plain(asdict(e)) for name, e in at_n.items()}
        return {"headroom_share": share, **plain(asdict(self)), "peak": self.peak}


def best_of(pools: Sequence[Sequence[Pool]]) -> BestOf:
    """Compute the curves of pools [prompts][users] of equal size, at least 2, with the users in the same order."""
    n, users = len(pools[0][0].texts) - 1, [pool.user for pool in pools[0]]
    curves = [[_pool_curves(pool, n) for pool in row] for row in pools]
    # by proxy: [gain or wins, k, users, prompts]
    values = {name: np.array([[c[name] for c in row] for row in curves]).transpose(2, 3, 1, 0) for name in curves[0][0]}
    k = np.arange(1, n + 1)

    def curve_of(name: str, some: slice) -> Curve:
        (gain, wins), top = values[name][:, :, some], values[ORACLE][0][:, some]
        share = None, *crossed_share(gain, top)[1:]  # of one response there is nothing to pick
        return Curve(tuple(crossed(gain)), tuple(crossed(wins)), share)

    return BestOf(
        n=n,
        prompts=len(pools),
        pooled={name: curve_of(name, slice(None)) for name in values if name != "believed"},
        believed=tuple(crossed(values["believed"][0])),
        per_user={
            user: {name: curve_of(name, slice(i, i + 1)) for name in (PERSONAL, GENERIC, ORACLE)}
            for i, user in enumerate(users)
        },
        distinct=tuple(np.mean([distinct(pool.texts)[:n] for row in pools for pool in row], axis=0).tolist()),
        kl_bound=tuple(kl_bound(k).tolist()),
        win_bound=tuple(win_bound(k).tolist()),
    )


def _pool_curves(pool: Pool, n: int) -> dict[str, list[Array]]:
    """[gain, wins], each [n], of one pool by proxy; for `believed` the gain alone."""
    proxies = proxies_of(pool) | {ORACLE: pool.gold}
    curves = {name: [gains(proxy, pool.gold)[:n], win_rates(proxy, pool.gold)] for name, proxy in proxies.items()}
    return curves | {"believed": [gains(pool.personal, pool.personal)[:n]]}


def proxies_of(pool: Pool) -> dict[str, Array]:
    """What picks from a pool, but for the judge: by name, a value of each response, [n]."""
    words = np.array([count_words(text) for text in pool.texts], np.float64)
    proxies = {PERSONAL: pool.personal, GENERIC: pool.generic, UNIFORM: pool.uniform, LONGEST: words}
    return {name: proxy for name, proxy in proxies.items() if proxy is not None} | {RANDOM: np.zeros(len(words))}


def gains(proxy: ArrayLike, gold: Array) -> Array:
    """The judge's reward of the proxy's best of k minus that of a random response, [n], in expectation.

    Exactly 0 if the judge rewards all alike; infinite if one of its rewards is.
    """
    if np.isinf(gold).any():
        return np.full(len(gold), np.inf)
    above = gold - gold.min()
    return np.asarray(picks(proxy) @ above - above.mean())
