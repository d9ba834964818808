"""Every field of every dataclass of settings: values of the wrong kind and beyond its range are refused by its key."""

import dataclasses
import math
import re
import types
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import numpy as np
import pytest

from policy.compare.config import ArmSpec, CompareConfig, JudgeSpec, RunSpec
from policy.config import DpoConfig, Objective, OnlineConfig, Ppo, PpoConfig, SftConfig
from prm.checks import Filled, Matching, Settings, built, check_tree, checked, keys_of, kinds_of
from prm.cli.arguments import add_run
from prm.cli.parsing import Parser
from prm.config import BackboneConfig, DataConfig, OptimConfig, TrainConfig, UserConfig
from prm.errors import PrmError
from prm.io.yaml_settings import read_config
from rerank.sampling.config import Sampling

CONFIGS = [TrainConfig, SftConfig, DpoConfig, PpoConfig, OnlineConfig, CompareConfig]
NEEDED: dict[type[Any], dict[str, Any]] = {RunSpec: {"command": "train"}}  # to build one at all
WRONG: dict[Any, list[Any]] = {
    int: ["3", 1.5, True, None, math.nan, [1]],
    float: ["0.5", True, None, math.nan, math.inf, -math.inf, [0.5], 10**400],
    str: [3, 1.5, True, None, ["a"]],
    bool: ["true", 0, 1, None],
}
OF_TWO_KINDS = {
    "backbone.layers": [0, -1, "3", 1.5, True, math.nan],
    "data.split_seed": [-1, 2**31, "3", 1.5, True, math.nan, [1]],
    "data.test_from": [math.nan, math.inf, True, ["a"]],
    "max_length_difference": [-1, "a", 1.5, True, ["a"], math.nan],
    "models": ["some", "", 3, True, None, [], [3], ["no such model"]],
}


def wrong_values(key: str, kind: Any) -> list[Any]:
    """Values that a field of this type must refuse, worked out from the type alone."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return wrong_values(key, inner[0]) + [value for rule in inner[1:] for value in beyond(rule, inner[0])]
    if origin is Literal:
        return [*(f"{choice}x" for choice in inner), inner[0].upper(), "", None, 0, [inner[0]]]
    if origin in (Union, types.UnionType):
        return OF_TWO_KINDS[key]
    if origin is list:
        return ["a", 3, None, {"a": 1}, *([value] for value in wrong_values(key, inner[0]))]
    if origin is dict:
        return ["a", 3, None, ["a"]]
    return ["a", 3, None, ["a"], {"no_such_setting": 1}] if dataclasses.is_dataclass(kind) else WRONG[kind]


def beyond(rule: Any, kind: Any) -> list[Any]:
    """Just outside what is allowed."""
    if isinstance(rule, Filled):
        return ["", "  "] if kind is str else [[]]
    if isinstance(rule, Matching):
        return ["", "no such thing"]
    if kind is int:
        return [int(rule.low) - 1, *([int(rule.high) + 1] if math.isfinite(rule.high) else [])]
    low = rule.low if rule.above else math.nextafter(rule.low, -math.inf)
    high = rule.high if rule.below else math.nextafter(rule.high, math.inf)
    return [low, *([high] if math.isfinite(rule.high) else [])]


def all_settings(kind: type[Any] = Settings) -> Iterator[type[Any]]:
    for below in kind.__subclasses__():
        if "__dataclass_fields__" in vars(below) and below.__module__.startswith(("prm.", "policy.", "rerank.")):
            yield below
        yield from all_settings(below)


KINDS: list[Any] = sorted({*all_settings()}, key=lambda kind: kind.__name__)
FIELDS = [
    pytest.param(kind, name, inner, id=f"{kind.__name__}.{name}")
    for kind in KINDS
    for name, inner in kinds_of(kind).items()
]


def test_every_dataclass_of_settings_is_looked_at() -> None:
    assert {*CONFIGS, BackboneConfig, OptimConfig, Objective, Ppo, ArmSpec, JudgeSpec, RunSpec, Sampling} <= {*KINDS}


@pytest.mark.parametrize(("kind", "name", "inner"), FIELDS)
def test_a_wrong_value_is_refused_by_its_full_key_where_it_is_built(kind: type[Any], name: str, inner: Any) -> None:
    """From Python; and from a mapping, as a YAML gives one."""
    key = f"{kind._key}.{name}".lstrip(".")
    wrong = wrong_values(key, inner)
    assert wrong
    for value in wrong:
        given = NEEDED.get(kind, {}) | {name: value}
        named = "no_such_setting" if isinstance(value, dict) and dataclasses.is_dataclass(inner) else f"'{key}'"
        for build in (lambda given: kind(**given), lambda given: built(kind, given, kind._key)):
            with pytest.raises(PrmError) as raised:
                build(given)
            assert named in str(raised.value), value
        with pytest.raises(PrmError, match=re.escape(named)):
            check_tree(kind, given, kind._key)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_wrong_value_of_a_flag_is_refused_by_its_key(kind: type[Any]) -> None:
    parser = Parser()
    add_run(parser, kind)
    flags = [flag[2:] for flag in parser._option_string_actions if flag.startswith("--")]
    assert {*keys_of(kind)} - {*kind.left_out} == {*flags} - {"help", "help_all", "config"}
    for key, inner in keys_of(kind).items():
        # as text, nothing but a number, a choice or a switch can be of the wrong kind
        wrong = [value for value in wrong_values(key, inner) if isinstance(value, int | float) and value is not True]
        null = [] if type(None) in get_args(inner) else ["null"]
        texts = [] if takes_text(inner) else ["x", *null, *map(repr, wrong)]
        for text in texts if key not in kind.left_out else []:
            with pytest.raises(PrmError, match=re.escape(f"'{key}'")):
                parser.parse_args([f"--{key}={text}"])


def takes_text(kind: Any) -> bool:
    return kind is str or str in get_args(kind) or any(map(takes_text, get_args(kind))) or get_origin(kind) is list


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in NEEDED])
def test_defaults_are_right_and_come_back_from_a_mapping(kind: type[Any]) -> None:
    assert built(kind, kind().to_dict(), kind._key) == kind()


def test_what_stands_for_a_right_value_is_taken_as_one() -> None:
    config = TrainConfig(output_dir=Path("a/b"), alpha=1, data={"path": "x", "metadata": ("a",)})  # type: ignore[arg-type]
    assert (config.output_dir, config.alpha, type(config.alpha), config.data) == (
        "a/b", 1.0, float, DataConfig(path="x", metadata=["a"]),
    )  # fmt: skip
    optim = OptimConfig(batch_size=np.int64(8), user_lr=np.float32(0.5))  # type: ignore[arg-type]
    assert (type(optim.batch_size), type(optim.user_lr)) == (int, float)


def test_the_message_says_key_value_and_what_is_allowed() -> None:
    with pytest.raises(PrmError) as raised:
        UserConfig(kind="individul")  # type: ignore[arg-type]
    for part in ("users.kind", "'individul'", "'uniform'", "'individual'", "'cluster'", "'bayes'"):
        assert part in str(raised.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"user_lr": -1.0}, {"user_lr": 1e30}, {"lora_lr": math.nan}, {"head_lr": 0.0}, {"epochs": 0}, {"epochs": 1e30},
        {"max_grad_norm": 0.0}, {"max_grad_norm": 1e30}, {"batch_size": 0}, {"warmup_steps": -1}, {"eval_steps": 0},
        {"early_stopping_patience": 0}, {"batch_size": 12, "micro_batch_size": 8},
    ],
    ids=str,
)  # fmt: skip
def test_a_step_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    name = next(iter(changes))
    with pytest.raises(PrmError, match=f"'optim.{name}'"):
        OptimConfig(**changes)
    with pytest.raises(PrmError, match=f"'optim.{name}'"):
        read_config(DpoConfig, settings={f"optim.{key}": value for key, value in changes.items()})


def test_a_field_that_was_set_later_is_checked_before_training() -> None:
    config = TrainConfig(data=DataConfig(path="x"))
    config.check()
    config.optim.user_lr = -1.0
    with pytest.raises(PrmError, match=r"'optim\.user_lr'"):
        config.check()


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_a_run_has_no_use_for_must_be_left_out(kind: type[Any]) -> None:
    """Or it would change nothing without a word."""
    for key, inner in keys_of(kind).items():
        if key in kind.left_out:
            other = next(v for v in ("bayes", 1, 3, 0.25, True) if fits(inner, v))
            config = built(kind, {"data": {"path": "x"}})
            *groups, name = key.split(".")
            setattr(reduce(getattr, groups, config), name, other)
            with pytest.raises(PrmError, match=f"'{key}'"):
                config.check_settings()


def fits(kind: Any, value: Any) -> bool:
    try:
        checked("x", kind, value)
    except PrmError:
        return False
    return True


def test_an_entry_is_named_with_its_own_name() -> None:
    tree = {"arms": {"P-DPO, stranger": {"run": "x", "best_of": [0]}}}
    with pytest.raises(PrmError, match=r"'arms\.P-DPO, stranger\.best_of'"):
        built(CompareConfig, tree)
    with pytest.raises(PrmError, match=r"'arms\.P-DPO\.rewrd' is not known"):
        built(CompareConfig, {"arms": {"P-DPO": {"rewrd": "x"}}})
