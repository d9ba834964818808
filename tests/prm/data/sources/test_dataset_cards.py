"""Cards: every public set has one, and it goes wherever the account of a reading goes."""

import json
from pathlib import Path
from typing import get_args

import pytest

from prm.cli import main
from prm.config import PublicSet
from prm.data.profile import describe
from prm.data.sources import _PUBLIC
from prm.data.sources.dataset_cards import Card, compare
from prm.data.sources.public import alpacaeval_styles, jester, prism, psoups, tldr_length, tldr_workers, ukpconvarg1
from tests.prm.data.sources.public.test_tldr_length import post
from tests.prm.data.sources.public.test_tldr_length import read as read_tldr

SETS = {m.__name__.split(".")[-1]: m for m in (alpacaeval_styles, jester, prism, psoups, tldr_length, tldr_workers)}
CARD = Card("X", "CC0", "A, 2020", "rows", {"rows": 2})


def test_every_public_set_has_a_reader_and_a_card() -> None:
    sets = SETS | {"ukpconvarg1": ukpconvarg1}
    assert set(_PUBLIC) == set(sets) == set(get_args(PublicSet))
    for module in sets.values():
        card = module.CARD
        assert card.name
        assert card.licence
        assert card.citation
        assert card.about
        assert min(card.counts.values()) > 0


@pytest.mark.parametrize(
    ("read", "kept", "notes"),
    [
        ({"rows": 2}, {"a": 1, "b": 1}, ["the complete data set: its counts are those of Table 9"]),
        ({"rows": 1}, {"a": 1}, []),
        ({}, {}, []),
        (
            {"rows": 2, "more": 5},
            {"a": 1500},
            ["warning: this is the complete data set, but its counts are not those of Table 9: a 1,500, there 1"],
        ),
    ],
)
def test_counts_are_compared_for_the_whole_alone(read: dict[str, int], kept: dict[str, int], notes: list[str]) -> None:
    assert compare(CARD, read, "Table 9", {"a": 1}, kept) == notes


def test_the_card_is_in_account_summary_and_description(tmp_path: Path) -> None:
    found = read_tldr(tmp_path, [post("a b", "c"), post("d", "e f")])
    assert found.account()[0] == tldr_length.CARD.line
    assert found.account()[0].startswith("data: Reddit TL;DR, ")
    assert json.loads(json.dumps(found.summary()))["card"]["licence"] == "posts CC BY 4.0"
    described = json.loads(json.dumps(describe(found, None).to_dict()))
    assert described["card"] == found.summary()["card"]
    assert described["account"][0] == tldr_length.CARD.line


def test_the_model_card_says_what_it_was_trained_on(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    read_tldr(tmp_path, [post(f"a b {i}", "c", f"post {i}") for i in range(6)])
    flags = ["--search.folds", "2", "--search.l2", "[1.0]", "--search.user_l2", "[1.0]", "--backbone.name", tiny]
    with caplog.at_level("INFO"):
        main(["train", "--data.path", ".", "--data.source", "tldr_length", "--output_dir", "run", *flags])
    assert tldr_length.CARD.line in caplog.text
    assert json.loads(Path("run/run.json").read_text())["data"]["card"]["name"] == "Reddit TL;DR"
    card = Path("run/README.md").read_text()
    for figure in ("60 comparisons of 6 prompts by 10 users", "Reddit TL;DR (Völske", "licence: posts CC BY 4.0."):
        assert figure in card
