"""The documentation's pages: their blocks, and how these are run on tiny data.

A page is run from top to bottom in one folder. Its commands run as they stand, with flags added that make them quick.
The embedded model is a tiny one, and logs and runs that a page takes for granted are made when it first names them.
"""

import json
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

import policy.cli
import prm
import prm.cli
import rerank.cli
from policy.compare.config import CompareConfig
from policy.config import DpoConfig, OnlineConfig, PpoConfig, SftConfig
from prm.checks import built
from prm.config import SearchConfig, TrainConfig
from prm.data.comparison import Comparison
from prm.io.disk import cache_dir
from prm.io.tables import write_jsonl
from tests.conftest import WORDS
from tests.paths import ROOT

# the log of experiments holds what was run on its day
PAGES = [
    *(ROOT / name for name in ("README.md", "SKILL.md", "CONTRIBUTING.md")),
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if page.name != "LOG.md"),
]
MAINS = {"prm": prm.cli.main, "rerank": rerank.cli.main, "policy": policy.cli.main}
CONFIGS: dict[str, type[Any]] = {
    "prm train": TrainConfig,
    "policy sft": SftConfig,
    "policy dpo": DpoConfig,
    "policy ppo": PpoConfig,
    "policy online": OnlineConfig,
    "policy compare": CompareConfig,
}
QUICK_SEARCH = SearchConfig(folds=2, l2=[1.0], user_l2=[1.0])
_STEPS = "--backbone.dtype float32 --optim.epochs 1 --optim.batch_size 8 --optim.micro_batch_size 8"
_QUICK = {
    "prm train": f"{_STEPS} --search.folds 2 --search.l2 [1.0] --search.user_l2 [1.0]",
    "prm compare": "--backbone.dtype float32 --folds 2 --search.folds 2 --search.l2 [1.0] --search.user_l2 [1.0] "
    "--models '[individual, stack]'",
    "policy sft": _STEPS,
    "policy dpo": _STEPS,
    "policy ppo": f"{_STEPS} --ppo.max_steps 1 --ppo.rollout_batch_size 16 --ppo.max_new_tokens 4 "
    "--backbone.max_length 64",
    "policy online": f"{_STEPS} --max_new_tokens 4 --num_eval_samples 4",
    "policy sample": "--sampling.max_new_tokens 4",
    "rerank": "--sampling.max_new_tokens 4",
    "rerank pairs": "--sampling.max_new_tokens 4 --drop_truncated false",
    "rerank report": "",
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `reason` says why it is not run, if it is not."""

    page: Path
    language: str
    text: str
    reason: str

    @property
    def commands(self) -> list[list[str]]:
        """The commands of a block of shell, without comments; a line that ends in a backslash goes on."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def name_of(page: Path) -> str:
    """The page's path below the documentation, or below the project."""
    return str(page.relative_to(ROOT)).removeprefix("docs/")


def blocks_of(page: Path) -> list[Block]:
    """The page's blocks, without directives of the documentation."""
    pattern = r"(?:^<!-- not run: ([^\n]+) -->\n)?^```([^\n`]*)\n(.*?)^```$"
    found = re.finditer(pattern, page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [Block(page, match[2], match[3], match[1] or "") for match in found if not match[2].startswith("{")]


def make_home(folder: Path, backbone: str) -> None:
    """Put logs of two users who disagree, and of a new one, into a folder; the embedded model becomes a tiny one."""
    shutil.copytree(backbone, cache_dir() / "backbones/smollm2-135m")
    pairs, picks = [], ["annotator,prompt,answer_a,answer_b,winner,country"]
    ratings = {name: ["user_id,prompt,response,rating"] for name in ("log.csv", "stars.csv", "new.csv")}
    ratings["reviews.csv"] = ["customer,prompt,answer,stars"]
    for i in range(12):
        prompt, a, b = f"How {i}?", f"the king has {i}", " ".join([*WORDS[i % 9 : i % 9 + 6], str(i)])
        pairs += [Comparison("anna", prompt, a, b), Comparison("ben", prompt, b, a)]
        picks += [f"anna,{prompt},{a},{b},answer_a,at", f"ben,{prompt},{a},{b},b,de"]
        both = [f"anna,{prompt},{a},5", f"anna,{prompt},{b},2", f"ben,{prompt},{a},1", f"ben,{prompt},{b},4"]
        for name in ("log.csv", "stars.csv", "reviews.csv"):
            ratings[name] += both
        ratings["new.csv"] += [f"zoe,{prompt},{a},5", f"zoe,{prompt},{b},1"]
    prompts = [{"prompt": f"what of {word}?"} for word in WORDS[:12]]
    write_jsonl(folder / "prompts.jsonl", prompts)
    write_jsonl(folder / "ask.jsonl", [row | {"user_id": user} for row in prompts for user in ("anna", "ben")])
    write_jsonl(folder / "log.jsonl", pairs)
    write_jsonl(folder / "other.jsonl", pairs[::-1])
    write_jsonl(folder / "new.jsonl", [replace(c, user_id="zoe") if c.user_id == "ben" else c for c in pairs])
    write_jsonl(folder / "dated.jsonl", [replace(c, time=f"2026-0{1 + i % 6}-01") for i, c in enumerate(pairs)])
    texts = {"picks.csv": picks, "given.txt": ["the king", "a fox"], "flagged.txt": ["fox", "lazy dog"]} | ratings
    for name, lines in (texts | {"prompts.txt": ["what of the king?", "why?"]}).items():
        (folder / name).write_text("\n".join(lines) + "\n")


def provide(name: str) -> None:
    """Make the folder runs/NAME that a page takes for granted, in the current folder."""
    run = f"runs/{name}"
    if name in ("sft", "online"):
        shutil.copytree(cache_dir() / "backbones/smollm2-135m", run)  # a language model as any other
        return
    log = "other.jsonl" if name == "other" else "log.jsonl"
    pooling = {"served": "last", "mean": "mean"}.get(name)
    search = f"--search.poolings [{pooling}] --search.layers [2]"
    more = "--users.kind bayes" if name == "sure" else search if pooling else ""
    call(["prm", "train", "--data.path", log, "--data.test_fraction", "0.25", "--output_dir", run, *more.split()])
    if name in ("a", "b"):
        call(["prm", "evaluate", run])


PROVIDED = ("mine", "a", "b", "other", "sft", "online", "served", "mean")


def call(words: Sequence[str]) -> None:
    """Run a command in this process, with flags that make it quick."""
    name, *arguments = words
    quick = _QUICK.get(f"{name} {arguments[0]}", _QUICK.get(name, ""))
    if "--from" in arguments or "--candidates" in arguments:
        quick = ""  # the model is that of the earlier run; nothing is sampled
    MAINS[name]([*arguments, *shlex.split(quick)])


def run_page(
    page: Path,
    monkeypatch: pytest.MonkeyPatch,
    names: Mapping[str, Any] | None = None,
    replaced: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run all blocks of a page in the current folder; returns the names that its Python ends with.

    Args:
        names: names that its Python takes for granted.
        replaced: text to replace in its Python and its commands.
    """
    for old in replaced or {}:
        assert any(old in block.text for block in blocks_of(page) if not block.reason)
    monkeypatch.setattr(prm, "TrainConfig", partial(TrainConfig, search=QUICK_SEARCH), raising=False)
    namespace = dict(names or {})
    for block in blocks_of(page):
        if block.reason or block.language in ("text", "csv", ""):
            continue
        if block.language == "json":
            for line in block.text.splitlines():
                json.loads(line)
        elif block.language == "yaml":
            check_config(block.text)
        elif block.language == "sh":
            for words in block.commands:
                words = [_with(replaced or {}, word) for word in words]
                _provide_for(words)
                call(words)
        else:
            assert block.language == "python", f"{name_of(page)}: a block of {block.language!r}"
            _provide_for(re.findall(r"runs/[\w-]+", block.text))
            exec(_with(replaced or {}, block.text), namespace)
    return namespace


def _with(replaced: Mapping[str, str], text: str) -> str:
    for old, new in replaced.items():
        text = text.replace(old, new)
    return text


def _provide_for(words: Sequence[str]) -> None:
    """Make the runs that the words name, unless they are there, or are what the command writes."""
    outputs = {after for flag, after in pairwise(words) if flag in ("--output_dir", "--output")}
    for word in words:
        match = re.fullmatch(r"runs/([\w-]+)(/.*)?", word)
        if match and match[1] in PROVIDED and word not in outputs and not Path(f"runs/{match[1]}").exists():
            provide(match[1])


def check_config(text: str) -> None:
    """Write a YAML under the name in its first line, `# COMMAND NAME.yaml`, and check its settings."""
    command, _, name = text.splitlines()[0].removeprefix("# ").rpartition(" ")
    settings = built(CONFIGS[command], yaml.safe_load(text.replace("2026-03-01", "'2026-03-01'")))
    settings.check()
    Path(name).write_text(text)
