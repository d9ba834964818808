"""Agreement, length taste and dissent, worked out by hand."""

import random
from math import comb

import pytest
from scipy import stats

from prm.data.comparison import Comparison
from prm.data.profile.arrays import encode_log
from prm.data.profile.heterogeneity import count_votes, find_length_taste
from prm.metrics import ratio
from tests.prm.data.profile.logs import LONG, SHORT, described, judged, many


def test_agreement_on_shared_pairs() -> None:
    """a, b against c on one pair: 1 of 3 agree; a, b on another: 1 of 1; the rest says nothing."""
    rows = [judged("a", "1"), judged("b", "1"), judged("c", "1", False), judged("a", "2"), judged("b", "2")]
    rows += [judged("c", "2", p_chosen=0.5)]  # a tie agrees with nobody
    rows += [judged("a", "3"), judged("a", "3", time=1.0)]  # one person
    rows += [judged("b", "3"), judged("b", "3", False)]  # both ways: no vote
    rows += [Comparison("c", "other prompt", f"{SHORT} 1", f"{LONG} 1")]
    found = described(rows)
    agreement = found.differences.agreement
    assert agreement is not None
    assert (agreement.pairs, agreement.comparisons, agreement.agree.value) == (2, 4, 0.5)
    assert agreement.agree == ratio([1, 1], [3, 1])
    overlap = found.overlap
    assert (overlap.prompts, overlap.shared_prompts, overlap.pairs, overlap.shared_pairs) == (4, 3, 4, 3)
    assert overlap.people_per_prompt == ((3 + 3 + 2 + 1) / 4, 2.5, 3)
    assert overlap.share_of_comparisons == pytest.approx(10 / 11)
    assert found.faults.contradictions == 1
    assert described(many("a", 3)).differences.agreement is None


def test_said_more_often_one_way_is_that_vote() -> None:
    rows = [judged("a", "1"), judged("a", "1", time=1.0), judged("a", "1", False), judged("b", "1")]
    agreement = described(rows).differences.agreement
    assert agreement is not None
    assert agreement.agree.value == 1.0


def test_length_taste_of_two_opposed_people_within_prompts() -> None:
    """Of each prompt one of two wins: mean 5, variance 2.5; each term is 25/2.5, halved for one degree of freedom."""
    taste = described(many("a", 10) + many("b", 10, False)).differences.length_taste
    assert taste is not None
    assert (taste.people, taste.within_prompts, taste.longer, taste.shorter) == (2, True, 1, 1)
    assert taste.chi2 == pytest.approx(10.0)
    assert taste.p == pytest.approx(stats.chi2.sf(10.0, 1))
    assert taste.rates == (1, *[0] * 8, 1)
    chance = [comb(10, k) / 1024 * 2 for k in range(11)]
    assert taste.expected == pytest.approx((*chance[:9], chance[9] + chance[10]))
    assert taste.by_chance == pytest.approx(0.05)
    assert not taste.opposed  # one of two at 1 in 1,024 may be chance yet; at 1 in 4,096 no more
    longer = described(many("a", 12) + many("b", 12, False)).differences.length_taste
    assert longer is not None
    assert longer.opposed


def test_length_taste_without_shared_prompts() -> None:
    """The chi-square test of a 2x2 table, 10:0 and 0:10, less one in 20: 19."""
    taste = described(many("a", 10) + many("b", 10, False, prompt="z")).differences.length_taste
    assert taste is not None
    assert not taste.within_prompts
    assert taste.chi2 == pytest.approx(19.0)


def test_length_taste_is_not_what_prompts_explain() -> None:
    """Two people like them long, two short, but on other prompts, where all who judged said so."""
    rows = [c for user in "ab" for c in many(user, 12)] + [c for user in "cd" for c in many(user, 12, False, "z")]
    assert described(rows).differences.length_taste is None
    assert described(many("a", 9) + many("b", 9, False)).differences.length_taste is None


def test_length_taste_by_chance_alone() -> None:
    draw = random.Random(3)
    rows = [judged(f"u{u}", f"q{i}", draw.random() < 0.7) for u in range(60) for i in range(40)]
    taste = described(rows).differences.length_taste
    assert taste is not None
    assert taste.p > 0.01
    assert taste.longer > 20
    assert not taste.opposed


def test_a_handful_of_many_is_not_opposed() -> None:
    rows = [c for u in range(150) for c in many(f"u{u}", 20)] + many("z", 20, False) + many("y", 20, False)
    taste = described(rows).differences.length_taste
    assert taste is not None
    assert (taste.longer, taste.shorter, taste.opposed) == (150, 2, False)


def test_length_taste_is_symmetric() -> None:
    """Longer and shorter are names only: swapping every choice swaps the counts and leaves the test alone."""
    draw = random.Random(5)
    rows = [judged(f"u{u}", f"q{i}", draw.random() < u / 8) for u in range(9) for i in range(20)]
    swapped = [Comparison(c.user_id, c.prompt, c.rejected, c.chosen) for c in rows]
    one, other = (find_length_taste(encode_log(part)) for part in (rows, swapped))
    assert one is not None
    assert other is not None
    assert one.chi2 == pytest.approx(other.chi2)
    assert (one.longer, one.shorter) == (other.shorter, other.longer)


def test_dissent_of_two_who_always_go_against_ten() -> None:
    rows = [c for u in range(12) for c in many(f"u{u:02}", 20, longer=u >= 2)]
    dissent = described(rows).differences.dissent
    assert dissent is not None
    assert (dissent.people, dissent.rate, dissent.correlation) == (12, pytest.approx(1 / 6), pytest.approx(1.0))
    assert dissent.p < 1e-6
    assert described([c for c in rows if c.user_id < "u09"]).differences.dissent is None
    # six against five: without their own vote the six see no majority, and five people are too few
    assert described([c for u in range(11) for c in many(f"u{u}", 20, longer=u >= 5)]).differences.dissent is None


def test_votes_are_the_same_whichever_way_a_pair_stands() -> None:
    votes = count_votes(encode_log([judged("a", "1"), judged("b", "1", False), judged("b", "2", p_chosen=0.5)]))
    assert votes.vote.tolist() == [1, -1]  # "a long answer" sorts before "no"
    assert len(set(votes.pair.tolist())) == 1
