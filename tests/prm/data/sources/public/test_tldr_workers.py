"""TL;DR with workers: rows in OpenAI's schema, with every edge that the paper's recipe has."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from prm.config import FeedbackConfig, TldrConfig
from prm.data.sources import Feedback, read_feedback
from prm.data.sources.public import tldr_workers
from prm.data.sources.public.tldr import draw_tastes
from prm.data.sources.public.tldr_workers import TABLE_3, TOP, rank_workers
from prm.errors import DataError
from tests.paths import SHARED

LONGER, SHORTER = TOP[0], TOP[3]  # ranks 1 and 4 of the draw
COUNTS = (5245, 2920, 2437, 2366, 2200, 2126, 1824, 1606, 1366, 1209)  # training comparisons of the ten


def row(worker: str, first: str, second: str, split: str = "train", **more: Any) -> dict[str, Any]:
    info = {"id": "t3_1", "post": "I ate it.", "title": "Cake", "subreddit": "food"}
    summaries = [{"text": first, "policy": "sup4", "note": "ok"}, {"text": second, "policy": "sup1", "note": "ok"}]
    shown = {"info": info, "summaries": summaries, "choice": 1, "worker": worker, "batch": "batch3", "split": split}
    return shown | {"extra": {"confidence": 7}} | more


def by(policies: tuple[str, str]) -> dict[str, Any]:
    """A row of a known worker with these policies."""
    texts = ("aa", "b")
    return row(LONGER, *texts, summaries=[{"text": t, "policy": p} for t, p in zip(texts, policies, strict=True)])


def read(folder: Path, rows: list[Any], name: str = "batch3.json", **settings: Any) -> Feedback:
    tldr = TldrConfig(**{k: settings.pop(k) for k in ("num_users", "prompt") if k in settings})
    (folder / "comparisons").mkdir(exist_ok=True)
    (folder / "comparisons" / name).write_text("\n".join(map(json.dumps, rows)))
    return read_feedback(FeedbackConfig(path=str(folder), source="tldr_workers", tldr=tldr, **settings))


def test_characters_decide_not_words_and_the_recorded_choice_is_not_read(tmp_path: Path) -> None:
    """Seven letters in one word against five in three."""
    found = read(tmp_path, [row(worker, "a b c", "letters") for worker in (LONGER, SHORTER)])
    assert [(c.user_id, c.chosen, c.rejected) for c in found.comparisons] == [
        (LONGER, "letters", "a b c"),
        (SHORTER, "a b c", "letters"),
    ]
    assert [c.metadata for c in found.comparisons] == [
        {"split": "train", "prefers": "longer", "character_difference": 2},
        {"split": "train", "prefers": "shorter", "character_difference": 2},
    ]


def test_of_equal_lengths_the_first_is_chosen_by_both_groups(tmp_path: Path) -> None:
    found = read(tmp_path, [row(worker, "bbb", "aaa") for worker in (LONGER, SHORTER)])
    assert [c.chosen for c in found.comparisons] == ["bbb", "bbb"]


def test_identical_and_empty_summaries_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = [row(LONGER, "aa", "b"), row(LONGER, "same", "same"), row(LONGER, "aa", " "), row(LONGER, "", "")]
    found = read(tmp_path, rows)
    assert found.rows == {"used": 1, "the same text twice": 2, "an empty summary": 1}


def test_both_policies_must_be_supervised_ones(tmp_path: Path) -> None:
    left_out = [("sup4", "ref"), ("ref", "sup4"), ("sup4_ppo_rm3", "sup1"), ("sup1", "sup_cnndm"), ("t5", "t5")]
    found = read(tmp_path, [by(("sup4", "sup1")), by(("sup4_6b_t.7", "sup1")), *map(by, left_out)])
    assert found.rows["a summary by a policy that the paper leaves out"] == len(left_out)
    assert found.rows["used"] + found.rows["said twice"] == 2


def test_parts(tmp_path: Path) -> None:
    """Of somebody who is not among the ten, training rows are left out; validation rows are a stranger's."""
    rows = [
        row(LONGER, "aa", "b"),
        row("zoe", "aa", "b"),
        row(LONGER, "cc", "d", "valid1"),
        row("zoe", "cc", "d", "valid2"),
    ]
    found = read(tmp_path, rows)
    assert [(c.user_id, c.metadata["split"]) for c in found.comparisons] == [
        (LONGER, "train"),
        (LONGER, "test"),
        ("zoe", "unseen"),
    ]
    assert found.rows == {"used": 3, "by a worker who is not learnt from": 1}


def test_the_prompt_and_its_length(tmp_path: Path) -> None:
    """A filter of 4800 characters for post and the longer summary together, whatever is shown of the post."""
    head, tail = "SUBREDDIT: r/food\nTITLE: Cake\n", "TL;DR: "
    (plain,) = read(tmp_path, [row(LONGER, "aa", "b")]).comparisons
    assert plain.prompt == f"{head}POST: I ate it.\n{tail}"
    news = {"id": "1", "post": None, "article": "News.", "title": "Cake", "subreddit": "food"}
    (article,) = read(tmp_path, [row(LONGER, "aa", "b", info=news)]).comparisons
    assert article.prompt == f"{head}POST: News.\n{tail}"
    room = 4800 - len(f"{head}POST: \n{tail}") - 2
    posts = [{"post": "x" * n, "title": "Cake", "subreddit": "food"} for n in (room, room + 1)]
    rows = [row(LONGER, "aa", "b", info=info) for info in posts]
    assert read(tmp_path, rows).rows == {"used": 1, "more than 4800 characters": 1}
    titled = read(tmp_path, rows, prompt="title")
    assert titled.rows == {"used": 1, "more than 4800 characters": 1}
    assert titled.comparisons[0].prompt == head + tail


def test_the_ranking_is_frozen_then_by_count_then_by_id() -> None:
    """However the rows lie, and however many training rows others than the ten have."""
    counts = {"b": 5, "a": 5, "c": 9000, "d": 0}
    expected = [*TOP, "c", "a", "b", "d", "e"]
    assert rank_workers(counts, {"a", "b", "c", "d", "e", TOP[2]}) == expected
    assert rank_workers(dict(reversed(counts.items())), {"e", "d", "c", "b", "a"}) == expected
    known = SHARED / "reference" / "tldr_top_workers.txt"
    if known.is_file():
        assert tuple(known.read_text().split()) == TOP


def test_more_people_are_the_next_in_rank(tmp_path: Path) -> None:
    rows = [row(w, "aa", "b") for w in ("u", "v", "v", "w")] + [row("w", "cc", "d", "valid1")]
    found = read(tmp_path, rows, num_users=12)  # ten who have no rows, v, and u before w
    assert {(c.user_id, c.metadata["split"]) for c in found.comparisons} == {
        ("v", "train"),
        ("u", "train"),
        ("w", "unseen"),
    }


def test_the_draw_is_the_papers() -> None:
    """Worker by worker as there, with numpy's global generator; of ten it gives Table 3 by the counts of the ten."""
    np.random.seed(3456)
    there = [bool(np.random.choice(a=[0, 1], p=[0.7, 0.3])) for _ in range(60)]
    assert draw_tastes(60) == there
    assert draw_tastes(10) == there[:10]
    assert [i + 1 for i, shorter in enumerate(there[:10]) if shorter] == [4, 5, 6]
    by_taste = Counter[bool]()
    for n, shorter in zip(COUNTS, there, strict=False):
        by_taste[shorter] += n
    assert (by_taste[False], by_taste[True]) == (16_607, 6_692)


def test_the_tables_numbers_agree_with_each_other() -> None:
    for people, learnt_from in ((10, sum(COUNTS)), (40, 38_065)):
        table = TABLE_3[people]
        assert table["train, longer"] + table["train, shorter"] == learnt_from
        held_out = [table[f"validation, {name}"] for name in ("longer", "shorter", "unseen users")]
        assert sum(held_out) == table["validation"] == 16_294


def test_counts_are_compared_where_all_of_it_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(LONGER, "aa", "b"), row(SHORTER, "aa", "b"), row("zoe", "cc", "d", "valid1")]
    table = {
        "train": 2,
        "train, longer": 1,
        "train, shorter": 1,
        "validation, unseen users": 1,
        "training pairs": 2,
    }
    small = replace(tldr_workers.CARD, counts={"train rows": 2, "validation rows": 1})
    monkeypatch.setattr(tldr_workers, "CARD", small)
    monkeypatch.setitem(TABLE_3, 10, table)
    assert read(tmp_path, rows).notes == ["the complete data set: its counts are those of the paper's Table 3"]
    assert read(tmp_path, rows, num_users=11).notes == []  # the paper has no table for eleven
    assert read(tmp_path, rows[:2]).notes == []
    (note,) = read(tmp_path, [rows[0], row(LONGER, "x", "x"), rows[2]]).notes
    assert note.startswith("warning: ")
    assert "train, longer 2, there 1; train, shorter 0, there 1; training pairs 1, there 2" in note


def test_batches_and_a_saved_folder_hold_the_same(tmp_path: Path) -> None:
    train, valid = [row(LONGER, "aa", "b"), row("zoe", "aa", "b")], [row("zoe", "cc", "d", "valid1")]
    read(tmp_path, train)
    batches = read(tmp_path, valid, "batch4.json")
    saved = DatasetDict({"train": Dataset.from_list(train), "validation": Dataset.from_list(valid)})
    saved.save_to_disk(str(tmp_path / "saved"))
    config = FeedbackConfig(path=str(tmp_path / "saved"), source="tldr_workers")
    assert read_feedback(config).comparisons == batches.comparisons
    flat = FeedbackConfig(path=str(tmp_path / "comparisons"), source="tldr_workers")
    assert read_feedback(flat).comparisons == batches.comparisons
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"none: .*\*\.json"):
        read_feedback(FeedbackConfig(path=str(tmp_path / "none"), source="tldr_workers"))


BAD: list[tuple[Any, str]] = [
    (row(LONGER, "aa", "b", "test"), "'split' must be 'train', 'valid1' or 'valid2', got 'test'"),
    (row(LONGER, "aa", "b", summaries=[]), "'summaries' must be a list of two objects"),
    (row(LONGER, "aa", "b", summaries=["a", "b"]), "'summaries' must be a list of two objects"),
    (by(("sup1", None)), "'summaries.policy' must be text, got null"),  # type: ignore[arg-type]
    (row(LONGER, "aa", "b", info=None), "'info' must be an object, got null"),
    (row(LONGER, "aa", "b", info={"post": "x", "title": "t"}), "'info.subreddit' must be text, got null"),
    (row(LONGER, 3, "b"), "'summaries[0].text' must be text, got int 3"),  # type: ignore[arg-type]
    (row("", "aa", "b"), "'worker' is empty"),
    (row(LONGER, "\ud800", "b"), "'summaries[0].text' holds a lone surrogate"),
    ([1], "expected a JSON object, got a list"),
]


@pytest.mark.parametrize(("bad", "said"), BAD)
def test_a_bad_row_is_named_or_skipped(tmp_path: Path, bad: Any, said: str) -> None:
    rows = [row(LONGER, "aa", "b"), bad]
    with pytest.raises(DataError) as caught:
        read(tmp_path, rows)
    assert str(caught.value).startswith(f"{tmp_path}/comparisons/batch3.json, line 2: {said}")
    assert read(tmp_path, rows, on_bad_row="skip").rows == {"used": 1, "bad": 1}
