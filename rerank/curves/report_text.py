"""Curves in words: titled tables with notes, and what is drawn of them."""

import math

from prm.metrics import Estimate
from prm.report import Panel
from prm.report.text.evaluation import percent
from prm.report.text.profile import Section
from rerank.curves.best_of import GENERIC, ORACLE, PERSONAL, BestOf

_FEW_PROMPTS = 20
_WAYS = (PERSONAL, GENERIC, ORACLE)


def sections(result: BestOf) -> list[Section]:
    """Gain and win rate for some k, then for each person at n."""
    rows = sorted({*(2**i for i in range(result.n.bit_length())), result.peak, result.n})
    gains = tuple(
        (
            f"{k}",
            f"{result.kl_bound[k - 1]:.2f}",
            f"{result.distinct[k - 1]:.1f}",
            *(logits(result.pooled[way].gain[k - 1]) for way in _WAYS),
            logits(result.believed[k - 1]),
        )
        for k in rows
    )
    wins = tuple(
        (
            f"{k}",
            *(percent(result.pooled[way].wins[k - 1]) for way in _WAYS),
            f"{100 * result.win_bound[k - 1]:.1f}",
        )
        for k in rows
    )
    header: tuple[str, ...] = ("best of", "KL bound", "distinct", *_WAYS, "believed")
    found = [
        Section("gain over a random answer, in the judge's logits", header, gains, tuple(notes(result))),
        Section("wins against a fresh answer, % (ties half)", ("best of", *_WAYS, "k / (k + 1)"), wins),
    ]
    if len(result.by_person) > 1:
        people = tuple(
            (user, *(logits(curves[way].gain[-1]) for way in _WAYS), percent(curves[PERSONAL].wins[-1]))
            for user, curves in result.by_person.items()
        )
        header = ("person", *_WAYS, "personal wins %")
        found.append(Section(f"person by person, best of {result.n}", header, people))
    return found


def notes(result: BestOf) -> list[str]:
    """What a reader of the curves should know."""
    people, prompts = len(result.by_person), result.prompts
    drawn = "people and prompts" if people > 1 else "prompts"
    lines = [
        f"{people} {'person' if people == 1 else 'people'}, {prompts} prompts; mean over all subsets of k of "
        f"{result.n + 1} answers; 95% intervals by bootstrap over {drawn}",
        "personal and generic user: the reward model's pick for the person, and for nobody in particular; oracle: the "
        "judge's own, the most there is; believed: the personal pick in the reward model's own eyes and logits",
        "KL bound, nats: how far best of k may be from the generator",
    ]
    gain, top = result.pooled[PERSONAL].gain, result.pooled[PERSONAL].gain[result.peak - 1]
    if result.peak < result.n:
        most = f"the judge gives most at best of {result.peak} ({logits(top)}), and {logits(gain[-1])} at {result.n}"
        if gain[-1].high < top.low:
            lines.append(f"warning: {most}: beyond it answers are chosen for the reward model's mistakes")
        else:
            lines.append(f"{most}: that more answers are worse is not shown, nor that they are better")
    if prompts < _FEW_PROMPTS:
        lines.append("warning: too few prompts for these numbers to mean much")
    return lines


def logits(e: Estimate) -> str:
    """A gain with its interval."""
    value, low, high = (round(x, 2) + 0.0 for x in (e.value, e.low, e.high))  # never -0.00
    return f"{value:+.2f}" + (f" [{low:+.2f}, {high:+.2f}]" if math.isfinite(e.low) else "")


def panels(result: BestOf) -> list[Panel]:
    """What is drawn of the curves."""
    ways = result.pooled
    gains = {name: curve.gain for name, curve in ways.items()} | {"believed (own logits)": result.believed}
    wins = {name: [_in_percent(e) for e in curve.wins] for name, curve in ways.items()}
    bounds = {"k / (k + 1)": [100 * p for p in result.win_bound]}
    return [
        Panel("What the judge gives the pick", "logits over a random answer", gains, {}),
        Panel("Against a fresh answer", "wins, % (ties half)", wins, bounds),
    ]


def _in_percent(e: Estimate) -> Estimate:
    return Estimate(100 * e.value, 100 * e.low, 100 * e.high)
