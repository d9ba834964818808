"""The scorer as the reward of other trainers: TRL, verl, OpenRLHF, each in the shape that it calls.

The shapes are those of TRL 1.16 (`RLOOTrainer`, `GRPOTrainer`: `reward_funcs`), verl (`custom_reward_function`, read in
`workers/reward_manager` and `experimental/reward_loop`) and OpenRLHF (`remote_rm_url`, read in `utils/agent.py` and
`cli/serve_rm.py`). Rewards are logits. A policy may answer with nothing, which no reward model can read: that is worth
`empty`, which should lie below what real answers get.
"""

import json
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from prm.errors import DataError, PrmError
from prm.files import kind, parse_json, shown

if TYPE_CHECKING:
    from prm.scorer import Scorer

EMPTY = -10.0
_MOST_BYTES = 100_000_000  # of a request


def trl_reward(
    scorer: "Scorer", user_column: str = "user_id", text_column: str = "user_text", empty: float = EMPTY
) -> Callable[..., list[float]]:
    """A function for TRL's `reward_funcs`; the data set needs a column with the user, `None` for the unknown one.

    TRL hands over prompts and completions, as texts or as messages, and every other column as a list, all repeated
    for each generation. A column with the person's own text is read where there is one. Raises `PrmError` where the
    user column is missing: everybody would be the unknown user, and nobody would notice.
    """

    def personal_reward(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        if user_column not in columns:
            raise PrmError(f"the data set has no column {user_column!r}; name the users' column with 'user_column'")
        answers = [c if isinstance(c, str) else c[-1]["content"] or "" for c in completions]
        texts = [text or "" for text in columns.get(text_column) or [""] * len(answers)]
        return _rewards(scorer, prompts, answers, columns[user_column], texts, empty)

    return personal_reward


def verl_compute_score(scorer: "Scorer", empty: float = EMPTY) -> Callable[..., float]:
    """verl's `compute_score(data_source, solution_str, ground_truth, extra_info)`, one answer a call.

    verl passes no prompt on: `extra_info` of each row must hold `prompt` (a text, or messages) and `user_id`, and may
    hold `user_text`. `custom_reward_function.path` is a Python file of yours that makes the function and calls it
    `compute_score`. Raises `PrmError` naming the missing key.
    """

    def compute_score(
        data_source: str, solution_str: str, ground_truth: Any, extra_info: Any = None, **_: object
    ) -> float:
        prompt, user, text = _asked("extra_info", extra_info)
        return _rewards(scorer, [prompt], [solution_str], [user], [text], empty)[0]

    return compute_score  # verl adds arguments where it also runs a reward model of its own: `_`


def openrlhf_server(
    scorer: "Scorer", end: str, host: str = "127.0.0.1", port: int = 5000, empty: float = EMPTY
) -> ThreadingHTTPServer:
    """A server for OpenRLHF's `remote_rm_url`; `serve_forever()` starts it.

    It is sent `{"query": [...], "prompts": [...], "labels": [...]}`: prompt and answer as one text with control tokens,
    the prompt as the policy read it, and what stands in the data set's label column. That must be a JSON object with
    `user_id` and `prompt`, the question without the policy's chat template, as the reward model has its own; it may
    hold `user_text`. The answer is `{"rewards": [...], "scores": [...], "extra_logs": {}}`, or status 400 and what is
    wrong.

    Args:
        end: the policy's end-of-turn text, such as `</s>`, taken off an answer's end. Padding must not follow it.
        host: from where it can be reached; it asks for no key.
    """
    lock = threading.Lock()  # one model, one device: requests take turns

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            try:
                asked = parse_json(self.rfile.read(_length(self.headers.get("Content-Length"))).decode())
                with lock:
                    rewards = _openrlhf_rewards(scorer, asked, end, empty)
                self._send(200, {"rewards": rewards, "scores": rewards, "extra_logs": {}})
            except ValueError as error:  # PrmError, bad JSON, bad UTF-8
                self._send(400, {"error": str(error)})

        def _send(self, status: int, value: dict[str, Any]) -> None:
            raw = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, format: str, *args: Any) -> None:
            """Not a line for every request; faults reach the caller."""

    return ThreadingHTTPServer((host, port), Handler)


def _openrlhf_rewards(scorer: "Scorer", asked: Any, end: str, empty: float) -> list[float]:
    fields = [asked.get(name) if isinstance(asked, dict) else None for name in ("query", "prompts", "labels")]
    if not all(isinstance(f, list) for f in fields) or len({len(f) for f in fields if f is not None}) != 1:
        raise DataError("expected an object with the lists 'query', 'prompts' and 'labels', equally long")
    prompts, answers, users, texts = [], [], [], []
    for i, (query, read, label) in enumerate(zip(*fields, strict=True)):  # type: ignore[arg-type]
        if not isinstance(query, str) or not isinstance(read, str) or not query.startswith(read):
            raise DataError(f"'query[{i}]' does not begin with 'prompts[{i}]', so the answer in it cannot be told")
        prompt, user, text = _asked(f"labels[{i}]", label)
        prompts.append(prompt)
        answers.append(query[len(read) :].removesuffix(end))
        users.append(user)
        texts.append(text)
    return _rewards(scorer, prompts, answers, users, texts, empty)


def _asked(name: str, value: Any) -> tuple[Any, str | None, str]:
    """(prompt, user, user text) of an object, or of JSON text that holds one."""
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except ValueError as error:
            raise DataError(f"'{name}' is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"'{name}' must be an object with 'prompt' and 'user_id', got {kind(value)}")
    for key in ("prompt", "user_id"):
        if key not in value:
            raise DataError(f"'{name}' has no {key!r}; it has {', '.join(map(repr, value)) or 'nothing'}")
    prompt = value["prompt"]
    messages = prompt if isinstance(prompt, str) or not hasattr(prompt, "__len__") else list(prompt)  # Parquet: arrays
    return messages, value["user_id"], value.get("user_text") or ""


def _rewards(
    scorer: "Scorer",
    prompts: Sequence[Any],
    answers: Sequence[str],
    users: Sequence[str | None],
    texts: Sequence[str],
    empty: float,
) -> list[float]:
    """One reward for each row, by the scorer where there is an answer to read."""
    out = [empty] * len(answers)
    read = [i for i, answer in enumerate(answers) if answer.strip()]
    if read:
        rewards = scorer.score_batch(
            [prompts[i] for i in read], [answers[i] for i in read], [users[i] for i in read], [texts[i] for i in read]
        )
        for i, reward in zip(read, rewards.tolist(), strict=True):
            out[i] = reward
    return out


def _length(header: str | None) -> int:
    if header is None or not header.isdigit() or int(header) > _MOST_BYTES:
        raise DataError(f"'Content-Length' must be a number up to {_MOST_BYTES}, got {shown(header)}")
    return int(header)
