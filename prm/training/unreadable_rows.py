"""Find rows that a model cannot read, before training or evaluation uses them."""

import copy
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModel, PretrainedConfig

from prm.checkpoint import checkpoint as checkpoints
from prm.checkpoint.checkpoint import backbone_record, make_encoder
from prm.checkpoint.config_file import ModelSettings
from prm.config import BackboneConfig, RewardModelConfig, UseOfText, UserConfig
from prm.data.comparison import Comparison, Prompt
from prm.data.encoding import Cuts, TextEncoder
from prm.data.sources.collector import BAD, KEPT, USED, Feedback, SkippedRow
from prm.errors import DataError
from prm.io.progress import progress
from prm.models.backbones import is_reward_model, load_tokenizer, processes, resolve
from prm.models.length_limits import reach
from prm.models.loading import load_config

logger = logging.getLogger(__name__)

BOTH = ("chosen", "rejected")
_UNREADABLE = "that cannot be read"
_NAMED = 5  # log so many skipped rows; skipped.jsonl lists all


def encoder_of_config(
    backbone: BackboneConfig, users: UserConfig, reward: RewardModelConfig | None = None
) -> TextEncoder:
    """The encoder of a new model; without `reward`, of a policy. No weights are read.

    Raises `PrmError` if the backbone cannot be found.
    """
    config, tokenizer = _config_of(backbone.name), load_tokenizer(backbone.name)
    with torch.device("meta"):  # no memory for weights
        model = AutoModel.from_config(config, trust_remote_code=False)
    backbone = replace(backbone, max_length=min(backbone.max_length, reach(model)))
    base_head = reward is not None and is_reward_model(backbone.name)
    record = backbone_record(backbone, model, tokenizer, base_head=base_head)
    settings = ModelSettings(record, users, reward, base_head)
    return make_encoder(checkpoints.as_read(record, tokenizer), len(tokenizer), settings, config)


def encoder_of_run(run: Path, backbone: str | None = None) -> TextEncoder:
    """The encoder of a run. No weights are read."""
    settings, tuned = checkpoints.read_config(run).settings, run / "backbone"
    name = str(tuned) if tuned.is_dir() else backbone or checkpoints.backbone_of(settings.backbone, run)
    tokenizer = checkpoints.as_read(settings.backbone, load_tokenizer(name))
    return make_encoder(tokenizer, len(tokenizer), settings, _config_of(name))


def _config_of(name: str) -> PretrainedConfig:
    return load_config(resolve(name), f"backbone {name!r}")


def readable(
    feedback: Feedback, encoder: TextEncoder, skip: bool, sides: Sequence[str] = BOTH, texts: UseOfText = "prompt"
) -> Feedback:
    """The feedback without comparisons that the encoder cannot read, which are listed among the skipped rows.

    Args:
        skip: leave them out; otherwise the first one is an error.
        sides: the responses that will be read.
        texts: how `user_text` is read.

    Raises `DataError` naming row and fault, also if nothing is left.
    """
    reader, unreadable = _Reader(encoder, sides, texts), list[tuple[Comparison, str]]()
    for c in progress(feedback.comparisons, desc="checking texts", unit="comparison"):
        if fault := reader.fault(c):
            if not skip:
                raise DataError(
                    f"{_with_origin(c, fault)}; 'data.on_bad_row: skip' leaves such rows out and lists them"
                )
            unreadable.append((c, fault))
    if not unreadable:
        return feedback
    unreadable_ids = {id(c) for c, _ in unreadable}
    kept = [c for c in feedback.comparisons if id(c) not in unreadable_ids]
    if not kept:
        raise DataError(f"{_with_origin(*unreadable[0])}; none of the {len(unreadable)} comparisons can be read")
    if processes().is_main_process:
        for c, fault in unreadable[:_NAMED]:
            logger.warning("left out: %s", _with_origin(c, fault))
        logger.warning("%d comparisons that cannot be read are left out", len(unreadable))
    rows = len(_origins([c for c, _ in unreadable]) - _origins(kept))
    counts = Counter({USED: feedback.rows[USED] - rows, BAD: feedback.rows[BAD] + rows})
    pairs = Counter({KEPT: len(kept), _UNREADABLE: len(unreadable)})
    skipped: list[SkippedRow] = [
        {"user_id": c.user_id, "row_of": c.origin, "fault": fault, "row": c.to_row()} for c, fault in unreadable
    ]
    return replace(
        feedback,
        comparisons=kept,
        rows=Counter({**feedback.rows, **counts}),
        pairs=Counter({**feedback.pairs, **pairs}),
        skipped=[*feedback.skipped, *skipped],
    )


class _Reader:
    """Finds unreadable comparisons. Tokenises each text once, and complete sequences only if they may be too long."""

    def __init__(self, encoder: TextEncoder, sides: Sequence[str], texts: UseOfText):
        self._encoder, self._sides, self._texts = copy.copy(encoder), sides, texts
        self._encoder.cuts = Cuts()  # do not change the caller's counts
        self._prompt_lengths: dict[Prompt, int] = {}
        self._text_lengths: dict[str, int] = {}
        self._response_lengths: dict[str, int] = {}

    def fault(self, c: Comparison) -> str:
        """What is wrong with a comparison; "" if nothing."""
        encoder, text = self._encoder, c.user_text if self._texts == "prompt" else ""
        try:
            if c.prompt not in self._prompt_lengths:
                self._prompt_lengths[c.prompt] = len(encoder.encode_prompt(c.prompt))
            if text not in self._text_lengths:
                self._text_lengths[text] = len(encoder.text_ids(text))
        except DataError as error:
            return str(error)
        prefix_length = self._prompt_lengths[c.prompt] + self._text_lengths[text] + len(encoder.end_ids)
        for side in self._sides:
            response = getattr(c, side)
            if response not in self._response_lengths:
                self._response_lengths[response] = len(encoder.ids(response))
            if 0 < self._response_lengths[response] <= encoder.max_length - prefix_length:
                continue
            try:
                encoder.encode(c.prompt, response, 0, text)
            except DataError as error:
                return f"'{side}': {error}"
        return ""


def _with_origin(c: Comparison, fault: str) -> str:
    return f"{c.origin or 'a comparison'}: {fault}"


def _origins(comparisons: Sequence[Comparison]) -> set[str]:
    """The rows that comparisons come from; a pair of ratings has two."""
    return {row for c in comparisons for row in c.origin.split(" and ")}
