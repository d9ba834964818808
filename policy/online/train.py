"""RLOO and GRPO: a policy learns from the rewards of its own answers, for each person, through TRL's trainers.

TRL turns rewards of groups of answers into advantages and losses. Ours are the questions, which carry their people as
ids, the one sampler that answers them, and the reference, which reads the plain prompt and the answer: no user, no user
text, no adapter. It stays what it was while people move.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
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
from policy.rewards.scales import SCALE_FILE, Scales, fix_scales, kept_scales, trl_standard
from policy.setup import new_policy, readable_by_policy
from prm.checkpoint import checkpoint as checkpoints
from prm.checkpoint.checkpoint import Checkpoint
from prm.config import UserConfig
from prm.data.comparison import as_messages
from prm.errors import PrmError
from prm.io.tables import write_jsonl
from prm.models.backbones import processes
from prm.models.policy_model import Policy, build_policy
from prm.scoring.scorer import Scorer
from prm.scoring.user_warnings import warn_about_users
from prm.training.reward_trainer import parameter_groups
from prm.training.run import Parts, make_run, split_parts
from prm.training.setup import set_generic_row
from prm.training.trainer_base import build_arguments, build_callbacks, build_optimizers, run_trainer, total_steps
from prm.users.index import UserIndex
from rerank.sampling.sampler import Sampler

Reward = Callable[..., list[float]]

_PEOPLE = "people.jsonl"


def train_online(config: OnlineConfig) -> Path:
    """Train a policy as the config says; returns the run folder, which appears when everything is in it.

    Resumes and raises as `policy.dpo.train_dpo` does.
    """
    return make_run(
        config,
        checkpoints.POLICY,
        partial(split_parts, config, partial(readable_by_policy, config, sides=())),
        partial(_fit, config),
    )


def _fit(config: OnlineConfig, parts: Parts, work: Path, run: dict[str, Any]) -> dict[str, Any]:
    index = UserIndex.from_comparisons(parts.train)
    scorer = _scorer_of(config, index)
    # no 'beta': what little training moved the policy is no reward to score by
    objective = {"method": config.method, "kl_coef": config.kl_coef}
    checkpoint = new_policy(config, config.users, index, objective, run["day"])
    texts = texts_of(parts.train)
    learn, check = questions_of(checkpoint, parts, texts, config)
    reward = PersonalReward(scorer)
    people: dict[str | None, str] = {user: texts.get(user or "", "") for user in (None, *index.ids)}
    scales = kept_scales(work / SCALE_FILE, partial(_scales, checkpoint, reward, check, people, config))
    trainer = build_online_trainer(checkpoint, learn, check, trl_standard(reward, scales), config, work)
    start = trainer.evaluate()
    metrics = run_trainer(trainer)
    end = trainer.evaluate()
    set_generic_row(checkpoint.model.user_model, config.alpha)
    if processes().is_main_process:
        write_jsonl(work / _PEOPLE, _people(index, start, end))
        checkpoints.save(checkpoint, work, run | {"parameters": checkpoint.model.trained_parameters()})
    return metrics | {"start": start, "end": end}


def _scorer_of(config: OnlineConfig, users: UserIndex) -> Scorer:
    """The reward. Raises `PrmError` for a run that gives none, or cannot read answers as long as may come."""
    scorer = Scorer.from_pretrained(config.reward, device=processes().device)
    if scorer.encoder.max_length <= config.max_new_tokens:
        raise PrmError(
            f"config key 'max_new_tokens' is {config.max_new_tokens}, but {config.reward} reads "
            f"{scorer.encoder.max_length} tokens of prompt and answer together"
        )
    if processes().is_main_process:
        warn_about_users(scorer, users.ids)
    return scorer


def questions_of(
    checkpoint: Checkpoint[Policy], parts: Parts, texts: dict[str, str], config: OnlineConfig
) -> tuple[list[UserPrompt], list[UserPrompt]]:
    """(what is asked in training, in its order; what is asked of validation prompts at each look)."""
    encoder, users, optim = checkpoint.encoder(), checkpoint.users, config.optim
    fit = partial(prompts_that_fit, encoder, texts=texts.values(), max_new_tokens=config.max_new_tokens)
    learn, check = fit([c.prompt for c in parts.train]), fit([c.prompt for c in parts.validation])
    groups = optim.batch_size // config.num_generations * processes().num_processes
    steps = total_steps(len(learn) * config.num_generations, optim)
    asked = balanced_prompts(learn, users.ids, steps * groups, config.alpha, config.seed)
    evaluated = balanced_prompts(check, users.ids, config.num_eval_samples, config.alpha, config.seed + 1)
    return encode_prompts(encoder, users, asked, texts), encode_prompts(encoder, users, evaluated, texts)


def _scales(
    checkpoint: Checkpoint[Policy],
    reward: PersonalReward,
    check: Sequence[UserPrompt],
    people: dict[str | None, str],
    config: OnlineConfig,
) -> Scales:
    """From answers of the policy, which has learnt nothing yet, to plain prompts: those of the reference."""
    sampler = Sampler(checkpoint)
    answers = sampler.texts(sampler.draw([q.plain_ids for q in check], 1, sampling_of(config, config.seed)))
    return fix_scales(reward, [q.prompt for q in check], answers, people)


def online_dataset(questions: Sequence[UserPrompt]) -> Dataset:
    """The questions in TRL's columns and ours; prompts as messages, or texts and messages could not share one."""
    return Dataset.from_list(
        [
            {
                "prompt": [m._asdict() for m in as_messages(q.prompt)],
                "ids": q.ids,
                "plain_ids": q.plain_ids,
                **columns_of(q),
            }
            for q in questions
        ]
    )


def build_online_trainer(
    checkpoint: Checkpoint[Policy],
    learn: Sequence[UserPrompt],
    check: Sequence[UserPrompt],
    reward: Reward,
    config: OnlineConfig,
    folder: Path,
) -> OnlineTrainer:
    """A trainer that stops early by the validation questions, logs to TensorBoard, and can be resumed from `folder`."""
    policy, optim = checkpoint.model, config.optim
    total = len(learn) // (optim.batch_size // config.num_generations * processes().num_processes)
    if config.train == "full":
        start = build_policy(config.backbone.name, UserConfig("uniform", num_virtual_tokens=0), 1, 0, torch.float32)
        policy.compare_with(start.requires_grad_(False).eval().to(policy.device))
    rloo = config.method == "rloo"
    arguments = (RLOOConfig if rloo else GRPOConfig)(
        **build_arguments(optim, total, folder, config.seed, stop_by="objective"),
        max_steps=total,
        num_generations=config.num_generations,
        num_generations_eval=1,
        max_completion_length=config.max_new_tokens,
        temperature=config.temperature,
        shuffle_dataset=False,  # `balanced_prompts` has settled the order
        beta=0.0,
        activation_checkpointing=False,  # switched on with the model
        disable_dropout=True,
    )
    # several GPUs are for `accelerate launch`; one process alone must not spread the model over them
    arguments._n_gpu = min(1, arguments.n_gpu)
    return (PersonalizedRLOOTrainer if rloo else PersonalizedGRPOTrainer)(
        checkpoint,
        check,
        config,
        args=arguments,
        reward_funcs=reward,
        train_dataset=online_dataset(learn),
        eval_dataset=online_dataset(check),
        callbacks=build_callbacks(optim, folder),
        optimizers=build_optimizers(parameter_groups(policy, optim, config.train == "full"), optim, total),
    )


def _people(users: UserIndex, start: dict[str, float], end: dict[str, float]) -> list[dict[str, Any]]:
    """Each person's mean reward and length before training and after it, of those who were asked."""
    found: dict[int, dict[str, Any]] = defaultdict(dict)
    for when, metrics in (("start", start), ("end", end)):
        for name, value in metrics.items():
            what, _, row = name.removeprefix("eval_").partition("/")
            if row:
                found[int(row)][f"{what}_{when}"] = value
    ids = [None, *users.to_json()]
    return [{"user_id": ids[row], **values} for row, values in sorted(found.items())]
