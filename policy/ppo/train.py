"""PPO: train a policy on a personalised reward of its own responses (Schulman et al. 2017; Ziegler et al. 2019).

A step samples responses for users in turn, scores them, and trains on them for several epochs of minibatches. The
reward of a token is -kl_coef (log pi - log pi_ref), plus the response's score at the last token. A step's random
numbers depend only on the seed and the step's number, so that weights, optimiser state and number resume a killed run
to the bit.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

from transformers import TrainerCallback, TrainingArguments

from policy.config import NO_REWARD, PpoConfig
from policy.ppo.callbacks import LoopCallbacks
from policy.ppo.loop import Training, seed_of
from policy.ppo.roles import Roles, detach
from policy.ppo.rollouts import PromptSampler, RolloutGenerator, prompt_sampler_of
from policy.ppo.shared_reward import shared_reward
from policy.rewards.personal import PersonalReward, RewardFunc
from policy.rewards.scales import SCALE_FILE, Scales, fix_scales, load_or_fix_scales
from policy.setup import new_policy, readable_by_policy
from prm.checkpoint import checkpoint as checkpoints
from prm.checkpoint.checkpoint import Checkpoint
from prm.checkpoint.config_file import TrainedBy
from prm.config import require
from prm.data.comparison import Comparison
from prm.io.run_files import Metrics, RunRecord
from prm.models.backbones import processes
from prm.models.policy_model import Policy
from prm.scoring.user_warnings import warn_about_users
from prm.training.prepare_log import DataSplit, Log, split_data
from prm.training.run import make_run
from prm.training.trainers.trainer_setting import passed_on, refuse_callbacks
from prm.users.index import UserIndex
from rerank.sampling.sampler import Sampler

logger = logging.getLogger(__name__)


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
        parameters = detach(checkpoint.model).trained_parameters()
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

    training: Training
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
        generator.reward, prompts, generator.reference_answers(prompts, seed_of(config, "scale")), turns.people
    )


class _Tables(TypedDict):
    """What a run has written so far: metrics by step, and rows of `people.jsonl` and `samples.jsonl`."""

    history: list[dict[str, float]]
    people: list[dict[str, object]]
    samples: list[dict[str, object]]
