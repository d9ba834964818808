"""An evaluation: its tables, and who gains."""

from typing import Any

from matplotlib.figure import Figure
from rich.text import Text

from prm.evaluation.evaluate import Evaluation
from prm.evaluation.pooled_runs import Pooled
from prm.report.page import MUTED, PERSONAL, UNIFORM
from prm.report.terminal import laid_out, show, table
from prm.report.text import evaluation as text
from prm.report.text.evaluation import nats, percent


def print_evaluation(result: Evaluation, title: str) -> None:
    """The evaluation on the terminal: what it comes to, and its tables."""
    show(Text(title, style="bold"), result.verdict.says, *laid_out(text.sections(result)))
    show("", *text.notes(result))


def print_pooled(result: Pooled) -> None:
    """Gains of several runs taken together."""
    parts = [
        (f"{low} and more" if most is None else str(low) if low == most else f"{low} to {most}", gains)
        for low, most, gains in result.by_judgements
    ]
    parts.append(("everybody", result.everybody))
    show(result.verdict.says)
    header = ["learnt from", "people", "held out", "points", "nats saved"]
    for weighed in ("comparison", "person"):
        rows = []
        for name, g in parts:
            both = (g.gain, g.gain_nll) if weighed == "comparison" else (g.gain_macro, g.gain_nll_macro)
            rows.append([name, str(g.people), str(g.comparisons), percent(both[0]), nats(both[1])])
        show(table(f"Gain over the tuned uniform model, every {weighed} alike", header, rows))
    picks, likelihood = ("not surely" if n is None else f"from {n} judgements on" for n in result.pays_from)
    show(f"it pays in accuracy {picks}, in likelihood {likelihood}")
    show(
        f"by how many judgements of a person were learnt from; {result.runs} runs; 95% intervals, bootstrap over people"
    )


def accuracy_picture(per_user: dict[str, dict[str, Any]], ceiling: dict[str, float] | None = None) -> Figure:
    """Accuracy per person: personal and uniform model as dots on one line each, the ceiling as a tick."""
    users = list(per_user)
    figure = Figure(figsize=(7.5, 0.36 * len(users) + 1.3), layout="constrained")
    axes = figure.subplots()
    for y, user in enumerate(users):
        entry = per_user[user]
        personal, uniform = entry["personal"], entry.get("uniform, tuned")
        if uniform is not None:
            axes.plot([uniform, personal], [y, y], color=MUTED, lw=1.5, zorder=1)
            axes.scatter(uniform, y, color=UNIFORM, s=36, zorder=2, label="uniform, tuned" if y == 0 else None)
        axes.scatter(personal, y, color=PERSONAL, s=36, zorder=3, label="personal" if y == 0 else None)
        if ceiling is not None:
            label = "noise ceiling" if y == 0 else None
            axes.scatter(ceiling[user], y, marker="|", color="black", s=120, zorder=2, label=label)
    axes.axvline(0.5, color=MUTED, lw=0.8, ls=":")
    axes.set_yticks(range(len(users)), users)
    axes.invert_yaxis()
    axes.set_xlabel("accuracy on held-out prompts")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=3, frameon=False)
    return figure
