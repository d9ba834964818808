"""The report of an audit: tables, pictures and a page."""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup
from matplotlib.figure import Figure
from rich.text import Text

from prm.errors import counted
from prm.evaluation import evaluate
from prm.evaluation.audit import Audit
from prm.evaluation.audit.biases import LengthBiasOfUser
from prm.evaluation.audit.calibration import Reliability
from prm.evaluation.overlap import in_words
from prm.io.disk import make_folder
from prm.metrics import MIN_COMPARISONS
from prm.report.drawing import MUTED, PERSONAL, UNIFORM, WIDTH, drawn, save_picture
from prm.report.page import write_page
from prm.report.pictures import change_histogram, change_picture, reliability_picture
from prm.report.terminal import laid_out, show
from prm.report.text import audit as text


def print_audit(result: Audit, title: str) -> None:
    """Print the audit as tables, with the result in one sentence last."""
    show(Text(title, style="bold"), *laid_out(text.sections(result)))
    show("", Text(text.headline(result), style="bold"), _verdict(result))


def write_audit(a: Audit, folder: Path, title: str) -> None:
    """Write the page `index.html` and its pictures; the folder is created if it does not exist."""
    make_folder(folder)
    pictures: dict[str, object] = {
        "people": save_picture(change_picture(a.people), folder / "people.png"),
        "histogram": save_picture(change_histogram(a.people), folder / "histogram.png"),
        "lengths": save_picture(bias_picture(a.lengths), folder / "lengths.png") if a.lengths else "",
        "reliability": [_reliability(group, folder) for group in a.reliability if group.models],
    }
    content = {"headline": text.headline(a), "verdict": _verdict(a), "cards": text.cards(a), "source": title}
    write_page(
        folder / "index.html", "prm.report", "audit.html", **content, pictures=pictures, sections=text.sections(a)
    )


def _verdict(a: Audit) -> str:
    """The verdict, and how many of the comparisons the run was trained on."""
    return "; ".join(filter(None, [a.verdict.says, in_words(a.overlap, a.comparisons)]))


def _reliability(group: Reliability, folder: Path) -> tuple[str, Markup]:
    """(the group in words, its picture); the file's name ends in the group's minimum of training comparisons."""
    name = f"trained on {group.train_comparisons}"
    picture = reliability_picture(group.models, name)
    minimum = group.train_comparisons.split()[0]
    return (
        f"{name.capitalize()}: {counted(group.people, 'user')}, {counted(group.comparisons, 'comparison')}.",
        save_picture(picture, folder / f"reliability-{minimum}.png"),
    )


@drawn
def bias_picture(lengths: Sequence[LengthBiasOfUser]) -> Figure:
    """How often each user chose the longer response and how often the models pick it; dots grow with the log."""
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
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
    figure.legend(loc="outside upper center", ncols=2)
    return figure
