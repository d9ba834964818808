"""A run of many people: its table and its index are read where they lie in the folder, row by row."""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from prm.checkpoint import checkpoint as checkpoints
from prm.config import TrainConfig, UserConfig
from prm.data.comparison import Comparison
from prm.errors import CheckpointError
from prm.scoring.scorer import Scorer
from prm.training.setup import new_checkpoint
from prm.users.index import UserIndex
from prm.users.kinds import Individual, Separate
from tests.conftest import resign

PEOPLE = 200_000
ANSWERS = ["a lazy dog", "seven wizards"]
SOME = ["u0", "u99999", "u199999"]


def resident() -> int:
    """Bytes of this process that lie in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def digests(folder: Path) -> list[str]:
    return [hashlib.sha256((folder / f"{n}.safetensors").read_bytes()).hexdigest() for n in ("model", "users")]


def save_people(folder: Path, backbone: str, people: int, generic: bool = True) -> Tensor:
    """A run of so many people with numbers at random; returns these, [people + 1, d]."""
    config = TrainConfig(users=UserConfig("individual", generic=generic))
    config.backbone.name = backbone
    checkpoint = new_checkpoint(config, UserIndex(f"u{i}" for i in range(people)))
    table = checkpoint.model.user_model.per_row()[0]
    with torch.no_grad():
        table[1:].normal_(generator=torch.Generator().manual_seed(0))
    folder.mkdir()
    checkpoints.save(checkpoint, folder, {})
    return table.detach()[:, 0].clone()


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, backbone_of: Callable[..., str]) -> tuple[Path, Tensor]:
    folder = tmp_path_factory.mktemp("many") / "run"
    return folder, save_people(folder, backbone_of("llama"), PEOPLE)


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc what lies in memory")
def test_loading_and_scoring_read_the_rows_they_touch(many: tuple[Path, Tensor]) -> None:
    """The table has 26 MB, the index 8 MB: a copy of either would show. Around a row up to a megabyte is mapped."""
    warm = Scorer.from_pretrained(many[0])  # what a first load and a first reading bring in besides
    warm.score("what?", ANSWERS)
    before = resident()
    scorer = Scorer.from_pretrained(many[0])
    assert resident() - before < 6_000_000  # a piece of a file for each thread that makes its digest, too
    scorer.score_users("what?", ANSWERS, SOME)
    assert all(scorer.knows(user) for user in SOME)
    assert resident() - before < 12_000_000


def test_scores_are_those_of_an_ordinary_load_to_the_bit(many: tuple[Path, Tensor]) -> None:
    scorer = Scorer.from_pretrained(many[0])
    assert torch.equal(scorer.model.user_model.per_row()[0][:, 0], many[1])
    copied = Scorer.from_pretrained(many[0])
    state = {k: v.clone() for k, v in load_file(many[0] / "model.safetensors").items()}
    copied.model.load_state_dict(state, strict=False)
    users = [*SOME, None, "nobody"]
    assert torch.equal(scorer.score_users("what?", ANSWERS, users), copied.score_users("what?", ANSWERS, users))


def test_people_learnt_in_memory_leave_the_files_as_they_are(many: tuple[Path, Tensor]) -> None:
    """Somebody known is written over, somebody new comes behind the last row; nobody else moves by a bit."""
    scorer, before = Scorer.from_pretrained(many[0]), digests(many[0])
    for user in ("u7", "zoe"):
        scorer.fit_user(user, [Comparison(user, "what?", ANSWERS[0], ANSWERS[1])])
    table = scorer.model.user_model.per_row()[0][:, 0]
    assert scorer.users[-1] == "zoe"
    assert not torch.equal(table[8], many[1][8])
    assert table[-1].any()
    others = torch.arange(PEOPLE + 1) != 8
    assert torch.equal(table[:-1][others], many[1][others])
    assert digests(many[0]) == before


def test_a_run_written_over_its_own_folder_keeps_what_it_holds(tmp_path: Path, backbone_of: Callable[..., str]) -> None:
    """Writing into a mapped file would cut it off under the hands of the model that reads it."""
    table = save_people(tmp_path / "run", backbone_of("llama"), 50)
    checkpoint = checkpoints.load(tmp_path / "run")
    checkpoints.save(checkpoint, tmp_path / "run", {})
    assert torch.equal(checkpoint.model.user_model.per_row()[0][:, 0], table)
    assert torch.equal(checkpoints.load(tmp_path / "run").model.user_model.per_row()[0][:, 0], table)
    assert not list((tmp_path / "run").glob("*.tmp"))


@pytest.mark.parametrize("kind", [Individual, Separate])
def test_rows_are_added_without_moving_the_table_each_time(kind: type[Individual] | type[Separate]) -> None:
    """Hand-made: 16 rows get room for 2 more; the next one beyond moves them."""
    model = kind(16, 1, 4)
    table = model.per_row()[0]
    with torch.no_grad():
        table.normal_()
    old, places = table.detach().clone(), []
    for n_rows in (17, 18, 19, 22):
        model.grow(n_rows)
        table = model.per_row()[0]
        places.append(table.data_ptr())
        assert torch.equal(table[:16], old)
        assert torch.equal(table[16:], old[:1].expand(n_rows - 16, 1, 4))
    assert places[0] == places[1] == places[2] != places[3]
    copy = model.subset(torch.tensor([0, 3]))
    copy.grow(3)
    assert model.per_row()[0].data_ptr() == places[3]
    assert torch.equal(copy.per_row()[0], old[[0, 3, 0]])


def test_numbers_of_another_width_are_refused(tmp_path: Path, backbone_of: Callable[..., str]) -> None:
    """A map takes them as they are: nothing would round them to what the model computes in."""
    save_people(tmp_path / "run", backbone_of("llama"), 3)
    state = load_file(tmp_path / "run/model.safetensors")
    state["user_model.offsets"] = state["user_model.offsets"].double()
    save_file(state, tmp_path / "run/model.safetensors")
    resign(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"offsets.*torch.float64.*torch.float32"):
        checkpoints.load(tmp_path / "run")


def test_a_damaged_index_is_refused(tmp_path: Path, backbone_of: Callable[..., str]) -> None:
    save_people(tmp_path / "run", backbone_of("llama"), 3)
    path = tmp_path / "run/users.safetensors"
    good = {k: v.clone() for k, v in load_file(path).items()}
    for broken, fault in [
        ({k: v for k, v in good.items() if k != "keys"}, "no int64 list 'keys'"),
        (good | {"ends": good["ends"].double()}, "no int64 list 'ends'"),
        (good | {"judgements": good["judgements"][:2].clone()}, "lists"),
        (good | {"text": good["text"][:3].clone()}, "lists"),
    ]:
        save_file(broken, path)
        resign(path.parent)
        with pytest.raises(CheckpointError, match=f"users.safetensors.*{fault}"):
            checkpoints.load(tmp_path / "run")
