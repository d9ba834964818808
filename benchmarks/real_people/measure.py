"""One set of real people: thinned, and compared by the function of `prm compare`."""

import json
import runpy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.real_people.sets import RealPeople, thinned
from prm.config import BackboneConfig, DataConfig
from prm.data.comparison import extent
from prm.errors import PrmError
from prm.evaluation.compare.config import NAMES, CompareModelsConfig, Name
from prm.evaluation.compare.contenders import Choice, Task
from prm.evaluation.compare.run import compare_models
from prm.evaluation.compare.summary import summarise
from prm.io.disk import remove
from prm.io.folders import NOTE
from prm.io.rows import Json
from prm.io.tables import plain, write_jsonl


@dataclass(frozen=True)
class Measuring:
    """How all sets are measured.

    Args:
        data: folder of the sets.
        folder: what a killed command resumes from; a folder of each set is made in it.
        seed: of thinning, and of `prm compare`.
        folds: parts that are held out in turn.
        backbone: name or folder.
        models: names of those that are compared; none: all.
        own: files with models of the reader's (`own_model`).
    """

    data: Path
    folder: Path
    seed: int = 0
    folds: int = 3
    backbone: str = BackboneConfig.name
    models: Sequence[Name] = ()
    own: Sequence[Path] = ()

    def config(self, of: RealPeople) -> CompareModelsConfig:
        """The settings of `prm compare`."""
        folder = self.folder / of.name
        data = DataConfig(path=str(folder / "log.jsonl"), source="pairs", holdout_by=of.holdout_by)
        config = CompareModelsConfig(str(folder), self.seed, folds=self.folds, data=data)
        config.backbone.name = self.backbone
        if self.models:
            config.models = list(self.models)
        return config


def measured(of: RealPeople, how: Measuring) -> dict[str, Json]:
    """The figures of a set, JSON-ready; parts that an earlier call finished are kept.

    Raises `PrmError` if the set or a model cannot be read, or if an earlier call had other settings or data.
    """
    config = how.config(of)
    log = of.read(how.data)
    write_jsonl(config.data.path, thinned(log, of, how.seed))
    own = {file.stem: own_model(file, Path(config.output_dir)) for file in how.own}
    finished = compare_models(config, own)
    about = asdict(of) | {"seed": how.seed, "folds": how.folds, "backbone": how.backbone}
    about |= {"log": extent(log)._asdict(), "environment": _environment(Path(config.output_dir))}
    return plain(about | {"result": _shortened(summarise(finished, config.after).to_dict())})


def _environment(output_dir: Path) -> object:
    """The versions with which the first part was begun."""
    return json.loads((output_dir / NOTE).read_text(encoding="utf-8"))["environment"]


def _shortened(result: dict[str, object]) -> object:
    """Without the long parts that no page shows, and to five digits after the point."""
    left_out = ("bins", "settings", "validation_nll_by_fold")

    def short(value: object) -> object:
        if isinstance(value, dict):
            return {key: short(inner) for key, inner in value.items() if key not in left_out}
        if isinstance(value, list | tuple):
            return [short(inner) for inner in value]
        return round(value, 5) if isinstance(value, float) else value

    return short(result)


def own_model(file: Path, output_dir: Path) -> Callable[[Task], Choice]:
    """The function `choose` of a Python file, which `prm.evaluation.compare.contenders` describes.

    Parts of `output_dir` that an older version of the file has finished are removed.

    Raises `PrmError` if the file is missing, has no such function, or has the name of a model of ours.
    """
    if not file.is_file():
        raise PrmError(f"--model {file}: there is no such file")
    if file.stem in NAMES:
        raise PrmError(f"--model {file}: has the name of a model that is compared anyway; rename the file")
    choose: Callable[[Task], Choice] | None = runpy.run_path(str(file)).get("choose")
    if choose is None:
        raise PrmError(f"--model {file}: has no function 'choose(task)', which the file must define")
    for part in output_dir.glob(f"parts/*-{file.stem}.safetensors"):
        if part.stat().st_mtime < file.stat().st_mtime:
            remove(part)
    return choose
