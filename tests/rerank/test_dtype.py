"""The dtype that decodes faster: measured once, by the clock that a test sets."""

import json
from pathlib import Path

import pytest
import torch

from prm.backbones import cache_dir
from prm.checkpoint import load_policy
from rerank import dtype as dtypes
from rerank.candidates import Sampler
from rerank.dtype import decoding_dtype, seconds_per_token

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that computes in it, and no model too small to measure."""
    monkeypatch.setattr(dtypes, "choose_dtype", lambda name, device: torch.bfloat16)
    monkeypatch.setattr(dtypes, "_SMALL", 0)


@pytest.mark.parametrize(
    ("seconds", "wanted"), [(0.5, torch.bfloat16), (0.9, torch.float32), (2.0, torch.float32)], ids=str
)
def test_bfloat16_where_it_is_clearly_faster(
    tiny: str, monkeypatch: pytest.MonkeyPatch, seconds: float, wanted: torch.dtype
) -> None:
    """A tenth is too little for what it costs in exactness. What was measured stays, whatever a clock says later."""
    measured = []

    def clock(policy: torch.nn.Module) -> float:
        measured.append(next(policy.parameters()).dtype)
        return {torch.float32: 1.0, torch.bfloat16: seconds}[measured[-1]]

    monkeypatch.setattr(dtypes, "seconds_per_token", clock)
    assert decoding_dtype(tiny, CPU) == wanted
    assert Sampler.from_pretrained(tiny, CPU).model.dtype == wanted
    assert measured == [torch.float32, torch.bfloat16]
    assert Sampler.from_pretrained(tiny, CPU, torch.float32).model.dtype == torch.float32
    (kept,) = json.loads((cache_dir() / "decoding.json").read_text()).values()
    assert kept == {"float32": 1.0, "bfloat16": seconds}


def test_small_models_and_other_machines_are_not_measured(
    tiny: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(policy: object) -> float:
        raise AssertionError("measured")

    monkeypatch.setattr(dtypes, "seconds_per_token", fail)
    monkeypatch.setattr(dtypes, "_SMALL", 10**6)
    assert decoding_dtype(tiny, CPU) == torch.float32
    monkeypatch.setattr(dtypes, "_SMALL", 0)
    monkeypatch.setattr(dtypes, "choose_dtype", lambda name, device: torch.float32)
    assert decoding_dtype(tiny, CPU) == torch.float32
    assert not (cache_dir() / "decoding.json").exists()


def test_what_is_measured_are_steps_of_16_answers(tiny: str) -> None:
    policy = load_policy(tiny, CPU).model
    shapes: list[tuple[int, ...]] = []
    handle = policy.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    assert seconds_per_token(policy) > 0.0
    handle.remove()
    assert shapes == [(1, 300)] + [(16, 1)] * 8
