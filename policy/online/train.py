"""RLOO and GRPO: train a policy on the rewards of its own responses, for each user, with TRL's trainers.

TRL turns the rewards of groups of responses into advantages and losses. This package adds the users (as ids in the
prompts), the sampler, and the reference, which reads the plain prompt and the response without user, user text and
adapter, and is therefore constant while user parameters are trained.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, RLOOConfig

from policy.config import OnlineConfig
from policy.online.trainers import (
    OnlineTrainer,
    PersonalizedGRPOTrainer,
    PersonalizedRLOOTrainer,
    columns_of,
    sampling_of,
)
from policy.prompts import UserPrompt, balanced_prompts, encode_prompts, prompts_that_fit, texts_of
from policy.rewards.personal import PersonalReward
from policy.rewards.scales import SCALE_FILE, Scales, fix_scales, load_or_fix_scales, trl_standardised_reward
from policy.setup import new_policy, readable_by_policy
from prm.checkpoint import checkpoint as checkpoints
from prm.checkpoint.checkpoint import Checkpoint
from prm.checkpoint.config_file import TrainedBy
from prm.config import UserConfig
from prm.data.comparison import as_messages
from prm.errors import PrmError
from prm.io.run_files import Metrics, RunRecord
from prm.io.tables import write_jsonl
from prm.models.backbones import processes
from prm.models.policy_model import Policy, build_policy
from prm.scoring.scorer import Scorer
from prm.scoring.user_warnings import warn_about_users
from prm.training.prepare_log import DataSplit, Log, split_data
from prm.training.run import make_run
from prm.training.setup import set_generic_row
from prm.training.trainers.step_trainer import build_trainer, run_trainer, total_steps
from prm.training.trainers.trainer_setting import refuse_callbacks
from prm.users.index import UserIndex
from rerank.sampling.sampler import Sampler

Reward = Callable[..., list[float]]

_PEOPLE = "people.jsonl"


def train_online(config: OnlineConfig, log: Log | None = None, callbacks: Sequence[TrainerCallback] = ()) -> Path:
    """Train a policy by RLOO or GRPO; return the run folder, which appears when training has finished.

    Resumes and raises as `policy.dpo.train_dpo` does.

    Args:
        log: as in `train_dpo`.
        callbacks: as in `train_dpo`.
    """
    refuse_callbacks(callbacks)
    return make_run(
        config,
        checkpoints.POLICY,
        partial(split_data, config, partial(readable_by_policy, config, sides=()), log),
        partial(_fit, config, callbacks),
    )


def _fit(
    config: OnlineConfig, callbacks: Sequence[TrainerCallback], parts: DataSplit, work: Path, run: RunRecord
) -> Metrics:
    index = UserIndex.from_comparisons(parts.train)
    scorer = _scorer_of(config, index)
    # no 'beta': the small policy shift of online training is not usable as an implicit reward
    objective = TrainedBy(config.method, {"kl_coef": config.kl_coef})
    checkpoint = new_policy(config, config.users, index, objective, run["day"])
    texts = texts_of(parts.train)
    train, validation = scheduled_prompts(checkpoint, parts, texts, config)
    reward = PersonalReward(scorer)
    user_texts: dict[str | None, str] = {user: texts.get(user or "", "") for user in (None, *index.ids)}
    scales = load_or_fix_scales(work / SCALE_FILE, partial(_scales, checkpoint, reward, validation, user_texts, config))
    standardised = trl_standardised_reward(reward, scales)
    trainer = build_online_trainer(checkpoint, train, validation, standardised, config, work, callbacks)
    start = trainer.evaluate()
    metrics = run_trainer(trainer)
    end = trainer.evaluate()
    set_generic_row(checkpoint.model.user_model, config.alpha)
    if processes().is_main_process:
        write_jsonl(work / _PEOPLE, _people(index, start, end))
        checkpoints.save(checkpoint, work, run | {"parameters": checkpoint.model.trained_parameters()})
    return {**metrics, "start": start, "end": end}


def _scorer_of(config: OnlineConfig, users: UserIndex) -> Scorer:
    """Load the reward. Raises `PrmError` for a run without a reward, or whose window is too short for responses."""
    scorer = Scorer.from_pretrained(config.reward, device=processes().device)
    if scorer.encoder.max_length <= config.max_new_tokens:
        raise PrmError(
            f"config key 'max_new_tokens' is {config.max_new_tokens}, but {config.reward} reads "
            f"{scorer.encoder.max_length} tokens of prompt and response together"
        )
    if processes().is_main_process:
        warn_about_users(scorer, users.ids)
    return scorer


def scheduled_prompts(
    checkpoint: Checkpoint[Policy], parts: DataSplit, texts: dict[str, str], config: OnlineConfig
) -> tuple[list[UserPrompt], list[UserPrompt]]:
    """(training prompts, in order; validation prompts of each evaluation), with their users."""
    encoder, users, optim = checkpoint.encoder(), checkpoint.users, config.optim
    keep_fitting = partial(prompts_that_fit, encoder, texts=texts.values(), max_new_tokens=config.max_new_tokens)
    train, validation = (
        keep_fitting([c.prompt for c in parts.train]),
        keep_fitting([c.prompt for c in parts.validation]),
    )
    groups = optim.batch_size // config.num_generations * processes().num_processes
    steps = total_steps(len(train) * config.num_generations, optim)
    scheduled = balanced_prompts(train, users.ids, steps * groups, config.alpha, config.seed)
    evaluated = balanced_prompts(validation, users.ids, config.num_eval_samples, config.alpha, config.seed + 1)
    return encode_prompts(encoder, users, scheduled, texts), encode_prompts(encoder, users, evaluated, texts)


def _scales(
    checkpoint: Checkpoint[Policy],
    reward: PersonalReward,
    validation: Sequence[UserPrompt],
    user_texts: dict[str | None, str],
    config: OnlineConfig,
) -> Scales:
    """Fix the scales from responses of the untrained policy to plain prompts, i.e. those of the reference."""
    sampler = Sampler(checkpoint)
    responses = sampler.decode(sampler.generate([q.plain_ids for q in validation], 1, sampling_of(config, config.seed)))
    return fix_scales(reward, [q.prompt for q in validation], responses, user_texts)


def online_dataset(prompts: Sequence[UserPrompt]) -> Dataset:
    """Convert the prompts to TRL's columns and ours; all as messages, because a column has one type."""
    return Dataset.from_list(
        [
            {
                "prompt": [m._asdict() for m in as_messages(q.prompt)],
                "ids": q.ids,
                "plain_ids": q.plain_ids,
                **columns_of(q),
            }
            for q in prompts
        ]
    )


def build_online_trainer(
    checkpoint: Checkpoint[Policy],
    train: Sequence[UserPrompt],
    validation: Sequence[UserPrompt],
    reward: Reward,
    config: OnlineConfig,
    folder: Path,
    callbacks: Sequence[TrainerCallback] = (),
) -> OnlineTrainer:
    """Build the trainer; it stops by the mean reward less the cost of the KL.

    See `prm.training.trainers.step_trainer.build_trainer`.
    """
    policy = checkpoint.model
    steps = len(train) // (config.optim.batch_size // config.num_generations * processes().num_processes)
    if config.train == "full":
        start = build_policy(config.backbone.name, UserConfig("uniform", num_virtual_tokens=0), 1, 0, torch.float32)
        policy.compare_with(start.requires_grad_(False).eval().to(policy.device))
    rloo = config.method == "rloo"
    return build_trainer(
        partial(
            PersonalizedRLOOTrainer if rloo else PersonalizedGRPOTrainer,
            checkpoint,
            validation,
            config,
            reward_funcs=reward,
        ),
        partial(
            RLOOConfig if rloo else GRPOConfig,
            max_steps=steps,
            num_generations=config.num_generations,
            num_generations_eval=1,
            max_completion_length=config.max_new_tokens,
            temperature=config.temperature,
            shuffle_dataset=False,  # `balanced_prompts` has fixed the order
            beta=0.0,
        ),
        policy,
        checkpoint.tokenizer,
        online_dataset(train),
        online_dataset(validation),
        config,
        folder,
        stop_by="objective",
        steps=steps,
        callbacks=callbacks,
    )


def _people(users: UserIndex, start: dict[str, float], end: dict[str, float]) -> list[dict[str, object]]:
    """Mean reward and length before and after training, of each user in the evaluation."""
    by_row: dict[int, dict[str, float]] = defaultdict(dict)
    for moment, metrics in (("start", start), ("end", end)):
        for name, value in metrics.items():
            metric, _, row = name.removeprefix("eval_").partition("/")
            if row:
                by_row[int(row)][f"{metric}_{moment}"] = value
    ids = [None, *users.to_json()]
    return [{"user_id": ids[row], **values} for row, values in sorted(by_row.items())]
