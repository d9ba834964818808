"""The report of an audit: tables, pictures and a page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.text import Text

from prm.evaluation import evaluate
from prm.evaluation.audit import Audit
from prm.evaluation.audit.biases import LengthBiasOfUser
from prm.evaluation.audit.calibration import Reliability
from prm.evaluation.audit.per_user import UserResults
from prm.io.disk import make_folder
from prm.metrics import MIN_COMPARISONS
from prm.report.page import MUTED, PERSONAL, UNIFORM, save_picture, write_page
from prm.report.terminal import laid_out, show
from prm.report.text import audit as text
from prm.report.text.audit_users import ends


def print_audit(result: Audit, title: str) -> None:
    """Print the audit as tables, with the result in one sentence last."""
    show(Text(title, style="bold"), *laid_out(text.sections(result)))
    show("", Text(text.headline(result), style="bold"), result.verdict.says)


def write_audit(a: Audit, folder: Path, title: str) -> None:
    """Write the page `index.html` and its pictures; the folder is created if it does not exist."""
    make_folder(folder)
    pictures = {
        "people": save_picture(change_picture(a.people), folder / "people.png"),
        "lengths": "",
        "reliability": "",
    }
    if groups := [group for group in a.reliability if group.models]:
        pictures["reliability"] = save_picture(reliability_picture(groups), folder / "reliability.png")
    if a.lengths:
        pictures["lengths"] = save_picture(bias_picture(a.lengths), folder / "lengths.png")
    content = {"headline": text.headline(a), "verdict": a.verdict.says, "figures": text.figures(a), "source": title}
    write_page(
        folder / "index.html", "prm.report", "audit.html", **content, pictures=pictures, sections=text.sections(a)
    )


def change_picture(changes: UserResults) -> Figure:
    """Each user's decrease in log loss by personalisation, with 95% intervals; colours mark clear gains and losses."""
    everyone = changes.enough or changes.people
    people = ends(everyone, most=40)
    figure = Figure(figsize=(7.5, 0.22 * len(people) + 1.4), layout="constrained")
    axes = figure.subplots()
    values = [one.nats.value for one in people]
    largest = max(abs(value) for value in values) or 1.0
    for y, one in enumerate(people):
        colour = {"gains": PERSONAL, "loses": UNIFORM}.get(one.nats_verdict, MUTED)
        # cut infinite and very wide intervals
        low, high = (min(max(end, -3 * largest), 3 * largest) for end in (one.nats.low, one.nats.high))
        axes.plot([low, high], [y, y], color=colour, lw=1.5, zorder=1)
        axes.scatter(one.nats.value, y, color=colour, s=28, zorder=2)
    for name, colour in (("gains", PERSONAL), ("loses", UNIFORM), ("unclear", MUTED)):
        axes.scatter([], [], color=colour, s=28, label=name)
    if left := len(everyone) - len(people):
        middle = len(people) / 2 - 0.5
        axes.axhline(middle, color=MUTED, lw=0.8)
        axes.text(0.99, middle, f"{left} more users", transform=axes.get_yaxis_transform(), **_ON_LINE)
    axes.axvline(0, color=MUTED, lw=0.8, ls=":")
    axes.set_yticks(range(len(people)), [_label(one.user) for one in people])
    axes.tick_params(axis="y", labelsize=8)
    axes.set_ylim(len(people) - 0.4, -0.6)
    axes.set_xlabel("log loss lower than the uniform model's by, nats per comparison")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure


_ON_LINE: dict[str, Any] = {"ha": "right", "va": "center", "size": 8, "backgroundcolor": "white"}


def reliability_picture(groups: Sequence[Reliability]) -> Figure:
    """Predicted and observed P(picked response) with binomial 95% intervals: a column per group, a row per model."""
    models = {evaluate.PERSONAL: PERSONAL, evaluate.UNIFORM: UNIFORM}
    figure = Figure(figsize=(2.1 * len(groups) + 1.0, 5.0), layout="constrained")
    panels = figure.subplots(len(models), len(groups), sharex=True, sharey=True, squeeze=False)
    for row, (name, colour) in zip(panels, models.items(), strict=True):
        row[0].set_ylabel(name)
        for axes, group in zip(row, groups, strict=True):
            c = group.models[name]
            predicted, observed = [b.predicted for b in c.bins], [b.observed for b in c.bins]
            bars = [[b.observed - b.low for b in c.bins], [b.high - b.observed for b in c.bins]]
            axes.plot([0.5, 1], [0.5, 1], color=MUTED, lw=0.8, ls=":")
            axes.errorbar(predicted, observed, yerr=bars, fmt="o", color=colour, ms=4, lw=1.2)
            axes.set_title(f"error {c.error:.3f}, by chance {c.by_chance:.3f}", size=8)
            axes.spines[["top", "right"]].set_visible(False)
    for axes, group in zip(panels[0], groups, strict=True):
        size = f"{group.people} {'user' if group.people == 1 else 'users'}, {group.comparisons:,} comparisons"
        axes.set_title(f"trained on {group.train_comparisons}\n{size}\n{axes.get_title()}", size=8)
    panels[0, 0].set_xticks([0.5, 0.75, 1])
    figure.supxlabel("predicted P(picked response)", size=10)
    figure.supylabel("share in which it was chosen", size=10)
    return figure


def bias_picture(lengths: Sequence[LengthBiasOfUser]) -> Figure:
    """How often each user chose the longer response and how often the models pick it; dots grow with the log."""
    figure = Figure(figsize=(5.6, 5.0), layout="constrained")
    axes = figure.subplots()
    lengths = [one for one in lengths if one.pairs >= MIN_COMPARISONS] or lengths
    maximum = max(one.pairs for one in lengths)
    sizes = [10 + 60 * one.pairs / maximum for one in lengths]
    for name, colour in ((evaluate.UNIFORM, UNIFORM), (evaluate.PERSONAL, PERSONAL)):
        x, y = [100 * one.person for one in lengths], [100 * one.picks[name] for one in lengths]
        axes.scatter(x, y, s=sizes, color=colour, alpha=0.6, lw=0, label=name)
    axes.plot([0, 100], [0, 100], color=MUTED, lw=0.8, ls=":")
    axes.set(xlim=(-3, 103), ylim=(-3, 103), aspect="equal")
    axes.set_xlabel("longer response chosen by the user, % of pairs")
    axes.set_ylabel("longer response picked by the model, %")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def _label(user: str, maximum: int = 24) -> str:
    """An id as matplotlib can show it: shortened, with dollar signs escaped."""
    text = " ".join(user.split())
    return (text if len(text) <= maximum else text[: maximum - 1] + "\u2026").replace("$", r"\$")
