"""UKPConvArg1: which of two arguments convinces crowd workers more (Habernal and Gurevych, ACL 2016; CC BY 4.0)."""

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from prm.config import FeedbackConfig
from prm.data.comparison import Comparison, require_text
from prm.data.sources.collector import Collector, Feedback
from prm.data.sources.dataset_cards import Card
from prm.data.sources.fields import text_by_id
from prm.data.sources.pairing import SAME
from prm.errors import DataError
from prm.io.rows import Row
from prm.io.tables import read_table

RULE = "each row is one: the argument called more convincing for the debate's title and stance; 'equal' is a tie"

CARD = Card(
    name="UKPConvArg1",
    licence="CC BY 4.0",
    citation="Habernal and Gurevych, Which argument is more convincing?, ACL 2016",
    about="crowd workers on which of two arguments convinces more",
    counts={"debates": 32, "pairs": 16_081},
)

_FIELDS = ("user_id", "debate", "title", "stance", "arg1_id", "arg2_id", "choice")
_CHOICES = {"a1": 1.0, "a2": 0.0, "equal": 0.5}
_CORPUS = "UKPConvArg1-full-XML"


def read(config: FeedbackConfig) -> Feedback:
    """Read the corpus as published, or a folder with `comparisons.jsonl.gz` and `arguments.jsonl`.

    The corpus is `data/UKPConvArg1-full-XML` of the authors' repository, or that repository; its runs of white space
    become one space. Metadata: debate. Raises `DataError`.
    """
    folder = Path(config.path).expanduser()
    corpus = next((f for f in (folder / "data" / _CORPUS, folder / _CORPUS, folder) if any(f.glob("*.xml"))), None)
    texts: dict[str, str] = {}
    rows = _judgements_in_xml(corpus, texts) if corpus else _judgements_in_json(folder, texts)
    collector = Collector(config, RULE, CARD)
    for number, row in enumerate(rows, start=1):
        values = row.values or {}
        try:
            if row.values is None:
                raise DataError(row.fault)
            fields = {name: require_text(name, values.get(name, "")) for name in _FIELDS}
            sides = [texts[fields[name]] for name in ("arg1_id", "arg2_id")]
            if sides[0] == sides[1]:
                collector.left_out(number, SAME)
                continue
            comparison = Comparison(
                fields["user_id"],
                f"{fields['title']}\n{fields['stance']}",
                sides[0],
                sides[1],
                p_chosen=_CHOICES[fields["choice"]],
                chosen_first=True,
                metadata={"debate": fields["debate"]},
                origin=row.origin,
            )
        except KeyError as error:
            collector.bad(number, row, f"no such argument or choice: {error}", values.get("user_id"))
        except DataError as error:
            collector.bad(number, row, str(error), values.get("user_id"))
        else:
            collector.add(comparison, number)
    return collector.finish()


def _judgements_in_json(folder: Path, texts: dict[str, str]) -> Iterator[Row]:
    """The rows of a folder of tables; fills `texts` with the arguments by id."""
    for row in read_table(str(folder / "arguments.jsonl")):
        texts |= text_by_id(row, "arg_id")
    yield from read_table(str(folder / "comparisons.jsonl.gz"))


def _judgements_in_xml(corpus: Path, texts: dict[str, str]) -> Iterator[Row]:
    """A row for each worker's judgement of a pair; fills `texts` with the arguments of the pair by id."""
    for file in sorted(corpus.glob("*.xml")):
        try:
            for _, element in ElementTree.iterparse(file):
                if element.tag == "annotatedArgumentPair":
                    yield from _judgements_of(element, file, texts)
                    element.clear()
        except ElementTree.ParseError as error:
            raise DataError(f"{file}: not valid XML: {error}") from None


def _judgements_of(pair: Element, file: Path, texts: dict[str, str]) -> Iterator[Row]:
    ids = {side: _text(pair, f"{side}/id") for side in ("arg1", "arg2")}
    texts |= {ids[side]: _text(pair, f"{side}/text") for side in ids}
    common = {"debate": file.stem, "title": _text(pair, "debateMetaData/title"), "stance": _text(pair, "arg1/stance")}
    common |= {f"{side}_id": name for side, name in ids.items()}
    for assignment in pair.iterfind("mTurkAssignments/mTurkAssignment"):
        judgement = {"user_id": _text(assignment, "turkID"), "choice": _text(assignment, "value")}
        yield Row(f"{file}, pair {_text(pair, 'id')}", judgement | common)


def _text(element: Element, path: str) -> str:
    return " ".join(element.findtext(path, "").split())
