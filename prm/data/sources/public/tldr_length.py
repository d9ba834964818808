"""Reddit TL;DR summaries compared by simulated users who prefer longer or shorter ones (paper, section 5.1)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from prm.config import FeedbackConfig, TldrConfig
from prm.data.baselines import count_words
from prm.data.comparison import Comparison, require_text
from prm.data.sources.collector import Collector, Feedback
from prm.data.sources.dataset_cards import Card
from prm.data.sources.public.tldr import draw_tastes, self_descriptions
from prm.data.splits import UNSEEN
from prm.errors import DataError
from prm.io.tables import read_table

RULE = "{} simulated people on every post: {} prefer the summary with fewer words, the others that with more"
EQUAL = "as many words in both"
CARD = Card(
    name="Reddit TL;DR",
    licence="posts CC BY 4.0",
    citation="Völske, Potthast, Syed and Stein, TL;DR: Mining Reddit, 2017; Stiennon et al., NeurIPS 2020",
    about="posts with two summaries each, judged by simulated people",
    counts={"posts": 1_500},
)
_POST = "\n\nPOST:"


def read(config: FeedbackConfig) -> Feedback:
    """Read a folder with `pairs.jsonl`: prompt, response_model and response_reference of each post.

    The users are `length_0`, `length_1` and so on: `tldr.num_users` of them, then `tldr.num_unseen_users` that are
    marked `unseen`. Of the first ten, 4, 5 and 6 prefer the shorter summary. Metadata: the `longer` summary's source
    (`model` or `reference`), the `word_difference`, what the user `prefers` (`longer` or `shorter`), and the `part` of
    unseen users. Raises `DataError`.
    """
    tastes = _tastes(config.tldr.num_users + config.tldr.num_unseen_users)
    texts = self_descriptions(tastes, config.tldr.num_users) if config.tldr.user_texts else [""] * len(tastes)
    collector = Collector(config, RULE.format(len(tastes), sum(tastes)), CARD)
    for number, row in enumerate(read_table(str(Path(config.path) / "pairs.jsonl")), start=1):
        try:
            if row.values is None:
                raise DataError(row.fault)
            comparisons = _compare(row.values, row.origin, config.tldr, list(zip(tastes, texts, strict=True)))
        except DataError as error:
            collector.bad(number, row, str(error))
        else:
            if not comparisons:
                collector.left_out(number, EQUAL)
            for comparison in comparisons:
                collector.add(comparison, number)
    return collector.finish()


def _tastes(people: int) -> list[bool]:
    """Whether each user prefers fewer words.

    `length_1` to `length_9` are the paper's workers 1 to 9, counted from one; `length_0` is worker 10, and `length_10`
    is worker 11, and so on.
    """
    drawn = draw_tastes(max(people, 10))
    return [drawn[9], *drawn[:9], *drawn[10:]][:people]


def _compare(
    values: Mapping[str, object], origin: str, settings: TldrConfig, users: Sequence[tuple[bool, str]]
) -> list[Comparison]:
    """Comparisons of one post by all users, given as (taste, text); none if both summaries have as many words."""
    names = ("prompt", "response_model", "response_reference")
    post, of_model, reference = (require_text(name, values.get(name)) for name in names)
    sides = {"model": of_model, "reference": reference}
    short, long = sorted(sides, key=lambda name: count_words(sides[name]))
    difference = count_words(sides[long]) - count_words(sides[short])
    prompt = post if settings.prompt == "post" else _title(post)
    if difference == 0:
        return []
    metadata = {"longer": long, "word_difference": difference}
    return [
        Comparison(
            f"length_{i}",
            prompt,
            *((sides[short], sides[long]) if shorter else (sides[long], sides[short])),
            metadata=metadata
            | {"prefers": "shorter" if shorter else "longer"}
            | ({"split": UNSEEN} if i >= settings.num_users else {}),
            user_text=text,
            origin=origin,
        )
        for i, (shorter, text) in enumerate(users)
    ]


def _title(prompt: str) -> str:
    head, found, _ = prompt.partition(_POST)
    if not found:
        raise DataError(f"'prompt' has no line that begins with {_POST.strip()!r}: 'data.tldr.prompt' must be 'post'")
    return f"{head}\n\nTL;DR:"
