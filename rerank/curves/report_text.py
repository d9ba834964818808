"""Report of the curves: titled tables with notes, and the panels to plot."""

import math

from prm.errors import counted
from prm.metrics import Estimate
from prm.report import Panel
from prm.report.section import Section
from prm.report.text.evaluation import percent
from rerank.curves.best_of import GENERIC, ORACLE, PERSONAL, BestOf

_FEW_PROMPTS = 20
_PROXIES = (PERSONAL, GENERIC, ORACLE)


def sections(result: BestOf, warning: str = "") -> list[Section]:
    """Tables of gain and win rate for some k, then per user at n; `warning`, of all of them, is the first note."""
    rows = sorted({*(2**i for i in range(result.n.bit_length())), result.peak, result.n})
    gains = tuple(
        (
            f"{k}",
            f"{result.kl_bound[k - 1]:.2f}",
            f"{result.distinct[k - 1]:.1f}",
            *(logits(result.pooled[proxy].gain[k - 1]) for proxy in _PROXIES),
            logits(result.believed[k - 1]),
        )
        for k in rows
    )
    wins = tuple(
        (
            f"{k}",
            *(percent(result.pooled[proxy].wins[k - 1]) for proxy in _PROXIES),
            f"{100 * result.win_bound[k - 1]:.1f}",
        )
        for k in rows
    )
    header: tuple[str, ...] = ("best of", "KL bound", "distinct", *_PROXIES, "believed")
    tables = [
        Section(
            "gain over a random response, in the judge's logits",
            header,
            gains,
            tuple(filter(None, [warning, *notes(result)])),
        ),
        Section("wins against a fresh response, % (ties half)", ("best of", *_PROXIES, "k / (k + 1)"), wins),
    ]
    if len(result.per_user) > 1:
        users = tuple(
            (user, *(logits(curves[proxy].gain[-1]) for proxy in _PROXIES), percent(curves[PERSONAL].wins[-1]))
            for user, curves in result.per_user.items()
        )
        header = ("user", *_PROXIES, "personal wins %")
        tables.append(Section(f"per user, best of {result.n}", header, users))
    return tables


def notes(result: BestOf) -> list[str]:
    """Notes and warnings to print below the curves."""
    users, prompts = len(result.per_user), result.prompts
    units = "users and prompts" if users > 1 else "prompts"
    lines = [
        f"{counted(users, 'user')}, {counted(prompts, 'prompt')}; mean over all subsets of k of "
        f"{result.n + 1} responses; 95% confidence intervals by bootstrap over {units}",
        "personal, generic user: the reward model's pick for the user and for the generic user; oracle: the judge's "
        "own pick, the maximum; believed: gain of the personal pick under the reward model itself, in its logits",
        "KL bound, nats: upper bound of the KL divergence of best of k from the generator",
    ]
    gain, top = result.pooled[PERSONAL].gain, result.pooled[PERSONAL].gain[result.peak - 1]
    if result.peak < result.n:
        peak = f"the gain is highest at best of {result.peak} ({logits(top)}); it is {logits(gain[-1])} at {result.n}"
        if gain[-1].high < top.low:
            lines.append(f"warning: {peak}: a larger N exploits the reward model's errors (over-optimisation)")
        else:
            lines.append(f"{peak}: the intervals overlap, so no effect of a larger N is shown")
    if prompts < _FEW_PROMPTS:
        lines.append("warning: too few prompts for reliable figures")
    return lines


def logits(e: Estimate) -> str:
    """Format a gain with its confidence interval."""
    value, low, high = (round(x, 2) + 0.0 for x in (e.value, e.low, e.high))  # never -0.00
    return f"{value:+.2f}" + (f" [{low:+.2f}, {high:+.2f}]" if math.isfinite(e.low) else "")


def panels(result: BestOf) -> list[Panel]:
    """The panels to plot."""
    curves = result.pooled
    gains = {name: curve.gain for name, curve in curves.items()} | {"believed (own logits)": result.believed}
    wins = {name: [_in_percent(e) for e in curve.wins] for name, curve in curves.items()}
    bounds = {"k / (k + 1)": [100 * p for p in result.win_bound]}
    return [
        Panel("Gain of the pick under the judge", "logits over a random response", gains, {}),
        Panel("Against a fresh response", "wins, % (ties half)", wins, bounds),
    ]


def _in_percent(e: Estimate) -> Estimate:
    return Estimate(100 * e.value, 100 * e.low, 100 * e.high)
