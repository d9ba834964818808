"""PPO: train a policy on a personalised reward of its own responses (Schulman et al. 2017; Ziegler et al. 2019).

A step samples responses for users in turn, scores them, and trains on them for several epochs of minibatches. The
reward of a token is -kl_coef (log pi - log pi_ref), plus the response's score at the last token. A step's random
numbers depend only on the seed and the step's number, so that weights, optimiser state and number resume a killed run
to the bit.
"""

import json
import logging
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import torch
from accelerate.utils import gather_object, reduce
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback, TrainingArguments

from policy.config import NO_REWARD, PpoConfig
from policy.ppo.callbacks import LoopCallbacks
from policy.ppo.losses import (
    clipped_policy_loss,
    clipped_value_loss,
    explained_variance,
    gae,
    kl_estimate,
    moments,
    whiten,
)
from policy.ppo.metrics import answer_rows, samples_of_step, step_metrics, users_of_step
from policy.ppo.roles import Roles, on_device
from policy.ppo.rollouts import PromptSampler, RolloutGenerator, Rollouts, minibatches, prompt_sampler_of
from policy.ppo.shared_reward import shared_reward
from policy.rewards.personal import PersonalReward, RewardFunc
from policy.rewards.scales import SCALE_FILE, Scales, fix_scales, load_or_fix_scales
from policy.setup import new_policy, readable_by_policy
from prm.checkpoint import checkpoint as checkpoints
from prm.checkpoint.checkpoint import Checkpoint
from prm.checkpoint.config_file import TrainedBy
from prm.config import require
from prm.data.comparison import Comparison
from prm.errors import PrmError
from prm.io.disk import make_folder
from prm.io.progress import progress
from prm.io.run_files import Metrics, RunRecord
from prm.io.tables import write_json, write_jsonl
from prm.io.tensors import write_tensors
from prm.models.backbones import processes
from prm.models.policy_model import Policy
from prm.scoring.user_warnings import warn_about_users
from prm.training.data_split import DataSplit, Log, split_data
from prm.training.optimizer import RowAdamW, rate
from prm.training.run import make_run
from prm.training.trainer_keys import passed_on, refuse_callbacks
from prm.training.trainer_states import keep_last, last_intact, seal, state_folder
from prm.training.work_folder import STATES
from prm.users.index import UserIndex
from rerank.sampling.sampler import Sampler

logger = logging.getLogger(__name__)

_STATE, _TABLES = "state.safetensors", "tables.json"
_LOSSES = ("policy_loss", "value_loss", "clipped", "value_clipped")  # means over the tokens of a step's epochs


def train_ppo(
    config: PpoConfig,
    reward: RewardFunc | None = None,
    log: Log | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Path:
    """Train a policy by PPO; return the run folder, which appears when training has finished.

    The same call resumes a killed run, with the same result as an uninterrupted one. Raises `PrmError` as
    `policy.dpo.train_dpo` does, and if `config.reward` is not a run.

    Args:
        reward: a function to use instead of `config.reward`.
        log: as in `policy.dpo.train_dpo`.
        callbacks: of transformers; they see steps and logs, and may end training.
    """
    refuse_callbacks(callbacks)
    named = bool(config.reward)
    require(named or reward is not None, "reward", NO_REWARD)
    require(not named or reward is None, "reward", "and a function as the reward exclude each other")
    if named:
        checkpoints.read_config(Path(config.reward))
    return make_run(
        config,
        checkpoints.POLICY,
        partial(split_data, config, partial(readable_by_policy, config, sides=()), log),
        partial(_fit, config, reward, callbacks),
    )


def _fit(
    config: PpoConfig,
    reward: RewardFunc | None,
    callbacks: Sequence[TrainerCallback],
    parts: DataSplit,
    work: Path,
    run: RunRecord,
) -> Metrics:
    index = UserIndex.from_comparisons(parts.train)
    checkpoint = new_policy(config, config.users, index, TrainedBy("ppo", asdict(config.ppo)), run["day"])
    started = start_training(checkpoint, reward or config.reward, config, parts.train, work, callbacks)
    metrics = started.training.run(checkpoints.digest(Path(config.reward)) if config.reward else None)
    if processes().is_main_process:
        parameters = started.training.roles.detach_policy().trained_parameters()
        run |= {"parameters": parameters, "prompts_too_long": started.prompts_too_long}
        checkpoints.save(checkpoint, work, run)
    return {**metrics, "shares_backbone": started.shares_backbone}


@dataclass(frozen=True)
class StartedTraining:
    """A training that can be run.

    Args:
        prompts_too_long: number of prompts that were left out.
        shares_backbone: whether the reward model reads with the policy's own language model.
    """

    training: "Training"
    prompts_too_long: int
    shares_backbone: bool


def start_training(
    checkpoint: Checkpoint[Policy],
    reward: RewardFunc | str | Path,
    config: PpoConfig,
    comparisons: Sequence[Comparison],
    work: Path,
    callbacks: Sequence[TrainerCallback] = (),
    arguments: TrainingArguments | None = None,
) -> StartedTraining:
    """Put all roles on the policy's language model, load the reward and fix its scales.

    Args:
        reward: a function, or the run folder of a reward model.
        comparisons: their prompts and users are asked.
        arguments: of trackers and logs; by default those of `config.trainer`.
    """
    index, roles, shared = checkpoint.users, Roles(checkpoint.model, config.seed), False
    if isinstance(reward, str | Path):
        reward, shared = shared_reward(reward, roles)
    if isinstance(reward, PersonalReward) and processes().is_main_process:
        warn_about_users(reward.scorer, index.ids)
    generator = RolloutGenerator(Sampler(checkpoint), roles, reward, config)
    turns, too_long = prompt_sampler_of(comparisons, generator.sampler, config)
    logger.info("%d prompts, %d too long and left out, %d users", len(turns.prompts), too_long, len(index.ids))
    scales = load_or_fix_scales(work / SCALE_FILE, partial(_scales, generator, turns, config))
    training = Training(config, roles, generator, turns, scales, work)
    training.callbacks = LoopCallbacks(
        arguments or training_arguments(config, work),
        callbacks,
        checkpoint.model,
        checkpoint.tokenizer,
        config.ppo.max_steps,
    )
    return StartedTraining(training, too_long, shared)


def training_arguments(config: PpoConfig, work: Path) -> TrainingArguments:
    """What callbacks see of the settings, and which trackers there are."""
    given: dict[str, Any] = {"report_to": "none", "logging_steps": 1} | passed_on(config.trainer)
    return TrainingArguments(output_dir=str(work), max_steps=config.ppo.max_steps, seed=config.seed, **given)


def _scales(generator: RolloutGenerator, turns: PromptSampler, config: PpoConfig) -> Scales:
    prompts = [turn.prompt for turn in turns.take(0, config.ppo.num_scale_samples)]
    return fix_scales(
        generator.reward, prompts, generator.reference_answers(prompts, _seed(config, "scale")), turns.people
    )


class StepsTaken(TypedDict):
    """The number of steps, and the metrics of each."""

    steps: int
    history: list[dict[str, float]]


class _Tables(TypedDict):
    """What a run has written so far: metrics by step, and rows of `people.jsonl` and `samples.jsonl`."""

    history: list[dict[str, float]]
    people: list[dict[str, object]]
    samples: list[dict[str, object]]


class Training:
    """The training loop, the optimiser, and the state on disk to resume from.

    Args:
        work: the run's working folder.
    """

    def __init__(
        self,
        config: PpoConfig,
        roles: Roles,
        generator: RolloutGenerator,
        turns: PromptSampler,
        scales: Scales,
        work: Path,
    ):
        self.config, self.roles, self.generator, self.turns, self.scales = config, roles, generator, turns, scales
        self.optimizer = RowAdamW(roles.groups(config.optim), betas=(0.9, 0.98))
        self.work, self.states = work, work / STATES
        self.step = 0
        self.callbacks: LoopCallbacks | None = None
        self.tables: _Tables = {"history": [], "people": [], "samples": []}

    def run(self, reward: str | None) -> StepsTaken:
        """Run the remaining steps; return metrics. A saved state with another `reward` digest is refused."""
        self._load(reward)
        main, total = processes().is_main_process, self.config.ppo.max_steps
        log = SummaryWriter(str(self.work / "logs"), purge_step=self.step) if main else None
        watch = self.callbacks
        if watch:
            watch.begin(self.step)
        with progress(total=total, initial=self.step, desc="PPO", unit="step") as bar:
            while self.step < total and not (watch and watch.stopped):
                metrics = self.take_step()
                self.step += 1
                if log:
                    for name, value in metrics.items():
                        log.add_scalar(f"ppo/{name}", value, self.step)
                bar.set_postfix({k: f"{metrics[k]:.3g}" for k in ("reward", "kl", "length")}, refresh=False)
                bar.update()
                if watch:
                    watch.step(self.step, metrics)
                is_last = self.step == total or (watch is not None and watch.stopped)
                if self.step % self.config.optim.eval_steps == 0 or is_last:
                    self._save(reward)
        if watch:
            watch.end()
        if log:
            log.close()
        if main:
            self._write_tables()  # missing or outdated if the run was killed after its last state
        return {"steps": self.step, "history": self.tables["history"]}

    def take_step(self) -> dict[str, float]:
        """Sample, score and train; return the step's metrics, which are also stored in `tables`."""
        config, started = self.config, time.perf_counter()
        state, num_generations = processes(), config.ppo.num_generations
        n = config.ppo.rollout_batch_size // num_generations
        first = (self.step * state.num_processes + state.process_index) * n
        turns = [turn for turn in self.turns.take(first, n) for _ in range(num_generations)]
        seed = _seed(config, "draw", self.step, state.process_index)
        rollouts = self.generator.rollouts(turns, seed, self.scales, self._order_seed)
        sampled_at = time.perf_counter()
        losses = self.learn(rollouts)
        rows = gather_object(answer_rows(rollouts))
        metrics = {"step": self.step + 1, **step_metrics(rows), **losses}
        metrics["seconds"], metrics["seconds_drawing"] = time.perf_counter() - started, sampled_at - started
        self.tables["history"].append(metrics)
        self.tables["people"] += users_of_step(self.step + 1, rows)
        if (self.step + 1) % config.optim.eval_steps == 0 or self.step + 1 == config.ppo.max_steps:
            self.tables["samples"] += samples_of_step(self.step + 1, rows)
        return metrics

    def learn(self, rollouts: Rollouts) -> dict[str, float]:
        """Train on rollouts of the current policy; return the losses and the explained variance."""
        advantages, returns = advantages_of(rollouts, self.config)
        errors, targets = (reduce(moments(column, rollouts.mask), "sum") for column in (advantages, returns))
        losses = self._run_epochs(rollouts, whiten(advantages, rollouts.mask, errors), returns)
        return {**losses, "explained_variance": explained_variance(errors, targets)}

    def _run_epochs(self, rollouts: Rollouts, advantages: Tensor, returns: Tensor) -> dict[str, float]:
        """Train for several epochs; a minibatch's loss is the mean over its tokens of all processes."""
        config = self.config
        lr_factor = rate(self.step, config.ppo.max_steps, config.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * lr_factor
        loss_sums = torch.zeros(5, dtype=torch.float64, device=advantages.device)
        batches = minibatches(self.roles, rollouts.sequences, config, self._order_seed)
        for number in self._minibatch_order(len(batches)):
            tokens = reduce(rollouts.mask[torch.cat(batches[number])].sum(), "sum")
            self.optimizer.zero_grad(set_to_none=True)
            for rows in batches[number]:
                loss_sums += self._backward(rollouts, rows, advantages, returns, tokens)
            for parameter in self.roles.trained().values():
                if parameter.grad is not None:
                    parameter.grad = reduce(parameter.grad, "sum")
            self.optimizer.step()
        loss_sums = reduce(loss_sums, "sum")
        if not loss_sums.isfinite().all():
            raise PrmError("a loss is not finite: lower the learning rates, or use backbone.dtype float32")
        return dict(zip(_LOSSES, (loss_sums[:-1] / loss_sums[-1]).tolist(), strict=True))

    @property
    def _order_seed(self) -> int:
        """Seed of the step's minibatches."""
        return _seed(self.config, "order", self.step)

    def _minibatch_order(self, batches: int) -> Iterator[int]:
        """Yield minibatch indices: all of them in each epoch, in a new order."""
        for epoch in range(int(self.config.optim.epochs)):
            draw = torch.Generator().manual_seed(_seed(self.config, "order", self.step, epoch))
            yield from torch.randperm(batches, generator=draw).tolist()

    def _backward(
        self, rollouts: Rollouts, rows: Tensor, advantages: Tensor, returns: Tensor, tokens: Tensor
    ) -> Tensor:
        """Backpropagate a micro-batch; return the sums over its tokens of `_LOSSES`, and the number of tokens.

        Policy and value share no trained weight, so the policy's backward pass runs before the value's forward pass.
        """
        ppo = self.config.ppo
        batch = on_device([rollouts.sequences[i] for i in rows.tolist()], advantages.device)
        width = int(batch.response_mask.sum(1).max())
        indices = rows.to(advantages.device)
        mask, logps, values, token_advantages, targets = (
            column[indices, :width] for column in (rollouts.mask, rollouts.logps, rollouts.values, advantages, returns)
        )
        loss, clipped = clipped_policy_loss(self.roles.logps(batch), logps, token_advantages, ppo.cliprange)
        (loss[mask].sum() / tokens).backward()
        value_loss, value_clipped = clipped_value_loss(self.roles.values(batch), values, targets, ppo.cliprange_value)
        (value_loss[mask].sum() / tokens).backward()
        columns = (loss, value_loss, clipped, value_clipped, mask)
        return torch.stack([column.detach()[mask].double().sum() for column in columns])

    def _save(self, reward: str | None) -> None:
        """Save the state atomically, and the tables so far."""
        if not processes().is_main_process:
            return
        tensors = {f"weight {name}": p.detach() for name, p in self.roles.trained().items()}
        for name, parameter in self.roles.trained().items():
            tensors |= {f"{key} {name}": value for key, value in self.optimizer.state[parameter].items()}
        folder = state_folder(self.states, self.step)
        make_folder(folder)
        write_tensors(folder / _STATE, tensors)
        write_json(folder / _TABLES, {"step": self.step, "reward": reward, **self.tables})
        seal(folder)
        keep_last(self.states, 2)
        self._write_tables()

    def _write_tables(self) -> None:
        write_jsonl(self.work / "people.jsonl", self.tables["people"])
        write_jsonl(self.work / "samples.jsonl", self.tables["samples"])

    def _load(self, reward: str | None) -> None:
        """Resume from the state on disk, if there is one."""
        state = last_intact(self.states)
        if state is None:
            return
        tables = json.loads((state / _TABLES).read_text(encoding="utf-8"))
        if tables.pop("reward") != reward:
            raise PrmError(f"{self.config.reward} is not what {self.work} was trained with: delete that folder")
        self.step, self.tables = tables.pop("step"), tables
        tensors = load_file(state / _STATE)
        with torch.no_grad():
            for name, parameter in self.roles.trained().items():
                parameter.copy_(tensors.pop(f"weight {name}"))
                keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{key} {name}" in tensors]
                saved = {key: tensors[f"{key} {name}"] for key in keys}
                # AdamW keeps a dense parameter's step count on the CPU
                restored = {key: t if t.dim() == 0 else t.to(parameter.device) for key, t in saved.items()}
                if restored:
                    self.optimizer.state[parameter] = restored
        logger.info("resuming the run from %s", state)


def advantages_of(rollouts: Rollouts, config: PpoConfig) -> tuple[Tensor, Tensor]:
    """(advantages, returns) of the response tokens, [n, l]: KL penalty on every token, score on the last one."""
    rewards = -config.ppo.kl_coef * kl_estimate(rollouts.logps, rollouts.reference)
    last = rollouts.mask.sum(1) - 1
    rewards[torch.arange(len(last), device=last.device), last] += rollouts.rewards
    advantages = gae(rewards, rollouts.values, rollouts.mask, config.ppo.lam)
    return advantages, (advantages + rollouts.values) * rollouts.mask


def _seed(config: PpoConfig, *what: object) -> int:
    """Derive a separate seed for every draw."""
    return random.Random(" ".join(map(str, (config.seed, *what)))).getrandbits(48)
