"""Settings of the live service. No torch, so that a command line can parse them at once."""

from dataclasses import dataclass
from typing import Annotated

from prm.checks import Count, Matching, NonNegative, PartOf, Positive, Settings
from prm.errors import PrmError

CANDIDATES = 8  # answers that a chat completion chooses from


@dataclass
class ServiceConfig(Settings, key="service"):
    """How the service ranks, its limits, and the share of users who measure the gain.

    Args:
        holdout: share of users, by a hash of their id, who are shown what the generic user would be: the gain of
            personal ranking is measured against them.
        caution: a response stands before everybody's best one only if the user's gain from it is more than so many
            posterior standard deviations above 0; for runs of `users.kind: bayes`. 0 ranks by rewards.
        max_requests: number of requests in work at a time; beyond it they are refused as busy.
        max_chats: number of chats in work at a time, which wait for their upstream and take no place of
            `max_requests`; beyond it they are refused as busy.
        rate: requests of one API key, as in `600/minute`.
        max_body_bytes: size of a request's body.
        body_timeout: seconds for which the service waits for a request's headers, and then for its body.
        max_connections: number of open connections; more are refused as busy.
        timeout: seconds for which a request may wait for texts to be read.
        upstream_timeout: seconds for which a chat may wait for the responses of its upstream.
        max_waiting_texts: number of texts that may wait to be read; beyond it requests are refused as busy. At least
            `max_responses`.
        max_responses: number of responses in one request.
        max_characters: length of a text.
        max_users: number of users in one request.
        kept_megabytes: memory for hidden states of texts; the least recently used go first.
    """

    holdout: PartOf = 0.0
    caution: NonNegative = 0.0
    max_requests: Count = 64
    max_chats: Count = 64
    rate: Annotated[str, Matching(r"[1-9]\d*/(second|minute|hour|day)", "such as 600/minute")] = "6000/minute"
    max_body_bytes: Count = 8_000_000
    body_timeout: Positive = 10.0
    max_connections: Count = 512
    timeout: Positive = 30.0
    upstream_timeout: Positive = 120.0
    max_waiting_texts: Count = 4096
    max_responses: Count = 256
    max_characters: Count = 50_000
    max_users: Count = 64
    kept_megabytes: Count = 512

    def check_together(self) -> None:
        """Raise `PrmError` if the texts of one request could never wait together."""
        if self.max_waiting_texts < self.max_responses:
            raise PrmError(
                f"config key 'service.max_waiting_texts' is {self.max_waiting_texts:,}, below 'service.max_responses', "
                f"{self.max_responses:,}: a request of so many responses would always be refused as busy; raise it, or "
                "lower 'service.max_responses'"
            )
