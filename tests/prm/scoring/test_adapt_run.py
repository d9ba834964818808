"""New people in a trained model: by `Scorer.fit_user`, `Scorer.update_user` and `prm adapt`."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prm.cli import main
from prm.config import BackboneConfig, DataConfig, OptimConfig, RewardModelConfig, SearchConfig, TrainConfig, UserConfig
from prm.data.baselines import length_votes
from prm.data.comparison import Comparison
from prm.errors import PrmError
from prm.evaluation.evaluate import evaluate, evaluate_run
from prm.evaluation.overlap import find_overlap
from prm.io.run_files import read_run
from prm.io.tables import write_jsonl
from prm.models.reward_model import RewardModel
from prm.scoring.adapt_run import adapt_run
from prm.scoring.forget_user import forget_user
from prm.scoring.scorer import Scorer
from prm.scoring.update_users import pairs_of, update_users
from prm.training.run import train
from prm.training.user_fit import penalty_of
from tests.planted import opposed_people
from tests.tolerance import rounding

FRONT = {
    "reward": RewardModelConfig("soft_prompt", position="prefix"),
    "users": UserConfig(num_virtual_tokens=2),
    "optim": OptimConfig(epochs=3.0, batch_size=32, micro_batch_size=32, user_lr=3e-2),
}
MODELS: dict[str, dict[str, Any]] = {
    "bayes": {"users": UserConfig("bayes", rank=16)},
    "individual": {},
    "separate": {"users": UserConfig(generic=False)},
    "cluster": {"users": UserConfig("cluster", clusters=2, softmax=True)},
    "low_rank": {"users": UserConfig("low_rank", rank=2)},
    "stack": {"users": UserConfig("stack")},
    "prefix": FRONT,
    "suffix": FRONT | {"reward": RewardModelConfig("soft_prompt", position="suffix"), "train": "lora"},
}


@pytest.fixture(scope="module")
def runs(backbone_of: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each user model on twelve people in two camps."""
    folder = tmp_path_factory.mktemp("adapt")
    write_jsonl(folder / "log.jsonl", opposed_people(60, 0, people=12))
    made = {}
    for name, changes in MODELS.items():
        base = TrainConfig(
            output_dir=str(folder / name),
            train="frozen",
            data=DataConfig(path=str(folder / "log.jsonl")),
            backbone=BackboneConfig(backbone_of("llama"), dtype="float32"),
            search=SearchConfig(folds=3, l2=[10.0], user_l2=[1.0], layers=[2], poolings=["mean"]),
        )
        made[name] = train(replace(base, **changes))
    return made


def zoes(prompts: int, seed: int) -> list[Comparison]:
    """Judgements by a new person who likes the one with "king" in it."""
    return [replace(c, user_id="zoe") for c in opposed_people(prompts, seed, people=1)]


@pytest.mark.parametrize("name", MODELS)
def test_a_new_person_is_learnt_and_nobody_else_moves(runs: dict[str, Path], name: str) -> None:
    scorer = Scorer.from_pretrained(runs[name])
    test = zoes(80, 6)
    texts = [text for c in test[:3] for text in (c.chosen, c.rejected)]
    others = [*scorer.users, None]
    weights = {k: v.clone() for k, v in scorer.model.state_dict().items() if "user_model" not in k}
    before = scorer.score_users("why?", texts, others)
    assert not scorer.knows("zoe")
    scorer.fit_user("zoe", zoes(60, 5))
    assert scorer.users[-1] == "zoe"
    assert torch.equal(scorer.score_users("why?", texts, others), before)
    assert all(torch.equal(weights[k], v) for k, v in scorer.model.state_dict().items() if "user_model" not in k)
    found = evaluate(scorer, test)
    assert found.row("personal").accuracy.value > found.row("generic user").accuracy.value + 0.05


@pytest.mark.parametrize("name", MODELS)
def test_without_a_judgement_a_person_is_the_unknown_user(runs: dict[str, Path], name: str) -> None:
    scorer = Scorer.from_pretrained(runs[name])
    c = zoes(1, 6)[0]
    stranger = scorer.score(c.prompt, [c.chosen, c.rejected])
    scorer.fit_user("zoe", [])
    assert scorer.knows("zoe")
    assert torch.equal(scorer.score(c.prompt, [c.chosen, c.rejected], "zoe"), stranger)
    scorer.fit_user("p0", [])  # what was known of a person goes
    torch.testing.assert_close(scorer.score(c.prompt, [c.chosen, c.rejected], "p0"), stranger)
    assert scorer.prefer(c.prompt, c.chosen, c.rejected, "p0") == pytest.approx(
        scorer.prefer(c.prompt, c.chosen, c.rejected), abs=1e-3
    )


@pytest.mark.parametrize("name", ["bayes", "individual", "stack", "prefix"])
def test_a_fit_forgets_what_was_known_before(runs: dict[str, Path], name: str) -> None:
    c = zoes(1, 9)[0]
    rewards = []
    for earlier in ([], zoes(20, 3)):
        scorer = Scorer.from_pretrained(runs[name])
        scorer.fit_user("zoe", earlier)
        scorer.fit_user("zoe", zoes(20, 4))
        rewards.append(scorer.score(c.prompt, [c.chosen, c.rejected], "zoe"))
    # each of the 40 steps of a soft prompt's fit reads what rounding left of the one before
    torch.testing.assert_close(*rewards, atol=40 * rounding(), rtol=0)


def test_soft_prompts_warn_where_few_comparisons_may_outweigh_many(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("prm.training.user_fit._MIN_STEPS", 1)
    few = [replace(c, user_id="p0") for c in zoes(2, 5)]

    def warned(name: str, *comparisons: Comparison, anew: bool = False) -> bool:
        caplog.clear()
        scorer = Scorer.from_pretrained(runs[name])
        update_users(scorer.checkpoint, scorer.reader, comparisons, anew=anew)
        return "outweigh" in caplog.text and "'p0'" in caplog.text

    assert warned("suffix", *few, *zoes(1, 5))
    assert "'zoe'" not in caplog.text  # a new user has no earlier ones
    assert not warned("suffix", *few, anew=True)
    assert not warned("suffix", *zoes(2, 5))
    assert not warned("individual", *few)  # the penalty holds what was known
    assert not warned("suffix", *few * 30)  # as many as the run knows


def test_the_best_offset_under_the_penalty_of_the_run(runs: dict[str, Path]) -> None:
    """The gradient of the summed loss is the penalty's pull, by hand."""
    scorer = Scorer.from_pretrained(runs["individual"])
    assert penalty_of(scorer.checkpoint) == 1.0
    log = zoes(30, 5)
    scorer.fit_user("zoe", log)
    assert isinstance(scorer.model, RewardModel)
    pairs = pairs_of(scorer.model, scorer.reader, log, [1] * len(log))
    model: Any = scorer.model.user_model
    z = pairs.texts[pairs.chosen] - pairs.texts[pairs.rejected]
    offset = model.offsets[-1, 0]
    miss = 1.0 - torch.sigmoid(z @ (model.generic[0] + offset))
    torch.testing.assert_close(miss @ z, 1.0 * offset, atol=2e-3, rtol=0)


@pytest.mark.parametrize(("name", "numbers"), [("individual", 32), ("cluster", 2)])
def test_a_run_without_a_search_has_the_penalty_of_its_peoples_variance(
    runs: dict[str, Path], name: str, numbers: int
) -> None:
    """How far embeddings are from the generic user's; as many numbers as a person has; who was forgotten counts not."""
    checkpoint = replace(Scorer.from_pretrained(runs[name]).checkpoint, folder=None)
    model = checkpoint.model.user_model
    model.forget_row(1)
    e = model(torch.arange(model.n_rows))[:, 0].detach().double()
    assert penalty_of(checkpoint) == pytest.approx(11 * numbers / float((e[2:] - e[0]).square().sum()), rel=1e-4)


def test_updates_end_where_a_refit_does(runs: dict[str, Path]) -> None:
    """One judgement after the other from mean and covariance alone, against all of them at once."""
    one, all_at_once = (Scorer.from_pretrained(runs["bayes"]) for _ in range(2))
    log = zoes(25, 5)
    for c in log:
        one.update_user("zoe", [c])
    all_at_once.fit_user("zoe", log)
    test = opposed_people(60, 6, people=2)
    columns = ([c.prompt for c in test], [c.chosen for c in test], [c.rejected for c in test])
    told, p, stranger = (
        torch.sigmoid(scorer.margin_batch(*columns, [user] * len(test)))
        for scorer, user in ((one, "zoe"), (all_at_once, "zoe"), (one, None))
    )
    assert float((told - p).abs().mean()) < 0.025
    assert float((told - p).abs().max()) < 0.15
    assert float((p - stranger).abs().mean()) > 0.1  # they do say something


def test_updates_in_one_go_are_updates_in_turn(runs: dict[str, Path]) -> None:
    turn, once = (Scorer.from_pretrained(runs["bayes"]) for _ in range(2))
    log = opposed_people(8, 5, people=2)
    for c in log:
        turn.update_user(c.user_id, [c])
    update_users(once.checkpoint, once.reader, log)
    for user in ("p0", "p1"):
        row = turn.users.index(user) + 1
        tables: list[Any] = [scorer.model.user_model for scorer in (turn, once)]
        torch.testing.assert_close(tables[0].means[row], tables[1].means[row])


def test_one_comparison_in_place_of_several_is_refused(runs: dict[str, Path]) -> None:
    scorer = Scorer.from_pretrained(runs["bayes"])
    for take in (scorer.fit_user, scorer.update_user):
        with pytest.raises(PrmError, match="list"):
            take("zoe", zoes(1, 0)[0])  # type: ignore[arg-type]


def test_a_uniform_model_holds_nobody(runs: dict[str, Path]) -> None:
    scorer = Scorer.from_pretrained(runs["individual"] / "uniform")
    with pytest.raises(PrmError, match="uniform"):
        scorer.fit_user("zoe", zoes(3, 0))


def test_the_command_changes_a_run_at_once_or_makes_another(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = [*zoes(40, 5), *(replace(c, user_id="p1") for c in opposed_people(10, 6, people=1))]
    write_jsonl(tmp_path / "new.jsonl", log)
    out = tmp_path / "next"
    main(["adapt", str(runs["bayes"]), str(tmp_path / "new.jsonl"), "--output", str(out)])
    told = capsys.readouterr().out
    assert "fitted 1 user with 40 comparisons" in told
    assert "updated 1 user with 10 comparisons" in told
    before, after = Scorer.from_pretrained(runs["bayes"]), Scorer.from_pretrained(out)
    assert not before.knows("zoe")
    expected = Scorer.from_pretrained(runs["bayes"])
    update_users(expected.checkpoint, expected.reader, log)
    c = zoes(1, 8)[0]
    for user in ("zoe", "p1", "p2"):
        ours = after.score(c.prompt, [c.chosen, c.rejected], user)
        assert torch.equal(ours, expected.score(c.prompt, [c.chosen, c.rejected], user))
    assert read_run(out)["adapted"] == [
        {"fingerprint": read_run(out)["adapted"][0]["fingerprint"], "comparisons": 50, "people": 2, "anew": False}
    ]
    with pytest.raises(SystemExit):
        main(["adapt", str(runs["bayes"]), str(tmp_path / "new.jsonl"), "--output", str(out)])
    assert "exists already" in capsys.readouterr().err
    forget_user(out, "zoe")
    assert "zoe" not in (out / "config.json").read_text(encoding="utf-8")
    assert "zoe" not in (out / "controls.json").read_text(encoding="utf-8")


def test_a_run_that_is_adapted_anew(runs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "anew"
    (runs["bayes"] / "evaluation-x.json").write_text("{}", encoding="utf-8")
    log = [replace(c, user_id="p1") for c in opposed_people(30, 6, people=1)]  # p1 has changed sides
    adapt_run(runs["bayes"], log, out, anew=True)
    (runs["bayes"] / "evaluation-x.json").unlink()
    assert not (out / "evaluation-x.json").exists()
    expected = Scorer.from_pretrained(runs["bayes"])
    expected.fit_user("p1", log)
    c = zoes(1, 8)[0]
    ours = Scorer.from_pretrained(out).score(c.prompt, [c.chosen, c.rejected], "p1")
    assert torch.equal(ours, expected.score(c.prompt, [c.chosen, c.rejected], "p1"))
    import json

    votes, of_log = json.loads((out / "controls.json").read_text(encoding="utf-8")), length_votes(log)
    for name in ("length_sign", "length_count"):
        assert votes[name]["p1"] == of_log[name]["p1"]  # type: ignore[literal-required]


def test_comparisons_that_the_run_holds_out_are_reported(
    runs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(runs["individual"], run)
    log = zoes(10, 5)
    write_jsonl(run / "test.jsonl", log[:4])
    adapt_run(run, log)
    assert "4 of the " in caplog.text


def test_what_is_taken_in_is_counted(runs: dict[str, Path], tmp_path: Path) -> None:
    """Of a person who is learnt anew, only what is given; of others, what came before too."""
    run, log = tmp_path / "run", zoes(7, 3)
    adapt_run(runs["individual"], [*log, *(replace(c, user_id="p1") for c in log)], run)
    assert [Scorer.from_pretrained(run).judgements(user) for user in ("zoe", "p1", "p2")] == [7, 67, 60]
    asked = [*log, *(replace(c, user_id="p2") for c in log)]
    assert find_overlap(run, Scorer.from_pretrained(run), asked) == {"own": 7, "others": 7}
    adapt_run(run, log[:2], tmp_path / "anew", anew=True)
    assert [Scorer.from_pretrained(tmp_path / "anew").judgements(user) for user in ("zoe", "p1")] == [2, 67]
    test = opposed_people(4, 9, people=2)
    assert evaluate_run(run, test).note == "'prm adapt' has added 14 comparisons to those of training"


def test_comparisons_that_a_user_was_fitted_to_are_not_added_twice(
    runs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of training or added, with any label; what a user was fitted to before the last fit from scratch is new again."""
    learnt = [c for c in opposed_people(60, 0, people=12) if c.user_id == "p1"][:9]
    learnt[0] = replace(learnt[0], chosen=learnt[0].rejected, rejected=learnt[0].chosen)
    more = [replace(c, user_id="p1") for c in opposed_people(3, 7, people=1)]
    run, plain = tmp_path / "run", tmp_path / "plain"
    adapt_run(runs["individual"], more, plain)
    assert not caplog.records
    assert adapt_run(runs["individual"], [*learnt, *more], run).further == {"p1": 3}
    assert "9 of the 12" in caplog.text
    c = zoes(1, 8)[0]
    scored = [Scorer.from_pretrained(path).score(c.prompt, [c.chosen, c.rejected], "p1") for path in (run, plain)]
    assert torch.equal(*scored)
    before = files_of(run)
    assert adapt_run(run, [*more, *learnt[:1]]).further == {}
    assert files_of(run) == before
    with pytest.raises(PrmError, match="nothing to add"):
        adapt_run(run, learnt, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    adapt_run(run, more, anew=True)
    assert find_overlap(run, Scorer.from_pretrained(run), learnt) == {"own": 9, "others": 0}  # the generic user's
    assert adapt_run(run, [*learnt, *more]).further == {"p1": 9}


def test_an_update_by_what_was_learnt_is_reported(runs: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    scorer = Scorer.from_pretrained(runs["individual"])
    scorer.update_user("zoe", zoes(4, 5))
    assert not caplog.records
    scorer.update_user("zoe", zoes(4, 5)[2:] + zoes(2, 9))
    assert "2 of these 4" in caplog.text


def files_of(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """(inode, when it was written to, content) of each file."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: (p.stat().st_ino, p.stat().st_mtime_ns, p.read_bytes()) for name, p in found.items()}


def test_a_run_from_before_kept_texts_went(runs: dict[str, Path], tmp_path: Path) -> None:
    """It loads and learns. One that did is another model, and is refused."""
    run = tmp_path / "run"
    shutil.copytree(runs["suffix"], run)

    def change(name: str, section: Callable[[Any], dict[str, Any]], key: str, value: Any) -> None:
        stored = json.loads((run / name).read_text())
        section(stored)[key] = value
        (run / name).write_text(json.dumps(stored))

    change("run.json", lambda r: r["config"]["optim"], "kept_gb", 16.0)
    scorer = Scorer.from_pretrained(run)
    scorer.fit_user("zoe", zoes(2, 5))
    assert scorer.knows("zoe")
    change("config.json", lambda c: c["reward"], "frozen_text", True)
    with pytest.raises(PrmError, match="frozen_text"):
        Scorer.from_pretrained(run)


TENSORS = {"model.safetensors", "users.safetensors", "comparisons.safetensors"}
CHANGED = TENSORS | {"config.json", "run.json", "controls.json", "README.md"}


def test_what_stays_as_it_is_has_two_names_and_is_never_written_to(runs: dict[str, Path], tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(runs["suffix"], run)
    write_jsonl(run / "test.jsonl", [*zoes(3, 7), *(replace(c, user_id="p1") for c in zoes(3, 7))])
    before = files_of(run)
    adapt_run(run, zoes(10, 5), out)
    copied = files_of(out)
    assert {name for name in copied if copied[name][0] != before[name][0]} == CHANGED
    assert {name.partition("/")[0] for name in copied.keys() - CHANGED} >= {
        "adapter",
        "tokenizer",
        "test.jsonl",
        "logs",
    }
    assert copied["model.safetensors"][2] != before["model.safetensors"][2]
    assert files_of(run) == before
    adapt_run(out, zoes(10, 6))
    forget_user(out, "p1")
    assert "zoe" in (out / "test.jsonl").read_text(encoding="utf-8")
    assert "p1" not in (out / "test.jsonl").read_text(encoding="utf-8")
    assert files_of(run) == before
    forgotten = files_of(out)
    same = {name for name in forgotten if forgotten[name][0] == before[name][0]}
    assert same == {n for n in before if not n.startswith("logs/")} - CHANGED - {"test.jsonl"}
    assert Scorer.from_pretrained(run).knows("p1")
    assert Scorer.from_pretrained(out).users == [u for u in [*Scorer.from_pretrained(run).users, "zoe"] if u != "p1"]


def test_a_file_system_without_links_gets_copies(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(source: str, target: str) -> None:
        raise OSError(errno.EXDEV, "not here")

    monkeypatch.setattr(os, "link", refused)
    adapt_run(runs["suffix"], zoes(10, 5), tmp_path / "out")
    before, after = files_of(runs["suffix"]), files_of(tmp_path / "out")
    assert before.keys() == after.keys()
    assert not {inode for inode, _, _ in before.values()} & {inode for inode, _, _ in after.values()}
    assert Scorer.from_pretrained(tmp_path / "out").knows("zoe")
