"""Texts that other processes read: the features and the run of one process, to the bit, and resumed after a kill."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers as t
from torch import Tensor

from prm.cli import main
from prm.config import BackboneConfig, LayerPooling, TrainConfig
from prm.errors import PrmError
from prm.features import store
from prm.features.hidden_states import Reading, reader_of
from prm.features.store import Portion
from prm.io.tables import write_jsonl
from prm.training.run import train
from tests.conftest import save_random
from tests.prm.training.test_setup import save_reward_model
from tests.tiny_runs import config_of, files_of, small_log

CPU = torch.device("cpu")


class InTurn:
    """`Workers` in this process, with a backbone of their own; the last portion comes first."""

    def __init__(self, stop_after: int = 10**9, elsewhere: Callable[[Reading], Reading] = lambda reading: reading):
        self.stop_after, self._elsewhere = stop_after, elsewhere
        self.texts: list[tuple[int, ...]] = []

    def on_cpu(self) -> bool:
        return True

    def read(
        self, reading: Reading, portions: Sequence[Portion]
    ) -> Iterator[tuple[int, Mapping[LayerPooling, Tensor]]]:
        read = reader_of(self._elsewhere(reading), CPU)
        for done, number in enumerate(reversed(range(len(portions)))):
            if done == self.stop_after:
                raise PrmError("no workers are left")
            self.texts += [(*text.ids, *text.response) for text in portions[number]]
            yield number, read(portions[number])


@pytest.fixture(autouse=True)
def _small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_MAX_TEXTS", 5)


def backbones(folder: Path, tiny: str) -> dict[str, BackboneConfig]:
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    bert = t.BertConfig(**shape, vocab_size=336, pad_token_id=0)  # type: ignore[arg-type]
    return {
        "llama": BackboneConfig(tiny, dtype="float32"),
        "cut": BackboneConfig(tiny, dtype="float32", layers=1),
        "bfloat16": BackboneConfig(tiny, dtype="bfloat16"),
        "encoder": BackboneConfig(save_random(folder / "bert", t.AutoModel, bert), dtype="float32"),
        "reward model": BackboneConfig(save_reward_model(folder / "rewards", "llama"), dtype="float32"),
    }


def linear(backbone: str, folder: Path) -> TrainConfig:
    config = config_of("linear", backbone, folder)
    assert isinstance(config, TrainConfig)
    return config


@pytest.mark.parametrize("kind", ["llama", "cut", "bfloat16", "encoder", "reward model"])
def test_the_run_is_that_of_one_process_to_the_bit(
    kind: str, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the backbone; all its texts are read by the workers, and a second time by nobody."""
    write_jsonl(tmp_path / "log.jsonl", small_log(16))
    config = linear(tiny, tmp_path)
    config.backbone = backbones(tmp_path, tiny)[kind]
    found, workers = dict[str, dict[str, bytes]](), InTurn()
    config.search.layers, config.search.poolings = [], ["last"] if kind == "reward model" else ["last", "mean"]
    for name in ("here", "elsewhere"):
        monkeypatch.setenv("PRM_CACHE", str(tmp_path / name))
        run = train(
            replace(config, output_dir=str(tmp_path / name / "run")), workers=workers if name != "here" else None
        )
        found[name] = files_of(run)
    assert found["here"] == found["elsewhere"]
    assert len(workers.texts) == len(set(workers.texts)) > 5
    train(replace(config, output_dir=str(tmp_path / "again")), workers=InTurn(stop_after=0))


def test_a_run_is_continued_by_workers(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its folder; the backbone is named relative to where it was trained, and workers may be elsewhere."""
    monkeypatch.chdir(Path(tiny).parent)
    write_jsonl(tmp_path / "log.jsonl", small_log())
    config = linear(Path(tiny).name, tmp_path)
    readings = list[Reading]()
    workers = InTurn(elsewhere=lambda reading: readings.append(reading) or reading)
    first = train(replace(config, output_dir=f"{Path(tiny).name}-run"), workers=workers)
    new = [replace(c, user_id="new", prompt=f"and {c.prompt}") for c in small_log()]
    write_jsonl(tmp_path / "new.jsonl", new)
    names = TrainConfig(
        start_from=str(first), overwrite=True, data=replace(config.data, path=str(tmp_path / "new.jsonl"))
    )
    found = list[bytes]()
    for given in (None, workers):
        monkeypatch.setenv("PRM_CACHE", str(tmp_path / f"cache {len(found)}"))
        run = train(replace(names, output_dir=str(tmp_path / "next")), workers=given)
        found.append((run / "model.safetensors").read_bytes())
    assert found[0] == found[1]
    assert [reading.backbone for reading in readings] == [str(Path(tiny).resolve())] * 2


def test_another_backbone_than_here_is_refused(tiny: str, backbone_of: Callable[..., str], tmp_path: Path) -> None:
    """By weights, as by what a machine has at the same path; nothing of it is kept."""
    write_jsonl(tmp_path / "log.jsonl", small_log())
    other = backbone_of("llama", seed=1)
    workers = InTurn(elsewhere=lambda reading: reading._replace(backbone=other))
    with pytest.raises(PrmError, match="has other weights or settings on"):
        train(linear(tiny, tmp_path), workers=workers)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_what_was_read_before_the_workers_died_is_kept(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is on disk as it comes, and the same command reads the rest; the run is the same to the bit."""
    write_jsonl(tmp_path / "log.jsonl", small_log(16))
    config = linear(tiny, tmp_path)
    dying, rest = InTurn(stop_after=3), InTurn()
    with pytest.raises(PrmError, match="no workers are left"):
        train(config, workers=dying)
    kept = files_of(train(config, workers=rest))
    assert not set(dying.texts) & set(rest.texts)
    assert len(dying.texts) >= 11
    monkeypatch.setenv("PRM_CACHE", str(tmp_path / "another"))
    assert files_of(train(replace(config, output_dir=str(tmp_path / "another run")))) == kept


@pytest.mark.parametrize(
    "flags",
    [
        ["--engine", "ray", "--train", "lora"],
        ["--engine", "ray", "--train", "full"],
        ["--engine", "ray", "--reward.form", "soft_prompt"],
        ["--workers", "2"],
        ["--engine", "local", "--device", "cpu"],
    ],
)
def test_runs_without_features_and_flags_without_ray_are_refused_at_once(
    flags: list[str], tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], loads: list[str]
) -> None:
    write_jsonl(tmp_path / "log.jsonl", small_log())
    command = ["train", str(tmp_path / "log.jsonl"), "--backbone.name", tiny, "--output_dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit):
        main([*command, *flags])
    said = capsys.readouterr().err
    assert "--engine ray" in said
    assert said.count("\n") == 1
    assert not loads
    assert not list(tmp_path.glob("*run*"))


def test_a_run_by_gradient_steps_is_not_continued_by_workers(tiny: str, tmp_path: Path) -> None:
    """Its settings are known when it is read."""
    write_jsonl(tmp_path / "log.jsonl", small_log())
    run = train(config_of("soft", tiny, tmp_path))  # type: ignore[arg-type]
    config = TrainConfig(str(tmp_path / "next"), start_from=str(run), data=config_of("soft", tiny, tmp_path).data)
    with pytest.raises(PrmError, match="--engine ray is for linear heads"):
        train(config, workers=InTurn())
    assert not (tmp_path / "next").exists()
