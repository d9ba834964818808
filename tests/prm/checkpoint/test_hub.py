"""Saving from memory, uploads and downloads: what is written scores the same, and nothing else leaves the machine."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from policy import PersonalizedPolicy
from prm import PersonalizedRewardConfig, PersonalizedRewardModel, PersonalizedRewardTrainer, Scorer
from prm.checkpoint import hub
from prm.checkpoint.checkpoint import refresh_card
from prm.cli import main
from prm.errors import CheckpointError, PrmError
from prm.io.run_files import Overlap
from prm.io.tables import write_json, write_jsonl
from rerank import Sampler, Sampling
from tests.planted import opposed_people
from tests.tiny_runs import config_of, train_any

LOG = opposed_people(8, 0, people=2)
PROMPT, PAIR = "what of the fox?", ["the king mixes", "seven lazy dogs"]


class FakeHub:
    """A hub in a folder, in place of `HfApi`, `snapshot_download` and `hf_hub_download`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.private: dict[str, bool] = {}
        self.uploads: list[dict[str, Any]] = []

    def __call__(self, token: str | None = None) -> "FakeHub":
        return self

    def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> Any:
        full = repo_id if "/" in repo_id else f"me/{repo_id}"
        self.private.setdefault(full, private)
        return SimpleNamespace(repo_id=full)

    def repo_info(self, repo_id: str) -> Any:
        return SimpleNamespace(private=self.private[repo_id])

    def upload_folder(self, repo_id: str, folder_path: Path, **options: Any) -> str:
        self.uploads.append({"repo_id": repo_id, **options})
        shutil.copytree(folder_path, self.folder / repo_id, dirs_exist_ok=True)
        return f"https://hub/{repo_id}/commit/1"

    def snapshot_download(self, repo_id: str, allow_patterns: list[str], **options: Any) -> str:
        source, target = self.folder / repo_id, self.folder / "cache" / repo_id.replace("/", "--")
        if not source.is_dir():
            raise ConnectionError("404: no such repository\nwith more to read")
        for path in source.rglob("*"):
            name = path.relative_to(source).as_posix()
            if path.is_file() and any(fnmatch(name, pattern) for pattern in allow_patterns):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target / name)
        return str(target)

    def hf_hub_download(self, repo_id: str, filename: str, **options: object) -> str:
        return str(Path(self.snapshot_download(repo_id, [filename])) / filename)

    def files(self, repo_id: str) -> set[str]:
        root = self.folder / repo_id
        return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(hub, "HfApi", fake)
    monkeypatch.setattr(hub, "snapshot_download", fake.snapshot_download)
    monkeypatch.setattr(hub, "hf_hub_download", fake.hf_hub_download)
    return fake


@pytest.fixture
def run_of(tiny: str, tmp_path: Path) -> Callable[..., Path]:
    def run(kind: str, **changes: Any) -> Path:
        write_jsonl(tmp_path / "log.jsonl", LOG)
        return train_any(kind, config_of(kind, tiny, tmp_path, **changes))

    return run


def scores(scorer: Scorer) -> torch.Tensor:
    return scorer.score_users(PROMPT, PAIR, ["p0", "p1", "zoe", None])


def overlap(scorer: Scorer) -> Overlap:
    assert scorer.checkpoint.users.trained_on is not None
    return scorer.checkpoint.users.trained_on.overlap(LOG)


@pytest.mark.parametrize("kind", ["linear", "bayes", "soft", "dpo"])
def test_what_memory_holds_is_saved_to_the_bit(run_of: Any, tmp_path: Path, kind: str) -> None:
    """Users who were fitted, updated or forgotten since loading; the loaded folder stays as it was."""
    run = run_of(kind)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    scorer = Scorer.from_pretrained(run, device="cpu")
    assert overlap(scorer) == {"own": 12, "others": 0}
    if kind != "dpo":
        scorer.fit_user("zoe", [replace(c, user_id="zoe") for c in LOG[:6]])
        scorer.update_user("p0", [replace(c, user_id="p0") for c in LOG[1:4:2]])
    scorer.forget_user("p1")
    scorer.save_pretrained(tmp_path / "copy")
    loaded = Scorer.from_pretrained(tmp_path / "copy", device="cpu")
    assert torch.equal(scores(loaded), scores(scorer))
    assert loaded.users == scorer.users
    assert overlap(loaded) == overlap(scorer)
    assert "p1" not in (tmp_path / "copy/controls.json").read_text()
    assert not (tmp_path / "copy/test.jsonl").exists()
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    if kind == "linear":  # with its penalty
        loaded.fit_user("mia", [replace(c, user_id="mia") for c in LOG[:6]])


def test_a_run_is_saved_in_its_own_folder(run_of: Any) -> None:
    run = run_of("linear")
    main(["evaluate", str(run), "--json"])
    scorer = Scorer.from_pretrained(run)
    scorer.save_pretrained(run)
    assert (run / "evaluation-test.json").exists()  # nothing has changed
    scorer.fit_user("zoe", [replace(c, user_id="zoe") for c in LOG[:6]])
    scorer.save_pretrained(run)
    assert Scorer.from_pretrained(run).knows("zoe")
    assert (run / "test.jsonl").exists()
    assert not (run / "evaluation-test.json").exists()


def test_saving_replaces_no_file_and_no_other_run(run_of: Callable[[str], Path], tmp_path: Path) -> None:
    """A copy may be saved again; another run keeps what a copy does not have."""
    run, log, other = run_of("linear"), tmp_path / "log.csv", tmp_path / "other"
    scorer = Scorer.from_pretrained(run)
    log.write_text("mine")
    with pytest.raises(PrmError, match="is a file"):
        scorer.save_pretrained(log)
    assert log.read_text() == "mine"
    shutil.copytree(run, other)
    record = json.loads((other / "run.json").read_text())
    write_json(other / "run.json", record | {"data": record["data"] | {"fingerprint": "another"}})
    before = {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}
    with pytest.raises(PrmError, match=r"another run, of which .*test\.jsonl"):
        scorer.save_pretrained(other)
    assert {path: path.read_bytes() for path in other.rglob("*") if path.is_file()} == before
    for _ in range(2):
        scorer.save_pretrained(tmp_path / "copy")


def test_a_model_of_a_folder_that_is_gone_is_not_half_saved(run_of: Any, tmp_path: Path) -> None:
    scorer = Scorer.from_pretrained(run_of("soft"))
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(CheckpointError, match="is gone"):
        scorer.save_pretrained(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_an_upload_loads_again_and_leaves_out_comparisons(run_of: Any, tmp_path: Path, remote: FakeHub) -> None:
    run = run_of("linear")
    main(["evaluate", str(run), "--json"])
    scorer = Scorer.from_pretrained(run)
    address = scorer.push_to_hub("me/taste")
    assert address == "https://hub/me/taste/commit/1"
    assert remote.private == {"me/taste": True}
    files = remote.files("me/taste")
    assert {"config.json", "model.safetensors", "users.safetensors", "uniform/config.json", "README.md"} <= files
    assert not {name for name in files if name.endswith("jsonl") or name.startswith(("evaluation", "controls", "logs"))}
    everything = b"".join((remote.folder / "me/taste" / name).read_bytes() for name in files)
    assert str(tmp_path / "cache").encode() not in everything
    for name in ("code.py", "weights.bin", "train.pkl"):
        (remote.folder / "me/taste" / name).write_text("import os")
    again = Scorer.from_pretrained("me/taste")
    assert torch.equal(scores(again), scores(scorer))
    assert overlap(again) == {"own": 12, "others": 0}
    assert not list((remote.folder / "cache").rglob("*.py")) + list((remote.folder / "cache").rglob("*.bin"))
    model = PersonalizedRewardModel.from_pretrained("me/taste")
    assert torch.equal(scores(Scorer(model, cache=True)), scores(scorer))


def test_a_public_repository_and_what_the_hub_refuses(run_of: Any, remote: FakeHub) -> None:
    scorer = Scorer.from_pretrained(run_of("linear"))
    remote.private["me/open"] = False
    with pytest.raises(PrmError, match=r"public.*private=False"):
        scorer.push_to_hub("me/open")
    assert remote.uploads == []
    scorer.push_to_hub("me/open", private=False)
    with pytest.raises(CheckpointError, match=r"me/none: .*404: no such repository$"):
        Scorer.from_pretrained("me/none")
    (remote.folder / "me/other").mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        Scorer.from_pretrained("me/other")


def test_a_run_is_uploaded_when_it_is_finished(run_of: Any, remote: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of("soft", trainer={"push_to_hub": True, "hub_model_id": "me/soft", "hub_revision": "v1"})
    assert remote.uploads[0]["repo_id"] == "me/soft"
    assert remote.uploads[0]["revision"] == "v1"
    assert "test.jsonl" not in remote.files("me/soft")
    assert torch.equal(scores(Scorer.from_pretrained("me/soft")), scores(Scorer.from_pretrained(run)))

    def fail(*args: Any, **options: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(remote, "upload_folder", fail)
    with pytest.raises(PrmError, match="is finished, but not uploaded to me/run: no network"):
        run_of("soft", overwrite=True, trainer={"push_to_hub": True, "hub_model_id": "me/run"})
    assert Scorer.from_pretrained(run).users


def test_the_card_holds_what_was_measured(run_of: Any, tiny: str) -> None:
    """Valid metadata of the hub, without ids that are folders of this machine; every figure stands in a file."""
    run = run_of("linear")
    card: Any = ModelCard((run / "README.md").read_text())
    assert card.data.library_name == "personalized-rm"
    assert "reward-model" in card.data.tags
    assert card.data.base_model is None
    assert card.data.datasets is None
    best = json.loads((run / "metrics.json").read_text())["personal"]["best"]["validation_nll"]
    assert f"{best:.3f}" in card.content
    main(["evaluate", str(run), "--json"])
    text = (run / "README.md").read_text()
    for row in json.loads((run / "evaluation-test.json").read_text())["rows"]:
        assert row["name"] in text
        assert f"{100 * row['accuracy']['value']:.1f} [" in text
    assert f"{best:.3f}" not in text
    assert " 7531 " not in text
    result = json.loads((run / "evaluation-test.json").read_text())
    write_json(run / "evaluation-test.json", result | {"overlap": {"own": 7531, "others": 0}})
    refresh_card(run)
    assert " 7531 " in (run / "README.md").read_text()
    for needed in ("prm forget", "Scorer.from_pretrained", "2 users", "12 comparisons"):
        assert needed in text


def test_a_model_is_made_saved_and_shown(tiny: str, tmp_path: Path) -> None:
    users = {"kind": "cluster", "clusters": 3, "num_virtual_tokens": 2}
    model = PersonalizedRewardModel.from_backbone(
        tiny, users=users, reward={"form": "soft_prompt"}, user_ids=["a", "b"], dtype="float32"
    )
    assert model.users == ["a", "b"]
    model.save_pretrained(tmp_path / "new")
    again = PersonalizedRewardModel.from_pretrained(tmp_path / "new")
    pair = [Scorer(m).score_users(PROMPT, PAIR, ["a", "b", None]) for m in (model, again)]
    assert torch.equal(*pair)
    assert repr(again) == (
        f"PersonalizedRewardModel('soft_prompt', users='cluster', num_users=2, backbone={tiny!r}, features=['2 last'])"
    )
    assert "clusters=3" in repr(again.model.user_model)
    with pytest.raises(PrmError, match="bayes"):
        PersonalizedRewardModel.from_backbone(tiny, users={"kind": "bayes"})
    with pytest.raises(PrmError, match=r"users\.knd"):
        PersonalizedRewardModel.from_backbone(tiny, users={"knd": "uniform"})


def test_a_policy_is_sampled_from_by_its_hub_id_and_is_no_reward_model(run_of: Any, tiny: str, remote: FakeHub) -> None:
    run = run_of("dpo")
    with pytest.raises(CheckpointError, match="policy"):
        PersonalizedRewardModel.from_pretrained(run)
    PersonalizedPolicy.from_pretrained(run).push_to_hub("me/policy")
    drawn = [Sampler.from_pretrained(name).sample(PROMPT, 2, Sampling(4), "p0") for name in (run, "me/policy")]
    assert drawn[0] == drawn[1]
    shutil.copytree(tiny, remote.folder / "me/language_model")
    assert hub.local_if_run("me/language_model") == "me/language_model"  # transformers downloads that


def test_a_trainer_uploads_what_it_saves(tiny: str, tmp_path: Path, remote: FakeHub) -> None:
    args = PersonalizedRewardConfig(
        str(tmp_path / "out"), train="frozen", num_train_epochs=1, save_strategy="steps", save_steps=1,
        push_to_hub=True, hub_model_id="me/reward", dtype="float32",
    )  # fmt: skip
    trainer = PersonalizedRewardTrainer(tiny, args, train_dataset=[c.to_row() for c in LOG])
    trainer.train()
    assert remote.uploads == []
    trainer.save_model()
    assert [upload["repo_id"] for upload in remote.uploads] == ["me/reward"]
    assert remote.private == {"me/reward": True}
    assert torch.equal(scores(Scorer.from_pretrained("me/reward")), scores(Scorer(trainer.personalized)))
