"""`policy prompts` draws the prompts that a protocol of the paper judges."""

from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from policy.judging.answer_files import PromptRow
from policy.judging.protocols import EXAMPLES, Example
from prm.data.comparison import Comparison
from prm.data.sources import read_feedback
from prm.data.sources.public.prism_splits import judged_set, other_turns, shortfalls
from prm.data.splits import never_trained_on
from prm.errors import DataError, counted
from prm.io.tables import kind, write_jsonl
from prm.io.yaml_settings import feedback_config
from prm.report import show

_KINDS: dict[str, type] = {"dialogue": str, "turn": int, "system_string": str, "open_feedback": str}


def prompts_command(args: Namespace) -> None:
    """Draw the prompts, write them, and print what the log has too little of, and the path."""
    given = {"source": "pairs" if Path(args.log).is_file() else "prism", **args.settings.get("data", {})}
    log = read_feedback(feedback_config(given, args.log)).comparisons
    check_described(log)
    judged = judged_set(log, args.seed, args.people, args.samples)
    write_jsonl(args.output, prompt_rows(judged, log))
    show(*(f"warning: {line}" for line in shortfalls(judged, args.people, args.samples)))
    users = counted(len({c.user_id for c in judged}), "user")
    print(f"{args.output}: {counted(len(judged), 'prompt')} of {users}")
    print(f"next: policy sample RUN {args.output}")


def check_described(log: Sequence[Comparison]) -> None:
    """Raise `DataError` naming file, line and field unless metadata says all that the judge needs."""
    for c in filter(never_trained_on, log):
        for name, of in _KINDS.items():
            if not isinstance(value := c.metadata.get(name), of) or isinstance(value, bool):
                what = {str: "text", int: "a whole number"}[of]
                raise DataError(f"{c.origin}: metadata '{name}' must be {what}, got {kind(value)}")


def prompt_rows(judged: Sequence[Comparison], log: Sequence[Comparison]) -> Iterator[dict[str, object]]:
    """Rows for `policy sample`, and with the chosen response for `policy judge`, in the order of `judged`."""
    by_user: dict[str, list[Comparison]] = defaultdict(list)
    for c in log:
        by_user[c.user_id].append(c)
    for c in judged:
        others = other_turns(by_user[c.user_id], c, EXAMPLES)
        own = c.metadata["dialogue"]
        examples = [Example(other, other.metadata.get("dialogue") == own).to_row() for other in others]
        row = PromptRow(c.prompt, c.user_id, c.user_text, metadata={**c.metadata, "examples": examples})
        yield row.to_row() | {"response": c.chosen}
