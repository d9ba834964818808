"""A service on a tiny run: users of the run prefer responses with "king" or without."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
from starlette.testclient import TestClient

from prm.config import TrainConfig
from prm.io.tables import write_jsonl
from prm.scoring.scorer import Scorer
from rerank.service.config import ServiceConfig
from rerank.service.engine import Engine
from rerank.service.http.app import build_app
from rerank.service.store import Store
from tests.planted import opposed_people
from tests.postgres import Server, open_server
from tests.tiny_runs import config_of, train_any

MakeEngine = Callable[..., Engine]
DATABASES = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]
on_both = pytest.mark.parametrize("store_url", DATABASES, indirect=True)


@pytest.fixture(scope="session")
def run_of(backbone_of: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Function from `bayes` or `linear` (individual heads) to a tiny run of that kind, trained once."""
    runs: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in runs:
            folder = tmp_path_factory.mktemp(f"serve-{kind}")
            write_jsonl(folder / "log.jsonl", opposed_people(40, 0, people=4))
            config = cast(TrainConfig, config_of(kind, backbone_of("llama"), folder))
            config.backbone.max_length = 200
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("PRM_CACHE", str(folder / "cache"))
                runs[kind] = train_any(kind, config)
        return runs[kind]

    return get


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A PostgreSQL server."""
    with open_server() as server:
        yield server


@pytest.fixture
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a new store: SQLite, or PostgreSQL where a test is `on_both`."""
    if getattr(request, "param", "sqlite") == "postgres":
        server: Server = request.getfixturevalue("postgres")
        return server.url()
    return f"sqlite:///{tmp_path}/store/store.db"


@pytest.fixture
def make_engine(run_of: Callable[[str], Path], store_url: str) -> Iterator[MakeEngine]:
    """Function that makes engines on one store; they are closed at the end."""
    made: list[Engine] = []

    def make(kind: str = "bayes", run: Path | None = None, **settings: object) -> Engine:
        scorer = Scorer.from_pretrained(run or run_of(kind), device="cpu")
        made.append(Engine(scorer, Store(store_url), ServiceConfig(**settings)))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for engine in made:
        engine.close()


@pytest.fixture
def engine(make_engine: MakeEngine) -> Engine:
    return make_engine()


@pytest.fixture
def client(engine: Engine) -> Iterator[TestClient]:
    """A client of the service on loopback, without a key."""
    with TestClient(build_app(engine), base_url="http://localhost") as client:
        yield client


def until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until something holds; fails if it does not in time."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.02)
