"""Posteriors in a run folder: mapped, whole, those of earlier versions, and damaged ones."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from prm.checkpoint import checkpoint as checkpoints
from prm.checkpoint.config_file import FORMAT
from prm.config import TrainConfig, UserConfig
from prm.data.comparison import Comparison
from prm.errors import CheckpointError
from prm.io.digests import digest_of_values
from prm.io.tensors import blocks_of
from prm.scoring.forget_user import forget_user
from prm.scoring.scorer import Scorer
from prm.training.setup import new_checkpoint
from prm.users import bayes_model
from prm.users.bayes_model import Bayes
from prm.users.index import UserIndex
from tests.conftest import resign
from tests.prm.users.test_id_table import ANSWERS, digests, resident

RANK, PEOPLE = 16, 100_000
OWN = "user_model.factors"


def save_people(folder: Path, backbone: str, people: int) -> Bayes:
    """A run of so many people with up to six columns each, at random; returns its user model."""
    config = TrainConfig(users=UserConfig("bayes", rank=RANK))
    config.backbone.name = backbone
    checkpoint = new_checkpoint(config, UserIndex(f"u{i}" for i in range(people)))
    model, draw = checkpoint.model.user_model, torch.Generator().manual_seed(0)
    assert isinstance(model, Bayes)
    with torch.no_grad():
        model.generic.normal_(generator=draw)
        model.basis.copy_(torch.linalg.qr(torch.randn(model.dim, RANK, generator=draw))[0])
        model.moment.copy_(torch.eye(RANK))
        model.set_prior(torch.eye(RANK))
        model.means[1:].normal_(std=0.1, generator=draw)
        count = torch.randint(7, (people,), generator=draw)
        columns = 0.1 + 0.2 * torch.rand(int(count.sum()), RANK, generator=draw)
        model.factors.set(torch.arange(1, people + 1), columns, count)
        model.flatness[1:] = 1.0 + 0.5 * torch.rand(people, generator=draw)
    folder.mkdir()
    checkpoints.save(checkpoint, folder, {})
    return model


def scores(run: Path | Scorer, users: list[str | None]) -> Tensor:
    """Rewards, deviations, and logits of preferring the first response, by user."""
    scorer = run if isinstance(run, Scorer) else Scorer.from_pretrained(run, device="cpu")
    found = []
    for user in users:
        found += [*scorer.score("what?", ANSWERS, user, return_std=True), scorer.gains("what?", ANSWERS, user).std]
        found.append(scorer.margin_batch(["what?"] * 2, ANSWERS, ANSWERS[::-1], [user] * 2))
    return torch.stack(found)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, backbone_of: Callable[..., str]) -> Path:
    folder = tmp_path_factory.mktemp("many") / "run"
    save_people(folder, backbone_of("llama"), PEOPLE)
    return folder


@pytest.fixture
def few(tmp_path: Path, tiny: str) -> Path:
    save_people(tmp_path / "run", tiny, 20)
    return tmp_path / "run"


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc what lies in memory")
def test_opening_and_scoring_touch_the_columns_of_those_who_are_scored(many: Path) -> None:
    """The columns have 19 MB, the other tables 8: a copy of the first would show, and so would reading all of them."""
    size = load_file(many / "model.safetensors")[f"{OWN}.vectors"].nbytes
    assert size > 18_000_000
    some: list[str | None] = ["u0", f"u{PEOPLE // 2}", f"u{PEOPLE - 1}"]
    scores(many, some)  # what a first load and a first reading bring in besides
    before = resident()
    scorer = Scorer.from_pretrained(many, device="cpu")
    assert resident() - before < 6_000_000
    scores(scorer, some)
    assert resident() - before < 14_000_000


def test_users_learnt_in_memory_leave_the_file_as_it_is_and_are_saved_in_order(few: Path, tmp_path: Path) -> None:
    """Somebody known, somebody new and somebody forgotten; nobody else moves by a bit, in memory and when saved."""
    scorer, before = Scorer.from_pretrained(few, device="cpu"), digests(few)
    users: list[str | None] = [None, *(f"u{i}" for i in range(20))]
    first = scores(scorer, users)
    scorer.update_user("u3", [Comparison("u3", "what?", ANSWERS[0], ANSWERS[1])])
    scorer.fit_user("zoe", [Comparison("zoe", "what?", ANSWERS[0], ANSWERS[1])] * 3)
    scorer.forget_user("u7")
    assert digests(few) == before
    found = scores(scorer, [*users, "zoe"])
    same = [i for i, user in enumerate(users) if user not in ("u3", "u7")]
    assert torch.equal(found[:84].view(21, 4, 2)[same], first.view(21, 4, 2)[same])
    assert not torch.equal(found[16:20], first[16:20])
    scorer.save_pretrained(tmp_path / "saved")
    assert torch.equal(scores(tmp_path / "saved", [*users, "zoe"]), found)
    state = load_file(tmp_path / "saved" / "model.safetensors")
    assert int(state[f"{OWN}.count"].sum()) == len(state[f"{OWN}.vectors"])
    assert int(state[f"{OWN}.count"][8]) == 0
    old = load_file(few / "model.safetensors")
    start = old[f"{OWN}.first"][8]
    theirs = set(old[f"{OWN}.vectors"][start : start + old[f"{OWN}.count"][8]].flatten().tolist())
    assert theirs
    assert not theirs & set(state[f"{OWN}.vectors"].flatten().tolist())


def test_forgetting_on_disk_leaves_none_of_the_columns(few: Path) -> None:
    old = load_file(few / "model.safetensors")
    row = UserIndex(f"u{i}" for i in range(20)).row("u5")
    start, count = int(old[f"{OWN}.first"][row]), int(old[f"{OWN}.count"][row])
    assert count
    theirs = [one.numpy().tobytes() for one in old[f"{OWN}.vectors"][start : start + count]]
    first = scores(few, ["u4", "u6", None])
    forget_user(few, "u5")
    content = (few / "model.safetensors").read_bytes()
    assert not any(one in content for one in theirs)
    assert torch.equal(scores(few, ["u4", "u6", None]), first)


def test_a_file_is_read_in_parts_by_hand(tmp_path: Path) -> None:
    """Five rows of three numbers, six numbers at once; a single row that is longer; nothing; and a list."""
    tensors = {"table": torch.arange(15.0).view(5, 3), "none": torch.zeros(0, 3), "list": torch.arange(7)}
    save_file(tensors, tmp_path / "a.safetensors")
    parts = {name: list(blocks_of(tmp_path / "a.safetensors", name, 6)) for name in tensors}
    assert {name: [len(part) for part in found] for name, found in parts.items()} == {
        "table": [2, 2, 1],
        "none": [],
        "list": [6, 1],
    }
    assert torch.equal(torch.cat(parts["table"]), tensors["table"])
    assert [len(part) for part in blocks_of(tmp_path / "a.safetensors", "table", 2)] == [1] * 5


def as_before(run: Path) -> None:
    """Make of a run what the version before wrote: format 3, with a table of as many columns for everybody."""
    state = {name: tensor.clone() for name, tensor in load_file(run / "model.safetensors").items()}
    vectors, first, count = (state.pop(f"{OWN}.{name}") for name in ("vectors", "first", "count"))
    dense = torch.zeros(len(count), RANK, RANK)
    for row in range(len(count)):
        if n := int(count[row]):
            dense[row, :, RANK - n :] = vectors[first[row] : first[row] + n].T
    save_file(state | {OWN: dense}, run / "model.safetensors")
    rewrite(run, format=3)


def rewrite(run: Path, **values: object) -> None:
    resign(run)
    path = run / "config.json"
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps(config | {"digest": digest_of_values(config)}))


def test_a_run_of_the_version_before_is_read_and_written_anew(few: Path, tmp_path: Path) -> None:
    """To the bit, and without columns of zeros."""
    users: list[str | None] = [None, *(f"u{i}" for i in range(20))]
    expected = scores(few, users)
    new = load_file(few / "model.safetensors")
    as_before(few)
    assert (few / "model.safetensors").stat().st_size > 20 * RANK * RANK * 4
    scorer = Scorer.from_pretrained(few, device="cpu")
    assert torch.equal(scores(scorer, users), expected)
    model = scorer.model.user_model
    assert isinstance(model, Bayes)
    assert len(model.factors.vectors) == int(model.factors.count.sum()) == len(new[f"{OWN}.vectors"])
    scorer.save_pretrained(tmp_path / "saved")
    again = load_file(tmp_path / "saved" / "model.safetensors")
    assert again.keys() == new.keys()
    assert all(torch.equal(again[name], new[name]) for name in new)
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["format"] == FORMAT
    forget_user(few, "u5")
    assert torch.equal(scores(few, users[:5]), expected[:20])
    assert json.loads((few / "config.json").read_text())["format"] == FORMAT


def changed(name: str, change: Callable[[Tensor], Tensor | None]) -> Callable[[dict[str, Tensor]], None]:
    """Change a tensor of a file; `None` leaves it out."""

    def damage(state: dict[str, Tensor]) -> None:
        tensor = change(state.pop(f"{OWN}.{name}"))
        if tensor is not None:
            state[f"{OWN}.{name}"] = tensor

    return damage


def with_value(row: int, value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor[row] = value
        return tensor

    return change


DAMAGE: dict[str, tuple[Callable[[dict[str, Tensor]], None], str]] = {
    "too many": (changed("count", with_value(3, 60)), "more than 16"),
    "less than none": (changed("count", with_value(3, -1)), "less than 0"),
    "one more": (changed("count", lambda count: count + (torch.arange(21) == 20).int()), "and it holds"),
    "elsewhere": (changed("first", with_value(7, 1e15)), "follow"),
    "before the first": (changed("first", lambda first: first - 1), "follow"),
    "no number": (changed("vectors", with_value(5, float("nan"))), "not finite"),
    "cut off": (changed("vectors", lambda vectors: vectors[:-1].clone()), "and it holds"),
    "wider": (changed("vectors", lambda vectors: vectors.repeat(1, 2)), r"shape \[\d+, 32\], expected \[\d+, 16\]"),
    "a list": (changed("vectors", lambda vectors: vectors[:, 0].clone()), r"shape \[\d+\]"),
    "a number": (changed("vectors", lambda vectors: vectors[0, 0].clone()), r"shape \[\]"),
    "none": (changed("vectors", lambda vectors: vectors[:0].clone()), "and it holds 0"),
    "64 bits": (changed("vectors", lambda vectors: vectors.double()), "float64"),
    "whole numbers of 64 bits": (changed("count", lambda count: count.long()), "int64"),
    "fewer rows": (changed("count", lambda count: count[:-1].clone()), r"shape \[20\], expected \[21\]"),
    "missing": (changed("first", lambda first: None), "missing"),
}


@pytest.mark.parametrize(("damage", "fault"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_named(few: Path, damage: Callable[[dict[str, Tensor]], None], fault: str) -> None:
    """Whatever its digest says; with nothing read of somebody else, and no error of an index."""
    state = {name: tensor.clone() for name, tensor in load_file(few / "model.safetensors").items()}
    damage(state)
    save_file(state, few / "model.safetensors")
    resign(few)
    with pytest.raises(CheckpointError, match=f"model.safetensors.*{fault}"):
        checkpoints.load(few)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda dense: dense[:-1].clone(), "missing"),
        (lambda dense: dense[:, :, :3].clone(), "missing"),
        (lambda dense: dense.double(), "float64"),
        (with_value(5, float("nan")), "not finite"),
    ],
)
def test_a_damaged_file_of_the_version_before_is_named(
    few: Path, change: Callable[[Tensor], Tensor], fault: str
) -> None:
    as_before(few)
    state = {name: tensor.clone() for name, tensor in load_file(few / "model.safetensors").items()}
    save_file(state | {OWN: change(state[OWN])}, few / "model.safetensors")
    rewrite(few, format=3)
    with pytest.raises(CheckpointError, match=f"model.safetensors.*{fault}"):
        checkpoints.load(few)


def test_a_file_that_names_more_columns_than_may_be_is_refused(few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bayes_model, "_MAX_FACTORS", 5)
    with pytest.raises(CheckpointError, match="more than 5"):
        checkpoints.load(few)
