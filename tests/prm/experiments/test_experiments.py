"""The paper's experiments: their settings, what is asserted of them, and a table that is taken up where it stopped."""

import csv
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import prm.experiments.run
from prm.cli import main
from prm.config import TrainConfig
from prm.data.comparison import Comparison
from prm.errors import PrmError
from prm.evaluation.evaluate import PERSONAL, Evaluation
from prm.experiments import EXPERIMENTS, judge
from prm.experiments.claims import (
    are_equal,
    generic_varies_more,
    group_beats,
    is_below,
    is_far_above,
    learns_slower,
    minority_keeps_up,
    unknown_users_fare_alike,
    unknown_users_gain,
)
from prm.experiments.experiment_parts import EvaluationPoint, Experiment, ExperimentRow, GroupResult, Published, Result
from prm.experiments.paper_tables import USERS
from prm.experiments.run import run_rows
from prm.io.tables import write_jsonl
from prm.io.yaml_settings import read_train_config
from prm.metrics import Estimate
from prm.report import write_experiments
from prm.report.experiments import bars_picture
from tests.paths import ROOT
from tests.planted import opposed_people

CONFIGS = ROOT / "configs/paper"


def result(top: float = 0.9, **changes: Any) -> Result:
    whole = Result(
        top=Estimate(top, top - 0.02, top + 0.02),
        generic=Estimate(0.6, 0.55, 0.65),
        groups={"longer": GroupResult(7, 0.9, 0.01), "shorter": GroupResult(3, 0.86, 0.02)},
        nll=Estimate(0.3, 0.28, 0.32),
        controls={"uniform, tuned": Estimate(0.55, 0.5, 0.6), "users shuffled": Estimate(0.4, 0.35, 0.45)},
        gain=Estimate(0.35, 0.3, 0.4),
        user_parameters=20,
        shared_parameters=10,
        steps=100,
        seconds=60.0,
    )
    return replace(whole, **changes)


def looks(accuracy: list[float], generic: list[float]) -> tuple[EvaluationPoint, ...]:
    return tuple(EvaluationPoint(10 * (i + 1), a, g, 0.5, 1.0 - g) for i, (a, g) in enumerate(zip(accuracy, generic)))


CASES = [
    (is_far_above("a", "b"), result(0.70), result(0.60), True),
    (is_far_above("a", "b"), result(0.69), result(0.60), False),
    (is_below("a", "b"), result(0.7), result(0.8), True),
    (is_below("a", "b"), result(0.8), result(0.8), False),
    (minority_keeps_up("a"), result(), result(), True),
    (
        minority_keeps_up("a"),
        result(groups={"l": GroupResult(7, 0.9, 0.0), "s": GroupResult(3, 0.84, 0.0)}),
        result(),
        False,
    ),
    (unknown_users_fare_alike("a", "b"), result(generic=Estimate(0.64, 0, 1)), result(), True),
    (unknown_users_fare_alike("a", "b"), result(generic=Estimate(0.66, 0, 1)), result(), False),
    (unknown_users_fare_alike("a", "b"), result(generic=None), result(), None),
    (
        generic_varies_more("a", "b"),
        result(looks=looks([0.9] * 4, [0.5, 0.5, 0.4, 0.6])),
        result(looks=looks([0.9] * 4, [0.1, 0.9, 0.5, 0.5])),
        True,
    ),
    (
        learns_slower("a", "b"),
        result(looks=looks([0.7, 0.8], [0.5] * 2)),
        result(looks=looks([0.8, 0.9], [0.5] * 2)),
        True,
    ),
    (
        learns_slower("a", "b"),
        result(looks=looks([0.8, 0.9], [0.5] * 2)),
        result(looks=looks([0.8, 0.9], [0.5] * 2)),
        False,
    ),
    (are_equal("a", "b", "why"), result(0.9), result(0.9015), True),
    (are_equal("a", "b", "why"), result(0.9), result(0.904), False),
    (are_equal("a", "b", "why"), result(), result(nll=Estimate(0.31, 0, 1)), False),
]


@pytest.mark.parametrize(("claim", "ours", "theirs", "holds"), CASES)
def test_claims(claim: Any, ours: Result, theirs: Result, holds: bool) -> None:
    assert claim.judge({"a": ours, "b": theirs})[0] is holds


def test_a_claim_on_a_row_that_was_not_run_stays_open() -> None:
    experiment = Experiment("x", "x", "x", (ExperimentRow("a", "a"),), (is_below("a", "b"),))
    (open_claim,) = judge(experiment, {"a": result()})
    assert open_claim.holds is None
    assert open_claim.answer == "open"


def test_results_come_back_as_they_were() -> None:
    whole = result(looks=looks([0.7], [0.5]), generic=None)
    assert Result.from_dict(json.loads(json.dumps(whole.to_dict()))) == whole


@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
@pytest.mark.parametrize("scale", ["laptop", "paper"])
def test_settings_of_every_row_make_sense(name: str, scale: str) -> None:
    """Parsed strictly and checked; and no two rows of an experiment are one and the same model."""
    experiment = EXPERIMENTS[name]
    seen = []
    for row in experiment.rows:
        files = [CONFIGS / f"{experiment.config}.yaml"]
        files += [CONFIGS / "laptop" / f"{experiment.config}.yaml"] if scale == "laptop" else []
        config = read_train_config(*files, settings={**row.settings, **(row.laptop if scale == "laptop" else {})})
        config.check()
        assert config not in seen
        seen.append(config)
    assert len({row.name for row in experiment.rows}) == len(experiment.rows)


def test_a_row_is_one_model_wherever_it_stands() -> None:
    """Experiments share the folders of rows by name."""
    rows: dict[str, tuple[str, ExperimentRow]] = {}
    for experiment in EXPERIMENTS.values():
        for row in experiment.rows:
            assert rows.setdefault(row.name, (experiment.config, row)) == (experiment.config, row)


@pytest.fixture
def tiny_experiment(tiny: str, tmp_path: Path) -> tuple[Path, Path]:
    """Folder of configs and log: four opposed people in two groups, and a stranger who is never learnt from."""
    log = [
        replace(c, metadata={"prefers": "king" if c.user_id in ("p0", "p2") else "none"}) for c in opposed_people(40, 0)
    ]
    log += [
        replace(c, user_id="zoe", metadata={"prefers": "king", "split": "unseen"}) for c in log if c.user_id == "p0"
    ]
    write_jsonl(tmp_path / "log.jsonl", log)
    configs = tmp_path / "configs"
    (configs / "laptop").mkdir(parents=True)
    base = [f"backbone: {{name: {tiny}, dtype: float32}}", "data:", f"  path: {tmp_path / 'log.jsonl'}"]
    base += [
        "  test_fraction: 0.3",
        "search: {folds: 2, l2: [1.0, 10.0], user_l2: [1.0], layers: [2], poolings: [last]}",
    ]
    (configs / "tldr.yaml").write_text("\n".join(base))
    (configs / "laptop/tldr.yaml").write_text("alpha: 0.5")
    return configs, tmp_path / "out"


def configure(configs: Path, out: Path) -> Any:
    def made(row: ExperimentRow) -> TrainConfig:
        return read_train_config(configs / "tldr.yaml", settings={**row.settings, "output_dir": str(out / row.name)})

    return made


PAIR = (
    ExperimentRow("first", "first"),
    ExperimentRow("second", "second", {"users.kind": "uniform"}, Published("59", "-", "-", "~25")),
)


def test_rows_are_kept_and_taken_up(tiny_experiment: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = Experiment("x", "X", "tldr", PAIR, (is_far_above("first", "second"),), "prefers")
    made, asked = configure(*tiny_experiment), list[tuple[set[str], Estimate]]()
    evaluate = prm.experiments.run.evaluate_run

    def noted(run: Path, comparisons: list[Comparison], *rest: Any, **named: Any) -> Evaluation:
        found = evaluate(run, comparisons, *rest, **named)
        asked.append(({c.user_id for c in comparisons}, found.row(PERSONAL).accuracy))
        return found

    monkeypatch.setattr(prm.experiments.run, "evaluate_run", noted)
    steps: Any = run_rows(experiment, made, "prompts")
    first = next(steps)
    assert list(first) == ["first"]
    steps.close()  # as a kill would
    trained = []
    real = prm.experiments.run.train
    monkeypatch.setattr(prm.experiments.run, "train", lambda config: trained.append(config.output_dir) or real(config))
    *_, results = run_rows(experiment, made, "prompts")
    assert [Path(folder).name for folder in trained] == ["second"]
    assert results["first"] == first["first"]
    (claim,) = judge(experiment, results)
    assert claim.holds, claim
    result = results["first"]
    assert asked[:2] == [({"p0", "p1", "p2", "p3"}, result.top), ({"zoe"}, result.generic)]
    assert {name: group.people for name, group in result.groups.items()} == {"king": 2, "none": 2}
    assert result.user_parameters == 5 * 32  # e_0 and four offsets
    # the second row's opponent is the first row's tuned uniform model
    assert results["second"].controls["uniform, tuned"] == result.controls["uniform, tuned"]


def test_a_row_with_other_settings_is_refused(tiny_experiment: tuple[Path, Path]) -> None:
    configs, out = tiny_experiment
    one = Experiment("x", "X", "tldr", PAIR[:1], (), "prefers")
    list(run_rows(one, configure(configs, out), "prompts"))
    other = replace(one, rows=(replace(PAIR[0], settings={"alpha": 0.25}),))
    with pytest.raises(PrmError, match=r"settings .*alpha"):
        list(run_rows(other, configure(configs, out), "prompts"))


def test_a_row_made_before_a_setting_existed_had_its_default(tiny_experiment: tuple[Path, Path]) -> None:
    configs, out = tiny_experiment
    one = Experiment("x", "X", "tldr", PAIR[:1], (), "prefers")
    list(run_rows(one, configure(configs, out), "prompts"))
    path = next(out.glob("**/run.json"))
    made = json.loads(path.read_text(encoding="utf-8"))
    del made["config"]["users"]["rank"]
    path.write_text(json.dumps(made), encoding="utf-8")
    list(run_rows(one, configure(configs, out), "prompts"))
    other = replace(one, rows=(replace(PAIR[0], settings={"users.rank": 7}),))
    with pytest.raises(PrmError, match=r"settings .*users\.rank"):
        list(run_rows(other, configure(configs, out), "prompts"))


def test_linear_heads_that_are_equal_by_construction_are_equal(tiny_experiment: tuple[Path, Path]) -> None:
    """The claims of `prm reproduce users`, on tiny data; likelihoods agree far beyond what accuracy could tell."""
    configs, out = tiny_experiment
    fixed = {"search.layers": [2], "search.l2": [10.0], "search.user_l2": [10.0]}
    huge = {"head-no-common": {"search.l2": [1e4]}, "head-no-e0-half": {"search.user_l2": [5.0]}}
    rows = tuple(replace(row, settings={**row.settings, **fixed, **huge.get(row.name, {})}) for row in USERS)
    experiment = replace(EXPERIMENTS["users"], rows=rows)
    *_, results = run_rows(experiment, configure(configs, out), "prompts")
    claims = judge(experiment, results)
    assert len(claims) == 3
    assert all(claim.holds for claim in claims), claims
    assert results["head-alpha-0"].nll.value == pytest.approx(results["head-uniform"].nll.value, abs=1e-4)
    assert results["head-no-e0-half"].nll.value == pytest.approx(results["head-no-e0"].nll.value, abs=1e-4)
    assert abs(results["head-individual"].nll.value - results["head-uniform"].nll.value) > 0.05


def test_tables_pictures_and_page(tmp_path: Path) -> None:
    curve = looks([0.6, 0.9], [0.5, 0.55])
    rows = (*PAIR, ExperimentRow("third", "third, not run"))
    for picture in ("bars", "curves"):
        experiment = Experiment("x", "Table X", "tldr", rows, (is_below("second", "first"),), "prefers", picture)
        results = {"first": result(0.9, looks=curve), "second": result(0.6, looks=curve)}
        write_experiments(experiment, results, judge(experiment, results), tmp_path / picture, "laptop")
        assert (tmp_path / picture / "figure.png").read_bytes().startswith(b"\x89PNG")
        header, *cells = csv.reader((tmp_path / picture / "table.csv").open())
        assert {len(row) for row in cells} == {len(header)}
        table = {row[0]: dict(zip(header, row)) for row in cells}
        assert table["second"]["Accuracy-top"].startswith("60.0 [58.0, 62.0]")
        assert table["second"]["paper: top"] == "59"
        assert table["uniform, tuned"]["Accuracy-top"].startswith("55.0")
        page = (tmp_path / picture / "index.html").read_text()
        assert "not run" in page
        assert "<svg" in page
        stored = json.loads((tmp_path / picture / "results.json").read_text())
        assert stored["claims"][0]["holds"] is True
        assert Result.from_dict(stored["rows"]["first"]) == results["first"]


NAN, INF = float("nan"), float("inf")


def test_no_reader_sees_a_figure_that_is_none(tmp_path: Path) -> None:
    """One person, nobody, only ties, a training without looks: dashes, no bar, and what cannot be judged stays open."""
    one, none = Estimate(0.6, -INF, INF), Estimate(NAN, -INF, INF)
    poor = result(
        nll=none,
        generic=one,
        gain=None,
        groups={"longer": GroupResult(1, 0.5, NAN, {"users shuffled": NAN}), "shorter": GroupResult(0, NAN, NAN)},
        controls={"uniform, tuned": none, "users shuffled": one},
        looks=looks([NAN, NAN], [NAN, NAN]),
    )
    poor = replace(poor, top=none)
    claims = (
        is_far_above("first", "second"),
        is_below("second", "first"),
        minority_keeps_up("second"),
        unknown_users_fare_alike("first", "second"),
        unknown_users_gain("first", "third"),
        generic_varies_more("first", "second"),
        learns_slower("first", "third"),
        group_beats("second", "longer", ("users shuffled",)),
        group_beats("first", "nobody's", ("users shuffled",)),
        minority_keeps_up("third"),
        are_equal("first", "second", "why"),
    )
    bare = result(groups={"longer": GroupResult(7, 0.9, 0.01)}, generic=None)
    results = {"first": result(), "second": poor, "third": bare}
    rows = (*PAIR, ExperimentRow("third", "third"))
    for picture in ("bars", "curves"):
        experiment = Experiment("x", "X", "tldr", rows, claims, "prefers", picture)
        judged = judge(experiment, results)
        assert [claim.holds for claim in judged] == [None] * len(claims)
        write_experiments(experiment, results, judged, tmp_path, "laptop")
        for name in ("index.html", "table.md", "table.csv", "results.json"):
            text = re.sub(r"data:image[^\"]*", "", (tmp_path / name).read_text())
            assert not re.findall(r"(?i)\b-?(?:nan|inf|infinity)\b", text), name
        drawn: Any = bars_picture(experiment, results).axes[0]
        heights = [bar.get_height() for bar in drawn.patches]
        assert all(map(math.isfinite, heights))
        ends = [float(place) for line in drawn.lines for place in line.get_ydata()]
        assert all(map(math.isfinite, ends))
    assert Result.from_dict(json.loads(json.dumps(poor.to_dict()))).generic == one


def test_command(tiny_experiment: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    configs, out = tiny_experiment
    monkeypatch.setitem(EXPERIMENTS, "users", Experiment("users", "Users", "tldr", PAIR, (), "prefers"))
    main(["reproduce", "users", "--configs", str(configs), "--output_dir", str(out)])
    shown = capsys.readouterr().out
    assert "Accuracy-top" in shown
    assert (out / "users/index.html").is_file()
    assert (out / "rows/laptop/first/result.json").is_file()
    main(["reproduce", "users", "--configs", str(configs), "--output_dir", str(out), "--json"])
    assert json.loads(capsys.readouterr().out) == json.loads((out / "users/results.json").read_text())
    with pytest.raises(SystemExit):
        main(["reproduce", "table4", "--configs", str(out)])
    assert "tldr.yaml" in capsys.readouterr().err
