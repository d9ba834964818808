"""AlpacaEval instructions with responses of many systems, compared by simulated users of four styles."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prm.config import FeedbackConfig
from prm.data.baselines import count_words
from prm.data.comparison import Comparison, require_text
from prm.data.sources.collector import Collector, Feedback
from prm.data.sources.dataset_cards import Card
from prm.data.sources.pairing import SAME
from prm.errors import DataError, shown
from prm.io.tables import kind, read_table

RULE = "each row is two: the people of its axis choose opposite answers (P1 by reading grade, P2 by what was asked for)"
CARD = Card(
    name="AlpacaEval styles",
    licence="CC BY-NC 4.0",
    citation="Li et al., AlpacaEval, 2023; Dubois et al., Length-Controlled AlpacaEval, 2024",
    about="answers of 22 systems, judged by simulated people of four styles",
    counts={"pairs": 3_671, "instructions": 540},
)


def read(config: FeedbackConfig) -> Feedback:
    """Read a folder with `pairs.jsonl` and `responses.jsonl.gz`.

    The users are the row's keys that begin with its axis: `P1A_elementary` and `P1B_expert`, or `P2A_concise` and
    `P2B_informative`. Metadata: `axis`, the instruction's `dataset`, `word_difference`. Raises `DataError`.
    """
    folder = Path(config.path)
    instructions = _instructions(folder / "responses.jsonl.gz")
    collector = Collector(config, RULE, CARD)
    for number, row in enumerate(read_table(str(folder / "pairs.jsonl")), start=1):
        try:
            if row.values is None:
                raise DataError(row.fault)
            comparisons = _compare(row.values, instructions, row.origin)
        except DataError as error:
            collector.bad(number, row, str(error))
        else:
            if not comparisons:
                collector.left_out(number, SAME)
            for comparison in comparisons:
                collector.add(comparison, number)
    return collector.finish()


@dataclass(frozen=True)
class _Instruction:
    prompt: str
    dataset: str
    responses: Mapping[str, object]


def _instructions(path: Path) -> dict[str, _Instruction]:
    """The instructions by id. Raises `DataError` with the line."""
    instructions: dict[str, _Instruction] = {}
    for row in read_table(str(path)):
        try:
            if row.values is None:
                raise DataError(row.fault)
            prompt, dataset = (require_text(name, row.values.get(name)) for name in ("prompt", "dataset"))
            responses = row.values.get("responses")
            if not isinstance(responses, Mapping):
                raise DataError(f"'responses' must be an object, got {kind(responses)}")
        except DataError as error:
            raise DataError(f"{row.origin}: {error}") from None
        instructions[str(row.values.get("prompt_id"))] = _Instruction(prompt, dataset, responses)
    return instructions


def _compare(values: Mapping[str, object], instructions: Mapping[str, _Instruction], origin: str) -> list[Comparison]:
    """The comparison by each user of the row's axis; none if both responses are the same text."""
    axis, *models = (require_text(name, values.get(name)) for name in ("axis", "model_a", "model_b"))
    users = [name for name in values if name.startswith(axis)]
    if not users:
        raise DataError(f"no key begins with the axis {shown(axis)}: no user compares this pair")
    instruction = instructions.get(str(values.get("prompt_id")))
    if instruction is None:
        raise DataError(f"no such instruction: {shown(values.get('prompt_id'))}")
    a, b = (require_text(f"responses.{model}", instruction.responses.get(model)) for model in models)
    if a == b:
        return []
    metadata = {
        "axis": axis,
        "dataset": instruction.dataset,
        "word_difference": abs(count_words(a) - count_words(b)),
    }
    comparisons = []
    for user in users:
        if values[user] not in ("a", "b"):
            raise DataError(f"{user!r} must be 'a' or 'b', got {shown(values[user])}")
        chosen, rejected = (a, b) if values[user] == "a" else (b, a)
        comparisons.append(Comparison(user, instruction.prompt, chosen, rejected, metadata=metadata, origin=origin))
    return comparisons
