"""`policy prompts`, and `policy judge --protocol`: planted turns whose verdicts are known, rates worked out by hand."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from policy.cli import build_parser, main
from policy.judging.commands import judge_of
from policy.judging.judges import LLMJudge, llm
from prm.data.sources.public.psoups import PROMPTS
from prm.io.endpoint import Endpoint
from prm.io.tables import write_jsonl
from prm.scoring.scorer import Scorer
from rerank.service.config import ServiceConfig
from rerank.service.engine import Engine
from rerank.service.http.app import build_app
from rerank.service.store import Store
from rerank.service.upstream import EndpointUpstream, LocalModel, Upstream
from tests.conftest import build_config, save_random
from tests.endpoint_server import Body, FakeEndpoint, Sent, answers, completion, likes_greater, likes_shorter
from tests.paths import SHARED
from tests.planted import opposed_people
from tests.policy.test_cli import refused
from tests.prm.data.sources.public.test_prism import person, talk
from tests.rerank.service.live import serving
from tests.tiny_runs import config_of, train_any

REAL = SHARED / "data" / "prism_mini" / "comparisons.jsonl"
# (user, part, what the two sides respond to each turn); a greater number is better, "?" gets no verdict
PLANTED = [
    ("anna", "test", [("2", "1"), ("3", "1"), ("1", "2")]),
    ("ben", "test", [("5", "5 "), ("1", "4")]),
    ("carl", "unseen", [("?", "1")]),
    ("dora", "unseen", [("9", "8")]),
    ("ted", "unseen", [("7", "7 ")]),
]


@pytest.fixture(autouse=True)
def _direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-nobody")


def rows(side: int, **more: object) -> list[Body]:
    metadata = {"system_string": "Be kind.", "open_feedback": "Too long.", "examples": [], **more}
    return [
        {"user_id": user, "prompt": f"{user} {turn}?", "response": said[side], "metadata": {**metadata, "split": part}}
        for user, part, turns in PLANTED
        for turn, said in enumerate(turns)
    ]


def lines(path: Path) -> list[Body]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def judge(folder: Path, url: str, *flags: str, sides: Sequence[str] = ("a", "b"), model: str = "m") -> Body:
    """The result of `policy judge` on two of the folder's files."""
    paths = [str(folder / f"{side}.jsonl") for side in sides]
    output = str(folder / "".join(sides))
    main(["judge", *paths, "--endpoint", url, "--model", model, "--output", output, *flags])
    path = Path(output) / "judged.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def test_table_2_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """3 wins, 2 ties, 2 losses, carl not judged: per sample (3 + 2) / (3 + 2 + 2 * 2) and (2 + 2) / 9. Per user the
    first side wins anna, dora and ted of four, the second one ben and ted."""
    for side, name in enumerate("ab"):
        write_jsonl(tmp_path / f"{name}.jsonl", rows(side))
    with FakeEndpoint(likes_greater) as server:
        judge(tmp_path, server.url, "--protocol", "prism", "--cost")
        assert "judging: 8 calls" in capsys.readouterr().out
        assert server.bodies == []
        found = judge(tmp_path, server.url, "--protocol", "prism")
        asked = len(server.bodies)
        turned = judge(tmp_path, server.url, "--protocol", "prism", "--seed", "5", sides=("b", "a"))
        judge(tmp_path, server.url, "--protocol", "prism", "--overwrite")
    assert asked == 8  # each turn once
    assert len(server.bodies) == 16  # the same again costs nothing
    for result, both, won in ((found, 5 / 9, 3 / 4), (turned, 4 / 9, 2 / 4)):
        rate = result["win_rate"]
        assert rate["both_win"]["value"] == pytest.approx(both)
        assert rate["dominant"]["value"] == pytest.approx(won)
        assert rate["both_win"]["low"] < both < rate["both_win"]["high"]
        assert rate["dominant"]["low"] < won < rate["dominant"]["high"]
        assert rate["unjudged"] == 1
    assert (found["win_rate"]["wins"], found["win_rate"]["ties"], found["win_rate"]["losses"]) == (3, 2, 2)
    assert found["win_rate"]["strict"]["value"] == pytest.approx((2 / 3 + 0 + 1 + 0) / 4)
    assert found["per_user"]["carl"] == {"wins": 0, "ties": 0, "losses": 0, "unjudged": 1}
    assert found["notes"][0] == ("2 seen and 3 unseen users, 8 turns; the paper's Table 2 has 10 and 10, 76 turns")
    assert found["notes"][1] == "8 of 8 questions have fewer than 2 examples"
    asked_of = [body["messages"][1]["content"] for body in server.bodies]
    assert all("Be kind." in text and "Too long." in text for text in asked_of)


def test_a_slow_endpoint_gets_time_and_few_requests() -> None:
    flags = ["--endpoint", "http://x/v1", "--model", "m", "--timeout", "600", "--concurrency", "1", "--price_in", "2"]
    judge, _ = judge_of(build_parser().parse_args(["judge", "a", "b", *flags]), Path("none.jsonl"))
    assert isinstance(judge, LLMJudge)
    assert judge.endpoint == Endpoint("http://x/v1", "m", timeout=600.0, concurrency=1, price_in=2.0)


def example(chosen: str, rejected: str, same: bool, *path: str) -> Body:
    roles = ["user", "assistant"] * len(path)
    prompt = [{"role": role, "content": text} for role, text in zip(roles, path, strict=False)]
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "same_conversation": same}


def test_the_judged_turn_is_not_in_the_question(tmp_path: Path) -> None:
    """A later turn follows from the response that was chosen: it is shown unless that one is judged, and then an
    opening of another conversation takes its place. An example on the judged prompt is never shown."""
    later = example("4 later", "1 later", True, "first?", "8 chosen", "second?")
    judged = example("8 chosen", "1 rejected", True, "first?")
    others = [example(f"{i} other", f"{i} else", False, f"other {i}?") for i in range(3)]
    metadata = {"split": "test", "system_string": "", "open_feedback": "", "examples": [judged, later, *others]}
    for name, response in (("a", "3 ours"), ("b", "2 theirs"), ("chosen", "8 chosen")):
        row = {"user_id": "anna", "prompt": "first?", "response": response, "metadata": metadata}
        write_jsonl(tmp_path / f"{name}.jsonl", [row])
    texts = []
    with FakeEndpoint(likes_greater) as server:
        for sides in (("a", "b"), ("a", "chosen")):
            judge(tmp_path, server.url, "--protocol", "prism", sides=sides)
            texts.append(server.bodies[-1]["messages"][1]["content"])
    policies, chosen = texts
    assert "8 chosen" not in policies
    assert "1 rejected" not in policies + chosen
    assert ["4 later" in policies, "0 other" in policies, "1 other" in policies] == [True, True, False]
    assert "second?" in policies
    assert ["4 later" in chosen, "0 other" in chosen, "1 other" in chosen, "2 other" in chosen] == [
        False,
        True,
        True,
        False,
    ]
    assert chosen.count("8 chosen") == 1  # as an output


RIGHT = rows(0)[0]["metadata"]


@pytest.mark.parametrize(
    ("metadata", "fault"),
    [
        ({}, "metadata 'split' is missing: sample both sides"),
        ([1], "'metadata' must be an object, got a list"),
        ({k: v for k, v in RIGHT.items() if k != "system_string"}, "metadata 'system_string' is missing"),
        ({k: v for k, v in RIGHT.items() if k != "open_feedback"}, "metadata 'open_feedback' is missing"),
        ({k: v for k, v in RIGHT.items() if k != "examples"}, "metadata 'examples' is missing"),
        ({**RIGHT, "split": "train"}, "metadata 'split' must be 'test' or 'unseen', got 'train'"),
        ({**RIGHT, "open_feedback": 3}, "metadata 'open_feedback' must be text, got int 3"),
        ({**RIGHT, "examples": "x"}, "metadata 'examples' must be a list, got text"),
        ({**RIGHT, "examples": [3]}, "metadata 'examples[0]': must be an object, got int 3"),
        ({**RIGHT, "examples": [example("x", "x", True, "y")]}, "metadata 'examples[0]': 'chosen' and 'rejected'"),
        ({**RIGHT, "examples": [example("x", " ", True, "y")]}, "metadata 'examples[0]': 'rejected' is empty"),
        ({**RIGHT, "examples": [example("x", "z", True)]}, "metadata 'examples[0]': 'prompt' is an empty list"),
        (
            {**RIGHT, "examples": [{"prompt": "y", "chosen": "x", "rejected": "z"}]},
            "metadata 'examples[0]': 'same_conversation' must be true or false, got null",
        ),
    ],
)
def test_metadata_that_is_missing_is_named_by_file_line_and_field(
    tmp_path: Path, metadata: object, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for side, name in enumerate("ab"):
        write_jsonl(tmp_path / f"{name}.jsonl", [*rows(side)[1:3], {**rows(side)[0], "metadata": metadata}])
    paths = [str(tmp_path / f"{name}.jsonl") for name in "ab"]
    said = refused(capsys, "judge", *paths, "--endpoint", "http://x/v1", "--model", "m", "--protocol", "prism")
    assert said.startswith(f"error: {tmp_path}/a.jsonl, line 3: {fault}")


def test_sides_of_different_prompt_files_and_flags_that_make_no_sense(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "a.jsonl", rows(0))
    write_jsonl(tmp_path / "b.jsonl", rows(1, open_feedback="Other."))
    paths = [str(tmp_path / f"{name}.jsonl") for name in "ab"]
    model = ["--endpoint", "http://x/v1", "--model", "m"]
    said = refused(capsys, "judge", *paths, *model, "--protocol", "prism")
    assert f"{tmp_path}/a.jsonl, line 1, and {tmp_path}/b.jsonl, line 1: 'metadata' differs" in said
    assert "--log is not" in refused(capsys, "judge", *paths, *model, "--protocol", "prism", "--log", "x.jsonl")
    assert "--protocol is for --endpoint" in refused(capsys, "judge", *paths, "--rule", "longer", "--protocol", "prism")
    said = refused(capsys, "judge", *paths, *model, "--protocol", "psoups")
    assert said.startswith(f"error: {tmp_path}/a.jsonl, line 1: 'user_id' 'anna' has no preference prompt")


def test_table_1_goes_by_the_preference_prompts(tmp_path: Path) -> None:
    """The judge reads them instead of the text that a side was given; ties are no wins."""
    for name, response in (("a", "brief"), ("b", "a long response")):
        lines = [{"user_id": user, "prompt": "tea?", "response": response, "user_text": "mine"} for user in PROMPTS]
        write_jsonl(tmp_path / f"{name}.jsonl", lines)

    def play(body: Body, number: int) -> Sent:
        text = body["messages"][1]["content"]
        if PROMPTS["P2A"] in text:
            return likes_shorter(body)
        if PROMPTS["P2B"] in text:
            return completion("Verdict: " + ("B" if len(answers(body)[0]) < 6 else "A"))
        return completion("Verdict: TIE")

    with FakeEndpoint(play) as server:
        found = judge(tmp_path, server.url, "--protocol", "psoups")
    assert len(server.bodies) == 2 * len(PROMPTS)
    assert not any("mine" in body["messages"][1]["content"] for body in server.bodies)
    assert found["per_user"]["P2A"]["wins"] == found["per_user"]["P2B"]["losses"] == 1
    assert found["win_rate"]["strict"]["value"] == pytest.approx(1 / 6)


def write_prism(folder: Path, people: int) -> Path:
    """PRISM's files with users of 2 short dialogues of 2 turns each; every tenth or so is unseen."""
    talks = []
    for i in range(people):
        for j in range(2):
            turns = [(f"{i} {j} {k}?", f"yes {i} {j} {k}", [f"no {i} {j} {k}"]) for k in range(2)]
            talks.append(talk(f"p{i}", f"c{i}-{j}", *turns) | {"open_feedback": f"said of {i} {j}"})
    blank: Body = dict.fromkeys(("self_description", "education", "employment_status", "marital_status"), "")
    survey = [person(f"p{i}", system_string=f"be {i}", **blank) for i in range(people)]
    folder.mkdir()
    for name, lines in (("survey", survey), ("conversations", talks)):
        write_jsonl(folder / f"{name}.jsonl", lines)
    return folder


def test_from_prism_to_the_judge(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prompts are drawn by their seed and say what the log lacks; two policies respond; the judge reads of each person
    what they expect, what they said of that conversation, and no turn that is judged."""
    log = str(write_prism(tmp_path / "prism", 20))
    sets = []
    flags = ["--output", str(tmp_path / "prompts.jsonl"), "--people", "3", "--samples", "9"]
    for seed in ("3", "3", "4"):
        main(["prompts", log, *flags, "--seed", seed])
        sets.append(lines(tmp_path / "prompts.jsonl"))
    assert sets[0] == sets[1] != sets[2]
    assert "2 unseen users instead of 3" in " ".join(capsys.readouterr().out.split())
    drawn = sets[2]
    assert len(drawn) == 9
    assert {row["metadata"]["split"] for row in drawn} == {"test", "unseen"}
    for name, seed in (("a", "0"), ("b", "1")):
        flags = ["--sampling.max_new_tokens", "4", "--sampling.seed", seed, "--output", str(tmp_path / f"{name}.jsonl")]
        main(["sample", str(trained), str(tmp_path / "prompts.jsonl"), *flags])
    sampled = lines(tmp_path / "a.jsonl")
    assert [row["metadata"] for row in sampled] == [row["metadata"] for row in drawn]
    with FakeEndpoint(lambda body, n: completion("Result for final example: TIE")) as server:
        for sides in (("a", "b"), ("a", "prompts")):  # the prompts file holds the chosen responses
            found = judge(tmp_path, server.url, "--protocol", "prism", sides=sides)
            assert found["win_rate"]["both_win"]["value"] == pytest.approx(1 / 2)
            assert found["win_rate"]["dominant"]["value"] == 1.0
    by_prompt = {row["prompt"][-1]["content"]: row for row in drawn}
    for body in server.bodies:
        text = body["messages"][1]["content"]
        (said,) = (said for said in by_prompt if text.count(said) and f"{said}\n</conversation>" in text)
        i, j, _ = said.split()
        assert f"be {i}\n" in text
        assert f"said of {i} {j}\n" in text
        assert f"said of {i} {1 - int(j)}" not in text
        assert f"no {said.removesuffix('?')}" not in text
        against_chosen = f"<output_a>\nyes {said[:-1]}" in text or f"<output_b>\nyes {said[:-1]}" in text
        assert text.count(f"yes {said.removesuffix('?')}") == against_chosen


def test_a_log_without_what_a_judge_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row: Body = {"user_id": "anna", "prompt": "a?", "chosen": "x", "rejected": "y"}
    metadata: Body = {"split": "test", "dialogue": "c", "turn": 0, "system_string": "", "open_feedback": ""}
    path = tmp_path / "log.jsonl"
    for changed, fault in (
        ({"open_feedback": None}, "metadata 'open_feedback' must be text, got null"),
        ({"turn": True}, "metadata 'turn' must be a whole number"),
        ({"dialogue": ["c"]}, "metadata 'dialogue' must be text, got a list"),
    ):
        write_jsonl(path, [row | {"metadata": metadata}, row | {"prompt": "b?", "metadata": metadata | changed}])
        assert f"{path}, line 2: {fault}" in refused(capsys, "prompts", str(path), "--output", str(tmp_path / "out"))
    write_jsonl(path, [row])
    assert "metadata 'split'" in refused(capsys, "prompts", str(path), "--output", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.fixture
def reads_long(tmp_path: Path) -> str:
    """Folder of a tiny backbone that reads whole questions."""
    config = build_config("llama")
    config.max_position_embeddings = 8192
    return save_random(tmp_path / "backbone", AutoModelForCausalLM, config)


@pytest.fixture
def reward_run(reads_long: str, tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "log.jsonl", opposed_people(40, 0))
    config = config_of("linear", reads_long, tmp_path)
    config.backbone.max_length = 8192
    return train_any("linear", config)


def serve_and_judge(run: Path, folder: Path, upstream: Upstream, model: str = "m") -> Body:
    """The result of judging by our own server's chat completions."""
    engine = Engine(Scorer.from_pretrained(run, device="cpu"), Store(f"sqlite:///{folder}/store.db"), ServiceConfig())
    try:
        with serving(build_app(engine, upstream=upstream, n=2)) as url:
            return judge(folder, f"{url}/v1", "--protocol", "prism", model=model)
    finally:
        engine.close()


def test_by_our_own_server(reward_run: Path, tmp_path: Path) -> None:
    """`rerank serve` passes the question on, and of two replies one comes back: the verdicts are as from the model
    itself."""
    for side, name in enumerate("ab"):
        write_jsonl(tmp_path / f"{name}.jsonl", rows(side))
    with FakeEndpoint(likes_greater) as server:
        found = serve_and_judge(reward_run, tmp_path, EndpointUpstream(Endpoint(server.url)))
    assert found["win_rate"]["both_win"]["value"] == pytest.approx(5 / 9)
    assert found["win_rate"]["unjudged"] == 1


@pytest.mark.data
@pytest.mark.skipif(not REAL.exists(), reason="the data is not here")
def test_real_turns_by_our_own_server_and_a_model_that_says_nothing_of_use(
    reward_run: Path,
    reads_long: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each prompt of a user becomes a turn of one held-out conversation. A random model states no verdict: every duel
    is unjudged, with the reason, and there is no win rate."""
    log, turns = [], dict[tuple[str, str], int]()
    for row in lines(REAL):
        user, a, b = str(row["user_id"]), row["response_a"], row["response_b"]
        metadata: Body = {
            "split": "unseen" if user > "m09" else "test",
            "dialogue": user,
            "open_feedback": "",
            "system_string": "",
        }
        metadata |= {"turn": turns.setdefault((user, str(row["context"])), len(turns))}
        chosen, rejected = (a, b) if row["choice"] == "a" else (b, a)
        log.append(
            {"user_id": user, "prompt": row["context"], "chosen": chosen, "rejected": rejected, "metadata": metadata}
        )
    write_jsonl(tmp_path / "pairs.jsonl", log)
    main(
        [
            "prompts",
            str(tmp_path / "pairs.jsonl"),
            "--output",
            str(tmp_path / "b.jsonl"),
            "--people",
            "2",
            "--samples",
            "4",
        ]
    )
    drawn = lines(tmp_path / "b.jsonl")
    assert len({row["user_id"] for row in drawn}) == 4
    assert "4 prompts of 4 users" in capsys.readouterr().out
    write_jsonl(tmp_path / "a.jsonl", [{**row, "response": "I cannot say."} for row in drawn])
    monkeypatch.setattr(llm, "_OPTIONS", {"temperature": 0, "max_tokens": 8})
    with pytest.raises(SystemExit):
        serve_and_judge(reward_run, tmp_path, LocalModel(reads_long, timeout=60.0), reads_long)
    assert f"{len(drawn)} of {len(drawn)} duels not judged" in capsys.readouterr().err
