"""Checks texts as `Scorer` would, without its weights, and gives each the keys that it is sorted and read by."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from prm.checkpoint.checkpoint import read_config, read_users
from prm.data.comparison import prompt_key
from prm.data.profile.token_lengths import prompt_length, text_lengths
from prm.errors import DataError, PrmError
from prm.io.rows import Row
from prm.scale.requests import Asked
from prm.training.unreadable_rows import encoder_of_run

_KEPT_KEYS = 1 << 16  # of texts that fit, in memory


class Text(NamedTuple):
    """A response to score.

    Args:
        prompt_hash: 8 bytes, of what is read before the response.
        key: 16 bytes, equal for two texts if the backbone reads the same.
    """

    prompt_hash: bytes
    key: bytes
    asked: Asked
    response: str


class Checker:
    """Checks requests.

    Texts are read once for all users by linear heads, else once for each user; whoever the run does not know is the
    generic user.
    """

    def __init__(self, run: Path, backbone: str | None):
        settings = read_config(run).settings
        self._encoder, self.users = encoder_of_run(run, backbone), read_users(run)
        self._reads_users = settings.reward is None or settings.reward.form != "linear_head"
        self._reads_text = settings.user_text == "prompt"
        self._fits: set[bytes] = set()

    def text_read(self, asked: Asked) -> str:
        """The part of the user's text that is read before the prompt."""
        return asked.user_text if self._reads_text else ""

    def texts(self, rows: Sequence[tuple[Row, Asked]], skips: bool = False) -> tuple[list[Text], dict[int, str]]:
        """The texts of all responses, in order, and what is wrong with rows that are skipped, by place in `rows`.

        Args:
            skips: whether rows with a text that does not fit are skipped. Otherwise `DataError` names the first.
        """
        texts, places, faults = list[Text](), list[int](), dict[int, str]()
        prompts: dict[tuple[str, str], bytes] = {}
        for place, (_, asked) in enumerate(rows):
            before = prompt_key(asked.prompt), self.text_read(asked)
            if (digest := prompts.get(before)) is None:
                digest = prompts[before] = _digest(*(_digest(part.encode(*_ANY)) for part in before))
            user = (self.users.row(asked.user) if self._reads_users else 0).to_bytes(8)
            for response in asked.responses:
                key = _digest(digest, user, response.encode(*_ANY))[:16]
                texts.append(Text(digest[:8], key, asked, response))
                places.append(place)
        wrong = self._wrong(texts)
        for text, place in zip(texts, places, strict=True):
            if text.key not in wrong:
                continue
            fault = f"{rows[place][0].origin}: {wrong[text.key]}"
            if not skips:
                raise DataError(fault)
            faults.setdefault(place, fault)
        return [text for text, place in zip(texts, places, strict=True) if place not in faults], faults

    def _wrong(self, texts: Sequence[Text]) -> dict[bytes, PrmError]:
        """What is wrong with those that do not fit, by key."""
        if len(self._fits) > _KEPT_KEYS:
            self._fits.clear()
        new = {text.key: i for i, text in reversed([*enumerate(texts)]) if text.key not in self._fits}
        fits = self._fitting([texts[i] for i in new.values()])
        wrong: dict[bytes, PrmError] = {}
        for key in new.keys() - fits:  # perhaps after its prompt is cut
            _, _, asked, response = texts[new[key]]
            try:
                self._encoder.encode(asked.prompt, response, 0, self.text_read(asked))
            except PrmError as error:
                wrong[key] = error
        self._fits |= new.keys() - wrong.keys()
        return wrong

    def _fitting(self, texts: Sequence[Text]) -> set[bytes]:
        """Keys of those that fit as they are; each prompt, response and user's text is tokenised once, most at once."""
        encoder = self._encoder
        prompts = {p: prompt_length(encoder, p) for p in dict.fromkeys(t.asked.prompt for t in texts)}
        responses = text_lengths(encoder, [t.response for t in texts])
        ending = len(encoder.ids("\n\n"))  # after a user's text; one that adds nothing to it is looked at by `encode`
        befores = text_lengths(encoder, [self.text_read(t.asked) + "\n\n" for t in texts])
        space, found = encoder.max_length - len(encoder.end_ids) - encoder.user_tokens, set[bytes]()
        for _, key, asked, response in texts:
            before = self.text_read(asked)
            length, own = befores[before + "\n\n"] if before else 0, (prompts[asked.prompt], responses[response])
            if all(own) and (not before or length > ending) and sum(own) + length <= space:
                found.add(key)
        return found


_ANY = ("utf-8", "surrogatepass")


def _digest(*parts: bytes) -> bytes:
    """Of parts of which all but the last have a fixed length."""
    return hashlib.sha256(b"".join(parts)).digest()
