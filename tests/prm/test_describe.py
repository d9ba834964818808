"""What a log holds, in numbers worked out by hand on small ones."""

import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from math import comb, inf
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from prm.backbones import load_tokenizer
from prm.cli import main
from prm.comparison import Comparison, Message
from prm.describe import Description, describe
from prm.describe.differences import Votes, count_votes, find_dissent, find_length_taste
from prm.describe.log import encode_log, interval
from prm.describe.neighbours import _foretell, find_neighbours
from prm.describe.people import count_people
from prm.describe.tokens import measure_tokens
from prm.describe.words import sections
from prm.files import write_jsonl
from prm.metrics import estimate, ratio
from prm.report import write_description
from prm.sources.feedback import Feedback
from prm.tokens import TextEncoder
from tests.conftest import WORDS
from tests.planted import opposed_people
from tests.prm.test_cli import error_of

LONG, SHORT = "a long answer indeed", "no"


def log_of(comparisons: Sequence[Comparison], **faults: object) -> Feedback:
    n = len(comparisons)
    counts = {"rows": Counter(used=n), "pairs": Counter(kept=n), "rule": "each row is one", "skipped": [], "notes": []}
    return Feedback(list(comparisons), **counts | faults)  # type: ignore[arg-type]


def described(comparisons: Sequence[Comparison]) -> Description:
    return describe(log_of(comparisons), None)


def judged(user: str, prompt: str, longer: bool = True, **more: object) -> Comparison:
    """A long answer against a short one, which differ from prompt to prompt."""
    pair = (f"{LONG} {prompt}", f"{SHORT} {prompt}")
    return Comparison(user, prompt, *(pair if longer else pair[::-1]), **more)  # type: ignore[arg-type]


def many(user: str, n: int, longer: bool = True, prompt: str = "q") -> list[Comparison]:
    return [judged(user, f"{prompt}{i}", longer) for i in range(n)]


def test_comparisons_per_person_leave_ties_aside() -> None:
    rows = [*many("a", 4), judged("a", "tie", p_chosen=0.5), judged("b", "q1"), judged("c", "tie", p_chosen=0.5)]
    people = described(rows).people
    assert (people.people, people.comparisons, people.ties, people.most) == (3, 7, 2, 4)
    assert [tuple(asdict(b).values()) for b in people.histogram if b.people] == [
        ("0", 1, pytest.approx(1 / 3), 0.0),
        ("1", 1, pytest.approx(1 / 3), 0.2),
        ("2-4", 1, pytest.approx(1 / 3), 0.8),
    ]
    assert people.quartiles == (0.5, 1.0, 2.5)  # of 0, 1, 4
    assert people.median_answers == 2.0  # of 10, 2, 2


@pytest.mark.parametrize(
    ("n", "label"), [(4, "2-4"), (5, "5-9"), (9, "5-9"), (10, "10-29"), (299, "100-299"), (300, "300+")]
)
def test_bins_hold_their_edges(n: int, label: str) -> None:
    histogram = count_people(encode_log(many("a", n))).histogram
    assert [b.label for b in histogram if b.people] == [label]
    assert [b.label for b in histogram] == ["1", "2-4", "5-9", "10-29", "30-99", "100-299", "300+"]


def test_who_has_enough() -> None:
    people = count_people(encode_log([*many("a", 29), *many("b", 30), *many("c", 99), *many("d", 100)]))
    assert (people.enough.people, people.enough.share_of_people) == (3, 0.75)
    assert people.enough.share_of_comparisons == pytest.approx(229 / 258)
    assert (people.ample.people, people.ample.share_of_comparisons) == (1, pytest.approx(100 / 258))


def test_longer_answer_ties_and_equal_lengths_aside() -> None:
    rows = [*many("a", 3), *many("b", 1, longer=False), judged("a", "t", p_chosen=0.5)]
    rows += [Comparison("b", "e", "two words", "just two")]
    found = described(rows).longer_won
    assert found is not None
    assert (found.comparisons, found.share.value) == (4, 0.75)
    assert found.share == estimate([1, 1, 1, 0], ["a", "a", "a", "b"])  # people are drawn, not pairs
    assert described([Comparison("b", "e", "two words", "just two")]).longer_won is None


def test_answer_shown_first() -> None:
    rows = [judged("a", "1", chosen_first=True), judged("a", "2", chosen_first=False), judged("b", "3")]
    rows += [judged("b", "4", chosen_first=True), judged("b", "5", chosen_first=True, p_chosen=0.5)]
    found = described(rows).first_won
    assert found is not None
    assert (found.comparisons, found.share.value) == (3, pytest.approx(2 / 3))
    assert described(many("a", 2)).first_won is None


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
    assert (agreement.pairs, agreement.judgements, agreement.agree.value) == (2, 4, 0.5)
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


def test_dissent_of_two_who_always_go_against_ten() -> None:
    rows = [c for u in range(12) for c in many(f"u{u:02}", 20, longer=u >= 2)]
    dissent = described(rows).differences.dissent
    assert dissent is not None
    assert (dissent.people, dissent.rate, dissent.correlation) == (12, pytest.approx(1 / 6), pytest.approx(1.0))
    assert dissent.p < 1e-6
    assert described([c for c in rows if c.user_id < "u09"]).differences.dissent is None
    # six against five: without their own vote the six see no majority, and five people are too few
    assert described([c for u in range(11) for c in many(f"u{u}", 20, longer=u >= 5)]).differences.dissent is None


def test_neighbours_of_two_camps() -> None:
    """Two against two: whoever agreed before agrees again; the majority of the others is always wrong, a coin half."""
    near = described(opposed_people(20, 0)).differences.neighbours
    assert near is not None
    assert (near.people, near.votes, near.alike, near.personal) == (4, 80, 0.5, 1.0)
    assert (near.gain.value, near.gain.low, near.gain.high) == (0.5, 0.5, 0.5)


def test_neighbours_of_people_who_all_agree() -> None:
    near = described([c for user in "abc" for c in many(user, 20)]).differences.neighbours
    assert near is not None
    assert (near.alike, near.personal, near.gain.value) == (1.0, 1.0, 0.0)


def test_careless_people_dissent_but_have_no_neighbours() -> None:
    """A third answers at random: they go against the majority again and again, and nobody foretells them."""
    draw = np.random.default_rng(0)
    quality = np.repeat(draw.normal(0, 1.5, 300)[None], 60, axis=0)
    quality[:20] = 0.0
    answers = np.where(draw.random((60, 300)) < 1 / (1 + np.exp(-quality)), 1, -1)
    person, pair = np.nonzero(draw.random((60, 300)) < 0.4)
    votes = Votes(person, pair, answers[person, pair], 2 * pair, 2 * pair + 1)
    dissent, near = find_dissent(votes), find_neighbours(votes)
    assert dissent is not None
    assert near is not None
    assert dissent.p < 1e-6
    assert near.gain.low <= 0.0


def rated(ratings: np.ndarray) -> Votes:
    """Every two of the answers that each person rated, [people, answers]."""
    people, n = ratings.shape
    first, second = (np.tile(side, people) for side in np.triu_indices(n, 1))
    person = np.repeat(np.arange(people), n * (n - 1) // 2)
    vote = np.where(ratings[person, first] > ratings[person, second], 1, -1)
    return Votes(person, first * n + second, vote, first, second)


def test_neighbours_of_pairs_that_share_answers() -> None:
    """Two tastes are found; ratings at random are not taste, though each of them stands in many pairs."""
    draw = np.random.default_rng(0)
    noise = draw.normal(size=(30, 24))
    taste = np.where(np.arange(30)[:, None] % 2, 1.0, -1.0) * draw.normal(size=24)
    nobody, camps = find_neighbours(rated(noise)), find_neighbours(rated(noise + taste))
    assert nobody is not None
    assert camps is not None
    assert nobody.gain.low <= 0.0
    assert nobody.personal < 0.55
    assert camps.gain.low > 0.1
    assert nobody.votes == 30 * 2 * 66  # 12 answers on either side; pairs across are in neither


def test_a_neighbour_weighs_by_agreement_per_shared_answer() -> None:
    """0 shares 2 answers with 1, both alike, and 40 with 2, 23 of them alike: (2 + 10) / 12 beats (6 + 10) / 50."""
    past = np.ones((3, 40), np.float32)
    past[1, 2:] = 0.0
    past[2, 23:] = -1.0
    future = np.array([[1, -1], [1, -1], [-1, 1]], np.float32)
    right = _foretell(past, future, *np.array([[0], [0], [1], [1]]))
    assert right[:, 0].tolist() == [1.0, 0.5, 0.5, 0.5]  # to the others, 1 and 2 weigh the same and disagree


def test_neighbours_need_people_who_share_pairs() -> None:
    assert described(many("a", 20) + many("b", 20, prompt="z")).differences.neighbours is None
    assert described(many("a", 9) + many("b", 9)).differences.neighbours is None


def test_votes_are_the_same_whichever_way_a_pair_stands() -> None:
    votes = count_votes(encode_log([judged("a", "1"), judged("b", "1", False), judged("b", "2", p_chosen=0.5)]))
    assert votes.vote.tolist() == [1, -1]  # "a long answer" sorts before "no"
    assert len(set(votes.pair.tolist())) == 1


def test_blocks_of_groups_have_the_interval_of_the_groups() -> None:
    draw = np.random.default_rng(0)
    counts = draw.integers(1, 5, 6000).astype(float)
    sums = draw.binomial(counts.astype(int), 0.6).astype(float)
    blocks, groups = interval(sums, counts), ratio(sums, counts)
    assert blocks is not None
    assert blocks.value == pytest.approx(groups.value)
    assert blocks.high - blocks.low == pytest.approx(groups.high - groups.low, rel=0.1)
    assert interval(np.zeros(0), np.zeros(0)) is None


@pytest.mark.parametrize(
    ("n_prompts", "level"), [(29, "no"), (30, "thin"), (99, "thin"), (100, "enough"), (120, "enough")]
)
def test_verdict_on_planted_camps(n_prompts: int, level: str) -> None:
    verdict = described(opposed_people(n_prompts, 0)).verdict
    assert verdict.level == level
    assert ("differ systematically: those who agreed" in verdict.reasons[1]) == (n_prompts > 10)
    assert "uniform model" in verdict.reasons[-1]


def test_verdict_on_people_who_all_agree() -> None:
    rows = [c for user in "abcd" for c in many(user, 120)]
    verdict = described(rows).verdict
    assert verdict.level == "no"
    assert "Two people agree on a pair in 100.0% of cases. No sure sign" in verdict.reasons[1]
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
    assert "4 of 9 people (44.4%)" in verdict.reasons[0]
    assert "hold 89.8% of them" in verdict.reasons[0]  # 440 of 490
    assert "The other 5, with 10.2% of the comparisons, would get the generic user's score" in verdict.reasons[0]


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
    assert "First mend the formats: they give the chosen answer away in 50.0% of pairs." in found.verdict.reasons
    assert not any("formats" in reason for reason in described(sound).verdict.reasons)


def test_verdict_on_one_person() -> None:
    verdict = described(many("a", 500)).verdict
    assert verdict.level == "no"
    assert verdict.reasons[0].startswith("One person")
    assert "cannot be told" in verdict.reasons[1]


def test_people_who_go_by_length_more_or_less_are_not_called_opposed() -> None:
    for seed in range(5):
        draw = random.Random(seed)
        odds = [0.95 if u % 2 else 0.55 for u in range(10)]
        rows = [judged(f"u{u}", f"q{i}", draw.random() < odds[u]) for u in range(10) for i in range(120)]
        verdict = described(rows).verdict
        assert verdict.level == "thin"
        assert "may be care as well as taste" in verdict.reasons[1]


def encoder_of(folder: str, max_length: int) -> TextEncoder:
    return TextEncoder(load_tokenizer(folder), 336, 1, "behind", max_length)


def test_token_lengths_and_cuts_are_the_encoders(tiny: str) -> None:
    """Against encoding every sequence, with and without the limit."""
    # without its first turn, the conversation is far shorter than the limit
    chat = (Message("user", "fox " * 20), Message("assistant", "a dog"), Message("user", "the old king?"))
    rows = [
        Comparison("a", " ".join(WORDS[: i + 2]), f"{WORDS[i]} {'fox ' * i}", "king", user_text="I am old" * (i % 2))
        for i in range(8)
    ]
    rows += [
        Comparison("b", chat, "a king mixes", "wizards"),
        Comparison("b", "q", "x" * 200, "y", origin="log, line 9"),
    ]
    roomy, tight = encoder_of(tiny, 10_000), encoder_of(tiny, 32)
    found = measure_tokens(rows, tight)
    sequences = {(c.prompt, r, c.user_text) for c in rows for r in (c.chosen, c.rejected)}
    full = {key: roomy.encode(key[0], key[1], 0, key[2]) for key in sequences}
    answers = {key[1]: e.response[1] - e.response[0] for key, e in full.items()}
    prompts = {(key[0], key[2]): e.response[0] for key, e in full.items()}
    assert found.sequences == found.of_sequences == len(sequences)
    assert tuple(asdict(found.answers).values())[0:2] == (len(answers), min(answers.values()))
    assert (found.answers.maximum, found.answers.median) == (200, sorted(answers.values())[(len(answers) - 1) // 2])
    assert (found.prompts.texts, found.prompts.minimum, found.prompts.maximum) == (
        len(prompts),
        min(prompts.values()),
        max(prompts.values()),
    )
    assert found.unfit == 1
    assert found.first_unfit.startswith("log, line 9: the response")
    assert (tight.cuts.sequences, tight.cuts.tokens) == (0, 0)  # ours to look at, not to change
    for prompt, answer, text in sequences - {("q", "x" * 200, "")}:
        tight.encode(prompt, answer, 0, text)
    assert found.cut > 0
    lost = sum(len(e.ids) for e in full.values()) - len(full["q", "x" * 200, ""].ids)
    lost -= sum(len(tight.encode(p, a, 0, t).ids) for p, a, t in sequences - {("q", "x" * 200, "")})
    assert found.tokens_lost == lost > 0
    assert found.cut * 2 == tight.cuts.sequences  # encoded twice above


def test_tokens_of_a_sample(tiny: str) -> None:
    rows = [Comparison("a", f"q{'x' * i}", f"y{'z' * i}", "no", origin=f"line {i}") for i in range(40)]
    found = measure_tokens(rows, encoder_of(tiny, 40), most=20)
    assert (found.sequences, found.of_sequences) == (20, 80)
    assert measure_tokens(rows[::-1], encoder_of(tiny, 40), most=20).tokens_lost == found.tokens_lost > 0
    assert measure_tokens(rows, encoder_of(tiny, 40), most=20, seed=1).tokens_lost != found.tokens_lost


def test_the_first_answer_that_does_not_fit_is_named(tiny: str) -> None:
    rows = [Comparison("a", "q", "x" * (10 + 50 * i), "no", origin=f"line {i}") for i in range(4)]
    found = measure_tokens(rows, encoder_of(tiny, 40))
    assert found.unfit == 3
    assert found.first_unfit.startswith("line 1: ")


def test_the_order_of_the_rows_changes_nothing(tiny: str) -> None:
    draw = random.Random(1)
    rows = [c for c in opposed_people(40, 1, people=12) if draw.random() < 0.8]
    rows += [
        judged(f"p{i % 12}", f"q{i % 7}", draw.random() < 0.6, chosen_first=draw.random() < 0.5) for i in range(200)
    ]
    rows += [judged(f"p{i}", "t", draw.random() < 0.5, p_chosen=0.5) for i in range(9)]
    first = describe(log_of(rows), encoder_of(tiny, 64)).to_dict()
    draw.shuffle(rows)
    assert describe(log_of(rows), encoder_of(tiny, 64)).to_dict() == first


def test_to_dict_survives_json() -> None:
    for rows in (opposed_people(20, 0), many("a", 1)):
        found = described(rows).to_dict()
        assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["longer_won"]["share"] == {"value": 1.0, "low": None, "high": None}
    assert found["people"]["comparisons"] == 1
    assert described(many("a", 1)).longer_won.share.low == -inf  # type: ignore[union-attr]


def test_faults_are_counted_and_listed() -> None:
    skipped = [{"row_of": f"log, line {i}", "fault": f"fault {i}", "row": {}} for i in range(7)]
    rows = [judged("Ann", "1"), judged("ann ", "1"), judged("bob", "1"), judged("bob", "1", False)]
    faults = describe(log_of(rows, skipped=skipped, pairs=Counter({"kept": 4, "said twice": 3})), None).faults
    assert (faults.bad, faults.duplicates, faults.contradictions, faults.alike) == (7, 3, 1, 1)
    assert [bad["fault"] for bad in faults.first_bad] == [f"fault {i}" for i in range(5)]
    assert faults.first_alike == (("Ann", "ann "),)


def test_page_holds_the_numbers_and_no_foreign_markup(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>"
    skipped = [{"row_of": "log, line 3", "fault": f"bad {evil}", "row": {}, "user_id": evil}]
    rows = [*opposed_people(30, 0), *many(f"{evil}A", 12, False), *many(f"{evil}a", 12)]
    found = describe(log_of(rows, skipped=skipped), None)
    write_description(found, tmp_path / "new" / "page", f"log {evil}")
    page = (tmp_path / "new" / "page" / "index.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "http" not in page.replace("data:image/png;base64", "")  # needs nothing else
    for text in ("<b>6</b>people", "<b>144</b>comparisons", "30-99", "66.7%"):
        assert text in page, text
    assert page.count("<img") == 2
    for section in sections(found):
        assert section.title in page
        assert all(len(row) == len(section.header) for row in section.rows)
    kept = json.loads((tmp_path / "new" / "page" / "describe.json").read_text())
    assert kept == {"data": f"log {evil}"} | found.to_dict()


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_jsonl("log.jsonl", [*opposed_people(30, 0), judged("p0", "dup")])
    return tmp_path


def test_command_prints_tables_json_and_writes_a_page(log: Path, tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", "describe", "log.jsonl", "--backbone", tiny, "--max-length", "64", "--output", "page"])
    shown = capsys.readouterr().out
    for text in ("121 rows", "Perhaps: it is thin", "at most 64 tokens", "foretold", "page/index.html"):
        assert text in shown
    main(["data", "describe", "log.jsonl", "--backbone", tiny, "--max-length", "64", "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert {"data": "log.jsonl"} | printed == json.loads((log / "page" / "describe.json").read_text())
    assert printed["people"]["people"] == 4
    assert printed["tokens"]["max_length"] == 64
    main(["data", "describe", "log.jsonl", "--backbone", "none", "--json"])
    assert json.loads(capsys.readouterr().out)["tokens"] is None


def test_command_takes_the_flags_of_the_log(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"user_id": "a", "prompt": "q", "response": text, "rating": i} for i, text in enumerate(("x", "y", "z"))]
    rows += [{"user_id": "a", "prompt": "q", "response": "w", "rating": "high"}]
    write_jsonl("rated.jsonl", rows)
    command = ["data", "describe", "rated.jsonl", "--data.source", "ratings", "--backbone", "none"]
    assert "rated.jsonl, line 4" in error_of(capsys, *command)
    main([*command, "--data.on_bad_row", "skip", "--data.gap", "2"])
    shown = capsys.readouterr().out
    assert "bad: rated.jsonl, line 4" in shown
    assert "1 kept" in shown


def test_command_mistakes_are_one_clear_line(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "none.jsonl" in error_of(capsys, "data", "describe", "none.jsonl", "--backbone", "none")
    assert "no/such" in error_of(capsys, "data", "describe", "log.jsonl", "--backbone", "no/such")
    assert "--max-length" in error_of(capsys, "data", "describe", "log.jsonl", "--max-length", "0")
    for arguments in (["data"], ["data", "describe"], ["data", "discribe", "log.jsonl"]):
        message = error_of(capsys, *arguments)
        assert message.startswith("error: ")
        assert "\n" not in message
    assert "data.gap" in error_of(capsys, "data", "describe", "log.jsonl", "--data.gap", "1", "--backbone", "none")
    assert "sauce" in error_of(capsys, "data", "describe", "log.jsonl", "--data.sauce", "ratings")


def test_without_a_backbone_no_torch_is_loaded(log: Path) -> None:
    code = (
        "import sys\nfrom prm.cli import main\n"
        "main(['data', 'describe', 'log.jsonl', '--backbone', 'none', '--output', 'page'])\n"
        "sys.exit(3 if 'torch' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


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
