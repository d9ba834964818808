"""A reader in vLLM's shape: a real server that runs the exported folder."""

import base64
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from prm.checkpoint.sentence_transformers import export_sentence_transformers
from prm.config import TrainConfig
from prm.errors import DataError, PrmError
from prm.io.endpoint import Endpoint
from prm.io.tables import write_jsonl
from prm.models.reward_model import RewardModel
from prm.scoring.scorer import Scorer
from rerank.service.engine import Engine
from rerank.service.errors import BusyError
from rerank.service.remote_reader import RemoteReader
from rerank.service.store import Store
from rerank.service.texts import TextRequest
from tests.endpoint_server import Body, FakeEndpoint, Sent
from tests.planted import opposed_people
from tests.rerank.service.test_engine import KING, MIX, NONE, PROMPT
from tests.tiny_runs import SEARCH, config_of, train_any


@pytest.fixture(scope="module")
def exported(backbone_of: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """(a run that reads the last token, its export, the export's digest)."""
    folder = tmp_path_factory.mktemp("served")
    write_jsonl(folder / "log.jsonl", opposed_people(20, 0))
    config = cast(TrainConfig, config_of("bayes", backbone_of("llama"), folder))
    config = replace(config, search=replace(SEARCH, poolings=["last"], layers=[1]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRM_CACHE", str(folder / "cache"))
        run = train_any("bayes", config)
        return run, folder / "export", export_sentence_transformers(run, folder / "export")["digest"]


@pytest.fixture
def server(exported: tuple[Path, Path, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEndpoint]:
    """Embeds token ids with the export; newest first, as a server may."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    model = SentenceTransformer(str(exported[1]), device="cpu")

    def embed(body: Body, number: int) -> Sent:
        with torch.no_grad():
            rows = [
                model({"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)})
                for ids in body["input"]
            ]
        return embeddings([row["sentence_embedding"][0].numpy() for row in rows], body["encoding_format"])

    with FakeEndpoint(embed) as server:
        yield server


def embeddings(rows: list[np.ndarray], encoding: str = "float") -> Sent:
    coded = [base64.b64encode(r.tobytes()).decode() if encoding == "base64" else r.tolist() for r in rows]
    data = [{"object": "embedding", "index": i, "embedding": one} for i, one in enumerate(coded)]
    return Sent(raw=json.dumps({"object": "list", "model": "tiny", "data": data[::-1]}))


def test_heads_stay_here_and_texts_are_read_elsewhere(
    exported: tuple[Path, Path, str], server: FakeEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rewards are those of the run; no backbone runs here; a reader that fails is a 503, and heals."""
    scorer, own = (Scorer.from_pretrained(exported[0], device="cpu") for _ in range(2))
    monkeypatch.setattr("rerank.service.remote_reader._TEXTS_PER_REQUEST", 2)
    reader = RemoteReader(Endpoint(server.url), scorer, exported[2])
    assert server.bodies[-1] == {"model": "tiny", "input": server.bodies[-1]["input"], "encoding_format": "base64"}
    monkeypatch.setattr(scorer.reader, "read", None)
    engine = Engine(scorer, Store(f"sqlite:///{tmp_path}/store.db"), read=reader)
    try:
        texts, users = [KING, NONE, MIX], ["p0", "p1", None]
        expected = own.score_users(PROMPT, texts, users)
        assert torch.tensor(engine.score_users("", PROMPT, texts, users)) == pytest.approx(expected, abs=1e-4)
        assert sorted(len(body["input"]) for body in server.bodies[1:]) == [1, 2]
        plays = server.play
        width = len(cast(RewardModel, own.model).standard_mean)
        for play in (
            lambda body, number: Sent(500),
            lambda body, number: Sent(raw="{}"),
            lambda body, number: embeddings([np.ones(width + 1, np.float32)]),
            lambda body, number: embeddings([np.full(width, np.nan, np.float32)]),
            lambda body, number: embeddings([np.ones(width, np.float32)] * 2),
        ):
            server.play = play
            with pytest.raises(BusyError, match="reader"):
                engine.score_users("", PROMPT, ["a fox jumps"], [None])
        server.play = lambda body, number: (
            Sent(400) if any(len(ids) > 60 for ids in body["input"]) else plays(body, number)
        )
        good, bad = TextRequest(PROMPT, "a fox mixes"), TextRequest(PROMPT, "a fox jumps " * 20)
        with pytest.raises(DataError, match="400"):
            engine.texts.get([good, bad], time.monotonic() + 20)
        before = len(server.bodies)
        engine.texts.get([good], time.monotonic() + 20)  # it was read, although another one in its batch was refused
        assert len(server.bodies) == before
        server.play = plays
        assert engine.score_users("", PROMPT, ["a fox jumps"], [None])
    finally:
        engine.close()


def test_another_reader_is_refused_at_the_start(
    exported: tuple[Path, Path, str], server: FakeEndpoint, run_of: Callable[[str], Path]
) -> None:
    scorer = Scorer.from_pretrained(exported[0], device="cpu")
    endpoint, embed = Endpoint(server.url), server.play
    with pytest.raises(PrmError, match="digest"):
        RemoteReader(endpoint, scorer, "another")
    with pytest.raises(PrmError, match="last token"):
        RemoteReader(endpoint, Scorer.from_pretrained(run_of("bayes"), device="cpu"))
    assert server.bodies == []

    def shifted(body: Body, number: int) -> Sent:
        return embed({**body, "input": [ids[:-1] for ids in body["input"]]}, number)

    for play, fault in (
        (shifted, "differ"),
        (lambda body, number: embeddings([np.ones(3, np.float32)]), "shape"),
        (lambda body, number: Sent(503), "503"),
    ):
        server.play = play
        with pytest.raises(PrmError, match=fault):
            RemoteReader(endpoint, scorer)
    server.models = ("a", "b")
    with pytest.raises(PrmError, match="2 models"):
        RemoteReader(endpoint, scorer)
