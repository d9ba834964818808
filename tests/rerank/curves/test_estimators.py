"""Best of k by hand, by all subsets, and in the limits that are known."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from rerank.curves.best_of import GENERIC, LONGEST, ORACLE, PERSONAL, RANDOM, UNIFORM, best_of, gains
from rerank.curves.estimators import distinct, kl_bound, picks, win_bound, win_rates
from rerank.curves.report_text import notes, panels, sections
from rerank.ranking.candidates import Pool


def test_three_answers_by_hand() -> None:
    """Of 3: any one; the best of 2 is the best in 2 of 3 pairs, the second in one; of all 3 the best."""
    assert_allclose(picks([0.3, -1.0, 2.0]), [[1 / 3] * 3, [1 / 3, 0, 2 / 3], [0, 0, 1.0]], atol=1e-12)
    # gold 5, 1, 3: a random answer is worth 3, the best of 2 by the proxy (5 + 2 * 3) / 3
    assert_allclose(picks([0.3, -1.0, 2.0]) @ [5.0, 1.0, 3.0], [3, 11 / 3, 3], atol=1e-12)
    # k = 2: pairs {0, 1} -> 0 against 2 wins, {0, 2} -> 2 against 1 wins, {1, 2} -> 2 against 0 loses
    assert_allclose(win_rates([0.3, -1.0, 2.0], [5.0, 1.0, 3.0]), [1 / 2, 2 / 3], atol=1e-12)


def test_ties_by_hand() -> None:
    """Two equal best: the better of two is either in turn, the lowest never."""
    assert_allclose(picks([1.0, 1.0, 0.0]), [[1 / 3] * 3, [1 / 2, 1 / 2, 0], [1 / 2, 1 / 2, 0]], atol=1e-12)
    # the judge sees answers 0 and 1 alike: {0, 1} beats 2, {0, 2} and {1, 2} tie
    assert_allclose(win_rates([1.0, 1.0, 0.0], [1.0, 1.0, 0.0]), [1 / 2, 2 / 3], atol=1e-12)
    assert_allclose(win_rates([0.0, 0.0, 0.0], [1.0, 2.0, 3.0]), [1 / 2, 1 / 2], atol=1e-12)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=7))
def test_picks_and_wins_are_those_of_all_subsets(pairs: list[tuple[int, int]]) -> None:
    r, g = np.array(pairs, np.float64).T
    n = len(r)
    for k in range(1, n + 1):
        chosen, wins = np.zeros(n), []
        for subset in combinations(range(n), k):
            best = [i for i in subset if r[i] == max(r[list(subset)])]
            chosen[best] += 1 / len(best)
            others = [j for j in range(n) if j not in subset]
            wins += [np.mean([(g[i] > g[j]) + 0.5 * (g[i] == g[j]) for i in best]) for j in others]
        total = sum(1 for _ in combinations(range(n), k))
        assert_allclose(picks(r)[k - 1], chosen / total, atol=1e-12)
        if k < n:
            assert_allclose(win_rates(r, g)[k - 1], np.mean(wins), atol=1e-12)


def test_the_judge_as_its_own_proxy_wins_as_often_as_can_be() -> None:
    """And a proxy that is its opposite as seldom; one larger pool does not overflow."""
    g = np.random.default_rng(0).normal(size=400)
    k = np.arange(1, 400)
    assert_allclose(win_rates(g, g), k / (k + 1), rtol=1e-8)
    assert_allclose(win_rates(-g, g), 1 / (k + 1), rtol=1e-6)
    assert_allclose(picks(g).sum(1), 1.0, rtol=1e-8)
    assert_allclose((picks(g) @ g)[[0, -1]], [g.mean(), g.max()], atol=1e-8)
    assert_allclose(win_bound(k), k / (k + 1))


def test_bounds_and_distinct_texts() -> None:
    assert_allclose(kl_bound([1, 2, 16]), [0.0, np.log(2) - 0.5, np.log(16) - 15 / 16])
    # a, a, b: two of them are a pair of equal ones in 1 of 3
    assert_allclose(distinct(["a", "b", "a"]), [1, 5 / 3, 2])
    assert_allclose(distinct(["", "x\x00", "x"]), [1, 2, 3])


def test_a_reward_that_is_no_number_is_an_error() -> None:
    with pytest.raises(ValueError, match="NaN"):
        picks([1.0, float("nan")])


def pools(people: int = 3, prompts: int = 30, n: int = 9, noise: float = 0.0) -> list[list[Pool]]:
    """Answers whose true worth differs by person; what the model sees of it is blurred by `noise`."""
    draw = np.random.default_rng(1)
    found = []
    for i in range(prompts):
        shared = draw.normal(size=n)
        texts, row = tuple(f"{j % (n - 1)}" for j in range(n)), []
        for user in range(people):
            gold = shared + draw.normal(size=n)
            row.append(Pool(f"p{user}", f"{i}?", texts, gold + noise * draw.normal(size=n), shared, gold))
        found.append(row)
    return found


def test_curves_of_a_perfect_model_are_the_judges() -> None:
    result = best_of(pools())
    personal, generic, oracle = (result.pooled[way] for way in (PERSONAL, GENERIC, ORACLE))
    assert personal == oracle
    assert result.believed == personal.gain
    assert result.n == result.peak == 8
    assert personal.gain[0].value == pytest.approx(0.0, abs=1e-12)
    assert [e.value for e in personal.wins] == pytest.approx([k / (k + 1) for k in range(1, 9)])
    assert all(p.value > g.value + 0.2 for p, g in zip(personal.gain[3:], generic.gain[3:]))
    # the best of 8 normal answers is 1.424 standard deviations above their mean; these have a variance of 2
    assert personal.gain[-1].low < 1.4236 * 2**0.5 < personal.gain[-1].high
    # of 9 answers two are equal: 8 of them hold both in 28 of 36 draws
    assert (result.distinct[0], result.distinct[-1]) == (pytest.approx(1), pytest.approx(8 - 28 / 36))
    assert result.to_dict()["peak"] == 8


def test_pooled_is_the_mean_over_people() -> None:
    result = best_of(pools(noise=1.0))
    for way in (PERSONAL, GENERIC, ORACLE):
        curve = result.pooled[way]
        own = [person[way].gain[-1].value for person in result.per_user.values()]
        assert curve.gain[-1].value == pytest.approx(np.mean(own))
    assert result.believed[-1].value > result.pooled[PERSONAL].gain[-1].value + 0.2  # what it likes in itself is noise


def test_over_optimisation_is_said() -> None:
    """A model that is right but for its highest rewards, which are mistakes."""
    made = []
    for row in pools(people=1, n=17):
        pool = row[0]
        rewards = np.where(pool.gold == pool.gold.min(), 9.0, pool.gold)
        made.append([Pool(pool.user, pool.prompt, pool.texts, rewards, pool.generic, pool.gold)])
    result = best_of(made)
    assert 1 < result.peak < 16
    assert any(note.startswith(f"warning: the gain is highest at best of {result.peak} ") for note in notes(result))
    assert not any(note.startswith("warning") for note in notes(best_of(pools())))


def test_a_top_within_the_noise_is_no_warning() -> None:
    result = best_of(pools())
    curve = result.pooled[PERSONAL]
    last = curve.gain[-1]
    better = replace(last, value=last.value + 0.01)
    top = replace(result, pooled=result.pooled | {PERSONAL: replace(curve, gain=(*curve.gain[:6], better, last))})
    assert top.peak == 7
    (line,) = [note for note in notes(top) if "highest at best of 7" in note]
    assert not line.startswith("warning")
    assert [row[0] for row in sections(top)[1].rows] == ["1", "2", "4", "7", "8"]
    assert any(note.startswith("warning: too few prompts") for note in notes(best_of(pools()[:19])))


def test_tables_and_panels() -> None:
    share, gain, wins, users = sections(best_of(pools(noise=1.0)))
    assert [row[0] for row in share.rows] == [PERSONAL, GENERIC, LONGEST, RANDOM, ORACLE]  # no uniform model here
    assert share.rows[-1][1] == "100.0 [100.0, 100.0]"
    assert share.rows[-2][1:3] == ("0.0 [0.0, 0.0]", "+0.00 [+0.00, +0.00]")
    assert [row[0] for row in gain.rows] == ["1", "2", "4", "8"]
    assert gain.rows[0][3] == "+0.00 [+0.00, +0.00]"  # rounding never makes it -0.00
    assert [row[0] for row in users.rows] == ["p0", "p1", "p2"]
    assert all(len(row) == len(part.header) for part in (share, gain, wins, users) for row in part.rows)
    assert wins.rows[-1][-1] == "88.9"
    assert len(sections(best_of(pools(people=1)))) == 3
    shares, drawn, won = panels(best_of(pools()))
    assert list(shares.lines) == [PERSONAL, GENERIC, LONGEST]
    assert shares.lines[PERSONAL][0] is None
    assert shares.lines[PERSONAL][-1].value == pytest.approx(100.0)  # type: ignore[union-attr]
    assert won.lines[ORACLE][-1].value == pytest.approx(800 / 9)  # type: ignore[union-attr]
    assert list(drawn.lines) == [PERSONAL, GENERIC, ORACLE, "believed (own logits)"]


def pool(personal: list[float], gold: list[float], texts: str = "a,b c,d e f", user: str = "p0") -> Pool:
    """Three responses of one, two and three words; the uniform model prefers the second."""
    generic, same = np.zeros(3), np.array([0.0, 1.0, 0.5])
    return Pool(user, "?", tuple(texts.split(",")), np.array(personal), generic, np.array(gold), same)


def share(made: list[list[Pool]], k: int = 2) -> dict[str, float | None]:
    found = {name: curve.share[k - 1] for name, curve in best_of(made).pooled.items()}
    return {name: None if e is None else e.value for name, e in found.items()}


def test_share_of_headroom_by_hand() -> None:
    """Best of 2 of gold 5, 1, 3: a random one is worth 3, the oracle (5 + 5 + 3) / 3 = 13 / 3, a headroom of 4 / 3."""
    one = pool([0.3, -1.0, 2.0], [5.0, 1.0, 3.0])
    found = share([[one]])
    assert found[PERSONAL] == pytest.approx((11 / 3 - 3) / (4 / 3))  # picks 3, 3 and 5 of the three pairs
    assert found[UNIFORM] == pytest.approx((5 / 3 - 3) / (4 / 3))  # 1, 1 and 3: worse than a random one
    assert found[LONGEST] == pytest.approx((7 / 3 - 3) / (4 / 3))  # 3, 3 and 1
    assert found[GENERIC] == pytest.approx(0.0, abs=1e-12)  # all alike: any of the two
    assert found[RANDOM] == pytest.approx(0.0, abs=1e-12)
    assert found[ORACLE] == 1.0
    assert share([[one]], k=1) == dict.fromkeys(found)
    # the ratio of means: a second prompt with a tenth of the headroom, of which the pick captures all
    easy = pool([3.0, 1.0, 2.0], [0.5, 0.1, 0.3])
    assert share([[one], [easy]])[PERSONAL] == pytest.approx((2 / 3 + 4 / 30) / (4 / 3 + 4 / 30))


def test_share_of_headroom_knows_no_order_scale_or_origin() -> None:
    made = pools(noise=1.0)
    whole = best_of(made).pooled[PERSONAL].share[4:]
    order = np.random.default_rng(3).permutation(9)

    def changed(one: Pool) -> Pool:
        texts = tuple(one.texts[i] for i in order)
        return Pool(one.user, one.prompt, texts, one.personal[order], one.generic[order], 3.0 * one.gold[order] - 40.0)

    again = best_of([[changed(one) for one in row] for row in made]).pooled[PERSONAL].share[4:]
    for a, b in zip(whole, again, strict=True):
        assert a is not None
        assert b is not None
        assert_allclose([a.value, a.low, a.high], [b.value, b.low, b.high])
        assert a.low < a.value < a.high < 1.0


def test_without_headroom_there_is_no_share() -> None:
    """Rewards that are all alike, also where their mean is rounded; beside other pools such a pool adds nothing."""
    flat, some = pool([1.0, 2.0, 3.0], [0.1] * 3), pool([0.3, -1.0, 2.0], [5.0, 1.0, 3.0])
    found = best_of([[flat], [flat]])
    assert set(share([[flat], [flat]]).values()) == {None}
    assert found.to_dict()["headroom_share"] == dict.fromkeys(found.pooled)
    assert [len(panels(found)), sections(found)[0].rows[0][1]] == [2, "-"]
    assert any("no share" in note and "alike" in note for note in sections(found)[0].notes)
    assert share([[flat], [some]]) == share([[some]])
    mean = np.array([0.1] * 3).mean()
    assert gains([1.0, 2.0, 3.0], np.array([0.1] * 3)).tolist() == [0.0] * 3 != [0.1 - mean] * 3
    assert gains([1.0, 2.0], np.array([0.0, np.inf])).tolist() == [np.inf] * 2


def test_users_weigh_alike_and_the_interval_is_over_them() -> None:
    """Two people with one prompt: the oracle is always 1; the interval ends at each one's own share."""
    first, second = pool([0.3, -1.0, 2.0], [5.0, 1.0, 3.0], user="a"), pool([9.0, 1.0, 2.0], [5.0, 1.0, 3.0], user="b")
    found = best_of([[first, second]]).pooled
    personal, oracle = found[PERSONAL].share[1], found[ORACLE].share[1]
    assert personal is not None
    assert oracle is not None
    assert (personal.value, personal.low, personal.high) == pytest.approx((0.75, 0.5, 1.0))
    assert (oracle.value, oracle.low, oracle.high) == (1.0, 1.0, 1.0)
