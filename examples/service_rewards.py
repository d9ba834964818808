"""Personalised rewards from a running service, for trainers that have no room for the reward model.

Start the service where the reward model is: rerank serve runs/mine. Its key, if it wants one, is in $RERANK_API_KEY.

TRL calls an asynchronous reward function while other rewards are computed; the data set has a column `user_id`:

    from service_rewards import trl_reward
    GRPOTrainer(..., reward_funcs=trl_reward("http://localhost:8000"))

verl's reward loop loads this file and calls `compute_score` for each response; `extra_info` of each row holds `prompt`
(a text, or messages) and `user_id`, and may hold `user_text`:

    reward.custom_reward_function.path=examples/service_rewards.py
    +reward.custom_reward_function.reward_kwargs.url=http://localhost:8000

OpenRLHF needs no file: --reward.remote_url 'http://localhost:8000/v1/score?empty=-10&end=</s>'

Rewards are logits. An empty response gets -10.
"""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.request import Request, urlopen

TIMEOUT = 60.0  # seconds


def trl_reward(url: str) -> Callable[..., Awaitable[list[float]]]:
    """A function for TRL's `reward_funcs`: rewards of completions, one of each. `None` is the generic user."""

    async def service_reward(
        prompts: Sequence[Any], completions: Sequence[Any], user_id: Sequence[str | None], **columns: Any
    ) -> list[float]:
        responses = [text if isinstance(text, str) else text[-1]["content"] or "" for text in completions]
        texts = [text or "" for text in columns.get("user_text") or [""] * len(responses)]
        return await _scores(url, list(prompts), responses, list(user_id), texts)

    return service_reward


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: dict[str, Any],
    url: str = "http://localhost:8000",
    **_: object,  # verl passes more if it also runs its own reward model
) -> float:
    """The reward of one response for the user of its row. Raises `KeyError` if `extra_info` lacks a key."""
    prompt = extra_info["prompt"]
    asked = prompt if isinstance(prompt, str) else list(prompt)  # Parquet gives arrays
    (score,) = await _scores(url, [asked], [solution_str], [extra_info["user_id"]], [extra_info.get("user_text") or ""])
    return score


async def _scores(
    url: str, prompts: list[Any], responses: list[str], users: list[str | None], user_texts: list[str]
) -> list[float]:
    body = {"prompts": prompts, "responses": responses, "users": users, "user_texts": user_texts}
    return await asyncio.to_thread(_post, f"{url}/v1/score?empty=-10", body)


def _post(url: str, body: dict[str, Any]) -> list[float]:
    """Raises `urllib.error.HTTPError` for a request that the service refuses."""
    key = os.environ.get("RERANK_API_KEY")
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    with urlopen(Request(url, json.dumps(body).encode(), headers), timeout=TIMEOUT) as reply:
        scores: list[float] = json.load(reply)["scores"]
        return scores
