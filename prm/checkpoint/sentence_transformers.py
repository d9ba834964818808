"""Exports the backbone that a run's linear heads read as sentence-transformers models, one per hidden state.

The files are those that sentence-transformers has written since version 2, which vLLM and text-embeddings-inference
read, too.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prm.checkpoint.checkpoint import Checkpoint, load
from prm.checkpoint.exports import RECORD, ExportedFeature, ExportRecord, card, refuse_replacing, refuse_unexportable
from prm.checkpoint.feature_digest import feature_digest
from prm.errors import PrmError
from prm.io.disk import make_folder
from prm.io.environment import environment
from prm.io.folders import atomic_folder, working_in
from prm.io.tables import write_json, write_text
from prm.io.tensors import written_by_others
from prm.models.backbone_state import unconditioned
from prm.models.backbones import is_causal, truncate_layers
from prm.models.loading import quietly
from prm.models.reward_model import RewardModel

_MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]
_MODES = {"last": "pooling_mode_lasttoken", "mean": "pooling_mode_mean_tokens"}
_POOLING = {  # servers take the first that is true, and require the others to be there
    "pooling_mode_cls_token": False,
    "pooling_mode_mean_tokens": False,
    "pooling_mode_max_tokens": False,
    "pooling_mode_mean_sqrt_len_tokens": False,
    "pooling_mode_weightedmean_tokens": False,
    "pooling_mode_lasttoken": False,
    "include_prompt": True,
}


def export_sentence_transformers(
    run: Path, output: Path, backbone: str | None = None, overwrite: bool = False
) -> ExportRecord:
    """Write what the linear heads of a run read as a sentence-transformers model; the folder appears complete.

    A run that reads several hidden states gets one model for each, in folders such as `15-last`.

    Args:
        backbone: folder or hub id of the backbone, if it was moved.
        overwrite: replace an earlier export.

    Raises `PrmError` if the run's features cannot be exported or `output` exists, and `CheckpointError` as
    `prm.checkpoint.checkpoint.load` does.
    """
    config = refuse_unexportable(run)
    refuse_replacing(output, overwrite)
    make_folder(output.parent)
    with working_in(output):
        refuse_replacing(output, overwrite)
        checkpoint: Checkpoint[RewardModel] = load(run, backbone)
        record = _record(run, checkpoint)
        if any(feature["pooling"] == "mean" for feature in record["features"]):
            _refuse_bidirectional(run, checkpoint.model)
        with atomic_folder(output) as folder:
            _save_models(checkpoint, record["features"], folder)
            write_json(folder / RECORD, record)
            write_text(folder / "README.md", card(record, config, output))
    return record


def _refuse_bidirectional(run: Path, model: RewardModel) -> None:
    """Raise `PrmError` if a prompt's states depend on the response, so that the prompt cannot be taken off a mean."""
    if not is_causal(model.backbone):
        raise PrmError(
            f"{run} reads the mean over the response. A server's means give it if the backbone is causal, but hidden "
            "states of this one depend on later tokens. To export, train with search.poolings [last], or name the "
            "features, as in reward.features ['15 last'] (with train 'lora' or 'full': reward.pooling 'last')"
        )


def _record(run: Path, checkpoint: Checkpoint[RewardModel]) -> ExportRecord:
    model, backbone = checkpoint.model, checkpoint.settings.backbone
    several = len(model.feature_spec) > 1
    features: list[ExportedFeature] = [
        {
            "folder": f"{layers}-{pooling}" if several else ".",
            "layers": layers,
            "pooling": pooling,
            "width": model.width,
        }
        for layers, pooling in model.feature_spec
    ]
    return {
        "format": "sentence-transformers",
        "run": str(run),
        "digest": feature_digest(checkpoint),
        "dtype": backbone.dtype,
        "max_length": backbone.max_length,
        "features": features,
        "environment": environment(),
    }


def _save_models(checkpoint: Checkpoint[RewardModel], features: list[ExportedFeature], folder: Path) -> None:
    max_length = checkpoint.settings.backbone.max_length
    tokenizer = _padding_right(checkpoint.tokenizer, max_length)
    with _plain_backbone(checkpoint.model) as backbone:
        if getattr(backbone.config, "pad_token_id", None) is None:  # text-embeddings-inference requires a number
            backbone.config.update({"pad_token_id": tokenizer.pad_token_id})
        for feature in sorted(features, key=lambda feature: -feature["layers"]):  # each cuts the one before
            truncate_layers(backbone, feature["layers"])
            _save_model(backbone, tokenizer, folder / feature["folder"], feature, max_length)


def _save_model(
    backbone: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    feature: ExportedFeature,
    max_length: int,
) -> None:
    make_folder(folder / "1_Pooling")
    with written_by_others(folder), quietly():
        backbone.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    write_json(folder / "modules.json", _MODULES)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    no_prompts: dict[str, object] = {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "dot"}
    write_json(folder / "config_sentence_transformers.json", no_prompts)
    pooling = {"word_embedding_dimension": feature["width"], **_POOLING, _MODES[feature["pooling"]]: True}
    write_json(folder / "1_Pooling/config.json", pooling)


@contextmanager
def _plain_backbone(model: RewardModel) -> Iterator[PreTrainedModel]:
    """The backbone with its adapter merged and its plain token table."""
    backbone = model.backbone
    if isinstance(backbone, PeftModel):
        backbone = backbone.merge_and_unload()
    with unconditioned(backbone) as plain:
        yield plain


def _padding_right(tokenizer: PreTrainedTokenizerBase, max_length: int) -> PreTrainedTokenizerBase:
    """The tokenizer for texts that `Scorer.feature_texts` gives: without a chat template, which they have had already.

    Padding on the left would move positions in models with a table of them. What the padding token is does not matter.
    """
    tokenizer.chat_template = None
    tokenizer.padding_side, tokenizer.model_max_length = "right", max_length
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer
