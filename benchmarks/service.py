"""The live service, against the same work in one process: ranking over HTTP, kept features, updates, feedback."""

import gc
import itertools
import json
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.client import HTTPConnection
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import uvicorn
from sqlalchemy import insert

from benchmarks.ratio import Ratio
from benchmarks.scoring import words
from benchmarks.users import bayes_scorer
from prm.data.sources.store.schema import comparisons, feedback, people
from rerank.service.config import ServiceConfig
from rerank.service.engine import Engine
from rerank.service.http.app import build_app
from rerank.service.judgements import Judgement
from rerank.service.store import Store
from rerank.service.texts import TextRequest

_ROWS_AT_ONCE = 10_000
_TIMEOUT = 600.0  # seconds: all clients' texts wait for one another


class Request(NamedTuple):
    """Responses to rank."""

    prompt: str
    responses: list[str]
    user: str

    @property
    def body(self) -> bytes:
        """Of `/v2/rerank`."""
        return json.dumps({"query": self.prompt, "documents": self.responses, "user": self.user}).encode()


def ratios(
    clients: int = 32,
    responses: int = 16,
    length: int = 60,
    requests: int = 200,
    many: int = 100_000,
    few: int = 100,
    backbone: str = "smollm2-135m",
) -> Iterator[Ratio]:
    """Throughput over `Scorer.score_batch`, a request whose features are kept over its heads, many people over few.

    Args:
        clients: that rank at the same time, each one request.
        responses, length: of a request: their number, and the words of each.
        requests: of which the median and the 99th percentile are taken, and updates of one measurement.
        many, few: people in the store that takes the updates.
    """
    with tempfile.TemporaryDirectory() as folder:
        yield from _over_http(Path(folder), clients, responses, length, requests, backbone)
        gc.collect()
        yield from _updates(Path(folder), requests, many, few, backbone)


def _over_http(
    folder: Path, clients: int, responses: int, length: int, requests: int, backbone: str
) -> Iterator[Ratio]:
    with served(folder, backbone) as (engine, port), ProcessPoolExecutor(1, get_context("spawn")) as other:
        draw = torch.Generator().manual_seed(0)

        def fresh() -> list[Request]:
            return [
                Request(words(12, draw), [words(length, draw) for _ in range(responses)], f"u{i}")
                for i in range(clients)
            ]

        batch = fresh()

        def in_one_process() -> None:
            prompts = [r.prompt for r in batch for _ in r.responses]
            texts = [text for r in batch for text in r.responses]
            engine.scorer.score_batch(prompts, texts, [None] * len(texts))

        def over_http() -> None:
            other.submit(send, port, [[r.body] for r in batch]).result()
            batch[:] = fresh()

        yield Ratio(
            f"{clients} clients, each with {responses} new responses of {length} tokens: `score_batch` / the service",
            in_one_process,
            over_http,
            at_least=0.9,
            repeats=5,
        )
        one = Request("what of kings?", [words(length, draw) for _ in range(responses)], "u0")
        for name, share in (("median", 0.5), ("99th percentile", 0.99)):
            yield Ratio(
                f"{responses} responses with kept features, {name}: a request / its heads",
                lambda share=share: float(  # type: ignore[misc]
                    np.quantile(other.submit(send, port, [[one.body] * requests]).result(), share)
                ),
                lambda share=share: float(np.quantile(_heads(engine, one, requests), share)),  # type: ignore[misc]
                repeats=7,
                unit="ms",
            )
        yield Ratio(
            f"feedback until the changed ranking is there, features kept / reading {responses} responses",
            partial(_until_changed, engine, one),
            lambda: engine.scorer.score_batch([one.prompt] * responses, one.responses, [None] * responses),
            repeats=7,
        )


def _updates(folder: Path, updates: int, many: int, few: int, backbone: str) -> Iterator[Ratio]:
    large, small = (_engine_with(folder / f"{n}.db", n, backbone) for n in (many, few))
    try:
        yield Ratio(
            f"{updates} updates: {many:,} people in the store / {few:,}",
            partial(_update, large, many, updates),
            partial(_update, small, few, updates),
            at_most=1.2,
        )
    finally:
        large.close()
        small.close()


@contextmanager
def served(folder: Path, backbone: str) -> Iterator[tuple[Engine, int]]:
    """An engine and the port at which it is served, in a thread of this process."""
    store, config = Store(f"sqlite:///{folder}/store.db"), ServiceConfig(timeout=_TIMEOUT)
    engine = Engine(bayes_scorer(backbone, cache=False), store, config)
    taken = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(build_app(engine), log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, args=([taken],))
    thread.start()
    try:
        yield engine, taken.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def send(port: int, of_clients: Sequence[Sequence[bytes]]) -> list[float]:
    """Milliseconds of each request to `/v2/rerank`; the requests of a client one after the other."""

    def client(bodies: Sequence[bytes]) -> list[float]:
        connection, taken = HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT), list[float]()
        for body in bodies:
            started = time.perf_counter()
            connection.request("POST", "/v2/rerank", body, {"Content-Type": "application/json"})
            reply = connection.getresponse()
            content = reply.read()
            taken.append(1000 * (time.perf_counter() - started))
            if reply.status != 200:
                raise RuntimeError(content.decode())
        connection.close()
        return taken

    with ThreadPoolExecutor(len(of_clients)) as pool:
        return [ms for client_taken in pool.map(client, of_clients) for ms in client_taken]


@torch.no_grad()
def _heads(engine: Engine, request: Request, n: int) -> list[float]:
    """Milliseconds of what a request computes once its features and the user's parameters are there."""
    texts = [TextRequest(request.prompt, text) for text in request.responses]
    features = engine.texts.get(texts, time.monotonic() + 60)
    taken = []
    with engine.people.rows("", [request.user, None]) as (model, found):
        rows = torch.tensor([person.row for person in found])
        for _ in range(n):
            started = time.perf_counter()
            model.linear_reward_users(features, model.heads(rows)).tolist()
            taken.append(1000 * (time.perf_counter() - started))
    return taken


def _until_changed(engine: Engine, request: Request) -> None:
    """A feedback and a ranking, which must be another than before."""
    before = engine.rank("", request.prompt, request.responses, request.user).logits
    pair = (request.responses[0], request.responses[1])
    engine.give_feedback("", request.user, Judgement("pair", request.prompt, pair, 0))
    if engine.rank("", request.prompt, request.responses, request.user).logits == before:
        raise RuntimeError("the ranking after a feedback is the one before it")


def _engine_with(path: Path, n: int, backbone: str) -> Engine:
    """An engine whose store holds n people with two comparisons each."""
    engine = Engine(bayes_scorer(backbone, cache=False), Store(f"sqlite:///{path}"))
    saved = engine.people.to_save(engine.people.copy(("", "nobody"))[1], 0, 2)._asdict()
    text = {"prompt": '"What now?"', "chosen": words(60), "rejected": words(50), "p_chosen": 1.0, "user_text": ""}
    said = {"kind": "pair", "prompt_key": "0" * 64, "body": json.dumps(text), "received": 0.0}
    text |= {"expected": 0.5, "expected_generic": 0.5, "known_by": 0, "time": 0.0}
    with engine.store.writing() as connection:
        for start in range(0, n, _ROWS_AT_ONCE):
            users = [{"namespace": "", "user_id": f"u{i}"} for i in range(start, min(n, start + _ROWS_AT_ONCE))]
            connection.execute(insert(people), [saved | user | {"updated": 0.0} for user in users])
            twice = [(2 * (start + i) + k, user) for i, user in enumerate(users) for k in range(2)]
            connection.execute(
                insert(feedback), [said | user | {"id": k + 1, "idempotency_key": f"{k}"} for k, user in twice]
            )
            connection.execute(insert(comparisons), [text | user | {"feedback_id": k + 1} for k, user in twice])
    return engine


_turn = itertools.count()


def _update(engine: Engine, people: int, updates: int) -> None:
    """Feedback of so many people, whose texts were just ranked."""
    judgement = Judgement("pair", "What now?", (words(60), words(50)), 0)
    for _ in range(updates):
        engine.give_feedback("", f"u{next(_turn) * 7919 % people}", judgement)
