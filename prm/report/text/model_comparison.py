"""A comparison of user models as text: titled tables with notes."""

from prm.errors import counted
from prm.evaluation.compare.config import BASELINES
from prm.evaluation.compare.summary import BEST_BASELINE, BEST_PERSONAL, Comparisons, CountGroup, ModelRow
from prm.evaluation.compare.verdict import CompareVerdict
from prm.io.formatting import NONE, estimated, figure
from prm.metrics import MIN_COMPARISONS, Estimate
from prm.report.section import Section
from prm.report.text.evaluation import calibration_error, nats, percent
from prm.report.text.units import Card, card, lower_card, points

GAINS, NEW_USERS = "gain over the best baseline", "new users, by number of comparisons"
NAMES = {
    "uniform": "uniform",
    "uniform_kernel": "uniform, kernel",
    "rules": "rules, tuned",
    "length_sign": "length sign per user",
    "individual": "individual",
    "cluster": "cluster",
    "low_rank": "low rank",
    "bayes": "bayes",
    "stack": "stack",
    "mlp": "MLP",
    "amortised": "amortised",
}


def name_of(model: str) -> str:
    """A model's name in tables."""
    return NAMES.get(model, model)


def headline(result: Comparisons, verdict: CompareVerdict) -> str:
    """The outcome in one line."""
    if verdict.state == "better":
        personal = verdict.train if verdict.train not in BASELINES else None
        return f"{name_of(personal or BEST_PERSONAL)} pays: better than the best baseline"
    words = {
        "no better": "No personal model is clearly better than the best baseline",
        "worse": "The best personal model is worse than the best baseline",
        "too few": "Too little data for a verdict",
        "no personal model": "Models without users",
    }
    return words[verdict.state]


def cards(result: Comparisons) -> list[Card]:
    """The main figures, each with its interval in words."""
    found = [(f"{result.held_out:,}", "held-out comparisons", ""), (f"{result.people:,}", "users", "")]
    for row in result.rows:
        if row.name == BEST_PERSONAL and row.gains is not None:
            found += [
                card(row.gains.points, "percentage points over the best baseline", unit="", sign="+"),
                card(row.gains.points_macro, "percentage points, mean over users", unit="", sign="+"),
                lower_card(row.gains.nats),
            ]
        if row.name == BEST_PERSONAL and row.follows is not None:
            found.append(
                card(row.follows, "percentage points: how far it follows each user's labels", unit="", sign="+")
            )
    return found


def sections(result: Comparisons) -> list[Section]:
    """Gains, accuracy and log loss, by number of comparisons, new users, and what was tried."""
    return [*_gains(result), *_figures(result), *_groups(result), *_new_users(result), _cost(result)]


def _gains(result: Comparisons) -> list[Section]:
    rows = [(name_of(row.name), row) for row in result.rows if row.gains is not None]
    per_comparison = [
        (name, points(row.gains.points), signed(row.gains.nats), _follows(row)) for name, row in rows if row.gains
    ]
    per_user = [(name, points(row.gains.points_macro), signed(row.gains.nats_macro)) for name, row in rows if row.gains]
    baselines = ", ".join(map(name_of, result.baselines))
    notes = (
        f"over the best baseline ({baselines}), chosen in each of {result.parts} parts by cross-validation on the "
        "others, as is the best personal model; 95% intervals by bootstrap over users",
        "follows: flip test, trained with the labels of half of the users reversed; how many more comparisons are "
        "predicted as the user's training labels have it than for an unknown user; 0 if a model knows nobody",
    )
    header = ("", "accuracy, points", "log loss lower (nats)")
    return [
        Section(GAINS, (*header, "follows, points"), tuple(per_comparison), notes),
        Section("gain over the best baseline, mean over users", header, tuple(per_user)),
    ]


def _figures(result: Comparisons) -> list[Section]:
    rows = [
        (name_of(row.name), percent(row.accuracy), nats(row.nll), figure(100 * row.macro_accuracy.value))
        for row in result.rows
    ]
    note = f"{counted(result.held_out, 'comparison')}, each held out once, by {counted(result.people, 'user')}"
    others = [
        (name_of(row.name), calibration_error(row.calibration), figure(100 * row.worst_tenth)) for row in result.rows
    ]
    worst = (
        "calibration error: in brackets, the error that chance alone gives; worst users: mean accuracy of the tenth of "
        f"users, of those with {MIN_COMPARISONS} or more comparisons, for whom it is lowest"
    )
    return [
        Section(
            "accuracy and log loss", ("", "accuracy %", "log loss (nats)", "mean over users %"), tuple(rows), (note,)
        ),
        Section("calibration and worst users", ("", "calibration error", "worst users %"), tuple(others), (worst,)),
    ]


def _groups(result: Comparisons) -> list[Section]:
    shown = [name for name in (BEST_PERSONAL, "stack") if any(name in g.gains for g in result.groups)]
    header = ("training comparisons", "users", "held out", "accuracy, points", "log loss lower (nats)")
    note = "a user may be in several groups: each held-out part has other training comparisons, more or fewer of a user"
    return [
        Section(
            f"gain of {name_of(name)} by a user's number of training comparisons",
            header,
            tuple(
                (_band(g), str(g.people), str(g.comparisons), points(g.gains[name].points), signed(g.gains[name].nats))
                for g in result.groups
            ),
            (note,),
        )
        for name in shown
    ]


def _new_users(result: Comparisons) -> list[Section]:
    steps = result.new_users
    if not steps:
        return []
    header = ("after", *(str(step.after) for step in steps))
    counts = [("users", *(str(step.people) for step in steps)), ("held out", *(str(s.comparisons) for s in steps))]
    base = (f"{BEST_BASELINE} %", *(figure(100 * step.accuracy[BEST_BASELINE].value) for step in steps))
    gained = [(name_of(name), *(_marked(step.gains[name].points) for step in steps)) for name in steps[0].gains]
    note = (
        "users who were not trained on, fitted to their first comparisons; a column has the users with so many; gains "
        "in points over the best baseline on the same comparisons, * if the interval excludes 0"
    )
    return [Section(NEW_USERS, header, (*counts, base, *gained), (note,))]


def _cost(result: Comparisons) -> Section:
    header = ("", "log loss by cross-validation", "settings", "seconds per part")
    rows = [
        (name_of(row.name), figure(row.validation_nll, 3), str(row.tried), figure(row.seconds))
        for row in result.rows
        if row.name not in (BEST_BASELINE, BEST_PERSONAL)
    ]
    note = "on the training comparisons of each part; it decides which settings and models are chosen"
    return Section("settings tried and cost", header, tuple(rows), (note,))


def _marked(e: Estimate) -> str:
    return figure(100 * e.value, sign="+") + ("*" if e.low > 0.0 or e.high < 0.0 else " ")


def signed(e: Estimate) -> str:
    """Nats with their sign and interval."""
    return estimated(e, digits=3, sign="+")


def _band(group: CountGroup) -> str:
    return f"{group.least} and more" if group.most is None else f"{group.least} to {group.most}"


def _follows(row: ModelRow) -> str:
    return NONE if row.follows is None else points(row.follows)
