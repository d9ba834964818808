"""PPO: a policy learns from a personal reward of its own answers (Schulman et al. 2017; Ziegler et al. 2019).

A step draws answers for people in turn, scores them, and passes over them several times in minibatches. Per token the
reward is -kl (log pi - log pi_ref), at the last one also the answer's score. Everything that a step draws follows from
the seed and the step's number: weights, optimiser and number are all that a killed run needs to go on to the bit.
"""

import json
import logging
import random
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object, reduce
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from policy.config import PpoConfig
from policy.ppo.losses import (
    clipped_policy_loss,
    clipped_value_loss,
    explained_variance,
    gae,
    kl_estimate,
    moments,
    whiten,
)
from policy.ppo.metrics import answer_rows, people_of_step, samples_of_step, step_metrics
from policy.ppo.roles import Roles, on_device
from policy.ppo.rollouts import PromptSampler, RolloutGenerator, Rollouts, minibatches, prompt_sampler_of
from policy.ppo.shared_reward import shared_reward
from policy.rewards.personal import PersonalReward, Reward
from policy.rewards.scales import SCALE_FILE, Scales, fix_scales, kept_scales
from policy.setup import new_policy, readable_by_policy
from prm.checkpoint import checkpoint as checkpoints
from prm.config import require
from prm.errors import PrmError
from prm.io.disk import make_folder
from prm.io.progress import progress
from prm.io.tables import write_json, write_jsonl
from prm.io.tensors import write_tensors
from prm.models.backbones import processes
from prm.scoring.user_warnings import warn_about_users
from prm.training.run import Parts, make_run, split_parts
from prm.training.trainer_base import RowAdamW, rate
from prm.training.trainer_states import keep_last, last_whole, seal, state_folder
from prm.training.work_folder import STATES
from prm.users.index import UserIndex
from rerank.sampling.sampler import Sampler

logger = logging.getLogger(__name__)

_STATE, _TABLES = "state.safetensors", "told.json"
_VALUE_CLIP = 0.2  # how far a value may move from what it was when the answer was drawn
_LEARNT = ("policy_loss", "value_loss", "clipped", "value_clipped")  # means over the tokens of a step's passes


def train_ppo(config: PpoConfig, reward: Reward | None = None) -> Path:
    """Train a policy by PPO; returns the run folder, which appears when everything is in it.

    A run that was killed is taken up by the same call, and ends as if it had not been. Raises `PrmError` as
    `policy.dpo.train_dpo` does, and where the reward is no run.

    Args:
        reward: a function instead of `config.reward`.
    """
    named = bool(config.reward)
    require(named or reward is not None, "reward", "is missing: name a reward model's run folder")
    require(not named or reward is None, "reward", "and a function as the reward exclude each other")
    if named:
        checkpoints.read_config(Path(config.reward))
    return make_run(
        config,
        checkpoints.POLICY,
        partial(split_parts, config, partial(readable_by_policy, config, sides=())),
        partial(_fit, config, reward),
    )


def _fit(config: PpoConfig, reward: Reward | None, parts: Parts, work: Path, run: dict[str, Any]) -> dict[str, Any]:
    index = UserIndex.from_comparisons(parts.train)
    checkpoint = new_policy(config, config.users, index, {"method": "ppo", **asdict(config.ppo)}, run["day"])
    roles = Roles(checkpoint.model, config.seed)
    shared = False
    if reward is None:
        reward, shared = shared_reward(config.reward, roles)
    if isinstance(reward, PersonalReward) and processes().is_main_process:
        warn_about_users(reward.scorer, index.ids)
    writer = RolloutGenerator(Sampler(checkpoint), roles, reward, config)
    turns, too_long = prompt_sampler_of(parts.train, writer.sampler, config)
    logger.info("%d prompts, %d too long and left out, %d people", len(turns.prompts), too_long, len(index.ids))
    scales = kept_scales(work / SCALE_FILE, partial(_scales, writer, turns, config))
    training = Training(config, roles, writer, turns, scales, work)
    metrics = training.run(checkpoints.digest(Path(config.reward)) if config.reward else None)
    if processes().is_main_process:
        parameters = roles.leave_policy().trained_parameters()
        checkpoints.save(checkpoint, work, run | {"parameters": parameters, "prompts_too_long": too_long})
    return metrics | {"shares_backbone": shared}


def _scales(writer: RolloutGenerator, turns: PromptSampler, config: PpoConfig) -> Scales:
    prompts = [turn.prompt for turn in turns.take(0, config.ppo.num_scale_samples)]
    return fix_scales(writer.reward, prompts, writer.reference_answers(prompts, _seed(config, "scale")), turns.people)


class Training:
    """The steps, the optimiser, and the state on disk that a killed run is taken up from.

    Args:
        work: folder of the run while it trains.
    """

    def __init__(
        self,
        config: PpoConfig,
        roles: Roles,
        writer: RolloutGenerator,
        turns: PromptSampler,
        scales: Scales,
        work: Path,
    ):
        self.config, self.roles, self.writer, self.turns, self.scales = config, roles, writer, turns, scales
        self.optimizer = RowAdamW(roles.groups(config.optim), betas=(0.9, 0.98))
        self.work, self.states = work, work / STATES
        self.step = 0
        self.tables: dict[str, list[dict[str, Any]]] = {"history": [], "people": [], "samples": []}

    def run(self, reward: str | None) -> dict[str, Any]:
        """Take all steps that are left; returns metrics. `reward` is a digest: another one's state is refused."""
        self._load(reward)
        main, total = processes().is_main_process, self.config.ppo.max_steps
        log = SummaryWriter(str(self.work / "logs"), purge_step=self.step) if main else None
        with progress(total=total, initial=self.step, desc="PPO", unit="step") as bar:
            while self.step < total:
                metrics = self.take_step()
                self.step += 1
                if log:
                    for name, value in metrics.items():
                        log.add_scalar(f"ppo/{name}", value, self.step)
                bar.set_postfix({k: f"{metrics[k]:.3g}" for k in ("reward", "kl", "length")})
                bar.update()
                if self.step % self.config.optim.eval_steps == 0 or self.step == total:
                    self._save(reward)
        if log:
            log.close()
        if main:
            self._write_tables()  # a run that was killed behind its last state has none, or earlier ones
        return {"steps": self.step, "history": self.tables["history"]}

    def take_step(self) -> dict[str, float]:
        """Draw, score, learn; returns the step's metrics, which are also kept."""
        config, started = self.config, time.perf_counter()
        state, several = processes(), config.ppo.num_generations
        n = config.ppo.rollout_batch_size // several
        first = (self.step * state.num_processes + state.process_index) * n
        turns = [turn for turn in self.turns.take(first, n) for _ in range(several)]
        seed = _seed(config, "draw", self.step, state.process_index)
        found = self.writer.rollouts(turns, seed, self.scales, self._order)
        drawn = time.perf_counter()
        learnt = self.learn(found)
        rows = gather_object(answer_rows(found))
        metrics = {"step": self.step + 1, **step_metrics(rows), **learnt}
        metrics["seconds"], metrics["seconds_drawing"] = time.perf_counter() - started, drawn - started
        self.tables["history"].append(metrics)
        self.tables["people"] += people_of_step(self.step + 1, rows)
        if (self.step + 1) % config.optim.eval_steps == 0 or self.step + 1 == config.ppo.max_steps:
            self.tables["samples"] += samples_of_step(self.step + 1, rows)
        return metrics

    def learn(self, found: Rollouts) -> dict[str, float]:
        """From answers that were drawn by the policy as it is; returns what there is to tell of it."""
        advantages, returns = advantages_of(found, self.config)
        errors, spread = (reduce(moments(column, found.mask), "sum") for column in (advantages, returns))
        tables = self._pass_over(found, whiten(advantages, found.mask, errors), returns)
        return {**tables, "explained_variance": explained_variance(errors, spread)}

    def _pass_over(self, found: Rollouts, advantages: Tensor, returns: Tensor) -> dict[str, float]:
        """Several times; each minibatch's loss is the mean over its tokens, those of all processes."""
        config = self.config
        share = rate(self.step, config.ppo.max_steps, config.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * share
        sums = torch.zeros(5, dtype=torch.float64, device=advantages.device)
        batches = minibatches(self.roles, found.sequences, config, self._order)
        for number in self._passes(len(batches)):
            tokens = reduce(found.mask[torch.cat(batches[number])].sum(), "sum")
            self.optimizer.zero_grad(set_to_none=True)
            for rows in batches[number]:
                sums += self._backward(found, rows, advantages, returns, tokens)
            for parameter in self.roles.trained().values():
                if parameter.grad is not None:
                    parameter.grad = reduce(parameter.grad, "sum")
            self.optimizer.step()
        sums = reduce(sums, "sum")
        if not sums.isfinite().all():
            raise PrmError("a loss is no finite number: lower the learning rates, or use backbone.dtype float32")
        return dict(zip(_LEARNT, (sums[:-1] / sums[-1]).tolist(), strict=True))

    @property
    def _order(self) -> int:
        """Seed of the step's minibatches."""
        return _seed(self.config, "order", self.step)

    def _passes(self, batches: int) -> Iterator[int]:
        """Numbers of the minibatches, all of them in each pass, in an order of its own."""
        for epoch in range(int(self.config.optim.epochs)):
            draw = torch.Generator().manual_seed(_seed(self.config, "order", self.step, epoch))
            yield from torch.randperm(batches, generator=draw).tolist()

    def _backward(self, found: Rollouts, rows: Tensor, advantages: Tensor, returns: Tensor, tokens: Tensor) -> Tensor:
        """Gradients of a micro-batch; sums over its tokens of both losses and of what was clipped, and their number.

        Policy and value share no weight that moves, so that each is passed back before the other is read.
        """
        ppo = self.config.ppo
        batch = on_device([found.sequences[i] for i in rows.tolist()], advantages.device)
        width = int(batch.response_mask.sum(1).max())
        where = rows.to(advantages.device)
        mask, logps, values, gains, goals = (
            column[where, :width] for column in (found.mask, found.logps, found.values, advantages, returns)
        )
        loss, clipped = clipped_policy_loss(self.roles.logps(batch), logps, gains, ppo.cliprange)
        (loss[mask].sum() / tokens).backward()
        value_loss, value_clipped = clipped_value_loss(self.roles.values(batch), values, goals, _VALUE_CLIP)
        (value_loss[mask].sum() / tokens).backward()
        columns = (loss, value_loss, clipped, value_clipped, mask)
        return torch.stack([column.detach()[mask].double().sum() for column in columns])

    def _save(self, reward: str | None) -> None:
        """The state, whole or not at all, and the tables so far."""
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
        for name in ("people", "samples"):
            write_jsonl(self.work / f"{name}.jsonl", self.tables[name])

    def _load(self, reward: str | None) -> None:
        """Go on from the state on disk, if there is one."""
        state = last_whole(self.states)
        if state is None:
            return
        tables = json.loads((state / _TABLES).read_text(encoding="utf-8"))
        if tables.pop("reward") != reward:
            raise PrmError(f"{self.config.reward} is not what {self.work} was trained with so far: delete that folder")
        self.step, self.tables = tables.pop("step"), tables
        tensors = load_file(state / _STATE)
        with torch.no_grad():
            for name, parameter in self.roles.trained().items():
                parameter.copy_(tensors.pop(f"weight {name}"))
                keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{key} {name}" in tensors]
                moved = {key: tensors[f"{key} {name}"] for key in keys}
                # a dense parameter's count of steps stays on the CPU, as AdamW has it
                on = {key: t if t.dim() == 0 else t.to(parameter.device) for key, t in moved.items()}
                if on:
                    self.optimizer.state[parameter] = on
        logger.info("taking up the run from %s", state)


def advantages_of(found: Rollouts, config: PpoConfig) -> tuple[Tensor, Tensor]:
    """(advantages, returns) of the answers' tokens, [n, l]: the penalty on every token, the score on the last one."""
    rewards = -config.ppo.kl_coef * kl_estimate(found.logps, found.reference)
    last = found.mask.sum(1) - 1
    rewards[torch.arange(len(last), device=last.device), last] += found.rewards
    advantages = gae(rewards, found.values, found.mask, config.ppo.lam)
    return advantages, (advantages + found.values) * found.mask


def _seed(config: PpoConfig, *what: object) -> int:
    """A seed of its own for every draw."""
    return random.Random(" ".join(map(str, (config.seed, *what)))).getrandbits(48)
