"""The page of an evaluation: one file to read and to send on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from markupsafe import Markup
from matplotlib.figure import Figure

from prm.evaluation.audit.calibration import LEAST_COMPARED
from prm.evaluation.evaluate import Evaluation
from prm.evaluation.new_users import NewUsers
from prm.evaluation.page_details import Details
from prm.evaluation.rows import PERSONAL as PERSONAL_MODEL
from prm.evaluation.rows import UNIFORM as UNIFORM_MODEL
from prm.evaluation.rows import MetricsRow
from prm.io.formatting import bar, figure
from prm.report.drawing import INK, MUTED, PALE, PERSONAL, UNIFORM, WIDTH, drawn, svg
from prm.report.page import write_page
from prm.report.pictures import change_histogram, change_picture, interval_picture, reliability_picture
from prm.report.section import Section
from prm.report.text import audit_users, cold_start
from prm.report.text import evaluation as tables
from prm.report.text import evaluation_page as text
from prm.report.text.evaluation_page import NAMES, Provenance

_MOST_LISTED = 200  # people in the table
_FEW_TO_COUNT = 20  # people; fewer are a picture of their own, without a histogram


@dataclass(frozen=True)
class Shown:
    """A picture, what it shows in words, and a caption."""

    svg: Markup
    says: str
    note: str = ""


@dataclass(frozen=True)
class Part:
    """A section of the page; every one has something to show."""

    title: str
    says: str = ""
    pictures: Sequence[Shown] = ()
    tables: Sequence[Section] = ()
    code: str = ""


def write_evaluation(
    result: Evaluation, details: Details, new_users: NewUsers | None, origin: Provenance, path: Path
) -> None:
    """Write the page, atomically; its folder is created if need be."""
    write_page(
        path,
        "prm.report",
        "evaluation.html",
        headline=text.headline(result),
        lead=text.lead(result),
        cards=text.cards(result, details),
        source=f"{origin.folder} on {origin.log}",
        parts=list(_parts(result, details, new_users, origin)),
    )


def _parts(result: Evaluation, details: Details, new_users: NewUsers | None, origin: Provenance) -> Iterator[Part]:
    yield _baselines(result)
    if details.people.people:
        yield _people(details)
    if details.by_training:
        yield _by_training(details)
    yield _calibration(result, details)
    if new_users is not None:
        yield new_users_part(new_users, (), cold_start.in_words(new_users))
    for section in tables.sections(result)[2:]:  # by groups, and by metadata fields
        yield Part(section.title, tables=(section,))
    facts = text.data(result, origin)
    yield Part(facts.title, tables=(facts,))
    how = text.reproduction(result, origin)
    yield Part(how.title, code=origin.command, tables=(how,))


def _baselines(result: Evaluation) -> Part:
    gained = [(a.name, a.points) for a in text.compared(result)]
    pictures = (
        _shown(baselines_picture(result.rows), "Accuracy of each predictor", "Accuracy, with 95% intervals."),
        _shown(
            interval_picture(gained, "points"),
            "Gain in accuracy over each baseline",
            "The personal model against each baseline, with 95% intervals. Grey: the interval includes 0.",
        ),
    )
    accuracy = tables.sections(result)[0]
    by_kind = replace(accuracy, notes=accuracy.notes[:1])  # the other note is that of the table before
    says = result.verdict.says
    return Part("Against every baseline", f"{says[0].upper()}{says[1:]}.", pictures, (text.against(result), by_kind))


def _people(details: Details) -> Part:
    people, other = details.people, NAMES[details.baseline]
    note = f"By how much log loss is lower than with {other}, for each user, with their own 95% interval."
    note += " With so many users, some grey intervals exclude 0 by chance." * (len(people.enough) > _FEW_TO_COUNT)
    pictures = [_shown(change_picture(people), "Decrease in log loss by personalisation, for each user", note)]
    if len(people.enough) > _FEW_TO_COUNT:
        pictures.append(_shown(change_histogram(people), "Number of users by decrease in log loss"))
    name = other.removeprefix("the ")
    listed = (audit_users.gains(people, 0, name), audit_users.changes(people, _MOST_LISTED, name))
    found = [section for section in listed if not section.absent]
    return Part("Who gains and who loses", text.who(details), pictures, found)


def _by_training(details: Details) -> Part:
    groups = [(f"{g.train_comparisons} ({g.people:,} users)", g) for g in details.by_training]
    points, nats = ([(name, getattr(g, unit)) for name, g in groups] for unit in ("points", "nats"))
    pictures = (
        _shown(interval_picture(points, "points"), "Gain in accuracy by number of training comparisons"),
        _shown(interval_picture(nats, "nats"), "Decrease in log loss by number of training comparisons"),
    )
    section = text.by_training(details)
    return Part(section.title, pictures=pictures, tables=(section,))


def _calibration(result: Evaluation, details: Details) -> Part:
    likely = [(a.name, a.nats) for a in text.compared(result) if a.nats is not None]
    pictures = [
        _shown(
            interval_picture(likely, "nats"),
            "Decrease in log loss against each baseline",
            "The personal model against each baseline that gives probabilities, with 95% intervals.",
        )
    ]
    models = {name: c for name in details.calibration if (c := result.row(name).calibration) is not None and c.bins}
    if result.comparisons >= LEAST_COMPARED:
        note = (
            "On the dotted line, predictions are right; below it, the model is overconfident. Binomial 95% intervals."
        )
        pictures.append(_shown(reliability_picture(models), "Predicted and observed probabilities", note))
    says = text.calibration(result, details)
    return Part("Log loss and calibration", says, pictures, (tables.sections(result)[1],))


def new_users_part(curve: NewUsers, tables: Sequence[Section], says: str = "") -> Part:
    """The pictures of a cold start."""
    gains = [(str(step.after), step.gain) for step in curve.steps if step.gain is not None]
    pictures = [_shown(new_users_picture(curve), "Accuracy for new users, by number of training comparisons")]
    if gains:
        label = "Gain in accuracy over the tuned uniform model, by number of training comparisons of each new user."
        pictures.append(_shown(interval_picture(gains, "points"), label, label))
    return Part("New users, by number of training comparisons", says, pictures, tables)


def _shown(figure: Figure, says: str, note: str = "") -> Shown:
    return Shown(svg(figure), says, note)


@drawn
def baselines_picture(rows: Sequence[MetricsRow]) -> Figure:
    """A bar for the accuracy of each predictor in percent, with its 95% interval; the dotted line is chance."""
    picture = Figure(figsize=(WIDTH, 0.36 * len(rows) + 0.9), layout="constrained")
    axes = picture.subplots()
    colours = {PERSONAL_MODEL: PERSONAL, UNIFORM_MODEL: UNIFORM}
    for y, row in enumerate(rows):
        e = row.accuracy
        axes.barh(y, 100 * e.value, 0.62, color=colours.get(row.name, PALE))
        if (ends := bar(e, 100.0)) is not None:
            axes.errorbar(100 * e.value, y, xerr=ends, fmt="none", ecolor=INK, elinewidth=1, capsize=2)
        edge = 100 * max(end for end in (e.value, e.high) if end != float("inf"))
        axes.annotate(
            figure(100 * e.value), (edge, y), xytext=(4, 0), textcoords="offset points", va="center", size=8.5
        )
    axes.axvline(50, color=MUTED, lw=0.8, ls=":")
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 108)
    axes.set_xticks(range(0, 101, 25))
    axes.set_xlabel("accuracy, % of held-out comparisons without ties")
    return picture


@drawn
def new_users_picture(curve: NewUsers) -> Figure:
    """Accuracy for new users with its 95% interval, and the uniform model's on the same comparisons."""
    picture = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    axes = picture.subplots()
    places = range(len(curve.steps))
    for x, step in zip(places, curve.steps, strict=True):
        if (ends := bar(step.accuracy, 100.0)) is not None:
            axes.errorbar(x, 100 * step.accuracy.value, yerr=ends, fmt="none", ecolor=PERSONAL, elinewidth=1.6)
    axes.plot(
        places, [100 * step.accuracy.value for step in curve.steps], "o-", color=PERSONAL, ms=4.5, label="personal"
    )
    uniform = [100 * step.uniform.value for step in curve.steps if step.uniform is not None]
    if uniform:
        axes.plot(range(len(uniform)), uniform, "--", color=UNIFORM, lw=1.4, label=UNIFORM_MODEL)
    axes.set_xticks(places, [str(step.after) for step in curve.steps])
    axes.set_xlabel("training comparisons of each new user")
    axes.set_ylabel("accuracy, %")
    picture.legend(loc="outside upper center", ncols=2)
    return picture
