"""Features that another program computed: the texts to send to it, and the checks of what comes back."""

from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prm.errors import DataError, PrmError, shown
from prm.models.reward_model import RewardModel

_UNIT = 1e-2  # vectors whose length is this close to 1, all of them, were normalised
_LONG = 2.0  # unless the run's own have such a length


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
        "no text gives the same tokens, because the tokenizer joins the end of the prompt and the beginning of the "
        "response: send the token ids of 'feature_ids' instead"
    )


def checked_features(model: RewardModel, features: object) -> Tensor:
    """Features as float32 [n, d] on the model's device.

    Raises `PrmError` for another shape, values that are not finite, and vectors that were normalised.
    """
    width = len(model.standard_mean)
    try:
        given = torch.as_tensor(features).to(model.standard_mean.device, torch.float32)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise PrmError(f"'features' must be numbers [n, {width}], got {shown(features)}") from None
    if given.dim() != 2 or given.shape[1] != width:
        several = f", {len(model.feature_spec)} hidden states side by side" if len(model.feature_spec) > 1 else ""
        raise PrmError(f"'features' must have the shape [n, {width}]{several}, got {list(given.shape)}")
    finite = given.isfinite().all(1)
    if not finite.all():
        raise PrmError(f"'features[{int(finite.logical_not().nonzero()[0])}]' has values that are not finite")
    if len(given) and _are_normalised(model, given):
        raise PrmError("'features' all have length 1: turn the server's normalisation off")
    return given


def _are_normalised(model: RewardModel, features: Tensor) -> bool:
    """Whether every hidden state has length 1, and those of the training texts had not."""
    lengths = features.view(len(features), -1, model.width).norm(dim=2)
    usual = (model.standard_mean.square() + model.standard_scale.square()).view(-1, model.width).sum(1).sqrt()
    return bool(((lengths - 1).abs() < _UNIT).all() and (usual > _LONG).all())
