"""Hidden states of texts: those of many requests are read together, and the latest are kept in memory."""

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as WaitedTooLong
from typing import NamedTuple

import torch
from torch import Tensor

from prm.data.comparison import Prompt, prompt_key
from prm.data.encoding import Encoded
from prm.errors import DataError
from prm.io.progress import without_bars
from prm.models.reward_model import HeadInput, RewardModel
from prm.scoring.text_reader import TextReader
from rerank.service.errors import BusyError, UnreadableError

_TEXTS_AT_ONCE = 256  # read in one go, however many wait
_KEY_BYTES = 16

Key = bytes
Read = Callable[[Sequence[Encoded]], Tensor]


class TextRequest(NamedTuple):
    """A response to a prompt, and the user's text that is read before it."""

    prompt: Prompt
    response: str
    user_text: str = ""


class _Features(NamedTuple):
    row: Tensor
    tokens: int  # of the sequence that was read


class _Waiting(NamedTuple):
    text: Encoded
    result: "Future[_Features]"
    deadline: float


class TextFeatures:
    """Inputs of linear heads for texts.

    One thread reads: whatever has come in while it read is its next batch. A text that several requests wait for is
    read once.

    Args:
        read: hidden states, float32 [n, d], of texts; the scorer's own backbone if left out.
        max_bytes: of the features kept; the least recently used go first.
        max_waiting: number of texts that may wait to be read.
    """

    def __init__(self, model: RewardModel, reader: TextReader, read: Read | None, max_bytes: int, max_waiting: int):
        self._model, self._reader, self._read = model, reader, read or reader.read
        self._max_bytes, self._max_waiting, self._bytes = max_bytes, max_waiting, 0
        self._kept: OrderedDict[Key, _Features] = OrderedDict()
        self._waiting: OrderedDict[Key, _Waiting] = OrderedDict()
        self._in_hand: dict[Key, Future[_Features]] = {}
        self._changed, self._closed = threading.Condition(), False
        self.read_texts, self.kept_texts = 0, 0  # counted for /metrics
        self._thread = threading.Thread(target=self._work, name="reads texts", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of texts that wait to be read."""
        return len(self._waiting)

    @property
    def kept_bytes(self) -> int:
        """Bytes of the features kept."""
        return self._bytes

    def get(self, requests: Sequence[TextRequest], deadline: float) -> HeadInput:
        """The inputs [n, d] of linear heads for n texts. Raises as `counted` does."""
        return self.counted(requests, deadline)[0]

    def counted(self, requests: Sequence[TextRequest], deadline: float) -> tuple[HeadInput, int]:
        """(the inputs [n, d] of linear heads for n texts, number of tokens of these, each with its prompt).

        Args:
            deadline: on the clock `time.monotonic`.

        Raises `UnreadableError` for a text that the model cannot read, and `BusyError` if too many texts wait or the
        deadline passes.
        """
        keys = [_key(request) for request in requests]
        rows, missing = self._known(keys)
        encoded: dict[Key, Encoded] = {}  # checked and tokenised in the caller's thread, before anything waits
        for i, (key, request) in enumerate(zip(keys, requests, strict=True)):
            if key in missing and key not in encoded:
                if time.monotonic() > deadline:
                    raise BusyError("the texts could not be tokenised in time")
                try:
                    encoded[key] = self._reader.encode(*request)
                except DataError as error:
                    raise UnreadableError(i, str(error)) from None
        self.kept_texts += len(rows)
        for key, future in self._enqueue(encoded, deadline).items():
            try:
                rows[key] = future.result(max(0.0, deadline - time.monotonic()))
            except WaitedTooLong:
                raise BusyError("the texts could not be read in time") from None
        stacked = torch.stack([rows[key].row for key in keys]) if keys else torch.empty(0, self._width)
        tokens = sum(rows[key].tokens for key in keys)
        base = None if self._model.base is None else stacked[:, -1]
        return HeadInput(stacked if base is None else stacked[:, :-1], base), tokens

    def close(self) -> None:
        """Stop reading; what waits fails as busy."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def forget(self, requests: Sequence[TextRequest]) -> None:
        """Drop the features of these texts."""
        with self._changed:
            for request in requests:
                self._drop(_key(request))

    @property
    def _width(self) -> int:
        return self._model.user_model.dim + (self._model.base is not None)

    def _known(self, keys: Sequence[Key]) -> tuple[dict[Key, _Features], set[Key]]:
        """(features that are kept, keys of the others)."""
        with self._changed:
            known = {key: self._kept[key] for key in keys if key in self._kept}
            for key in known:
                self._kept.move_to_end(key)
        return known, set(keys) - known.keys()

    def _enqueue(self, texts: dict[Key, Encoded], deadline: float) -> "dict[Key, Future[_Features]]":
        with self._changed:
            if self._closed:
                raise BusyError("the service is stopping")
            new = [key for key in texts if key not in self._waiting and key not in self._in_hand]
            if len(self._waiting) + len(new) > self._max_waiting:
                raise BusyError(f"{len(self._waiting):,} texts wait to be read")
            futures: dict[Key, Future[_Features]] = {}
            for key, text in texts.items():
                if (in_hand := self._in_hand.get(key)) is not None:
                    futures[key] = in_hand
                    continue
                before = self._waiting.get(key)
                future = Future[_Features]() if before is None else before.result
                latest = deadline if before is None else max(deadline, before.deadline)
                self._waiting[key] = _Waiting(text, future, latest)
                futures[key] = future
            self._changed.notify_all()
        return futures

    def _drop(self, key: Key) -> None:
        if (found := self._kept.pop(key, None)) is not None:
            self._bytes -= _size(found.row)

    def _work(self) -> None:
        with without_bars():
            self._work_on()

    def _work_on(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if self._closed:
                    for waiting in self._waiting.values():
                        waiting.result.set_exception(BusyError("the service is stopping"))
                    self._waiting.clear()
                    return
                batch = self._next_batch()
            if batch:
                self._finish(batch)

    def _next_batch(self) -> dict[Key, _Waiting]:
        """The texts to read next; those that nobody waits for any more are dropped."""
        batch: dict[Key, _Waiting] = {}
        now = time.monotonic()
        while self._waiting and len(batch) < _TEXTS_AT_ONCE:
            key, waiting = self._waiting.popitem(last=False)
            if waiting.deadline < now:
                waiting.result.set_exception(BusyError("the texts could not be read in time"))
            else:
                batch[key] = waiting
        self._in_hand = {key: waiting.result for key, waiting in batch.items()}
        return batch

    @torch.no_grad()
    def _finish(self, batch: dict[Key, _Waiting]) -> None:
        try:
            states, base = self._model.head_input(self._read([waiting.text for waiting in batch.values()]))
            rows = states if base is None else torch.cat([states, base[:, None]], 1)
            lengths = [len(waiting.text.ids) for waiting in batch.values()]
            read = zip(batch, rows, lengths, strict=True)
            features = {key: _Features(row.clone(), tokens) for key, row, tokens in read}
        except Exception as error:  # a request's own fault was found before: whoever waits gets this one
            if isinstance(error, DataError) and len(batch) > 1:  # of one of the texts: the others are read
                items, half = list(batch.items()), len(batch) // 2
                self._finish(dict(items[:half]))
                self._finish(dict(items[half:]))
                return
            with self._changed:
                self._in_hand = {}
            for waiting in batch.values():
                waiting.result.set_exception(error)
            return
        with self._changed:
            self.read_texts += len(features)
            self._in_hand = {}
            for key, found in features.items():
                self._drop(key)  # of a request that came just before it was kept, and had it read again
                self._kept[key] = found
                self._bytes += _size(found.row)
            while self._bytes > self._max_bytes and self._kept:
                self._bytes -= _size(self._kept.popitem(last=False)[1].row)
        for key, waiting in batch.items():
            waiting.result.set_result(features[key])


def _size(row: Tensor) -> int:
    return row.numel() * row.element_size() + _KEY_BYTES


def _key(request: TextRequest) -> Key:
    prompt = prompt_key(request.prompt)
    content = f"{len(prompt)} {len(request.response)} {prompt}{request.response}{request.user_text}"
    return hashlib.blake2b(content.encode(), digest_size=_KEY_BYTES).digest()
