"""PRISM: people's conversations with language models, with a survey of who they are (Kirk et al., 2024)."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prm.config import FeedbackConfig
from prm.data.comparison import Comparison, Message, require_text
from prm.data.sources.dataset_cards import Card, compare
from prm.data.sources.feedback import Collector, Feedback
from prm.data.sources.fields import text_or_blank
from prm.data.sources.pairing import SAME
from prm.data.sources.public.prism_splits import paper_parts, part_sizes
from prm.data.splits import TEST, TRAIN, UNSEEN
from prm.errors import DataError
from prm.io.tables import Row, kind, read_table

RULE = "the chosen answer of a turn against each other one, after the conversation that led there"
LONGEST = 2_300  # characters of what the person says and one answer together
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
# the survey's columns in the order of the paper's prompt, under the names that it gives them
_FIELDS = {
    "self_description": "self_description",
    "age": "age",
    "gender": "gender",
    "education": "education",
    "employment_status": "employment",
    "marital_status": "marital",
    "english_proficiency": "english_proficiency",
}


@dataclass
class _Turn:
    """What was said in one turn: the person, the first chosen answer, all the others."""

    number: int
    said: str | None = None
    chosen: str | None = None
    rejected: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """True where every answer is within the limit: the paper's rule for a turn."""
        if self.said is None or self.chosen is None or not self.rejected:
            return False
        return len(self.said) + max(len(answer) for answer in (self.chosen, *self.rejected)) <= LONGEST


@dataclass
class _Dialogue:
    """One conversation; `number` and `origin` of its row."""

    number: int
    origin: str
    user: str
    name: str
    turns: list[_Turn]


def read(config: FeedbackConfig) -> Feedback:
    """The folder with `survey.jsonl` and `conversations.jsonl` as published, or the hub id
    `HannahRoseKirk/prism-alignment`.

    A prompt is the conversation so far, along the chosen answers, as chat messages; nothing of it is cut here. The
    survey becomes `user_text`. The length rule goes by pair. The paper's split stands in metadata `part`: a tenth of
    the people, and whoever has a single dialogue, are `unseen`; of the others' dialogues `int(0.9 n)` are `train`.
    Metadata: `part`, `dialogue`, `turn`. Raises `DataError`.
    """
    found = Collector(config, RULE, CARD)
    people, surveyed = _survey(config.path)
    dialogues, conversations = _dialogues(found, config.path, people)
    parts = paper_parts(_eligible(people, dialogues))
    for dialogue in dialogues:
        own = parts.get(dialogue.user, {})
        # a dialogue that the paper drops whole takes no part in its draw: what pairs it has are held out
        part = own.get(dialogue.name, TEST if TRAIN in own.values() else UNSEEN)
        pairs = list(_pairs(found, dialogue, people[dialogue.user], part))
        for pair in pairs:
            found.add(pair, dialogue.number)
        if not pairs:
            found.left_out(dialogue.number, NO_PAIR)
    seen = sum(TRAIN in own.values() for own in parts.values())
    kept = {"people": len(parts), "seen people": seen, "unseen people": len(parts) - seen}
    kept["dialogues"] = sum(map(len, parts.values()))
    read_rows = {"survey rows": surveyed, "conversations": conversations}
    found.notes.append(f"people without a completed conversation: {surveyed - len(people)}")
    found.notes += compare(CARD, read_rows, "the paper's split", PAPER, kept)
    feedback = found.finish()
    feedback.notes += part_sizes(feedback.comparisons)
    return feedback


def _survey(path: str) -> tuple[dict[str, str], int]:
    """User text of everybody with a completed conversation, in the survey's order, and the rows. Raises `DataError`."""
    people: dict[str, str] = {}
    rows = 0
    for row in _rows(path, "survey"):
        rows += 1
        try:
            if row.values is None:
                raise DataError(row.fault)
            require_text("user_id", row.values.get("user_id"))
            completed = row.values.get("num_completed_conversations")
            if not isinstance(completed, int):
                raise DataError(f"'num_completed_conversations' must be a whole number, got {kind(completed)}")
            if completed:
                people[row.values["user_id"]] = _user_text(row.values)
        except DataError as error:
            raise DataError(f"{row.origin}: {error}") from None
    return people, rows


def _user_text(values: Mapping[str, Any]) -> str:
    """What a person says of themselves, in the paper's words; a column without a value is left out."""
    ranks = values.get("order_stated_prefs")
    if not isinstance(ranks, Mapping):
        raise DataError(f"'order_stated_prefs' must be an object, got {kind(ranks)}")
    said = {"preference": ", ".join(name for name, rank in ranks.items() if rank in (1, 2, 3))}
    said |= {name: values.get(column) or "" for column, name in _FIELDS.items()}
    parts = [f"{name}: {text}" for name, text in said.items() if str(text).strip()]
    text = f"User textual information: {'; '.join(parts)}" if parts else ""
    return text_or_blank("the survey's text", text)


def _dialogues(found: Collector, path: str, people: Mapping[str, str]) -> tuple[list[_Dialogue], int]:
    """The dialogues by somebody in the survey with a completed one, and how many rows there are."""
    dialogues, number = [], 0
    for number, row in enumerate(_rows(path, "conversations"), start=1):
        user = None
        try:
            if row.values is None:
                raise DataError(row.fault)
            for name in ("user_id", "conversation_id"):
                require_text(name, row.values.get(name))
            user = row.values["user_id"]
            turns = _turns(row.values.get("conversation_history"))
        except DataError as error:
            found.bad(number, row, str(error), user)
            continue
        if user in people:
            dialogues.append(_Dialogue(number, row.origin, user, row.values["conversation_id"], turns))
        else:
            found.left_out(number, NO_TALK)
    return dialogues, number


def _rows(path: str, table: str) -> Iterator[Row]:
    folder = Path(path).expanduser()
    return read_table(str(folder / f"{table}.jsonl")) if folder.is_dir() else read_table(path, table=table)


def _turns(history: Any) -> list[_Turn]:
    """The turns of a conversation, in their order. Raises `DataError`."""
    if not isinstance(history, list):
        raise DataError(f"'conversation_history' must be a list, got {kind(history)}")
    turns: dict[int, _Turn] = {}
    for i, entry in enumerate(history):
        place = f"conversation_history[{i}]"
        if not isinstance(entry, Mapping) or not isinstance(entry.get("turn"), int):
            raise DataError(f"'{place}' must be an object with a whole number as 'turn'")
        content = text_or_blank(f"{place}.content", entry.get("content"))
        if entry.get("role") not in ("user", "model"):
            raise DataError(f"'{place}.role' must be 'user' or 'model', got {kind(entry.get('role'))}")
        turn = turns.setdefault(entry["turn"], _Turn(entry["turn"]))
        if entry["role"] == "user":
            turn.said = content if turn.said is None else turn.said
        elif entry.get("if_chosen"):
            turn.chosen = content if turn.chosen is None else turn.chosen
        else:
            turn.rejected = (*turn.rejected, content)
    return [turns[number] for number in sorted(turns)]


def _eligible(people: Mapping[str, str], dialogues: Sequence[_Dialogue]) -> dict[str, list[str]]:
    """The dialogues that enter the paper's draw, by person in the survey's order: those with a turn that fits."""
    names: dict[str, list[str]] = defaultdict(list)
    for dialogue in dialogues:
        if any(turn.fits for turn in dialogue.turns):
            names[dialogue.user].append(dialogue.name)
    return {person: names[person] for person in people if person in names}


def _pairs(found: Collector, dialogue: _Dialogue, user_text: str, part: str) -> Iterator[Comparison]:
    history: list[Message] = []
    for turn in dialogue.turns:
        said, chosen = turn.said or "", turn.chosen or ""
        if said.strip():
            history.append(Message("user", said))
        for rejected in turn.rejected if turn.chosen is not None else ():
            if reason := _reason(said, chosen, rejected):
                found.pairs[reason] += 1
                continue
            yield Comparison(
                dialogue.user,
                tuple(history),
                chosen,
                rejected,
                user_text=user_text,
                metadata={"part": part, "dialogue": dialogue.name, "turn": turn.number},
                conversation_id=dialogue.name,
                origin=dialogue.origin,
            )
        if chosen.strip():
            history.append(Message("assistant", chosen))


def _reason(said: str, chosen: str, rejected: str) -> str:
    """Why no comparison comes of a pair, or ""."""
    if not (said.strip() and chosen.strip() and rejected.strip()):
        return EMPTY
    if chosen == rejected:
        return SAME
    return LONG if len(said) + max(len(chosen), len(rejected)) > LONGEST else ""
