"""YAML as people write it: what it stands for, and what is refused with its file."""

from pathlib import Path

import pytest

from prm.config import TrainConfig
from prm.errors import PrmError
from prm.io.yaml_settings import read_config, read_yaml
from prm.io.yaml_text import load_settings


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1), ("-3", -3), ("1e-3", 0.001), ("2.5", 2.5), ("1.", 1.0), (".5", 0.5), ("6E2", 600.0),
        ("true", True), ("false", False), ("null", None), ("~", None), ("", None),
        ("007", "007"), ("yes", "yes"), ("off", "off"), ("True", "True"), ("1_000", "1_000"), ("0x10", "0x10"),
        ("2024-01-01", "2024-01-01"), ("12:30", "12:30"), ("'1'", "1"), ("a b", "a b"),
    ],
)  # fmt: skip
def test_what_a_word_of_yaml_stands_for(text: str, value: object) -> None:
    settings = load_settings(f"key: {text}")
    assert settings == {"key": value}
    assert isinstance(settings, dict)
    assert type(settings["key"]) is type(value)


def test_a_mapping_laid_under_another_one() -> None:
    text = "a: &rates {one: 1, two: 2}\nb: &more {<<: *rates, two: 3}\nc: {<<: *more, four: 4}\nd: *more\n"
    assert load_settings(text) == {
        "a": {"one": 1, "two": 2}, "b": {"one": 1, "two": 3}, "c": {"one": 1, "two": 3, "four": 4},
        "d": {"one": 1, "two": 3},
    }  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("alpha: [", id="no YAML"),
        pytest.param("- alpha", id="a list"),
        pytest.param("alpha", id="a word"),
        pytest.param("", id="nothing"),
        pytest.param("1: 2", id="a number as a key"),
        pytest.param("alpha: !!python/object/apply:os.system [x]", id="an object"),
        pytest.param("a: &a [x]\nb: *c", id="an alias of nothing"),
        pytest.param("a: &a {b: *a}", id="inside itself"),
    ],
)
def test_a_yaml_that_makes_no_sense_is_refused_by_its_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(PrmError) as raised:
        read_yaml(TrainConfig, path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"alpha: \xff")
    with pytest.raises(PrmError, match=r"run\.yaml"):
        read_yaml(TrainConfig, path)
    with pytest.raises(PrmError, match=tmp_path.name):
        read_yaml(TrainConfig, tmp_path)


def test_groups_are_laid_over_one_another_and_the_rest_as_a_whole(tmp_path: Path) -> None:
    """A batch that fits no micro-batch of its own file's is judged when all is there."""
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("optim: {batch_size: 12, user_lr: 0.1}\nsearch: {l2: [1, 2]}\ndata: {columns: {prompt: q}}\n")
    second.write_text("optim: {micro_batch_size: 6}\nsearch: {l2: [3]}\ndata: {columns: {response: a}}\n")
    config = read_config(TrainConfig, first, second, settings={"data.columns.user_id": "who", "seed": 3})
    assert (config.optim.batch_size, config.optim.micro_batch_size, config.optim.user_lr) == (12, 6, 0.1)
    assert (config.search.l2, config.seed) == ([3.0], 3)
    assert config.data.columns == {"response": "a", "user_id": "who"}
    with pytest.raises(PrmError, match=r"a\.yaml: config key 'optim\.batch_size'"):
        read_config(TrainConfig, first)
