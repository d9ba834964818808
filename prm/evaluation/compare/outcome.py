"""The outcome of a comparison, and the settings that train the model it recommends."""

from dataclasses import dataclass
from pathlib import Path

from prm.evaluation.compare.config import CompareModelsConfig
from prm.evaluation.compare.recipe import recipe
from prm.evaluation.compare.run import compare_models
from prm.evaluation.compare.summary import Comparisons, summarise
from prm.evaluation.compare.verdict import CompareVerdict, verdict_on
from prm.features.hidden_states import Workers
from prm.io.disk import remove
from prm.io.tables import write_text

_ALL_TRAIN = """# Every comparison trains: prm compare has measured the model on parts that were held out.
# To hold out a part for prm evaluate, add --data.test_fraction 0.2.
"""


@dataclass(frozen=True)
class Outcome:
    """The result, its verdict, and the YAML of the model to train, "" if none is to be trained."""

    result: Comparisons
    verdict: CompareVerdict
    recipe: str
    recipe_file: Path


def compare_and_write(config: CompareModelsConfig, workers: Workers | None = None) -> Outcome:
    """Compare the models, and write `train.yaml`, the settings that train the recommended one.

    `workers`, and what is raised, as of `compare_models`.
    """
    finished = compare_models(config, workers=workers)
    result = summarise(finished, config.after)
    verdict = verdict_on(result)
    path, text = Path(config.output_dir) / "train.yaml", ""
    if verdict.train is None:
        remove(path)
    else:
        settings = [part.record.settings for part in finished.results[verdict.train]]
        text = recipe(config, verdict.train, settings, finished.problem.has_user_text)
        write_text(path, f"# prm train {path}\n{_ALL_TRAIN}{text}")
    return Outcome(result, verdict, text, path)
