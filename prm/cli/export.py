"""`prm export` writes what the heads of a run read as a model that other programs serve."""

import json
from argparse import Namespace
from pathlib import Path

from prm.checkpoint.exports import refuse_replacing, refuse_unexportable
from prm.models.backbone_paths import locate


def export_command(args: Namespace) -> None:
    """Export the backbone of a run, and print its folders."""
    run, output = Path(args.run), Path(args.output)
    refuse_unexportable(run)
    refuse_replacing(output, args.overwrite)
    if args.backbone is not None:
        locate(args.backbone)
    from prm.checkpoint.sentence_transformers import export_sentence_transformers  # imports torch

    record = export_sentence_transformers(run, output, args.backbone, args.overwrite)
    if args.json:
        print(json.dumps(record, ensure_ascii=False))
        return
    for feature in record["features"]:
        which = "the last token" if feature["pooling"] == "last" else "the mean over the tokens"
        what = f"{which} after {feature['layers']} layers, {feature['width']} numbers"
        print(f"{output / feature['folder']}: {what}, {record['dtype']}")
    print(f"digest {record['digest']}: Scorer.score_features(..., digest=...) checks it")
