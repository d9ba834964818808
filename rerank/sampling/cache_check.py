"""Check, once per model, that decoding with a cache gives the logits of a full forward pass."""

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from prm.errors import PrmError
from prm.models.backbone_state import switched
from rerank.sampling.decoding import Reader
from rerank.sampling.shared_prefix_cache import can_share

_PROMPTS, _RESPONSES = [[*range(40, 46)], [*range(50, 63)]], [[70, 71, 72], [73, 74, 75], [76, 77, 78]]
_OWNERS = [0, 0, 1]
_TOLERANCE = {torch.float32: 0.01}  # of the logits' spread; 0.1 in other dtypes: both exceed rounding errors
_shares: "weakref.WeakKeyDictionary[nn.Module, bool]" = weakref.WeakKeyDictionary()


def shares_prompts(model: Any) -> bool:
    """Whether all responses to a prompt can share its keys and values; otherwise each needs a copy of the cache.

    Raises `PrmError` if neither reproduces the logits of a full forward pass: the model cannot be sampled from.
    """
    with switched(model, evaluating=True):
        if model not in _shares:  # another thread may have checked it meanwhile
            modes = (True, False) if can_share(model) else (False,)
            working = [mode for mode in modes if _cache_agrees(model, mode)]
            if not working:
                raise PrmError(
                    f"{type(model).__name__} cannot be sampled from: with a cache its logits differ from those of a "
                    "full forward pass; name a generator of another architecture"
                )
            _shares[model] = working[0]
        return _shares[model]


@torch.no_grad()
def _cache_agrees(model: Any, shared: bool) -> bool:
    """Compare logits after each response's last token, with cached prompts of unequal length, to a full pass."""
    vocabulary = model.config.get_text_config().vocab_size
    prompts, responses = ([[i % vocabulary for i in ids] for ids in texts] for texts in (_PROMPTS, _RESPONSES))
    try:
        reader = Reader(model, prompts, torch.tensor(_OWNERS), len(responses[0]), shared)
        for tokens in zip(*responses, strict=True):
            reader.read(torch.tensor(tokens, device=model.device))
    except Exception:  # an unsupported cache may raise anything
        return False
    full = [_full_logits(model, prompts[owner] + response) for owner, response in zip(_OWNERS, responses, strict=True)]
    expected = torch.stack(full)
    errors = (reader.logits - expected).norm(dim=-1) / (expected - expected.mean(-1, keepdim=True)).norm(dim=-1)
    return bool((errors < _TOLERANCE.get(model.dtype, 0.1)).all())


def _full_logits(model: Any, ids: list[int]) -> Tensor:
    logits: Tensor = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits
    return logits[0, -1].float()
