"""Figures of `benchmarks/compact_posterior.py`, by hand and on a tiny run."""

from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors.torch import save

from benchmarks import compact_posterior as compact
from benchmarks import memory
from prm.config import TrainConfig
from prm.errors import PrmError
from prm.io.tables import write_jsonl
from prm.users import bayes_model
from tests.planted import opposed_people
from tests.tiny_runs import config_of, train_any


def test_every_other_comparison_of_a_user_by_hand() -> None:
    assert compact.every_other(["a", "b", "a", "a", "b", "a"]).tolist() == [False, False, True, False, True, True]


def test_fewer_columns_take_fewer_bytes_and_the_first_row_is_what_others_are_compared_with(
    tiny: str, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "log.jsonl", opposed_people(40, 0, people=4))
    with compact.leaving_out(0.0):
        run = train_any("bayes", cast(TrainConfig, config_of("bayes", tiny, tmp_path)))
    assert bayes_model.LEFT_OUT > 0.0
    model, pairs, users = compact.held_out(run)
    whole, half, none = compact.measured(model, pairs, users, [0.0, 0.5, 1.0])
    assert (whole.gain.value, whole.updated_gain.value) == (0.0, 0.0)
    assert whole.columns[0] > half.columns[0] >= none.columns[0] == none.columns[2] == 0.0
    assert whole.loss + half.gain.value == pytest.approx(half.loss)
    assert none.gain.value != 0.0
    rank = len(model.prior)
    assert none.saved == (4.0 * rank + 4 + 12,) * 3  # a mean, a flatness, and where its columns are
    assert whole.saved[2] == none.saved[2] + 4 * rank * whole.columns[2]
    tensors = {"means": torch.zeros(rank), "flatness": torch.zeros(()), "columns": torch.zeros(0, rank)}
    assert none.stored == (len(save(tensors)),) * 3
    assert len(compact.sizes_of(half)) == len(compact.SIZES)
    assert len(compact.losses_of(half)) == len(compact.LOSSES)
    with pytest.raises(PrmError, match="bayes"):
        compact.held_out(run / "uniform")


def test_an_estimate_is_in_proportion_by_hand() -> None:
    """A thousand users took 500 KB and 20 KB, and 2 s; a hundred thousand take a hundred times as much."""
    taken, disk = {"seconds": 2.0, "own": -5.0, "mapped": 7.0}, {"model": 500_000, "users": 20_000}
    assert memory.estimated(taken, disk, 1_000, 100_000) == {
        "estimated people": 100_000,
        "estimated bytes a person": 520.0,
        "estimated disk": 52_000_000.0,
        "estimated seconds": 200.0,
        "estimated own": 0.0,
    }


def test_posteriors_of_many_are_opened_in_a_process_of_their_own(tiny: str) -> None:
    found = memory.posteriors(tiny, 300, 8, 2)
    assert found["people"] == 300
    assert 300 * 4 * 8 < found["model"] < 300 * 4 * (8 + 4 * 8 + 4)
    assert found["estimated disk"] == pytest.approx((found["model"] + found["users"]) * memory._ESTIMATED / 300)
