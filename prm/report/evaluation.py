"""The report of an evaluation: its tables, and a picture of each user's accuracy."""

from collections.abc import Mapping

from matplotlib.figure import Figure
from rich.text import Text

from prm.evaluation.evaluate import Evaluation
from prm.evaluation.pooled_runs import Pooled
from prm.report.drawing import INK, MUTED, PERSONAL, UNIFORM, WIDTH, drawn, shortened
from prm.report.terminal import laid_out, show, table
from prm.report.text import evaluation as text
from prm.report.text.evaluation import nats, percent


def print_evaluation(result: Evaluation, title: str) -> None:
    """Print the evaluation: the verdict, the tables, and the notes."""
    show(Text(title, style="bold"), result.verdict.says, *laid_out(text.sections(result)))
    show("", *text.notes(result))


def print_pooled(result: Pooled) -> None:
    """Print the gains over several runs."""
    parts = [
        (f"{low} and more" if high is None else str(low) if low == high else f"{low} to {high}", gains)
        for low, high, gains in result.by_train_comparisons
    ]
    parts.append(("all users", result.everybody))
    show(result.verdict.says)
    header = ["trained on", "users", "held out", "accuracy gain, points", "lower log loss (nats)"]
    for unit in ("comparison", "user"):
        rows = []
        for name, g in parts:
            gain = (g.gain, g.gain_nll) if unit == "comparison" else (g.gain_macro, g.gain_nll_macro)
            rows.append([name, str(g.people), str(g.comparisons), percent(gain[0]), nats(gain[1])])
        show(table(f"Gain over the tuned uniform model, mean over {unit}s", header, rows))
    accuracy, log_loss = (
        "not in the last row" if n is None else f"from {n} training comparisons on" for n in result.pays_from
    )
    show(f"clear gain in accuracy: {accuracy}; in log loss: {log_loss}")
    show(
        f"trained on: number of the user's training comparisons; {result.runs} runs; 95% intervals by bootstrap over "
        "users"
    )


@drawn
def accuracy_picture(
    per_user: Mapping[str, Mapping[str, float | None]], ceiling: Mapping[str, float] | None = None
) -> Figure:
    """Accuracy of the personal and the uniform model for each user, as dots on one line, the ceiling as a tick."""
    users = list(per_user)
    figure = Figure(figsize=(WIDTH + 0.4, 0.3 * len(users) + 1.1), layout="constrained")
    axes = figure.subplots()
    for y, user in enumerate(users):
        found = {name: per_user[user].get(name) for name in ("personal", "uniform, tuned")}
        models = {name: 100 * accuracy for name, accuracy in found.items() if accuracy is not None}
        personal, uniform = models["personal"], models.get("uniform, tuned")
        if uniform is not None:
            axes.plot([uniform, personal], [y, y], color=MUTED, lw=1.5, zorder=1)
            axes.scatter(uniform, y, color=UNIFORM, s=36, zorder=2, label="uniform, tuned" if y == 0 else None)
        axes.scatter(personal, y, color=PERSONAL, s=36, zorder=3, label="personal" if y == 0 else None)
        if ceiling is not None:
            label = "noise ceiling" if y == 0 else None
            axes.scatter(100 * ceiling[user], y, marker="|", color=INK, s=120, zorder=2, label=label)
    axes.axvline(50, color=MUTED, lw=0.8, ls=":")
    axes.set_yticks(range(len(users)), list(map(shortened, users)))
    axes.invert_yaxis()
    axes.set_xlabel("accuracy on held-out prompts, %")
    figure.legend(loc="outside upper center", ncols=3, handletextpad=0.2)
    return figure
