"""A comparison in words: when to choose which, titled tables, and what is drawn of it."""

import math
from collections.abc import Mapping, Sequence
from string import ascii_uppercase

from policy.compare.measure import Figures, Measured, Result
from prm.data.comparison import Comparison, as_messages
from prm.metrics import FEW_PEOPLE, Array, Estimate
from prm.report import ArmPanel, ArmPoint, LengthPanel, Sample
from prm.report.text.evaluation import percent
from prm.report.text.profile import Section

_SHOWN_PEOPLE = 24  # most people of whom each has a row and a bar
_ODD = 1.0  # nats a token above the base's own, from where answers are to be read
_SAMPLED = 2  # questions of each group that are shown with all answers


def labels(result: Result) -> dict[str, str]:
    """A letter for each arm, for pictures and columns; numbers from the 27th on."""
    return {a.name: ascii_uppercase[i] if i < 26 else str(i + 1) for i, a in enumerate(result.arms)}


def advice(result: Result) -> list[str]:
    """When to choose which, sentence by sentence, from the figures alone."""
    return [*_too_few(result), *_choice(result)]


def _too_few(result: Result) -> list[str]:
    n = sum(result.groups.values())
    if n >= FEW_PEOPLE:
        return []
    return [
        f"Only {n} {_people(n)} asked: intervals over so few say next to nothing of others, however narrow they are."
    ]


def _choice(result: Result) -> list[str]:
    base = result.arm(result.base)
    methods = [a for a in result.arms if a.kind not in ("base", "chosen", "generic")]
    sure = [a for a in methods if a.all.wins.low > 0.5 and a.all.gain.low > 0.0]
    if not sure:
        return [
            f"Nothing beats {base.name} surely. Choose none by these figures.",
            *_personal(result),
            *_losers(result, methods),
            *_speechless(result, methods),
        ]
    best, *level = _first(result, sure, "")
    if level:
        found = [
            f"Most reward: {_list([_named(a) for a in (best, *level)])}; on the same prompts and people the first is "
            "surely ahead of none of them: between these, go by cost."
        ]
    else:
        found = [f"Most reward: {_named(best)}, {percent(best.all.wins)} % of duels won."]
    timed = [a for a in sure if a.cost.needed is not None]
    if timed:
        cheap = min(timed, key=lambda a: a.cost.needed or 0.0)
        minutes = f"{_minutes(cheap.cost.needed)} minutes with all that it is made of"
        found.append(f"Least training of all that surely beat {base.name}: {_named(cheap)}, in {minutes}.")
    found += _without_training(base, sure)
    found += _closest(base, sure)
    found += [*_personal(result), *_for_the_few(result, methods)]
    return [*found, *_losers(result, methods), *_speechless(result, methods)]


def _without_training(base: Measured, sure: Sequence[Measured]) -> list[str]:
    picks = [a for a in sure if a.kind == "best of"]
    if not picks:
        return []
    least = min(picks, key=lambda a: (a.cost.tokens or 0.0, -a.all.gain.value))
    price = ""
    if least.cost.tokens and base.cost.tokens:
        price = f", at {least.cost.tokens / base.cost.tokens:.1f} times the tokens of an answer of {base.name}"
    return [f"Without training a policy, {least.name} is the least that surely wins: {_named(least)}{price}."]


def _personal(result: Result) -> list[str]:
    found = []
    for stranger, arm in result.known_by.items():
        wins = result.matrix.rates[arm, stranger].user
        knows = f"{arm} knows its people" if wins.low > 0.5 else f"That {arm} knows its people is not shown"
        found.append(f"{knows}: {percent(wins)} % of duels with its own answers as to strangers.")
    return found


def _for_the_few(result: Result, methods: Sequence[Measured]) -> list[str]:
    if len(result.groups) < 2:
        return []
    few = list(result.groups)[-1]
    n = result.groups[few]
    top, *level = _first(result, methods, few)
    if level:
        return [f"For the group {few} ({n} {_people(n)}) no arm is surely ahead of all others."]
    return [f"For the group {few} ({n} {_people(n)}) most is given by {top.name}: {signed(top.groups[few].gain)}."]


def _first(result: Result, arms: Sequence[Measured], group: str) -> list[Measured]:
    """The arm with the most reward, and behind it those that are not surely worth less on the same prompts."""
    worth = {a.name: (a.groups[group] if group else a.all).gain.value for a in arms}
    best, *others = sorted(arms, key=lambda a: -worth[a.name])
    return [best, *(a for a in others if not result.leads[group][best.name, a.name].low > 0.0)]


def _closest(base: Measured, arms: Sequence[Measured]) -> list[str]:
    """Who stays nearest to the base, and whose divergence does not surely differ from theirs."""
    known = sorted(((abs(a.all.kl.value), a, a.all.kl) for a in arms if a.all.kl is not None), key=lambda x: x[0])
    if not known:
        return []
    _, near, kl = known[0]
    bound = "at most " if near.kind == "best of" else ""
    level = [a.name for _, a, other in known[1:] if near.kind != "best of" and not other.low > kl.high]
    beside = f"; {_list(level)} not surely farther" if level else ""
    return [f"Closest to {base.name} among them: {near.name}, {bound}{kl.value:.2f} nats{beside}."]


def _losers(result: Result, methods: Sequence[Measured]) -> list[str]:
    found = []
    for group in result.groups if len(result.groups) > 1 else ():
        worse = [a for a in methods if a.groups[group].gain.high < 0.0]
        if worse:
            named = _list([f"{a.name} ({signed(a.groups[group].gain)})" for a in worse])
            found.append(f"Worse than {result.base} for the group {group}: {named}.")
    return found


def _speechless(result: Result, methods: Sequence[Measured]) -> list[str]:
    base, found = result.arm(result.base), []
    for group in result.groups:
        own = base.groups[group].surprise
        each = {a.name: a.groups[group].surprise for a in methods}
        odd = [f"{name} {unsigned(e)}" for name, e in each.items() if own and e and e.value > own.value + _ODD]
        if own and odd:
            found.append(
                f"Read the answers to the group {group} before believing figures: their language is odd to {base.name}."
                f" Nats a token: its own {unsigned(own)}, {_list(odd)}."
            )
    return found


def sections(result: Result) -> list[Section]:
    """Rewards, cost, groups, and who wins against whom."""
    letters = labels(result)
    names = {a.name: f"{letters[a.name]}  {a.name}" for a in result.arms}
    rows = tuple((names[a.name], *_figures(a.all, a.kind), *_shares(a)) for a in result.arms)
    worth: tuple[str, ...] = (
        "arm",
        "gold reward",
        f"gain over {result.base}",
        "wins %",
        "KL, nats",
        "nats a token",
        "words",
    )
    header = (*worth, "empty %", "cut %")
    found = [Section("What the arms are worth", header, rows, (_HOW.format(base=result.base, unit=result.unit),))]
    cost = tuple(
        (
            names[a.name],
            _minutes(a.cost.training),
            _minutes(a.cost.needed),
            _number(a.cost.tokens, 0),
            _number(a.cost.seconds, 2),
        )
        for a in result.arms
    )
    spent = ("arm", "its run, minutes", "all that it needs", "tokens an answer", "seconds an answer")
    found.append(Section("What they cost", spent, cost, (_COST,)))
    for group, people in result.groups.items() if len(result.groups) > 1 else ():
        part = tuple((names[a.name], *_figures(a.groups[group], a.kind)) for a in result.arms)
        found.append(Section(f"{group}: {people} {_people(people)}", worth, part))
    found += _person_by_person(result)
    rates, order = result.matrix.rates, result.matrix.arms
    wins = [[rates[a, b].user if a != b else None for b in order] for a in order]
    cells = tuple(
        (names[a], *("" if e is None else f"{100 * e.value:.0f}" for e in row))
        for a, row in zip(order, wins, strict=True)
    )
    against: tuple[str, ...] = ("wins % against", *(letters[name] for name in order))
    found.append(
        Section(
            "Who wins against whom",
            against,
            cells,
            (_MATRIX + (_LARGEST if len(order) < len(result.arms) else ""), *result.matrix.notes),
        )
    )
    return found


def _person_by_person(result: Result) -> list[Section]:
    people = list(result.arms[0].lengths)
    if len(people) > _SHOWN_PEOPLE:
        return []
    letters = labels(result)
    rows = tuple(
        (user, *(f"{value:.1f}" + (f" ± {error:.1f}" if math.isfinite(error) else "") for value, error in column))
        for user, column in ((user, [a.lengths[user] for a in result.arms]) for user in people)
    )
    return [Section("Words, person by person", ("person", *(letters[a.name] for a in result.arms)), rows, (_WORDS,))]


def length_panels(result: Result) -> list[LengthPanel]:
    """Words by person (the paper's Figure 3), of the base and of what was trained; nothing where people are many."""
    arms = [a for a in result.arms if a.kind in ("base", "prompted", "trained", "generic")]
    people, groups = list(arms[0].lengths), list(result.groups)
    if len(people) > _SHOWN_PEOPLE or len(arms) < 2:
        return []
    sizes = [result.groups[group] for group in groups]
    of = [group for group, n in zip(groups, sizes, strict=True) for _ in range(n)]
    return [LengthPanel(a.name, tuple(people), tuple(of), tuple(a.lengths[user] for user in people)) for a in arms]


_HOW = (
    "Mean over people of each one's mean, with 95% intervals by bootstrap over people and the prompts that they share, "
    "on the wide side; reward {unit}. Wins are duels with {base}'s answer to the same prompt, a tie is half a win. "
    "KL: log pi - log pi of {base}, over the drawn answers; of best of N the most that it can be, log N - (N - 1) / N "
    "(≤). Nats a token: how much an answer's tokens surprise {base}; far above its own is broken language. Cut: "
    "ran to the most tokens there may be."
)
_COST = (
    "Training on this machine: its run is what was trained for the arm itself, nothing for the best of N; all that it "
    "needs counts every run that it is made of. Tokens and seconds are spent for one answer, drawn many together; "
    "best of N pays for N, drawn a pool at a time, and for reading them."
)
_WORDS = "Mean and standard error over a person's prompts."
_MATRIX = "Mean over people, a tie is half a win; intervals, as above, are in metrics.json."
_LARGEST = " Of best of N the largest alone."


def panels(result: Result) -> list[ArmPanel]:
    """Gain against divergence: everybody, then each group."""
    shown = {"everybody": [a.all for a in result.arms]}
    if len(result.groups) > 1:
        shown |= {f"{g}, {n} {_people(n)}": [a.groups[g] for a in result.arms] for g, n in result.groups.items()}
    letters = labels(result)
    return [
        ArmPanel(
            title,
            tuple(
                ArmPoint(letters[a.name], a.name, None if f.kl is None else f.kl.value, f.gain, _line(a))
                for a, f in zip(result.arms, figures, strict=True)
            ),
        )
        for title, figures in shown.items()
    ]


def samples(
    cases: Sequence[Comparison],
    groups: Mapping[str, str],
    answers: Mapping[str, Sequence[str]],
    gold: Mapping[str, Array],
) -> list[Sample]:
    """Some questions with the answers of all arms side by side: the same prompts for one person of each group."""
    found: list[Sample] = []
    count = dict.fromkeys(groups.values(), 0)
    for i, c in enumerate(cases):
        group = groups[c.user_id]
        asked = "\n".join(m.content for m in as_messages(c.prompt))
        if count[group] < _SAMPLED and all(asked != s.prompt or group not in s.who for s in found):
            count[group] += 1
            rows = tuple((name, texts[i] or "(nothing)", f"{gold[name][i]:+.1f}") for name, texts in answers.items())
            found.append(Sample(asked, f"{c.user_id} ({group})", rows))
    return found


def signed(e: Estimate) -> str:
    """A gain with its interval."""
    value, low, high = (round(x, 2) + 0.0 for x in (e.value, e.low, e.high))  # never -0.00
    return f"{value:+.2f}" + (f" [{low:+.2f}, {high:+.2f}]" if math.isfinite(e.low) else "")


def unsigned(e: Estimate) -> str:
    """As `signed`, of what is no gain."""
    return signed(e).replace("+", "")


def _figures(f: Figures, kind: str) -> tuple[str, str, str, str, str, str]:
    value, length = f"{f.gold.value:+.2f}", _length(f.words)
    surprise = "" if f.surprise is None else unsigned(f.surprise)
    if kind == "base":
        return value, "", "", "0", surprise, length
    kl = "" if f.kl is None else f"≤ {f.kl.value:.2f}" if kind == "best of" else unsigned(f.kl)
    return value, signed(f.gain), percent(f.wins), kl, surprise, length


def _length(e: Estimate) -> str:
    return f"{e.value:.1f}" + (f" [{e.low:.1f}, {e.high:.1f}]" if math.isfinite(e.low) else "")


def _shares(arm: Measured) -> tuple[str, str]:
    return f"{100 * arm.empty:.0f}", "" if arm.cut is None else f"{100 * arm.cut:.0f}"


def _named(arm: Measured) -> str:
    return f"{arm.name}, {signed(arm.all.gain)}"


def _line(arm: Measured) -> str:
    return arm.name.rpartition(" ")[0] if arm.kind == "best of" else ""


def _people(n: int) -> str:
    return "person" if n == 1 else "people"


def _minutes(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds / 60:.1f}"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _list(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
