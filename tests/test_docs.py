"""The documentation: every block is run or says why not, and what it names exists."""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import policy
import policy.cli
import prm
import prm.cli.arguments
import rerank
import rerank.cli
from policy.compare.config import CompareConfig
from policy.config import DpoConfig, OnlineConfig, PpoConfig, SftConfig
from prm.checkpoint.checkpoint import load
from prm.checks import keys_of
from prm.config import FeedbackConfig, TrainConfig
from prm.evaluation.compare.config import CompareModelsConfig
from prm.io.endpoint import Endpoint
from prm.scoring.scorer import Scorer
from rerank.curves.commands import build_curve_parser
from rerank.pairs.commands import build_pairs_parser
from rerank.sampling.config import Sampling
from rerank.service.command import build_serve_parser
from rerank.service.config import ServiceConfig
from rerank.service.engine import Engine
from rerank.service.http.app import build_app
from rerank.service.keys_command import build_keys_parser
from rerank.service.report.command import build_report_parser
from rerank.service.store import Store
from rerank.service.upstream import EndpointUpstream
from tests.conftest import read_log
from tests.docs_pages import MAINS, PAGES, Block, blocks_of, make_home, name_of, provide, run_page
from tests.endpoint_server import FakeEndpoint, choices
from tests.paths import ROOT
from tests.rerank.service.live import serving

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
RUN_HERE = [
    page
    for page in PAGES
    if any(not block.reason and block.language in ("sh", "python", "yaml", "json") for block in blocks_of(page))
    and "policy" not in "".join(block.text for block in blocks_of(page) if not block.reason)
]
FOREIGN_FLAGS = {"--num_processes", "--multi_gpu", "--help", "--from", "--KEY"}  # of accelerate; handled before parsing


@pytest.fixture
def home(tmp_path: Path, tiny: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_home(tmp_path, tiny)
    return tmp_path


@pytest.mark.parametrize("page", RUN_HERE, ids=name_of)
def test_a_page_runs(page: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {}
    if page.name == "posterior.md":
        provide("sure")
        names = {"scorer": Scorer.from_pretrained("runs/sure"), "prompt": "why?", "responses": ["the king", "a fox"]}
    if page.name == "openai-servers.md":
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        said = [("the king", "stop"), ("a fox", "length"), ("seven wizards", "stop")]
        with FakeEndpoint(lambda body, number: choices(said[: body.get("n", 1)])) as server:
            names = run_page(page, monkeypatch, names, {"http://localhost:8000/v1": server.url})
        assert names["best"].text in [text for text, _ in said]
        assert (home / "ranked.jsonl").is_file()
        return
    if page.name == "chat-completions.md":
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        provide("mine")
        engine = Engine(Scorer.from_pretrained("runs/mine"), Store("sqlite:///store.db"))
        said = [("the king", "stop"), ("a fox", "length")]
        with FakeEndpoint(lambda body, number: choices(said)) as server:
            upstream = EndpointUpstream(Endpoint(server.url))
            with serving(build_app(engine, upstream=upstream)) as url:
                names = run_page(page, monkeypatch, names, {"http://localhost:8000": url})
        assert names["text"] == names["answer"].choices[0].message.content == "the king"
        return
    if page.name == "live-service.md":
        provide("sure")
        engine = Engine(Scorer.from_pretrained("runs/sure", device="cpu"), Store("sqlite:///runs/store.db"))
        key = "none"  # not looked at on loopback
        with serving(build_app(engine)) as url:
            names = run_page(page, monkeypatch, {"key": key}, {"http://localhost:8000": url})
        # 9 of the run; the pick beats two others, the pair one; thumb and rating are alone
        assert names["reply"]["known_by"] == 9 + 3
        assert "Too little data" in (home / "runs/report.html").read_text(encoding="utf-8")
        return
    if page.name == "README.md":  # its commands run on the log that it shows
        (home / "log.csv").write_text(next(block.text for block in blocks_of(page) if block.language == "csv"))
    names = run_page(page, monkeypatch, names)
    if page.name == "posterior.md":
        assert names["std"].shape == (2,)
        assert names["gains"].std[names["gains"].pick] == 0.0
        assert names["question"].position == 0
    if page.name == "README.md":
        scorer, prompt, responses = (names[name] for name in ("scorer", "prompt", "responses"))
        assert scorer.score_users(prompt, responses, ["anna", None]).shape == (2, 2)
        assert scorer.score(prompt, responses).dtype == torch.float32
        assert len(load(home / "runs/more").users.ids) == 8 + 1  # those of the sample, and anna


def test_most_pages_run() -> None:
    assert len(RUN_HERE) >= 18


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_block_is_run_or_says_why_not(page: Path) -> None:
    """A block of shell holds our commands alone; other words stand for what is not run."""
    for block in blocks_of(page):
        assert block.language in ("sh", "python", "yaml", "json", "csv", "text", "")
        assert block.language or page.name == "README.md"  # the demo's output
        if block.language == "sh" and not block.reason:
            assert [words for words in block.commands if words[0] not in MAINS] == []


def test_readme_log_makes_comparisons(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(next(block.text for block in blocks_of(ROOT / "README.md") if block.language == "csv"))
    found = read_log(path, "ratings")
    assert {c.user_id for c in found} == {"anna"}
    assert [c.chosen for c in found].count("Freeze it.") == 2


def parsers() -> Iterator[argparse.ArgumentParser]:
    """The parser of every command."""
    for build in (
        prm.cli.arguments.build_parser,
        policy.cli.build_parser,
        rerank.cli.build_parser,
        build_curve_parser,
        build_pairs_parser,
        build_serve_parser,
        build_report_parser,
        build_keys_parser,
    ):
        todo: list[argparse.ArgumentParser] = [build()]
        while todo:
            parser = todo.pop()
            yield parser
            for action in parser._actions:
                if isinstance(action, argparse._SubParsersAction):
                    todo += action.choices.values()


FLAGS = {flag for parser in parsers() for flag in parser._option_string_actions}
KEYS = (
    {
        key
        for kind in (TrainConfig, SftConfig, DpoConfig, OnlineConfig, PpoConfig, CompareConfig, CompareModelsConfig)
        for key in keys_of(kind)
    }
    | set(keys_of(Sampling, "sampling"))
    | set(keys_of(FeedbackConfig, "data"))
    | set(keys_of(ServiceConfig, "service"))
)
GROUPS = {key.split(".")[0] for key in KEYS if "." in key}


def known_flag(flag: str) -> bool:
    return flag in FLAGS or flag in FOREIGN_FLAGS or flag.startswith("--data.columns.")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_settings_and_flags_in_sentences_exist(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    codes = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]
    flags = [flag for code in codes for flag in re.findall(r"(?<![\w-])--[A-Za-z][\w.]*", code)]
    assert [flag for flag in flags if not known_flag(flag)] == []
    named = [match[1] for code in codes if (match := re.fullmatch(r"([a-z_]+\.[a-z_0-9.]+)(:? .*)?", code))]
    settings = [key for key in named if key.split(".")[0] in GROUPS and not key.endswith((".json", ".safetensors"))]
    known = KEYS | {"data.tldr"}
    assert [key for key in settings if key not in known and not key.startswith("data.columns.")] == []


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.reason and b.language == "sh"], ids=lambda b: name_of(b.page))
def test_flags_in_blocks_that_are_not_run_exist(block: Block) -> None:
    lines = [line.split("#")[0] for line in block.text.replace("\\\n", " ").splitlines()]
    ours = [line for line in lines if re.match(r"\s*(prm|rerank|policy) ", line)]
    flags = [flag for line in ours for flag in re.findall(r"(?<!\S)--[A-Za-z][\w.]*", line)]
    assert [flag for flag in flags if not known_flag(flag)] == []
    for target in re.findall(r"^make ([\w-]+)", block.text, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in [*re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text), *re.findall(r'<img[^>]*src="([^"]+)"', text)]:
        assert (page.parent / link).exists(), link
    for path in re.findall(r"`((?:docs|tests|prm|policy|rerank|configs|examples)/[\w./-]+\.(?:md|py|yaml))`", text):
        assert (ROOT / path).is_file(), path


def test_pages_are_short() -> None:
    lengths = {name_of(page): len(page.read_text(encoding="utf-8").splitlines()) for page in PAGES}
    limits = {"README.md": 120, "results.md": 200} | {name: 80 for name in lengths if name.startswith("how-to/")}
    assert {name: lengths[name] for name, limit in limits.items() if lengths[name] > limit} == {}


def test_every_page_is_in_the_list_for_language_models() -> None:
    listed = set(re.findall(r"docs/[\w/-]+\.md", (ROOT / "llms.txt").read_text(encoding="utf-8")))
    assert {str(ROOT / page) for page in listed} <= set(map(str, PAGES))
    assert {str(page) for page in PAGES if page.parent.name == "how-to"} <= {str(ROOT / page) for page in listed}


def test_the_python_reference_has_every_public_name() -> None:
    text = (ROOT / "docs/reference/python.md").read_text(encoding="utf-8")
    names = [f"{package.__name__}.{name}" for package in (prm, rerank, policy) for name in package.__all__]
    assert [name for name in names if not re.search(rf":: {re.escape(name)}$", text, flags=re.MULTILINE)] == []


def test_the_run_folders_page_has_every_file_and_key(home: Path) -> None:
    provide("a")
    text, run = (ROOT / "docs/reference/run-folder.md").read_text(encoding="utf-8"), home / "runs/a"
    files = [path.name + "/" * path.is_dir() for path in run.iterdir() if "evaluation" not in path.name]
    keys = [key for name in ("config.json", "run.json") for key in json.loads((run / name).read_text())]
    keys += list(json.loads((run / "run.json").read_text())["data"])
    assert [name for name in [*files, *keys] if f"`{name}`" not in text] == []
