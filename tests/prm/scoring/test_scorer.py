"""Checkpoint and Scorer: scores that depend on nothing else, folders that survive and refuse."""

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version
from safetensors.torch import load_file, save_file

from prm.attention import prefix_tree
from prm.checkpoint import checkpoint as checkpoints
from prm.checkpoint.checkpoint import read_users
from prm.config import BackboneConfig, DataConfig, OptimConfig, RewardModelConfig, SearchConfig, TrainConfig, UserConfig
from prm.data.comparison import Comparison, Message, Prompt
from prm.errors import CheckpointError, DataError, PrmError
from prm.evaluation.evaluate import evaluate
from prm.io.folders import atomic_folder
from prm.io.tables import write_jsonl
from prm.scoring.forget_user import forget_user
from prm.scoring.scorer import Scorer
from prm.training.run import train
from tests.conftest import count_tokens, resign

PROMPTS = ["what about the fox?", "why?", "a king?"]
RESPONSES = ["jumps over a lazy dog", "seven wizards mix potions for an old king", "fox"]
FORMS = {
    "rbf": (
        RewardModelConfig("linear_head", features=["1 mean", "2 last"], kernel="rbf"),
        UserConfig("individual"),
        "frozen",
    ),
    "linear": (RewardModelConfig("linear_head"), UserConfig("individual"), "frozen"),
    "bayes": (RewardModelConfig("linear_head"), UserConfig("bayes", rank=8), "frozen"),
    "two": (RewardModelConfig("linear_head", features=["1 mean", "2 last"]), UserConfig("individual"), "frozen"),
    "two-lora": (RewardModelConfig("linear_head", features=["1 mean", "2 last"]), UserConfig("individual"), "lora"),
    "prefix": (RewardModelConfig("soft_prompt", "prefix"), UserConfig("individual", num_virtual_tokens=2), "lora"),
    "suffix": (
        RewardModelConfig("soft_prompt", "suffix"),
        UserConfig("cluster", num_virtual_tokens=2, clusters=2),
        "lora",
    ),
}

ONE_READING: dict[str, Any] = {"layers": [2], "poolings": ["mean"]}


def train_small(folder: Path, backbone: str, form: str, log: list[Comparison]) -> Path:
    reward, users, how = FORMS[form]
    write_jsonl(folder / "log.jsonl", log)
    return train(
        TrainConfig(
            output_dir=str(folder / "run"),
            train=how,  # type: ignore[arg-type]
            data=DataConfig(str(folder / "log.jsonl"), test_fraction=0.2, validation_fraction=0.25),
            backbone=BackboneConfig(backbone, dtype="float32"),
            users=users,
            reward=reward,
            search=SearchConfig(
                folds=2, l2=[1.0], user_l2=[1.0], **(ONE_READING if form in ("linear", "bayes") else {})
            ),
            optim=OptimConfig(epochs=2.0, batch_size=4, micro_batch_size=4, eval_steps=2, user_lr=0.1, head_lr=0.1),
        )
    )


@pytest.fixture(scope="module")
def log() -> list[Comparison]:
    people = ["anna", "ben", "carl"]
    words = ["one", "two", "three", "four", "five", "six"]
    return [
        Comparison(user, f"{prompt} {i}", RESPONSES[1 - j % 2], RESPONSES[j % 2], user_text=f"{user} likes {w}")
        for j, user in enumerate(people)
        for i, (prompt, w) in enumerate(zip(PROMPTS * 2, words, strict=True))
    ]


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, backbone_of: Callable[..., str], log: list[Comparison]
) -> dict[str, Path]:
    return {form: train_small(tmp_path_factory.mktemp(form), backbone_of("llama"), form, log) for form in FORMS}


@pytest.mark.parametrize("form", FORMS)
def test_a_score_depends_on_its_own_row_alone(runs: dict[str, Path], form: str) -> None:
    scorer = Scorer.from_pretrained(runs[form])
    users = ["anna", None, "carl"]
    batch = scorer.score_batch(PROMPTS, RESPONSES, users)
    alone = torch.cat([scorer.score(p, [y], u) for p, y, u in zip(PROMPTS, RESPONSES, users, strict=True)])
    assert batch.dtype == torch.float32
    torch.testing.assert_close(batch, alone, rtol=0, atol=1e-4)
    backwards = scorer.score_batch(PROMPTS[::-1], RESPONSES[::-1], users[::-1]).flip(0)
    torch.testing.assert_close(backwards, alone, rtol=0, atol=1e-4)
    small = Scorer.from_pretrained(runs[form], max_tokens=1).score_batch(PROMPTS, RESPONSES, users)
    torch.testing.assert_close(small, alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_a_backbone_that_cannot_read_packs_scores_alike(
    runs: dict[str, Path], form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = Scorer.from_pretrained(runs[form])
    asked = (PROMPTS[:1] * 6, RESPONSES * 2, ["anna", None, "carl", "ben", "anna", "carl"])
    packed = scorer.score_batch(*asked)
    monkeypatch.setattr("prm.features.extract.can_pack", lambda backbone: False)
    read = count_tokens(scorer.model.backbone)
    torch.testing.assert_close(scorer.score_batch(*asked), packed, rtol=0, atol=1e-4)
    linear = form in ("linear", "bayes", "two", "two-lora")
    assert sum(read) > distinct_tokens(scorer, list(zip(*asked, [""] * 6, strict=True)))  # whole sequences, padded
    assert sum(read) % (3 if linear else 5) == 0  # one batch, each sequence once: carl asks for one of his twice


@pytest.mark.parametrize("form", FORMS)
def test_score_users_is_score_for_each_user(runs: dict[str, Path], form: str) -> None:
    scorer = Scorer.from_pretrained(runs[form])
    users = ["ben", None, "anna", "nobody"]
    matrix = scorer.score_users(PROMPTS[0], RESPONSES, users)
    assert matrix.shape == (4, 3)
    for row, user in zip(matrix, users, strict=True):
        torch.testing.assert_close(row, scorer.score(PROMPTS[0], RESPONSES, user), rtol=0, atol=1e-4)


@pytest.mark.parametrize("texts", ["none", "the same", "several"])
@pytest.mark.parametrize("form", FORMS)
def test_score_users_is_score_batch_of_all_rows_to_the_bit(runs: dict[str, Path], form: str, texts: str) -> None:
    """Users in any order, repeated or unknown, each with a text of their own or without."""
    scorer = Scorer.from_pretrained(runs[form])
    users = ["ben", None, "anna", "nobody", "ben", "carl", "anna"]
    given = {"none": [""], "the same": ["I like foxes"], "several": ["I like foxes", "", "anna likes two"]}[texts]
    user_texts = (given * 7)[:7]
    for order in (range(7), range(6, -1, -1), [4, 1, 5]):
        rows = [(users[i], user_texts[i], response) for i in order for response in RESPONSES]
        columns = [list(column) for column in zip(*rows, strict=True)]
        expected = scorer.score_batch([PROMPTS[0]] * len(rows), columns[2], columns[0], columns[1])
        asked, said = [users[i] for i in order], [user_texts[i] for i in order]
        found = scorer.score_users(PROMPTS[0], RESPONSES, asked, None if texts == "none" else said)
        assert torch.equal(found, expected.view(len(asked), 3))
        torch.testing.assert_close(found[1], scorer.score(PROMPTS[0], RESPONSES, asked[1], said[1]), rtol=0, atol=1e-4)
    if texts != "none":
        assert not torch.allclose(
            scorer.score_users(PROMPTS[0], RESPONSES, users),
            scorer.score_users(PROMPTS[0], RESPONSES, users, user_texts),
            atol=1e-3,
        )


@pytest.mark.parametrize("form", FORMS)
def test_an_unknown_user_scores_as_the_generic_user(runs: dict[str, Path], form: str) -> None:
    scorer = Scorer.from_pretrained(runs[form])
    generic = scorer.score(PROMPTS[0], RESPONSES)
    assert torch.equal(scorer.score(PROMPTS[0], RESPONSES, "nobody"), generic)
    assert not torch.equal(scorer.score(PROMPTS[0], RESPONSES, "anna"), generic)
    assert scorer.knows("anna")
    assert not scorer.knows("nobody")
    assert not scorer.knows(None)
    assert scorer.users == ["anna", "ben", "carl"]


@pytest.mark.parametrize("form", FORMS)
def test_a_scorer_shows_what_it_is(runs: dict[str, Path], form: str) -> None:
    scorer = Scorer.from_pretrained(runs[form], device="cpu")
    reward, users, _ = FORMS[form]
    shown = repr(scorer)
    assert len(shown.splitlines()) == 1
    for part in (reward.form, users.kind, "num_users=3", scorer.checkpoint.settings.backbone.name, "cpu"):
        assert part in shown


def test_user_text_is_read(runs: dict[str, Path]) -> None:
    scorer = Scorer.from_pretrained(runs["linear"])
    plain = scorer.score(PROMPTS[0], RESPONSES, "anna")
    assert not torch.allclose(scorer.score(PROMPTS[0], RESPONSES, "anna", user_text="anna likes two"), plain)


def distinct_tokens(scorer: Scorer, asked: Iterable[tuple[Prompt, str, str | None, str]]) -> int:
    """Tokens with a past of their own: what must be read if nothing is read twice. Linear heads see no user id."""
    linear = getattr(scorer.model, "is_linear", False)
    rows = [0 if linear or user not in scorer.users else scorer.users.index(user) + 1 for _, _, user, _ in asked]
    ids = [scorer.encoder.encode(p, y, row, text).ids[linear:] for (p, y, _, text), row in zip(asked, rows)]
    return len({tuple(s[: k + 1]) for s in ids for k in range(len(s))})


@pytest.mark.parametrize("max_tokens", [8, 40, 4096])
@pytest.mark.parametrize("form", FORMS)
def test_no_token_is_read_twice(
    runs: dict[str, Path], form: str, max_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two answers by anna, ben, strangers (one row) and a shuffle of the two; the prompt, and the text before a user
    behind it, are read once, in however many passes."""
    monkeypatch.setattr(prefix_tree, "_MIN_SAVED_TOKENS", 1)
    scorer = Scorer.from_pretrained(runs[form], max_tokens=max_tokens)
    users = ["anna", "ben", None, "nobody", "ben", "anna"]
    asked = [(PROMPTS[0], answer, user, "") for user in users for answer in RESPONSES[:2]]
    asked += [(PROMPTS[0], answer, "anna", "I like foxes") for answer in RESPONSES[:2]]
    read = count_tokens(scorer.model.backbone)
    columns: Any = map(list, zip(*asked, strict=True))
    together = scorer.score_batch(*columns)
    assert sum(read) == distinct_tokens(scorer, asked)
    assert torch.equal(together[4:6], together[6:8])
    assert torch.equal(together[2:4], together[8:10])
    for i, (prompt, answer, user, text) in enumerate(asked):
        torch.testing.assert_close(together[i : i + 1], scorer.score(prompt, [answer], user, text), rtol=0, atol=1e-4)


@pytest.mark.parametrize("form", ["linear", "two", "prefix", "suffix"])
def test_an_evaluation_reads_nothing_twice(
    runs: dict[str, Path], log: list[Comparison], form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six prompts with two answers, by three people and the unknown one; shuffled people are the same three."""
    monkeypatch.setattr(prefix_tree, "_MIN_SAVED_TOKENS", 1)
    scorer = Scorer.from_pretrained(runs[form])
    log = [replace(c, user_text="") for c in log]
    answers = {(c.prompt, y) for c in log for y in (c.chosen, c.rejected)}
    read = count_tokens(scorer.model.backbone)
    evaluate(scorer, log)
    everything = [(p, y, user, "") for p, y in answers for user in ("anna", "ben", "carl", None)]
    assert sum(read) == distinct_tokens(scorer, everything)


def test_an_unknown_users_text_is_encoded_as_a_known_ones(runs: dict[str, Path], log: list[Comparison]) -> None:
    """A soft prompt reads what the unknown user says of themselves; no known user's row has a part in it."""
    scorer = Scorer.from_pretrained(runs["suffix"])
    texts = ["zoe likes two", "zoe likes one", ""]
    told = [scorer.score(PROMPTS[0], RESPONSES, "zoe", user_text=text) for text in texts]
    assert not torch.allclose(told[0], told[2])
    assert not torch.allclose(told[0], told[1])


def test_prefer_is_the_sigmoid_of_the_margin(runs: dict[str, Path]) -> None:
    scorer = Scorer.from_pretrained(runs["linear"])
    a, b = scorer.score(PROMPTS[0], RESPONSES[:2], "anna").tolist()
    assert scorer.prefer(PROMPTS[0], RESPONSES[0], RESPONSES[1], user="anna") == pytest.approx(
        1 / (1 + 2.718281828 ** (b - a)), abs=1e-5
    )
    one, other = scorer.prefer(PROMPTS[0], "x", "y", "anna"), scorer.prefer(PROMPTS[0], "y", "x", "anna")
    assert one + other == pytest.approx(1.0, abs=1e-6)


def test_a_chat_prompt_is_the_same_as_its_text(runs: dict[str, Path]) -> None:
    scorer = Scorer.from_pretrained(runs["linear"])
    chat = [{"role": "user", "content": PROMPTS[0]}]
    assert torch.equal(scorer.score(chat, RESPONSES), scorer.score(PROMPTS[0], RESPONSES))
    assert torch.equal(scorer.score((Message("user", PROMPTS[0]),), RESPONSES), scorer.score(PROMPTS[0], RESPONSES))


@pytest.mark.parametrize("form", ["linear", "two"])
def test_the_cache_changes_no_score(runs: dict[str, Path], form: str) -> None:
    plain, cached = Scorer.from_pretrained(runs[form]), Scorer.from_pretrained(runs[form], cache=True)
    args = (PROMPTS, RESPONSES, ["anna", None, "ben"])
    torch.testing.assert_close(cached.score_batch(*args), plain.score_batch(*args), rtol=0, atol=1e-4)
    assert torch.equal(cached.score_batch(*args), cached.score_batch(*args))


def test_bad_requests_are_named(runs: dict[str, Path]) -> None:
    scorer = Scorer.from_pretrained(runs["linear"])
    for responses in (["fine", " "], ["fine", None]):
        with pytest.raises(PrmError, match=r"'responses\[1\]'"):
            scorer.score(PROMPTS[0], responses)  # type: ignore[arg-type]
        with pytest.raises(PrmError, match=r"'second\[1\]'"):
            scorer.margin_batch(PROMPTS[:2], ["a", "b"], responses, [None, None])  # type: ignore[arg-type]
    with pytest.raises(PrmError, match=r"'prompts\[1\]'"):
        scorer.score_batch([PROMPTS[0], ""], ["a", "b"], [None, None])
    with pytest.raises(PrmError, match=r"'prompt'.*'score_batch'"):
        scorer.score(PROMPTS, ["a", "b"])  # type: ignore[arg-type]
    with pytest.raises(PrmError, match="2, 1, 1"):
        scorer.score_batch(["a", "b"], ["c"], [None])
    with pytest.raises(DataError, match="role"):
        scorer.score([{"role": "robot", "content": "x"}], ["y"])
    with pytest.raises(DataError, match="max_length"):
        scorer.score("x", ["very long " * 2000])
    assert scorer.score(PROMPTS[0], []).shape == (0,)


def test_an_empty_answer_is_read_where_there_is_an_end_to_read(runs: dict[str, Path]) -> None:
    for form, reads in (("linear", None), ("two", False), ("prefix", True), ("suffix", True)):
        scorer = Scorer.from_pretrained(runs[form], device="cpu")
        assert reads in (None, scorer.scores_empty)
        with pytest.raises(PrmError, match=r"'responses\[0\]'"):
            scorer.score_batch(["why?"], [""], [None], empty=not scorer.scores_empty)
        if scorer.scores_empty:
            found = scorer.score_batch(["why?", "why?", "how?"], ["", "a fox", ""], ["anna", "anna", "ben"], empty=True)
            assert found[:1].tolist() != found[2:].tolist()
            alone = scorer.score_batch(["why?"], [""], ["anna"], empty=True)
            assert float(found[0]) == pytest.approx(float(alone), abs=1e-4)
            assert float(found[1]) == pytest.approx(float(scorer.score("why?", ["a fox"], "anna")), abs=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_rewards_that_are_not_numbers_are_refused(runs: dict[str, Path], form: str) -> None:
    scorer = Scorer.from_pretrained(runs[form])
    model: Any = scorer.model
    model.standard_mean[0] = float("nan")
    asks = [lambda: scorer.score("why?", RESPONSES, "anna"), lambda: scorer.score_users("why?", RESPONSES, ["anna"])]
    for ask in asks:
        with pytest.raises(PrmError, match="3 of 3"):
            ask()


@pytest.mark.parametrize("form", FORMS)
def test_save_load_score_to_the_bit(runs: dict[str, Path], form: str, tmp_path: Path) -> None:
    checkpoint = checkpoints.load(runs[form])
    before = Scorer(checkpoint).score_batch(PROMPTS, RESPONSES, ["anna", None, "ben"])
    with atomic_folder(tmp_path / "copy") as folder:
        checkpoints.save(checkpoint, folder, {"kind": "copied"})
    after = Scorer.from_pretrained(tmp_path / "copy").score_batch(PROMPTS, RESPONSES, ["anna", None, "ben"])
    assert torch.equal(before, after)


def test_a_run_tells_how_it_came_about(runs: dict[str, Path]) -> None:
    run = json.loads((runs["linear"] / "run.json").read_text())
    assert run["seed"] == 0
    assert run["config"]["search"]["l2"] == [1.0]
    assert (
        run["data"]["train_comparisons"] + run["data"]["validation_comparisons"] + run["data"]["test_comparisons"] == 18
    )
    recorded, imported = run["environment"]["versions"]["torch"], torch.__version__
    assert Version(recorded).public == Version(imported).public  # wheels of the index leave out `+cu128` in the former
    assert len(run["template"]) == 16
    assert not list(runs["linear"].rglob("*.bin"))
    assert not list(runs["linear"].rglob("*.pt"))


@pytest.mark.parametrize(
    ("form", "users", "shared"),
    [
        ("linear", (3 + 1) * 32, 0),  # e_0 and three offsets
        ("two", (3 + 1) * 64, 0),
        ("prefix", (3 + 1) * 2 * 32, 8192 + 32),  # 2 layers x rank 8 x (in + out of 7 maps: 512), and the head
        ("suffix", 2 * 2 * 32 + (3 + 1) * 2, 8192 + 32),  # two centres, and weights of three people and the unknown one
    ],
)
def test_a_run_counts_what_was_trained(runs: dict[str, Path], form: str, users: int, shared: int) -> None:
    run = json.loads((runs[form] / "run.json").read_text())
    assert run["parameters"] == {"users": users, "shared": shared}


@pytest.mark.parametrize("step", ["prm.io.tensors.save_file", "prm.io.folders.publish"])
def test_a_kill_during_save_loses_nothing(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs["linear"], run)
    before = Scorer.from_pretrained(run).score(PROMPTS[0], RESPONSES, "anna")
    checkpoint = checkpoints.load(run)
    checkpoint.model.user_model.forget_row(1)

    def die(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(step, die)
        with pytest.raises(KeyboardInterrupt), atomic_folder(run) as folder:
            checkpoints.save(checkpoint, folder, {})
    assert torch.equal(Scorer.from_pretrained(run).score(PROMPTS[0], RESPONSES, "anna"), before)


def test_a_kill_between_the_two_renames_is_mended(runs: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs["linear"], tmp_path / ".run.old")
    assert not run.exists()
    assert Scorer.from_pretrained(run).users == ["anna", "ben", "carl"]


def test_another_backbone_is_refused_by_name(runs: dict[str, Path], backbone_of: Callable[..., str]) -> None:
    other = backbone_of("llama", seed=1)
    with pytest.raises(CheckpointError, match="backbone") as error:
        Scorer.from_pretrained(runs["linear"], backbone=other)
    assert other in str(error.value)
    assert backbone_of("llama") in str(error.value)


@pytest.mark.parametrize("what", ["tokenizer", "template"])
def test_another_tokenizer_or_template_is_refused(
    runs: dict[str, Path], backbone_of: Callable[..., str], tmp_path: Path, what: str
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(backbone_of("llama"), moved)
    assert Scorer.from_pretrained(runs["linear"], backbone=str(moved)).users  # moved, but the same
    if what == "template":
        template = moved / "chat_template.jinja"
        template.write_text(template.read_text() + " ")
    else:
        path = moved / "tokenizer.json"
        tokenizer = json.loads(path.read_text())
        tokenizer["model"]["merges"].pop()
        path.write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match=what):
        Scorer.from_pretrained(runs["linear"], backbone=str(moved))


@pytest.mark.parametrize("damage", ["cut", "shape", "name", "config", "kind"])
def test_a_damaged_folder_is_refused(runs: dict[str, Path], tmp_path: Path, damage: str) -> None:
    """Whatever its digests say."""
    run = tmp_path / "run"
    shutil.copytree(runs["linear"], run)
    weights, config = run / "model.safetensors", run / "config.json"
    state = load_file(weights)
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-40])
    elif damage == "shape":
        save_file(state | {"standard_mean": torch.zeros(3)}, weights)
    elif damage == "name":
        save_file({**state, "surprise": torch.zeros(3)}, weights)
    elif damage == "kind":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"kind": "policy"}))
    resign(run)
    if damage == "config":
        config.write_text(config.read_text()[:-30])
    with pytest.raises(CheckpointError, match=str(weights if damage in ("cut", "shape", "name") else config)):
        Scorer.from_pretrained(run)


def test_an_unfinished_run_says_so(tmp_path: Path) -> None:
    (tmp_path / "run.partial").mkdir()
    with pytest.raises(CheckpointError, match="finished"):
        Scorer.from_pretrained(tmp_path / "run")


@pytest.mark.parametrize("form", ["linear", "two"])
def test_forgetting_a_person_removes_all_that_is_theirs(
    tmp_path: Path, backbone_of: Callable[..., str], log: list[Comparison], form: str
) -> None:
    run = train_small(tmp_path, backbone_of("llama"), form, log)
    stores = json.loads((run / "run.json").read_text())["feature_stores"]
    assert stores == sorted(str(folder.resolve()) for folder in (tmp_path / "cache" / "features").glob("*/*"))
    before = Scorer.from_pretrained(run)
    others = before.score_users(PROMPTS[0], RESPONSES, ["anna", "carl", None])
    forget_user(run, "ben")
    after = Scorer.from_pretrained(run)
    assert after.users == ["anna", "carl"]
    assert [before.judgements(user) for user in ("anna", "ben", "carl")] == [5, 5, 5]  # one each is held out
    assert read_users(run).num_comparisons_to_json() == [5, None, 5]
    assert b"ben" not in (run / "users.safetensors").read_bytes()
    assert (after.judgements("ben"), after.judgements(None)) == (None, None)
    torch.testing.assert_close(after.score_users(PROMPTS[0], RESPONSES, ["anna", "carl", None]), others, rtol=0, atol=0)
    assert torch.equal(after.score(PROMPTS[0], RESPONSES, "ben"), after.score(PROMPTS[0], RESPONSES))
    assert not any(Path(store).exists() for store in stores)
    for path in run.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".md") and "tokenizer" not in path.parts:
            assert "ben" not in path.read_text(), path
    table = load_file(run / "model.safetensors")["user_model.offsets"]
    assert not table[2].any()
    with pytest.raises(PrmError, match="'ben'"):
        forget_user(run, "ben")


def test_evaluation_by_hand(runs: dict[str, Path], log: list[Comparison]) -> None:
    """Margins are score differences; accuracy and likelihood follow from them."""
    scorer = Scorer.from_pretrained(runs["linear"])
    some = [replace(c, user_text="") for c in log[:5]]
    result = evaluate(scorer, some)
    margins = [
        float(scorer.score(c.prompt, [c.chosen], c.user_id) - scorer.score(c.prompt, [c.rejected], c.user_id))
        for c in some
    ]
    accuracy = sum(m > 0 for m in margins) / 5
    nll = sum(torch.nn.functional.softplus(torch.tensor(-m)).item() for m in margins) / 5
    row = result.row("personal")
    assert row.accuracy.value == pytest.approx(accuracy)
    assert row.nll is not None
    assert row.nll.value == pytest.approx(nll, abs=1e-4)


def test_the_index_and_the_table_must_agree(runs: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs["linear"], run)
    users = read_users(run)
    users.grow(["dora"])
    save_file({k: torch.from_numpy(v) for k, v in users.to_arrays().items()}, run / "users.safetensors")
    resign(run)
    with pytest.raises(CheckpointError, match="offsets"):
        Scorer.from_pretrained(run)


def test_a_relative_backbone_is_found_from_anywhere(
    backbone_of: Callable[..., str], log: list[Comparison], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run says `models/tiny`, and is read from another folder, after both moved; a missing one is no hub id."""
    home, moved, elsewhere = tmp_path / "home", tmp_path / "moved", tmp_path / "elsewhere"
    shutil.copytree(backbone_of("llama"), home / "models/tiny")
    elsewhere.mkdir()
    monkeypatch.chdir(home)
    train_small(Path("runs"), "models/tiny", "linear", log)
    before = Scorer.from_pretrained("runs/run").score(PROMPTS[0], RESPONSES, "anna")
    monkeypatch.chdir(elsewhere)
    home.rename(moved)
    assert torch.equal(Scorer.from_pretrained("../moved/runs/run").score(PROMPTS[0], RESPONSES, "anna"), before)
    (moved / "models").rename(elsewhere / "kept")
    with pytest.raises(CheckpointError, match="models/tiny"):
        Scorer.from_pretrained("../moved/runs/run")
    assert torch.equal(
        Scorer.from_pretrained("../moved/runs/run", "kept/tiny").score(PROMPTS[0], RESPONSES, "anna"), before
    )
