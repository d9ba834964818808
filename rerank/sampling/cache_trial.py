"""Whether a language model goes on from what it has read as if it read everything anew: tried out, once per model."""

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from prm.errors import PrmError
from prm.models.backbone_state import switched
from rerank.sampling.decoding import Reader
from rerank.sampling.shared_prefix_cache import can_share

_PROMPTS, _ANSWERS = [[*range(40, 46)], [*range(50, 63)]], [[70, 71, 72], [73, 74, 75], [76, 77, 78]]
_OWNERS = [0, 0, 1]
_MOST = {torch.float32: 0.01}  # of the spread of logits, else a tenth: what rounding does to them, and more
_shares: "weakref.WeakKeyDictionary[nn.Module, bool]" = weakref.WeakKeyDictionary()


def shares_prompts(model: Any) -> bool:
    """Whether all answers to a prompt can read it at once; otherwise each needs a copy of what was read.

    Raises `PrmError` where neither gives what the model says of the whole text: it cannot be sampled from.
    """
    with switched(model, evaluating=True):
        if model not in _shares:  # another thread may have tried it meanwhile
            ways = (True, False) if can_share(model) else (False,)
            found = [way for way in ways if _goes_on(model, way)]
            if not found:
                raise PrmError(
                    f"{type(model).__name__} cannot be sampled from: going on from what it has read, it says something "
                    "else than of the whole text; name a generator of another architecture"
                )
            _shares[model] = found[0]
        return _shares[model]


@torch.no_grad()
def _goes_on(model: Any, shared: bool) -> bool:
    """Logits behind each answer's last token, its prompt read once beside another of unequal length."""
    vocabulary = model.config.get_text_config().vocab_size
    prompts, answers = ([[i % vocabulary for i in ids] for ids in texts] for texts in (_PROMPTS, _ANSWERS))
    try:
        reader = Reader(model, prompts, torch.tensor(_OWNERS), len(answers[0]), shared)
        for tokens in zip(*answers, strict=True):
            reader.read(torch.tensor(tokens, device=model.device))
    except Exception:  # whatever comes of a cache that it does not know
        return False
    whole = [_alone(model, prompts[owner] + answer) for owner, answer in zip(_OWNERS, answers, strict=True)]
    expected = torch.stack(whole)
    off = (reader.logits - expected).norm(dim=-1) / (expected - expected.mean(-1, keepdim=True)).norm(dim=-1)
    return bool((off < _MOST.get(model.dtype, 0.1)).all())


def _alone(model: Any, ids: list[int]) -> Tensor:
    logits: Tensor = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits
    return logits[0, -1].float()
