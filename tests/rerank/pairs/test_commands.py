"""`rerank pairs` in process: what it writes and prints, and how it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prm.io.tables import read_rows, write_jsonl
from prm.scoring.scorer import Scorer
from rerank import PairRules, make_pairs
from rerank.cli import main
from tests.endpoint_server import Body, FakeEndpoint, Sent, choices
from tests.planted import opposed_people
from tests.tiny_runs import config_of, train_any

TEXTS = ["an old king", "seven lazy dogs", "mix potions"]
Command = Callable[..., str]


@pytest.fixture(scope="module")
def run(backbone_of: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("pairs-cli")
    write_jsonl(folder / "log.jsonl", opposed_people(20, 0, people=2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRM_CACHE", str(folder / "cache"))
        return str(train_any("linear", config_of("linear", backbone_of("llama"), folder)))


@pytest.fixture
def pairs(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command in a folder with requests; returns what it printed, or its error."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    write_jsonl("given.jsonl", [{"prompt": f"{i}?", "user_id": f"p{i % 2}", "responses": TEXTS} for i in range(4)])
    write_jsonl("prompts.jsonl", [{"prompt": f"{i}?"} for i in range(3)])

    def call(*arguments: str, refused: bool = False) -> str:
        if not refused:
            main(["pairs", run, "--output", "pairs.jsonl", *arguments])
            return capsys.readouterr().out
        with pytest.raises(SystemExit) as stop:
            main(["pairs", run, "--output", "pairs.jsonl", *arguments])
        error = capsys.readouterr().err.splitlines()[-1]
        assert stop.value.code == 2
        assert error.startswith("error: ")
        return error

    return call


def written() -> list[dict[str, Any]]:
    return [row for _, row in read_rows("pairs.jsonl")]


def test_given_responses_become_pairs_and_the_file_is_not_replaced(pairs: Command, run: str) -> None:
    said = pairs("--input", "given.jsonl")
    rows = [row for _, row in read_rows("given.jsonl")]
    expected = make_pairs(Scorer.from_pretrained(run), rows)
    assert written() == [pytest.approx(pair.to_row()) for pair in expected.pairs]
    assert said.startswith("pairs.jsonl: 4 pairs, mean margin ")
    before = Path("pairs.jsonl").read_bytes()
    assert "pairs.jsonl exists already" in pairs("--input", "given.jsonl", refused=True)
    assert Path("pairs.jsonl").read_bytes() == before
    pairs("--input", "given.jsonl", "--overwrite", "--max_pairs", "2", "--soft_labels", "true")
    assert len(written()) == 8
    assert all(0.5 < row["p_chosen"] < 1.0 for row in written())


def test_counts_as_json(pairs: Command, run: str) -> None:
    out = json.loads(pairs("--input", "given.jsonl", "--json", "--min_margin", "1e-9", "--rejected", "random"))
    rows = [row for _, row in read_rows("given.jsonl")]
    counts = make_pairs(Scorer.from_pretrained(run), rows, PairRules(min_margin=1e-9, rejected="random")).counts
    assert out == {"output": "pairs.jsonl"} | counts.to_dict() | {"mean_margin": pytest.approx(counts.mean_margin)}


def test_nothing_is_written_where_no_pair_is_left(pairs: Command) -> None:
    Path("pairs.jsonl").write_text("old\n")
    error = pairs("--input", "given.jsonl", "--min_margin", "1e9", "--overwrite", refused=True)
    assert "4 without a pair (min_margin 4)" in error
    assert Path("pairs.jsonl").read_text() == "old\n"


def test_an_endpoint_is_sampled_for_named_users(pairs: Command) -> None:
    def play(body: Body, number: int) -> Sent:
        said = [(f"{text} {body['seed']}", "stop" if "king" not in text else "length") for text in TEXTS]
        return choices(said[: body["n"]])

    with FakeEndpoint(play) as server:
        flags = ["--input", "prompts.jsonl", "--users", "p1", "p0", "--generator", server.url, "-n", "3"]
        out = json.loads(pairs(*flags, "--generator_model", "tiny", "--sampling.seed", "7", "--json"))
        assert [body["model"] for body in server.bodies] == ["tiny"] * 3
        assert {body["seed"] for body in server.bodies} == {7}
    assert [(row["prompt"], row["user_id"]) for row in written()] == [
        (f"{i}?", user) for i in range(3) for user in ("p1", "p0")
    ]
    assert (out["truncated"], out["responses"]) == (3, 9)
    assert not any("king" in row["chosen"] + row["rejected"] for row in written())


def test_rankings_of_an_earlier_command_are_taken_for_responses(
    pairs: Command, run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main([run, "--input", "given.jsonl", "--output", "ranked.jsonl"])
    capsys.readouterr()
    pairs("--input", "ranked.jsonl")
    first = written()
    pairs("--input", "given.jsonl", "--overwrite")
    assert first == [pytest.approx(row) for row in written()]


def test_one_prompt_from_the_flags(pairs: Command) -> None:
    Path("given.txt").write_text("\n".join(TEXTS))
    pairs("--prompt", "why?", "--user", "p0", "--candidates", "given.txt")
    (row,) = written()
    assert (row["prompt"], row["user_id"], {row["chosen"], row["rejected"]} < set(TEXTS)) == ("why?", "p0", True)


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (["--input", "prompts.jsonl"], "prompts.jsonl, line 1: a pair needs its user"),
        (["--prompt", "why?"], "a pair needs its user"),
        (["--input", "given.jsonl", "-n", "4"], "-n 4"),
        (["--input", "given.jsonl", "--min_margin", "-1"], "min_margin"),
        (["--input", "given.jsonl", "--rejected", "first"], "rejected"),
        (["--input", "given.jsonl", "--generator_model", "x"], "--generator_model"),
        (["--input", "none.jsonl"], "none.jsonl"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_makes_no_sense_is_named(pairs: Command, flags: list[str], fault: str) -> None:
    assert fault in pairs(*flags, refused=True)
    assert not Path("pairs.jsonl").exists()
