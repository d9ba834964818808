"""What a person can say about responses, and the comparisons that follow from it."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from prm.config import FeedbackConfig
from prm.data.comparison import Comparison, Prompt, prompt_key, require_text
from prm.data.sources.fields import CommonFields
from prm.data.sources.pairing import RatedPrompt, RatedResponse, pair_up
from prm.errors import DataError

Kind = Literal["pair", "pick", "thumb", "rating"]
SINGLE: tuple[Kind, ...] = ("thumb", "rating")  # of one response: compared with the person's others on the prompt


@dataclass(frozen=True)
class Judgement:
    """What a person said about responses to a prompt.

    Args:
        kind: `pair` or `pick` of two or more responses, `thumb` or `rating` of one.
        value: index of the response that was preferred, `None` for a tie of two; for `thumb` 1 (up) or 0; for `rating`
            any number, higher is better.
    """

    kind: Kind
    prompt: Prompt
    responses: tuple[str, ...]
    value: float | None
    user_text: str = ""

    def __post_init__(self) -> None:
        n = len(self.responses)
        for i, text in enumerate(self.responses):
            require_text(f"responses[{i}]", text)
        if self.kind in SINGLE:
            if n != 1 or self.value is None:
                raise DataError(f"a {self.kind} is of one response and has a value")
        elif n < 2:
            raise DataError(f"a {self.kind} needs two responses or more, got {n}")
        elif self.value is None and n > 2:
            raise DataError(f"a tie of {n} responses gives no preference: give the one that was chosen")
        elif self.value is not None and not (0 <= self.value < n and self.value == int(self.value)):
            raise DataError(f"'chosen' is position {self.value:g} (from 0), but there are {n} responses")

    @property
    def prompt_digest(self) -> str:
        """Hex digest of the prompt."""
        return hashlib.sha256(prompt_key(self.prompt).encode()).hexdigest()

    def to_row(self) -> dict[str, object]:
        """JSON-ready, for `from_row`."""
        prompt = self.prompt if isinstance(self.prompt, str) else [m._asdict() for m in self.prompt]
        row: dict[str, object] = {"prompt": prompt, "responses": list(self.responses), "value": self.value}
        return row | ({"user_text": self.user_text} if self.user_text else {})

    def comparisons(self, user_id: str, earlier: Iterable["Judgement"] = ()) -> list[Comparison]:
        """The comparisons that this adds to what the person said before: as `prm train` makes them of such a log.

        Args:
            earlier: the person's judgements of the same kind on the prompt, in order; the later one of a response
                counts. For `thumb` and `rating` only.
        """
        common: CommonFields = {"user_text": self.user_text} if self.user_text else {}
        if self.kind not in SINGLE:
            scores = [float(i == self.value) for i in range(len(self.responses))]
            answers = [RatedResponse(text, s, 0, "", common) for text, s in zip(self.responses, scores, strict=True)]
        else:
            latest = {j.responses[0]: j.value or 0.0 for j in [*earlier, self]}
            answers = [RatedResponse(text, score, 0, "", common) for text, score in latest.items()]
        rated = RatedPrompt(user_id, self.prompt, tuple(answers), ties=self.value is None)
        pairs, _ = pair_up(rated, gap=0.0, max_pairs=FeedbackConfig.max_pairs)
        own = self.responses[0]
        return [c for c, _, _ in pairs if self.kind not in SINGLE or own in (c.chosen, c.rejected)]
