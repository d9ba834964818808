"""Where users' offsets start (`benchmarks/offset_starts.py`)."""

import json
from pathlib import Path
from typing import cast

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from benchmarks import offset_starts
from benchmarks.offset_starts import StartAtTokens, main, start_offsets_at_tokens
from prm.checkpoint.checkpoint import load
from prm.config import UserConfig
from prm.users.build import build_user_model, init_from_token_embeddings
from prm.users.kinds import Individual


def test_offsets_can_start_at_tokens() -> None:
    """As in the authors' code; drawn apart from e_0."""
    words = torch.randn(40, 8)
    model = build_user_model(UserConfig("individual", 2), 4, 8)
    assert isinstance(model, Individual)
    init_from_token_embeddings(model, words, 3)
    assert not model.offsets.any()
    start_offsets_at_tokens(model, words, 3)
    rows = {tuple(row) for row in words.tolist()}
    assert {tuple(row) for row in model.offsets.flatten(0, 1).tolist()} <= rows
    assert len({tuple(row) for row in model.offsets.flatten(0, 1).tolist()}) == 8
    assert not torch.equal(model.offsets[0], model.generic)


def starts(tiny: str, posts: Path, *more: str) -> dict[str, dict[str, object]]:
    few = {
        "backbone": f"{{name: {tiny}, dtype: float32, layers: 2}}",
        "data.validation_fraction": "0.2",
        "users.num_virtual_tokens": "2",
        "optim.epochs": "0.2",
        "optim.eval_steps": "2",
    }
    settings = [word for key, value in few.items() for word in ("--set", key, value)]
    main([str(posts), "--output", str(posts / "out"), "--seeds", "7", *settings, *more])
    rows: dict[str, dict[str, object]] = json.loads((posts / "out/starts.json").read_text())["rows"]
    return rows


def test_runs_start_where_their_name_says(tiny: str, posts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Users hardly move at this learning rate, so that the saved run shows where they started."""
    still = ("--set", "optim.user_lr", "1e-9")
    rows = starts(tiny, posts, *still)
    assert set(rows) == {f"{start}, seed 7" for start in offset_starts.STARTS}
    models = {name: load(posts / "out" / f"{name}-7").model for name in ("zero", "tokens", "separate")}
    zero, tokens = (models[name].user_model for name in ("zero", "tokens"))
    assert isinstance(zero, Individual)
    assert isinstance(tokens, Individual)
    torch.testing.assert_close(zero.offsets, torch.zeros_like(zero.offsets), atol=1e-6, rtol=0.0)
    torch.testing.assert_close(tokens.generic, zero.generic, atol=1e-6, rtol=0.0)
    words = models["tokens"].backbone.get_input_embeddings().weight.float()
    exact = "donot_use_mm_for_euclid_dist"
    nearest = torch.cdist(tokens.offsets[1:].flatten(0, 1), words, compute_mode=exact).min(1).values
    assert nearest.max() < 1e-5
    assert tokens.offsets[1:].norm(dim=-1).min() > 1e-3
    assert not isinstance(models["separate"].user_model, Individual)

    monkeypatch.setattr(offset_starts, "train", None)  # finished runs are kept
    assert starts(tiny, posts, *still) == rows


def test_a_resumed_run_keeps_its_offsets() -> None:
    state = TrainerState(global_step=3)
    StartAtTokens(7).on_train_begin(cast(TrainingArguments, None), state, TrainerControl(), model=None)
