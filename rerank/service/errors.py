"""Errors of the service that are not the caller's fault in a request's content; each has an HTTP status."""

from prm.errors import PrmError


class BusyError(PrmError):
    """More is waiting than the service takes on; try again after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: int = 1):
        super().__init__(message)
        self.retry_after = retry_after


class UnknownError(PrmError):
    """There is no such thing: a user, or responses that were shown."""


class ConflictError(PrmError):
    """The idempotency key was used for something else."""
