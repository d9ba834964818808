"""Settings: what would exhaust memory or the stack, and what gives one key two values, is refused."""

import time
from pathlib import Path

import pytest
import yaml

from prm.config import TrainConfig
from prm.errors import PrmError
from prm.io.yaml_settings import read_yaml
from prm.io.yaml_text import LARGEST_TEXT, MOST_LEVELS, MOST_VALUES, load_settings


def laughs(levels: int) -> str:
    """Nine times nine times nine ... values in few lines."""
    lines = [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}' if i else '1'] * 9)}]" for i in range(levels)]
    return "\n".join(lines)


REFUSED = {
    "laughs": (laughs(30), "of more than"),
    "too many values": (f"a: [{'1, ' * MOST_VALUES}]", "of more than"),
    "too large": ("a: " + "x" * LARGEST_TEXT, "characters"),
    "too deep": ("- " * 500, "levels deep"),
    "a key twice": ("a: 1\nb: 2\na: 3", "line 3: the key 'a' is there twice"),
    "a key twice in braces": ("x: {a: 1, b: {c: 1, c: 1}}", "line 1: the key 'c' is there twice"),
    "a key twice in a list": ("- {a: 1}\n- a: 1\n  a: 2", "line 3: the key 'a' is there twice"),
    "a key twice in JSON": ('{"a": 1, "a": 2}', "line 1: the key 'a' is there twice"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_settings_are_is_refused_at_once(case: str) -> None:
    text, said = REFUSED[case]
    started = time.process_time()
    with pytest.raises(PrmError) as caught:
        load_settings(text, "run.yaml")
    assert time.process_time() - started < 5
    assert str(caught.value).startswith("run.yaml: ")
    assert said in str(caught.value)
    assert len(str(caught.value)) < 200


def test_endless_nesting_is_no_yaml() -> None:
    with pytest.raises(PrmError, match=r"no YAML|levels deep"):
        load_settings("[" * 1_000_000)


@pytest.mark.parametrize(
    "text",
    [
        "a: {x: 1}\nb: {x: 1}\nc: [x, x, {x: x}]",
        "base: &base {x: 1, y: 2}\nuse: {<<: *base, y: 3}\nother: {<<: *base}",
        laughs(4),
        "[" * (MOST_LEVELS - 1) + "]" * (MOST_LEVELS - 1),
        "a: a\n1: 1",
    ],
)
def test_other_yaml_is_read_as_ever(text: str) -> None:
    assert load_settings(text) == yaml.safe_load(text)


@pytest.mark.parametrize("text", ["seed: 1\nseed: 2", laughs(30), "data: {path: x, path: y}"])
def test_a_training_run_reads_its_settings_so(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(PrmError, match=r"run\.yaml: .*(there twice|of more than)"):
        read_yaml(TrainConfig, tmp_path / "run.yaml")
