"""Words of a policy's responses to each simulated length user, as P-DPO goes on (paper, section 5.1 and Figure 3).

`python -m benchmarks.words_by_steps data/tldr` fine-tunes the embedded model on chosen summaries, trains it by
P-DPO (configs/policy/laptop/tldr-dpo.yaml), and answers held-out prompts for every user at several steps on the way. It
writes `words.json` and all responses. A killed command goes on where it stopped.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import NotRequired, TypedDict, cast

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from benchmarks.offset_starts import start_offsets_at_tokens
from policy.config import DpoConfig, SftConfig
from policy.dpo import build_dpo_trainer
from policy.dpo_pairs import policy_pairs
from policy.setup import new_policy, readable_by_policy
from policy.sft import train_sft
from prm.checkpoint.config_file import TrainedBy
from prm.data.baselines import count_words
from prm.data.chat_template import today
from prm.data.comparison import Comparison, prompt_key
from prm.errors import PrmError
from prm.features.extract import read_logps
from prm.io.disk import make_folder
from prm.io.environment import environment
from prm.io.folders import is_run
from prm.io.progress import progress
from prm.io.rows import Json
from prm.io.tables import plain, read_rows, write_json, write_jsonl
from prm.io.yaml_settings import read_config
from prm.io.yaml_text import load_settings
from prm.metrics import over_both
from prm.report import show
from prm.training.prepare_log import split_data
from prm.training.trainers.step_trainer import run_trainer, total_steps
from prm.users.index import UserIndex
from prm.users.kinds import Individual
from rerank.sampling.config import Sampling
from rerank.sampling.sampler import Sampler

SFT = ("configs/policy/tldr-sft.yaml", "configs/policy/laptop/tldr-sft.yaml")
DPO = ("configs/policy/tldr-dpo.yaml", "configs/policy/laptop/tldr-dpo.yaml")

_BATCH = 50  # prompts that are answered together
_MAX_TOKENS = 4096  # of a forward pass


class Answer(TypedDict):
    """A response after `step` steps. `nats`: log loss of SFT per token of its text; not for an empty response."""

    step: int
    user_id: str
    prefers: str
    prompt: str
    response: str
    nats: NotRequired[float]


class Asking(TrainerCallback):  # type: ignore[misc]
    """Answers the cases for their users after the given steps, into `path`; what is there is not asked again."""

    def __init__(self, sampler: Sampler, cases: Sequence[Comparison], steps: Sequence[int], path: Path):
        self.sampler, self.cases, self.steps, self.path = sampler, cases, steps, path

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._ask(state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._ask(state)

    def _ask(self, state: TrainerState) -> None:
        rows = read_answers(self.path)
        if state.global_step not in self.steps or any(row["step"] == state.global_step for row in rows):
            return
        policy, training = self.sampler.policy, self.sampler.policy.training
        policy.eval()
        write_jsonl(self.path, [*rows, *self._answers(state.global_step)])
        policy.train(training)

    def _answers(self, step: int) -> list[Answer]:
        sampling, responses = Sampling(max_new_tokens=48, temperature=1.0, top_p=1.0, seed=step), list[str]()
        for first in progress(range(0, len(self.cases), _BATCH), desc=f"answers after {step} steps", unit="batch"):
            part = self.cases[first : first + _BATCH]
            drawn = replace(sampling, seed=1000 * step + first)
            responses += self.sampler.sample_batch([c.prompt for c in part], [c.user_id for c in part], drawn)
        answers: list[Answer] = []
        for case, response, nats in zip(self.cases, responses, self._nats(responses), strict=True):
            prefers = str(case.metadata["prefers"])
            row: Answer = {
                "step": step,
                "user_id": case.user_id,
                "prefers": prefers,
                "prompt": prompt_key(case.prompt),
                "response": response,
            }
            answers.append({**row, "nats": nats} if response.strip() else row)
        return answers

    def _nats(self, responses: Sequence[str]) -> list[float]:
        """Log loss of SFT per token of each response's text, without its end; 0 for an empty one."""
        encoder, policy = self.sampler.encoder, self.sampler.policy
        texts = []
        for case, response in zip(self.cases, responses, strict=True):
            sequence = encoder.without_user(encoder.encode(case.prompt, response or " "))
            texts.append(sequence._replace(ids=sequence.ids[: sequence.response[1]]))
        with policy.reference() as start, progress(total=len(texts), desc="log loss of SFT", unit="response") as bar:
            logps = read_logps(start, texts, _MAX_TOKENS, bar).tolist()
        tokens = [s.response[1] - s.response[0] for s in texts]
        return [-logp / n if n else 0.0 for logp, n in zip(logps, tokens, strict=True)]


def read_answers(path: Path) -> list[Answer]:
    """The rows of a file that `Asking` wrote; none if there is no file."""
    return [row for _, row in read_rows(path)] if path.exists() else []  # type: ignore[misc]


def train(config: DpoConfig, args: Namespace, folder: Path) -> dict[str, object]:
    """Train a policy by P-DPO, and answer on the way; what it says of its validation part."""
    parts = split_data(config, partial(readable_by_policy, config))
    index = UserIndex.from_comparisons(parts.train)
    checkpoint = new_policy(config, config.users, index, TrainedBy("dpo", asdict(config.objective)), today())
    policy = checkpoint.model
    if args.offsets == "tokens":
        if not isinstance(policy.user_model, Individual):
            raise PrmError("--offsets tokens is for users of kind 'individual' with 'users.generic' true")
        start_offsets_at_tokens(
            policy.user_model, cast(torch.Tensor, policy.backbone.get_input_embeddings().weight), config.seed
        )
    a_pass = total_steps(len(parts.train), replace(config.optim, epochs=1.0))
    epochs = (args.steps - 0.5) / a_pass  # rounded up
    config = replace(config, optim=replace(config.optim, epochs=epochs))
    train_pairs = policy_pairs(checkpoint, parts.train, seed=config.seed)
    trainer = build_dpo_trainer(
        checkpoint, train_pairs, policy_pairs(checkpoint, parts.validation), config, folder / "training"
    )
    cases = held_out(parts.test, args.prompts)
    if args.at:
        trainer.add_callback(Asking(Sampler(checkpoint), cases, args.at, folder / "answers.jsonl"))
    return run_trainer(trainer)


def held_out(test: Sequence[Comparison], prompts: int) -> list[Comparison]:
    """A case for each user and each of the first held-out prompts, in the log's order."""
    keys = list(dict.fromkeys(prompt_key(c.prompt) for c in test))[:prompts]
    return [c for c in test if prompt_key(c.prompt) in set(keys) and c.metadata.get("split") != "unseen"]


def figures(rows: Sequence[Answer]) -> list[dict[str, Json]]:
    """For each step: mean words by group with intervals and by user, the share of empty responses, nats per token."""
    found = []
    for step in sorted({row["step"] for row in rows}):
        at = [row for row in rows if row["step"] == step]
        by_group: dict[str, object] = {}
        for group in sorted({row["prefers"] for row in at}):
            part = [row for row in at if row["prefers"] == group]
            full = [row for row in part if "nats" in row]
            users, prompts = [row["user_id"] for row in part], [row["prompt"] for row in part]
            by_group[group] = {
                "words": asdict(over_both([count_words(row["response"]) for row in part], users, prompts)),
                "empty": 1.0 - len(full) / len(part),
                "nats": float(np.mean([row["nats"] for row in full])) if full else None,
            }
        by_user = {
            user: float(np.mean([count_words(row["response"]) for row in at if row["user_id"] == user]))
            for user in sorted({row["user_id"] for row in at})
        }
        found.append(plain({"step": step, "groups": by_group, "words": by_user}))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, answer, and write `words.json`. Raises `PrmError` if the data or a setting cannot be read."""
    parser = ArgumentParser(prog="python -m benchmarks.words_by_steps", description=__doc__)
    parser.add_argument("data", help="folder of the TL;DR posts")
    parser.add_argument("--output", type=Path, default=Path("runs/words-by-steps"), help="folder of this run")
    parser.add_argument("--sft", type=Path, default=Path("runs/words-by-steps-sft"), help="fine-tuned here if missing")
    parser.add_argument("--steps", type=int, default=450, help="optimiser steps")
    parser.add_argument("--at", type=int, nargs="*", default=list(range(0, 451, 45)), help="steps at which it answers")
    parser.add_argument("--prompts", type=int, default=25, help="held-out prompts for each user")
    parser.add_argument("--offsets", choices=("zero", "tokens"), default="zero", help="where offsets start")
    parser.add_argument("--seed", type=int, default=123)
    parser.add_argument("--set", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"), help="other settings")
    args = parser.parse_args(arguments)
    if not is_run(args.sft):
        train_sft(read_config(SftConfig, *SFT, settings={"data.path": args.data, "output_dir": str(args.sft)}))
    given = {key: load_settings(value) for key, value in args.set}
    settings = {"data.path": args.data, "backbone.name": str(args.sft), "seed": args.seed, **given}
    config = read_config(DpoConfig, *DPO, settings=settings)
    make_folder(args.output)
    found: dict[str, object] = {"config": config.to_dict(), "offsets": args.offsets, "environment": environment()}
    found["training"] = train(config, args, args.output)
    found["steps"] = figures(read_answers(args.output / "answers.jsonl"))
    write_json(args.output / "words.json", found)
    show(str(args.output / "words.json"))


if __name__ == "__main__":
    main()
