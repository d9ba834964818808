"""Models, tokenizers and settings of others come in here: whole or not at all.

Nothing that a file lacks is made up, no code of theirs is run, and nothing is unpickled.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from prm.errors import PrmError, some


def load_config(source: str, what: str) -> PretrainedConfig:
    """The settings of a model. Raises `PrmError`, which begins with `what`, where they cannot be loaded."""
    with _refused(what):
        config: PretrainedConfig = AutoConfig.from_pretrained(source, trust_remote_code=False)
    return config


def load_tokenizer_of(source: str, what: str) -> PreTrainedTokenizerBase:
    """A tokenizer. Raises `PrmError`, which begins with `what`, where it cannot be loaded or has no vocabulary."""
    with _refused(what):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    if len(tokenizer.get_vocab()) <= len(tokenizer.added_tokens_decoder):  # some classes start empty without a file
        raise PrmError(f"{what}: its tokenizer has no vocabulary: a file such as tokenizer.json is missing")
    return tokenizer


def load_model(auto_class: Any, source: str, what: str, dtype: torch.dtype, **kwargs: Any) -> PreTrainedModel:
    """A model of the class, every weight of which comes from its files.

    Raises `PrmError`, which begins with `what`, where it cannot be loaded, where weights are missing, have other
    shapes or are no finite numbers, and where its files hold weights that would be lost; a language model's output head
    may be, and nothing else.
    """
    _refuse_unknown_head(load_config(source, what), source, what)
    with _refused(what):
        model, found = auto_class.from_pretrained(
            source,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that we can name them
            **kwargs,
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise PrmError(
            f"{what} holds an adapter: merge it into its model first (PEFT's merge_and_unload) and save that"
        )
    loaded: PreTrainedModel = model
    left_over = found["unexpected_keys"]
    if left_over and auto_class is not AutoModelForCausalLM:
        left_over = _not_of_a_language_model(source, left_over, what)
    _refuse_incomplete(loaded, found, left_over, what)
    _refuse_no_numbers(loaded, what)
    return loaded


def _refuse_incomplete(model: PreTrainedModel, found: dict[str, Any], left_over: set[str], what: str) -> None:
    name = type(model).__name__
    shapes = {key: f"{key} is {list(given)}, not {list(own)}" for key, given, own in found["mismatched_keys"]}
    faults = [
        f"{len(keys)} weights {fault} ({some(keys)})"
        for keys, fault in (
            (found["missing_keys"], f"of {name} are missing"),
            (shapes.values(), f"do not fit {name}"),
            (left_over, f"have no place in {name} and would be lost"),
        )
        if keys
    ]
    if faults:
        raise PrmError(f"{what} is not what its config.json says{_saved_as(model.config)}: {'; '.join(faults)}")


@torch.no_grad()
def _refuse_no_numbers(model: PreTrainedModel, what: str) -> None:
    # a sum passes on whatever is no number, and is quicker than a look at each
    suspect = [(k, p) for k, p in model.named_parameters() if not p.sum(dtype=torch.float32).isfinite()]
    if broken := [name for name, parameter in suspect if not parameter.isfinite().all()]:
        raise PrmError(f"{what}: {len(broken)} weights hold what is no finite number ({some(broken)})")


def _saved_as(config: PretrainedConfig) -> str:
    return f" ({', '.join(config.architectures)})" if config.architectures else ""


def _not_of_a_language_model(source: str, left_over: set[str], what: str) -> set[str]:
    """Those that the language model of this kind has no place for either: its output head is left out on purpose."""
    try:
        with _refused(what):  # nothing is read on this device but names and shapes
            speaks: Any = AutoModelForCausalLM.from_pretrained(
                source,
                device_map="meta",
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except PrmError:  # there is none of this kind
        return left_over
    strange = speaks[1]["unexpected_keys"]
    return {name for name in left_over if any(name == other or other.endswith(f".{name}") for other in strange)}


def _refuse_unknown_head(config: PretrainedConfig, source: str, what: str) -> None:
    """A class that transformers does not know may have a head that is saved apart, or under a name of its own."""
    unknown = [name for name in config.architectures or [] if not hasattr(transformers, name)]
    apart = sorted(p.name for kind in ("*head*.safetensors", "*head*.bin") for p in Path(source).glob(kind))
    if not unknown and not apart:
        return
    why = f"was saved as {unknown[0]}, which transformers does not know" if unknown else f"has {apart[0]} beside it"
    raise PrmError(
        f"{what} {why}: its head would be lost. Save a linear reward head as ...ForSequenceClassification with one "
        "label and its layer 'score', a language model as ...ForCausalLM"
    )


@contextmanager
def _refused(what: str) -> Iterator[None]:
    """Whatever a library makes of somebody's files is one line."""
    try:
        with quietly():
            yield
    except Exception as error:  # broken files raise anything, safetensors its own type
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise PrmError(f"{what} cannot be loaded: {lines[0]}") from None


@contextmanager
def quietly() -> Iterator[None]:
    """transformers says nothing within the block: heads that are left out on purpose are no news, bars no log."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bar:
            transformers_logging.enable_progress_bar()
