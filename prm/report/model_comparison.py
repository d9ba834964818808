"""The report of a comparison of user models: tables, pictures of the gains, a page, and the settings that train one."""

from pathlib import Path

from matplotlib.figure import Figure
from rich.text import Text

from prm.evaluation.compare.summary import BEST_BASELINE, BEST_PERSONAL, Comparisons
from prm.evaluation.compare.verdict import CompareVerdict
from prm.io.disk import make_folder
from prm.io.tables import write_json
from prm.report.drawing import MUTED, PERSONAL, THIRD, WIDTH, drawn, svg
from prm.report.evaluation_page import Part, Shown
from prm.report.page import write_page
from prm.report.pictures import interval_picture
from prm.report.terminal import laid_out, show
from prm.report.text import model_comparison as text


def print_model_comparison(result: Comparisons, verdict: CompareVerdict, title: str) -> None:
    """Print the tables, with the verdict last."""
    show(Text(title, style="bold"), *laid_out(text.sections(result)))
    show("", *verdict.says)


def write_model_comparison(result: Comparisons, verdict: CompareVerdict, recipe: str, folder: Path, data: str) -> None:
    """Write `compare.json` and the page `index.html`; create the folder if need be."""
    make_folder(folder)
    values = {"data": data, "verdict": verdict.says, "train": verdict.train} | result.to_dict()
    write_json(folder / "compare.json", values)
    write_page(
        folder / "index.html",
        "prm.report",
        "evaluation.html",
        headline=text.headline(result, verdict),
        lead=" ".join(verdict.says),
        cards=text.cards(result),
        source=f"user models on {data}",
        parts=_parts(result, recipe),
    )


def _parts(result: Comparisons, recipe: str) -> list[Part]:
    sections = {section.title: section for section in text.sections(result)}
    gains = [(text.name_of(row.name), row.gains) for row in result.rows if row.gains is not None]
    points = interval_picture([(name, gain.points) for name, gain in gains], "points")
    nats = interval_picture([(name, gain.nats) for name, gain in gains], "nats")
    pictures = [
        Shown(svg(points), "Gain in accuracy of each model over the best baseline"),
        Shown(svg(nats), "Decrease in log loss of each model against the best baseline"),
    ]
    parts = [Part(text.GAINS, pictures=pictures, tables=[sections.pop(text.GAINS)])]
    if text.NEW_USERS in sections:
        shown = Shown(svg(new_users_picture(result)), "Gain in accuracy for new users, by number of comparisons")
        parts.append(Part(text.NEW_USERS, pictures=[shown], tables=[sections.pop(text.NEW_USERS)]))
    parts += [Part(title, tables=[section]) for title, section in sections.items()]
    return [*parts, *([Part("Settings that train the model", code=recipe)] if recipe else [])]


@drawn
def new_users_picture(result: Comparisons) -> Figure:
    """Accuracy of the best baseline and of the best personal model for new users, by their number of comparisons."""
    picture = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    axes, steps = picture.subplots(), result.new_users
    for name, colour in ((BEST_BASELINE, MUTED), (BEST_PERSONAL, PERSONAL), ("stack", THIRD)):
        if name in steps[0].accuracy:
            values = [100 * step.accuracy[name].value for step in steps]
            axes.plot(range(len(steps)), values, "o-", color=colour, ms=4.5, label=text.name_of(name))
    axes.set_xticks(range(len(steps)), [str(step.after) for step in steps])
    axes.set_xlabel("comparisons of each new user")
    axes.set_ylabel("accuracy, %")
    picture.legend(loc="outside upper center", ncols=3)
    return picture
