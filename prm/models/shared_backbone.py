"""Several models on one backbone: its weights are in memory once, and each model has the rest to itself."""

import copy
from itertools import chain

import torch
from transformers import PreTrainedModel

from prm.models.backbones import is_reward_model, load_backbone, load_reward_model, truncate_layers


def share_weights(backbone: PreTrainedModel, layers: int | None = None) -> PreTrainedModel:
    """A copy of a frozen backbone that shares its tensors, truncated to its first `layers` layers if given.

    Modules and configs are the copy's own: it can be conditioned, switched and run while another thread uses the
    original. Raises `PrmError` as `truncate_layers` does.
    """
    memo = {id(tensor): tensor for tensor in chain(backbone.parameters(), backbone.buffers())}  # is not copied
    shared = copy.deepcopy(backbone, memo)
    if layers is not None:
        truncate_layers(shared, layers)
    return shared


class BackboneLoader:
    """Loads reward models' backbones, each once: those of one name and dtype share their weights.

    It keeps complete backbones. Drop it when all models are loaded, to free the layers that none of them has.
    """

    def __init__(self) -> None:
        self._complete: dict[tuple[str, torch.dtype], PreTrainedModel] = {}

    def load(self, name: str, layers: int | None = None, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        """A backbone without its head: truncated as by `load_backbone`, or complete as by `load_reward_model`.

        It may be bidirectional: whether a run can be trained on it was decided when it was trained.

        Raises as they do.
        """
        has_head = is_reward_model(name)
        if (name, dtype) not in self._complete:
            complete = load_reward_model(name, dtype)[0] if has_head else load_backbone(name, None, dtype, True)
            self._complete[name, dtype] = complete
        return share_weights(self._complete[name, dtype], None if has_head else layers)
