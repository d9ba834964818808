"""Small runs, and rows to score, for the tests of jobs."""

from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import pytest

from prm.io.tables import write_jsonl
from tests.planted import opposed_people
from tests.tiny_runs import config_of, small_log, train_any


class ScoredRow(TypedDict, total=False):
    """A row to score, with what is added."""

    user_id: str | None
    user_text: str
    prompt: str
    response: str
    responses: list[str]
    place: int
    n: float | None
    mixed: str
    only: object
    big: str | None
    rewards: list[float]
    reward: float
    known_user: bool
    error: str
    ranking: list[dict[str, str | float]]


@pytest.fixture(scope="session")
def run_of(backbone_of: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Function from a kind of `tests.tiny_runs` to a trained run, made once."""
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            write_jsonl(folder / "log.jsonl", small_log())
            made[kind] = train_any(kind, config_of(kind, backbone_of("llama"), folder))
        return made[kind]

    return get


def rows_to_score(n: int = 40) -> list[ScoredRow]:
    """Rows of three kinds of users: two known ones, one that the run does not know, and none; texts come again."""
    log = opposed_people(n // 4, 3, people=4)
    rows: list[ScoredRow] = []
    for i, c in enumerate(log):
        user = [None, "p0", "p1", "nobody"][i % 4]
        rows.append({"user_id": user, "prompt": str(c.prompt), "responses": [c.chosen, c.rejected], "place": i})
    return rows
