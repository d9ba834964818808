"""Words of length users on the way (`benchmarks/words_by_steps.py`)."""

import json
from pathlib import Path
from typing import cast

import pytest
import torch

from benchmarks import words_by_steps
from benchmarks.words_by_steps import Answer, figures, main, read_answers
from rerank.sampling.sampler import Sampler


def run(tiny: str, posts: Path, *more: str) -> list[Answer]:
    few = [
        ["data.validation_fraction", "0.2"],
        ["optim.micro_batch_size", "8"],
        ["users.num_virtual_tokens", "2"],
        ["backbone.dtype", "float32"],
    ]
    settings = [word for pair in few for word in ("--set", *pair)]
    folder = posts / "out"
    arguments = [str(posts), "--output", str(folder), "--sft", str(posts / "sft"), "--prompts", "2", *settings, *more]
    main(arguments)
    return read_answers(folder / "answers.jsonl")


@pytest.fixture
def started(tiny: str, posts: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The posts, with a small SFT run beside them."""
    sft = posts / "sft.yaml"
    sft.write_text(
        f"backbone: {{name: {tiny}, dtype: float32}}\noptim: {{epochs: 0.1}}\ndata: {{validation_fraction: 0.2}}\n"
    )
    monkeypatch.setattr(words_by_steps, "SFT", (*words_by_steps.SFT, str(sft)))
    return posts


def test_every_user_answers_at_every_step_and_nobody_twice(tiny: str, started: Path) -> None:
    rows = run(tiny, started, "--steps", "3", "--at", "0", "2", "3")
    assert [row["step"] for row in rows] == [step for step in (0, 2, 3) for _ in range(20)]
    assert {row["user_id"] for row in rows} == {f"length_{i}" for i in range(10)}
    found = json.loads((started / "out/words.json").read_text())
    assert [step["step"] for step in found["steps"]] == [0, 2, 3]
    assert found["training"]["steps"] == 3
    # SFT's own log loss of a response, read by itself
    sampler = Sampler.from_pretrained(started / "sft", dtype="float32")
    row = next(row for row in rows if "nats" in row)
    prompt = json.loads(row["prompt"]) if row["prompt"].startswith("[") else row["prompt"]
    ids = sampler.encode_prompt(prompt)
    new = sampler.encoder.ids(row["response"])
    with torch.no_grad():
        logits = sampler.model(torch.tensor([[*ids, *new]])).logits[0].log_softmax(-1)
    nats = -float(logits[range(len(ids) - 1, len(ids) + len(new) - 1), new].mean())
    assert row["nats"] == pytest.approx(nats, abs=1e-4)
    again = run(tiny, started, "--steps", "3", "--at", "0", "2", "3")
    assert again == rows


def test_figures_by_hand() -> None:
    def answer(step: int, user: str, prefers: str, response: str, nats: float | None = None) -> Answer:
        row = {"step": step, "user_id": user, "prefers": prefers, "prompt": "p" + response, "response": response}
        return cast(Answer, row if nats is None else row | {"nats": nats})

    rows = [
        answer(0, "a", "longer", "one two three", 2.0),
        answer(0, "a", "longer", "one", 4.0),
        answer(0, "b", "shorter", ""),
        answer(0, "b", "shorter", "one two", 1.0),
        answer(5, "b", "shorter", ""),
    ]
    first, second = figures(rows)
    assert first["words"] == {"a": 2.0, "b": 1.0}
    groups = cast(dict[str, dict[str, object]], first["groups"])
    assert (groups["longer"]["nats"], groups["longer"]["empty"]) == (3.0, 0.0)
    assert (groups["shorter"]["nats"], groups["shorter"]["empty"]) == (1.0, 0.5)
    assert cast(dict[str, dict[str, object]], second["groups"])["shorter"]["nats"] is None
