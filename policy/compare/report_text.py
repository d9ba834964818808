"""The report of a comparison: advice on when to choose which arm, tables, and the data of its figures."""

import math
from collections.abc import Mapping, Sequence
from string import ascii_uppercase

from policy.compare.headroom import Headroom
from policy.compare.measure import Figures, Measured, Result
from prm.data.comparison import Comparison, as_messages
from prm.errors import counted
from prm.metrics import FEW_PEOPLE, Array, Estimate
from prm.report import ArmPanel, ArmPoint, LengthPanel, Sample
from prm.report.section import Section
from prm.report.text.evaluation import percent
from rerank.curves.best_of import ORACLE, PICKS

_MAX_SHOWN_USERS = 24  # with more users, no table or figure by user
_BROKEN = 1.0  # log loss above that of the base's own responses, nats per token, from which language may be broken
_SAMPLED = 2  # prompts of each group that are shown with all responses


def labels(result: Result) -> dict[str, str]:
    """A letter for each arm, for figures and columns; numbers from the 27th on."""
    return {a.name: ascii_uppercase[i] if i < 26 else str(i + 1) for i, a in enumerate(result.arms)}


def advice(result: Result) -> list[str]:
    """Sentences on when to choose which arm, from the figures alone."""
    return [*_too_few(result), *_choice(result)]


def _too_few(result: Result) -> list[str]:
    n = sum(result.groups.values())
    if n >= FEW_PEOPLE:
        return []
    return [f"Only {counted(n, 'user')} asked: intervals over so few, however narrow, say little about others."]


def _choice(result: Result) -> list[str]:
    base = result.arm(result.base)
    methods = [a for a in result.arms if a.kind not in ("base", "chosen", "generic")]
    better = [a for a in methods if a.all.wins.low > 0.5 and a.all.gain.low > 0.0]
    if not better:
        return [
            f"No arm is significantly better than {base.name}: these figures give no reason to choose one.",
            *_personal(result),
            *_losers(result, methods),
            *_broken_language(result, methods),
        ]
    best, *level = _first(result, better, "")
    if level:
        sentences = [
            f"Most reward: {_list([_named(a) for a in (best, *level)])}; on the same prompts and users the first is "
            "not significantly better than the others: choose by cost."
        ]
    else:
        sentences = [f"Most reward: {_named(best)}, {percent(best.all.wins)} % of duels won."]
    timed = [a for a in better if a.cost.needed is not None]
    if timed:
        cheapest = min(timed, key=lambda a: a.cost.needed or 0.0)
        minutes = f"{_minutes(cheapest.cost.needed)} minutes with all runs that it depends on"
        sentences.append(
            f"Least training of all significantly better than {base.name}: {_named(cheapest)}, in {minutes}."
        )
    sentences += _without_training(base, better)
    sentences += _closest(base, better)
    sentences += [*_personal(result), *_for_the_few(result, methods)]
    return [*sentences, *_losers(result, methods), *_broken_language(result, methods)]


def _without_training(base: Measured, better: Sequence[Measured]) -> list[str]:
    picks = [a for a in better if a.kind == "best of"]
    if not picks:
        return []
    cheapest = min(picks, key=lambda a: (a.cost.tokens or 0.0, -a.all.gain.value))
    price = ""
    if cheapest.cost.tokens and base.cost.tokens:
        price = f", at {cheapest.cost.tokens / base.cost.tokens:.1f} times the tokens of a response of {base.name}"
    return [f"Cheapest without training a policy: {_named(cheapest)}{price}."]


def _personal(result: Result) -> list[str]:
    sentences = []
    for generic, arm in result.known_by.items():
        wins = result.matrix.rates[arm, generic].user
        verdict = f"{arm} adapts to its users" if wins.low > 0.5 else f"{arm} is not shown to adapt to its users"
        sentences.append(f"{verdict}: it wins {percent(wins)} % of duels with its responses for the generic user.")
    return sentences


def _for_the_few(result: Result, methods: Sequence[Measured]) -> list[str]:
    if len(result.groups) < 2:
        return []
    few = list(result.groups)[-1]
    n = result.groups[few]
    best, *level = _first(result, methods, few)
    if level:
        return [f"For the group {few} ({counted(n, 'user')}) no arm is significantly better than all others."]
    return [f"For the group {few} ({counted(n, 'user')}) {best.name} is best: {signed(best.groups[few].gain)}."]


def _first(result: Result, arms: Sequence[Measured], group: str) -> list[Measured]:
    """The arm with the most reward, then those that are not significantly worse on the same prompts."""
    gains = {a.name: (a.groups[group] if group else a.all).gain.value for a in arms}
    best, *others = sorted(arms, key=lambda a: -gains[a.name])
    return [best, *(a for a in others if not result.leads[group][best.name, a.name].low > 0.0)]


def _closest(base: Measured, arms: Sequence[Measured]) -> list[str]:
    """The arm with the lowest KL divergence from the base, and those not significantly farther."""
    known = sorted(((abs(a.all.kl.value), a, a.all.kl) for a in arms if a.all.kl is not None), key=lambda x: x[0])
    if not known:
        return []
    _, nearest, kl = known[0]
    bound = "at most " if nearest.kind == "best of" else ""
    level = [a.name for _, a, other in known[1:] if nearest.kind != "best of" and not other.low > kl.high]
    beside = f"; {_list(level)} not significantly farther" if level else ""
    return [f"Closest to {base.name} of these: {nearest.name}, {bound}{kl.value:.2f} nats{beside}."]


def _losers(result: Result, methods: Sequence[Measured]) -> list[str]:
    sentences = []
    for group in result.groups if len(result.groups) > 1 else ():
        worse = [a for a in methods if a.groups[group].gain.high < 0.0]
        if worse:
            named = _list([f"{a.name} ({signed(a.groups[group].gain)})" for a in worse])
            sentences.append(f"Worse than {result.base} for the group {group}: {named}.")
    return sentences


def _broken_language(result: Result, methods: Sequence[Measured]) -> list[str]:
    base, sentences = result.arm(result.base), []
    for group in result.groups:
        of_base = base.groups[group].surprise
        each = {a.name: a.groups[group].surprise for a in methods}
        odd = [
            f"{name} {unsigned(e)}" for name, e in each.items() if of_base and e and e.value > of_base.value + _BROKEN
        ]
        if of_base and odd:
            sentences.append(
                f"Read the responses for the group {group} before you trust the figures: {base.name} finds their "
                f"language odd. Nats per token: its own {unsigned(of_base)}, {_list(odd)}."
            )
    return sentences


def headroom_section(found: Mapping[str, Headroom], shown: Sequence[str], unit: str) -> Section | None:
    """The share of the oracle headroom captured, with a column for each of the shown arms that has pools."""
    arms = [name for name in shown if name in found]
    if not arms:
        return None
    who = [one for one in PICKS if any(one in found[name].share for name in arms)]
    rows = tuple((one, *(percent(found[name].share.get(one)) for name in arms)) for one in who)
    rows += (("headroom", *(unsigned(found[name].headroom) for name in arms)),)
    notes = [_HEADROOM.format(unit=unit)]
    for name in arms:
        if found[name].share[ORACLE] is None:
            why = (
                "is 0: it rewards the responses of each pool alike"
                if found[name].headroom.value == 0
                else "is not finite"
            )
            notes.append(f"{name} has no share: the judge's headroom {why}.")
    return Section("Share of the oracle headroom captured, %", ("picked by", *arms), rows, tuple(notes))


def sections(result: Result) -> list[Section]:
    """The tables of rewards, cost, groups and win rates."""
    letters = labels(result)
    names = {a.name: f"{letters[a.name]}  {a.name}" for a in result.arms}
    rows = tuple((names[a.name], *_figures(a.all, a.kind), *_shares(a)) for a in result.arms)
    figures: tuple[str, ...] = (
        "arm",
        "gold reward",
        f"gain over {result.base}",
        "wins %",
        "KL, nats",
        "nats per token",
        "words",
    )
    header = (*figures, "empty %", "cut %")
    tables = [Section("Rewards", header, rows, (_HOW.format(base=result.base, unit=result.unit),))]
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
    cost_header = ("arm", "its run, minutes", "all runs, minutes", "tokens per response", "seconds per response")
    tables.append(Section("Cost", cost_header, cost, (_COST,)))
    for group, people in result.groups.items() if len(result.groups) > 1 else ():
        part = tuple((names[a.name], *_figures(a.groups[group], a.kind)) for a in result.arms)
        tables.append(Section(f"{group}: {counted(people, 'user')}", figures, part))
    tables += _by_user(result)
    rates, order = result.matrix.rates, result.matrix.arms
    wins = [[rates[a, b].user if a != b else None for b in order] for a in order]
    cells = tuple(
        (names[a], *("" if e is None else f"{100 * e.value:.0f}" for e in row))
        for a, row in zip(order, wins, strict=True)
    )
    against: tuple[str, ...] = ("wins % against", *(letters[name] for name in order))
    tables.append(
        Section(
            "Win rates",
            against,
            cells,
            (_MATRIX + (_LARGEST if len(order) < len(result.arms) else ""), *result.matrix.notes),
        )
    )
    return tables


def _by_user(result: Result) -> list[Section]:
    people = list(result.arms[0].lengths)
    if len(people) > _MAX_SHOWN_USERS:
        return []
    letters = labels(result)
    rows = tuple(
        (user, *(f"{value:.1f}" + (f" ± {error:.1f}" if math.isfinite(error) else "") for value, error in column))
        for user, column in ((user, [a.lengths[user] for a in result.arms]) for user in people)
    )
    return [Section("Words by user", ("user", *(letters[a.name] for a in result.arms)), rows, (_WORDS,))]


def length_panels(result: Result) -> list[LengthPanel]:
    """Words by user (the paper's Figure 3) of the base and of trained arms; empty if there are too many users."""
    arms = [a for a in result.arms if a.kind in ("base", "prompted", "trained", "generic")]
    people, groups = list(arms[0].lengths), list(result.groups)
    if len(people) > _MAX_SHOWN_USERS or len(arms) < 2:
        return []
    sizes = [result.groups[group] for group in groups]
    group_of = [group for group, n in zip(groups, sizes, strict=True) for _ in range(n)]
    return [
        LengthPanel(a.name, tuple(people), tuple(group_of), tuple(a.lengths[user] for user in people)) for a in arms
    ]


_HOW = (
    "Mean over users of each one's mean, with 95% intervals by bootstrap over users and the prompts that they share "
    "(conservative); reward {unit}. Wins are duels with {base}'s response to the same prompt, a tie is half a win. "
    "KL: log pi - log pi of {base} over the sampled responses; for best of N the upper bound log N - (N - 1) / N (≤). "
    "Nats per token: log loss of {base} on the words of responses that are not empty; far above its own is broken "
    "language. Cut: ended at max_new_tokens."
)
_HEADROOM = (
    "For the largest N of each best-of arm (others are in metrics.json). Headroom: the judge's reward of its own pick "
    "of the N responses (the oracle) minus that of a random one, mean over users, {unit}. Share: of the mean "
    "headroom, the mean part that a pick captures. Intervals as for rewards."
)
_COST = (
    "Training on this machine: its run was trained for the arm itself (best of N trains none); all runs also counts "
    "those that it depends on. Tokens and seconds are per response, sampled in batches; best of N pays for N "
    "responses, sampled a pool at a time, and for scoring them."
)
_WORDS = "Mean and standard error over a user's prompts."
_MATRIX = "Mean over users, a tie is half a win; intervals are in metrics.json."
_LARGEST = " Of best of N only the largest N."


def panels(result: Result) -> list[ArmPanel]:
    """Gain against KL divergence: all users, then each group."""
    shown = {"everybody": [a.all for a in result.arms]}
    if len(result.groups) > 1:
        shown |= {f"{g}, {counted(n, 'user')}": [a.groups[g] for a in result.arms] for g, n in result.groups.items()}
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
    responses: Mapping[str, Sequence[str]],
    gold: Mapping[str, Array],
) -> list[Sample]:
    """Some prompts with the responses of all arms: the same prompts for one user of each group."""
    shown: list[Sample] = []
    count = dict.fromkeys(groups.values(), 0)
    for i, c in enumerate(cases):
        group = groups[c.user_id]
        prompt = "\n".join(m.content for m in as_messages(c.prompt))
        if count[group] < _SAMPLED and all(prompt != s.prompt or group not in s.who for s in shown):
            count[group] += 1
            rows = tuple((name, texts[i] or "(nothing)", f"{gold[name][i]:+.1f}") for name, texts in responses.items())
            shown.append(Sample(prompt, f"{c.user_id} ({group})", rows))
    return shown


def signed(e: Estimate) -> str:
    """A gain with its interval."""
    value, low, high = (round(x, 2) + 0.0 for x in (e.value, e.low, e.high))  # never -0.00
    return f"{value:+.2f}" + (f" [{low:+.2f}, {high:+.2f}]" if math.isfinite(e.low) else "")


def unsigned(e: Estimate) -> str:
    """As `signed`, without a plus."""
    return signed(e).replace("+", "")


def _figures(f: Figures, kind: str) -> tuple[str, str, str, str, str, str]:
    value, length = f"{f.gold.value:+.2f}", _length(f.words)
    surprise = "" if f.surprise is None else unsigned(f.surprise)
    surprise += f" ({100 * f.empty:.0f}% empty)" if f.empty else ""
    if kind == "base":
        return value, "", "", "0", surprise, length
    kl = "" if f.kl is None else f"≤ {f.kl.value:.2f}" if kind == "best of" else unsigned(f.kl)
    return value, signed(f.gain), percent(f.wins), kl, surprise, length


def _length(e: Estimate) -> str:
    return f"{e.value:.1f}" + (f" [{e.low:.1f}, {e.high:.1f}]" if math.isfinite(e.low) else "")


def _shares(arm: Measured) -> tuple[str, str]:
    return f"{100 * arm.all.empty:.0f}", "" if arm.cut is None else f"{100 * arm.cut:.0f}"


def _named(arm: Measured) -> str:
    return f"{arm.name}, {signed(arm.all.gain)}"


def _line(arm: Measured) -> str:
    return arm.name.rpartition(" ")[0] if arm.kind == "best of" else ""


def _minutes(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds / 60:.1f}"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _list(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
