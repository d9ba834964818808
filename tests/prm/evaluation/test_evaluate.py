"""A run and its opponent are evaluated with one backbone in memory, as if each had loaded its own."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prm.errors import CheckpointError
from prm.evaluation.audit import audit_run
from prm.evaluation.cold_start import cold_start_run
from prm.evaluation.evaluate import evaluate_run, open_scorers, score_margins
from prm.features.hidden_states import own_stores
from prm.io.tables import write_jsonl
from prm.scoring.scorer import Scorer
from tests.tiny_runs import SEARCH, config_of, small_log, train_any

LOG = small_log(12)
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "one layer": ("linear", {"search": replace(SEARCH, layers=[1])}),
    "three layers": ("bayes", {"search": replace(SEARCH, layers=[3], poolings=["last"])}),
    "adapter": ("soft", {}),
}


@pytest.fixture
def run_of(backbone_of: Callable[..., str], tmp_path: Path) -> Callable[[str], Path]:
    def make(name: str, backbone: str | None = None) -> Path:
        folder, (kind, changes) = tmp_path / name, SETTINGS[name]
        folder.mkdir()
        write_jsonl(folder / "log.jsonl", LOG)
        return train_any(kind, config_of(kind, backbone or backbone_of("llama", layers=4), folder, **changes))

    return make


def margins_of(scorer: Scorer) -> dict[str, list[float]]:
    users = [c.user_id for c in LOG]
    scored = score_margins(scorer, LOG, {"personal": users, "generic": [None] * len(users)})
    return {name: margins.tolist() for name, margins in scored.items()}


def opened(run: Path, against: Path) -> tuple[Scorer, Scorer]:
    scorer, other = open_scorers(run, against)
    assert other is not None
    return scorer, other


def weights_of(scorer: Scorer) -> set[int]:
    return {tensor.data_ptr() for tensor in scorer.model.backbone.parameters() if tensor.dim() > 1}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("one layer", "three layers"),
        ("three layers", "one layer"),
        ("adapter", "one layer"),
        ("three layers", "adapter"),
    ],
)
def test_two_runs_share_a_backbone_and_score_as_each_does_alone(
    run_of: Callable[[str], Path],
    loads: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    first: str,
    second: str,
) -> None:
    """To the bit, at whichever depth each reads and whichever comes first."""
    runs = run_of(first), run_of(second)
    monkeypatch.setenv("PRM_CACHE", str(tmp_path / "alone"))
    expected = [margins_of(Scorer.from_pretrained(run, cache=True)) for run in runs]
    loads.clear()
    monkeypatch.setenv("PRM_CACHE", str(tmp_path / "together"))
    scorers = opened(*runs)
    assert len(loads) == 1
    assert [margins_of(scorers[k]) for k in (0, 1, 0)] == [expected[k] for k in (0, 1, 0)]
    assert expected[0] != expected[1]
    depths = {"one layer": 1, "three layers": 3, "adapter": 4}
    assert [scorer.model.config.num_hidden_layers for scorer in scorers] == [depths[first], depths[second]]
    assert len(weights_of(scorers[0]) & weights_of(scorers[1])) == 1 + 7 * min(
        depths[first], depths[second]
    )  # the token table, and matrices


def test_every_evaluation_of_a_run_loads_its_backbone_once(run_of: Callable[[str], Path], loads: list[str]) -> None:
    run = run_of("one layer")
    newcomers = [replace(c, user_id=f"new {c.user_id}") for c in LOG]
    commands: list[Callable[[], Any]] = [
        lambda: evaluate_run(run, LOG),
        lambda: cold_start_run(run, newcomers, [1]),
        lambda: audit_run(run, LOG),
    ]
    for command in commands:
        loads.clear()
        command()
        assert len(loads) == 1


def test_texts_that_were_read_with_separate_backbones_are_found(
    run_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = run_of("one layer"), run_of("three layers")
    alone = [Scorer.from_pretrained(run, cache=True) for run in runs]
    expected = [margins_of(scorer) for scorer in alone]
    monkeypatch.setattr("prm.features.hidden_states.read_pooled", lambda *args: pytest.fail("a text is read again"))
    for scorer, other, margins in zip(opened(*runs), alone, expected, strict=True):
        assert own_stores(scorer.model) == own_stores(other.model)  # type: ignore[arg-type]
        assert margins_of(scorer) == margins


def test_a_shared_backbone_is_refused_by_the_run_that_it_does_not_fit(
    run_of: Callable[..., Path], backbone_of: Callable[..., str], tmp_path: Path
) -> None:
    """One of two runs on a folder whose weights were replaced in between, whichever is loaded first."""
    folder = shutil.copytree(backbone_of("llama", layers=4), tmp_path / "backbone")
    old = run_of("one layer", str(folder))
    shutil.copytree(backbone_of("llama", seed=1, layers=4), folder, dirs_exist_ok=True)
    new = run_of("three layers", str(folder))
    for runs in ((old, new), (new, old)):
        with pytest.raises(CheckpointError, match="weights differ"):
            open_scorers(*runs)
    assert open_scorers(new)
    (new / "uniform/model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="uniform/model"):
        open_scorers(new)
