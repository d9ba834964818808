"""Runs of a comparison with seeds of their own."""

from pathlib import Path

import pytest

from policy.compare.config import CompareConfig
from policy.compare.training import plan_jobs
from prm.data.comparison import Comparison
from prm.io.tables import write_jsonl
from prm.io.yaml_settings import read_config
from prm.training.prepare_log import split_data


@pytest.mark.parametrize("split_seed", [None, 11])
def test_a_run_with_a_seed_of_its_own_learns_from_the_same_part(tmp_path: Path, split_seed: int | None) -> None:
    log = [Comparison(user, f"q{i}?", f"a{i} b", "a") for i in range(30) for user in ("u", "v", "w")]
    write_jsonl(tmp_path / "log.jsonl", log)
    data: dict[str, object] = {"path": str(tmp_path / "log.jsonl"), "test_fraction": 0.3, "judges_per_pair": 2}
    runs = {
        "a": {"command": "dpo"},
        "b": {"command": "dpo", "settings": {"seed": 8}},
        "sft": {"command": "sft", "settings": {"seed": 8}},
    }
    settings = {"output_dir": str(tmp_path), "seed": 3, "runs": runs, "judge": {"rule_field": "x"}, "data": data}
    if split_seed is not None:
        data["split_seed"] = split_seed
    config = read_config(CompareConfig, settings=settings)
    first, *others = (job.config for job in plan_jobs(config))
    assert [first.seed, *(other.seed for other in others)] == [3, 8, 8]
    expected = split_data(first)
    assert {c.prompt for c in expected.test} == {c.prompt for c in split_data(config).test}
    for other in others:
        parts = split_data(other)
        assert (parts.train, parts.validation, parts.test) == (expected.train, expected.validation, expected.test)
    other_split = split_data(
        read_config(type(first), settings={"seed": 8, **{f"data.{k}": v for k, v in data.items()}})
    )
    assert (other_split.test != expected.test) is (split_seed is None)
