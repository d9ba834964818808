"""Wrong arguments and paths are refused before torch is imported: a typing error costs no seconds."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from prm.io.tables import write_jsonl
from tests.paths import ROOT
from tests.tiny_runs import small_log

# command line: what its error names
REFUSED = {
    "prm score none --prompt a --response b": "none: no such folder",
    "prm score empty --input log.jsonl": "empty: no trained model",
    "prm score none": "--prompt",
    "prm score none --input none.jsonl": "none.jsonl",
    "prm score none --prompt a --response b --device gpu": "--device",
    "prm evaluate none": "none: no such folder",
    "prm evaluate none log.jsonl --after 3": "--after",
    "prm evaluate none log.jsonl --page log.jsonl": "ends in .html",
    "prm audit none": "none: no such folder",
    "prm adapt none log.jsonl": "none: no such folder",
    "prm adapt none log.jsonl --output empty": "empty exists already",
    "prm cold_start none log.jsonl": "none: no such folder",
    "prm forget none anna": "none: no such folder",
    "prm pool none": "none: no such folder",
    "prm export none --output out": "none: no such folder",
    "prm export none": "--output",
    "prm export none --output out --format onnx": "--format",
    "prm train --data.path bad.jsonl": "bad.jsonl, line 1",
    "policy sft --data.path bad.jsonl": "bad.jsonl, line 1",
    "policy sft --responses badresponses.jsonl": "badresponses.jsonl, line 2",
    "policy dpo --data.path bad.jsonl": "bad.jsonl, line 1",
    "prm train --data.path none.jsonl": "none.jsonl",
    "prm train --data.path log.jsonl --output_dir empty": "empty exists already",
    "prm train --data.path log.jsonl --backbone.name ./none": "./none",
    "prm train --data.path log.jsonl --users.kind bayes --train lora": "users.kind",
    "prm train --from none --data.path log.jsonl": "none: no such folder",
    "prm train none.yaml": "none.yaml",
    "prm train run": "--from run",
    "prm data describe run": "--from run",
    "prm compare none.jsonl": "none.jsonl",
    "prm compare log.jsonl --data.holdout_by user": "data.holdout_by",
    "prm compare log.jsonl --models best": "models",
    "prm compare log.jsonl --backbone.name ./none": "./none",
    "prm data describe none.jsonl": "none.jsonl",
    "prm data describe bad.jsonl": "bad.jsonl, line 1",
    "prm data describe log.jsonl --backbone ./none": "./none",
    "prm reproduce table4 --configs none": "none",
    "rerank none --prompt x": "none: no such folder",
    "rerank none --prompt x --candidates none.txt": "none.txt",
    "rerank none --prompt x --strategy beast": "strategy 'beast'",
    "rerank none --input none.jsonl": "none.jsonl",
    "rerank none --prompt x -n 0": "-n",
    "rerank curve none prompts.txt --gold empty": "none: no such folder",
    "rerank none --prompt x --generator http://": "endpoint's url",
    "rerank none --prompt x --generator smollm2-135m --generator_model tiny": "--generator_model goes with",
    "rerank none --prompt x --generator http://x/v1 --generator_options 3": "--generator_options",
    "rerank none --prompt x --generator http://x/v1 --strategy regularised:1": "--strategy",
    "rerank pairs none --prompt x --user a --output new.jsonl": "none: no such folder",
    "rerank pairs none --prompt x --user a --output log.jsonl": "log.jsonl exists already",
    "rerank pairs none --prompt x --output new.jsonl": "needs its user",
    "rerank pairs none --input none.jsonl --output new.jsonl": "none.jsonl",
    "rerank pairs none --prompt x --user a": "--output",
    "policy sample none log.jsonl": "none is not a folder",
    "policy sample empty log.jsonl": "empty",
    "policy sample empty none.jsonl": "none.jsonl",
    "policy sample empty log.jsonl --device tpu": "--device",
    "policy judge none.jsonl log.jsonl --rule longer": "none.jsonl",
    "policy judge answers.jsonl answers.jsonl --gold none --output judged": "none: no such folder",
    "policy judge answers.jsonl answers.jsonl --rule funnier --output judged": "funnier",
    "policy merge none out": "none: no such folder",
    "policy sft --responses none.jsonl": "none.jsonl",
    "policy dpo --data.path none.jsonl": "none.jsonl",
    "policy ppo --data.path log.jsonl": "'reward'",
    "policy ppo --data.path log.jsonl --reward none": "none: no such folder",
    "policy online --data.path log.jsonl --reward none": "none: no such folder",
    "policy compare --data.path log.jsonl": "'judge'",
}
RUN = """
import contextlib, io, json, sys
sys.modules["torch"] = None  # importing it raises ImportError
from importlib import import_module
for command in json.loads(sys.argv[1]):
    name, *arguments = command.split()
    code = None
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            import_module(f"{name}.cli").main(arguments)
        except SystemExit as stop:
            code = stop.code
        except Exception as error:
            code = repr(error)
    print(json.dumps([command, code, said.getvalue()]))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, str]]:
    """(exit code, what it prints on stderr) of every command, all run in one process that cannot import torch."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "empty").mkdir()
    (folder / "run").mkdir()
    (folder / "run/run.json").write_text("{}")
    write_jsonl(folder / "log.jsonl", small_log(12))
    write_jsonl(folder / "answers.jsonl", [{"prompt": "x", "user_id": "anna", "response": "y"}])
    (folder / "bad.jsonl").write_text('{"user_id": "a", "prompt": "b", "chosen": "c"}\n')
    write_jsonl(folder / "badresponses.jsonl", [{"prompt": "x", "response": given} for given in ("y", 3)])
    (folder / "prompts.txt").write_text("why?\n")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(list(REFUSED))],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {command: (code, text) for command, code, text in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("command", REFUSED)
def test_wrong_arguments_are_refused_without_torch(said: dict[str, tuple[Any, str]], command: str) -> None:
    code, text = said[command]
    assert code == 2
    error = text.splitlines()[-1]
    assert error.startswith("error: ")
    assert REFUSED[command] in error
