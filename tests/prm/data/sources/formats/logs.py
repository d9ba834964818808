"""Conversations for small logs in published formats."""

from typing import Any

from prm.data.sources import Feedback


def turns(*texts: str) -> list[dict[str, Any]]:
    """A conversation that the user begins."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def said(feedback: Feedback) -> list[tuple[str, Any, str, str]]:
    """(user, prompt, chosen, rejected) in the order of the log; a tie is sorted, with "=" before the user."""
    found = []
    for c in feedback.comparisons:
        prompt = c.prompt if isinstance(c.prompt, str) else [(m.role, m.content) for m in c.prompt]
        pair = (min(c.chosen, c.rejected), max(c.chosen, c.rejected)) if c.is_tie else (c.chosen, c.rejected)
        found.append((("=" if c.is_tie else "") + c.user_id, prompt, *pair))
    return found
