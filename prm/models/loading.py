"""Loads models, tokenizers and configs of others: completely, or with an error.

Missing weights are not initialised, no remote code is run, and nothing is unpickled.
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
from prm.models.backbone_paths import is_out_of_reach


def load_config(source: str, what: str) -> PretrainedConfig:
    """Load a model's config. Raises `PrmError`, starting with `what`, if it cannot be loaded."""
    with _one_line_errors(what):
        config: PretrainedConfig = AutoConfig.from_pretrained(
            source, trust_remote_code=False, local_files_only=is_out_of_reach(source)
        )
    return config


def load_tokenizer_of(source: str, what: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer. Raises `PrmError`, starting with `what`, if it cannot be loaded or has no vocabulary."""
    with _one_line_errors(what):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, trust_remote_code=False, local_files_only=is_out_of_reach(source)
        )
    if len(tokenizer.get_vocab()) <= len(tokenizer.added_tokens_decoder):  # some classes load as empty without files
        raise PrmError(f"{what}: its tokenizer has no vocabulary: a file such as tokenizer.json is missing")
    return tokenizer


def load_model(auto_class: Any, source: str, what: str, dtype: torch.dtype, **kwargs: Any) -> PreTrainedModel:
    """Load a model of the class, with every weight from its files.

    Raises `PrmError`, starting with `what`, if it cannot be loaded, if weights are missing, not finite or have other
    shapes, or if its files hold weights that the class has no place for, other than a language model's output head.
    """
    _refuse_unknown_head(load_config(source, what), source, what)
    with _one_line_errors(what):
        model, loading_info = auto_class.from_pretrained(
            source,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # _refuse_incomplete names them
            local_files_only=is_out_of_reach(source),
            **kwargs,
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise PrmError(
            f"{what} holds an adapter: merge it into its model first (PEFT's merge_and_unload) and save that"
        )
    loaded: PreTrainedModel = model
    unexpected = loading_info["unexpected_keys"]
    if unexpected and auto_class is not AutoModelForCausalLM:
        unexpected = _unexpected_in_language_model(source, unexpected, what)
    _refuse_incomplete(loaded, loading_info, unexpected, what)
    _refuse_non_finite(loaded, what)
    return loaded


def _refuse_incomplete(model: PreTrainedModel, loading_info: dict[str, Any], unexpected: set[str], what: str) -> None:
    name = type(model).__name__
    shapes = {
        key: f"{key} is {list(saved)}, not {list(expected)}" for key, saved, expected in loading_info["mismatched_keys"]
    }
    faults = [
        f"{len(keys)} weights {fault} ({some(keys)})"
        for keys, fault in (
            (loading_info["missing_keys"], f"of {name} are missing"),
            (shapes.values(), f"do not fit {name}"),
            (unexpected, f"have no place in {name} and would be lost"),
        )
        if keys
    ]
    if faults:
        raise PrmError(f"{what} is not what its config.json says{_architectures(model.config)}: {'; '.join(faults)}")


@torch.no_grad()
def _refuse_non_finite(model: PreTrainedModel, what: str) -> None:
    # a sum keeps NaN and infinity, and is faster than checking each value
    suspect = [(k, p) for k, p in model.named_parameters() if not p.sum(dtype=torch.float32).isfinite()]
    if broken := [name for name, parameter in suspect if not parameter.isfinite().all()]:
        raise PrmError(f"{what}: {len(broken)} weights hold values that are no finite number ({some(broken)})")


def _architectures(config: PretrainedConfig) -> str:
    return f" ({', '.join(config.architectures)})" if config.architectures else ""


def _unexpected_in_language_model(source: str, unexpected: set[str], what: str) -> set[str]:
    """The weights that the causal language model of this type does not know either: its head is left out on purpose."""
    try:
        with _one_line_errors(what):  # on this device, only names and shapes are read
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source,
                device_map="meta",
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                local_files_only=is_out_of_reach(source),
            )
    except PrmError:  # this type has no language model
        return unexpected
    unknown = loaded[1]["unexpected_keys"]
    return {name for name in unexpected if any(name == other or other.endswith(f".{name}") for other in unknown)}


def _refuse_unknown_head(config: PretrainedConfig, source: str, what: str) -> None:
    """Raise `PrmError` for a custom class, or for a head in a separate file: `from_pretrained` would drop the head."""
    unknown = [name for name in config.architectures or [] if not hasattr(transformers, name)]
    head_files = sorted(p.name for kind in ("*head*.safetensors", "*head*.bin") for p in Path(source).glob(kind))
    if not unknown and not head_files:
        return
    reason = (
        f"was saved as {unknown[0]}, which transformers does not know" if unknown else f"has {head_files[0]} beside it"
    )
    raise PrmError(
        f"{what} {reason}: its head would be lost. Save a linear reward head as ...ForSequenceClassification with one "
        "label and its layer 'score', a language model as ...ForCausalLM"
    )


@contextmanager
def _one_line_errors(what: str) -> Iterator[None]:
    """Turn any error of the block into a `PrmError` of one line."""
    try:
        with quietly():
            yield
    except Exception as error:  # broken files raise anything, safetensors its own type
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise PrmError(f"{what} cannot be loaded: {lines[0]}") from None


@contextmanager
def quietly() -> Iterator[None]:
    """Silence transformers within the block: its warnings about heads that are left out on purpose, and its bars."""
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
