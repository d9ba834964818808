"""The API keys of a store, held in memory for a moment."""

import asyncio
import hashlib
import time

from anyio import CapacityLimiter
from anyio.to_thread import run_sync

from rerank.service.store import Store

_MOST_AGE = 2.0  # seconds until a key that was removed is refused
_LEAST_AGE = 0.5  # seconds between looks for keys that are not known: guesses cost no more than that


class KnownKeys:
    """Namespaces by key. Methods raise SQLAlchemy's errors if the database fails."""

    def __init__(self, store: Store):
        self._store, self._namespaces, self._read_at = store, dict[str, str](), -_MOST_AGE
        self._lock, self._thread = asyncio.Lock(), CapacityLimiter(1)  # not one of those that serve requests

    async def namespace_of(self, key: str) -> str | None:
        """The namespace of an API key; `None` for an unknown one."""
        digest = hashlib.sha256(key.encode(errors="replace")).hexdigest()
        await self._read(_MOST_AGE)
        if digest not in self._namespaces:  # it may have been made just now
            await self._read(_LEAST_AGE)
        return self._namespaces.get(digest)

    async def _read(self, most_age: float) -> None:
        if time.monotonic() - self._read_at < most_age:
            return
        async with self._lock:
            if time.monotonic() - self._read_at >= most_age:
                started = time.monotonic()
                self._namespaces = await run_sync(self._store.key_namespaces, limiter=self._thread)
                self._read_at = started
