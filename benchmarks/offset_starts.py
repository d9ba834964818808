"""Where the offsets of users' soft prompts start: at 0, as here, or at token embeddings, as in the authors' code.

`python -m benchmarks.offset_starts data/tldr` trains Table 5's row "individual, T_u 10, alpha .5" from both starts, and
its row without e_0, with several seeds, and writes `starts.json`. Finished runs are kept; a killed one is resumed.
"""

from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prm.config import TrainConfig
from prm.experiments.claims import steps_to_learn
from prm.experiments.experiment_parts import Experiment, ExperimentRow, Result
from prm.experiments.run import run_rows
from prm.io.environment import environment
from prm.io.formatting import estimated, figure
from prm.io.tables import write_json
from prm.io.yaml_settings import read_train_config
from prm.io.yaml_text import load_settings
from prm.models.reward_model import RewardModel
from prm.report import show, table
from prm.training.run import train
from prm.users.kinds import Individual

CONFIGS = ("configs/paper/tldr.yaml", "configs/paper/laptop/tldr.yaml")
STARTS: Mapping[str, tuple[str, Mapping[str, object]]] = {  # name of the folder, and settings
    "offsets at 0": ("zero", {}),
    "offsets at tokens": ("tokens", {}),
    "without e_0": ("separate", {"users.generic": False}),
}


@torch.no_grad()
def start_offsets_at_tokens(model: Individual, words: torch.Tensor, seed: int) -> None:
    """Start offsets as random token embeddings [V, d], as the authors' code does; ours start at 0."""
    generator = torch.Generator().manual_seed(seed + 1)  # `init_from_token_embeddings` draws e_0 by `seed`
    n = model.offsets.shape[0] * model.offsets.shape[1]
    draw = torch.randperm(len(words), generator=generator)[torch.arange(n) % len(words)]
    model.offsets.copy_(words[draw].float().view_as(model.offsets))


class StartAtTokens(TrainerCallback):  # type: ignore[misc]
    """Starts offsets at tokens before the first step; a resumed run keeps what it has."""

    def __init__(self, seed: int):
        self.seed = seed

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if state.global_step == 0:
            model = cast(RewardModel, kwargs["model"])
            words = cast(torch.Tensor, model.backbone.get_input_embeddings().weight)
            start_offsets_at_tokens(cast(Individual, model.user_model), words, self.seed)


def run_row(row: ExperimentRow, configure: Callable[[ExperimentRow], TrainConfig]) -> Result:
    """Train and evaluate a row, or read its result. Raises `PrmError` if its folder has other settings."""
    config = configure(row)
    if row.name.startswith("tokens") and not Path(config.output_dir).is_dir():
        train(config, callbacks=[StartAtTokens(config.seed)])
    alone = Experiment("starts", "Where offsets start", "tldr", (row,), groups="prefers")
    *_, results = run_rows(alone, configure, "prompts")
    return results[row.name]


def line_of(result: Result) -> list[str]:
    """The lowest log loss on the validation part, steps to 80% there, and held-out accuracies, as cells of a table."""
    groups = [f"{figure(100 * group.mean)} ± {figure(100 * group.error)}" for group in result.groups.values()]
    return [
        figure(min(look.nll for look in result.looks), 3),
        f"{steps_to_learn(result):g}",
        estimated(result.top, scale=100.0),
        *groups,
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, evaluate, and write `starts.json`. Raises `PrmError` if the data or a setting cannot be read."""
    parser = ArgumentParser(prog="python -m benchmarks.offset_starts", description=__doc__)
    parser.add_argument("data", help="folder of the TL;DR posts")
    parser.add_argument("--output", type=Path, default=Path("runs/offset-starts"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[123, 124, 125])
    parser.add_argument("--set", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"), help="other settings")
    args = parser.parse_args(arguments)
    given = {"data.path": args.data, **{key: load_settings(value) for key, value in args.set}}

    def configure(row: ExperimentRow) -> TrainConfig:
        settings = {**given, **row.settings, "output_dir": str(args.output / row.name)}
        return read_train_config(*CONFIGS, settings=settings)

    rows = []
    for seed in args.seeds:
        for start, (name, settings) in STARTS.items():
            rows.append(ExperimentRow(f"{name}-{seed}", f"{start}, seed {seed}", {**settings, "seed": seed}))
    results = {row.label: run_row(row, configure) for row in rows}
    found = {label: result.to_dict() for label, result in results.items()}
    write_json(args.output / "starts.json", {"rows": found, "environment": environment()})
    heads = ["run", "lowest log loss", "steps to 80%", "Accuracy-top", "majority", "minority"]
    lines = [[label, *line_of(result)] for label, result in results.items()]
    show(table("Where users' offsets start (log loss and steps: validation part)", heads, lines))


if __name__ == "__main__":
    main()
