"""The `prm` command as a user types it."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

import policy.cli
import rerank.cli
from prm.cli import main
from prm.cli.arguments import build_parser
from prm.cli.parsing import Parser
from prm.config import DataConfig, FeedbackConfig
from prm.errors import PrmError
from prm.io.tables import write_jsonl
from prm.io.yaml_settings import feedback_like_a_runs, read_train_config
from prm.scoring.scorer import Scorer
from tests.conftest import read_log
from tests.planted import opposed_people

FLAGS = ["--backbone.dtype", "float32", "--search.folds", "2", "--search.l2", "[1.0]", "--search.user_l2", "[1.0]"]


@pytest.fixture
def run(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_jsonl("log.jsonl", opposed_people(20, 0))
    Path("run.yaml").write_text(f"output_dir: runs/x\ndata:\n  path: log.jsonl\nbackbone:\n  name: {tiny}\n")
    main(["train", "run.yaml", "--data.test_fraction", "0.2", *FLAGS])
    return Path("runs/x")


def error_of(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line that a mistake prints. Exit code 2, no traceback."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(list(argv))
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err.strip()


def test_flags_win_over_the_yaml(run: Path) -> None:
    config = json.loads((run / "run.json").read_text())["config"]
    assert config["data"]["test_fraction"] == 0.2
    assert config["data"]["path"] == "log.jsonl"
    assert config["search"]["user_l2"] == [1.0]


def test_test_part_shares_no_prompt_with_the_log_it_left(run: Path) -> None:
    test, log = read_log(run / "test.jsonl"), read_log("log.jsonl")
    held_out = {c.prompt for c in test}
    assert len(held_out) == 4
    assert len(test) == sum(c.prompt in held_out for c in log)


def test_evaluate_prints_and_keeps_the_numbers(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["evaluate", str(run)])
    shown = capsys.readouterr().out
    assert "uniform, tuned" in shown
    assert "users shuffled" in shown
    main(["evaluate", str(run), str(run / "test.jsonl"), "--json"])
    printed = json.loads(capsys.readouterr().out)
    kept = json.loads((run / "evaluation-test.json").read_text())
    assert kept["rows"] == printed["rows"]
    assert printed["comparisons"] == 16


def test_settings_of_a_source_are_flags_everywhere(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"post {i}", "response_model": "a b", "response_reference": "c"} for i in range(3)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags = ["--data.source", "tldr_length", "--data.tldr.num_users", "2", "--data.tldr.num_unseen_users", "1"]
    capsys.readouterr()
    main(["data", "describe", str(tmp_path), *flags, "--backbone", "none", "--json"])
    assert json.loads(capsys.readouterr().out)["people"]["people"] == 3
    main(["evaluate", str(run), str(tmp_path), *flags, "--json"])
    assert json.loads(capsys.readouterr().out)["comparisons"] == 9
    log = str(run / "test.jsonl")
    assert "'data.tldr' is for" in error_of(capsys, "evaluate", str(run), log, "--data.tldr.num_users", "3")
    assert "data.tldr" in error_of(capsys, "data", "describe", log, "--data.tldr", "3", "--backbone", "none")
    assert "data.tldr.num_unseen_users" in error_of(
        capsys, "data", "describe", log, "--data.source", "tldr_workers", "--data.tldr.num_unseen_users", "1"
    )


def test_score_by_flags_and_by_file_agree_with_the_scorer(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = Scorer.from_pretrained(run).score("what?", ["a king", "a fox"], "p1").tolist()
    capsys.readouterr()
    main(["score", str(run), "--user", "p1", "--prompt", "what?", "--response", "a king", "a fox", "--json"])
    assert json.loads(capsys.readouterr().out)["rewards"] == pytest.approx(expected, abs=1e-5)
    rows = [
        {"user_id": "p1", "prompt": "what?", "responses": ["a king", "a fox"], "id": 7},
        {"prompt": "what?", "response": "a king"},
        {"user_id": "nobody", "prompt": [{"role": "user", "content": "what?"}], "response": "a king"},
    ]
    Path("ask.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    main(["score", str(run), "--input", "ask.jsonl", "--output", "scored.jsonl"])
    scored = [json.loads(line) for line in Path("scored.jsonl").read_text().splitlines()]
    assert scored[0]["rewards"] == pytest.approx(expected, abs=1e-4)
    assert scored[0]["id"] == 7
    assert [row["known_user"] for row in scored] == [True, False, False]
    assert scored[1]["reward"] == pytest.approx(scored[2]["reward"], abs=1e-5)


def test_an_id_that_is_a_whole_number_is_its_digits(
    run: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """As the readers of logs take it; a float is refused by its line, as 101.0 may stand for '101' or '101.0'."""
    rows = [c.to_row() | {"user_id": 101} for c in opposed_people(20, 1, people=1)]
    Path("more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    main(["adapt", str(run), "more.jsonl"])
    expected = Scorer.from_pretrained(run).score("what?", ["a king", "a fox"], "101").tolist()
    asked = {"prompt": "what?", "responses": ["a king", "a fox"]}

    def answered(command: Callable[[list[str]], None], *arguments: str, users: Sequence[object]) -> list[list[float]]:
        """What each line says: whether the user is known, and the rewards, highest first."""
        Path("ask.jsonl").write_text("".join(json.dumps(asked | {"user_id": user}) + "\n" for user in users))
        capsys.readouterr()
        command([*arguments, str(run), "--input", "ask.jsonl"])
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        found = [row.get("rewards") or [r["reward"] for r in row["ranking"]] for row in rows]
        return [[row["known_user"], *sorted(one, reverse=True)] for row, one in zip(rows, found, strict=True)]

    for command, name in ((main, ["score"]), (rerank.cli.main, [])):
        known, unknown = answered(command, *name, users=(101, 1010))
        assert known == pytest.approx([True, *sorted(expected, reverse=True)], abs=1e-4)
        assert unknown[0] is False
    assert caplog.text.count("not in the model: '1010' (did you mean '101'?)") == 2
    for command, name in ((main, ["score"]), (rerank.cli.main, [])):
        with pytest.raises(SystemExit):
            answered(command, *name, users=("101", 101.0))
        assert capsys.readouterr().err.startswith("error: ask.jsonl, line 2: 'user_id' is the number 101.0")


def test_score_warns_of_a_mistyped_id(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    main(["score", str(run), "--user", "P1", "--prompt", "what?", "--response", "a king"])
    assert "not in the model: 'P1' (did you mean 'p1'?)" in caplog.text


def test_forget(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["forget", str(run), "p1"])
    assert Scorer.from_pretrained(run).users == ["p0", "p2", "p3"]
    assert "'p1'" in error_of(capsys, "forget", str(run), "p1")


def test_mistakes_are_one_clear_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "output_dir" in error_of(capsys, "train", "run.yaml", *FLAGS)  # exists already
    Path("bad.yaml").write_text("output_dirr: x\n")
    assert "output_dirr" in error_of(capsys, "train", "bad.yaml")
    assert "users.kind" in error_of(capsys, "train", "run.yaml", "--users.kind", "everyone")
    assert "'alpha'" in error_of(capsys, "train", "run.yaml", "--alpha", "2")
    assert "data.path" in error_of(capsys, "train", "--output_dir", "runs/y")
    assert "none.jsonl" in error_of(capsys, "train", "--data.path", "none.jsonl", "--output_dir", "runs/y")
    Path("log.jsonl").write_text('{"user_id": "a", "prompt": "b", "chosen": "c"}\n')
    message = error_of(capsys, "train", "run.yaml", "--output_dir", "runs/y", *FLAGS)
    assert message.startswith("error: log.jsonl, line 1: field 'rejected' is missing; the row has 'user_id', ")
    assert "no-such-run" in error_of(capsys, "evaluate", "no-such-run", str(run / "test.jsonl"))
    assert "--prompt" in error_of(capsys, "score", str(run))
    assert "--response" in error_of(capsys, "score", str(run), "--prompt", "x")
    Path("ask.jsonl").write_text('{"prompt": "x", "response": "y"}\n{"prompt": "x", "response": ""}\n')
    assert "ask.jsonl, line 2" in error_of(capsys, "score", str(run), "--input", "ask.jsonl")
    again = ["train", "run.yaml", "--data.path", str(run / "test.jsonl"), "--output_dir", "runs/z", *FLAGS]
    assert "no/such-model" in error_of(capsys, *again, "--backbone.name", "no/such-model")


def settings_of(command: str) -> dict[str, object]:
    """The settings that a command's arguments give."""
    name, *arguments = command.split()
    parser = build_parser() if name == "prm" else policy.cli.build_parser()
    settings: dict[str, object] = parser.parse_args(arguments).settings
    return settings


@pytest.mark.parametrize("command", ["prm train", "prm compare", "policy dpo", "policy compare"])
@pytest.mark.parametrize("log", ["log.jsonl", "log.csv.gz", "LOG.XLSX", "a/folder", "owner/data-v0.1", "ukp_sample"])
def test_a_log_may_be_named_without_a_flag(command: str, log: str) -> None:
    named = {"data": {"path": log}, "seed": 3}
    for arguments in (f"{log} --seed 3", f"--seed 3 {log}", f"--data.path {log} {log} --seed 3"):
        assert settings_of(f"{command} {arguments}") == named
    for arguments in (f"{log} --data.path other.csv", f"--data.path other.csv {log}"):
        with pytest.raises(PrmError, match=r"--data\.path 'other\.csv'"):
            settings_of(f"{command} {arguments}")


def test_flags_and_a_named_log_win_over_a_yaml_wherever_they_stand(tmp_path: Path) -> None:
    """Column by column."""
    (path := tmp_path / "a.yml").write_text("seed: 1\ndata:\n  path: a.csv\n  columns: {prompt: ask, user_id: who}\n")
    expected = {"seed": 2, "data": {"path": "a.csv", "columns": {"prompt": "ask", "user_id": "me"}}}
    for arguments in (f"{path} --seed 2 --data.columns.user_id me", f"--seed 2 --data.columns.user_id me {path}"):
        assert settings_of(f"prm train {arguments}") == expected
    assert settings_of(f"prm train --seed 2 --config {path}")["seed"] == 2
    assert settings_of(f"prm train b.csv --config {path}")["data"] == expected["data"] | {  # type: ignore[operator]
        "path": "b.csv",
        "columns": {"prompt": "ask", "user_id": "who"},
    }


def test_a_log_behind_a_flag_is_taken_by_every_command_that_takes_one() -> None:
    """argparse itself leaves it over."""
    assert vars(build_parser().parse_args(["evaluate", "runs/x", "--json", "log.csv"]))["log"] == "log.csv"


def test_two_runs_of_one_config_are_equal_to_the_bit(run: Path, tiny: str) -> None:
    main(["train", "run.yaml", "--data.test_fraction", "0.2", "--output_dir", "runs/again", *FLAGS])
    first, second = (Path(folder) / "model.safetensors" for folder in (run, "runs/again"))
    assert first.read_bytes() == second.read_bytes()
    assert torch.get_default_dtype() == torch.float32


def test_a_misspelt_key_is_one_line_without_a_page_of_usage(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags in (["--data.pth", "x"], ["--users.kind", "everyone"], ["--config", "none.yaml"]):
        message = error_of(capsys, "train", *flags)
        assert message.startswith("error: ")
        assert "\n" not in message
        assert "usage" not in message


@pytest.mark.parametrize(
    ("flags", "meant"),
    [
        (["train", "--data.pth", "x"], "'--data.path'"),
        (["train", "--user.kind=cluster"], "'--users.kind'"),
        (["train", "--steps", "3"], "'--optim.warmup_steps' or '--optim.eval_steps'"),  # not --users, which is as close
        (["train", "--output-dir", "x"], "'--output_dir'"),
        (
            ["data", "describe", "x", "--data.sorce", "ratings", "--max_lenth", "9"],
            "'--data.source'?; did you mean '--max_length'",
        ),
        (["score", "runs/x", "--promt", "x"], "'--prompt'"),
        (["score", "runs/x", "--prompt", "x", "--respons", "y"], "'--response'"),
        (["evaluate", "runs/x", "--zzzzzz", "y"], ""),
        (["train", "--search.nope", "3"], ""),  # the group that all its settings share makes none of them close
    ],
)
def test_a_mistyped_flag_gets_a_suggestion(capsys: pytest.CaptureFixture[str], flags: list[str], meant: str) -> None:
    """Among those of its own command: `train` has no --prompt, `score` no --data.path."""
    message = error_of(capsys, *flags)
    assert message.startswith("error: unrecognized arguments: --")
    assert f"; did you mean {meant}" in message if meant else "did you mean" not in message
    assert "\n" not in message
    assert "did you mean" not in error_of(capsys, "pool", "runs/x", "--prompt", "x")


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["trian", "log.jsonl"], "train"),
        (["data", "descibe", "log.jsonl"], "describe"),
        (["cache", "list", "backbone"], "backbones"),
        (["evaluate", "runs/x", "--interval_over", "peple"], "people"),
        (["train", "--users.kind", "Baeys"], "bayes"),
        (["train", "--data.source", "rating"], "ratings"),
        (["train", "--search.poolings", "[last, maen]"], "mean"),
        (["compare", "log.jsonl", "--models", "[bayes, unifrom]"], "uniform"),
        (["train", "--users.kind", "nobody"], ""),
    ],
)
def test_a_mistyped_command_or_value_gets_a_suggestion(
    capsys: pytest.CaptureFixture[str], arguments: list[str], meant: str
) -> None:
    message = error_of(capsys, *arguments)
    assert f"; did you mean '{meant}'?" in message if meant else "did you mean" not in message


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("optim.epochs", "many"),
        ("optim.epochs", ""),
        ("optim.epochs", "nan"),
        ("backbone.layers", "ten"),
        ("overwrite", "maybe"),
        ("train", "loro"),
        ("search.l2", "3"),
        ("search.l2", "[1, x]"),
        ("data.columns", "x"),
        ("data.columns", "{a: {b: c}}"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_its_key(
    capsys: pytest.CaptureFixture[str], flag: str, value: str
) -> None:
    message = error_of(capsys, "train", f"--{flag}={value}")
    assert f"'{flag}'" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("output_dirr: x", "output_dir"),
        ("search:\n  fold: 2", "search.folds"),
        ("usres:\n  kind: x", "users"),
        ("kind: bayes", "users.kind"),
    ],
)
def test_a_mistyped_key_gets_a_suggestion(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, meant: str
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert f"; did you mean '{meant}'?" in error_of(capsys, "train", str(path))
    with pytest.raises(PrmError, match=f"'{meant}'"):
        read_train_config(path)


def test_a_command_that_failed_does_not_stand_in_its_mended_ones_way(
    run: Path, capsys: pytest.CaptureFixture[str], tiny: str
) -> None:
    """20 prompts make no 99 folds; the same folder then takes the run that they do make."""
    arguments = ["train", "log.jsonl", "--output_dir", "runs/y", "--backbone.name", tiny, *FLAGS]
    assert "search.folds" in error_of(capsys, *arguments, "--search.folds", "99")
    main(arguments)
    assert Path("runs/y/config.json").is_file()


def test_training_says_whether_the_log_is_enough_and_what_works_next(
    run: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, tiny: str
) -> None:
    """Nothing is held out of 20 comparisons by each of four people."""
    capsys.readouterr()
    with caplog.at_level("INFO"):
        main(["train", "log.jsonl", "--output_dir", "runs/y", "--backbone.name", tiny, *FLAGS])
    assert "0 of 4 users (0.0%) have 30 or more comparisons" in caplog.text
    (suggested,) = re.findall(r"next: (.*)", capsys.readouterr().out)
    words = suggested.replace("USER", "p1").replace("PROMPT", "why?").split()
    assert words[:3] == ["prm", "score", "runs/y"]
    main(words[1:])
    assert "--data.test_fraction" in error_of(capsys, "evaluate", "runs/y")
    assert "prm evaluate RUN LOG" in Path("runs/y/README.md").read_text()


def test_a_misspelt_field_of_the_log_is_not_passed_over(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("typo.jsonl").write_text('{"user_id": "a", "prompt": "b", "chosen": "c", "rejected": "d", "p_choosen": 0.5}\n')
    message = error_of(capsys, "train", "--data.path", "typo.jsonl", "--output_dir", "runs/y")
    assert message.startswith("error: typo.jsonl, line 1: field 'p_choosen'")
    assert "'p_chosen'" in message


def test_how_much_is_trained_on_and_held_out_is_reported(
    run: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """20 prompts, a fifth of them held out, four people on each."""
    with caplog.at_level("INFO"):
        main(["train", "run.yaml", "--data.test_fraction", "0.2", "--output_dir", "runs/again", *FLAGS])
    assert "64 comparisons of 16 prompts by 4 users" in caplog.text
    assert "16 comparisons of 4 prompts by 4 users" in caplog.text
    capsys.readouterr()
    main(["evaluate", str(run)])
    shown = " ".join(capsys.readouterr().out.split())
    assert "evaluated on 16 comparisons of 4 prompts by 4 users, 0 of them unknown" in shown
    assert "trained on 64 comparisons of 16 prompts by 4 users" in shown


def test_further_logs_are_read_as_the_runs_own_was_unless_flags_say_otherwise(
    run: Path, tiny: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    rows = ["who,prompt,response,stars,place"]
    for c in opposed_people(6, 4):
        rows += [f"{c.user_id},{c.prompt},{c.chosen},5,here", f"{c.user_id},{c.prompt},{c.rejected},2,here"]
    Path("stars.csv").write_text("\n".join(rows) + "\n")
    flags = [
        "--data.source",
        "ratings",
        "--data.min_rating_difference",
        "1",
        "--data.columns",
        "{user_id: who, rating: stars}",
    ]
    split = ["--data.test_fraction", "0.3", "--output_dir", "runs/stars", "--backbone.name", tiny]
    main(["train", "--data.path", "stars.csv", *flags, "--data.metadata", "[place]", *split, *FLAGS])
    capsys.readouterr()

    def evaluated(*arguments: str) -> tuple[int, str]:
        """(comparisons, what is said of how they are read)"""
        caplog.clear()
        with caplog.at_level("INFO", logger="prm.cli.commands"):
            main(["evaluate", "runs/stars", *arguments, "--json"])
        return json.loads(capsys.readouterr().out)["comparisons"], " ".join(caplog.messages)

    n, said = evaluated("stars.csv")
    assert n == 24
    assert said.startswith(
        "stars.csv is read with these data settings of the run: data.source 'ratings', "
        "data.columns {'user_id': 'who', 'rating': 'stars'}, data.metadata ['place'], "
        "data.min_rating_difference 1.0 48 rows: 48 used"
    )
    Path("new.csv").write_text(Path("stars.csv").read_text().replace("stars", "points"))
    n, said = evaluated("new.csv", "--data.columns.rating", "points", "--data.min_rating_difference", "0")
    assert (n, "data.columns {'user_id': 'who'}" in said, "min_rating_difference" in said) == (24, True, False)
    assert "3.5" in error_of(capsys, "evaluate", "runs/stars", "stars.csv", "--data.min_rating_difference", "3.5")
    # pairs, as every test.jsonl is, and as another source: nothing is taken over
    for arguments in (["runs/stars/test.jsonl"], ["log.jsonl", "--data.source", "pairs"], [str(run / "test.jsonl")]):
        n, said = evaluated(*arguments)
        assert (n > 0, "data settings of the run" in said) == (True, False)
    # what the run's own log carried along is not asked of a further one, unless a flag does
    bare = "\n".join(line.rpartition(",")[0] for line in rows)
    Path("bare.csv").write_text(bare + "\nann,alone,once,3\n")
    n, said = evaluated("bare.csv")
    assert n == 24
    assert "49 rows: 48 used, 1 " in said
    assert ": place" in said
    message = error_of(capsys, "evaluate", "runs/stars", "bare.csv", "--data.metadata", "[place]")
    assert "'place'" in message
    Path("new.csv").write_text(bare.replace("p0,", "Zoe,").replace("p1,", "P1,") + "\nann,,once,3\n")
    caplog.clear()
    with caplog.at_level("INFO", logger="prm"):
        main(["adapt", "runs/stars", "new.csv", "--output", "runs/more", "--data.on_bad_row", "skip"])
    said = " ".join(caplog.messages)
    assert "49 rows: 48 used, 1 bad" in said
    assert "new.csv, line 50: field 'prompt'" in said
    assert "'P1' ('p1')" in said
    caplog.clear()
    with caplog.at_level("INFO", logger="prm.cli.commands"):
        main(["audit", "runs/stars", "stars.csv"])
    assert "is read with these data settings of the run" in caplog.text


def test_a_file_is_not_read_as_the_public_folder_of_the_run(tmp_path: Path) -> None:
    """Judgements of one's own, for a run that learnt from a public data set; another folder of it is read like it."""
    earlier = DataConfig(source="ukpconvarg1", ties="drop").to_dict()
    own = tmp_path / "own.jsonl"
    own.write_text("{}\n")
    parser = Parser()
    parser.add_settings(FeedbackConfig, "data", skip={"data.path"})

    def read(path: Path, *flags: str) -> tuple[str, str]:
        config, _ = feedback_like_a_runs(parser.parse_args(list(flags)).settings.get("data", {}), str(path), earlier)
        return config.source, config.ties

    assert read(own) == ("auto", "keep")
    assert read(tmp_path) == ("ukpconvarg1", "drop")
    assert read(own, "--data.source", "ukpconvarg1") == ("ukpconvarg1", "drop")
