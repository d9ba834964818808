"""Cards of public data sets, and a check of the counts read against those of the paper."""

from collections.abc import Mapping
from dataclasses import dataclass

from prm.io.run_files import CardRecord


@dataclass(frozen=True)
class Card:
    """A public data set, for the account of its rows, `run.json` and the model card.

    Args:
        about: what the rows are, in a few words.
        counts: published sizes of the complete data set, to see whether all of it was read.
    """

    name: str
    licence: str
    citation: str
    about: str
    counts: Mapping[str, int]

    @property
    def line(self) -> str:
        """The card in one line."""
        return f"data: {self.name}, {self.about} ({self.citation}; licence: {self.licence})"

    def record(self) -> CardRecord:
        """The card for `run.json`."""
        card: CardRecord = {"name": self.name, "licence": self.licence, "citation": self.citation}
        return card | {"about": self.about, "counts": dict(self.counts)}


def compare(
    card: Card, read: Mapping[str, int], table: str, paper: Mapping[str, int], kept: Mapping[str, int]
) -> list[str]:
    """A note on whether the counts match the paper's; none if only a part of the data set was read.

    Args:
        read: sizes read, under the names of the card's `counts`.
        table: source of the paper's counts.
        paper, kept: the paper's counts, and ours under the same names.
    """
    if any(read.get(name) != n for name, n in card.counts.items()):
        return []
    wrong = [f"{name} {kept.get(name, 0):,}, there {n:,}" for name, n in paper.items() if kept.get(name, 0) != n]
    if wrong:
        return [f"warning: this is the complete data set, but its counts are not those of {table}: {'; '.join(wrong)}"]
    return [f"the complete data set: its counts are those of {table}"]
