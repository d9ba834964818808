"""What an export of a run's features is, which runs have one, and its model card. Does not import torch."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypedDict

from prm.checkpoint.config_file import POLICY, ConfigFile, read_config
from prm.errors import PrmError
from prm.io.folders import refuse_existing

Format = Literal["sentence-transformers"]

RECORD = "export.json"  # an export has it, and nothing else does: what --overwrite may replace

_CARD = """---
library_name: sentence-transformers
pipeline_tag: feature-extraction
tags: [sentence-transformers, feature-extraction, personalized-rm]
---
# Features of a personalised reward model

Turns a prompt with a response into the hidden state that the linear heads of a personalised reward model score. The
vectors are not normalised. There are no users here: the run has them, and its heads score the vectors.

```python
from prm import Scorer
from sentence_transformers import SentenceTransformer

scorer = Scorer.from_pretrained("{run}")
{encode}
scorer.score_features(features, user="anna", digest="{digest}")
```

| | |
|---|---|
| made by | `prm export {run} --format sentence-transformers` |
| digest | {digest} |
| backbone | {backbone}, {dtype}{trained} |
| features | {features}: hidden state after so many layers and the final norm, of the last token or the mean |
| longest text | {max_length} tokens |

- Send {texts} as they are, or the token ids of {ids}: the chat template is applied, and long
  prompts are cut. The tokenizer here has no chat template, so that none is applied twice.
- Turn the server's normalisation and prefixes off.{precision}
"""


class ExportedFeature(TypedDict):
    """One model of an export: its folder below that of the export, and what it computes."""

    folder: str
    layers: int
    pooling: str
    width: int


class ExportRecord(TypedDict):
    """`export.json`. `digest`: of all that determines the features (`prm.checkpoint.feature_digest`)."""

    format: Format
    run: str
    digest: str
    dtype: str
    max_length: int
    features: list[ExportedFeature]
    environment: Mapping[str, object]


def refuse_unexportable(run: Path) -> ConfigFile:
    """The `config.json` of a run. Raises `PrmError` if a server that embeds texts cannot compute its features."""
    config = read_config(run)
    reward = config.settings.reward
    if config.kind == POLICY or reward is None:
        raise PrmError(f"{run} holds a policy: only reward models with linear heads have features to export")
    if reward.form != "linear_head":
        raise PrmError(
            f"{run} reads the user's tokens together with the text, so that no vector of the text alone gives its "
            "rewards: train with reward.form 'linear_head' to export"
        )
    return config


def refuse_replacing(output: Path, overwrite: bool) -> None:
    """Raise `PrmError` if the output exists, unless it is an earlier export that may be overwritten."""
    if not os.path.lexists(output):
        return
    if not overwrite:
        refuse_existing(output, "name another folder, or replace an earlier export with --overwrite")
    if not (output / RECORD).is_file():
        raise PrmError(
            f"{output} is no earlier export (it has no {RECORD}), so it is not replaced: name another folder"
        )


def card(record: ExportRecord, config: ConfigFile, output: Path) -> str:
    """The README.md of an export, Markdown with the hub's header."""
    means = any(feature["pooling"] == "mean" for feature in record["features"])
    return _CARD.format(
        run=record["run"],
        digest=record["digest"],
        dtype=record["dtype"],
        max_length=record["max_length"],
        encode=_encode(record, output, means),
        texts="`inputs.texts`" if means else "the texts of `feature_texts`",
        ids="`inputs.ids`" if means else "`feature_ids`",
        precision=" Let it use float32: the mean over the prompt is taken off." if means else "",
        backbone=config.settings.backbone.name,
        trained=_trained(config),
        features=", ".join(f"{feature['layers']} {feature['pooling']}" for feature in record["features"]),
    )


def _encode(record: ExportRecord, output: Path, means: bool) -> str:
    """Python code that computes `features` of `responses` to `prompt`."""
    folders = [str(output / feature["folder"]) for feature in record["features"]]
    if means:
        return (
            "inputs = scorer.feature_inputs(prompt, responses)\n"
            'float32 = {"dtype": "float32"}\n'
            f"models = [SentenceTransformer(folder, model_kwargs=float32) for folder in {folders}]\n"
            "features = inputs.features([model.encode(texts) for model, texts in zip(models, inputs.texts)])"
        )
    texts = "texts = scorer.feature_texts(prompt, responses)\n"
    if len(folders) == 1:
        return f'{texts}features = SentenceTransformer("{folders[0]}").encode(texts)'
    return (
        f"{texts}import numpy\n\nmodels = [SentenceTransformer(folder) for folder in {folders}]\n"
        "features = numpy.concatenate([model.encode(texts) for model in models], axis=1)"
    )


def _trained(config: ConfigFile) -> str:
    if config.adapter:
        return ", with the run's adapter merged"
    return ", trained in the run" if any(name.startswith("backbone/") for name in config.files) else ""
