"""Reads prompts and responses for a model: checks and encodes them, and runs the backbone on each text once."""

from collections.abc import Iterable, Sequence

import torch
from peft import PeftModel
from torch import Tensor

from prm.checkpoint.checkpoint import Checkpoint
from prm.data.arguments import Prompts, Texts, require_user_text
from prm.data.comparison import Comparison, Prompt, PromptLike, parse_prompt, require_text
from prm.data.encoding import Encoded
from prm.errors import CheckpointError
from prm.features.extract import read_pooled
from prm.features.hidden_states import read_features
from prm.features.reference_logps import implicit_rewards
from prm.features.store import text_key
from prm.io.progress import progress
from prm.models.policy_model import Policy
from prm.models.reward_model import RewardModel
from prm.users.user_model import UserModel

Request = tuple[Prompt, str, str]  # prompt, response, and the user's text that is read before the prompt


class TextReader:
    """Turns prompts and responses into hidden states for linear heads, or into rewards; reads each text once.

    A user's text is read as in training: before the prompt, or not at all.

    Args:
        checkpoint: a reward model, or a policy that scores by its implicit reward.
        max_tokens: tokens per forward pass of the backbone.
        cache: keep hidden states of linear-head models without adapters on disk.

    Raises `CheckpointError` for a policy without an implicit reward.
    """

    def __init__(
        self, checkpoint: Checkpoint[RewardModel] | Checkpoint[Policy], max_tokens: int = 4096, cache: bool = False
    ):
        self.model: RewardModel | Policy = checkpoint.model
        self.encoder, self.max_tokens = checkpoint.encoder(), max_tokens
        self.device = next(self.model.parameters()).device
        self._beta = _beta_of(checkpoint)
        self._use_of_text = checkpoint.settings.user_text
        # stores are named by the backbone's weights, without those of an adapter
        self._cache = cache and not isinstance(self.model.backbone, PeftModel)
        self._known_states: dict[bytes, Tensor] = {}

    def has_tokens(self, response: str) -> bool:
        """False for a response without tokens: white space, or characters that the tokenizer drops.

        True for text that UTF-8 cannot encode: `check` reports it.
        """
        if not response.strip():
            return False
        try:
            response.encode()
        except UnicodeEncodeError:
            return True
        return bool(self.encoder.ids(response))

    def check(self, prompt: PromptLike, response: str, user_text: str = "") -> None:
        """Raise `DataError` if one of them is no text, if prompt or response is empty, or if they do not fit."""
        user_text = require_user_text("user_text", user_text)
        self.encoder.encode(*_parsed(prompt, response), 0, self.text_before_prompt(user_text))

    def check_comparison(self, c: Comparison) -> None:
        """Raise as `check` does, for either response."""
        for response in (c.chosen, c.rejected):
            self.check(c.prompt, response, c.user_text)

    def text_before_prompt(self, user_text: str) -> str:
        """The part of a user's text that is read before the prompt: all of it, or none."""
        return user_text if self._use_of_text == "prompt" else ""

    def encode(self, prompt: PromptLike, response: str, user_text: str = "") -> Encoded:
        """The sequence that a linear head reads, without a user. Raises as `check` does."""
        return self._encoded((*_parsed(prompt, response), self.text_before_prompt(user_text)))

    def reuse(self, texts: Sequence[Encoded], states: Tensor) -> None:
        """Use these hidden states [t, d] of texts, instead of computing them, until the next call; linear heads only.

        For callers that computed them while generating the texts. The texts have no user.
        """
        self._known_states = {text_key(text): state for text, state in zip(texts, states.to(self.device), strict=True)}

    def pooled(self, prompts: Prompts, responses: Texts, texts: Texts, empty: bool = False) -> tuple[Tensor, Tensor]:
        """(hidden states [t, d] of the distinct texts, not standardised, indices [b] into them); linear heads only.

        Args:
            texts: the users' texts.
            empty: allow empty responses, whose features are the states at the end of the prompt.

        Raises `DataError` for a prompt, response or user's text that `check` refuses.
        """
        unique, index = self._unique(self._requests(prompts, responses, texts, empty))
        return self._states([self._encoded(request) for request in unique]), index

    def rewards(
        self,
        prompts: Prompts,
        responses: Texts,
        rows: Sequence[int],
        texts: Texts,
        user_model: UserModel,
        empty: bool = False,
    ) -> Tensor:
        """Rewards, float32 [b], of a soft prompt or implicit ones; `rows` are those of `user_model`.

        Raises `DataError` as `pooled` does.
        """
        requests = self._requests(prompts, responses, texts, empty)
        if isinstance(self.model, Policy):
            assert self._beta is not None
            asked = [(*request, row) for request, row in zip(requests, rows, strict=True)]
            return implicit_rewards(self.model, self.encoder, self._beta, asked, self.max_tokens, user_model)
        unique, index = self._unique(requests)
        encoded = [self.encoder.encode(prompt, response, 0, text) for prompt, response, text in unique]
        sequences = [self.encoder.for_user(encoded[i], row) for i, row in zip(index.tolist(), rows, strict=True)]
        return self.model.soft_reward_of(self._read(sequences, user_model))

    def read(self, texts: Sequence[Encoded]) -> Tensor:
        """Hidden states [n, d] of texts without users, not standardised; linear heads only."""
        return self._read(texts)

    def _requests(self, prompts: Prompts, responses: Texts, texts: Texts, empty: bool) -> list[Request]:
        rows = enumerate(zip(prompts, responses, texts, strict=True))
        return [
            (*_parsed(prompt, response, empty, f"s[{i}]"), self.text_before_prompt(text))
            for i, (prompt, response, text) in rows
        ]

    def _encoded(self, request: Request) -> Encoded:
        prompt, response, text = request
        return self.encoder.without_user(self.encoder.encode(prompt, response, 0, text))

    def _unique(self, requests: Sequence[Request]) -> tuple[Iterable[Request], Tensor]:
        """(the distinct requests, with a progress bar; indices [b] into them), since logs repeat texts."""
        position = {request: i for i, request in enumerate(dict.fromkeys(requests))}
        index = torch.tensor([position[request] for request in requests], dtype=torch.long, device=self.device)
        return progress(position, desc="tokenising", unit="text"), index

    def _states(self, texts: Sequence[Encoded]) -> Tensor:
        """Hidden states of each text, [t, d], from memory or computed."""
        given = self._known_states  # another thread may replace it meanwhile
        keys = [text_key(text) for text in texts] if given else []
        if not any(key in given for key in keys):
            return self._read(texts)
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in given}
        known = given | (dict(zip(missing, self._read(list(missing.values())), strict=True)) if missing else {})
        return torch.stack([known[key] for key in keys])

    def _read(self, sequences: Sequence[Encoded], user_model: UserModel | None = None) -> Tensor:
        """The features of each sequence, [n, d]; `user_model` is `people` of `read_pooled`."""
        model = self.model
        assert isinstance(model, RewardModel)
        if self._cache and model.is_linear:
            return read_features(model, sequences, [model.feature_spec], self.max_tokens)[model.feature_spec].to(
                self.device
            )
        with progress(total=len(sequences), desc="scoring", unit="text") as bar:
            pooled = read_pooled(model, sequences, model.feature_spec, self.max_tokens, bar, user_model)
        return torch.cat([pooled[setting] for setting in model.feature_spec], dim=-1)


def _parsed(prompt: PromptLike, response: str, empty: bool = False, of_several: str = "") -> tuple[Prompt, str]:
    """A prompt and a response for the encoder. Raises `DataError` if one is empty or no text.

    Args:
        empty: allow "" as the response.
        of_several: what the names end in for the message, as in `responses[3]`.
    """
    if not (empty and response == ""):
        require_text(f"response{of_several}", response)
    return parse_prompt(prompt, f"prompt{of_several}"), str(response)


def _beta_of(checkpoint: Checkpoint[RewardModel] | Checkpoint[Policy]) -> float | None:
    """beta of a policy's implicit reward; `None` for a reward model. Raises `CheckpointError` for other policies."""
    if not isinstance(checkpoint.model, Policy):
        return None
    objective = checkpoint.settings.objective
    if objective is None or objective.beta is None:
        run, method = checkpoint.folder or "the policy", "no method" if objective is None else objective.method
        raise CheckpointError(
            f"{run} was trained by {method}: it is a policy and gives no reward. Score with a reward model, or rank "
            f"the policy's responses by one: rerank REWARD_RUN --generator {run}"
        )
    return objective.beta
