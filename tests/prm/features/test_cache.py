"""What is in the cache folder, and that nothing else is removed from it."""

import os
import threading
from pathlib import Path

import pytest

from prm.features.cache_folder import clear, entries, foreign
from prm.io.locks import locked

SHARD, OTHER = f"{'a' * 64}.safetensors", f"{'b' * 64}.safetensors"


def write(path: Path, size: int, when: float = 1e9) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    os.utime(path, (when, when))
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One entry of each kind, two of hidden states."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("PRM_CACHE", str(folder))
    write(folder / "backbones/smollm2-135m/model.safetensors", 100)
    write(folder / "backbones/smollm2-135m/config.json", 11, when=2e9)
    store = folder / f"features/{'0' * 16}-2"
    write(store / "15-mean" / SHARD, 20)
    write(store / "15-mean" / OTHER, 7)
    write(store / "30-last" / SHARD, 30)
    write(store / "logps" / SHARD, 4)
    write(folder / f"scratch/{'1' * 32}/data.arrow", 5)
    return folder


def test_entries_by_hand(cache: Path) -> None:
    found = {str(entry.folder.relative_to(cache)): (entry.kind, entry.bytes, entry.last_used) for entry in entries()}
    digest = f"features/{'0' * 16}-2"
    assert found == {
        "backbones/smollm2-135m": ("backbones", 111, 2e9),
        f"{digest}/15-mean": ("hidden_states", 27, 1e9),
        f"{digest}/30-last": ("hidden_states", 30, 1e9),
        f"{digest}/logps": ("reference_logps", 4, 1e9),
        f"scratch/{'1' * 32}": ("scratch", 5, 1e9),
    }
    assert foreign(entries()) == []


def test_clearing_a_kind_leaves_the_others(cache: Path) -> None:
    removed, busy = clear([entry for entry in entries() if entry.kind == "hidden_states"])
    assert sum(entry.bytes for entry in removed) == 57
    assert not busy
    assert [entry.kind for entry in entries()] == ["backbones", "reference_logps", "scratch"]
    assert foreign(entries()) == []


def test_clearing_all_leaves_no_folders(cache: Path) -> None:
    clear(entries())
    assert list(cache.iterdir()) == []


def test_what_others_wrote_stays(cache: Path, tmp_path: Path) -> None:
    """Names that this library does not give, and links, which may lead anywhere."""
    outside = write(tmp_path / "outside" / SHARD, 9).parent
    store = cache / f"features/{'0' * 16}-2"
    write(cache / "features/mine/15-mean" / SHARD, 1)
    (store / "linked").symlink_to(outside)
    (store / "30-last" / OTHER).symlink_to(outside / SHARD)
    others = {
        write(cache / "notes.txt", 1),
        write(cache / "backbones/my-model/model.safetensors", 1).parent,
        write(store / "15-mean/mine.safetensors", 1),
        cache / "features/mine",
        write(cache / "scratch/mine/x", 1).parent,
        store / "linked",
        store / "30-last" / OTHER,
    }
    assert set(foreign(entries())) == others
    inside = {path for other in others for path in (other, *other.rglob("*")) if path.parent != store / "linked"}
    clear(entries())
    assert {path for path in cache.rglob("*") if path.is_file()} == {path for path in inside if path.is_file()}
    assert (store / "linked").is_symlink()
    assert (outside / SHARD).exists()
    assert entries() == []


def test_what_another_command_uses_stays(cache: Path) -> None:
    entered, leave = threading.Event(), threading.Event()

    def use() -> None:
        with locked(cache / "backbones/smollm2-135m"):
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=use)
    thread.start()
    entered.wait(60)
    try:
        removed, busy = clear(entries())
    finally:
        leave.set()
        thread.join()
    assert [entry.kind for entry in busy] == ["backbones"]
    assert len(removed) == 4
    assert (cache / "backbones/smollm2-135m/model.safetensors").exists()


def test_a_cache_that_is_not_there_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRM_CACHE", str(tmp_path / "none"))
    assert entries() == []
    assert foreign([]) == []
