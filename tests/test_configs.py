"""The shipped configs on a lone clone: each says where its data come from and how to get them, or runs as it stands."""

import json
import re
import runpy
import shlex
import shutil
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import pytest

import policy.cli
import prm.cli.arguments
from policy.compare.training import KINDS
from policy.config import OnlineConfig, PpoConfig
from prm.checks import built
from prm.config import SHIPPED, PublicSet, RunConfig
from prm.data.sources.dataset_cards import Card
from prm.data.sources.public import (
    alpacaeval_styles,
    jester,
    prism,
    psoups,
    tldr_length,
    tldr_workers,
    ukp_sample,
    ukpconvarg1,
)
from prm.io.disk import cache_dir
from tests.paths import ROOT
from tests.test_structure import CONFIGS, below, read

_MODULES = (alpacaeval_styles, jester, prism, psoups, tldr_length, tldr_workers, ukpconvarg1)
BY_SOURCE: dict[str, Card] = {module.__name__.rpartition(".")[2]: module.CARD for module in _MODULES}
CARDS = {card.name: card for card in (*BY_SOURCE.values(), ukp_sample.CARD)}
SIMULATED = ("simulated users on texts of this project", "Apache-2.0")
QUICKSTART = ROOT / "configs/prm/quickstart.yaml"
COMPARE_QUICKSTART = ROOT / "configs/policy/compare-quickstart.yaml"
PUBLIC_DATA = ROOT / "examples/public_data.py"
NAMED = pytest.mark.parametrize(
    "path", CONFIGS, ids=lambda path: "-".join(path.relative_to(ROOT / "configs").with_suffix("").parts)
)


@dataclass
class Header:
    """The comments above a config: its data, their terms, the commands that fetch them, the runs that it needs."""

    command: str
    data: str = ""
    licence: str = ""
    how: str = ""
    fetch: list[list[str]] = field(default_factory=list)
    before: list[list[str]] = field(default_factory=list)


def header_of(path: Path) -> Header:
    first, *lines = re.match(r"(?:#.*\n)*", path.read_text(encoding="utf-8"))[0].splitlines()  # type: ignore[index]
    header, commands = Header(first.removeprefix("# ")), list[list[str]]()
    for line in lines:
        if found := re.fullmatch(r"# Data: ([^(]+) \((.+)\), (.+)", line):
            assert not header.data, "two lines of data"
            header.data, header.licence, header.how = found.groups()
            commands = header.fetch
        elif line == "# Before it:":
            commands = header.before
        elif line.startswith("#   "):
            commands.append(shlex.split(line[4:]))
        else:
            commands = []
    return header


def parsed(words: Sequence[str]) -> dict[str, object]:
    """The arguments of one of our commands, as its own parser reads them."""
    name, *arguments = words
    if name == "prm":
        return vars(prm.cli.arguments.build_parser(arguments[0]).parse_args(arguments))
    assert name == "policy", name
    return vars(policy.cli.build_parser().parse_args(arguments))


def made_by(words: Sequence[str], earlier: Sequence[str]) -> str:
    """The file or folder that a command makes; for `prm data describe` what it reads, and so fetches from the hub."""
    match words:
        case ["git", "clone", "--depth", "1", url, folder]:
            assert url.startswith("https://")
            return folder
        case ["curl", "-LO", url]:
            return url.rpartition("/")[2]
        case ["unzip", "-j", archive, _, "-d", folder]:
            assert archive in earlier
            return folder
        case ["python", script, name]:
            parser: ArgumentParser = runpy.run_path(str(ROOT / script))["build_parser"]()
            assert parser.parse_args([name]).name == name
            return f"data/{name}"
        case ["Rscript", script]:
            folders = re.findall(r'dir\.create\("([^"]+)"', (ROOT / script).read_text(encoding="utf-8"))
            return str(*folders)
        case ["prm", "data", "describe", *_]:
            return str(parsed(words)["path"])
    raise AssertionError(f"not a command that fetches data: {shlex.join(words)}")


@NAMED
def test_a_config_says_whose_its_data_are(path: Path) -> None:
    """In the words of the card of the data set, so that terms are said in one place."""
    header, data = header_of(path), read(path, *below(path), path).data
    card = CARDS.get(header.data)
    assert (header.data, header.licence) == (SIMULATED if card is None else (card.name, card.licence))
    if data.source in get_args(PublicSet):
        assert card == BY_SOURCE[data.source]
    assert (data.path == SHIPPED) == (card == ukp_sample.CARD) == (header.how == "which come with the package")


@NAMED
def test_data_are_had_by_the_commands_of_the_config(path: Path) -> None:
    header, data = header_of(path), read(path, *below(path), path).data
    if data.path == SHIPPED:
        assert header.fetch == []
    elif header.how == f"which {header.command} writes":  # a target of the Makefile: `test_structure.py` sees to that
        assert header.command == "make demo"
    else:
        assert header.fetch
        made: list[str] = []
        for words in header.fetch:
            made.append(made_by(words, made))
            if words[:3] == ["prm", "data", "describe"]:
                assert parsed(words)["settings"] == {"data": {"source": data.source}}
        assert data.path == made[-1] or str(Path(data.path).parent) == made[-1]


@NAMED
def test_the_runs_that_a_config_needs_are_made_before_it(path: Path) -> None:
    config = read(path, *below(path), path)
    needed = {config.reward} if isinstance(config, PpoConfig | OnlineConfig) else set()
    needed |= {config.backbone.name} if isinstance(config, RunConfig) else set()
    made = set()
    for words in header_of(path).before:
        made.add(built(KINDS[words[1]], parsed(words)["settings"]).output_dir)
    assert made == {name for name in needed if name.startswith("runs/")}


@pytest.fixture
def clone(tmp_path: Path, tiny: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the configs; the embedded model is a tiny one."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    shutil.copytree(tiny, cache_dir() / "backbones/smollm2-135m")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_quickstart_trains_on_the_comparisons_that_come_with_the_package(clone: Path) -> None:
    prm.cli.main(["train", "configs/prm/quickstart.yaml", "--search.folds", "2", "--search.l2", "[100.0]"])
    run = json.loads((clone / "runs/quickstart/run.json").read_text())
    assert run["data"]["train_comparisons"] + run["data"]["test_comparisons"] == 200
    assert 30 <= run["data"]["test_comparisons"] <= 50
    assert run["data"]["learnt_from"]["people"] == 8
    assert run["data"]["card"]["licence"] == "CC BY 4.0"
    assert "Habernal" in (clone / "runs/quickstart/README.md").read_text()


def test_the_quick_comparison_writes_its_page(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a fifth of the comparisons, for time."""
    fifth = ukp_sample.rows()[::5]
    monkeypatch.setattr(ukp_sample, "rows", lambda: fifth)
    few = ["--max_users", "2", "--max_prompts", "1", "--max_new_tokens", "4"]
    policy.cli.main(["compare", "configs/policy/compare-quickstart.yaml", *few])
    metrics = json.loads((clone / "runs/compare-quickstart/metrics.json").read_text())
    assert metrics["questions"] == 2
    assert (clone / "runs/compare-quickstart/index.html").is_file()
