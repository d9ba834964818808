"""Where to put a user's soft prompt: as a prefix or a suffix of the text.

`python -m benchmarks.prefix_suffix LOG` trains each position on one log with several learning rates, keeps those
with the lowest validation loss, repeats them with further seeds, and writes `runs/prefix-suffix-LOG.json`. Finished
runs are kept.
"""

import json
import logging
import shutil
import time
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random

import numpy as np

from prm.config import FeedbackConfig, TrainConfig
from prm.data.sources import read_feedback
from prm.errors import PrmError
from prm.evaluation.evaluate import GENERIC, PERSONAL, SHUFFLED, UNIFORM, evaluate_run
from prm.io.environment import environment
from prm.io.folders import work_folder
from prm.io.tables import write_json
from prm.io.yaml_settings import read_train_config
from prm.report import show, table
from prm.training.run import train


@dataclass(frozen=True)
class Log:
    """A log to train on.

    Args:
        config: YAML file of a reward model on it.
        settings: changes to these settings, by dotted key.
        groups: metadata field with the users' group.
        passes: epochs with a prefix.
    """

    config: str
    settings: Mapping[str, object]
    groups: str | None
    passes: float


@dataclass(frozen=True)
class Trained:
    """The figures of a run.

    Args:
        looks: (step, log loss in nats, accuracy) of each evaluation on the validation part.
        seconds_a_step: core seconds per step, of training alone.
        rows: accuracy in [0, 1] on held-out comparisons by model or control.
        nats: log loss on them, of models that have one.
        groups: accuracy of the personal model by group of users.
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
        """The lowest validation loss, nats."""
        return min(nats for _, nats, _ in self.looks)

    @property
    def seconds(self) -> float:
        """Core seconds of all steps, without evaluations."""
        return self.steps * self.seconds_a_step

    def seconds_to(self, nats: float) -> float:
        """Core seconds of training until the validation loss is `nats`, interpolated linearly between evaluations."""
        before = (0, float(np.log(2.0)))
        for step, loss, _ in self.looks:
            if loss <= nats:
                share = (before[1] - nats) / (before[1] - loss) if before[1] > loss else 1.0
                return self.seconds_a_step * (before[0] + min(1.0, max(0.0, share)) * (step - before[0]))
            before = (step, loss)
        raise ValueError(f"the validation loss never reached {nats} nats")


_DATA: dict[str, object] = {"data.judges_per_pair": 1}
_COMMON: dict[str, object] = {
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
POSITIONS = {"prefix": {"reward.position": "prefix"}, "suffix": {"reward.position": "suffix"}}
_LONGER = {"suffix, two passes": ("suffix", 2.0)}  # takes about as long as one pass with a prefix
RATES: dict[str, Mapping[str, float]] = {
    "the defaults": {},
    "adapters x 3": {"optim.lora_lr": 3e-3},
    "users x 3": {"optim.user_lr": 3e-2},
}
_MAX_TEST = 500  # held-out comparisons


class Runs:
    """The runs on one log, in one folder."""

    def __init__(self, log: Log, folder: Path):
        self._log, self._folder = log, folder

    def run(self, position: str, rates: str, seed: int, passes: float = 1.0, evaluate: bool = True) -> Trained:
        """Train and, with `evaluate`, evaluate on the held-out part; or load the stored result.

        Raises `PrmError` if that was made with other settings.
        """
        settings = {**POSITIONS[position], **RATES[rates], "optim.epochs": self._log.passes * passes}
        name = "-".join([position, f"{passes:g}", rates, str(seed)]).replace(" ", "_").replace(",", "")
        config = self._config(name, seed, {**_COMMON, **self._log.settings, **settings})
        stored = self._folder / f"{name}.json"
        settings = json.loads(json.dumps(config.to_dict()))
        if stored.is_file():
            known = json.loads(stored.read_text(encoding="utf-8"))
            if known["config"] != settings:
                raise PrmError(f"{stored} was made with other settings: delete {self._folder}")
            trained = Trained(**known["found"])
        else:
            trained = self._trained(config)
            write_json(stored, {"config": settings, "found": asdict(trained)})
        if evaluate and not trained.rows:
            trained = self._evaluated(trained, config)
            write_json(stored, {"config": settings, "found": asdict(trained)})
        return trained

    def _config(self, name: str, seed: int, settings: Mapping[str, object]) -> TrainConfig:
        run = {"seed": seed, "output_dir": str(self._folder / "runs" / name), "overwrite": True}
        return read_train_config(self._log.config, settings={**_DATA, **settings, **run})

    def _trained(self, config: TrainConfig) -> Trained:
        shutil.rmtree(
            work_folder(Path(config.output_dir)), ignore_errors=True
        )  # a resumed run would count only part of the seconds
        started, busy = time.perf_counter(), time.process_time()
        run = train(config)
        share = (time.process_time() - busy) / (
            time.perf_counter() - started
        )  # of time on a core; assumed equal in steps and evaluations
        metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
        looks = [(row["step"], row["eval_nll"], row["eval_accuracy"]) for row in metrics["history"]]
        seconds = metrics["seconds"] - sum(row["eval_runtime"] for row in metrics["history"])
        return Trained(config.seed, metrics["steps"], looks, share * seconds / metrics["steps"])

    def _evaluated(self, trained: Trained, config: TrainConfig) -> Trained:
        run = Path(config.output_dir)
        test = read_feedback(FeedbackConfig(path=str(run / "test.jsonl"))).comparisons
        test = Random(config.seed).sample(test, min(_MAX_TEST, len(test)))
        result = evaluate_run(run, test, self._uniform(config.seed), groups=self._log.groups)
        return replace(
            trained,
            rows={row.name: row.accuracy.value for row in result.rows},
            nats={row.name: row.nll.value for row in result.rows if row.nll is not None},
            groups={g.value: g.rows[0].accuracy for g in result.groups.groups} if result.groups is not None else {},
        )

    def _uniform(self, seed: int) -> Path:
        """The baseline: a uniform linear head, with penalty, layer and pooling tuned on the same comparisons."""
        config = self._config(f"heads-{seed}", seed, {})
        run = Path(config.output_dir)
        return (run if run.is_dir() else train(config)) / "uniform"


def main(arguments: Sequence[str] | None = None, folder: Path = Path("runs")) -> None:
    """Compare the positions on a log."""
    parser = ArgumentParser(prog="python -m benchmarks.prefix_suffix", description=__doc__)
    parser.add_argument("log", choices=LOGS)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    log, under = LOGS[args.log], folder / f"positions-{args.log}"
    runs = Runs(log, under)
    tried = {p: {r: runs.run(p, r, 0, evaluate=False).best for r in RATES} for p in POSITIONS}
    chosen = {p: min(losses, key=lambda r: losses[r]) for p, losses in tried.items()}
    arms = {p: (p, 1.0) for p in POSITIONS} | _LONGER
    results = {
        arm: [runs.run(p, chosen[p], seed, passes) for seed in range(args.seeds)] for arm, (p, passes) in arms.items()
    }
    ratios = {"suffix, to equal likelihood": equal_likelihood(results["prefix"], results["suffix"])}
    summary = {"tried": tried, "chosen": chosen, "arms": {a: [asdict(t) for t in each] for a, each in results.items()}}
    write_json(folder / f"positions-{args.log}.json", {**summary, "ratios": ratios, "environment": environment()})
    show(
        table(
            "validation loss of the rates (nats), seed 0",
            ["", *RATES],
            [[p, *map(_3, t.values())] for p, t in tried.items()],
        )
    )
    show(table(f"mean of {args.seeds} seeds (standard error)", ["", *results], _rows(results)))
    show(*(f"{name}: {', '.join(map(_3, each))}" for name, each in ratios.items()))


def equal_likelihood(prefix: Sequence[Trained], other: Sequence[Trained]) -> list[float]:
    """Core seconds of a position over those of the prefix, to the lowest loss that both reach, by seed.

    Leaves out seeds with which one of them does not get below log 2.
    """
    both = [(max(a.best, b.best), a, b) for a, b in zip(prefix, other, strict=True)]
    return [b.seconds_to(nats) / a.seconds_to(nats) for nats, a, b in both if nats < np.log(2.0)]


def _rows(results: Mapping[str, Sequence[Trained]]) -> list[list[str]]:
    parts: dict[str, Callable[[Trained], float]] = {"accuracy %": lambda t: 100 * t.rows[PERSONAL]}
    parts |= {f"{group}, %": partial(_percent_in, group) for group in next(iter(results.values()))[0].groups}
    parts |= {
        "log loss, nats": lambda t: t.nats[PERSONAL],
        "generic user, %": lambda t: 100 * t.rows[GENERIC],
        "users shuffled, %": lambda t: 100 * t.rows[SHUFFLED],
        "uniform, tuned, %": lambda t: 100 * t.rows[UNIFORM],
        "uniform, tuned, log loss, nats": lambda t: t.nats[UNIFORM],
        "validation loss, nats": lambda t: t.best,
        "steps": lambda t: t.steps,
        "core seconds per step": lambda t: t.seconds_a_step,
        "core seconds of training": lambda t: t.seconds,
    }
    return [[name, *(_mean([part(t) for t in each]) for each in results.values())] for name, part in parts.items()]


def _percent_in(group: str, trained: Trained) -> float:
    return 100 * trained.groups[group]


def _mean(values: Sequence[float]) -> str:
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return f"{_3(float(np.mean(values)))} ({error:.2g})"


def _3(value: float) -> str:
    return f"{value:.3g}"


if __name__ == "__main__":
    main()
