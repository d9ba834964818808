"""How a backbone reads is a state of its modules: attention, adapters, whose rows user ids mean, dropout, hooks.

Whoever shares the backbone would read with a state that somebody else has set, so it is set in one place, under the
backbone's lock, and a backbone that may be shared is read with under the same lock.
"""

import threading
import weakref
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from prm.models.backbones import capture_hidden_states
from prm.models.user_embedding import ConditionedEmbedding
from prm.users.models import UserModel

_locks: "weakref.WeakKeyDictionary[object, Any]" = weakref.WeakKeyDictionary()
_making = threading.Lock()


def lock_of(thing: object) -> Any:
    """The re-entrant lock that all who share a thing share with it, as long as it lives."""
    with _making:
        if (lock := _locks.get(thing)) is None:
            lock = _locks[thing] = threading.RLock()
        return lock


def plain(backbone: nn.Module) -> nn.Module:
    """The language model that adapters lie in."""
    return backbone.get_base_model() if isinstance(backbone, PeftModel) else backbone


@contextmanager
def switched(
    backbone: nn.Module,
    *,
    attention: str | None = None,
    people: UserModel | None = None,
    adapter: str | None = None,
    bare: bool = False,
    evaluating: bool = False,
    depths: Collection[int] = (),
) -> Iterator[dict[int, Tensor]]:
    """No other thread reads with the backbone, and it reads as asked for, as long as the block lasts.

    What is not asked for stays as it is; afterwards everything is as it was before. A thread that is in here may go in
    again. What is trained stays trained, whichever adapter acts. Yields what each block k of `depths` puts out, before
    the final norm, when the backbone is run.

    Args:
        attention: attend by the registered function of that name.
        people: user ids mean the rows of this user model.
        adapter: the adapter that acts, by name; `bare`: none does.
        evaluating: nothing is dropped.
    """
    model = cast(Any, plain(backbone))
    with lock_of(_words(model.get_input_embeddings())), ExitStack() as stack:
        changes: list[tuple[Any, str, Any]] = []
        if attention is not None:
            changes.append((model.config, "_attn_implementation", attention))
        if people is not None:
            changes.append((model.get_input_embeddings(), "_user_model", [people]))
        if adapter is not None or bare:
            layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
            # peft's own switches would also change what asks for gradients
            changes += [(x, "_disable_adapters", bare) for x in layers]
            changes += [(x, "_active_adapter", [adapter]) for x in layers if adapter is not None]
        if evaluating and backbone.training:
            changes += [(module, "training", False) for module in backbone.modules() if module.training]
        for change in changes:
            stack.enter_context(_set(*change))
        yield stack.enter_context(capture_hidden_states(model.base_model, depths))


@contextmanager
def unconditioned(backbone: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """The backbone with its plain word table in place, as it is saved; the wrapped one is back afterwards."""
    wrapped = cast(ConditionedEmbedding, backbone.get_input_embeddings())
    with lock_of(_words(wrapped)):
        backbone.set_input_embeddings(wrapped.words)
        try:
            yield backbone
        finally:
            backbone.set_input_embeddings(wrapped)


def _words(embedding: nn.Module) -> nn.Module:
    """The word table: whatever wraps a backbone, or is wrapped around it, there is one of it."""
    while isinstance(embedding, ConditionedEmbedding):
        embedding = embedding.words
    return embedding


@contextmanager
def _set(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
