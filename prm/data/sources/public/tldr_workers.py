"""OpenAI's TL;DR comparisons with the workers' ids, relabelled by length as in the paper (section 5.1).

The workers are real, their preferences are simulated: each prefers longer or shorter summaries.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from prm.config import FeedbackConfig
from prm.data.comparison import Comparison, require_text
from prm.data.sources.collector import Collector, Feedback
from prm.data.sources.dataset_cards import Card, compare
from prm.data.sources.fields import text_or_blank
from prm.data.sources.pairing import SAME
from prm.data.sources.public.tldr import draw_tastes, self_descriptions
from prm.data.splits import TEST, TRAIN, UNSEEN
from prm.errors import DataError, shown
from prm.io.rows import Row
from prm.io.tables import kind, read_table

RULE = "each row is one: the longer or the shorter summary in characters, by its worker's drawn taste"
LONGEST = 4_800  # characters of post and summary together
POLICY, OTHERS = "a summary by a policy that the paper leaves out", "by a worker who is not learnt from"
EMPTY, LONG = "an empty summary", f"more than {LONGEST} characters"
CARD = Card(
    name="OpenAI TL;DR comparisons",
    licence="modified MIT; posts CC BY 4.0",
    citation="Stiennon et al., Learning to summarize from human feedback, NeurIPS 2020",
    about="workers on two summaries of a Reddit post",
    counts={"train rows": 92_858, "validation rows": 86_086},
)
# the ten workers with most training comparisons, in order: 5245, 2920, 2437, 2366, 2200, 2126, 1824, 1606, 1366, 1209
TOP = (
    "KZL1qeRzHNYSfDAuOctL1iyVV8WC5N",
    "ZzGCcAhvqF0HnKxNsUjtJFadcZdyZj",
    "p4Oh7rUGyLe1EpilJFWr9sPDpkO016",
    "qo6WIyEh27cwAjWpA3Q60J7NaDxzQJ",
    "zKV8BFGy60O0q7102ALF84S6Jo5i4q",
    "i8YiBZlrYmlkkChr5b9BUKvDO6lR1d",
    "M3icahkfAtC9CJrtKgQ7qvyZ5SD8wC",
    "HNzkrs9geGu1YMMfZ5Qvdt0ZaCthfB",
    "Jxv4hxfb9zTVa5nsMDFlnjSX5LZ8MK",
    "UhQipwcpQmiGJmScocXOGOKyCBaFUg",
)
_POLICIES = {"train": 38_487, "validation": 16_294}  # rows with the paper's policies
# Table 3 by the number of workers: rows by part and taste; other workers' tastes depend on how ties are ranked
TABLE_3 = {
    10: _POLICIES
    | {"train, longer": 16_607, "train, shorter": 6_692, "validation, longer": 3_371, "validation, shorter": 1_550}
    | {"validation, unseen users": 11_373, "training pairs": 23_292},
    40: _POLICIES
    | {"train, longer": 25_821, "train, shorter": 12_244, "validation, longer": 8_301, "validation, shorter": 4_759}
    | {"validation, unseen users": 3_234},
}


@dataclass(frozen=True)
class _ShownPair:
    """Two summaries shown to a worker, with `number` and `origin` of the row."""

    number: int
    origin: str
    train: bool
    worker: str
    head: str
    post: str
    texts: tuple[str, str]


def read(config: FeedbackConfig) -> Feedback:
    """Read the published batches (`comparisons/*.json`, JSON Lines), a folder saved by `datasets` with the splits
    `train` and `validation`, or the hub id `openai/summarize_from_feedback`.

    The users trained on are the `tldr.num_users` workers with most training comparisons: the first ten are fixed here
    as in the paper, later ties are broken by id (the paper's sort is unstable and cannot be reproduced). Their
    validation rows are the part `test`, those of all other workers the part `unseen`. Of two summaries of equal length
    the first is chosen. Metadata: `split`, what the worker `prefers`, `character_difference`. Raises `DataError`.
    """
    collector = Collector(config, RULE, CARD)
    rows, read_rows = _collect(collector, config.path)
    ranking = rank_workers(Counter(row.worker for row in rows if row.train), {row.worker for row in rows})
    tastes = dict(zip(ranking, draw_tastes(len(ranking)), strict=True))
    texts = dict(zip(ranking, self_descriptions(list(tastes.values()), config.tldr.num_users), strict=True))
    trained_workers = set(ranking[: config.tldr.num_users])
    kept: Counter[str] = Counter()
    for row in rows:
        shorter, is_trained = tastes[row.worker], row.worker in trained_workers
        side = "train" if row.train else "validation"
        kept[side] += 1
        if is_trained:
            kept[f"{side}, {_preference(shorter)}"] += 1
        elif not row.train:
            kept["validation, unseen users"] += 1
        if reason := _reason(row, is_trained):
            collector.left_out(row.number, reason)
            continue
        kept["training pairs"] += row.train
        part = TRAIN if row.train else TEST if is_trained else UNSEEN
        comparison = _compare(row, shorter, part, config.tldr.prompt == "title")
        collector.add(
            replace(comparison, user_text=texts[row.worker]) if config.tldr.user_texts else comparison, row.number
        )
    if config.tldr.num_users in TABLE_3:
        collector.notes += compare(CARD, read_rows, "the paper's Table 3", TABLE_3[config.tldr.num_users], kept)
    return collector.finish()


def rank_workers(train_rows: Mapping[str, int], workers: set[str]) -> list[str]:
    """All workers by their number of training rows: `TOP` first, then the others, ties by id."""
    others = sorted(workers.difference(TOP), key=lambda worker: (-train_rows.get(worker, 0), worker))
    return [*TOP, *others]


def _collect(collector: Collector, path: str) -> tuple[list[_ShownPair], Counter[str]]:
    """(rows with the paper's policies, counts of all rows by part)."""
    rows: list[_ShownPair] = []
    read_rows: Counter[str] = Counter()
    for number, row in enumerate(_rows(path), start=1):
        try:
            if row.values is None:
                raise DataError(row.fault)
            train = _is_train(row.values.get("split"))
            read_rows["train rows" if train else "validation rows"] += 1
            shown_pair = _parse(row.values, number, row.origin, train)
        except DataError as error:
            collector.bad(number, row, str(error))
        else:
            if shown_pair is None:
                collector.left_out(number, POLICY)
            else:
                rows.append(shown_pair)
    return rows, read_rows


def _rows(path: str) -> Iterator[Row]:
    folder = Path(path).expanduser()
    if not folder.is_dir() or (folder / "dataset_dict.json").is_file():
        return chain(*(read_table(path, part, "comparisons") for part in ("train", "validation")))
    inner = folder / "comparisons"
    batches = sorted((inner if inner.is_dir() else folder).glob("*.json"))
    if not batches:
        raise DataError(f"{path}: holds no batches of comparisons (*.json)")
    return chain(*(read_table(str(batch)) for batch in batches))


def _is_train(split: object) -> bool:
    if split not in ("train", "valid1", "valid2"):
        raise DataError(f"'split' must be 'train', 'valid1' or 'valid2', got {shown(split)}")
    return split == "train"


def _parse(values: Mapping[str, object], number: int, origin: str, train: bool) -> _ShownPair | None:
    """The summaries of a row; `None` if a policy is not one of the paper's. Raises `DataError`."""
    summaries = values.get("summaries")
    if not isinstance(summaries, list) or len(summaries) != 2 or not all(isinstance(s, Mapping) for s in summaries):
        raise DataError("'summaries' must be a list of two objects with 'text' and 'policy'")
    policies = [require_text("summaries.policy", summary.get("policy")) for summary in summaries]
    if not all(map(_is_paper_policy, policies)):
        return None
    info = values.get("info")
    if not isinstance(info, Mapping):
        raise DataError(f"'info' must be an object, got {kind(info)}")
    post = "post" if info.get("post") is not None else "article"
    subreddit, title, body = (text_or_blank(f"info.{name}", info.get(name)) for name in ("subreddit", "title", post))
    first, second = (text_or_blank(f"summaries[{i}].text", s.get("text")) for i, s in enumerate(summaries))
    worker = require_text("worker", values.get("worker"))
    head = f"SUBREDDIT: r/{subreddit}\nTITLE: {title}\n"
    return _ShownPair(number, origin, train, worker, head, f"POST: {body}\n", (first, second))


def _is_paper_policy(policy: str) -> bool:
    return "sup" in policy and "ppo" not in policy and "cnn" not in policy


def _reason(row: _ShownPair, is_trained: bool) -> str:
    """Why a row is left out, or ""."""
    if row.train and not is_trained:
        return OTHERS
    if row.texts[0] == row.texts[1]:
        return SAME
    if not all(text.strip() for text in row.texts):
        return EMPTY
    # counts the complete post even if the prompt is the title, so that both have the same comparisons
    return LONG if len(_prompt(row)) + max(map(len, row.texts)) > LONGEST else ""


def _prompt(row: _ShownPair, title_only: bool = False) -> str:
    return f"{row.head}{'' if title_only else row.post}TL;DR: "


def _compare(row: _ShownPair, shorter: bool, part: str, title_only: bool) -> Comparison:
    first, second = row.texts
    difference = len(first) - len(second)
    first_is_liked = difference <= 0 if shorter else difference >= 0
    return Comparison(
        row.worker,
        _prompt(row, title_only),
        *((first, second) if first_is_liked else (second, first)),
        metadata={"split": part, "prefers": _preference(shorter), "character_difference": abs(difference)},
        origin=row.origin,
    )


def _preference(shorter: bool) -> str:
    return "shorter" if shorter else "longer"
