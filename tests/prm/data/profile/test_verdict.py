"""The verdict on planted people, and its reasons."""

import random
from dataclasses import replace

import pytest

from prm.data.comparison import Comparison
from prm.data.profile.counts import UserCounts
from prm.data.profile.verdict import amount, profile_verdict
from prm.metrics import Estimate
from tests.planted import opposed_people
from tests.prm.data.profile.logs import described, judged, many


@pytest.mark.parametrize(
    ("n_prompts", "level"), [(9, "no"), (29, "thin"), (30, "enough"), (99, "enough"), (100, "enough")]
)
def test_verdict_on_planted_camps(n_prompts: int, level: str) -> None:
    """It follows the probe, which foretells half of all votes: 30 judgements are few, and never "may gain little"."""
    found = described(opposed_people(n_prompts, 0))
    verdict = found.verdict
    assert verdict.level == level
    if level != "no":
        assert found.differences.predicted is not None
        assert found.differences.predicted.value == pytest.approx(0.5, abs=0.05)
        assert "A personal model is worth training, by the +" in verdict.reasons[-1]
        assert ("'users.kind: bayes' or 'cluster'" in verdict.reasons[-1]) == (n_prompts < 30)
    assert ("differ systematically: those who agreed" in verdict.reasons[1]) == (n_prompts > 10)
    assert "'prm evaluate'" in verdict.reasons[-1]  # few comparisons of people who differ this much may be enough


def test_verdict_on_people_who_all_agree() -> None:
    rows = [c for user in "abcd" for c in many(user, 120)]
    verdict = described(rows).verdict
    assert verdict.level == "no"
    assert "100.0% [100.0, 100.0]" in verdict.reasons[1]
    assert "'prm evaluate'" not in verdict.reasons[-1]
    alone = [c for user in "abcd" for c in many(user, 120, prompt=user)]  # nobody shares a pair
    assert described(alone).verdict.level == "thin"


def test_agreement_on_a_few_shared_pairs_settles_nothing() -> None:
    """A tenth of the log or more must be shared before everyone's agreement says that nobody differs."""
    own = [c for user in "abcdef" for c in many(user, 120, prompt=user)]
    shared = [c for user in "abcdef" for c in many(user, 10)]
    assert described([*own, *shared]).verdict.level == "thin"
    assert described([*own[:300], *shared]).verdict.level == "no"


def test_verdict_names_what_becomes_of_the_others() -> None:
    verdict = described(opposed_people(110, 0) + [c for u in range(5) for c in many(f"s{u}", 10)]).verdict
    assert verdict.level == "enough"
    assert "4 of 9 users (44.4%)" in verdict.reasons[0]
    assert "hold 89.8% of them" in verdict.reasons[0]  # 440 of 490
    assert "10.2% of the comparisons" in verdict.reasons[0]


def test_the_amount_alone_is_said_as_in_the_verdict() -> None:
    rows = [*many("a", 30), judged("a", "tie", p_chosen=0.5), *many("b", 3), judged("c", "tie", p_chosen=0.5)]
    assert amount(rows) == described(rows).verdict.reasons[0]
    assert amount(rows).startswith("1 of 3 users")


def test_verdict_where_those_with_ample_hold_less_than_half() -> None:
    camps = opposed_people(100, 0)
    crowd = [c for u in range(41) for c in many(f"s{u}", 10, prompt=f"s{u}-")]
    assert described(camps + crowd[:400]).verdict.level == "enough"
    assert described(camps + crowd).verdict.level == "thin"


def test_verdict_says_that_formats_come_first() -> None:
    """The known fault: rejected answers rendered as a Python list."""
    rows = [Comparison("a", f"q{i}", f"A fox {i}.", f"['A dog {i}.']") for i in range(40)]
    sound = [Comparison("b", f"z{i}", f"An old fox {i}.", f"A lazy dog {i}.") for i in range(40)]
    found = described([*rows, *sound])
    assert [f.name for f in found.artefacts.flagged] == ["is a Python list or dict"]
    assert any("formats" in reason and "50.0%" in reason for reason in found.verdict.reasons)
    assert not any("formats" in reason for reason in described(sound).verdict.reasons)


def test_verdict_on_one_person() -> None:
    verdict = described(many("a", 500)).verdict
    assert verdict.level == "no"
    assert verdict.reasons[0].startswith("One user")
    assert "unclear" in verdict.reasons[1]


def test_people_who_go_by_length_more_or_less_are_not_called_opposed() -> None:
    for seed in range(5):
        draw = random.Random(seed)
        odds = [0.95 if u % 2 else 0.55 for u in range(10)]
        rows = [judged(f"u{u}", f"q{i}", draw.random() < odds[u]) for u in range(10) for i in range(120)]
        verdict = described(rows).verdict
        assert verdict.level == "thin"
        assert "may be care as well as taste" in verdict.reasons[1]


def test_a_small_or_unsure_gain_of_the_probe_leaves_the_verdict_to_the_amounts() -> None:
    """The same people and differences, at both sides of 5 points and of 100 judgements."""
    found = described(opposed_people(60, 0))
    ample = described(opposed_people(100, 0))

    def level(low: float, value: float, people: UserCounts = found.people) -> tuple[str, str]:
        assert found.differences.neighbours is not None
        near = replace(found.differences.neighbours, gain=Estimate(value, low, value + (value - low)))
        verdict = profile_verdict(people, found.overlap, replace(found.differences, neighbours=near))
        return verdict.level, verdict.reasons[-1]

    assert level(0.05, 0.06)[0] == "enough"
    assert level(0.049, 0.06) == ("thin", level(0.0, 0.06)[1])
    assert level(0.049, 0.06)[1].startswith("A personal model may gain little")
    assert level(0.02, 0.025, ample.people)[0] == "enough"
    assert level(-0.01, 0.025, ample.people)[0] == "thin"


@pytest.mark.parametrize(
    ("value", "low", "high", "claim"),
    [
        (0.053, 0.008, 0.097, "better"),
        (0.053, 0.03, 0.076, "better"),
        (0.01, -0.02, 0.04, "unclear"),
        (-0.05, -0.09, -0.01, "worse"),
        (0.5, float("-inf"), float("inf"), "unclear"),
    ],
)
def test_what_is_said_of_the_probe_follows_its_interval(value: float, low: float, high: float, claim: str) -> None:
    """ "No better" stood beside +5.3 [+0.8, +9.7]."""
    found = described(opposed_people(60, 0))
    assert found.differences.neighbours is not None
    near = replace(found.differences.neighbours, gain=Estimate(value, low, high))
    said = profile_verdict(found.people, found.overlap, replace(found.differences, neighbours=near)).reasons[1]
    about = said[said.index("those who agreed") - 10 :]
    others = {"better", "unclear", "worse"} - {claim}
    assert claim in about
    assert claim == "unclear" or not any(word in about for word in others)
    assert f"{100 * value:+.1f} points" in about
    assert "inf" not in said
    assert ("No sure sign" in said) == (low <= 0.0)


@pytest.mark.parametrize(("p", "words"), [(0.001, "length differs"), (0.03, "may differ"), (0.4, "chance explains")])
def test_what_is_said_of_length_follows_its_test(p: float, words: str) -> None:
    found = described([judged(f"u{u}", f"q{i}", (i * u) % 3 == 0) for u in range(4) for i in range(40)])
    taste = found.differences.length_taste
    assert taste is not None
    differences = replace(found.differences, length_taste=replace(taste, p=p, opposed=False), neighbours=None)
    assert words in profile_verdict(found.people, found.overlap, differences).reasons[1]


@pytest.mark.parametrize(("low", "level"), [(0.94, "thin"), (0.96, "no")])
def test_people_say_the_same_where_the_interval_says_so(low: float, level: str) -> None:
    found = described([c for user in "abcd" for c in many(user, 120)])
    assert found.differences.agreement is not None
    agreement = replace(found.differences.agreement, agree=Estimate(0.97, low, 0.99))
    assert profile_verdict(found.people, found.overlap, replace(found.differences, agreement=agreement)).level == level


def test_certain_tastes_for_length_need_few_comparisons() -> None:
    """Twelve users with 35 comparisons each, of which nobody shares a prompt: half like the longer one."""
    rows = [judged(f"u{u}", f"{u} q{i}", (u % 2 == 0) != (i % 10 == 0)) for u in range(12) for i in range(35)]
    found = described(rows)
    assert found.differences.opposed_in_length
    assert found.differences.predicted is None
    assert found.verdict.level == "enough"
