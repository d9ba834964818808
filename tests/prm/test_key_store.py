"""The store of keys and values on disk: several runs at once, killed ones, damaged files, what it may take."""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from prm import features, kept_reader, key_store
from prm.config import BackboneConfig
from prm.errors import PrmError
from prm.forget import forget_user
from prm.key_store import KeptTexts, KeyStore, batches_of, ids_key, keep_texts, store_folder, stores_of
from prm.model import RewardModel
from prm.run import train
from prm.scorer import Scorer
from prm.start import new_checkpoint
from prm.tokens import Encoded
from prm.users import UserIndex
from tests.conftest import build_config, save_random
from tests.planted import opposed_people
from tests.prm.test_behind import ONE_STEP, config_of, log_of, sequences_of

ALL = 1.0  # GB


@pytest.fixture
def model(tiny: str, tmp_path: Path) -> RewardModel:
    return new_checkpoint(config_of(tiny, tmp_path), UserIndex()).model


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many texts went through a backbone, call by call; a call for the size of one token left out."""
    before, counts = key_store.read_keys, list[int]()

    def counted(backbone: nn.Module, texts: list[Any], max_tokens: int = 4096) -> Any:
        counts.extend([len(texts)] if texts != [[0]] else [])
        return before(backbone, texts, max_tokens)

    monkeypatch.setattr(key_store, "read_keys", counted)
    monkeypatch.setattr(kept_reader, "read_keys", counted)
    return counts


def shards(model: RewardModel) -> list[Path]:
    return sorted(store_folder(model).glob("*.safetensors"))


def test_a_damaged_shard_is_read_again(model: RewardModel, read: list[int]) -> None:
    sequences = sequences_of(model, 3)
    expected = keep_texts(model, sequences, ALL).batch(sequences)
    (shard,) = shards(model)
    shard.write_bytes(shard.read_bytes()[:-100])
    found = keep_texts(model, sequences, ALL).batch(sequences)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert read == [3, 3]
    assert shard not in shards(model)


def test_other_runs_may_make_room_at_any_time(model: RewardModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard that goes between listing and opening is not there; one that goes as soon as it appears is mapped."""
    sequences = sequences_of(model, 3)
    store_folder(model).mkdir(parents=True)
    (store_folder(model) / "gone.safetensors").symlink_to("nowhere")
    move = os.replace
    monkeypatch.setattr(key_store.os, "replace", lambda a, b: (move(a, b), os.unlink(b)))
    found = keep_texts(model, sequences, ALL).batch(sequences)
    assert found.keys.shape[:2] == (3, 30)
    kept = KeyStore(store_folder(model))
    kept._places = {ids_key(s.ids[:-2]): (None, i, Path("away.safetensors")) for i, s in enumerate(sequences)}  # type: ignore[misc]
    key_store._make_room(kept, list(kept._places), 0, ALL)  # mapped, but no longer on disk


def test_numbers_are_on_disk_before_their_name(model: RewardModel, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    sync, move = os.fsync, os.replace
    monkeypatch.setattr(key_store.os, "fsync", lambda file: (done.append("sync"), sync(file)))
    monkeypatch.setattr(key_store.os, "replace", lambda a, b: (done.append("name"), move(a, b)))
    keep_texts(model, sequences_of(model, 1), ALL)
    assert done == ["sync", "name"]


def test_what_killed_writes_left_goes_and_what_is_being_written_stays(model: RewardModel) -> None:
    store_folder(model).mkdir(parents=True)
    old, young = (store_folder(model) / name for name in ("old.tmp", "young.tmp"))
    for path in (old, young):
        path.write_bytes(b"half a shard")
    os.utime(old, (time.time() - 7200,) * 2)
    assert not any(ids_key(s.ids[:-2]) in KeyStore(store_folder(model)) for s in sequences_of(model, 1))
    keep_texts(model, sequences_of(model, 1), ALL)
    assert not old.exists()
    assert young.exists()


def test_what_is_refused_is_what_would_not_fit(model: RewardModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate is never less than what lies there in the end, and hardly more: beginnings too short to share."""
    pairs = [[20 + i // 2] * 7 + [100 + i] * 30 for i in range(12)]
    sequences = [Encoded([*ids, model.vocab_size, model.vocab_size + 1], (5, 9)) for ids in pairs]
    keep_texts(model, sequences, ALL)
    size = sum(path.stat().st_size for path in shards(model))
    shutil.rmtree(store_folder(model))
    with pytest.raises(PrmError, match="kept_gb"):
        keep_texts(model, sequences, 0.99 * size / 1e9)
    assert not store_folder(model).exists()
    keep_texts(model, sequences, (1.05 * size + 2048) / 1e9)


def test_a_few_texts_of_a_full_store_need_not_all_of_it(
    model: RewardModel, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard holds many texts: what it holds besides does not count against a run that needs few of them."""
    monkeypatch.setattr(key_store, "_SHARD_TOKENS", 300)
    many = sequences_of(model, 40)
    keep_texts(model, many, ALL)
    size = sum(path.stat().st_size for path in shards(model)) / 1e9
    few = [*many[::10], *sequences_of(model, 2, first=200)]
    found = keep_texts(model, few, size).batch(few)
    assert found.keys.shape[0] == 6
    assert read == [10] * 4 + [6]
    assert sum(path.stat().st_size for path in shards(model)) / 1e9 < 0.2 * size  # or another process would find both
    read.clear()
    keep_texts(model, few, size)  # as that one does
    assert read == []


def test_room_is_made_of_what_is_oldest_and_not_needed(
    model: RewardModel, backbone_of: Callable[..., str], tmp_path: Path
) -> None:
    """In whichever store it lies; what is needed stays, however old."""
    backbone = BackboneConfig(backbone_of("llama", seed=1), dtype="float32")
    other = new_checkpoint(config_of("", tmp_path, backbone=backbone), UserIndex()).model
    parts = {"needed": (model, 20), "old": (model, 40), "other": (other, 60), "young": (model, 80)}
    found: dict[str, Path] = {}
    for age, (name, (reader, first)) in zip((400, 300, 200, 100), parts.items(), strict=True):
        before = shards(reader)
        keep_texts(reader, sequences_of(reader, 6, first), ALL)
        (found[name],) = set(shards(reader)) - set(before)
        os.utime(found[name], (time.time() - age,) * 2)
    size = found["old"].stat().st_size / 1e9
    keep_texts(model, [*sequences_of(model, 6, 20), *sequences_of(model, 6, 100)], 3.5 * size)
    assert {name for name, shard in found.items() if shard.exists()} == {"needed", "young"}
    assert len(shards(model)) == 3


def test_two_runs_at_once_keep_to_the_bound(model: RewardModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is room for the texts of one of them: the other makes room when the first has written, not before."""
    first, second = sequences_of(model, 3), sequences_of(model, 3, 100)
    keep_texts(model, first, ALL)
    bound = 1.5 * shards(model)[0].stat().st_size / 1e9
    shards(model)[0].unlink()
    make_room, read_keys, began, both = key_store._make_room, key_store.read_keys, threading.Event(), threading.Event()

    def made(*args: Any) -> None:
        make_room(*args)
        (both if began.is_set() else began).set()

    def slowly(backbone: nn.Module, texts: list[Any], max_tokens: int = 4096) -> Any:
        if texts != [[0]]:
            both.wait(0.5)
        return read_keys(backbone, texts, max_tokens)

    monkeypatch.setattr(key_store, "_make_room", made)
    monkeypatch.setattr(key_store, "read_keys", slowly)
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(keep_texts, model, sequences, bound) for sequences in (first, second)]
    for run, sequences in zip(runs, (first, second), strict=True):
        assert len(run.result().batch(sequences).keys) == 3
    assert sum(shard.stat().st_size for shard in shards(model)) <= bound * 1e9


def test_a_process_that_waits_finds_what_the_first_one_read(
    model: RewardModel, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences, alone, waited = sequences_of(model, 3), key_store.processes, list[int]()

    @contextmanager
    def after_the_first() -> Iterator[None]:
        with monkeypatch.context() as first:
            first.setattr(key_store, "processes", alone)
            keep_texts(model, sequences, ALL)
        waited.extend(read)
        yield

    monkeypatch.setattr(key_store, "processes", lambda: SimpleNamespace(main_process_first=after_the_first))
    assert keep_texts(model, sequences, ALL).batch(sequences).keys.shape[0] == 3
    assert read == waited == [3]


def test_keys_are_read_without_dropout(tmp_path: Path) -> None:
    """Whatever mode the model is in, which stays so."""
    dropping = build_config("gpt_neox")
    dropping.hidden_dropout = 0.5  # type: ignore[union-attr]
    name = save_random(tmp_path / "dropping", AutoModelForCausalLM, dropping)
    model = new_checkpoint(config_of(name, tmp_path), UserIndex()).model.train()
    sequences = sequences_of(model, 2)
    found = [keep_texts(model, sequences, ALL, tmp_path / str(i)).batch(sequences).keys for i in range(2)]
    assert torch.equal(*found)
    assert model.backbone.training


def test_the_same_weights_with_other_settings_have_another_store(tiny: str, tmp_path: Path) -> None:
    """Rotations are no weights; a number of labels, which trainers set, turns nothing."""
    settings = json.loads((Path(tiny) / "config.json").read_text())
    names = []
    for change in ({}, {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, {"rms_norm_eps": 1e-3}):
        folder = tmp_path / str(len(names))
        shutil.copytree(tiny, folder)
        (folder / "config.json").write_text(json.dumps(settings | change))
        backbone = BackboneConfig(str(folder), dtype="float32")
        model = new_checkpoint(config_of("", tmp_path, backbone=backbone), UserIndex()).model
        names.append((store_folder(model), features.store_folder(model, torch.float32, (2, "last"))))
        model.config.num_labels = 1
        assert (store_folder(model), features.store_folder(model, torch.float32, (2, "last"))) == names[-1]
    assert [len(set(folders)) for folders in zip(*names, strict=True)] == [3, 3]


def test_batches_lie_where_loaders_can_pin_them(model: RewardModel) -> None:
    """In the CPU's memory, wherever the model computes."""
    sequences = sequences_of(model, 2)
    keep_texts(model, sequences, ALL)
    store = KeyStore(store_folder(model))
    batch = KeptTexts(model.to("meta"), store).batch(sequences)
    assert {field.device.type for field in batch} == {"cpu"}


def test_nothing_is_left_of_a_fit_in_memory_and_what_is_kept_is_used(model: RewardModel, read: list[int]) -> None:
    sequences = sequences_of(model, 4)
    keep_texts(model, sequences[:3], ALL)
    before = shards(model)
    with batches_of(model, sequences, ALL, cache=False) as batch_of:
        assert batch_of(sequences).keys.shape[0] == 4  # type: ignore[union-attr]
        assert len(stores_of(model)) == 2
    assert read == [3, 1]
    assert stores_of(model) == [store_folder(model)]
    assert shards(model) == before


def test_forgetting_finds_what_a_killed_fit_left(tiny: str, tmp_path: Path) -> None:
    run = train(log_of(config_of(tiny, tmp_path, optim=ONE_STEP), user_text="I like kings."))
    scorer = Scorer.from_pretrained(run)
    own = store_folder(scorer.model)  # type: ignore[arg-type]
    left = own.with_name(f"{own.name}-killed")
    shutil.copytree(own, left)
    forget_user(run, scorer.users[0])
    assert not left.exists()
    assert not own.exists()


def test_scoring_reads_nothing_that_training_kept(tiny: str, tmp_path: Path, read: list[int]) -> None:
    """With `cache`; the scores are those of reading the texts anew, and nothing is written."""
    config = log_of(config_of(tiny, tmp_path, optim=ONE_STEP))
    run = train(config)
    read.clear()
    rows = opposed_people(60, 0, people=12)
    prompts, answers, people = zip(*[(c.prompt, c.chosen, c.user_id) for c in rows], strict=True)
    found = Scorer.from_pretrained(run, cache=True).score_batch(prompts, answers, people)
    assert read == []
    expected = Scorer.from_pretrained(run).score_batch(prompts, answers, people)
    assert sum(read) == len(set(zip(prompts, answers, strict=True)))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    keys = tmp_path / "cache" / "keys"
    before = sorted(keys.rglob("*"))
    read.clear()
    mixed = Scorer.from_pretrained(run, cache=True)
    both = mixed.score_batch([prompts[0], "why?"], [answers[0], answers[0]], [people[0]] * 2)
    torch.testing.assert_close(both[0], found[0], rtol=0, atol=1e-4)
    assert read == [1]
    assert sorted(keys.rglob("*")) == before
