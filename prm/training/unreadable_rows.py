"""Rows that a model cannot read, whatever the fault: found before anything is learnt from them or measured by them."""

import copy
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModel, PretrainedConfig

from prm.checkpoint import checkpoint as checkpoints
from prm.checkpoint.checkpoint import backbone_settings, make_encoder
from prm.config import BackboneConfig, RewardModelConfig, UserConfig
from prm.data.comparison import Comparison, Prompt
from prm.data.encoding import Cuts, TextEncoder
from prm.data.sources.feedback import BAD, KEPT, USED, Feedback
from prm.errors import DataError
from prm.io.progress import progress
from prm.models.backbones import is_reward_model, load_tokenizer, processes, resolve
from prm.models.loading import load_config
from prm.models.max_length import reach

logger = logging.getLogger(__name__)

UseOfText = Literal["prompt", "prior", "unread"]

BOTH = ("chosen", "rejected")
_UNREADABLE = "that cannot be read"
_NAMED = 5  # rows that are left out, in the log; all of them are in skipped.jsonl


def encoder_of_config(
    backbone: BackboneConfig, users: UserConfig, reward: RewardModelConfig | None = None
) -> TextEncoder:
    """The encoder of a model that is yet to be made; without a reward, of a policy. No weights are read.

    Raises `PrmError` where the backbone cannot be found.
    """
    config, tokenizer = _config_of(backbone.name), load_tokenizer(backbone.name)
    with torch.device("meta"):  # no memory for weights
        model = AutoModel.from_config(config, trust_remote_code=False)
    backbone = replace(backbone, max_length=min(backbone.max_length, reach(model)))
    settings: dict[str, Any] = {"backbone": backbone_settings(backbone, model, tokenizer)}
    settings["users"] = {"num_virtual_tokens": users.num_virtual_tokens}
    if reward is not None:
        settings["reward"] = {"form": reward.form, "position": reward.position}
        settings["base_head"] = is_reward_model(backbone.name)
    return make_encoder(tokenizer, len(tokenizer), settings, config)


def encoder_of_run(run: Path, backbone: str | None = None) -> TextEncoder:
    """The encoder of a run. No weights are read."""
    settings, tuned = checkpoints.read_config(run), run / "backbone"
    name = str(tuned) if tuned.is_dir() else backbone or checkpoints.backbone_of(settings["backbone"], run)
    tokenizer = load_tokenizer(name)
    return make_encoder(tokenizer, len(tokenizer), settings, _config_of(name))


def _config_of(name: str) -> PretrainedConfig:
    return load_config(resolve(name), f"backbone {name!r}")


def readable(
    feedback: Feedback, encoder: TextEncoder, skip: bool, sides: Sequence[str] = BOTH, texts: UseOfText = "prompt"
) -> Feedback:
    """The feedback without comparisons that the encoder cannot read, which are listed among the skipped rows.

    Args:
        skip: leave them out; otherwise the first of them is an error.
        sides: the answers that are going to be read.
        texts: what people say of themselves is read in front of the `prompt`, by itself (`prior`), or left `unread`.

    Raises `DataError` naming row and fault, also where nothing is left.
    """
    reader, found = _Reader(encoder, sides, texts), list[tuple[Comparison, str]]()
    for c in progress(feedback.comparisons, desc="checking texts", unit="comparison"):
        if fault := reader.fault(c):
            if not skip:
                raise DataError(f"{_named(c, fault)}; 'data.on_bad_row: skip' leaves such rows out and lists them")
            found.append((c, fault))
    if not found:
        return feedback
    lost = {id(c) for c, _ in found}
    kept = [c for c in feedback.comparisons if id(c) not in lost]
    if not kept:
        raise DataError(f"{_named(*found[0])}; none of the {len(found)} comparisons can be read")
    if processes().is_main_process:
        for c, fault in found[:_NAMED]:
            logger.warning("left out: %s", _named(c, fault))
        logger.warning("%d comparisons that cannot be read are left out", len(found))
    rows = len(_origins([c for c, _ in found]) - _origins(kept))
    counts = Counter({USED: feedback.rows[USED] - rows, BAD: feedback.rows[BAD] + rows})
    pairs = Counter({KEPT: len(kept), _UNREADABLE: len(found)})
    skipped = [{"user_id": c.user_id, "row_of": c.origin, "fault": fault, "row": c.to_row()} for c, fault in found]
    return replace(
        feedback,
        comparisons=kept,
        rows=Counter({**feedback.rows, **counts}),
        pairs=Counter({**feedback.pairs, **pairs}),
        skipped=[*feedback.skipped, *skipped],
    )


class _Reader:
    """Finds what cannot be read: each text is tokenised once, and whole sequences only where they may be too long."""

    def __init__(self, encoder: TextEncoder, sides: Sequence[str], texts: UseOfText):
        self._encoder, self._sides, self._texts = copy.copy(encoder), sides, texts
        self._encoder.cuts = Cuts()  # the caller's count is not ours to change
        self._asked: dict[Prompt, int] = {}
        self._about: dict[str, int] = {}
        self._said: dict[str, int] = {}

    def fault(self, c: Comparison) -> str:
        """What is wrong with a comparison, if anything."""
        encoder, text = self._encoder, c.user_text if self._texts == "prompt" else ""
        try:
            if self._texts == "prior" and c.user_text:
                encoder.encode_alone(c.user_text)
            if c.prompt not in self._asked:
                self._asked[c.prompt] = len(encoder.encode_question(c.prompt))
            if text not in self._about:
                self._about[text] = len(encoder.text_ids(text))
        except DataError as error:
            return str(error)
        before = self._asked[c.prompt] + self._about[text] + len(encoder.end_ids)
        for side in self._sides:
            response = getattr(c, side)
            if response not in self._said:
                self._said[response] = len(encoder.ids(response))
            if 0 < self._said[response] <= encoder.max_length - before:
                continue
            try:
                encoder.encode(c.prompt, response, 0, text)
            except DataError as error:
                return f"'{side}': {error}"
        return ""


def _named(c: Comparison, fault: str) -> str:
    return f"{c.origin or 'a comparison'}: {fault}"


def _origins(comparisons: Sequence[Comparison]) -> set[str]:
    """The rows that comparisons come from; of ratings two each."""
    return {row for c in comparisons for row in c.origin.split(" and ")}
