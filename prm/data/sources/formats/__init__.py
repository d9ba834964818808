"""Formats of logs whose rows do not hold one judgement in one column each; one module per format.

A module has `TITLE`, `SAYS` (what becomes of its columns, in words), `READS` (columns that nothing else reads),
`COLUMNS` (our fields, and the columns that may hold them), `is_like` and `unfold`: a row of the format becomes
judgements, which are rows that our kinds of feedback read.
"""

from typing import Any

from prm.data.sources.formats import arena, argilla, fastchat, label_studio, openai

WITH_PLAIN_ROWS = ("label_studio",)  # whose rows may be judgements as they stand
FORMATS: dict[str, Any] = {
    "arena": arena,
    "fastchat": fastchat,
    "label_studio": label_studio,
    "argilla": argilla,
    "openai": openai,
}
