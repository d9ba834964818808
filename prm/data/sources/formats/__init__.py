"""Formats of logs whose rows do not hold one judgement in one column each; one module per format (see `Format`)."""

from collections.abc import Collection, Mapping, Set
from typing import Protocol

from prm.data.sources.formats import arena, argilla, fastchat, label_studio, openai
from prm.data.sources.formats.judgement import Judgement
from prm.io.rows import Row


class Format(Protocol):
    """What the module of a format has."""

    @property
    def TITLE(self) -> str:  # noqa: N802
        """Its name, for the account."""

    @property
    def SAYS(self) -> str:  # noqa: N802
        """What becomes of its columns, in words."""

    @property
    def READS(self) -> Set[str]:  # noqa: N802
        """Columns that nothing else reads."""

    @property
    def COLUMNS(self) -> Mapping[str, tuple[str, ...]]:  # noqa: N802
        """Our fields, and the columns that may hold them."""

    def is_like(self, names: Collection[str]) -> bool:
        """Whether the columns are those of this format."""

    def unfold(self, row: Row) -> list[Judgement]:
        """The judgements of a row, as rows that our kinds of feedback read. Raises `DataError`."""


WITH_PLAIN_ROWS = ("label_studio",)  # whose rows may be judgements as they stand
FORMATS: dict[str, Format] = {
    "arena": arena,
    "fastchat": fastchat,
    "label_studio": label_studio,
    "argilla": argilla,
    "openai": openai,
}
