"""`rerank curve` in process: what it writes, and how it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prm.config import BackboneConfig, DataConfig, SearchConfig, TrainConfig
from prm.io.tables import write_jsonl
from prm.metrics import Array, Estimate
from prm.report.curves import Panel, curves_picture
from prm.training.run import train
from rerank.cli import main
from rerank.curves.estimators import picks
from tests.endpoint_server import FakeEndpoint, choices
from tests.planted import opposed_people


@pytest.fixture(scope="module")
def runs(backbone_of: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """(a run, one that learnt of the same people from other data, one whose backbone and people are others)."""
    made = []
    for seed, backbone, people in ((0, 0, 3), (9, 0, 4), (0, 1, 1)):
        folder = tmp_path_factory.mktemp("curve-cli")
        write_jsonl(folder / "log.jsonl", opposed_people(30, seed, people=people))
        config = TrainConfig(
            output_dir=str(folder / "run"),
            data=DataConfig(path=str(folder / "log.jsonl")),
            backbone=BackboneConfig(backbone_of("llama", seed=backbone), dtype="float32"),
            search=SearchConfig(folds=2, l2=[1.0], user_l2=[1.0]),
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PRM_CACHE", str(folder / "cache"))
            made.append(str(train(config)))
    return made[0], made[1], made[2]


@pytest.fixture
def flags(runs: tuple[str, str, str], backbone_of: Callable[..., str], tmp_path: Path) -> list[str]:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("what of the fox?\n\nwhy a king?\nwhat of the fox?\nwizards?\n")
    how = ["-n", "5", "--sampling.max_new_tokens", "6", "--generator", backbone_of("llama")]
    return [runs[0], str(prompts), "--gold", runs[1], "--output", str(tmp_path / "out"), *how]


def test_the_command_writes_its_curves(
    runs: tuple[str, str, str], flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All whom both know, three distinct prompts, pools of one more than n; the curve follows from the pools."""
    main(["curve", *flags])
    printed = capsys.readouterr().out
    folder = tmp_path / "out"
    result = json.loads((folder / "curve.json").read_text())
    main(["curve", *flags, "--json"])
    assert json.loads(capsys.readouterr().out) == result
    pools = [json.loads(line) for line in (folder / "pools.jsonl").read_text().splitlines()]
    assert (result["run"], result["gold"], result["n"], result["prompts"]) == (runs[0], runs[1], 5, 3)
    assert list(result["per_user"]) == ["p0", "p1", "p2"]
    assert len(pools) == 9
    best = []
    for pool in pools:
        assert len(pool["responses"]) == 6
        personal, gold = (np.array([a[name] for a in pool["responses"]]) for name in ("personal", "gold"))
        best.append(picks(personal)[4] @ gold - gold.mean())
    assert result["pooled"]["personal"]["gain"][4]["value"] == pytest.approx(np.mean(best))
    page, table = (folder / "index.html").read_text(), (folder / "curve.md").read_text()
    assert (folder / "curve.png").read_bytes()[:4] == b"\x89PNG"
    for text in (page, table, printed):
        assert "best of 5" in text
        assert "share of the oracle headroom" in text.split("gain over a random response")[0]
        assert "wins against a fresh response" in text
    assert "| best of | KL bound | distinct |" in table
    assert page.count("<svg") == 3
    assert next(iter(result)) == "headroom_share"
    share = {name: e["value"] for name, e in result["headroom_share"].items()}
    assert list(share) == ["personal", "generic user", "uniform", "longest", "random", "oracle"]
    assert (share["oracle"], share["random"]) == (1.0, pytest.approx(0.0, abs=1e-9))
    for name, key in (("personal", "personal"), ("generic user", "generic"), ("uniform", "uniform")):
        parts = [
            [picks([a[k] for a in p["responses"]])[4] @ golds(p) - golds(p).mean() for k in (key, "gold")]
            for p in pools
        ]
        captured, headroom = np.mean(parts, axis=0)
        assert share[name] == pytest.approx(captured / headroom)


def golds(pool: dict[str, list[dict[str, float]]]) -> Array:
    return np.array([answer["gold"] for answer in pool["responses"]])


def test_without_a_uniform_model_its_pick_is_left_out(
    runs: tuple[str, str, str], flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of one response nothing is picked: no share, and it is said."""
    alone = shutil.copytree(runs[0], tmp_path / "alone")
    shutil.rmtree(alone / "uniform")
    main(["curve", str(alone), *flags[1:], "-n", "1"])
    share = json.loads((tmp_path / "out/curve.json").read_text())["headroom_share"]
    assert share == dict.fromkeys(["personal", "generic user", "longest", "random", "oracle"])
    said = capsys.readouterr().out
    assert "no share: of one response" in said
    assert "no uniform" in said
    assert (tmp_path / "out/index.html").read_text().count("<svg") == 2
    assert "uniform" not in json.loads((tmp_path / "out/pools.jsonl").read_text().splitlines()[0])["responses"][0]


def test_people_and_json_lines(flags: list[str], tmp_path: Path) -> None:
    """A run's own test.jsonl will do as prompts; those who are named, in that order."""
    path = tmp_path / "prompts.jsonl"
    messages = [{"role": "user", "content": "a king?"}]
    write_jsonl(path, [{"prompt": "a fox?", "chosen": "x"}, {"prompt": messages}])
    main(["curve", flags[0], str(path), *flags[2:], "--users", "p2", "p0"])
    assert list(json.loads((tmp_path / "out/curve.json").read_text())["per_user"]) == ["p2", "p0"]
    rows = [json.loads(line) for line in (tmp_path / "out/pools.jsonl").read_text().splitlines()]
    assert rows[-1]["prompt"] == messages


def test_the_run_and_its_judge_share_their_backbone(
    flags: list[str], backbone_of: Callable[..., str], loads: list[str]
) -> None:
    generator = backbone_of("llama", seed=3)
    main(["curve", *flags, "--generator", generator])
    assert sorted(loads) == sorted([backbone_of("llama"), generator])


def test_an_endpoint_samples_one_pool_for_all_users(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    said = ["an old fox", "the king", "", "mix potions", "dogs", "a lazy king"]
    with FakeEndpoint(lambda body, number: choices([(text, "stop") for text in said])) as server:
        main(["curve", *flags, "--generator", server.url])
        assert [body["n"] for body in server.bodies] == [6, 6, 6]
    pools = [json.loads(line) for line in (tmp_path / "out/pools.jsonl").read_text().splitlines()]
    assert len(pools) == 9
    assert all([response["text"] for response in pool["responses"]] == said for pool in pools)


def test_a_judge_of_the_same_data_is_warned_of(
    runs: tuple[str, str, str], flags: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    twin = shutil.copytree(runs[0], tmp_path / "twin")
    with pytest.raises(SystemExit):
        main(["curve", *flags, "--gold", str(twin)])
    (twin / "config.json").write_text(json.dumps(json.loads((twin / "config.json").read_text())))  # as another run
    main(["curve", *flags, "--gold", str(twin)])
    assert "same data" in caplog.text
    for name in ("curve.json", "curve.md", "index.html"):
        assert "same data" in (tmp_path / "out" / name).read_text(encoding="utf-8"), name
    caplog.clear()
    main(["curve", *flags])
    assert "same data" not in caplog.text


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        (["-n", "0"], "-n"),
        (["--users", "P1"], "--users: the run does not know 'P1'; did you mean 'p1'?"),
        (["--users", "p3"], "--users: the run does not know 'p3'"),
        (["--gold", "RUN"], "a run cannot judge its own picks"),
        (["--gold", "nowhere"], "nowhere"),
        (["--users", "p2", "--gold", "OTHER"], "--users: the judge does not know 'p2'"),
        (["--sampling.temperature", "0"], "sampling.temperature"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "refused",
)
def test_what_makes_no_sense_is_named(
    runs: tuple[str, str, str], flags: list[str], changes: list[str], fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["curve", *flags, *({"RUN": runs[0], "OTHER": runs[2]}.get(flag, flag) for flag in changes)])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert fault in error
    assert error.count("\n") == 1


LONG = json.dumps("a fox " * 9000)


@pytest.mark.parametrize(
    ("line", "fault"),
    [("7", "'prompt'"), ('{"text": "a"}', "'prompt'"), ('" "', "is empty"), (LONG, "window")],
    ids=["number", "no prompt", "blank", "long"],
)
def test_a_bad_prompt_is_named_by_file_and_line(
    flags: list[str], tmp_path: Path, line: str, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(f'"fox?"\n{line}\n')
    with pytest.raises(SystemExit):
        main(["curve", flags[0], str(path), *flags[2:]])
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}, line 2: ")
    assert fault in error


def test_the_judge_is_not_optional(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["curve", *flags[:2]])
    assert "gold" in capsys.readouterr().err


def test_the_picture_draws_lines_bands_and_bounds() -> None:
    """A band of infinite width, as of a single prompt, is left out."""
    line = [Estimate(0.1 * k, 0.1 * k - 1, 0.1 * k + 1) for k in range(8)]
    vague = [Estimate(0.0, float("-inf"), float("inf"))] * 8
    panels = [Panel("a", "y", {"one": line, "two": vague}, {}), Panel("b", "z", {"one": line}, {"most": [0.5] * 8})]
    axes: list[Any] = curves_picture(panels).axes
    left, right = axes
    assert [list(drawn.get_ydata()) for drawn in left.lines] == [[e.value for e in part] for part in (line, vague)]
    assert (len(left.collections), len(right.collections)) == (1, 1)
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["one", "most"]
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["1", "2", "4", "8"]
