"""Completion scripts do in a shell what the parser accepts."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import policy.cli
import prm.cli.arguments
import rerank.cli
from prm.cli.completion import SHELLS
from prm.cli.parsing import Parser
from tests.prm.cli.test_flags import commands

MAINS = {"prm": prm.cli.main, "rerank": rerank.cli.main, "policy": policy.cli.main}
COMPLETED = """
source ./script
COMP_WORDS=({words})
COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
_shtab_{name} {name} "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD-1]}}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def script_of(name: str, shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        MAINS[name](["--print_completion", shell])
    assert not stop.value.code
    return capsys.readouterr().out


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("prm ev", {"evaluate"}),
        ("prm train --users.ki", {"--users.kind"}),
        ("prm train --users.kind ''", {"uniform", "individual", "cluster", "low_rank", "stack", "bayes"}),
        ("prm train --overwrite ''", {"true", "false"}),
        ("prm evaluate --interval_over ''", {"people", "prompts"}),
        ("prm evaluate lo", {"log.csv"}),
        ("prm cache clear hid", {"hidden_states"}),
        ("prm data de", {"describe"}),
        ("rerank --cand", {"--candidates"}),
        ("rerank run --candidates lo", {"log.csv"}),
        ("rerank cu", {"curve"}),
        ("rerank pai", {"pairs"}),
        ("rerank lo", {"log.csv"}),
        ("rerank curve run lo", {"log.csv"}),
        ("rerank curve --go", {"--gold"}),
        ("policy dpo --objective.loss_type ipo_", {"ipo_sequence"}),
        ("policy ppo --rew", {"--reward"}),
    ],
)
def test_bash_completes(words: str, expected: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log.csv").touch()
    name = words.split()[0]
    (tmp_path / "script").write_text(script_of(name, "bash", capsys))
    code = COMPLETED.format(words=words, name=name)
    done = subprocess.run(["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == expected


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("name", "make"), [("prm", prm.cli.arguments.build_parser), ("policy", policy.cli.build_parser)]
)
def test_a_script_has_every_flag(
    name: str,
    make: Callable[[], Parser],
    shell: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = script_of(name, shell, capsys)
    for words, leaf in commands(make()):
        assert words[-1] in script
        for action in leaf._actions:
            for flag in action.option_strings:
                shown = (f"-l {flag[2:]} ", f"-l '{flag[2:]}' ") if shell == "fish" else (flag,)
                assert flag == "-h" or any(text in script for text in shown), (words, flag)
    if shutil.which(shell):
        (tmp_path / "script").write_text(script)
        subprocess.run([shell, "-n", tmp_path / "script"], check=True)
