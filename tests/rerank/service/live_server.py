"""A service on a port of its own, for code that speaks HTTP."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from prm.scoring.scorer import Scorer
from rerank.service.engine import Engine
from rerank.service.http.app import build_app
from rerank.service.store import Store


@contextmanager
def serving(run: Path, store: str) -> Iterator[tuple[str, str]]:
    """Serve a run on loopback for a while; yields (its address, an API key)."""
    engine = Engine(Scorer.from_pretrained(run, device="cpu"), Store(store))
    key, app = engine.store.add_key(""), build_app(engine)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the service did not start"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}", key
    finally:
        server.should_exit = True
        thread.join()
