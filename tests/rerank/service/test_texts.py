"""The reader of texts: what it keeps has a limit in bytes, and its requests do not disturb each other."""

import time

import pytest

from prm.data.comparison import Prompt
from prm.data.encoding import Encoded
from rerank.service.texts import TextRequest
from tests.rerank.service.conftest import MakeEngine
from tests.rerank.service.test_engine import KING, PROMPT


def test_a_text_that_two_requests_had_read_counts_once(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is kept while the second request, which did not find it, still tokenises: later ones would find no room."""
    texts = make_engine().texts
    encode, request = texts._reader.encode, TextRequest(PROMPT, KING)

    def read() -> None:
        texts.get([request], time.monotonic() + 20.0)

    def encoded_late(prompt: Prompt, response: str, user_text: str = "") -> Encoded:
        monkeypatch.setattr(texts._reader, "encode", encode)
        read()
        return encode(prompt, response, user_text)

    monkeypatch.setattr(texts._reader, "encode", encoded_late)
    read()
    assert texts.read_texts == 2
    texts.forget([request])
    assert texts.kept_bytes == 0
