"""A personalised reward for verl: each call scores one response.

verl loads this file and calls `compute_score` with keywords:

    reward.custom_reward_function.path=examples/verl_reward.py
    +reward.custom_reward_function.reward_kwargs.run=runs/mine
    reward.num_workers=1

Each of verl's reward workers, 8 by default, loads the run. verl does not pass the prompt, so `extra_info` of each row
must hold `prompt` (a text, or messages) and `user_id` (None for the generic user); it may hold `user_text`. Rewards are
logits. An empty response gets -10.
"""

from functools import cache
from threading import Lock
from typing import Any

from policy.rewards.adapters import trl_reward
from prm import Scorer

_lock = Lock()  # verl calls from several threads, and `cache` alone would load the run in each


@cache
def _load(run: str) -> Any:
    return trl_reward(Scorer.from_pretrained(run))


def _reward(run: str) -> Any:
    with _lock:
        return _load(run)


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: dict[str, Any],
    run: str = "runs/mine",
    **_: object,  # verl passes more if it also runs its own reward model
) -> float:
    """The reward of one response for the user of its row. Raises `KeyError` if `extra_info` lacks a key."""
    prompt = extra_info["prompt"]
    rewards = _reward(run)(
        prompts=[prompt if isinstance(prompt, str) else list(prompt)],  # Parquet gives arrays
        completions=[solution_str],
        user_id=[extra_info["user_id"]],
        user_text=[extra_info.get("user_text")],
    )
    return float(rewards[0])
