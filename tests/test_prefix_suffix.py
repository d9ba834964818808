"""The comparison of positions of a soft prompt (`benchmarks/prefix_suffix.py`)."""

import json
from pathlib import Path

import pytest
import yaml

from benchmarks import prefix_suffix
from benchmarks.prefix_suffix import Log, Trained, equal_likelihood
from prm.data.comparison import Comparison
from prm.errors import PrmError
from prm.io.tables import write_jsonl


def _trained(nats: list[float], seconds_a_step: float) -> Trained:
    looks = [(10 * k, n, 0.5) for k, n in enumerate(nats, start=1)]
    return Trained(0, 10 * len(nats), looks, seconds_a_step)


def test_seconds_to_a_likelihood_by_hand() -> None:
    run = _trained([0.6, 0.4, 0.5], 2.0)
    assert run.best == 0.4
    assert run.seconds == 60.0
    assert run.seconds_to(0.5) == pytest.approx(30.0)  # half way between steps 10 and 20
    assert run.seconds_to(0.4) == pytest.approx(40.0)
    assert run.seconds_to(0.6466) == pytest.approx(10.0, abs=0.01)  # half way from log 2 at step 0
    with pytest.raises(ValueError, match="never"):
        run.seconds_to(0.3)


def test_seconds_to_equal_likelihood() -> None:
    """Both get to 0.4 nats: as prefix in 40 s, as suffix in 20 s; who learns nothing is left out."""
    prefix, suffix = _trained([0.6, 0.4, 0.3], 2.0), _trained([0.6, 0.4, 0.5], 1.0)
    assert equal_likelihood([prefix, prefix], [suffix, _trained([0.8], 1.0)]) == [pytest.approx(20 / 40)]


def test_the_positions_are_compared_and_what_is_there_is_not_made_anew(
    tiny: str, comparisons: list[Comparison], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl(tmp_path / "log.jsonl", comparisons)
    search = {"l2": [10.0], "user_l2": [1.0], "folds": 2}
    data = {"path": str(tmp_path / "log.jsonl"), "test_fraction": 0.4}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({"data": data, "backbone": {"name": tiny}, "search": search}))
    settings = {
        "backbone.layers": 2,
        "data.validation_fraction": 0.34,
        "optim.eval_steps": 1,
        "data.judges_per_pair": 0,
    }
    monkeypatch.setattr(prefix_suffix, "LOGS", {"few": Log(str(tmp_path / "base.yaml"), settings, None, 1.0)})
    monkeypatch.setattr(
        prefix_suffix, "RATES", {name: prefix_suffix.RATES[name] for name in ("the defaults", "users x 3")}
    )
    made: list[str] = []
    train = prefix_suffix.train
    monkeypatch.setattr(prefix_suffix, "train", lambda config: (made.append(config.output_dir), train(config))[1])
    asked = ["few", "--seeds", "2"]
    prefix_suffix.main(asked, tmp_path)
    assert len(made) == 2 * 2 + 2 + 2 + 2  # rates; the other seed; two passes as suffix; the opponent's
    found = json.loads((tmp_path / "positions-few.json").read_text())
    assert set(found["arms"]) == {*prefix_suffix.POSITIONS, "suffix, two passes"}
    for runs in found["arms"].values():
        assert [run["seed"] for run in runs] == [0, 1]
        assert all(run["seconds_a_step"] > 0 and {"personal", "uniform, tuned"} <= run["nats"].keys() for run in runs)
    for position, rates in found["tried"].items():
        assert found["chosen"][position] == min(rates, key=rates.get)
    prefix_suffix.main(asked, tmp_path)
    assert len(made) == 10
    monkeypatch.setattr(prefix_suffix, "LOGS", {"few": Log(str(tmp_path / "base.yaml"), settings, None, 2.0)})
    with pytest.raises(PrmError, match="settings"):
        prefix_suffix.main(asked, tmp_path)
