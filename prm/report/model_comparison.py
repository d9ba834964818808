"""The report of a comparison of user models: tables, a picture of the gains, a page, and the YAML of the best model."""

from pathlib import Path

from matplotlib.figure import Figure
from rich.text import Text

from prm.evaluation.compare.summary import BEST_BASELINE, Comparisons
from prm.evaluation.compare.verdict import CompareVerdict
from prm.io.disk import make_folder
from prm.io.formatting import bar
from prm.io.tables import write_json
from prm.report.page import MUTED, PERSONAL, UNIFORM, save_picture, write_page
from prm.report.terminal import laid_out, show
from prm.report.text.model_comparison import name_of, sections


def print_model_comparison(result: Comparisons, verdict: CompareVerdict, title: str) -> None:
    """Print the tables, with the verdict last."""
    show(Text(title, style="bold"), *laid_out(sections(result)))
    show("", *verdict.says)


def write_model_comparison(result: Comparisons, verdict: CompareVerdict, recipe: str, folder: Path, title: str) -> None:
    """Write `compare.json` and the page `index.html` with its picture; create the folder if need be."""
    make_folder(folder)
    write_json(
        folder / "compare.json", {"data": title, "verdict": verdict.says, "train": verdict.train} | result.to_dict()
    )
    picture = save_picture(gains_picture(result), folder / "compare.png")
    content = {"title": title, "says": verdict.says, "recipe": recipe, "sections": sections(result)}
    write_page(folder / "index.html", "prm.report", "model_comparison.html", picture=picture, **content)


def gains_picture(result: Comparisons) -> Figure:
    """Each model's gain over the best baseline in accuracy and in log loss, with its interval."""
    rows = [row for row in result.rows if row.gains is not None]
    figure = Figure(figsize=(9.0, 0.36 * len(rows) + 1.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, unit, scale in zip(panels, ("points", "nats"), (100.0, 1.0), strict=True):
        for y, row in enumerate(rows):
            gain = getattr(row.gains, unit)
            colour = PERSONAL if row.personal else UNIFORM
            axes.errorbar(scale * gain.value, y, xerr=bar(gain, scale), fmt="o", color=colour, ms=5, lw=1.4)
        axes.axvline(0.0, color=MUTED, lw=0.8, ls=":")
        axes.set_yticks(range(len(rows)), [name_of(row.name) for row in rows])
        axes.set_xlabel({"points": "accuracy gain, points", "nats": "log loss lower by, nats"}[unit])
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()
    figure.suptitle(f"over the {BEST_BASELINE}", fontsize=11)
    return figure
