"""Shards of what was read: kept every half minute, the damaged named and computed again, the same to the bit."""

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from prm.data.encoding import Encoded
from prm.errors import PrmError
from prm.features import store
from prm.features.cache_folder import clear_store
from prm.features.store import ReadHere, ShardStore, read_or_compute, store_folder, text_key
from prm.io import disk, progress
from prm.io.progress import Bar, duration

A, B = b"a" * 16, b"b" * 16
TEXTS = [Encoded([i, i + 1, i + 2], (1, 3)) for i in range(40, 50)]


class Reader:
    """Reads texts as [first id, how many are read with it]; counts what it has read, and takes its time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.0, portion: int = 2):
        self.read: list[list[int]] = []
        self.now, self.seconds, self.stop_after = 0.0, seconds, 10**9
        monkeypatch.setattr(store.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(store, "_MAX_TEXTS", portion)
        self.backbone = nn.Linear(1, 1)

    def __call__(self, texts: Sequence[Encoded], bar: Bar) -> Mapping[str, Tensor]:
        if len(self.read) == self.stop_after:
            raise KeyboardInterrupt
        self.read.append([text.ids[0] for text in texts])
        self.now += self.seconds
        bar.update(len(texts))
        return {"x": torch.tensor([[float(text.ids[0]), float(len(texts))] for text in texts])}

    def kept(self, folder: Path, texts: Sequence[Encoded] = TEXTS) -> Tensor:
        reader = ReadHere(self, self.backbone, "reading texts")
        return read_or_compute({"x": ShardStore(folder)}, texts, reader)["x"]


def damage(shard: Path, how: str) -> None:
    content = bytearray(shard.read_bytes())
    if how == "flipped":
        content[-20] ^= 0x10  # the keys, 16 bytes, are behind the numbers
    elif how == "header":
        content[:8] = b"\xff" * 8
    elif how == "key":
        content[content.rindex(b"a" * 16)] ^= 1
    shard.write_bytes(content[: len(content) // 2] if how == "cut" else b"" if how == "empty" else content)


@pytest.mark.parametrize("how", ["flipped", "cut", "header", "empty", "key"])
def test_a_damaged_shard_is_named_and_dropped(tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    kept = ShardStore(tmp_path)
    kept.write([A], torch.tensor([[1.0, 2.0]]))
    (shard,) = tmp_path.glob("*.safetensors")
    damage(shard, how)
    kept.write([B], torch.tensor([[3.0, 4.0]]))
    values, there = ShardStore(tmp_path).read([B, A])
    assert there.tolist() == [True, False]
    assert values[0].tolist() == [3.0, 4.0]
    assert str(shard) in caplog.text or how == "key"  # a key that nobody asks for is no damage that anybody meets
    if how != "key":
        assert not shard.exists()
        assert A not in ShardStore(tmp_path)


def test_numbers_that_are_none_are_neither_kept_nor_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = ShardStore(tmp_path / "x")
    with pytest.raises(PrmError, match="finite"):
        kept.write([A], torch.tensor([[float("nan")]]))
    assert not (tmp_path / "x").exists()
    monkeypatch.setattr(Tensor, "isfinite", lambda self: torch.ones_like(self, dtype=torch.bool))
    kept.write([A], torch.tensor([[float("inf")]]))
    monkeypatch.undo()
    assert ShardStore(tmp_path / "x").read([A])[1].tolist() == [False]


def test_a_damaged_shard_is_computed_again_to_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader(monkeypatch, seconds=30.0)  # a shard each portion
    first = reader.kept(tmp_path)
    shards = sorted(tmp_path.glob("*.safetensors"))
    damage(shards[2], "flipped")
    again = reader.kept(tmp_path)
    assert torch.equal(first, again)
    assert len(reader.read) == 6
    assert reader.read[5] in reader.read[:5]
    assert sorted(tmp_path.glob("*.safetensors")) == shards  # of the same bytes, and so of the same name


def test_what_was_read_is_on_disk_within_half_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten texts, ten seconds each: killed while the eighth is read, six are there."""
    reader = Reader(monkeypatch, seconds=10.0, portion=512)
    monkeypatch.setattr(store, "_portions", lambda texts, tokens: [[i] for i in range(len(texts))])
    reader.stop_after = 7
    with pytest.raises(KeyboardInterrupt):
        reader.kept(tmp_path)
    assert ShardStore(tmp_path).read([text_key(text) for text in TEXTS])[1].sum() == 6
    reader.stop_after = 10**9
    assert reader.kept(tmp_path)[:, 0].tolist() == list(range(40, 50))
    assert [ids for (ids,) in reader.read] == [*range(40, 47), *range(46, 50)]


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_portions_do_not_depend_on_kills_or_on_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    """The second column says how many texts were read together: on real backbones that moves the last bits."""
    fast = Reader(monkeypatch, portion=3).kept(tmp_path / "fast")
    reader = Reader(monkeypatch, seconds=60.0, portion=3)
    reader.stop_after = stop_after
    with pytest.raises(KeyboardInterrupt):
        reader.kept(tmp_path / "slow")
    reader.stop_after = 10**9
    assert torch.equal(reader.kept(tmp_path / "slow"), fast)
    assert len(reader.read) == 4


def test_texts_are_read_once_in_any_order_and_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader(monkeypatch)
    found = reader.kept(tmp_path, [TEXTS[3], TEXTS[0], TEXTS[3]])
    assert found[:, 0].tolist() == [43.0, 40.0, 43.0]
    assert reader.read == [[40, 43]]
    assert reader.kept(tmp_path, [TEXTS[0], TEXTS[5]])[:, 0].tolist() == [40.0, 45.0]
    assert reader.read == [[40, 43], [45]]
    assert reader.kept(tmp_path, []).shape == (0, 0)


def test_a_portion_is_about_as_much_work_as_a_slow_processor_does_in_ten_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A hundred million parameters: 1,400 tokens; whatever the clock says."""
    backbone = nn.Linear(10_000, 10_000, bias=False, device="meta").to_empty(device="cpu")
    assert ReadHere(lambda *_: {}, backbone, "reading texts").tokens_at_once() == 1400
    assert store.tokens_at_once(10**8, on_cpu=False) == 1_400_000
    texts = [Encoded([0] * n, (0, 1)) for n in (900, 400, 200, 2000, 10)]
    assert store._portions(texts, 1400) == [[0, 1], [2], [3], [4]]


def test_the_time_that_reading_takes_is_said_when_the_first_portion_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        Reader(monkeypatch, seconds=45.0).kept(tmp_path)
    said = [r.getMessage() for r in caplog.records if "about" in r.getMessage()]
    assert said == ["reading texts: about 3 minutes for 8 texts"]
    caplog.clear()
    with caplog.at_level("INFO"):
        Reader(monkeypatch, seconds=45.0).kept(tmp_path, [*TEXTS, Encoded([1], (0, 1))])  # one portion: it is over
        Reader(monkeypatch, seconds=1.0).kept(tmp_path / "quick")
    assert "about" not in caplog.text


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "1 second"), (40, "40 seconds"), (150, "2.5 minutes"), (5400, "1.5 hours")]
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words
    assert progress.duration(36_000 * 10) == "100 hours"


def test_the_position_of_the_response_is_part_of_the_key() -> None:
    assert text_key(Encoded([1, 2, 3], (1, 2))) != text_key(Encoded([1, 2, 3], (1, 3)))
    assert text_key(Encoded([1, 2, 3], (1, 2))) != text_key(Encoded([1, 2, 4], (1, 2)))


def rotary(theta: float) -> LlamaConfig:
    return LlamaConfig(rope_parameters={"rope_type": "default", "rope_theta": theta})


def test_a_store_is_known_by_all_that_its_numbers_follow_from() -> None:
    """Of log-probabilities as of hidden states: the same weights make others under another `rope_theta`."""
    usual = ("abc", rotary(1e4), torch.float32, "logps")
    others = [
        ("abd", *usual[1:]),
        ("abc", rotary(1e5), *usual[2:]),
        (*usual[:2], torch.bfloat16, "logps"),
        (*usual[:3], "2-last"),
    ]
    assert len({store_folder(*each) for each in (usual, *others)}) == 5
    assert store_folder(*usual) == store_folder("abc", rotary(1e4), torch.float32, "logps")


@pytest.mark.parametrize("step", ["write", "rename"])
def test_a_half_written_shard_is_never_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    kept = ShardStore(tmp_path)
    kept.write([A], torch.ones(1, 4))

    def die(what: str, path: Path) -> None:
        if what == step:
            path.write_bytes(b"half") if step == "write" else None
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(disk, "before", die)
        with pytest.raises(KeyboardInterrupt):
            kept.write([B], torch.ones(1, 4))
    (left,) = tmp_path.glob("*.tmp")
    assert ShardStore(tmp_path).read([A, B])[1].tolist() == [True, False]
    os.utime(left, (0, 0))
    ShardStore(tmp_path).write([B], torch.ones(1, 4))
    assert not left.exists()


def test_a_shard_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(disk, "_sync", lambda path: done.append(f"sync {path.suffix or 'folder'}"))
    monkeypatch.setattr(disk.os, "replace", lambda *_: done.append("rename"))
    ShardStore(tmp_path).write([A], torch.ones(1, 1))
    assert done == ["sync .tmp", "rename", "sync folder"]


def test_writers_and_droppers_at_the_same_time(tmp_path: Path) -> None:
    """Eight threads write the same texts and others, and damage what they find; what is read is right or not there."""
    wrong: list[object] = []

    def work(seed: int) -> None:
        try:
            for i in range(12):
                kept = ShardStore(tmp_path)
                key = bytes([i]) * 16
                kept.write([key, bytes([100 + seed]) * 16], torch.tensor([[float(i)], [float(seed)]]))
                if seed == 0:
                    for shard in list(tmp_path.glob("*.safetensors"))[:3]:
                        (tmp_path / "damage").write_bytes(b"damaged")
                        os.replace(tmp_path / "damage", shard)
                values, there = ShardStore(tmp_path).read([key])
                if there[0] and values[0, 0] != i:
                    wrong.append(values)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert wrong == []


def test_clearing_leaves_what_is_not_ours(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "2-last"
    kept = ShardStore(folder)
    kept.write([A], torch.ones(1, 1))
    (folder / "notes.txt").write_text("mine")
    clear_store(folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    (folder / "notes.txt").unlink()
    clear_store(folder)
    assert not folder.parent.exists()
