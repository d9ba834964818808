"""Features that another program computed: what to send to it, and what becomes of the vectors that come back."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prm.config import format_features
from prm.data.arguments import require_list
from prm.data.encoding import Encoded
from prm.errors import DataError, PrmError, shown
from prm.models.backbones import is_causal
from prm.models.reward_model import RewardModel

_UNIT = 1e-2  # vectors whose length is this close to 1, all of them, were normalised
_LONG = 2.0  # unless the run's own have such a length


class FeatureInputs:
    """What the models of an export read to give the features of n responses to one prompt.

    The models are those of `export.json`, in its order. A model of the last token reads n texts. A model of the mean
    averages the prompt as well. It reads the prompt with each response, without what the chat template writes after it,
    and then the prompt alone: n + 1 texts, or more if the prompt was cut differently for some responses. Later tokens
    do not change the states of earlier ones, hence, with k tokens in all and p in the prompt,

        mean over the response = (k mean over all - p mean over the prompt) / (k - p)

    Args:
        ids: for each model the token ids of each of its texts.

    Raises `PrmError` for a model of the mean whose states depend on later tokens: its prompt cannot be taken off.
    """

    def __init__(self, model: RewardModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Encoded]):
        if any(pooling == "mean" for _, pooling in model.feature_spec) and not is_causal(model.backbone):
            raise PrmError(
                "the run reads the mean over the response, and the hidden states of its backbone depend on later "
                "tokens: no mean over the prompt alone can be taken off. Train with search.poolings [last], or let "
                "'score' read the texts"
            )
        self._model, self._tokenizer, self._texts = model, tokenizer, texts
        prompts = [tuple(text.ids[: text.response[0]]) for text in texts]
        position = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
        self._prompt_of = [position[prompt] for prompt in prompts]
        with_responses = [text.ids[: text.response[1]] for text in texts]
        by_pooling = {"last": [text.ids for text in texts], "mean": [*with_responses, *map(list, position)]}
        self.ids = [by_pooling[pooling] for _, pooling in model.feature_spec]

    @cached_property
    def texts(self) -> list[list[str]]:
        """The texts with these ids, special tokens included. Raises `DataError` for ids that no text has."""
        distinct = {tuple(ids) for of_model in self.ids for ids in of_model}
        text = {ids: text_of(self._tokenizer, list(ids)) for ids in distinct}
        return [[text[tuple(ids)] for ids in of_model] for of_model in self.ids]

    def features(self, vectors: Iterable[object]) -> Tensor:
        """The features that `Scorer.score_features` takes, float32 [n, d].

        Args:
            vectors: one array for each model, with one vector for each of its texts, in float32.

        Raises `PrmError` for another number of arrays, other shapes, values that are not finite, vectors that were
        normalised, and for means that were rounded to 16 bits.
        """
        spec, usual = self._model.feature_spec, _usual_lengths(self._model)
        given = require_list("vectors", vectors)
        if len(given) != len(spec):
            names = ", ".join(map(repr, format_features(spec)))
            raise PrmError(f"'vectors' must be a list of {len(spec)}, an array for each of {names}; got {len(given)}")
        states = []
        for i, ((_, pooling), ids) in enumerate(zip(spec, self.ids, strict=True)):
            name = f"vectors[{i}]"
            one = _matrix(name, given[i], len(ids), self._model.width, usual.device)
            _refuse_normalised(name, one[:, None], usual[i : i + 1])
            states.append(self._over_responses(name, one) if pooling == "mean" else one)
        return torch.cat(states, 1)

    def _over_responses(self, name: str, means: Tensor) -> Tensor:
        """Means over the responses, [n, width], from what a model of the mean gives of its texts."""
        _refuse_rounded(name, means)
        whole, prompt = means[: len(self._texts)], means[len(self._texts) :][self._prompt_of]
        ratio = [start / (end - start) for start, end in (text.response for text in self._texts)]
        return whole + torch.tensor(ratio, device=means.device)[:, None] * (whole - prompt)


def text_of(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """A text that the tokenizer, with its usual special tokens, turns into these ids.

    Raises `DataError` if there is none, as where the end of a prompt and the beginning of a response would be joined.
    """
    # some tokenizers put a token of their own before or after every text
    for part in (ids, ids[1:], ids[:-1], ids[1:-1]):
        text = cast(str, tokenizer.decode(part, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        if tokenizer(text, verbose=False)["input_ids"] == ids:
            return text
    raise DataError(
        "no text gives the same tokens, because the tokenizer joins what is encoded apart, such as the end of the "
        "prompt and the beginning of the response: send the token ids of 'feature_ids' or 'feature_inputs' instead"
    )


def checked_features(model: RewardModel, features: object) -> Tensor:
    """Features as float32 [n, d] on the model's device.

    Raises `PrmError` for another shape, values that are not finite, and vectors that were normalised.
    """
    usual = _usual_lengths(model)
    given = _matrix("features", features, None, len(usual) * model.width, usual.device, len(usual))
    _refuse_normalised("features", given.view(-1, len(usual), model.width), usual)
    return given


def _matrix(name: str, values: object, rows: int | None, width: int, device: torch.device, states: int = 1) -> Tensor:
    """Numbers as float32 [rows, width]; any number of rows for `None`.

    Raises `PrmError` for another shape and values that are not finite.
    """
    size = f"[{'n' if rows is None else rows}, {width}]"
    try:
        given = torch.as_tensor(values).to(device, torch.float32)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise PrmError(f"'{name}' must be numbers {size}, got {shown(values)}") from None
    if given.dim() != 2 or given.shape[1] != width or len(given) != (len(given) if rows is None else rows):
        several = f", {states} hidden states side by side" if states > 1 else ""
        raise PrmError(f"'{name}' must have the shape {size}{several}, got {list(given.shape)}")
    finite = given.isfinite().all(1)
    if not finite.all():
        raise PrmError(f"'{name}[{int(finite.logical_not().nonzero()[0])}]' has values that are not finite")
    return given


def _usual_lengths(model: RewardModel) -> Tensor:
    """Of each hidden state in the training texts, [k]."""
    square = model.standard_mean.square() + model.standard_scale.square()
    return square.view(-1, model.width).sum(1).sqrt()


def _refuse_normalised(name: str, states: Tensor, usual: Tensor) -> None:
    """Raise `PrmError` if all states [n, k, width] have length 1, and those of the training texts, [k], had not."""
    unit = (states.norm(dim=2) - 1).abs() < _UNIT
    if len(states) and unit.all() and (usual > _LONG).all():
        raise PrmError(f"'{name}' all have length 1: turn the server's normalisation off")


def _refuse_rounded(name: str, means: Tensor) -> None:
    """Raise `PrmError` for means in 16 bits: a short response after a long prompt is lost in their rounding."""
    for dtype in (torch.bfloat16, torch.float16):
        if len(means) and torch.equal(means, means.to(dtype).float()):
            raise PrmError(
                f"'{name}' were rounded to {str(dtype).removeprefix('torch.')}, too coarse to take the prompt off the "
                "mean: let the server use float32"
            )
