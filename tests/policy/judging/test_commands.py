"""`policy sample` and `policy judge`: files in, win rates worked out by hand, faults in one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from policy.cli import main
from policy.judging.answer_files import read_prompts
from prm.io.tables import read_rows, write_jsonl
from tests.endpoint_server import FakeEndpoint, likes_shorter
from tests.policy.test_cli import refused

CHAT = [{"role": "user", "content": "and now?"}]
FIRST: list[dict[str, Any]] = [
    {"user_id": "anna", "prompt": "tea?", "response": "a", "user_text": "brief please"},
    {"user_id": "anna", "prompt": CHAT, "response": "a a a"},
    {"user_id": "ben", "prompt": "tea?", "response": "a a"},
    {"user_id": None, "prompt": "tea?", "response": "nobody judges this"},
    {"user_id": "carl", "prompt": "tea?", "response": ""},
]
SECOND: list[dict[str, Any]] = [
    {"user_id": "ben", "prompt": "tea?", "response": "b b b"},
    {"user_id": "anna", "prompt": "tea?", "response": "b b"},
    {"user_id": "anna", "prompt": "and now?", "response": "b"},  # one message reads like plain text
    {"user_id": None, "prompt": "tea?", "response": "b"},
    {"user_id": "dora", "prompt": "tea?", "response": "b"},
    {"user_id": "carl", "prompt": "tea?", "response": "b"},
]


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    (tmp_path / "ours").mkdir()
    write_jsonl(tmp_path / "ours" / "answers.jsonl", FIRST)
    write_jsonl(tmp_path / "theirs.jsonl", SECOND)
    return [str(tmp_path / "ours"), str(tmp_path / "theirs.jsonl"), "--output", str(tmp_path / "out")]


def result(tmp_path: Path) -> Any:
    return json.loads((tmp_path / "out" / "judged.json").read_text())


def test_a_rule_for_everybody(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Shorter: anna wins one and loses one, ben wins, carl wins with nothing; over people (1/2 + 1 + 1) / 3."""
    main(["judge", *files, "--rule", "shorter"])
    found = result(tmp_path)
    rate = found["win_rate"]
    assert (rate["wins"], rate["ties"], rate["losses"], rate["unjudged"]) == (3, 0, 1, 0)
    assert rate["sample"]["value"] == pytest.approx(3 / 4)
    assert rate["user"]["value"] == pytest.approx(2.5 / 3)
    assert found["per_user"]["anna"] == {"wins": 1, "ties": 0, "losses": 1, "unjudged": 0}
    printed = " ".join(capsys.readouterr().out.split())
    assert "83.3" in printed
    assert "3 wins, 0 ties, 1 losses, 0 not judged, of 3 users" in printed
    markdown = (tmp_path / "out" / "judged.md").read_text()
    assert "| over duels, a tie is half a win | 75.0 [" in markdown
    duels = {(row["user_id"], json.dumps(row["prompt"])): row for _, row in read_rows(tmp_path / "out/duels.jsonl")}
    assert len(duels) == 4
    assert duels["anna", json.dumps(CHAT)]["score"] == 0.0


def test_rules_of_ones_own(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rules.json").write_text('{"anna": "longer", "ben": "contains:B"}')
    main(["judge", *files, "--rules", str(tmp_path / "rules.json"), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found == result(tmp_path)
    assert found["per_user"] == {
        "anna": {"wins": 1, "ties": 0, "losses": 1, "unjudged": 0},
        "ben": {"wins": 0, "ties": 0, "losses": 1, "unjudged": 0},
        "carl": {"wins": 0, "ties": 0, "losses": 0, "unjudged": 1},
    }
    assert found["notes"] == ["1 of 4 duels not judged: 1 no rule; duel 3: no rule: carl"]
    assert found["people"] == 2


def test_one_person_has_no_interval(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rules.json").write_text('{"ben": "longer"}')
    main(["judge", *files, "--rules", str(tmp_path / "rules.json")])
    printed = " ".join(capsys.readouterr().out.split())
    assert "inf" not in printed
    assert "0 wins, 0 ties, 1 losses, 3 not judged, of 1 user" in printed


def test_a_language_model_says_its_cost_first(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked in both orders, with what people say and chose in the prompt; a second run pays nothing."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("MY_KEY", "sk-of-nobody")
    write_jsonl(tmp_path / "log.jsonl", [{"user_id": "ben", "prompt": "milk?", "chosen": "x y", "rejected": "z"}])
    with FakeEndpoint(likes_shorter) as server:
        flags = [*files, "--endpoint", server.url, "--model", "m", "--key_variable", "MY_KEY"]
        flags += ["--price_in", "1", "--price_out", "2", "--log", str(tmp_path / "log.jsonl")]
        main(["judge", *flags, "--cost"])
        assert "8 calls" in capsys.readouterr().out
        assert server.bodies == []
        assert not (tmp_path / "out").exists()
        main(["judge", *flags])
        first = capsys.readouterr().out
        assert first.index("judging: 8 calls") < first.index("judged by m")
        assert len(server.bodies) == 8
        asked = [body["messages"][1]["content"] for body in server.bodies]
        assert sum("brief please" in text for text in asked) == 2
        assert sum("milk?" in text for text in asked) == 2
        main(["judge", *flags, "--overwrite"])
        assert len(server.bodies) == 8
    assert result(tmp_path)["win_rate"]["wins"] == 2  # carl's nothing reads "(nothing)", and is longer


def test_responses_that_were_cut_are_counted(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """`sample` says which responses have no end token, `judge` how many; a file that does not say gets no note."""
    path, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    flags = ["--sampling.max_new_tokens", "2", "--output", str(path)]
    main(["sample", str(trained), str(trained / "test.jsonl"), *flags])
    sampled = [row for _, row in read_rows(path)]
    assert {type(row["ended"]) for row in sampled} == {bool}
    cut = sum(not row["ended"] for row in sampled)
    assert cut > 0
    assert f"{cut} of {len(sampled)} responses were cut at max_new_tokens 2" in caplog.text
    rows = [row | {"ended": i > 0} for i, row in enumerate(sampled)]
    write_jsonl(path, rows)
    write_jsonl(other, [{key: value for key, value in row.items() if key != "ended"} for row in rows])
    caplog.clear()
    main(["judge", str(path), str(other), "--rule", "shorter", "--output", str(tmp_path / "out")])
    (note,) = result(tmp_path)["notes"]
    assert f"{path}: 1 of {len(rows)} " in note
    assert note in caplog.text
    assert note in (tmp_path / "out/judged.md").read_text()
    write_jsonl(path, [row | {"ended": True} for row in rows])
    again = ["judge", str(path), str(other), "--rule", "shorter", "--output", str(tmp_path / "out")]
    assert "exists already" in refused(capsys, *again)
    assert result(tmp_path)["notes"] == [note]
    main([*again, "--overwrite", "true"])
    assert result(tmp_path)["notes"] == []


def test_a_gold_model(trained: Path, tmp_path: Path) -> None:
    """p0 likes kings; carl it does not know."""
    for name, answer in (("a", "an old king"), ("b", "a fox")):
        rows = [{"user_id": user, "prompt": "what of potions?", "response": answer} for user in ("p0", "p1", "carl")]
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    paths = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), "--output", str(tmp_path / "out")]
    main(["judge", *paths, "--gold", str(trained)])
    found = result(tmp_path)["per_user"]
    assert (found["p0"]["wins"], found["p1"]["losses"], found["carl"]["unjudged"]) == (1, 1, 1)


def test_nobody_can_be_judged(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rules.json").write_text('{"zoe": "longer"}')
    said = refused(capsys, "judge", *files, "--rules", str(tmp_path / "rules.json"))
    assert "4 of 4" in said


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        ([], "give one judge"),
        (["--rule", "longer", "--gold", "x"], "give one judge"),
        (["--rule", "nicer"], "'contains:PHRASE', got 'nicer'"),
        (["--rules", "none.json"], "none.json: no such file"),
        (["--rules", "RULES"], "rules.json, user 'ben': a rule is 'longer', 'shorter'"),
        (["--gold", "none"], "none: no such folder"),
        (["--endpoint", "http://x/v1"], "--model NAME"),
        (["--endpoint", "x", "--model", "m"], "http://"),
        (["--rule", "longer", "--cost"], "--cost is for --endpoint"),
    ],
)
def test_judges_that_make_no_sense(
    files: list[str], flags: list[str], fault: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "rules.json").write_text('{"anna": "longer", "ben": "shortr"}')
    flags = [str(tmp_path / "rules.json") if flag == "RULES" else flag for flag in flags]
    assert fault in refused(capsys, "judge", *files, *flags)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ('{"user_id": "anna", "prompt": "x"}', "line 2: 'response' must be text"),
        ('{"user_id": "anna", "response": "x"}', "line 2: 'prompt'"),
        ('{"user_id": 3.5, "prompt": "x", "response": "x"}', "line 2: 'user_id' is the number 3.5"),
        ('{"user_id": "anna", "prompt": "tea?", "response": "x"}', "line 2: a second"),
        ('{"user_id": "ben", "prompt": "tea?", "response": "x", "ended": 1}', "line 2: 'ended' must be true or false"),
        ("[1]", "line 2: expected a JSON object"),
    ],
)
def test_bad_answers(
    files: list[str], row: str, fault: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"user_id": "anna", "prompt": "tea?", "response": "x"}\n' + row + "\n")
    assert fault in refused(capsys, "judge", files[0], str(path), "--rule", "longer")
    path.write_text('{"user_id": "zoe", "prompt": "tea?", "response": "x"}\n')
    assert "'user_id' and 'prompt'" in refused(capsys, "judge", files[0], str(path), "--rule", "longer")
    said = refused(capsys, "judge", files[0], str(tmp_path), "--rule", "longer")
    assert f"policy sample {tmp_path} " in said


def test_sampled_answers_are_judged(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a run's own test.jsonl, where a question stands once, whatever was compared; seeds make other answers."""
    asked = read_prompts(str(trained / "test.jsonl"))
    assert len({a.key for a in asked}) == len(asked) == len(list(read_rows(trained / "test.jsonl")))
    flags = ["--sampling.max_new_tokens", "4", "--batch", "3"]
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        path = str(tmp_path / f"{name}.jsonl")
        main(["sample", str(trained), str(trained / "test.jsonl"), "--output", path, *flags, "--sampling.seed", seed])
    a, b, c = ((tmp_path / f"{name}.jsonl").read_text() for name in "abc")
    assert a == b != c
    assert f"{len(asked)} responses" in capsys.readouterr().out
    main(
        ["judge", *(str(tmp_path / f"{n}.jsonl") for n in "ab"), "--rule", "longer", "--output", str(tmp_path / "out")]
    )
    assert result(tmp_path)["win_rate"]["ties"] == len(asked)


def test_sampling_for_named_people(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "why?"}, {"prompt": CHAT}, {"prompt": "why?"}])
    path = tmp_path / "out.jsonl"
    arguments = ["sample", str(trained), str(tmp_path / "prompts.jsonl"), "--users", "p0", "zoe"]
    main([*arguments, "--output", str(path), "--sampling.max_new_tokens", "2"])
    rows = [row for _, row in read_rows(path)]
    assert [(row["user_id"], row["prompt"]) for row in rows] == [
        (user, prompt) for prompt in ("why?", CHAT) for user in ("p0", "zoe")
    ]
    assert all(isinstance(row["response"], str) for row in rows)
    assert "1 of 2 users: 'zoe'" in caplog.text
    write_jsonl(tmp_path / "long.jsonl", [{"prompt": "why?"}, {"prompt": "a fox " * 9000}])
    said = refused(capsys, "sample", str(trained), str(tmp_path / "long.jsonl"), "--output", str(tmp_path / "none"))
    assert said.startswith(f"error: {tmp_path / 'long.jsonl'}, line 2: ")
    assert not (tmp_path / "none").exists()
    assert "--output" in refused(capsys, "sample", "smollm2-135m", str(tmp_path / "prompts.jsonl"))
    assert "--batch" in refused(capsys, *arguments, "--batch", "0")
    assert "temperature" in refused(capsys, *arguments, "--sampling.temperature", "0")
