"""What is refused of a training run before torch is imported: settings, paths where there is nothing, and bad rows."""

from pathlib import Path
from typing import TYPE_CHECKING, get_args

from prm.checkpoint.config_file import read_config
from prm.config import PublicSet, RunConfig, SplitConfig, TrainConfig
from prm.errors import PrmError
from prm.io.folders import NOTE, refuse_existing, refuse_replacing_others, work_folder
from prm.io.tables import require_log
from prm.models.backbone_paths import locate
from prm.training.trainers.trainer_setting import refuse_trainer

if TYPE_CHECKING:
    from prm.data.sources import Feedback


def check_early(config: SplitConfig, *runs: str) -> None:
    """Raise `PrmError` for wrong settings, and for a log, a backbone or a run that is not there.

    Args:
        runs: other run folders that the settings name.
    """
    if config.start_from:  # its settings are inherited, and then checked
        read_config(Path(config.start_from))
    else:
        config.check()
    for run in runs:
        read_config(Path(run))
    if config.data.path and config.data.source not in get_args(PublicSet):
        require_log(config.data.path)
    if isinstance(config, RunConfig) and not config.start_from:
        refuse_trainer(config)
        locate(config.backbone.name)


def is_begun(config: RunConfig) -> bool:
    """Whether a run was begun and not finished, so that the same command resumes it."""
    return (work_folder(Path(config.output_dir)) / NOTE).is_file()


def refuse_workers(config: TrainConfig) -> None:
    """Raise `PrmError` for a run that has no hidden states to compute beforehand, by whatever workers."""
    if not config.fast_path:
        raise PrmError(
            "--engine ray is for linear heads on a frozen backbone, which reads the texts before training (train "
            f"'frozen', reward.form 'linear_head'); this run has train {config.train!r}, reward.form "
            f"{config.reward.form!r}: several GPUs train it with 'accelerate launch'"
        )


def refuse_finished(config: RunConfig, unless_killed: bool = True) -> None:
    """Raise `PrmError` if the run folder exists and must not be replaced, or is none, or holds the log.

    Args:
        unless_killed: accept a folder whose command was killed while it cleaned up.
    """
    target = Path(config.output_dir)
    if not config.overwrite and not (unless_killed and (target / NOTE).is_file()):
        refuse_existing(target, "set another 'output_dir', or 'overwrite: true' to replace it")
    refuse_replacing_others(target)
    log = Path(config.data.path).expanduser()
    if config.data.path and target.is_dir() and log.resolve().is_relative_to(target.resolve()):
        raise PrmError(f"{target} would be replaced, and the log {config.data.path} is in it: set another 'output_dir'")


def read_early(config: SplitConfig) -> "Feedback | None":
    """The feedback of a log in a file, for the function that trains: a bad row is found before torch is imported.

    `None` for a log that is read later: of a public data set, a `datasets` data set, or a run that continues another,
    whose settings it inherits. Raises `DataError` as `prm.data.sources.read_feedback` does.
    """
    data = config.data
    if config.start_from or data.source in get_args(PublicSet) or not Path(data.path).expanduser().is_file():
        return None
    from prm.data.sources import read_feedback

    return read_feedback(data)
