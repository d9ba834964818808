"""PPO's loop: a step samples responses, scores them and trains on them; its state resumes a killed run to the bit."""

import json
import logging
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

import torch
from accelerate.utils import gather_object, reduce
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from policy.config import PpoConfig
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
from policy.ppo.rollouts import PromptSampler, RolloutGenerator, Rollouts, minibatches
from policy.rewards.scales import Scales
from prm.errors import PrmError
from prm.io.disk import make_folder
from prm.io.progress import progress
from prm.io.tables import write_json, write_jsonl
from prm.io.tensors import write_tensors
from prm.models.backbones import processes
from prm.training.trainers.optimizer import RowAdamW, rate
from prm.training.trainers.resume import keep_last, last_intact, seal, state_folder
from prm.training.work_folder import STATES

logger = logging.getLogger(__name__)

_STATE, _TABLES = "state.safetensors", "tables.json"
_LOSSES = ("policy_loss", "value_loss", "clipped", "value_clipped")  # means over the tokens of a step's epochs


class _Tables(TypedDict):
    """What a run has written so far: metrics by step, and rows of `people.jsonl` and `samples.jsonl`."""

    history: list[dict[str, float]]
    people: list[dict[str, object]]
    samples: list[dict[str, object]]


class StepsTaken(TypedDict):
    """The number of steps, and the metrics of each."""

    steps: int
    history: list[dict[str, float]]


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
        seed = seed_of(config, "draw", self.step, state.process_index)
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
            with self.roles.recomputing():
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
        return seed_of(self.config, "order", self.step)

    def _minibatch_order(self, batches: int) -> Iterator[int]:
        """Yield minibatch indices: all of them in each epoch, in a new order."""
        for epoch in range(int(self.config.optim.epochs)):
            draw = torch.Generator().manual_seed(seed_of(self.config, "order", self.step, epoch))
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


def seed_of(config: PpoConfig, *what: object) -> int:
    """Derive a separate seed for every draw."""
    return random.Random(" ".join(map(str, (config.seed, *what)))).getrandbits(48)
