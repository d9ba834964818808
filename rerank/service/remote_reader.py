"""Hidden states from a server that embeds texts with a run's exported backbone, as vLLM does."""

import base64
import json
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from prm.data.encoding import Encoded
from prm.errors import DataError, PrmError
from prm.io.endpoint import Endpoint, StatusError
from prm.models.reward_model import RewardModel
from prm.scoring.given_features import checked_features
from prm.scoring.scorer import Scorer
from rerank.service.errors import BusyError

_TEXTS_PER_REQUEST = 64
_RETRY_AFTER = 5  # seconds
_OF_THE_TEXTS = (400, 413, 422)  # such as one that is longer than the server reads
_FAR = 0.1  # relative difference of one text's hidden states; rounding to bfloat16 makes less
_PROMPT, _RESPONSE = "How do I keep bread fresh?", "Freeze it in slices."


class RemoteReader:
    """`TextReader.read` by a server: sends token ids to its `/embeddings`, and checks what comes back.

    Args:
        endpoint: up to `/v1`; its model may be left out if it has a single one.
        scorer: of the run whose backbone the server has.
        digest: of the export that the server has, to refuse another one; "" if it is not known.

    Raises `PrmError` for a run that reads anything but one last token's state, for a digest of another export, and if
    the server does not answer or gives other hidden states for a text than the run's own backbone.
    """

    def __init__(self, endpoint: Endpoint, scorer: Scorer, digest: str = ""):
        from prm.io.endpoint_client import Connection, model_names

        model = scorer.model
        if not isinstance(model, RewardModel) or not model.is_linear:
            raise PrmError("a reader needs a run with linear heads ('reward.form linear_head')")
        if len(model.feature_spec) != 1 or model.feature_spec[0][1] != "last":
            found = ", ".join(f"{layers} {pooling}" for layers, pooling in model.feature_spec)
            raise PrmError(
                f"a reader gives one hidden state of the last token, and the run reads {found}: train with "
                "search.poolings [last] and one layer in search.layers"
            )
        if digest and digest != scorer.feature_digest:
            raise PrmError(
                f"the reader's export has the digest {digest!r}, this run's features {scorer.feature_digest!r}"
            )
        name = endpoint.model
        if not name:
            names = model_names(endpoint)
            if len(names) != 1:
                raise PrmError(f"{endpoint.url} has {len(names)} models: name one of them (--reader_model)")
            name = names[0]
        self._model, self._name, self._url, self._timeout = model, name, endpoint.url, endpoint.timeout
        self._connection = Connection(endpoint)
        self._refuse_another_backbone(scorer)

    def __call__(self, texts: Sequence[Encoded]) -> Tensor:
        """Hidden states, float32 [n, d].

        Raises `DataError` if the server refuses one of the texts, and `BusyError` if it gives none for another reason.
        """
        try:
            return self._read(texts)
        except DataError:
            raise
        except PrmError as error:
            raise BusyError(f"the reader of texts fails: {error}", _RETRY_AFTER) from None

    def _read(self, texts: Sequence[Encoded]) -> Tensor:
        parts = [texts[i : i + _TEXTS_PER_REQUEST] for i in range(0, len(texts), _TEXTS_PER_REQUEST)]
        bodies = [
            {"model": self._name, "input": [text.ids for text in part], "encoding_format": "base64"} for part in parts
        ]
        rows: list[Tensor] = []
        for part, content in zip(parts, self._connection.ask("/embeddings", bodies, self._timeout), strict=True):
            if isinstance(content, StatusError) and content.status in _OF_THE_TEXTS:
                raise DataError(f"the reader refuses a text: HTTP {content.status}: {content}")
            if isinstance(content, StatusError):
                raise PrmError(f"HTTP {content.status}: {content}")
            rows += _embeddings(content, len(part))
        if len({len(row) for row in rows}) > 1:
            raise PrmError("the embeddings have several widths")
        return checked_features(self._model, torch.stack(rows))

    def _refuse_another_backbone(self, scorer: Scorer) -> None:
        text = scorer.reader.encode(_PROMPT, _RESPONSE)
        own = scorer.reader.read([text])
        try:
            difference = float((self._read([text]) - own).norm() / own.norm())
        except PrmError as error:
            raise PrmError(f"--reader {self._url}: {error}") from None
        if difference > _FAR:
            raise PrmError(
                f"--reader {self._url}: its hidden states of a text differ from the run's by {difference:.0%}: serve "
                "what 'prm export' writes of this run"
            )


def _embeddings(content: bytes, n: int) -> list[Tensor]:
    """The n rows of a reply in OpenAI's shape. Raises `PrmError` for anything else."""
    try:
        data = sorted(json.loads(content)["data"], key=lambda row: row["index"])
        rows = [_row(row["embedding"]) for row in data]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise PrmError("the reply holds no embeddings") from None
    if [row["index"] for row in data] != list(range(n)):
        raise PrmError(f"{len(rows)} embeddings for {n} texts")
    return rows


def _row(embedding: object) -> Tensor:
    """One embedding, float32 [d]: base64 as asked for, or numbers, which some servers give."""
    if isinstance(embedding, str):
        return torch.frombuffer(bytearray(base64.b64decode(embedding, validate=True)), dtype=torch.float32)
    return torch.tensor(cast(list[float], embedding), dtype=torch.float32)
