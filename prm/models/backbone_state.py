"""Temporary changes to a backbone's state: attention, adapters, user model, dropout, hooks.

Models and threads may share a backbone, so its state is changed only here, under the backbone's lock; a shared
backbone is run under the same lock. A thread takes locks in this order: the user index's, the backbone's, a user
model's.
"""

import threading
import weakref
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, cast

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from prm.models.backbones import capture_hidden_states
from prm.models.user_token_embedding import ConditionedEmbedding
from prm.users.user_model import UserModel

_locks: "weakref.WeakKeyDictionary[object, Any]" = weakref.WeakKeyDictionary()
_locks_lock = threading.Lock()


def lock_of(thing: object) -> Any:
    """The one re-entrant lock of an object, for as long as the object lives."""
    with _locks_lock:
        if (lock := _locks.get(thing)) is None:
            lock = _locks[thing] = threading.RLock()
        return lock


def plain(backbone: nn.Module) -> nn.Module:
    """The language model without PEFT's wrapper."""
    return backbone.get_base_model() if isinstance(backbone, PeftModel) else backbone


@contextmanager
def switched(
    backbone: nn.Module,
    *,
    attention: str | None = None,
    user_model: UserModel | None = None,
    adapter: str | None = None,
    bare: bool = False,
    evaluating: bool = False,
    depths: Collection[int] = (),
) -> Iterator[dict[int, Tensor]]:
    """Lock the backbone for this thread and change its state for the duration of the block.

    Only what is named changes, and it is restored afterwards. Re-entrant. `requires_grad` of parameters does not
    change with the adapter. Yields a dict that a run of the backbone fills with the output of each block k in
    `depths`, before the final norm.

    Args:
        attention: name of the registered attention function to use.
        user_model: the user model whose rows the user ids name.
        adapter: name of the adapter to activate; `bare`: none.
        evaluating: switch dropout off.
    """
    model = cast(Any, plain(backbone))
    with lock_of(_token_table(model.get_input_embeddings())), ExitStack() as stack:
        changes: list[tuple[Any, str, Any]] = []
        if attention is not None:
            changes.append((model.config, "_attn_implementation", attention))
        if user_model is not None:
            changes.append((model.get_input_embeddings(), "_user_model", [user_model]))
        if adapter is not None or bare:
            layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
            # peft's own methods would also change requires_grad
            changes += [(x, "_disable_adapters", bare) for x in layers]
            changes += [(x, "_active_adapter", [adapter]) for x in layers if adapter is not None]
        if evaluating:  # an adapter added to a backbone in eval mode is in training mode
            changes += [(module, "training", False) for module in backbone.modules() if module.training]
        for change in changes:
            stack.enter_context(_set(*change))
        yield stack.enter_context(capture_hidden_states(model.base_model, depths))


class InUse(NamedTuple):
    """Which adapter a backbone has switched on: arguments of `switched`."""

    adapter: str | None
    bare: bool


def adapter_in_use(backbone: nn.Module) -> InUse | None:
    """The adapter that is switched on now; `None` for a backbone without adapters."""
    layer = next((module for module in backbone.modules() if isinstance(module, BaseTunerLayer)), None)
    return None if layer is None else InUse(layer.active_adapters[0], layer.disable_adapters)


@contextmanager
def unconditioned(backbone: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """The backbone with its plain token table, as it is saved; the wrapped one is restored afterwards."""
    wrapped = cast(ConditionedEmbedding, backbone.get_input_embeddings())
    with lock_of(_token_table(wrapped)):
        backbone.set_input_embeddings(wrapped.words)
        try:
            yield backbone
        finally:
            backbone.set_input_embeddings(wrapped)


def _token_table(embedding: nn.Module) -> nn.Module:
    """The token table, which all wrappers of a backbone share."""
    while isinstance(embedding, ConditionedEmbedding):
        embedding = embedding.words
    return embedding


@contextmanager
def _set(owner: Any, name: str, value: Any) -> Iterator[None]:
    previous = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, previous)
