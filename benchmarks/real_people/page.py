"""The page of the benchmark, in Markdown; all its figures come from the JSON file."""

from collections.abc import Iterator, Mapping, Sequence

from benchmarks.real_people.results import Ends, Gain, Group, Measured, Model, Step, estimate_of
from benchmarks.real_people.sets import RealPeople
from prm.evaluation.compare.summary import BEST_BASELINE, BEST_PERSONAL, MANY_PEOPLE
from prm.evaluation.compare.verdict import never_worse
from prm.io.formatting import NONE, estimated, figure
from prm.report.page import markdown
from prm.report.text.model_comparison import name_of

INTRO = """\
# Benchmark on real people

<!-- written by `python -m benchmarks.real_people`: change that, not this page -->

Which user model predicts the choices of real people best, and after how many comparisons of a new user does it pay?
Every figure is from [benchmark.json](_static/benchmark.json), which one command writes, with this page:

<!-- not run: real data -->
```sh
python -m benchmarks.real_people data    # all sets; a killed command goes on where it stopped
python -m benchmarks.real_people data --sets writers-prompts --model mine.py --docs runs/mine    # and a model of yours
```

[Tables of results](results-tables.md) says where the sets in `data` are from; CONTRIBUTING.md says what a model is: one
file. The models are those of [`prm compare`](how-to/compare-user-models.md), and so is the protocol. Each part of a log
is held out once. On the other parts every model chooses its settings by cross-validation, which also chooses the best
baseline and the best personal model. Baselines are the models without users, and the rule of how often each user picks
the longer response. Log loss is in nats, lower is better. A gain is over the best baseline on the same comparisons, and
above 0 it is better. Where the choice by cross-validation was not the best after all, a baseline has a gain, too, and a
personal model should have more. Intervals are 95%, by bootstrap over people. A group of people is *not inferior* if the
intervals exclude that it loses more than 0.01 nats or 0.5 points to the best baseline."""
PICTURE = "Log loss of new users below that of the best baseline, by their number of comparisons"
LIMITS = """\
## What these numbers cannot show

- **Other people.** Sets are thinned, some to people with many comparisons. A mean over comparisons is mostly one of the
  busiest people; the mean over people stands beside it.
- **Other prompts.** Intervals are over people alone. With few prompts or texts (there are 100 jokes) other ones may
  give other figures.
- **Other draws.** One seed draws people, parts, and the order of a new user's comparisons.
- **Other backbones.** All models read hidden states of one small frozen backbone. Soft prompts and LoRA are not here.
- **Which of several models with overlapping intervals is best.** The best personal model of a part is chosen without a
  look at what is held out. The best row of a table is not.
- **Time.** Seconds are wall-clock, whatever else the machine did. A search that models share counts for the first that
  needs it. The fits of the flip test and of new users are not in them."""


def page_of(sets: Mapping[str, Measured], known: Sequence[RealPeople]) -> str:
    """The page of the sets that were measured, in the order of `known`."""
    done = [(one, sets[one.name]) for one in known if one.name in sets]
    lines = [INTRO, *_overview([found for _, found in done])]
    if missing := [one.title for one in known if one.name not in sets]:
        lines += ["", f"Not measured yet: {'; '.join(missing)}."]
    for one, found in done:
        lines += ["", f"## {found['title']}", "", *_section(one.name, found)]
    return "\n".join([*lines, "", LIMITS, ""])


def _overview(sets: Sequence[Measured]) -> Iterator[str]:
    if not sets:
        return
    yield "\n## In one table\n"
    header = [
        "set",
        "people",
        "best baseline, nats",
        "best personal, nats",
        "accuracy gain, points",
        "lower log loss",
        "per person",
    ]
    yield from markdown(header, [_outcome(found) for found in sets])
    yield f"\n![{PICTURE}](_static/benchmark.svg)\n"
    yield (
        "New users were not trained on. After so many comparisons of each, their log loss is so much below the best "
        "baseline's. Each point is of the users who have so many, so users change along a line. The band is the "
        "interval of the best personal model."
    )


def _outcome(found: Measured) -> list[str]:
    rows = {row["name"]: row for row in found["result"]["rows"]}
    base, best = rows[BEST_BASELINE], rows.get(BEST_PERSONAL)
    start = [found["title"], str(found["result"]["people"]), _nats(base["nll"])]
    if best is None or best["gains"] is None:
        return [*start, *[NONE] * 4]
    gains = best["gains"]
    return [*start, _nats(best["nll"]), _points(gains["points"]), _gain(gains["nats"]), _gain(gains["nats_macro"])]


def _section(name: str, found: Measured) -> Iterator[str]:
    result = found["result"]
    yield f"{found['about']} {_thinning(found)} {_protocol(found)}"
    best = _often(result["winners"]) or "none was compared"
    yield f"\nBest baseline: {_often(result['baselines'])}. Best personal model: {best}.\n"
    rows = result["rows"]
    yield from markdown(
        ["model", "accuracy %", "log loss", "calibration error (by chance)", "seconds a part"], list(map(_row, rows))
    )
    yield "\nGain over the best baseline:\n"
    header = ["model", "points", "points, mean over people", "nats", "nats, mean over people"]
    yield from markdown(header, [[name_of(row["name"]), *_gains(row["gains"])] for row in rows if row["gains"]])
    groups = [group for group in result["groups"] if group["people"] >= MANY_PEOPLE and BEST_PERSONAL in group["gains"]]
    if groups:
        yield f"\nGain of the best personal model by a person's training comparisons, {MANY_PEOPLE} people or more:\n"
        header = ["training comparisons", "people", "held out", "points", "nats", "not inferior"]
        yield from markdown(header, list(map(_group, groups)))
    if steps := result["new_users"]:
        yield "\nNew users, log loss after so many comparisons of each, ties left out:\n"
        yield from markdown(*_new_users(steps))


def _thinning(found: Measured) -> str:
    least, people, each = found["least"], found["people"], found["each"]
    kept = [f"with {least} or more comparisons"] if least else []
    kept += [f"at most {people}, drawn at random"] if people else []
    size = found["result"]["size"]
    log = found["log"]
    drawn = f" People {', '.join(kept)};" if kept else " Everybody;"
    drawn += f" at most {each} comparisons of each, drawn at random." if each else " all their comparisons."
    settings = ", ".join(f"`data.{key}: {value:g}`" for key, value in found["settings"].items())
    read = f" ({settings})" if settings else ""
    return (
        f"The log has {log['comparisons']:,} comparisons by {log['people']:,} people{read}.{drawn} "
        f"That makes {size['comparisons']:,} comparisons by {size['people']} people; prompts: {size['prompts']:,}."
    )


def _protocol(found: Measured) -> str:
    result, written = found["result"], found["environment"]
    ties = result["held_out"] - result["decided"]
    held_out = f"{result['held_out']:,} comparisons by {result['people']} people"
    return (
        f"Held out by `{found['holdout_by']}` in {found['folds']} parts: {held_out}"
        f"{f', {ties:,} of them ties' if ties else ''}. Seed {found['seed']}, backbone `{found['backbone']}`, "
        f"{written['written'][:10]}, commit {(written['commit'] or 'unknown')[:7]}."
    )


def _often(counts: Mapping[str, int]) -> str:
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{name_of(name)} in {n} of {sum(counts.values())} parts" for name, n in ranked)


def _row(row: Model) -> list[str]:
    c = row["calibration"]
    error = f"{figure(c['error'], 3)} ({figure(c['by_chance'], 3)})"
    accuracy = estimated(estimate_of(row["accuracy"]), scale=100.0)
    return [name_of(row["name"]), accuracy, _nats(row["nll"]), error, figure(row["seconds"])]


def _group(group: Group) -> list[str]:
    gains, least, most = group["gains"][BEST_PERSONAL], group["least"], group["most"]
    counts = f"{least} and more" if most is None else f"{least} to {most}"
    no_worse = never_worse(estimate_of(gains["nats"]), estimate_of(gains["points"]))
    people = [str(group["people"]), f"{group['comparisons']:,}"]
    return [counts, *people, _points(gains["points"]), _gain(gains["nats"]), "yes" if no_worse else "not shown"]


def _gains(gains: Gain) -> list[str]:
    return [_points(gains["points"]), _points(gains["points_macro"]), _gain(gains["nats"]), _gain(gains["nats_macro"])]


def _new_users(steps: Sequence[Step]) -> tuple[list[str], list[list[str]]]:
    counts = [["people", *(str(s["people"]) for s in steps)], ["held out", *(f"{s['comparisons']:,}" for s in steps)]]
    first = steps[0]
    losses = [[name_of(name), *(figure(s["nll"][name]["value"], 3) for s in steps)] for name in first["nll"]]
    if BEST_PERSONAL in first["gains"]:
        gains = [_gain(step["gains"][BEST_PERSONAL]["nats"]) for step in steps]
        losses.append([f"gain of the {BEST_PERSONAL}", *gains])
    return ["model", *(str(step["after"]) for step in steps)], [*counts, *losses]


def _nats(ends: Ends) -> str:
    return estimated(estimate_of(ends), digits=3)


def _gain(ends: Ends) -> str:
    return estimated(estimate_of(ends), digits=3, sign="+")


def _points(ends: Ends) -> str:
    return estimated(estimate_of(ends), scale=100.0, sign="+")
