"""A text flag takes the text, in every command: it is no null, no switch, no number, no list and no file."""

import argparse
import re
from collections.abc import Iterator
from functools import partial, reduce
from typing import Any

import pytest

import policy.cli
import prm.cli.arguments
import rerank.cli
from prm.checks import Text, keys_of
from prm.cli.parsing import _FURTHER, Parser
from prm.config import TrainConfig
from rerank.curves.commands import build_curve_parser
from rerank.pairs.commands import build_pairs_parser

TEXTS = [
    "null",
    "~",
    "",
    "true",
    "no",
    "1e3",
    "007",
    "nan",
    "@file",
    "[a]",
    "{a: b}",
    "- a",
    "2024-01-01",
    "'q'",
    " x\n",
]


def commands(parser: Parser, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Parser]]:
    """(words, parser) of every command below a parser."""
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not inner:
        yield path, parser
    for action in inner:
        for name, below in action.choices.items():
            yield from commands(below, (*path, name))


def of_text(action: Any) -> bool:
    """Whether anything may be written behind a flag."""
    if hasattr(action, "key"):
        return action.kind in (str, Text)
    other = action.nargs == 0 or "--config" in action.option_strings
    return not other and action.choices is None and not isinstance(action.type, partial)  # `typed` makes a partial


PARSERS = {"prm": prm.cli.arguments.build_parser, "policy": policy.cli.build_parser, "rerank": rerank.cli.build_parser}
PARSERS |= {"rerank curve": build_curve_parser, "rerank pairs": build_pairs_parser}
COMMANDS = [
    pytest.param(make, words, id=" ".join((name, *words)))
    for name, make in PARSERS.items()
    for words, leaf in commands(make())
    if any(map(of_text, leaf._actions))
]


@pytest.mark.parametrize(("make", "words"), COMMANDS)
def test_a_text_flag_takes_the_text(make: Any, words: tuple[str, ...]) -> None:
    parser = make()
    leaf = next(below for path, below in commands(parser) if path == words)
    needed = [action for action in leaf._actions if action.required and not action.option_strings]
    flags = [flag for action in leaf._actions if action.required for flag in action.option_strings[:1]]
    usual = [next(iter(action.choices)) if action.choices else "x" for action in needed]
    tried = 0
    for action in filter(of_text, leaf._actions):
        for text in TEXTS if getattr(action, "kind", str) is str else filter(None, TEXTS):
            given = dict.fromkeys(flags, "x")
            places = list(usual)
            if action.option_strings:
                given[action.option_strings[-1]] = text
            elif action in needed:
                places[needed.index(action)] = text
            else:
                places.append(text)
            behind = ["--", *places] if places else []
            args = parser.parse_args([*words, *(f"{flag}={value}" for flag, value in given.items()), *behind])
            assert value_of(args, action) in (text, [text]), (action.dest, text)
            tried += 1
    assert tried


def value_of(args: Any, action: Any) -> Any:
    if not hasattr(action, "key"):
        return getattr(args, action.dest)
    return reduce(lambda tree, name: tree[name], action.key.split("."), args.settings)


@pytest.mark.parametrize("text", TEXTS)
def test_a_column_has_the_name_that_was_given(text: str) -> None:
    """`[a]` is a list of columns here."""
    args = prm.cli.arguments.build_parser().parse_args(
        ["train", "--data.columns={prompt: 1e3}", "--data.columns.user_id", text]
    )
    assert args.settings["data"]["columns"] == {"prompt": "1e3", "user_id": ["a"] if text == "[a]" else text}


def test_names_in_lists_are_texts() -> None:
    args = prm.cli.arguments.build_parser().parse_args(["train", "--data.metadata=[null, 007, true, 2024-01-01]"])
    assert args.settings["data"]["metadata"] == ["null", "007", "true", "2024-01-01"]


def test_separate_words_are_values_too() -> None:
    parser = prm.cli.arguments.build_parser()
    args = parser.parse_args(["score", "run", "--user", "null", "--prompt", "@file", "--response", "[a]", "1e3", "- x"])
    assert (args.user, args.prompt, args.response) == ("null", "@file", ["[a]", "1e3", "- x"])


@pytest.mark.parametrize(("words", "value"), [([], True), (["true"], True), (["false"], False)])
def test_a_yes_or_no_flag_alone_says_yes(words: list[str], value: bool) -> None:
    args = prm.cli.arguments.build_parser().parse_args(["train", "log.jsonl", "--overwrite", *words, "--seed", "2"])
    assert args.settings == {"overwrite": value, "seed": 2, "data": {"path": "log.jsonl"}}


def test_a_flag_of_several_texts_that_is_given_twice_has_all_of_them() -> None:
    """The last one alone would be scored, asked or shown without a word of the others."""
    found = []
    for name, make in PARSERS.items():
        for words, leaf in commands(make()):
            places = [
                next(iter(a.choices)) if a.choices else "x"
                for a in leaf._actions
                if a.required and not a.option_strings
            ]
            needed = [
                text for a in leaf._actions if a.required and a.option_strings for text in (a.option_strings[0], "x")
            ]
            for action in leaf._actions:
                if action.option_strings and action.nargs == "+" and action.default == []:
                    flag = action.option_strings[0]
                    args = make().parse_args([*words, *places, *needed, flag, "a", "b", flag, "c"])
                    assert getattr(args, action.dest) == ["a", "b", "c"], (name, words, flag)
                    found.append(flag)
    assert {"--response", "--by", "--only", "--users"} <= set(found)


def test_what_prints_tables_or_rows_prints_json_too() -> None:
    """All but those that make or change a run or a file, and say so in a line."""
    lines = {"train", "adapt", "forget", "sft", "dpo", "online", "ppo", "merge", "sample", "prompts"}
    for name, make in PARSERS.items():
        for words, leaf in commands(make()):
            assert ("--json" in leaf._option_string_actions) is not bool(lines & set(words)), (name, words)


def test_help_is_short_and_all_of_it_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    def flags_in(flag: str) -> set[str]:
        with pytest.raises(SystemExit) as stop:
            prm.cli.arguments.main(["train", flag])
        assert stop.value.code == 0
        return set(re.findall(r"^  --([\w.]+)", capsys.readouterr().out, flags=re.MULTILINE))

    short, everything, keys = flags_in("--help"), flags_in("--help_all"), set(keys_of(TrainConfig))
    assert keys <= everything
    assert {"output_dir", "data.path", "data.source", "data.holdout_by", "users.kind", "backbone.name"} <= short
    further = {key for key in keys if key.startswith(_FURTHER)}
    assert (keys - short, short & further) == (further, set())
    assert len(short) < len(keys) / 2
    assert not [stale for stale in _FURTHER if not any(key.startswith(stale) for key in keys)]
