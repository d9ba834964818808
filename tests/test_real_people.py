"""The benchmark on real people: its page shows the figures of its JSON file, and a killed command goes on."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.real_people import small_logs
from benchmarks.real_people.__main__ import main
from benchmarks.real_people.page import page_of
from benchmarks.real_people.results import Ends, Group, Measured, read_results
from benchmarks.real_people.sets import RealPeople, thinned
from prm.data.comparison import Comparison
from prm.errors import PrmError
from prm.evaluation.compare import run
from prm.evaluation.compare.parts import PartResult
from prm.io.tables import write_jsonl
from tests.docs_pages import blocks_of
from tests.paths import ROOT
from tests.planted import opposed_people

Table = dict[str, list[str]]

SETS = (
    RealPeople("one", "All of them", "They differ.", "one.jsonl", "pairs", "pair"),
    RealPeople("two", "Some of them", "They differ, too.", "two.jsonl", "pairs", "prompt", people=3, each=9),
)
MODELS = ("uniform", "length_sign", "bayes", "mine")
NAMES = {"length_sign": "length sign per user"}
FITS = len(MODELS) * 2  # of a set: two parts


@pytest.fixture
def command(tmp_path: Path, tiny: str) -> list[str]:
    """The arguments that measure two tiny logs, with the model that CONTRIBUTING.md shows beside ours."""
    for number, one in enumerate(SETS):
        log = [c for i, c in enumerate(opposed_people(12, number)) if c.user_id != "p0" or i % 8 == 0]
        write_jsonl(tmp_path / "data" / one.path, log)  # half of the comparisons of p0: means over people differ
    (example,) = [block.text for block in blocks_of(ROOT / "CONTRIBUTING.md") if "def choose" in block.text]
    (tmp_path / "mine.py").write_text(example)
    folders = [f"--{name}={tmp_path / name}" for name in ("folder", "docs")]
    models = ["--models", *MODELS[:-1], "--model", str(tmp_path / "mine.py")]
    return [str(tmp_path / "data"), *folders, *models, "--backbone", tiny, "--folds", "2"]


def killed_after(fits: int, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """A list to which each fit appends; the fit after so many is interrupted."""
    done: list[None] = []
    run_part: Callable[..., PartResult] = run.run_part

    def counted(*args: object) -> PartResult:
        if len(done) == fits:
            raise KeyboardInterrupt
        done.append(None)
        return run_part(*args)

    monkeypatch.setattr(run, "run_part", counted)
    return done


def tables(page: str) -> list[Table]:
    """The rows of each table by their first cell."""
    found = re.findall(r"(?:^\|.*\|\n)+", page, re.MULTILINE)
    rows = [[line.strip("| ").split(" | ") for line in table.splitlines()] for table in found]
    return [{cells[0]: cells[1:] for cells in table if cells[0] != "---"} for table in rows]


def shown(ends: Ends, digits: int, scale: float = 1.0, sign: str = "") -> str:
    """Value and interval, formatted anew."""
    numbers = (round(scale * (number or 0.0), digits) + 0.0 for number in (ends["value"], ends["low"], ends["high"]))
    return "{} [{}, {}]".format(*(f"{number:{sign}.{digits}f}" for number in numbers))


def check_figures(found: Measured, models: Table, gains: Table, new: Table) -> None:
    rows = [(NAMES.get(row["name"], row["name"]), row) for row in found["result"]["rows"]]
    assert {name: cells[:2] for name, cells in models.items() if name != "model"} == {
        name: [shown(row["accuracy"], 1, 100.0), shown(row["nll"], 3)] for name, row in rows
    }
    assert {name: cells for name, cells in gains.items() if name != "model"} == {
        name: [
            *(shown(ends, 1, 100.0, "+") for ends in (gain["points"], gain["points_macro"])),
            *(shown(ends, 3, 1.0, "+") for ends in (gain["nats"], gain["nats_macro"])),
        ]
        for name, row in rows
        if (gain := row["gains"]) is not None
    }
    steps = found["result"]["new_users"]
    assert new["model"] == [str(step["after"]) for step in steps]
    for model in MODELS:
        assert new[NAMES.get(model, model)] == [f"{step['nll'][model]['value']:.3f}" for step in steps]


def check_outcome(found: Measured, cells: list[str]) -> None:
    rows = {row["name"]: row for row in found["result"]["rows"]}
    base, best = rows["best baseline"], rows["best personal model"]
    gain = best["gains"]
    assert gain is not None
    assert cells == [
        str(found["result"]["people"]),
        *(shown(ends, 3) for ends in (base["nll"], best["nll"])),
        shown(gain["points"], 1, 100.0, "+"),
        *(shown(ends, 3, 1.0, "+") for ends in (gain["nats"], gain["nats_macro"])),
    ]


def numbered(found: Measured) -> Measured:
    """The same set with other figures, of which no two are alike."""
    numbers = itertools.count(1)
    text = re.sub(r"(?<=: )-?\d+\.\d+(?=[,}])", lambda _: f"{next(numbers) / 1000}", json.dumps(found))
    other: Measured = json.loads(text)
    return other


def check_losses(found: Measured) -> None:
    """What a model gains is the difference of the two losses that stand beside each other."""
    assert [step["after"] for step in found["result"]["new_users"]][:3] == [0, 1, 2]
    for step in found["result"]["new_users"]:
        for model, gain in step["gains"].items():
            difference = step["nll"]["best baseline"]["value"] - step["nll"][model]["value"]
            assert gain["nats"]["value"] == pytest.approx(difference, abs=2e-5)


def test_the_page_shows_the_figures_of_the_file_and_a_killed_command_goes_on(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        killed_after(FITS + 3, patch)
        with pytest.raises(KeyboardInterrupt):
            main(command, SETS)
    page = (tmp_path / "docs/benchmark.md").read_text()
    assert "## All of them" in page
    assert "## Some of them" not in page
    assert "Not measured yet: Some of them." in page
    first = read_results(tmp_path / "docs/_static/benchmark.json")
    assert list(first) == ["one"]

    done = killed_after(FITS, monkeypatch)
    main(command, SETS)
    assert len(done) == FITS - 3
    found = read_results(tmp_path / "docs/_static/benchmark.json")
    assert found["one"] == first["one"]
    page = (tmp_path / "docs/benchmark.md").read_text()
    assert "Not measured" not in page
    for one in SETS:
        section = page.split(f"## {one.title}\n")[1].split("\n## ")[0]
        check_figures(found[one.name], *tables(section))
        other = {one.name: numbered(found[one.name])}
        check_outcome(other[one.name], tables(page_of(other, SETS))[0][one.title])
        check_losses(found[one.name])
    assert found["two"]["result"]["size"]["people"] == 3
    by_name = {row["name"]: row for row in found["one"]["result"]["rows"]}
    assert by_name["mine"]["nll"] == by_name["length_sign"]["nll"]  # the file shows how ours is made


def test_groups_of_many_people_are_shown_and_those_that_may_lose_are_told_apart(
    command: list[str], tmp_path: Path
) -> None:
    """The bars of 0.01 nats and 0.5 points, on either side; a group of 29 is left out."""
    main(command, SETS[:1])
    (found,) = read_results(tmp_path / "docs/_static/benchmark.json").values()
    (group,) = found["result"]["groups"][:1]
    gain = group["gains"]["best personal model"]

    def of(people: int, least: int, nats: float, points: float) -> Group:
        ends = {"nats": nats, "points": points}
        other = gain | {name: {"value": 0.1, "low": low, "high": 0.2} for name, low in ends.items()}
        return {**group, "people": people, "least": least, "most": least + 4, "gains": {"best personal model": other}}  # type: ignore[dict-item]

    bars = [(30, 10, -0.0099, -0.0049), (30, 20, -0.0101, 0.0), (31, 30, 0.0, -0.0051), (29, 40, 0.0, 0.0)]
    result = {**found["result"], "groups": [of(*bar) for bar in bars]}
    page = page_of({"one": {**found, "result": result}}, SETS)  # type: ignore[typeddict-item]
    (table,) = [rows for rows in tables(page) if "training comparisons" in rows]
    assert {name: cells[-1] for name, cells in table.items()} == {
        "training comparisons": "not inferior",
        "10 to 14": "yes",
        "20 to 24": "not shown",
        "30 to 34": "not shown",
    }


def test_thinning_depends_on_the_seed_and_keeps_what_it_says() -> None:
    log = [Comparison(f"p{i % 5}", "?", f"a{i}", f"b{i}") for i in range(50)][:-4]  # 10 of p0, 9 of the others
    of = RealPeople("x", "", "", "", "pairs", "pair", least=10)
    assert thinned(log, of, 0) == [c for c in log if c.user_id == "p0"]
    few = replace(of, least=0, people=3, each=4)
    kept = thinned(log, few, 0)
    assert sorted(Counter(c.user_id for c in kept).values()) == [4, 4, 4]
    assert kept == [c for c in log if c in kept]
    assert kept != thinned(log, few, 1)


@pytest.mark.parametrize(("text", "fault"), [(None, "no such file"), ("x = 1", "no function 'choose")])
def test_a_file_that_is_no_model_is_refused(text: str | None, fault: str, command: list[str], tmp_path: Path) -> None:
    (tmp_path / "mine.py").unlink()
    if text is not None:
        (tmp_path / "mine.py").write_text(text)
    with pytest.raises(PrmError, match=fault):
        main(command, SETS[:1])


def test_a_rule_leads_by_how_much_lower_its_log_loss_is() -> None:
    """Ten people; the rule is 0.1 nats better for all of one log, and 0.3 worse for all of the other."""
    users = [f"u{i}" for i in range(10)] * 2

    def draw(rule: float) -> small_logs.Draw:
        losses = {"rules": rule, "length_sign": 0.7, "uniform": 0.6, "stack": 0.6}
        return small_logs.Draw(20, users, {name: np.full(20, loss) for name, loss in losses.items()})

    rules, signs = small_logs.leads("a set", [draw(0.5), draw(0.9)])[::2]
    assert (rules.rule, rules.model, rules.surely, rules.draws) == ("rules", "uniform", 1, 2)
    assert rules.nats.value == pytest.approx(-0.1)
    assert (signs.rule, signs.surely) == ("length_sign", 0)
    assert signs.nats.high == pytest.approx(-0.1)


def test_small_logs_are_drawn_and_measured(
    command: list[str], tmp_path: Path, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same draw is the same log, and is not measured twice."""
    how = [command[0], "--draws", "2", "--folder", str(tmp_path / "small"), "--backbone", tiny]
    small_logs.main(how, SETS[1:])
    logs = [(tmp_path / "small" / seed / "two/log.jsonl").read_text() for seed in "01"]
    found = json.loads((tmp_path / "small/leads.json").read_text())["leads"]
    assert [lead["draws"] for lead in found] == [2] * 4
    done = killed_after(0, monkeypatch)
    small_logs.main(how, SETS[1:])
    assert not done
    assert [(tmp_path / "small" / seed / "two/log.jsonl").read_text() for seed in "01"] == logs
    assert logs[0] != logs[1]
