"""PRISM: conversations of people with language models, and a survey of these people (Kirk et al., 2024)."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prm.config import FeedbackConfig
from prm.data.comparison import Comparison, Message, require_text
from prm.data.sources.collector import Collector, Feedback
from prm.data.sources.dataset_cards import Card, compare
from prm.data.sources.fields import text_or_blank
from prm.data.sources.pairing import SAME
from prm.data.sources.public.prism_splits import paper_parts, part_sizes
from prm.data.splits import TEST, TRAIN, UNSEEN
from prm.errors import DataError
from prm.io.rows import Row
from prm.io.tables import kind, read_table

RULE = "the chosen answer of a turn against each other one, after the conversation that led there"
LONGEST = 2_300  # characters of the user's message and one response together
LONG, EMPTY = f"more than {LONGEST} characters", "an empty text"
NO_PAIR, NO_TALK = "no turn with two answers that fit", "by somebody without a completed conversation"
CARD = Card(
    name="PRISM",
    licence="CC BY 4.0 for what people wrote, CC BY-NC 4.0 for the models' answers",
    citation="Kirk et al., The PRISM Alignment Dataset, NeurIPS 2024, arXiv:2404.16019",
    about="people from 75 countries on answers in their own conversations",
    counts={"survey rows": 1_500, "conversations": 8_011},
)
PAPER = {"people": 1_396, "seen people": 1_234, "unseen people": 162, "dialogues": 8_009}
# the survey's columns and their names in the paper's prompt, in its order
_FIELDS = {
    "self_description": "self_description",
    "age": "age",
    "gender": "gender",
    "education": "education",
    "employment_status": "employment",
    "marital_status": "marital",
    "english_proficiency": "english_proficiency",
}


@dataclass(frozen=True)
class _Person:
    """A row of the survey: the user's text, and the system string that they gave to all models."""

    text: str
    system_string: str


@dataclass
class _Turn:
    """One turn: the user's message, the first chosen response, and all others."""

    number: int
    message: str | None = None
    chosen: str | None = None
    rejected: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """True if every response is within the limit: the paper's rule for a turn."""
        if self.message is None or self.chosen is None or not self.rejected:
            return False
        return len(self.message) + max(len(response) for response in (self.chosen, *self.rejected)) <= LONGEST


@dataclass
class _Dialogue:
    """One conversation, with `number` and `origin` of its row, and the user's comment after it."""

    number: int
    origin: str
    user: str
    name: str
    turns: list[_Turn]
    open_feedback: str


def read(config: FeedbackConfig) -> Feedback:
    """Read a folder with `survey.jsonl` and `conversations.jsonl` as published, or the hub id
    `HannahRoseKirk/prism-alignment`.

    A prompt is the conversation so far, with the chosen responses, as chat messages, untruncated. The survey becomes
    `user_text`. The length limit applies to each pair. Metadata `split` holds the paper's split: a tenth of the users,
    and users with a single dialogue, are `unseen`; of the others' n dialogues `int(0.9 n)` are `train`.
    Metadata: `split`, `dialogue`, `turn`; for judges `system_string` and `open_feedback`, "" if there is none. Raises
    `DataError`.
    """
    collector = Collector(config, RULE, CARD)
    people, surveyed = _survey(config.path)
    dialogues, conversations = _dialogues(collector, config.path, people)
    parts = paper_parts(_eligible(people, dialogues))
    for dialogue in dialogues:
        user_parts = parts.get(dialogue.user, {})
        # a dialogue that the paper drops is not in its draw: its pairs are held out
        part = user_parts.get(dialogue.name, TEST if TRAIN in user_parts.values() else UNSEEN)
        pairs = list(_pairs(collector, dialogue, people[dialogue.user], part))
        for pair in pairs:
            collector.add(pair, dialogue.number)
        if not pairs:
            collector.left_out(dialogue.number, NO_PAIR)
    seen = sum(TRAIN in user_parts.values() for user_parts in parts.values())
    kept = {"people": len(parts), "seen people": seen, "unseen people": len(parts) - seen}
    kept["dialogues"] = sum(map(len, parts.values()))
    read_rows = {"survey rows": surveyed, "conversations": conversations}
    collector.notes.append(f"people without a completed conversation: {surveyed - len(people)}")
    collector.notes += compare(CARD, read_rows, "the paper's split", PAPER, kept)
    feedback = collector.finish()
    feedback.notes += part_sizes(feedback.comparisons)
    return feedback


def _survey(path: str) -> tuple[dict[str, _Person], int]:
    """(users with a completed conversation, in the survey's order; number of rows). Raises `DataError`."""
    people: dict[str, _Person] = {}
    rows = 0
    for row in _rows(path, "survey"):
        rows += 1
        try:
            if row.values is None:
                raise DataError(row.fault)
            user = require_text("user_id", row.values.get("user_id"))
            completed = row.values.get("num_completed_conversations")
            if not isinstance(completed, int):
                raise DataError(f"'num_completed_conversations' must be a whole number, got {kind(completed)}")
            if completed:
                people[user] = _Person(_user_text(row.values), _text(row.values, "system_string"))
        except DataError as error:
            raise DataError(f"{row.origin}: {error}") from None
    return people, rows


def _user_text(values: Mapping[str, object]) -> str:
    """The user's text, in the paper's form; columns without a value are left out."""
    ranks = values.get("order_stated_prefs")
    if not isinstance(ranks, Mapping):
        raise DataError(f"'order_stated_prefs' must be an object, got {kind(ranks)}")
    fields: dict[str, object] = {"preference": ", ".join(name for name, rank in ranks.items() if rank in (1, 2, 3))}
    fields |= {name: values.get(column) or "" for column, name in _FIELDS.items()}
    parts = [f"{name}: {text}" for name, text in fields.items() if str(text).strip()]
    text = f"User textual information: {'; '.join(parts)}" if parts else ""
    return text_or_blank("the survey's text", text)


def _text(values: Mapping[str, object], name: str) -> str:
    """A field's text; "" for null. Raises `DataError` for a field that is missing or no text."""
    if name not in values:
        raise DataError(f"'{name}' is missing")
    return "" if values[name] is None else text_or_blank(name, values[name])


def _dialogues(collector: Collector, path: str, people: Mapping[str, _Person]) -> tuple[list[_Dialogue], int]:
    """(dialogues of users in `people`, number of rows)."""
    dialogues, number = [], 0
    for number, row in enumerate(_rows(path, "conversations"), start=1):
        user = None
        try:
            if row.values is None:
                raise DataError(row.fault)
            checked = [require_text(name, row.values.get(name)) for name in ("user_id", "conversation_id")]
            user, name = checked
            turns = _turns(row.values.get("conversation_history"))
            open_feedback = _text(row.values, "open_feedback")
        except DataError as error:
            collector.bad(number, row, str(error), user)
            continue
        if user in people:
            dialogues.append(_Dialogue(number, row.origin, user, name, turns, open_feedback))
        else:
            collector.left_out(number, NO_TALK)
    return dialogues, number


def _rows(path: str, table: str) -> Iterator[Row]:
    folder = Path(path).expanduser()
    return read_table(str(folder / f"{table}.jsonl")) if folder.is_dir() else read_table(path, table=table)


def _turns(history: object) -> list[_Turn]:
    """The turns of a conversation, in order. Raises `DataError`."""
    if not isinstance(history, list):
        raise DataError(f"'conversation_history' must be a list, got {kind(history)}")
    turns: dict[int, _Turn] = {}
    for i, entry in enumerate(history):
        key = f"conversation_history[{i}]"
        if not isinstance(entry, Mapping) or not isinstance(entry.get("turn"), int):
            raise DataError(f"'{key}' must be an object with a whole number as 'turn'")
        content = text_or_blank(f"{key}.content", entry.get("content"))
        if entry.get("role") not in ("user", "model"):
            raise DataError(f"'{key}.role' must be 'user' or 'model', got {kind(entry.get('role'))}")
        turn = turns.setdefault(entry["turn"], _Turn(entry["turn"]))
        if entry["role"] == "user":
            turn.message = content if turn.message is None else turn.message
        elif entry.get("if_chosen"):
            turn.chosen = content if turn.chosen is None else turn.chosen
        else:
            turn.rejected = (*turn.rejected, content)
    return [turns[number] for number in sorted(turns)]


def _eligible(people: Mapping[str, _Person], dialogues: Sequence[_Dialogue]) -> dict[str, list[str]]:
    """The dialogues in the paper's draw (with a turn that fits), by user in the survey's order."""
    names: dict[str, list[str]] = defaultdict(list)
    for dialogue in dialogues:
        if any(turn.fits for turn in dialogue.turns):
            names[dialogue.user].append(dialogue.name)
    return {person: names[person] for person in people if person in names}


def _pairs(collector: Collector, dialogue: _Dialogue, person: _Person, part: str) -> Iterator[Comparison]:
    said = {"system_string": person.system_string, "open_feedback": dialogue.open_feedback}
    history: list[Message] = []
    for turn in dialogue.turns:
        message, chosen = turn.message or "", turn.chosen or ""
        if message.strip():
            history.append(Message("user", message))
        for rejected in turn.rejected if turn.chosen is not None else ():
            if reason := _reason(message, chosen, rejected):
                collector.pairs[reason] += 1
                continue
            yield Comparison(
                dialogue.user,
                tuple(history),
                chosen,
                rejected,
                user_text=person.text,
                metadata={"split": part, "dialogue": dialogue.name, "turn": turn.number, **said},
                conversation_id=dialogue.name,
                origin=dialogue.origin,
            )
        if chosen.strip():
            history.append(Message("assistant", chosen))


def _reason(message: str, chosen: str, rejected: str) -> str:
    """Why a pair is left out, or ""."""
    if not (message.strip() and chosen.strip() and rejected.strip()):
        return EMPTY
    if chosen == rejected:
        return SAME
    return LONG if len(message) + max(len(chosen), len(rejected)) > LONGEST else ""
