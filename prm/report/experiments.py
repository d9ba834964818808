"""The report of `prm reproduce`: tables and pictures of our figures and the paper's."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from rich.text import Text

from prm.experiments.claims import JudgedClaim
from prm.experiments.experiment_parts import Experiment, GroupResult, Result
from prm.io.disk import make_folder
from prm.io.formatting import bar
from prm.io.tables import write_json, write_text
from prm.metrics import Estimate
from prm.report.drawing import INK, MUTED, PALE, PERSONAL, UNIFORM, drawn, save_picture
from prm.report.page import markdown, write_page
from prm.report.section import Section
from prm.report.terminal import show, table
from prm.report.text.evaluation import nats, percent, with_error

_OURS = ("", "Accuracy-top", "Accuracy-generic", "majority", "minority", "nats", "over tuned uniform", "shuffled")
_COST = ("N_u", "N_l", "steps", "minutes")
_PAPER = ("paper: top", "paper: generic", "paper: majority", "paper: minority")
_BASELINES = ("uniform, tuned", "longest answer", "length sign per user")  # the same for every row
_NOTE = (
    "Accuracy-top: comparisons by known users; Accuracy-generic: by unknown users; majority, minority: mean over the "
    "users of a group; over tuned uniform: gain in Accuracy-top, in points; shuffled: Accuracy-top with another user's "
    "parameters; N_u, N_l: trained parameters of the user model, and shared ones; nats: log loss"
)


def print_experiments(experiment: Experiment, results: Mapping[str, Result], judged: Sequence[JudgedClaim]) -> None:
    """Print our accuracies, the paper's, and the expected results; the files hold the rest."""
    header, rows = [*_OURS, *_COST, *_PAPER], reproduction_rows(experiment, results)

    def columns(names: Sequence[str]) -> list[list[str]]:
        return [[row[header.index(name)] for name in names] for row in rows]

    pooled, groups = ("", "Accuracy-top", "Accuracy-generic", "over tuned uniform"), ("", "majority", "minority")
    show(table(f"{experiment.title} (% or points)", pooled, columns(pooled)), _NOTE)
    if experiment.groups:
        show("", table("mean over users, by group (% ± standard error)", groups, columns(groups)))
    if experiment.has_published:
        names = ("", *(name.removeprefix("paper: ") for name in _PAPER))
        show("", table("the paper's figures (%)", names, columns(("", *_PAPER))))
    if judged:
        show("", Text("expected", style="bold"), *(f"{j.answer}: {j.words} ({j.figures})" for j in judged))


def write_experiments(
    experiment: Experiment, results: Mapping[str, Result], judged: Sequence[JudgedClaim], folder: Path, scale: str
) -> None:
    """Write `results.json`, `table.md`, `table.csv`, `figure.png` and the page `index.html`."""
    make_folder(folder)
    rows = reproduction_rows(experiment, results)
    header = [*_OURS, *_COST, *_PAPER]
    claims = [{"claim": j.words, "holds": j.holds, "figures": j.figures} for j in judged]
    stored = {"experiment": experiment.name, "scale": scale, "rows": {n: r.to_dict() for n, r in results.items()}}
    write_json(folder / "results.json", stored | {"claims": claims})
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([header, *rows])
    write_text(folder / "table.csv", buffer.getvalue())
    lines = [
        f"# {experiment.title}",
        "",
        f"Scale: {scale}. Accuracies in %, with 95% intervals or ± standard errors.",
        "",
        _NOTE,
        "",
    ]
    lines += markdown(header, rows)
    lines += ["", *(f"- {j.answer}: {j.words} ({j.figures})" for j in judged)]
    write_text(folder / "table.md", "\n".join(lines).rstrip() + "\n")
    figure = (
        curves_picture(experiment, results) if experiment.picture == "curves" else bars_picture(experiment, results)
    )
    picture = save_picture(figure, folder / "figure.png")
    missing = [row.label for row in experiment.rows if row.name not in results]
    page = {"title": experiment.title, "scale": scale, "note": _NOTE, "missing": missing, "picture_of_rows": picture}
    columns = [column for column in zip(header, *rows) if not set(column[1:]) <= {"-", ""}]
    table_header, *cells = zip(*columns)  # without columns that hold nothing
    results_table = Section(experiment.title, table_header, tuple(cells))
    answers = tuple((j.words, j.answer, j.figures) for j in judged)
    expected = Section("Expected results", ("expected", "holds", "figures"), answers)
    write_page(folder / "index.html", "prm.report", "experiments.html", results=results_table, claims=expected, **page)


def reproduction_rows(experiment: Experiment, results: Mapping[str, Result]) -> list[list[str]]:
    """The cells of every row that was run, then those of the baselines that every row must beat."""
    table_rows = []
    for row in experiment.rows:
        if (result := results.get(row.name)) is None:
            continue
        groups = list(result.groups.items())
        cells = [percent(result.top), percent(result.generic), _average(groups[:1]), _average(groups[1:])]
        cells += [nats(result.nll), percent(result.gain), percent(result.controls.get("users shuffled"))]
        cost = [f"{result.user_parameters:,}", f"{result.shared_parameters:,}", f"{result.steps or '-'}"]
        paper = row.paper
        table_rows.append(
            [
                row.label,
                *cells,
                *cost,
                f"{result.seconds / 60:.1f}",
                paper.top,
                paper.generic,
                paper.majority,
                paper.minority,
            ]
        )
    first = next(iter(results.values()), None)
    for name in _BASELINES if first is not None else ():
        if first is not None and name in first.controls:
            blank = len(_OURS) + len(_COST) + len(_PAPER) - 2
            table_rows.append([name, percent(first.controls[name]), *["-"] * blank])
    return table_rows


@drawn
def bars_picture(experiment: Experiment, results: Mapping[str, Result]) -> Figure:
    """Bars of the accuracies of each row, as in the paper's Figure 4, with the paper's figures as ticks."""
    rows = [row for row in experiment.rows if row.name in results]
    figure = Figure(figsize=(max(7.5, 1.0 * len(rows) + 1.5), 4.2), layout="constrained")
    axes = figure.subplots()
    names = ("top", "generic", "majority", "minority")
    colours = (PERSONAL, MUTED, PALE, UNIFORM)
    for i, (name, colour) in enumerate(zip(names, colours, strict=True)):
        for x, row in enumerate(rows):
            value, error = _bar(results[row.name], name)
            if value is None:
                continue
            position = x + (i - 1.5) * 0.2
            axes.bar(
                position,
                value,
                0.19,
                color=colour,
                yerr=error,
                capsize=2,
                error_kw={"lw": 0.8, "ecolor": INK},
                label=name if x == 0 else None,
            )
            printed = getattr(row.paper, name).lstrip("~").partition("±")[0]
            if printed != "-":
                axes.plot([position - 0.09, position + 0.09], [float(printed)] * 2, color=INK, lw=1.6)
    axes.plot([], [], color=INK, lw=1.6, label="the paper's")
    axes.axhline(50, color=MUTED, lw=0.8, ls=":")
    axes.set_xticks(range(len(rows)), [row.label.replace(", ", ",\n", 1) for row in rows], fontsize=8, rotation=0)
    axes.set_ylabel("accuracy, %")
    axes.set_ylim(0, 105)
    figure.legend(loc="outside upper center", ncols=5)
    return figure


@drawn
def curves_picture(experiment: Experiment, results: Mapping[str, Result]) -> Figure:
    """Accuracy on the validation part over the steps, for each user and for the generic user (Figure 5)."""
    figure = Figure(figsize=(10.0, 4.2), layout="constrained")
    for axes, (title, name) in zip(
        figure.subplots(1, 2, sharey=True),
        (("scored for the user", "accuracy"), ("scored for the generic user", "generic_accuracy")),
    ):
        for row in experiment.rows:
            evaluations = results[row.name].looks if row.name in results else ()
            if evaluations:
                axes.plot(
                    [e.step for e in evaluations],
                    [100 * getattr(e, name) for e in evaluations],
                    "o-",
                    ms=3,
                    lw=1.4,
                    label=row.label,
                )
        axes.axhline(50, color=MUTED, lw=0.8, ls=":")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("steps")
    figure.axes[0].set_ylabel("accuracy on the validation part, %")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    return figure


def _bar(result: Result, name: str) -> tuple[float | None, list[list[float]] | None]:
    """Height and error bar, in percent: 95% intervals of pooled accuracies, standard errors of a group's mean."""
    groups = list(result.groups.values())
    if name in ("top", "generic"):
        estimate: Estimate | None = getattr(result, name)
        if estimate is None or not math.isfinite(estimate.value):
            return None, None
        return 100 * estimate.value, bar(estimate, 100.0)
    chosen = groups[:1] if name == "majority" else groups[1:2]
    if not chosen or not math.isfinite(chosen[0].mean):
        return None, None
    error = 100 * chosen[0].error
    return 100 * chosen[0].mean, [[error], [error]] if math.isfinite(error) else None


def _average(groups: Sequence[tuple[str, GroupResult]]) -> str:
    return "; ".join(f"{name} {with_error(g.mean, g.error)}" for name, g in groups) or "-"
