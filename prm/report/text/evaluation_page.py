"""The words of an evaluation's page: for a reader who knows neither the software nor its words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prm.data.comparison import Extent
from prm.errors import counted
from prm.evaluation.evaluate import GENERIC, IN_WORDS, LENGTH_SIGN, LONGEST, PERSONAL, UNIFORM, Evaluation
from prm.evaluation.overlap import in_words
from prm.evaluation.page_details import Details
from prm.evaluation.rows import SHUFFLED
from prm.evaluation.verdict import Against
from prm.io.formatting import estimated, figure
from prm.metrics import MIN_COMPARISONS
from prm.report.section import Section
from prm.report.text.evaluation import nats, percent, sections
from prm.report.text.units import Card, between, card, lower_by, lower_card, points

NAMES = {
    UNIFORM: "the tuned uniform model",
    GENERIC: "the generic user",
    LONGEST: "always taking the longer response",
    LENGTH_SIGN: "each user's taste for length alone",
    SHUFFLED: "another user's parameters",
}


@dataclass(frozen=True)
class Provenance:
    """Where an evaluation comes from.

    Args:
        command: that was run.
        folder: of the run.
        log: file of the evaluated comparisons; fingerprint: digest of what it held.
        account: what became of the log's rows, one sentence each.
        run: content of `run.json`; digest: of `config.json`, which covers the weights.
    """

    command: str
    folder: str
    log: str
    fingerprint: str
    account: Sequence[str]
    run: Mapping[str, object]
    digest: str

    def at(self, key: str) -> object:
        """The value at a dotted key of `run.json`; `None` if the run does not record it."""
        value: object = self.run
        for name in key.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        return value


def headline(result: Evaluation) -> str:
    """The verdict as a heading."""
    verdict = result.verdict
    if verdict.state == "too few":
        return "Too little data to say whether personal rewards help"
    how = "better than every baseline" if verdict.state == "better" else f"{verdict.state} than {NAMES[verdict.beside]}"
    return f"Personal rewards predict what users choose {how}"


def lead(result: Evaluation) -> str:
    """The verdict in sentences, with units, and intervals in words."""
    accuracy = result.row(PERSONAL).accuracy
    size = counted(result.comparisons - result.ties, "held-out comparison")
    size += f" ({counted(result.ties, 'tie')} left out)" if result.ties else ""
    size += f" by {counted(result.users, 'user')}"
    says = f"The personal model predicts {figure(100 * accuracy.value)}% of {size} ({between(accuracy)})."
    if (beside := _beside(result)) is not None:
        says += (
            f" {NAMES[beside.name].capitalize()} predicts {figure(100 * beside.accuracy.value)}%: a difference of "
            f"{figure(100 * beside.points.value, sign='+')} percentage points "
            f"({between(beside.points, unit='', sign='+')})."
        )
    if (likely := _by_log_loss(result)) is not None and likely.nats is not None:
        than = f" than that of {NAMES[likely.name]}"
        says += f" Its log loss is {lower_by(likely.nats, than, 'nats per comparison')}."
    if result.overlap is not None and result.overlap["own"]:
        says += f" Caution: {in_words(result.overlap, result.comparisons)}."
    return says


def cards(result: Evaluation, details: Details) -> list[Card]:
    """The main figures, each with its interval in words."""
    decided = counted(result.comparisons - result.ties, "held-out comparison")
    found = [card(result.row(PERSONAL).accuracy, f"of {decided} predicted")]
    if (beside := _beside(result)) is not None:
        found.append(card(beside.points, f"percentage points over {NAMES[beside.name]}", unit="", sign="+"))
    if (likely := _by_log_loss(result)) is not None and likely.nats is not None:
        found.append(lower_card(likely.nats, f" than {NAMES[likely.name]}"))
    if details.people.people:
        counts, n = details.people.count("nats"), len(details.people.people)
        untested = details.people.untested
        unclear = f"{counts['unclear'] - untested} unclear, {untested} not tested"
        lose = f"{counts['loses']} clearly lose, {unclear} (by log loss)"
        found.append((f"{counts['gains']} of {n:,}", "known users clearly gain", lose))
    found.append(card(details.calibration[PERSONAL], "calibration error", 3, 1.0, ""))
    return found


def _beside(result: Evaluation) -> Against | None:
    return next((a for a in result.verdict.against if a.name == result.verdict.beside), None)


def _by_log_loss(result: Evaluation) -> Against | None:
    """The baseline of the accuracy if it gives probabilities, or else the uniform model, or else the generic user."""
    likely = {a.name: a for a in result.verdict.against if a.nats is not None}
    return next((likely[name] for name in (result.verdict.beside, UNIFORM, GENERIC) if name in likely), None)


def compared(result: Evaluation) -> list[Against]:
    """The personal model against each other predictor, in the order of the rows."""
    found = {a.name: a for a in (*result.verdict.against, *filter(None, [result.verdict.shuffled]))}
    return [found[row.name] for row in result.rows if row.name in found]


def against(result: Evaluation) -> Section:
    """Every predictor, and how far the personal model is ahead of it."""
    by_name, rows = {a.name: a for a in compared(result)}, []
    for row in result.rows:
        a = by_name.get(row.name)
        ahead = ("", "") if a is None else (points(a.points), "-" if a.nats is None else nats(a.nats))
        rows.append((row.name, percent(row.accuracy), ahead[0], nats(row.nll), ahead[1]))
    header = ("", "accuracy %", "personal ahead by, points", "log loss, nats", "personal lower by, nats")
    notes = (
        f"In brackets: 95% intervals by bootstrap over {IN_WORDS[result.drawn]}; differences are paired, comparison by "
        f"comparison. {sections(result)[0].notes[-1]}",
    )
    return Section("Every baseline", header, tuple(rows), notes)


def who(details: Details) -> str:
    """Who gains and who loses, in a sentence."""
    counts, people = details.people.count("nats"), details.people.people
    untested = details.people.untested
    return (
        f"Of {counted(len(people), 'user')} whom the model knows, {counts['gains']:,} clearly gain over "
        f"{NAMES[details.baseline]} and {counts['loses']:,} clearly lose, by log loss; for "
        f"{counts['unclear'] - untested:,} it is unclear, and {untested:,} are not tested, with fewer than "
        f"{MIN_COMPARISONS} comparisons here."
    )


def by_training(details: Details) -> Section:
    """Gains by number of training comparisons."""
    rows = tuple(
        (g.train_comparisons, f"{g.people:,}", f"{g.comparisons:,}", points(g.points), estimated(g.nats, 3, sign="+"))
        for g in details.by_training
    )
    header = ("training comparisons", "users", "held-out comparisons", "accuracy gain, points", "lower log loss, nats")
    note = f"Gains over {NAMES[details.baseline]}; 0: users whom the model does not know."
    return Section("By number of training comparisons", header, rows, (note,))


def calibration(result: Evaluation, details: Details) -> str:
    """The calibration errors with intervals, in a sentence."""
    says = []
    for name, error in details.calibration.items():
        chance = c.by_chance if (c := result.row(name).calibration) is not None else float("nan")
        says.append(
            f"{name} {figure(error.value, 3)} ({between(error, 3, 1.0, '')}; a perfectly calibrated model would show "
            f"{figure(chance, 3)} by chance)"
        )
    return (
        "Calibration error is the mean distance between the predicted probability of the picked response and how often "
        f"it was chosen: {'; '.join(says)}."
    )


def data(result: Evaluation, origin: Provenance) -> Section:
    """What was evaluated, what was trained on, and how the two were split."""
    size = Extent(result.comparisons, result.prompts, result.users)
    rows = [
        ("evaluated log", origin.log),
        ("evaluated on", str(size)),
        ("of these users, unknown to the model", f"{result.unknown_users:,}"),
        ("ties, in log losses only", f"{result.ties:,}"),
    ]
    if result.learnt_from is not None:
        rows.append(("trained on", str(Extent(**result.learnt_from))))
    seen = f"{result.overlap['own']:,}" if result.overlap is not None else "not recorded"
    rows.append(("of the evaluated comparisons, trained on", seen))
    settings = {"training log": "data.path", "source": "config.data.source", "held out by": "config.data.holdout_by"}
    settings |= {"held-out fraction": "config.data.test_fraction", "minimum per user": "config.data.min_comparisons"}
    rows += [(name, str(value)) for name, key in settings.items() if (value := origin.at(key)) not in (None, "", 0)]
    left_out = origin.at("data.left_out")
    if isinstance(left_out, Mapping):
        rows += [(f"left out: {reason}", f"{count:,}") for reason, count in left_out.items() if count]
    card_of_set = origin.at("data.card")
    if isinstance(card_of_set, Mapping):
        rows.append(("public data set", f"{card_of_set.get('citation', '')} {card_of_set.get('licence', '')}"))
    notes = [*origin.account, *filter(None, [result.note])]
    return Section("What the data were", ("", ""), tuple(rows), tuple(notes))


def reproduction(result: Evaluation, origin: Provenance) -> Section:
    """What has to be equal for the same figures."""
    rows = [("fingerprint of the evaluated comparisons", origin.fingerprint)]
    rows += [("digest of the run (config.json, which covers all weights)", origin.digest)]
    named = {
        "fingerprint of the training log": "data.fingerprint",
        "backbone": "config.backbone.name",
        "user model": "config.users.kind",
        "seed": "config.seed",
        "trained at": "environment.written",
        "commit": "environment.commit",
    }
    rows += [(name, str(value)) for name, key in named.items() if (value := origin.at(key)) is not None]
    if isinstance(versions := origin.at("environment.versions"), Mapping):
        rows.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    if result.parameters is not None:
        counts = f"{result.parameters['users']:,} of the user model, {result.parameters['shared']:,} shared"
        rows.append(("trained parameters", counts))
    return Section("How to reproduce", ("", ""), tuple(rows))
