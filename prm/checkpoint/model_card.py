"""The model card of a run: its model, data, measured results, limits, personal data and licences. Reads files alone."""

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NotRequired, TypedDict

from huggingface_hub import ModelCard, ModelCardData, try_to_load_from_cache

from prm.checkpoint.config_file import POLICY, ConfigFile, read_config
from prm.checkpoint.training_results import TrainingResults, read_results
from prm.checks import Natural
from prm.errors import CheckpointError, counted
from prm.io.folders import is_run
from prm.io.json_estimates import Ends
from prm.io.run_files import LogRecord, Overlap, RunRecord, read_json, read_run
from prm.io.tables import write_text
from prm.models.backbone_paths import EMBEDDED, seen_from

EMBEDDED_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"  # on the hub

_REWARD_METHODS = ("ppo", "rloo", "grpo")  # methods without comparisons
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FILE = re.compile(r".*\.(jsonl|json|csv|tsv|xlsx|parquet|gz|bz2)")
_PERSONAL = """The index holds the ids of the users in the training data, and user parameters reflect their preferences:
treat all of it as personal data. `prm forget RUN USER` removes a user from the run; what shared weights (head, adapter,
backbone) learnt from their comparisons stays. An unknown user is treated as the generic user."""
_NOT_PERSONAL = "It has no user parameters. `test.jsonl`, if there is one, contains held-out comparisons with ids."
_LIMITS = """- It knows the users in its index. Anyone else gets the generic user's scores.
- Scores of different prompts cannot be compared: only comparisons of responses to one prompt were learnt from.
- What the training comparisons do not show (other languages, tasks, lengths) is extrapolation.
- It learns taste, also taste for what is wrong or harmful. It is no judge of truth or safety."""
_POLICY_LIMITS = """- It answers for the users in its index. Anyone else gets the generic user's responses.
- It learns taste, also taste for what is wrong or harmful, and can state what is not true."""


class _Row(TypedDict):
    name: str
    accuracy: Ends | None
    nll: Ends | None


class _Verdict(TypedDict):
    says: str


class _Evaluation(TypedDict):
    data: str
    comparisons: Natural
    users: Natural
    rows: list[_Row]
    verdict: _Verdict
    overlap: NotRequired[Overlap | None]


_MEASURED_ON = {
    "folds": "folds that had no part in the choice of settings",
    "validation": "the validation part, which chose the checkpoint",
    "held out": "the held-out part",
}


def write_card(folder: Path, users: int, results: Path | None = None) -> None:
    """Write README.md from the other files of a run folder.

    Args:
        users: number of users in the index.
        results: folder of the same model with its evaluations, if that is another one.
    """
    write_text(folder / "README.md", model_card(folder, users, results or folder))


def model_card(folder: Path, users: int, results: Path) -> str:
    """The text of README.md, Markdown with the hub's header; only what the folder's files hold."""
    config, run = read_config(folder), read_run(folder)
    policy = config.kind == POLICY
    title = _title(config, users)
    sections = {
        title: [_use_in_words(config), _table(config, run, users)],
        "Use": [_code(config)],
        "Results": list(_results(results, policy)),
        "Data": [_data(config, run)],
        "Limits": [_POLICY_LIMITS if policy else _LIMITS],
        "Personal data": [_PERSONAL if users else _NOT_PERSONAL],
        "Licence": [_licences(config, run, folder)],
    }
    levels = ["#" if name == title else "##" for name in sections]
    text = "\n\n".join(
        "\n\n".join([f"{level} {name}", *parts]) for level, (name, parts) in zip(levels, sections.items(), strict=True)
    )
    return f"---\n{_metadata(config, run, folder)}\n---\n{text}\n"


def _title(config: ConfigFile, users: int) -> str:
    if config.kind == POLICY:
        return "Personalised policy" if _knows_users(config) else "Policy"
    return "Personalised reward model" if users else "Reward model"


def _knows_users(config: ConfigFile) -> bool:
    return config.settings.users.num_virtual_tokens > 0


def _metadata(config: ConfigFile, run: RunRecord, folder: Path) -> str:
    """The header: what the hub shows and searches by. Only ids of the hub are named."""
    policy, backbone = config.kind == POLICY, config.settings.backbone
    base = EMBEDDED_ID if backbone.name == EMBEDDED else backbone.name
    dataset = _hub_dataset(run)
    data = ModelCardData(
        library_name="personalized-rm",
        pipeline_tag="text-generation" if policy else "text-classification",
        base_model=base if base == EMBEDDED_ID or (_HUB_ID.fullmatch(base) and not backbone.folder) else None,
        datasets=[dataset] if dataset else None,
        tags=["policy" if policy else "reward-model", "personalisation", "preferences"],
        ignore_metadata_errors=False,
    )
    if data.base_model is not None:
        data["base_model_relation"] = "adapter" if config.adapter else "finetune"
    return data.to_yaml(line_break="\n").strip()


def _hub_dataset(run: RunRecord) -> str | None:
    """The hub id of the training data; `None` for a file, a folder or data in memory."""
    path = str(run.get("data", LogRecord()).get("path", ""))
    is_id = _HUB_ID.fullmatch(path) and not _FILE.fullmatch(path) and not Path(path).exists()
    return path if is_id else None


def _use_in_words(config: ConfigFile) -> str:
    if config.kind != POLICY:
        return "Scores a response to a prompt for a given user."
    return f"Responds to a prompt {'for a given user' if _knows_users(config) else 'without users'}."


def _code(config: ConfigFile) -> str:
    if config.kind == POLICY:
        user = ', user="USER"' if _knows_users(config) else ""
        body = (
            f'from rerank import Sampler\n\nsampler = Sampler.from_pretrained("RUN")\nsampler.sample("PROMPT", 4{user})'
        )
    else:
        body = (
            'from prm import Scorer\n\nscorer = Scorer.from_pretrained("RUN")  # this folder, or its hub id\n'
            'scorer.score("PROMPT", ["RESPONSE", "ANOTHER"], user="USER")  # float32 [2], logits'
        )
    return f"`pip install personalized-rm`, then:\n\n```python\n{body}\n```"


def _table(config: ConfigFile, run: RunRecord, users: int) -> str:
    settings = config.settings
    reward = settings.reward
    linear = reward is not None and reward.form == "linear_head"
    tokens = "" if linear else f", {counted(settings.users.num_virtual_tokens, 'token')}"
    rows = {
        "backbone": f"{settings.backbone.name} ({settings.backbone.layers or 'all'} layers, {settings.backbone.dtype})",
        "user model": f"{settings.users.kind}{tokens}, {counted(users, 'user')}",
    }
    if reward is not None:
        depth = settings.backbone.layers or "last"
        features = ", ".join(reward.features or [f"{depth} {reward.pooling}"])
        kernel = f", kernel {reward.kernel}" if reward.kernel != "linear" else ""
        rows["reward"] = f"{reward.form}, features (layers, pooling) {features}{kernel}"
    elif settings.objective is not None:
        rows["objective"] = settings.objective.method
    if parameters := run.get("parameters"):
        rows["trained parameters"] = f"{parameters['users']:,} of users, {parameters['shared']:,} shared"
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _data(config: ConfigFile, run: RunRecord) -> str:
    data = run.get("data", LogRecord())
    method = config.settings.objective.method if config.settings.objective is not None else ""
    amount = (
        f"{data['train_answers']} responses"
        if "train_answers" in data
        else f"{data.get('train_comparisons', '?')} comparisons"
    )
    if method in _REWARD_METHODS:
        amount = f"rewards of its own responses, for the prompts and users of {amount}"
    size = data.get("learnt_from")
    extent = f" of {counted(size['prompts'], 'prompt')} by {counted(size['people'], 'user')}" if size else ""
    counts = {
        "validation comparisons chose the checkpoint": data.get("validation_comparisons"),
        "comparisons were held out": data.get("test_comparisons"),
    }
    parts = [f"{n} {name}" for name, n in counts.items() if n]
    further = f" ({'; '.join(parts)})" if parts else ""
    card = data.get("card")
    name = f"{card['name']} ({card['citation']})" if card else _shown(run)
    source = f" Source: {name}, licence: {card['licence'] if card else 'not recorded'}."
    adapted = sum(entry["comparisons"] for entry in run.get("adapted", ()))
    later = f" `prm adapt` added {counted(adapted, 'comparison')}." if adapted else ""
    return f"Trained on {amount}{extent}{further}.{source}{later} Fingerprint: {data.get('fingerprint') or '?'}."


def _shown(run: RunRecord) -> str:
    """The name of the training data, without the folders of somebody's machine."""
    return _hub_dataset(run) or Path(str(run.get("data", LogRecord()).get("path", ""))).name or "not recorded"


def _results(folder: Path, policy: bool) -> Iterator[str]:
    """A table for each evaluation in the folder; otherwise what training measured, and how to evaluate."""
    evaluations = sorted(folder.glob("evaluation-*.json"))
    for path in evaluations:
        yield _evaluation(read_json(path, _Evaluation))
    if evaluations:
        return
    yield f"Not evaluated on held-out comparisons yet{'' if policy else ' (`prm evaluate RUN LOG`)'}."
    with suppress(CheckpointError):
        yield from _of_training(read_results(folder))


def _evaluation(result: _Evaluation) -> str:
    lines = ["| | accuracy % | log loss (nats) |", "|---|---|---|"]
    for row in result["rows"]:
        lines.append(f"| {row['name']} | {_estimate(row['accuracy'], 100)} | {_estimate(row['nll'], 1)} |")
    name = Path(result["data"]).name
    size = f"{counted(result['comparisons'], 'comparison')} by {counted(result['users'], 'user')}"
    head = f"On {name}: {size}, with 95% intervals."
    if (overlap := result.get("overlap")) and overlap["own"]:
        head += f" The model was trained on {overlap['own']} of them, so these figures are too good."
    return "\n".join([head, "", *lines, "", result["verdict"]["says"]])


def _estimate(value: Ends | None, factor: float) -> str:
    if value is None or value["value"] is None:
        return "-"
    digits = 1 if factor > 1 else 3
    shown = [
        f"{x * factor:.{digits}f}" if x is not None else "-" for x in (value["value"], value["low"], value["high"])
    ]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def _of_training(results: TrainingResults) -> Iterator[str]:
    """What training measured, in a sentence."""
    if results.by_model:
        on = _MEASURED_ON[results.measured_on]
        yield f"In training, on {on}: {'; '.join(f'{name}, {one}' for name, one in results.by_model.items())}."


def _licences(config: ConfigFile, run: RunRecord, folder: Path) -> str:
    backbone, card = config.settings.backbone, run.get("data", LogRecord()).get("card")
    known = licence_of(seen_from(folder, backbone.name))
    lines = [f"- Backbone {backbone.name}: {known or 'see where it comes from'}."]
    lines += [f"- Training data: {card['licence']}."] if card else []
    return "\n".join([*lines, "- The software: Apache-2.0. The model's own licence is for its owner to state."])


def licence_of(name: str) -> str | None:
    """The licence that a backbone's card states, in its folder or in the hub's cache; `None` if it states none."""
    if name == EMBEDDED:
        return "apache-2.0"
    path: object = Path(name) / "README.md" if Path(name).is_dir() else None
    if path is None and _HUB_ID.fullmatch(name):
        path = try_to_load_from_cache(name, "README.md")
    if not isinstance(path, str | Path) or not Path(path).is_file() or is_run(Path(path).parent):
        return None
    with suppress(Exception):  # a card of others may hold anything
        licence = ModelCard(Path(path).read_text(encoding="utf-8")).data.get("license")
        return str(licence) if licence else None
    return None
