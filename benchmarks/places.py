"""Where to put a person: in front of the text or behind it.

`python -m benchmarks.places LOG` trains each place on one log with several rates, keeps those of the best validation
likelihood, repeats them with further seeds, and writes `runs/places-LOG.json`. Runs that are there are not made anew.
"""

import json
import logging
import shutil
import time
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from prm.checkpoint.checkpoint import environment
from prm.config import FeedbackConfig, TrainConfig
from prm.data.sources import read_feedback
from prm.errors import PrmError
from prm.evaluation.evaluate import GENERIC, PERSONAL, SHUFFLED, UNIFORM, evaluate_run
from prm.io.folders import work_folder
from prm.io.tables import write_json
from prm.io.yaml_settings import read_train_config
from prm.report import show, table
from prm.training.run import train


@dataclass(frozen=True)
class Log:
    """What is learnt from.

    Args:
        config: YAML file of a reward model on it; settings: what differs here, by dotted key.
        groups: metadata field that tells people's group.
        passes: over the pairs, with users in front of the text.
    """

    config: str
    settings: Mapping[str, Any]
    groups: str | None
    passes: float


@dataclass(frozen=True)
class Trained:
    """A run in figures.

    Args:
        looks: (step, nats, accuracy) on the validation part.
        seconds_a_step: of a core, of training alone.
        rows: accuracy in [0, 1] on held-out comparisons by model or control; nats: likelihood, where it has one.
        groups: accuracy of the personal model by group of people.
    """

    seed: int
    steps: int
    looks: list[tuple[int, float, float]]
    seconds_a_step: float
    rows: dict[str, float] = field(default_factory=dict)
    nats: dict[str, float] = field(default_factory=dict)
    groups: dict[str, float] = field(default_factory=dict)

    @property
    def best(self) -> float:
        """Nats on the validation part, where training stopped by them."""
        return min(nats for _, nats, _ in self.looks)

    @property
    def seconds(self) -> float:
        """Of all steps, without looks."""
        return self.steps * self.seconds_a_step

    def seconds_to(self, nats: float) -> float:
        """Of training until the validation part has so many nats, on straight lines between looks."""
        before = (0, float(np.log(2.0)))
        for step, found, _ in self.looks:
            if found <= nats:
                share = (before[1] - nats) / (before[1] - found) if before[1] > found else 1.0
                return self.seconds_a_step * (before[0] + min(1.0, max(0.0, share)) * (step - before[0]))
            before = (step, found)
        raise ValueError(f"never had {nats} nats")


_DATA: dict[str, Any] = {"data.judges_per_pair": 1}
_COMMON: dict[str, Any] = {
    "train": "lora",
    "reward.form": "soft_prompt",
    "users.num_virtual_tokens": 4,
    "backbone.layers": 6,
    "data.validation_fraction": 0.1,
    "optim.eval_steps": 15,
}
LOGS = {
    "length": Log("configs/prm/tldr-length.yaml", {"backbone.max_length": 110, "optim.batch_size": 8}, "prefers", 1.0),
    "ukp": Log("configs/prm/ukp-linear.yaml", {"backbone.max_length": 256, "optim.batch_size": 8}, None, 0.5),
}
PLACES = {"in front": {"reward.position": "prefix"}, "suffix": {"reward.position": "suffix"}}
_LONGER = {"behind, two passes": ("suffix", 2.0)}  # what one in front takes
RATES: dict[str, Mapping[str, float]] = {
    "the defaults": {},
    "adapters x 3": {"optim.lora_lr": 3e-3},
    "people x 3": {"optim.user_lr": 3e-2},
}
_MOST_JUDGED = 500


class Runs:
    """The runs of one log under one folder."""

    def __init__(self, log: Log, folder: Path):
        self._log, self._folder = log, folder

    def run(self, place: str, rates: str, seed: int, passes: float = 1.0, judge: bool = True) -> Trained:
        """Train, and `judge` by what was held out; or read what was found before.

        Raises `PrmError` where that was with other settings.
        """
        settings = {**PLACES[place], **RATES[rates], "optim.epochs": self._log.passes * passes}
        name = "-".join([place, f"{passes:g}", rates, str(seed)]).replace(" ", "_").replace(",", "")
        config = self._config(name, seed, {**_COMMON, **self._log.settings, **settings})
        stored = self._folder / f"{name}.json"
        settings = json.loads(json.dumps(config.to_dict()))
        if stored.is_file():
            known = json.loads(stored.read_text(encoding="utf-8"))
            if known["config"] != settings:
                raise PrmError(f"{stored} was made with other settings: delete {self._folder}")
            found = Trained(**known["found"])
        else:
            found = self._trained(config)
            write_json(stored, {"config": settings, "found": asdict(found)})
        if judge and not found.rows:
            found = self._judged(found, config)
            write_json(stored, {"config": settings, "found": asdict(found)})
        return found

    def _config(self, name: str, seed: int, settings: Mapping[str, Any]) -> TrainConfig:
        place = {"seed": seed, "output_dir": str(self._folder / "runs" / name), "overwrite": True}
        return read_train_config(self._log.config, settings={**_DATA, **settings, **place})

    def _trained(self, config: TrainConfig) -> Trained:
        shutil.rmtree(work_folder(Path(config.output_dir)), ignore_errors=True)  # half a run has half the seconds
        started, busy = time.perf_counter(), time.process_time()
        run = train(config)
        at_work = (time.process_time() - busy) / (time.perf_counter() - started)  # looks wait as often as steps do
        metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
        looks = [(look["step"], look["eval_nll"], look["eval_accuracy"]) for look in metrics["history"]]
        seconds = metrics["seconds"] - sum(look["eval_runtime"] for look in metrics["history"])
        return Trained(config.seed, metrics["steps"], looks, at_work * seconds / metrics["steps"])

    def _judged(self, trained: Trained, config: TrainConfig) -> Trained:
        run = Path(config.output_dir)
        test = read_feedback(FeedbackConfig(path=str(run / "test.jsonl"))).comparisons
        test = Random(config.seed).sample(test, min(_MOST_JUDGED, len(test)))
        found = evaluate_run(run, test, self._uniform(config.seed), groups=self._log.groups)
        return replace(
            trained,
            rows={row.name: row.accuracy.value for row in found.rows},
            nats={row.name: row.nll.value for row in found.rows if row.nll is not None},
            groups={g.value: g.rows[0].accuracy for g in found.groups.groups} if found.groups is not None else {},
        )

    def _uniform(self, seed: int) -> Path:
        """The opponent: a linear head on whole texts, its penalty, depth and pooling tuned on the same comparisons."""
        config = self._config(f"heads-{seed}", seed, {})
        run = Path(config.output_dir)
        return (run if run.is_dir() else train(config)) / "uniform"


def main(arguments: Sequence[str] | None = None, folder: Path = Path("runs")) -> None:
    """Compare the places on a log."""
    parser = ArgumentParser(prog="python -m benchmarks.places", description=__doc__)
    parser.add_argument("log", choices=LOGS)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    log, under = LOGS[args.log], folder / f"places-{args.log}"
    runs = Runs(log, under)
    tried = {p: {r: runs.run(p, r, 0, judge=False).best for r in RATES} for p in PLACES}
    chosen = {p: min(of, key=lambda r: of[r]) for p, of in tried.items()}
    arms = {p: (p, 1.0) for p in PLACES} | _LONGER
    found = {
        arm: [runs.run(p, chosen[p], seed, passes) for seed in range(args.seeds)] for arm, (p, passes) in arms.items()
    }
    ratios = {"behind, to equal likelihood": equal_likelihood(found["in front"], found["suffix"])}
    summary = {"tried": tried, "chosen": chosen, "arms": {a: [asdict(t) for t in of] for a, of in found.items()}}
    write_json(folder / f"places-{args.log}.json", {**summary, "ratios": ratios, "environment": environment()})
    show(
        table(
            "validation nats of the rates, seed 0", ["", *RATES], [[p, *map(_3, t.values())] for p, t in tried.items()]
        )
    )
    show(table(f"mean of {args.seeds} seeds (standard error)", ["", *found], _rows(found)))
    show(*(f"{name}: {', '.join(map(_3, each))}" for name, each in ratios.items()))


def equal_likelihood(front: Sequence[Trained], place: Sequence[Trained]) -> list[float]:
    """Core seconds of a place over seconds in front, to nats that both reach, seed by seed.

    Seeds from which one of them learns nothing are left out.
    """
    both = [(max(a.best, b.best), a, b) for a, b in zip(front, place, strict=True)]
    return [b.seconds_to(nats) / a.seconds_to(nats) for nats, a, b in both if nats < np.log(2.0)]


def _rows(found: Mapping[str, Sequence[Trained]]) -> list[list[str]]:
    parts: dict[str, Any] = {"accuracy %": lambda t: 100 * t.rows[PERSONAL]}
    parts |= {f"{g}, %": lambda t, g=g: 100 * t.groups[g] for g in next(iter(found.values()))[0].groups}
    parts |= {
        "nats": lambda t: t.nats[PERSONAL],
        "stranger, %": lambda t: 100 * t.rows[GENERIC],
        "users shuffled, %": lambda t: 100 * t.rows[SHUFFLED],
        "uniform, tuned, %": lambda t: 100 * t.rows[UNIFORM],
        "uniform, tuned, nats": lambda t: t.nats[UNIFORM],
        "validation nats": lambda t: t.best,
        "steps": lambda t: t.steps,
        "core seconds a step": lambda t: t.seconds_a_step,
        "core seconds of training": lambda t: t.seconds,
    }
    return [[name, *(_mean([part(t) for t in of]) for of in found.values())] for name, part in parts.items()]


def _mean(values: Sequence[float]) -> str:
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return f"{_3(float(np.mean(values)))} ({error:.2g})"


def _3(value: float) -> str:
    return f"{value:.3g}"


if __name__ == "__main__":
    main()
