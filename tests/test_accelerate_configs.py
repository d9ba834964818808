"""The files of `configs/accelerate/`: what the pinned accelerate makes of them, as far as it goes without GPUs."""

import shlex
from argparse import Namespace
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin, patch_environment
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

from prm.checks import built
from prm.cli.arguments import build_parser
from prm.config import DataConfig, TrainConfig
from prm.errors import PrmError
from prm.training.trainers.sharding import is_sharded, refuse_launch
from prm.training.work_folder import open_work_folder
from tests.paths import ROOT

FILES = sorted((ROOT / "configs" / "accelerate").iterdir())
PROCESSES = {"1-gpu": 1, "2x8-gpus": 16, "8-gpus-ddp": 8, "8-gpus-fsdp2": 8}


def launched(path: Path) -> tuple[Namespace, dict[str, str]]:
    """What the command in the file's first line starts: accelerate's arguments, and the processes' environment."""
    words = shlex.split(path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# "))
    assert words[:4] == ["accelerate", "launch", "--config_file", str(path.relative_to(ROOT))]
    args = launch_command_parser().parse_args(words[2:])
    args = _validate_launch_command(args)[0]
    assert args.num_machines == 1 or args.main_process_port
    args.main_process_port = 0  # any that is free here
    several = args.multi_gpu or args.use_fsdp
    environment = prepare_multi_gpu_env(args) if several else prepare_simple_launcher_cmd_env(args)[1]
    return args, environment


@pytest.fixture(autouse=True)
def _at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_there_is_a_file_for_each_machine() -> None:
    assert {path.stem for path in FILES} == PROCESSES.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_command_of_a_file_starts_what_its_name_says(path: Path) -> None:
    """accelerate refuses unknown keys, but not those of FSDP; the run takes the launch and the command's settings."""
    config = load_config_from_file(str(path))
    assert (config.num_processes, config.num_machines) == (PROCESSES[path.stem], 2 if path.stem == "2x8-gpus" else 1)
    args, environment = launched(path)
    assert set(config.fsdp_config) <= vars(args).keys()
    assert args.num_processes == PROCESSES[path.stem]
    assert (args.module, args.training_script) == (True, "prm")
    if path.stem == "2x8-gpus":
        assert (args.nproc_per_node, args.nnodes) == ("8", "2")
        assert args.rdzv_endpoint.startswith("HOST:")
    command, log, *flags = args.training_script_args
    assert (command, log) == ("train", "CONFIG.yaml")
    settings = build_parser("train").parse_args(["train", "--data.path", "log.jsonl", *flags]).settings
    assert built(TrainConfig, settings).optim.gradient_checkpointing
    with patch_environment(**environment):
        assert is_sharded() == path.stem.endswith("fsdp2")
        refuse_launch("this run", shards=True)


def test_fsdp2_is_as_the_runs_need_it() -> None:
    _, environment = launched(ROOT / "configs/accelerate/8-gpus-fsdp2.yaml")
    with patch_environment(**environment):
        plugin = FullyShardedDataParallelPlugin()
        assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
        assert plugin.auto_wrap_policy is transformer_auto_wrap_policy
        assert plugin.transformer_cls_names_to_wrap is None  # the model names its layers
        assert not plugin.cpu_ram_efficient_loading
        assert not plugin.activation_checkpointing
        with pytest.raises(PrmError, match="PPO does not shard its weights"):
            refuse_launch("PPO", shards=False)


def test_a_run_is_not_resumed_with_fsdp_switched_on(tmp_path: Path) -> None:
    """Its optimiser's state is in other files."""
    data, target = DataConfig("log.jsonl"), tmp_path / "run"
    config = TrainConfig(str(target), data=data, train="lora")
    open_work_folder(target, config, "data")
    open_work_folder(target, config, "data")
    _, environment = launched(ROOT / "configs/accelerate/8-gpus-fsdp2.yaml")
    switched = {name: value for name, value in environment.items() if "FSDP" in name}
    with patch_environment(**switched), pytest.raises(PrmError, match=r"an unfinished run .*FSDP"):
        open_work_folder(target, config, "data")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16", "mixed_precision is 'bf16'"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed"),
        ("FSDP_VERSION", "1", "fsdp_version is 1, and must be 2"),
        ("FSDP_CPU_RAM_EFFICIENT_LOADING", "true", "fsdp_cpu_ram_efficient_loading is true"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "optim.gradient_checkpointing"),
    ],
)
def test_launches_that_would_train_something_else_are_refused(name: str, value: str, said: str) -> None:
    _, environment = launched(ROOT / "configs/accelerate/8-gpus-fsdp2.yaml")
    with patch_environment(**environment | {name: value}), pytest.raises(PrmError, match=said):
        refuse_launch("this run", shards=True)
