"""What `/metrics` reports."""

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

if TYPE_CHECKING:
    from rerank.service.engine import Engine

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Counts and times of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self.requests = Counter("rerank_requests", "Requests answered", labels, registry=self.registry)
        self.seconds = Histogram(
            "rerank_request_seconds", "Time of a request", ("route",), buckets=_SECONDS, registry=self.registry
        )
        self.feedback = Counter("rerank_feedback", "Feedback taken", ("kind",), registry=self.registry)

    def watch(self, engine: "Engine") -> None:
        """Report the engine's own counts."""
        texts = engine.texts
        for name, help_text, value in (
            ("rerank_texts_waiting", "Texts that wait to be read", lambda: texts.waiting),
            ("rerank_texts_read", "Texts that the backbone read", lambda: texts.read_texts),
            ("rerank_texts_kept_hits", "Texts whose hidden states were kept", lambda: texts.kept_texts),
            ("rerank_kept_bytes", "Bytes of hidden states that are kept", lambda: texts.kept_bytes),
            ("rerank_shown_lost", "Records of what was shown that could not be written", lambda: engine.shown.lost),
        ):
            Gauge(name, help_text, registry=self.registry).set_function(value)
