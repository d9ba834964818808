"""FSDP2 over two processes: what one process trains with twice the batch, to the same run folder, and resumed.

On CPUs accelerate is made to take FSDP (`sharded_on_cpus`). The tests marked `gpu` launch the shipped configs as they
are; no machine with a GPU has run them.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import policy.cli
import prm.cli
from prm.io.tables import write_jsonl
from tests.paths import ROOT
from tests.planted import opposed_people
from tests.prm.training.test_distributed import CONFIG, LAUNCH, alone, run

CONFIGS = ROOT / "configs" / "accelerate"
SHIM = "tests.prm.training.trainers.sharded_on_cpus"
SHARDED = [*LAUNCH[:3], "--config_file", str(CONFIGS / "8-gpus-fsdp2.yaml"), "--num_processes", "2"]
SHARDED += ["--main_process_port", "0", "-m", SHIM]
KINDS: dict[str, tuple[str, list[str]]] = {
    "soft prompt, lora": ("train", []),
    "linear head, full": (
        "train",
        ["--train", "full", "--reward.form", "linear_head", "--users.num_virtual_tokens", "1"],
    ),
    "P-DPO, lora": ("dpo", []),
    "P-DPO, full": ("dpo", ["--train", "full"]),
}
RESUMED = "soft prompt, lora"
POLICY = CONFIG.replace("train: lora\n", "").replace("reward:\n  form: soft_prompt\n", "")
FEW = ["--optim.micro_batch_size", "2", "--optim.gradient_checkpointing", "true"]


def write(folder: Path, task: str) -> None:
    (folder / "run.yaml").write_text(CONFIG if task == "train" else POLICY)
    log = [replace(c, weight=0.5 + (i % 5)) for i, c in enumerate(opposed_people(22, 0, people=2))]
    write_jsonl(folder / "log.jsonl", log)


def weights(run: Path) -> dict[str, torch.Tensor]:
    """All tensors of a run, by file and name."""
    return {
        f"{path.relative_to(run)} {name}": tensor
        for path in sorted(run.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
        if tensor.is_floating_point()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_with_sharded_weights_train_what_one_does(
    kind: str, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights and validation, with recomputed activations; the run folder has the same files."""
    task, flags = KINDS[kind]
    package, main = ("prm", prm.cli.main) if task == "train" else ("policy", policy.cli.main)
    write(tmp_path, task)
    flags = [*flags, "--backbone.name", tiny, *FEW]
    one = ["--output_dir", "one", "--optim.batch_size", "8", "--optim.micro_batch_size", "4"]
    two = [*flags, "--output_dir", "two", "--optim.batch_size", "4"]
    alone(tmp_path, main, *flags, *one, task=task)
    if kind == RESUMED:  # killed between two checkpoints
        monkeypatch.setenv("STOP_AT_STEP", "6")
        with pytest.raises(AssertionError):
            run(tmp_path, [*SHARDED, package], *two, task=task)
        monkeypatch.delenv("STOP_AT_STEP")
        assert sorted(path.name for path in (tmp_path / "two.partial" / "trainer").iterdir()) == ["checkpoint-4"]
    shown = run(tmp_path, [*SHARDED, package], *two, task=task)
    assert shown.count("done") == 1
    histories = [json.loads((tmp_path / name / "metrics.json").read_text())["history"] for name in ("one", "two")]
    assert len(histories[0]) == len(histories[1]) > 1
    for a, b in zip(*histories, strict=True):
        measured = {key for key in a if key.startswith("eval_") and not key.endswith(("loss", "runtime", "_second"))}
        assert measured
        for key in measured:
            assert a[key] == pytest.approx(b[key], abs=1e-4), key
    first, second = (weights(tmp_path / name) for name in ("one", "two"))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=2e-4, msg=f"{name}: {{}}".format)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["1-gpu", "8-gpus-ddp", "8-gpus-fsdp2"])
def test_the_shipped_files_on_gpus(name: str, tiny: str, tmp_path: Path) -> None:
    """With two of the GPUs, in float32 what one process trains; and with frozen weights in bfloat16 to the end."""
    processes = 1 if name == "1-gpu" else 2
    if torch.cuda.device_count() < processes:
        pytest.skip(f"torch sees {torch.cuda.device_count()} GPUs, and {processes} are needed")
    write(tmp_path, "train")
    launch = [*LAUNCH[:3], "--config_file", str(CONFIGS / f"{name}.yaml"), "--num_processes", str(processes)]
    launch += ["--main_process_port", "0", "-m", "prm"]
    flags = ["--backbone.name", tiny, *FEW]
    alone(tmp_path, prm.cli.main, *flags, "--output_dir", "one", "--optim.batch_size", "8")
    share = ["--optim.batch_size", str(8 // processes)]
    run(tmp_path, launch, *flags, *share, "--output_dir", "several")
    first, second = (weights(tmp_path / folder) for folder in ("one", "several"))
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        torch.testing.assert_close(second[key], tensor, rtol=0, atol=2e-3, msg=f"{key}: {{}}".format)
    run(tmp_path, launch, *flags, *share, "--output_dir", "narrow", "--backbone.dtype", "bfloat16")
    history = json.loads((tmp_path / "narrow" / "metrics.json").read_text())["history"]
    assert all(0.0 < entry["eval_nll"] < 10.0 for entry in history)
