"""A personalised reward for OpenRLHF: each call scores a batch of responses.

OpenRLHF loads this file and calls `reward_func(queries, prompts, labels)`:

    PRM_RUN=runs/mine PRM_END='</s>' python3 -m openrlhf.cli.train_ppo_ray \\
        --reward.remote_url examples/openrlhf_reward.py --data.label_key label ...

A query is one text: the prompt in the policy's chat template, then the response, with control tokens. PRM_END is the
text that ends a response of the policy. The label of a row must be a JSON object with `prompt`, without the policy's
chat template (the reward model has its own), and `user_id`; it may hold `user_text`. Rewards are logits. An empty
response gets -10.
"""

import json
import os
from functools import cache
from threading import Lock
from typing import Any

import torch

from policy.rewards.adapters import trl_reward
from prm import Scorer

_lock = Lock()  # OpenRLHF calls from several threads, and `cache` alone would load the run in each


@cache
def _load() -> Any:
    return trl_reward(Scorer.from_pretrained(os.environ["PRM_RUN"]))


def _reward() -> Any:
    with _lock:
        return _load()


def reward_func(queries: list[str], prompts: list[str], labels: list[str]) -> dict[str, Any]:
    """`rewards` of the responses, float32 [n], `scores` (the same) and `extra_logs`.

    Raises `ValueError` for a query that does not begin with its prompt and for a label that is not JSON, `KeyError` for
    a label without `prompt` or `user_id`.
    """
    rows = [json.loads(label) for label in labels]
    for i, (query, prompt) in enumerate(zip(queries, prompts, strict=True)):
        if not query.startswith(prompt):
            raise ValueError(f"queries[{i}] does not begin with prompts[{i}]")
    rewards = _reward()(
        prompts=[row["prompt"] for row in rows],
        completions=[q[len(p) :].removesuffix(os.environ["PRM_END"]) for q, p in zip(queries, prompts, strict=True)],
        user_id=[row["user_id"] for row in rows],
        user_text=[row.get("user_text") for row in rows],
    )
    scores = torch.tensor(rewards)
    return {"rewards": scores, "scores": scores, "extra_logs": {"mean_reward": scores.mean().item()}}
