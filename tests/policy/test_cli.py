"""The `policy` command, and `prm`'s commands on a policy."""

import json
import shutil
from pathlib import Path

import pytest

import prm.cli
from policy.cli import main
from prm.checkpoint.checkpoint import load


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What it says on stderr, which must be one line."""
    with pytest.raises(SystemExit) as exit_:
        main(list(arguments))
    err = capsys.readouterr().err
    assert exit_.value.code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_what_makes_no_sense_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("objective:\n  beta: high\n")
    assert "objective.beta" in refused(capsys, "dpo", str(path))
    path.write_text("objective:\n  los: ipo\n")
    assert "los" in refused(capsys, "dpo", str(path))
    path.write_text("users: null\n")
    assert "'users'" in refused(capsys, "dpo", str(path))
    assert "data.path" in refused(capsys, "dpo", "--alpha", "0.3")
    assert "'responses'" in refused(capsys, "sft")
    assert "alpha" in refused(capsys, "sft", "--alpha", "0.3")  # it knows nobody
    assert "'reward' is missing" in refused(capsys, "online")
    assert "method" in refused(capsys, "online", "--method", "ppo")
    assert str(tmp_path / "none") in refused(capsys, "merge", str(tmp_path / "none"), str(tmp_path / "out"))


def test_settings_are_those_of_the_yaml_and_the_flags(
    trained: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny: str
) -> None:
    """Flags win; what was resolved stands in run.json."""
    shutil.copy(trained / "test.jsonl", tmp_path / "log.jsonl")
    (tmp_path / "run.yaml").write_text(
        f"alpha: 0.3\noutput_dir: {tmp_path / 'run'}\ndata:\n  path: {tmp_path / 'log.jsonl'}\n"
        f"backbone:\n  name: {tiny}\n  dtype: float32\nobjective:\n  loss_type: ipo\noptim:\n  epochs: 1.0\n"
    )
    main(["dpo", str(tmp_path / "run.yaml"), "--alpha", "1.0", "--users.kind", "cluster", "--users.clusters", "2"])
    assert "done" in capsys.readouterr().out
    config = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert (config["alpha"], config["objective"]["loss_type"], config["users"]["clusters"]) == (1.0, "ipo", 2)
    weights = load(tmp_path / "run").model.user_model.weights  # alpha = 1 trained no stranger: it is everyone's mean
    assert weights[0].tolist() == pytest.approx(weights[1:].mean(0).tolist())


def test_prm_scores_audits_and_forgets(trained: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = str(shutil.copytree(trained, tmp_path / "run"))
    flags = ["--prompt", "what of potions?", "--response", "an old king", "a fox", "--json"]
    prm.cli.main(["score", run, *flags, "--user", "p0"])
    first = json.loads(capsys.readouterr().out)
    assert first["known_user"]
    assert first["rewards"][0] > first["rewards"][1]
    prm.cli.main(["audit", run, "--against", run])
    assert (tmp_path / "run" / "audit" / "index.html").is_file()
    prm.cli.main(["forget", run, "p0"])
    capsys.readouterr()
    prm.cli.main(["score", run, *flags, "--user", "p0"])
    assert not json.loads(capsys.readouterr().out)["known_user"]
