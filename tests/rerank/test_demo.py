"""The demo from end to end on a tiny backbone, and its figures against hand-made scorers."""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import rerank.demo
from prm.data.sources.public.everyday import ATTRIBUTES, OPPOSED, PEOPLE, Answer, EverydayPrompt, load_questions
from prm.io.yaml_settings import read_train_config
from prm.scoring.scorer import Scorer
from rerank.demo import divide, duels_of, fresh_answers, learned_tastes, main, pick, show_fresh, true_direction
from rerank.serve_demo import trained_with_posteriors
from tests.browser import open_browser, opened, widths_that_do_not_fit
from tests.conftest import build_config, save_random

CONFIG = """# python -m rerank.demo --config {folder}/demo.yaml
output_dir: {folder}/demo/model
data:
  path: {folder}/demo/train.jsonl
backbone:
  name: {backbone}
  dtype: float32
search:
  folds: 2
  l2: [10.0]
  user_l2: [10.0]
  poolings: [mean]
"""


@dataclass
class Demo:
    """A demo that ran: its folder, its arguments, and the training runs it took."""

    folder: Path
    arguments: list[str]
    trained: list[Any] = field(default_factory=list)

    def metrics(self) -> dict[str, Any]:
        return json.loads((self.folder / "metrics.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def long_backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Llama that reads 1024 bytes: the longest answers take more than 500."""
    folder = tmp_path_factory.mktemp("long-backbone")
    config = build_config("llama")
    config.max_position_embeddings = 1024
    return save_random(folder, AutoModelForCausalLM, config)


@pytest.fixture(scope="module")
def demo(long_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """The demo, run once for all tests of this file."""
    folder = tmp_path_factory.mktemp("demo")
    path = folder / "demo.yaml"
    path.write_text(CONFIG.format(folder=folder, backbone=long_backbone))
    arguments = ["--config", str(path), "--generator", long_backbone, "-n", "2", "--questions", "1"]
    made = Demo(folder / "demo", arguments)
    train = rerank.demo.train
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRM_CACHE", str(folder / "cache"))
        patch.setattr(rerank.demo, "train", lambda config: made.trained.append(config) or train(config))
        main(arguments)
    return made


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_figures_are_shares(demo: Demo) -> None:
    metrics = demo.metrics()
    figures = [metrics["accuracy"][name] for name in ("personal", "uniform", "noise_ceiling")]
    figures += [metrics["rerank"]["stated_direction"], metrics["rerank"]["true_direction"]]
    figures += [*metrics["rerank"]["stated_direction_by_attribute"].values(), *metrics["ceiling_per_user"].values()]
    assert all(0.0 <= figure <= 1.0 for figure in figures)
    assert len(demo.trained) == 1


def test_logs_share_no_question(demo: Demo) -> None:
    """12 people, 10 pairs of five answers: 4800 judgements to learn from, 2400 on other questions."""
    learn, held_out = rows_of(demo.folder / "train.jsonl"), rows_of(demo.folder / "test.jsonl")
    assert (len(learn), len(held_out)) == (12 * 40 * 10, 12 * 20 * 10)
    prompts = [{row["prompt"] for row in rows} for rows in (learn, held_out)]
    assert [len(p) for p in prompts] == [40, 20]
    assert not prompts[0] & prompts[1]
    assert prompts[0] | prompts[1] == {q.prompt for q in load_questions()}


def test_the_run_that_is_served_keeps_posteriors(demo: Demo) -> None:
    """On the demo's log, beside the demo's run, trained once."""
    before = (demo.folder / "train.jsonl").read_bytes()
    run = trained_with_posteriors(demo.arguments[1])
    assert run == demo.folder / "bayes"
    assert (demo.folder / "train.jsonl").read_bytes() == before
    scorer = Scorer.from_pretrained(run)
    assert scorer.score(load_questions()[0].prompt, ["Yes."], "eva", return_std=True)[1] > 0
    trained = (run / "run.json").stat().st_mtime_ns
    assert trained_with_posteriors(demo.arguments[1]) == run
    assert (run / "run.json").stat().st_mtime_ns == trained


def true_p(weights: dict[str, float], a: Answer, b: Answer) -> float:
    margin = sum(weights[name] * (a.attributes[name] - b.attributes[name]) for name in ATTRIBUTES)
    return 1.0 / (1.0 + math.exp(-margin))


def test_noise_ceiling_from_the_stated_tastes(demo: Demo) -> None:
    """Mean of max(p, 1 - p) over the held-out pairs, from the people's weights and the texts' attributes alone."""
    metrics = demo.metrics()
    held_out = {row["prompt"] for row in rows_of(demo.folder / "test.jsonl")}
    ceilings = {}
    for person in PEOPLE:
        pairs = [pair for q in load_questions() if q.prompt in held_out for pair in combinations(q.answers, 2)]
        ps = [true_p(dict(person.weights), a, b) for a, b in pairs]
        ceilings[person.name] = sum(max(p, 1.0 - p) for p in ps) / len(ps)
    assert metrics["ceiling_per_user"] == pytest.approx(ceilings, abs=1e-12)
    assert metrics["accuracy"]["noise_ceiling"] == pytest.approx(sum(ceilings.values()) / 12, abs=1e-12)


def test_true_direction_from_the_stated_tastes(demo: Demo) -> None:
    """Each person's best of five by their weights; the pairs' length, formal, list and warm marks compared."""
    held_out = {row["prompt"] for row in rows_of(demo.folder / "test.jsonl")}
    weights = {person.name: person.weights for person in PEOPLE}
    hits = []
    for question in load_questions():
        if question.prompt not in held_out:
            continue
        for less, more, name in (
            ("ada", "ben", "length"),
            ("dan", "cleo", "formal"),
            ("finn", "eva", "list"),
            ("hana", "gus", "warm"),
        ):
            marks = []
            for who in (less, more):
                utilities = [sum(weights[who][k] * a.attributes[k] for k in ATTRIBUTES) for a in question.answers]
                marks.append(question.answers[utilities.index(max(utilities))].attributes[name])
            hits.append(marks[0] < marks[1])
    assert len(hits) == 80
    assert demo.metrics()["rerank"]["true_direction"] == sum(hits) / 80


def test_personal_accuracy_from_the_log_and_the_scorer(demo: Demo) -> None:
    """Share of held-out judgements whose chosen answer the run scores higher, pair by pair."""
    held_out = rows_of(demo.folder / "test.jsonl")
    for run, name in ((demo.folder / "model", "personal"), (demo.folder / "model" / "uniform", "uniform")):
        scorer = Scorer.from_pretrained(run)
        texts = {(r["prompt"], r[side]) for r in held_out for side in ("chosen", "rejected")}
        people: list[str | None] = [p.name for p in PEOPLE] if name == "personal" else [None]
        rewards: dict[tuple[str | None, str, str], float] = {}
        for prompt in sorted({p for p, _ in texts}):
            answers = sorted(t for p, t in texts if p == prompt)
            for who, row in zip(people, scorer.score_users(prompt, answers, people).tolist(), strict=True):
                rewards |= {(who, prompt, text): reward for text, reward in zip(answers, row, strict=True)}
        right = []
        for r in held_out:
            who = r["user_id"] if name == "personal" else None
            right.append(rewards[who, r["prompt"], r["chosen"]] > rewards[who, r["prompt"], r["rejected"]])
        assert demo.metrics()["accuracy"][name] == pytest.approx(sum(right) / len(right), abs=2 / 2400)


class Page(HTMLParser):
    """What a browser would load, and the text that it would show."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        named = ("src", "href", "srcset", "data", "poster", "action", "background")
        self.loads += [(tag, name, value or "") for name, value in attributes if name in named]
        self.loads += [
            (tag, name, value or "") for name, value in attributes if name == "style" and "url(" in (value or "")
        ]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_needs_nothing_else(demo: Demo) -> None:
    html = (demo.folder / "index.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(html)
    loads = [(tag, value) for tag, _, value in page.loads if not value.startswith("#")]
    assert [tag for tag, _ in loads] == ["image"] * 2  # the coloured cells of the two tables of tastes
    assert all(value.startswith("data:image/png;base64,iVBORw0KGgo") for _, value in loads)  # PNG's first bytes
    assert not {"img", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert page.tags.count("script") == 1
    assert not re.search(r"https?://|@import|url\((?!#)", html)
    assert "{{" not in html
    assert "{%" not in html


@pytest.mark.browser
def test_the_page_fits_a_telephone(demo: Demo) -> None:
    with open_browser() as browser, opened(browser, demo.folder / "index.html", 420) as (page, messages):
        page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
        assert widths_that_do_not_fit(page) == []
        assert messages == []
        page.get_by_role("button", name="accuracy %").click()
        assert page.locator("[aria-sort=ascending]").count() == 1


def test_the_page_shows_the_figures_and_the_questions(demo: Demo) -> None:
    page = Page()
    page.feed((demo.folder / "index.html").read_text(encoding="utf-8"))
    text = " ".join(" ".join(page.text).split())
    metrics = demo.metrics()
    for name in ("uniform", "personal", "noise_ceiling"):
        assert f"{100 * metrics['accuracy'][name]:.1f}%" in text
    assert f"{100 * metrics['rerank']['stated_direction']:.0f}%" in text
    held_out = {row["prompt"] for row in rows_of(demo.folder / "test.jsonl")}
    assert all(" ".join(prompt.split()) in text for prompt in held_out)
    assert text.count("not as stated") == round(80 * (1 - metrics["rerank"]["stated_direction"]))


def test_fresh_answers_are_n_for_each_question(demo: Demo) -> None:
    known = json.loads((demo.folder / "samples.json").read_text(encoding="utf-8"))
    assert [len(answers) for answers in known["answers"]] == [2]
    assert known["key"]["n"] == 2
    assert known["key"]["prompts"] == [divide(load_questions())[1][0].prompt]


def test_a_second_run_trains_and_samples_nothing(
    demo: Demo, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: Any) -> None:
        raise AssertionError("called again")

    monkeypatch.setenv("PRM_CACHE", str(demo.folder.parent / "cache"))
    before = demo.metrics()
    weights = (demo.folder / "model" / "model.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(rerank.demo, "train", fail)
    monkeypatch.setattr(rerank.demo.Sampler, "from_pretrained", fail)
    main(demo.arguments)
    assert "is up to date" in " ".join(capsys.readouterr().out.split())
    after = demo.metrics()
    assert after["accuracy"] == before["accuracy"]
    assert after["rerank"] == before["rerank"]
    assert (demo.folder / "model" / "model.safetensors").stat().st_mtime_ns == weights


@pytest.mark.parametrize("change", ["nothing", "setting", "data"])
def test_other_settings_or_data_train_anew(demo: Demo, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    """Stopped where the training would begin; the run that is there stays."""
    config = read_train_config(demo.arguments[1])
    begun: list[Any] = []
    monkeypatch.setattr(rerank.demo, "train", lambda c: begun.append(c) or Path(c.output_dir))
    log = Path(config.data.path)
    whole = log.read_bytes()
    if change == "setting":
        config.search.user_l2 = [20.0]
    elif change == "data":
        log.write_bytes(whole.partition(b"\n")[2])
    try:
        assert rerank.demo.trained(config) == demo.folder / "model"
    finally:
        log.write_bytes(whole)
    assert [c.overwrite for c in begun] == ([] if change == "nothing" else [True])


class FakeScorer:
    """Rewards by a function of (user, answer); knows the people of `PEOPLE`."""

    def __init__(
        self, questions: Sequence[EverydayPrompt], reward: Callable[[str | None, EverydayPrompt, Answer], float]
    ):
        self.users = [person.name for person in PEOPLE]
        self._reward, self.reader = reward, self
        self._known = {(q.prompt, a.text): (q, a) for q in questions for a in q.answers}

    def has_tokens(self, response: str) -> bool:
        return bool(response)

    def score(self, prompt: str, texts: Sequence[str], user: str | None = None, user_text: str = "") -> Tensor:
        return torch.tensor([self._reward(user, *self._known[prompt, text]) for text in texts])

    def score_users(self, prompt: str, texts: Sequence[str], users: Sequence[str | None]) -> Tensor:
        return torch.stack([self.score(prompt, texts, user) for user in users])


def fake_scorer(questions: Sequence[EverydayPrompt], reward: Callable[[Any, Any, Any], float]) -> Scorer:
    """One that stands for a scorer."""
    return cast(Scorer, FakeScorer(questions, reward))


def marks(length: float = 1.0, **others: float) -> dict[str, float]:
    return {"length": length} | dict.fromkeys(ATTRIBUTES[1:], 0.0) | others


SHORT, LONG, FORMAL = Answer("short", marks(0.5)), Answer("long", marks(3.0)), Answer("formal", marks(formal=1.0))
LIST, WARM = Answer("list", marks(list=1.0)), Answer("warm", marks(warm=1.0))
QUESTION = EverydayPrompt("what?", (SHORT, LONG, FORMAL, LIST, WARM))
NO_TASTE = {user: dict.fromkeys(ATTRIBUTES, 0.0) for user in [None, *(p.name for p in PEOPLE)]}


def test_whoever_scores_all_alike_wins_no_duel() -> None:
    """Equal picks are no difference, in whichever direction."""
    questions = load_questions()[:8]
    for reward in (lambda u, q, a: a.attributes["length"], lambda u, q, a: 0.0, lambda u, q, a: -a.attributes["warm"]):
        scorer = fake_scorer(questions, reward)
        duels = [duel for q in questions for duel in duels_of(scorer, q, NO_TASTE)]
        assert len(duels) == 32
        assert not any(duel.as_stated for duel in duels)


def test_true_direction_counts_equal_picks_as_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    """All four pairs part ways on the one question, none on the other, whose answers differ in nothing."""
    same = EverydayPrompt("same?", tuple(Answer(f"answer {i}", marks()) for i in range(5)))
    monkeypatch.setattr(rerank.demo, "load_questions", lambda: [QUESTION, same])
    assert [true_direction(prompts) for prompts in (["what?"], ["same?"], ["what?", "same?"])] == [1.0, 0.0, 0.5]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_duels_by_hand(sign: float) -> None:
    """Rewards along the stated tastes win every duel of a question that has all kinds; along the opposite, none."""
    stated = {
        "ada": SHORT,
        "ben": LONG,
        "dan": SHORT,
        "cleo": FORMAL,
        "finn": SHORT,
        "eva": LIST,
        "hana": LONG,
        "gus": WARM,
    }
    swap = {less: more for less, more, _ in OPPOSED} | {more: less for less, more, _ in OPPOSED}

    def reward(user: str | None, question: EverydayPrompt, answer: Answer) -> float:
        if user is None:
            return float(answer is LIST)
        return float(answer is stated[user if sign > 0 else swap[user]])

    duels = duels_of(fake_scorer([QUESTION], reward), QUESTION, NO_TASTE)
    assert [(d.less.user, d.more.user, d.attribute) for d in duels] == list(OPPOSED)
    assert [d.as_stated for d in duels] == [sign > 0] * 4
    assert all(d.generic.answer is LIST and d.prompt == "what?" for d in duels)
    assert all(d.less.answer is stated[d.less.user if sign > 0 else swap[d.less.user]] for d in duels)


def test_different_picks_that_do_not_differ_in_the_attribute_lose() -> None:
    """ada and ben get other answers, but of the same length."""
    reward = lambda u, q, a: float(a is (FORMAL if u == "ada" else WARM))  # noqa: E731
    duel = duels_of(fake_scorer([QUESTION], reward), QUESTION, NO_TASTE)[0]
    assert (duel.less.answer, duel.more.answer) == (FORMAL, WARM)
    assert not duel.as_stated


def test_reasons_by_hand() -> None:
    """The long answer has 3 units; the others 0.5, 1, 1, 1: a surplus of 2.125, and a taste of 2 makes 4.25.

    No list where one of four others has one: -0.25, and a taste of -4 makes +1.0, in words "prose". A warm
    answer among the others, -0.25 times 1, speaks against it; a gain of 0.05 or less is no reason.
    """
    reward = lambda u, q, a: a.attributes["length"]  # noqa: E731
    taste = dict.fromkeys(ATTRIBUTES, 0.0) | {"length": 2.0, "list": -4.0, "warm": 1.0, "formal": -0.2}
    found = pick(fake_scorer([QUESTION], reward), QUESTION, "ben", taste)
    assert (found.user, found.answer, found.reward) == ("ben", LONG, 3.0)
    assert found.reasons == ["longer +4.2", "prose +1.0"]
    found = pick(fake_scorer([QUESTION], reward), QUESTION, None, dict.fromkeys(ATTRIBUTES, 0.0) | {"formal": -0.2})
    assert (found.user, found.reasons) == ("generic user", [])


def test_learned_tastes_are_the_weights_of_linear_rewards() -> None:
    """What a question adds to all of its answers, and a person to all questions, is no taste."""
    questions = load_questions()[:40]
    weights = {None: marks(0.3, example=1.0, hedged=-2.0)} | {p.name: dict(p.weights) for p in PEOPLE}

    def reward(user: str | None, question: EverydayPrompt, answer: Answer) -> float:
        linear = sum(weights[user][name] * answer.attributes[name] for name in ATTRIBUTES)
        return linear + len(question.prompt) / 10.0 + len(user or "")

    tastes = learned_tastes(fake_scorer(questions, reward), questions)
    assert list(tastes) == [None, *(p.name for p in PEOPLE)]
    for user, expected in weights.items():
        assert tastes[user] == pytest.approx({name: expected[name] for name in ATTRIBUTES}, abs=1e-4), user


def test_fresh_answers_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty answers and copies are left out; each person's ranking is their own; samples are drawn once."""
    drawn: list[tuple[str, int]] = []

    class FakeSampler:
        def __init__(self, name: str):
            self.name = name

        def sample(self, prompt: str, n: int, sampling: object) -> list[str]:
            drawn.append((prompt, n))
            return ["short", "", "long", "short"]

    monkeypatch.setattr(rerank.demo.Sampler, "from_pretrained", FakeSampler)
    signs = {"ada": -1.0, "ben": 1.0, None: 0.0}
    scorer = fake_scorer([QUESTION], lambda u, q, a: signs[u] * a.attributes["length"])
    for _ in range(2):
        (item,) = fresh_answers(scorer, [QUESTION], "anyone", 4, tmp_path / "samples.json")
        assert (item["prompt"], item["distinct"]) == ("what?", 2)
        ranked = {user: [(r.text, r.score) for r in rows] for user, rows in item["rankings"].items()}
        assert ranked == {
            "ada": [("short", -0.5), ("long", -3.0)],
            "ben": [("long", 3.0), ("short", 0.5)],
            "generic user": [("short", 0.0), ("long", 0.0)],
        }
    assert drawn == [("what?", 4)]
    fresh_answers(scorer, [QUESTION], "anyone", 5, tmp_path / "samples.json")
    assert drawn == [("what?", 4), ("what?", 5)]


def test_a_question_whose_fresh_answers_are_all_empty_does_not_end_the_demo(
    demo: Demo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Mute:
        def __init__(self, name: str):
            pass

        def sample(self, prompt: str, n: int, sampling: object) -> list[str]:
            return [""] * n

    monkeypatch.setattr(rerank.demo.Sampler, "from_pretrained", Mute)
    scorer = Scorer.from_pretrained(demo.folder / "model", cache=True)
    fresh = fresh_answers(scorer, load_questions()[:1], "anyone", 2, tmp_path / "samples.json")
    assert fresh == []
    show_fresh(fresh)
