"""The `rerank` command in process: what it prints against the scorer and the sampler, and how it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prm.config import BackboneConfig, DataConfig, SearchConfig, TrainConfig, UserConfig
from prm.io.tables import write_jsonl
from prm.scoring.scorer import Scorer
from prm.training.run import train
from rerank.cli import main
from rerank.ranking.requests import read_candidates
from rerank.sampling.config import Sampling
from rerank.sampling.sampler import Sampler
from tests.endpoint_server import Body, FakeEndpoint, Sent, choices
from tests.planted import opposed_people

PROMPT = "what of fox potions?"
ANSWERS = ["an old king jumps", "seven lazy dogs", "mix potions", "the quick king mix a fox", "wizards"]
Run = Callable[..., str]


@pytest.fixture(scope="module")
def run(backbone_of: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Run folder of a linear head on the tiny backbone; p0 and p2 like kings, p1 does not."""
    folder = tmp_path_factory.mktemp("rerank-cli")
    write_jsonl(folder / "log.jsonl", opposed_people(30, 0, people=3))
    config = TrainConfig(
        output_dir=str(folder / "run"),
        data=DataConfig(path=str(folder / "log.jsonl")),
        backbone=BackboneConfig(backbone_of("llama"), dtype="float32"),
        search=SearchConfig(folds=2, l2=[1.0], user_l2=[1.0]),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRM_CACHE", str(folder / "cache"))
        return str(train(config))


@pytest.fixture
def scorer(run: str) -> Scorer:
    return Scorer.from_pretrained(run)


@pytest.fixture
def rerank(run: str, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command on the run folder; returns what it printed."""

    def call(*arguments: str) -> str:
        main([run, *arguments])
        return capsys.readouterr().out

    return call


@pytest.fixture
def refused(run: str, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command, which must leave with code 2 and one line that says why; unless it `streams`, with no more."""

    def call(*arguments: str, folder: str = run, streams: bool = False) -> str:
        with pytest.raises(SystemExit) as exit_:
            main([folder, *arguments])
        out, err = capsys.readouterr()
        assert exit_.value.code == 2
        assert streams or out == ""
        assert "Traceback" not in err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        return err

    return call


def write(path: Path, *lines: str | bytes) -> str:
    path.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines))
    return str(path)


def texts_file(tmp_path: Path) -> str:
    """All answers: three bare, one as an object, one after an empty line."""
    bare = [json.dumps(text) for text in ANSWERS[:3]]
    return write(tmp_path / "texts.jsonl", *bare, json.dumps({"response": ANSWERS[3], "n": 1}), "", '"wizards"')


def expected_ranking(scorer: Scorer, texts: list[str], user: str | None, prompt: Any = PROMPT) -> list[dict[str, Any]]:
    """Best first, with the scorer's own rewards, one text at a time."""
    rewards = {text: float(scorer.score(prompt, [text], user)[0]) for text in texts}
    return [
        {"text": t, "reward": pytest.approx(rewards[t], rel=1e-4, abs=1e-5)}
        for t in sorted(rewards, key=lambda t: -rewards[t])
    ]


@pytest.mark.parametrize("user", ["p0", "p1", None])
def test_given_candidates_rank_by_the_scorers_rewards(
    rerank: Run, scorer: Scorer, tmp_path: Path, user: str | None
) -> None:
    flags = ["--user", user] if user else []
    out = rerank("--prompt", PROMPT, "--candidates", texts_file(tmp_path), "--json", *flags)
    row = json.loads(out)
    assert out.count("\n") == 1
    assert row["ranking"] == expected_ranking(scorer, ANSWERS, user)
    assert (row["prompt"], row["user_id"], row["known_user"]) == (PROMPT, user, user is not None)


def test_opposed_people_get_different_rankings(rerank: Run, tmp_path: Path) -> None:
    """Rewards that left the person out would agree."""
    flags = ["--prompt", PROMPT, "--candidates", texts_file(tmp_path), "--json"]
    first, second, generic = (
        json.loads(rerank(*flags, *who))["ranking"] for who in (["--user", "p0"], ["--user", "p1"], [])
    )
    assert [r["text"] for r in first] != [r["text"] for r in second]
    assert len({r["reward"] for ranking in (first, second, generic) for r in ranking}) == 15


def test_the_table_holds_every_answer_best_first(rerank: Run, scorer: Scorer, tmp_path: Path) -> None:
    out = rerank("--prompt", PROMPT, "--candidates", texts_file(tmp_path), "--user", "p0")
    assert "5 responses ranked for p0" in out
    assert "generic" not in out
    expected = expected_ranking(scorer, ANSWERS, "p0")
    rewards = scorer.score(PROMPT, [r["text"] for r in expected], "p0").tolist()
    lines = [next(line for line in out.splitlines() if r["text"] in line) for r in expected]
    assert [out.index(line) for line in lines] == sorted(out.index(line) for line in lines)
    for line, reward in zip(lines, rewards, strict=True):
        assert f"{reward:+.3f}" in line


def test_an_unknown_user_is_said_so_and_ranks_as_the_generic_one(rerank: Run, scorer: Scorer, tmp_path: Path) -> None:
    flags = ["--prompt", PROMPT, "--candidates", texts_file(tmp_path)]
    row = json.loads(rerank(*flags, "--user", "zoe", "--json"))
    assert row["known_user"] is False
    assert row["ranking"] == json.loads(rerank(*flags, "--json"))["ranking"]
    assert row["ranking"] == expected_ranking(scorer, ANSWERS, None)
    said = " ".join(rerank(*flags, "--user", "zoe").split())
    assert "'zoe' is not in the model" in said
    assert "'" not in rerank(*flags).split("\n", 1)[0]  # nobody was named: no one is missing


def test_a_mistyped_id_and_people_of_few_comparisons_are_warned_of(
    rerank: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of a file's people in one line each; nobody in this log has few."""
    path = write(
        tmp_path / "ask.jsonl",
        *(json.dumps({"prompt": "a?", "responses": ["fox"], "user_id": user}) for user in ("P1", "p0", "pp2")),
    )
    rerank("--input", path)
    hints = "'P1' (did you mean 'p1'?), 'pp2' (did you mean 'p2'?)"
    assert [text for text in caplog.messages if "warning" in text] == [f"warning: not in the model: {hints}"]
    caplog.clear()
    monkeypatch.setattr(Scorer, "judgements", lambda self, user: 3 if user == "p1" else 30)
    rerank("--prompt", PROMPT, "--candidates", texts_file(tmp_path), "--user", "p1")
    assert "5 comparisons: 'p1' (3)" in caplog.text


def test_user_text_reaches_the_scorer(rerank: Run, scorer: Scorer, tmp_path: Path) -> None:
    flags = ["--prompt", PROMPT, "--candidates", texts_file(tmp_path), "--json"]
    found = {r["text"]: r["reward"] for r in json.loads(rerank(*flags, "--user_text", "an old king"))["ranking"]}
    with_text = scorer.score(PROMPT, ANSWERS, None, "an old king").tolist()
    assert [found[text] for text in ANSWERS] == pytest.approx(with_text, rel=1e-4, abs=1e-5)
    assert with_text != pytest.approx(scorer.score(PROMPT, ANSWERS).tolist(), rel=0.01)


def requests_file(tmp_path: Path) -> tuple[str, list[dict[str, Any]]]:
    """Requests with and without answers, for known people, an unknown one and nobody; one is a conversation."""
    rows: list[dict[str, Any]] = [
        {"prompt": PROMPT, "user_id": "p1", "responses": ANSWERS[:3], "id": 7},
        {"prompt": "why the fox?", "user_id": "zoe"},
        {"prompt": [{"role": "user", "content": "a king?"}], "responses": ANSWERS},
        {"prompt": "why the fox?", "user_id": "p0"},
    ]
    return write(tmp_path / "requests.jsonl", *map(json.dumps, rows)), rows


def test_requests_from_a_file_with_and_without_answers(
    rerank: Run, scorer: Scorer, backbone_of: Callable[..., str], tmp_path: Path
) -> None:
    path, given = requests_file(tmp_path)
    generator = backbone_of("llama", seed=3)
    flags = ["--input", path, "--generator", generator, "-n", "4", "--sampling.max_new_tokens", "6"]
    out = rerank(*flags)
    rows = [json.loads(line) for line in out.splitlines()]
    sampled = Sampler.from_pretrained(generator).sample("why the fox?", 4, Sampling(max_new_tokens=6))
    distinct = [text for i, text in enumerate(sampled) if text and text not in sampled[:i]]
    assert len(distinct) > 1
    for row, request, texts, known in zip(
        rows, given, (ANSWERS[:3], distinct, ANSWERS, distinct), (True, False, False, True), strict=True
    ):
        rest = {key: value for key, value in request.items() if key != "responses"}
        assert {key: value for key, value in row.items() if key not in ("ranking", "known_user")} == rest
        assert row["known_user"] is known
        ended = [ranked.pop("ended", None) for ranked in row["ranking"]]
        assert all(type(value) is (type(None) if "responses" in request else bool) for value in ended)
        assert row["ranking"] == expected_ranking(scorer, texts, request.get("user_id"), request["prompt"])
    assert rerank(*flags) == out  # the seed is a setting
    assert rerank(*flags, "--sampling.seed", "5") != out


def test_sampling_says_at_its_start_how_much_there_is_to_do(
    rerank: Run, backbone_of: Callable[..., str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, _ = requests_file(tmp_path)
    with caplog.at_level("INFO", logger="rerank"):
        rerank("--input", path, "--generator", backbone_of("llama"), "-n", "3", "--sampling.max_new_tokens", "5")
    (line,) = [text for text in caplog.messages if "are sampled from" in text]
    assert line.startswith("3 responses of up to 5 tokens to each of 2 prompts are sampled from ")


def test_sampling_for_one_prompt_gives_n_answers(rerank: Run, backbone_of: Callable[..., str]) -> None:
    flags = ["--prompt", PROMPT, "--generator", backbone_of("qwen2"), "--sampling.max_new_tokens", "6", "--json"]
    for n in (1, 5):
        row = json.loads(rerank(*flags, "--n", str(n)))
        texts = [r["text"] for r in row["ranking"]]
        wanted = Sampler.from_pretrained(backbone_of("qwen2")).sample(PROMPT, n, Sampling(max_new_tokens=6))
        assert sorted(texts) == sorted(set(wanted) - {""})
        rewards = [r["reward"] for r in row["ranking"]]
        assert rewards == sorted(rewards, reverse=True)


def test_an_endpoint_samples(
    rerank: Run, refused: Run, scorer: Scorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one request for each prompt, each with the flags that were given; the same texts rank as given ones."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("MY_KEY", "sk-of-nobody")
    path, given = requests_file(tmp_path)

    def play(body: Body, number: int) -> Sent:
        return choices([(text, "length" if i == 4 else "stop") for i, text in enumerate(ANSWERS)])

    with FakeEndpoint(play) as server:
        endpoint = ["--generator", server.url, "--generator_model", "tiny", "--key_variable", "MY_KEY", "-n", "5"]
        options = ["--generator_options", '{"top_k": 3, "seed": null}', "--sampling.max_new_tokens", "6"]
        rows = [json.loads(line) for line in rerank("--input", path, *endpoint, *options).splitlines()]
        assert len(server.bodies) == 2
        for body in server.bodies:
            assert (body["model"], body["n"], body["max_tokens"], body["top_k"]) == ("tiny", 5, 6, 3)
            assert "seed" not in body
        assert {headers["authorization"] for headers in server.headers} == {"Bearer sk-of-nobody"}
        for i in (1, 3):
            assert {r["text"]: r.pop("ended") for r in rows[i]["ranking"]} == {
                text: text != ANSWERS[4] for text in ANSWERS
            }
            assert rows[i]["ranking"] == expected_ranking(scorer, ANSWERS, given[i]["user_id"], given[i]["prompt"])
        assert "1 of 5 responses were cut" in rerank("--prompt", PROMPT, *endpoint)
        server.play = lambda body, number: Sent(401)
        assert f"error: {server.url}: HTTP 401" in refused("--prompt", PROMPT, *endpoint)
        server.play = lambda body, number: Sent(400, "too long")
        assert refused("--input", path, *endpoint, streams=True).startswith(
            f"error: {path}, line 2: {server.url}: HTTP 400"
        )


def test_nothing_is_sampled_where_answers_are_given(
    rerank: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Fails:
        """A class, as annotations of whoever imports it first are evaluated."""

        def __init__(self, *args: Any) -> None:
            raise AssertionError("the generator was loaded")

        from_pretrained = __init__

    monkeypatch.setattr("rerank.sampling.sampler.Sampler", Fails)
    row = json.loads(rerank("--prompt", PROMPT, "--candidates", texts_file(tmp_path), "--json"))
    assert len(row["ranking"]) == 5


def test_a_number_of_responses_is_refused_where_they_are_given(refused: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "given.jsonl", json.dumps({"prompt": PROMPT, "responses": ANSWERS}))
    assert "-n 4" in refused("--prompt", PROMPT, "--candidates", texts_file(tmp_path), "-n", "4")
    assert "-n 4" in refused("--input", path, "-n", "4")


def test_the_output_file_is_what_is_printed(rerank: Run, backbone_of: Callable[..., str], tmp_path: Path) -> None:
    path, _ = requests_file(tmp_path)
    flags = ["--input", path, "--generator", backbone_of("llama"), "-n", "4", "--sampling.max_new_tokens", "6"]
    printed = rerank(*flags)
    assert printed.count("\n") == 4
    target = tmp_path / "new" / "ranked.jsonl"
    assert rerank(*flags, "--output", str(target)) == ""
    assert target.read_text(encoding="utf-8") == printed
    assert [p.name for p in target.parent.iterdir()] == ["ranked.jsonl"]  # no temporary file is left


def test_text_beyond_ascii_is_printed_as_it_is(rerank: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "texts.jsonl", '"ein Fuchs \\u00fcber K\\u00f6nig"', '"王様\\nund \\u2028 mehr"')
    out = rerank("--prompt", "wer?", "--candidates", path, "--json")
    assert "ein Fuchs über König" in out
    assert {r["text"] for r in json.loads(out)["ranking"]} == {"ein Fuchs über König", "王様\nund \u2028 mehr"}


def test_neither_or_both_of_prompt_and_input(refused: Run, tmp_path: Path) -> None:
    path, _ = requests_file(tmp_path)
    assert "either --prompt, or --input" in refused()
    assert "either --prompt, or --input" in refused("--prompt", PROMPT, "--input", path)


@pytest.mark.parametrize(
    ("lines", "place", "fault"),
    [
        pytest.param(None, "", "no such file", id="missing"),
        pytest.param([], "", "the file is empty", id="empty"),
        pytest.param(["", "  "], "", "the file is empty", id="blank"),
        pytest.param(['"fox"', '"do'], ", line 2", "not valid JSON", id="broken"),
        pytest.param(['"fox"', b'"\xff"'], ", line 2", "", id="not-utf-8"),
        pytest.param(['"fox"', "7"], ", line 2", "expected a text", id="number"),
        pytest.param(['"fox"', '["dog"]'], ", line 2", "expected a text", id="list"),
        pytest.param(['"fox"', "null"], ", line 2", "expected a text", id="null"),
        pytest.param(['"fox"', '{"text": "dog"}'], ", line 2", "'response'", id="other-key"),
        pytest.param(['"fox"', '{"response": 3}'], ", line 2", "'response'", id="number-in-object"),
        pytest.param(['"fox"', '"  "'], ", line 2", "expected a text", id="white-space"),
        pytest.param(['"fox"', "[" * 100_000], ", line 2", "", id="nested"),
        pytest.param(['"fox"', '"\\ud800"'], ", line 2", "", id="half-surrogate"),
    ],
)
def test_bad_candidates_are_named(
    refused: Run, tmp_path: Path, lines: list[str | bytes] | None, place: str, fault: str
) -> None:
    path = tmp_path / "texts.jsonl"
    if lines is not None:
        write(path, *lines)
    error = refused("--prompt", PROMPT, "--candidates", str(path))
    assert error.startswith(f"error: {path}{place}: ")
    assert fault in error


def test_candidates_may_start_with_a_byte_order_mark(rerank: Run, tmp_path: Path) -> None:
    """Requests may; Windows writes one."""
    path = write(tmp_path / "texts.jsonl", b"\xef\xbb\xbf" + b'"fox"', '"dog"')
    row = json.loads(rerank("--prompt", PROMPT, "--candidates", path, "--json"))
    assert {r["text"] for r in row["ranking"]} == {"fox", "dog"}


GOOD = json.dumps({"prompt": PROMPT, "responses": ANSWERS})


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        pytest.param('{"prompt": "a?", "responses": "fox"}', "'responses' must be a list of texts", id="text"),
        pytest.param('{"prompt": "a?", "responses": []}', "'responses' must be a list of texts", id="empty"),
        pytest.param('{"prompt": "a?", "responses": ["fox", 3]}', "'responses' must be a list of texts", id="number"),
        pytest.param('{"prompt": "a?", "responses": null}', "'responses'", id="null"),
        pytest.param('{"responses": ["fox"]}', "'prompt'", id="no-prompt"),
        pytest.param('{"prompt": " ", "responses": ["fox"]}', "'prompt' is empty", id="empty-prompt"),
        pytest.param(
            '{"prompt": [{"role": "assistant", "content": "a"}], "responses": ["fox"]}', "'user'", id="no-user-turn"
        ),
        pytest.param('{"prompt": "a?", "responses": ["fox"], "user_id": 3.5}', "'user_id'", id="user-number"),
        pytest.param('{"prompt": "a?", "responses": ["fox"], "user_text": 3}', "'user_text'", id="user-text-number"),
        pytest.param('{"prompt": "a?", "respon', "not valid JSON", id="broken"),
        pytest.param('["a?"]', "expected a JSON object", id="list"),
    ],
)
def test_a_bad_request_is_named_by_file_and_line(refused: Run, tmp_path: Path, line: str, fault: str) -> None:
    """And nothing is printed for the good one before it."""
    path = write(tmp_path / "requests.jsonl", GOOD, line)
    error = refused("--input", path)
    assert error.startswith(f"error: {path}, line 2: ")
    assert fault in error


@pytest.mark.parametrize(
    "line",
    [
        pytest.param({"prompt": "a?", "responses": ["fox", ""]}, id="empty-answer"),
        pytest.param({"prompt": "a?", "responses": ["\ud800"]}, id="half-surrogate"),
        pytest.param({"prompt": "a?", "responses": ["fox " * 1200]}, id="answer-beyond-the-window"),
        pytest.param({"prompt": "fox " * 600}, id="prompt-beyond-the-generator's-window"),
    ],
)
def test_a_request_that_cannot_be_served_is_named_by_file_and_line(
    refused: Run, backbone_of: Callable[..., str], tmp_path: Path, line: dict[str, Any]
) -> None:
    path = write(tmp_path / "requests.jsonl", GOOD, json.dumps(line))
    error = refused("--input", path, "--generator", backbone_of("llama"), streams=True)
    assert error.startswith(f"error: {path}, line 2: ")


def test_bad_input_leaves_the_old_output_file(refused: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "requests.jsonl", GOOD, '{"prompt": 3}')
    target = tmp_path / "ranked.jsonl"
    target.write_text("old\n")
    refused("--input", path, "--output", str(target))
    assert target.read_text() == "old\n"


def test_a_missing_or_empty_input_file_is_named(refused: Run, tmp_path: Path) -> None:
    missing = str(tmp_path / "nothing.jsonl")
    assert refused("--input", missing).startswith(f"error: {missing}: no such file")
    empty = write(tmp_path / "empty.jsonl")
    assert refused("--input", empty).startswith(f"error: {empty}: the file is empty")


def test_a_missing_run_folder_is_named(refused: Run, tmp_path: Path) -> None:
    folder = str(tmp_path / "no-run")
    assert folder in refused("--prompt", PROMPT, "--candidates", texts_file(tmp_path), folder=folder)


def test_a_missing_generator_is_named(refused: Run, tmp_path: Path) -> None:
    folder = str(tmp_path / "no-model")
    assert folder in refused("--prompt", PROMPT, "--generator", folder)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["-n", "0"], "-n"),
        (["-n", "-1"], "-n"),
        (["--sampling.temperature", "0"], "sampling.temperature"),
        (["--sampling.top_p", "1.5"], "sampling.top_p"),
        (["--sampling.max_new_tokens", "0"], "sampling.max_new_tokens"),
        (["--sampling.max_new_tokens", "600"], "window of 512"),
        (["--prompt", " "], "'prompt' is empty"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "refused",
)
def test_settings_that_make_no_sense_are_named(
    refused: Run, backbone_of: Callable[..., str], flags: list[str], named: str
) -> None:
    assert named in refused("--prompt", PROMPT, "--generator", backbone_of("llama"), *flags)


def test_only_empty_samples_are_refused(
    refused: Run, backbone_of: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rerank.ranking.candidates.Candidates.generate", lambda *args: [[], []])
    assert "every sampled response is empty" in refused("--prompt", PROMPT, "--generator", backbone_of("llama"))


def test_an_unknown_flag_leaves_with_code_2(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([run, "--prompt", PROMPT, "--promt", "x"])
    assert exit_.value.code == 2
    err = capsys.readouterr().err
    assert "--promt" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("lines", "warned"),
    [
        (["one", "two", "three"], False),
        (["", "one", "two", "three", ""], False),
        (["one", "", "two", "", "three"], False),  # one line each: nothing is torn apart
        (["one", "two", "", "three"], True),
    ],
)
def test_a_text_file_tells_its_answers_and_blocks_of_lines_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, lines: list[str], warned: bool
) -> None:
    path = write(tmp_path / "texts.txt", *lines)
    with caplog.at_level("INFO"):
        assert [response.text for response in read_candidates(path)] == ["one", "two", "three"]
    assert caplog.messages[0] == f"{path}: 3 responses, one per line"
    assert ("blank line" in caplog.text) == warned
    caplog.clear()
    read_candidates(texts_file(tmp_path))  # JSON Lines say themselves where an answer ends
    assert caplog.messages == []


def test_candidates_of_a_text_file_are_its_lines(rerank: Run, tmp_path: Path) -> None:
    """Quotes and braces stand for themselves there."""
    path = write(tmp_path / "texts.txt", '"fox"', "", "{dog", "the king ")
    row = json.loads(rerank("--prompt", PROMPT, "--candidates", path, "--json"))
    assert {r["text"] for r in row["ranking"]} == {'"fox"', "{dog", "the king"}


def test_a_cautious_choice(
    backbone_of: Callable[..., str], tmp_path: Path, run: str, capsys: pytest.CaptureFixture[str], refused: Run
) -> None:
    """With a very large caution everybody's pick comes first, with none the person's."""
    write_jsonl(tmp_path / "log.jsonl", opposed_people(40, 0, people=12))
    made = train(
        TrainConfig(
            output_dir=str(tmp_path / "bayes"),
            data=DataConfig(path=str(tmp_path / "log.jsonl")),
            backbone=BackboneConfig(backbone_of("llama"), dtype="float32"),
            users=UserConfig("bayes", rank=8),
            search=SearchConfig(folds=2, l2=[1.0], layers=[2], poolings=["mean"]),
        )
    )
    scorer = Scorer.from_pretrained(made)
    texts = [text for c in opposed_people(6, 3, people=1) for text in (c.chosen, c.rejected)]
    file = write(tmp_path / "texts.txt", *texts)
    gains = scorer.gains(PROMPT, texts, "p1")

    def ranking(choice: str) -> list[dict[str, Any]]:
        flags = ["--user", "p1", "--candidates", file, "--strategy", choice, "--json"]
        main([str(made), "--prompt", PROMPT, *flags])
        return json.loads(capsys.readouterr().out)["ranking"]

    for caution, first in (("0", int(gains.mean.argmax())), ("1000", gains.pick)):
        found = ranking(f"cautious:{caution}")
        assert found[0]["text"] == texts[first]
        assert found[0]["sure_gain"] == max(r["sure_gain"] for r in found)
    rewards, std = scorer.score(PROMPT, texts, "p1", return_std=True)
    lower = dict(zip(texts, (rewards - 3 * std).tolist(), strict=True))
    found = ranking("pessimistic:3")
    assert {r["text"]: pytest.approx(r["lower_bound"], abs=1e-4) for r in found} == lower
    assert found[0]["text"] == max(lower, key=lambda text: lower[text])
    assert int(gains.mean.argmax()) != gains.pick
    assert "keeps no uncertainty" in refused("--prompt", PROMPT, "--candidates", file, "--strategy", "cautious:1")


def test_a_soft_choice_is_drawn_by_its_seed(rerank: Run, scorer: Scorer, tmp_path: Path) -> None:
    """Given answers count once each; the probability shown is that of coming first."""
    flags = ["--prompt", PROMPT, "--candidates", texts_file(tmp_path), "--user", "p0", "--json"]
    odds = scorer.score(PROMPT, ANSWERS, "p0").double().div(0.5).softmax(-1)
    expected = dict(zip(ANSWERS, odds.tolist(), strict=True))
    firsts = set()
    for seed in range(12):
        ranking = json.loads(rerank(*flags, "--strategy", "soft:0.5", "--sampling.seed", str(seed)))["ranking"]
        assert {r["text"]: pytest.approx(r["probability"], abs=1e-4) for r in ranking} == expected
        firsts.add(ranking[0]["text"])
    assert len(firsts) > 1


def test_a_regularised_choice_minds_what_the_generator_finds_likely(
    rerank: Run, scorer: Scorer, backbone_of: Callable[..., str], tmp_path: Path
) -> None:
    """Given answers too. By hand: log-probabilities of the answer and of the end of its turn."""
    folder = backbone_of("qwen2")
    flags = [
        "--prompt",
        PROMPT,
        "--candidates",
        texts_file(tmp_path),
        "--json",
        "--generator",
        folder,
        "--dtype",
        "float32",
    ]
    ranking = json.loads(rerank(*flags, "--strategy", "regularised:0.5"))["ranking"]
    model, tokenizer = (auto.from_pretrained(folder) for auto in (AutoModelForCausalLM, AutoTokenizer))
    asked = tokenizer(f"<|user|>{PROMPT}<|end|>\n<|assistant|>")["input_ids"]
    for row in ranking:
        said = tokenizer(row["text"] + "<|end|>")["input_ids"]
        logits = model(torch.tensor([[*asked, *said]])).logits.detach()
        logps = logits[0, len(asked) - 1 : -1].log_softmax(-1)
        logp = float(logps[torch.arange(len(said)), said].sum())
        assert row["regularised"] == pytest.approx(row["reward"] + 0.5 * logp, abs=1e-2)
    values = [row["regularised"] for row in ranking]
    assert values == sorted(values, reverse=True)
    assert [row["reward"] for row in ranking] != sorted((row["reward"] for row in ranking), reverse=True)
