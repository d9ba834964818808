"""Paid replies of a judge on disk: a killed run is resumed, and no request is paid twice."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from prm.errors import DataError
from prm.io.disk import append, make_folder, truncate
from prm.io.endpoint import Reply
from prm.io.tables import read_rows


def request_key(url: str, body: Mapping[str, object]) -> str:
    """Hex digest of the url and the request body: model, prompt, both responses in order, options."""
    return hashlib.sha256(json.dumps([url, body], sort_keys=True).encode()).hexdigest()


class ReplyCache:
    """JSON Lines file of replies by the key of their request; each is written as it arrives.

    It holds what the judge wrote about users, but no user ids: delete the file to forget them.

    Raises `DataError` naming file and line if the file holds anything else.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()
        self._replies: dict[str, Reply] = {}
        if self.path.is_file():
            self._cut_half_line()
            self._load()

    def __contains__(self, key: str) -> bool:
        return key in self._replies

    def __getitem__(self, key: str) -> Reply:
        return self._replies[key]

    def add(self, key: str, reply: Reply) -> None:
        """Store a reply; it is on disk when this returns."""
        make_folder(self.path.parent)
        append(self.path, (json.dumps({"key": key, **reply._asdict()}) + "\n").encode())
        self._replies[key] = reply

    def _cut_half_line(self) -> None:
        """Drop an unfinished last line, which a killed run leaves: that reply is requested again."""
        raw = self.path.read_bytes()
        complete = raw.rfind(b"\n") + 1
        if complete < len(raw):
            truncate(self.path, complete)

    def _load(self) -> None:
        if not self.path.stat().st_size:
            return
        for number, row in read_rows(self.path):
            match row:
                case {
                    "key": str(key),
                    "text": str(text),
                    "finish": str(finish),
                    "refusal": str(refusal),
                    "tokens_in": int(tokens_in),
                    "tokens_out": int(tokens_out),
                    **rest,
                } if not rest:
                    self._replies[key] = Reply(text, finish, refusal, tokens_in, tokens_out)
                case _:
                    raise DataError(f"{self.path}, line {number}: is not a judge's reply; name another cache file")
