"""Report of the curves: titled tables with notes, and the panels to plot."""

import math

from prm.errors import counted
from prm.metrics import Estimate
from prm.report import Panel
from prm.report.section import Section
from prm.report.text.evaluation import percent
from rerank.curves.best_of import GENERIC, ORACLE, PERSONAL, PICKS, RANDOM, UNIFORM, BestOf

_FEW_PROMPTS = 20
_PROXIES = (PERSONAL, GENERIC, ORACLE)


def sections(result: BestOf, warning: str = "") -> list[Section]:
    """The share of headroom captured at n, gain and win rate for some k, then per user; `warning` is the first note."""
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
        _share(result, warning),
        Section("gain over a random response, in the judge's logits", header, gains, tuple(notes(result))),
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


def _share(result: BestOf, warning: str) -> Section:
    picks = {name: result.pooled[name] for name in PICKS if name in result.pooled}
    rows = tuple((name, percent(c.share[-1]), logits(c.gain[-1]), percent(c.wins[-1])) for name, c in picks.items())
    header = ("picked by", "share, %", "gain, logits", "wins, %")
    if picks[ORACLE].share[-1] is None:
        why = "the judge rewards the responses of each pool alike" if result.n > 1 else "of one response"
        lines = [f"no share: {why}, so there is nothing to gain by picking"]
    else:
        lines = [
            f"headroom: the judge's reward of its own pick of {result.n} responses (the oracle) minus that of a random "
            f"one, {logits(picks[ORACLE].gain[-1])}; share: of the mean headroom, the mean part that a pick captures",
        ]
    if UNIFORM not in picks:
        lines.append("no uniform: there is no tuned uniform model in the run's folder 'uniform'")
    title = f"share of the oracle headroom captured, best of {result.n}"
    return Section(title, header, rows, tuple(filter(None, [warning, *lines])))


def notes(result: BestOf) -> list[str]:
    """Notes and warnings to print below the curves."""
    users, prompts = len(result.per_user), result.prompts
    units = "users and prompts" if users > 1 else "prompts"
    lines = [
        f"{counted(users, 'user')}, {counted(prompts, 'prompt')}; mean over all subsets of k of "
        f"{result.n + 1} responses; 95% confidence intervals by bootstrap over {units}",
        "personal, generic user: the reward model's pick for the user and for the generic user; uniform: that of the "
        "tuned uniform model; longest: most words; oracle: the judge's own pick, the maximum; believed: gain of the "
        "personal pick under the reward model itself, in its logits",
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
    picks = {name: curves[name] for name in PICKS if name in curves and name not in (RANDOM, ORACLE)}
    shares = {name: [None if e is None else _in_percent(e) for e in curve.share] for name, curve in picks.items()}
    gains = {name: curves[name].gain for name in _PROXIES} | {"believed (own logits)": result.believed}
    wins = {name: [_in_percent(e) for e in curves[name].wins] for name in _PROXIES}
    bounds = {"k / (k + 1)": [100 * p for p in result.win_bound]}
    captured = Panel("Share of the oracle headroom", "captured, %", shares, {"oracle": [100.0] * result.n})
    return [
        *([captured] if any(e for line in shares.values() for e in line) else []),
        Panel("Gain of the pick under the judge", "logits over a random response", gains, {}),
        Panel("Against a fresh response", "wins, % (ties half)", wins, bounds),
    ]


def _in_percent(e: Estimate) -> Estimate:
    return Estimate(100 * e.value, 100 * e.low, 100 * e.high)
