"""A training run: from a feedback log to a run folder (`prm train`)."""

import json
import logging
import random
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from prm import checkpoint as checkpoints
from prm.backbones import choose_device, choose_dtype, decoder_layers, load_backbone, load_tokenizer
from prm.comparison import Comparison, fingerprint
from prm.config import TrainConfig
from prm.controls import length_signs
from prm.errors import DataError, PrmError
from prm.features import compute_features, store_folder
from prm.files import write_json, write_jsonl
from prm.model import RewardModel, build_reward_model, pool, standard_of
from prm.search import HeadData, Trial, fit_best, search
from prm.sources import read_feedback
from prm.splits import folds, split, thin_out
from prm.tokens import Encoded, TextEncoder, pad
from prm.trainer import EncodedPair, add_lora, build_trainer, run_trainer
from prm.users import UserIndex

logger = logging.getLogger(__name__)

_CALIBRATION_PAIRS = 128
_UNTRAINED_STRANGER = "alpha = 1 trains nothing for the unknown user: it becomes the mean of all users"


@dataclass(frozen=True)
class Parts:
    """The log, split. Nothing of one part stands in another, by the config's split.

    Args:
        account: what became of the log's rows, and of comparisons that are in no part.
        skipped: bad rows, as `skipped.jsonl` lists them.
    """

    train: list[Comparison]
    validation: list[Comparison]
    test: list[Comparison]
    account: dict[str, Any] = field(default_factory=dict)
    skipped: list[dict[str, Any]] = field(default_factory=list)


def train(config: TrainConfig) -> Path:
    """Train as the config says; returns the run folder, which appears when everything is in it.

    A run that was killed is taken up where it stopped by the same call. Raises `PrmError` for settings or
    data that make no sense, and where the folder exists already and `overwrite` is false.
    """
    config.check()
    target = Path(config.output_dir)
    checkpoints.recover(target)
    if target.exists() and not config.overwrite:
        raise PrmError(
            f"{target} exists already; give another output_dir, or overwrite: true (--overwrite true) to replace it"
        )
    parts = split_parts(config)
    data: dict[str, Any] = {
        "path": config.data.path,
        "fingerprint": fingerprint([*parts.train, *parts.validation, *parts.test]),
        "train_comparisons": len(parts.train),
        "validation_comparisons": len(parts.validation),
        "test_comparisons": len(parts.test),
        "has_user_text": any(c.user_text for c in parts.train),
        **parts.account,
    }
    work = open_work_folder(target, config, data["fingerprint"])
    torch.manual_seed(config.seed)
    run = {"kind": "reward_model", "config": config.to_dict(), "seed": config.seed, "data": data}
    fit = train_head if config.fast_path else train_steps
    try:
        metrics = fit(config, parts, work, run)
    except PrmError:
        if not (work / "trainer").exists():  # nothing to take up: do not stand in the way of the mended command
            shutil.rmtree(work, ignore_errors=True)
        raise
    state = PartialState()
    if state.is_main_process:
        if parts.test:
            write_jsonl(work / "test.jsonl", parts.test)
        if parts.skipped:
            write_jsonl(work / "skipped.jsonl", parts.skipped)
        write_json(work / "metrics.json", metrics)
        signs = length_signs([*parts.train, *parts.validation])
        write_json(work / "controls.json", {"length_sign": signs})
        (work / "started.json").unlink()
        shutil.rmtree(work / "trainer", ignore_errors=True)
        checkpoints.publish(work, target)
    state.wait_for_everyone()
    return target


def split_parts(config: TrainConfig) -> Parts:
    """Read the log, hold out the test part, leave out whom there is too little of, hold out the validation part.

    On the fast path there is no validation part: its folds take turns.
    """
    data = config.data
    feedback = read_feedback(data)
    for line in feedback.account():
        logger.info("%s", line)
    left_out: dict[str, int] = {}
    rest, test = feedback.comparisons, list[Comparison]()
    if data.test_fraction > 0.0 or data.test_from is not None:
        rest, test = split(rest, data.split, data.test_fraction, config.seed, data.test_from)
        left_out["between training and held-out answers"] = len(feedback.comparisons) - len(rest) - len(test)
    if data.judges_per_pair:
        thin = thin_out(rest, data.judges_per_pair, config.seed)
        left_out[f"more than {data.judges_per_pair} people's judgement of a pair"] = len(rest) - len(thin)
        rest = thin
    if data.min_comparisons:
        counts = Counter(c.user_id for c in rest if not c.is_tie)
        kept = [[c for c in part if counts[c.user_id] >= data.min_comparisons] for part in (rest, test)]
        few = f"by people with fewer than {data.min_comparisons} to learn from"
        left_out[few] = len(rest) + len(test) - sum(map(len, kept))
        people = {c.user_id for c in [*rest, *test]}
        left_out["people left out so"] = len(people - {c.user_id for part in kept for c in part})
        rest, test = kept
    if not rest:
        raise PrmError(f"{data.path}: nothing is left to learn from: {left_out}")
    validation: list[Comparison] = []
    if not config.fast_path:
        rest, validation = split(rest, data.split, data.validation_fraction, config.seed + 1)
    return Parts(
        rest,
        validation,
        test,
        feedback.summary() | {"left_out": {k: n for k, n in left_out.items() if n}},
        feedback.skipped,
    )


def folds_of(config: TrainConfig, comparisons: Sequence[Comparison]) -> torch.Tensor:
    """Fold of each comparison's two answers, [n, 2]; -1 always trains. With `search.folds: 1`, one part validates."""
    data = config.data
    if config.search.folds > 1:
        return torch.tensor(folds(comparisons, data.split, config.search.folds, config.seed + 1))
    parts = split(comparisons, data.split, data.validation_fraction, config.seed + 1)
    learn, validation = ({id(c) for c in part} for part in parts)
    return torch.tensor([[-(id(c) in learn or id(c) not in validation), -(id(c) in learn)] for c in comparisons])


def open_work_folder(target: Path, config: TrainConfig, data_fingerprint: str) -> Path:
    """The folder to train in: a new one, or that of a killed run with the same settings and data."""
    work = checkpoints.work_folder(target)
    started = {"config": config.to_dict() | {"overwrite": None}, "data": data_fingerprint}
    if PartialState().is_main_process:
        note = work / "started.json"
        if note.is_file() and json.loads(note.read_text(encoding="utf-8")) != started:
            if not config.overwrite:
                raise PrmError(
                    f"{work} holds an unfinished run with other settings or data; finish it with those, "
                    "delete the folder, or give overwrite: true (--overwrite true)"
                )
            shutil.rmtree(work)
        elif not note.is_file():
            shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True, exist_ok=True)
        write_json(note, started)
    PartialState().wait_for_everyone()
    return work


def load_model(config: TrainConfig, users: UserIndex) -> tuple[RewardModel, TextEncoder, dict[str, Any]]:
    """(model, encoder, settings to be saved with it), the backbone frozen and on its device."""
    device = choose_device() if config.fast_path else PartialState().device
    dtype = choose_dtype(config.backbone.dtype, device)
    backbone = load_backbone(config.backbone.name, config.backbone.layers, dtype).requires_grad_(False)
    model = build_reward_model(backbone, config.users, config.reward, users.n_rows, config.seed).to(device)
    saved = replace(config.backbone, dtype="bfloat16" if dtype == torch.bfloat16 else "float32")
    settings = {"backbone": asdict(saved), "users": asdict(config.users), "reward": asdict(config.reward)}
    tokenizer = load_tokenizer(config.backbone.name)
    shell = checkpoints.Checkpoint(model, users, tokenizer, settings)
    return model, shell.encoder(), settings


def encode_pairs(
    encoder: TextEncoder, users: UserIndex, comparisons: Sequence[Comparison], text_dropout: float = 0.0, seed: int = 0
) -> list[EncodedPair]:
    """Comparisons as sequences with the judge's row; `user_text` is left out of a seeded share of them.

    Raises `DataError` naming the row whose response does not fit.
    """
    draw = random.Random(seed)
    pairs = []
    before = replace(encoder.cuts)
    for c in tqdm(comparisons, desc="tokenising", unit="pair", disable=None, delay=2):
        text = "" if draw.random() < text_dropout else c.user_text
        try:
            sides = [encoder.encode(c.prompt, y, users.row(c.user_id), text) for y in (c.chosen, c.rejected)]
        except DataError as error:
            raise DataError(f"{c.origin or 'a comparison'}: {error}") from None
        pairs.append(EncodedPair(sides[0], sides[1], c.p_chosen, c.weight))
    if cut := encoder.cuts.sequences - before.sequences:
        logger.warning(
            "%d of %d sequences lost their oldest prompt text to max_length %d (%d tokens in all)",
            cut,
            2 * len(pairs),
            encoder.max_length,
            encoder.cuts.tokens - before.tokens,
        )
    return pairs


def train_head(config: TrainConfig, parts: Parts, work: Path, run: dict[str, Any]) -> dict[str, Any]:
    """The fast path: features once, then every setting of the search, for the personal and the uniform head."""
    comparisons = parts.train
    users = UserIndex.from_comparisons(comparisons)
    model, encoder, _ = load_model(config, users)
    pairs = encode_pairs(encoder, users, comparisons, config.users.text_dropout, config.seed)
    full = len(decoder_layers(model.backbone))
    depths = config.search.layers or sorted({-(-full // 2), full})
    if max(depths) > full or min(depths) < 1:
        raise PrmError(f"config key 'search.layers' holds {depths}, but the backbone has {full} layers")
    settings = [(depth, pooling) for depth in depths for pooling in config.search.poolings]
    texts, index = _distinct_texts(pairs)
    if run["data"]["has_user_text"]:
        dtype = next(model.backbone.parameters()).dtype
        run["feature_stores"] = [str(store_folder(model, dtype, s).resolve()) for s in settings]
    features = compute_features(model, texts, settings)
    rows = torch.tensor([users.row(c.user_id) for c in comparisons])
    labels = torch.tensor([[c.p_chosen, c.weight] for c in comparisons])
    fold = folds_of(config, comparisons)
    data = HeadData(features, index[0], index[1], rows, labels[:, 0], labels[:, 1], fold)
    metrics: dict[str, Any] = {}
    with SummaryWriter(str(work / "logs")) as log:
        for name, kind in {"personal": config.users.kind, "uniform": "uniform"}.items():
            if name == "uniform" and config.users.kind == "uniform":
                continue
            chosen = replace(config, users=replace(config.users, kind=kind))
            trials = search(data, chosen, users.n_rows)
            best = min(trials, key=lambda trial: trial.validation_nll)
            for step, trial in enumerate(trials):
                log.add_scalar(f"{name}/validation_nll", trial.validation_nll, step)
            folder = work if name == "personal" else work / "uniform"
            head_users = users if name == "personal" else UserIndex()
            _save_head(chosen, data, best, head_users, folder, run)
            metrics[name] = {"best": asdict(best), "trials": [asdict(trial) for trial in trials]}
            logger.info("%s: held-out likelihood %.4f nats with %s", name, best.validation_nll, best.describe())
    return metrics


def _save_head(
    config: TrainConfig, data: HeadData, best: Trial, users: UserIndex, folder: Path, run: dict[str, Any]
) -> None:
    """Fit the chosen setting on everything, and save it with a cut backbone."""
    chosen = replace(
        config,
        backbone=replace(config.backbone, layers=best.layers),
        reward=replace(config.reward, pooling=cast(Any, best.pooling)),
    )
    model, _, settings = load_model(chosen, users)
    texts = data.features[best.setting]
    if config.reward.standardise:
        model.standardise_by(texts)
        mean, scale = standard_of(texts)
        texts = (texts - mean) / scale
    user_model = fit_best(data, best, chosen, users.n_rows, texts)
    model.user_model.load_state_dict(user_model.state_dict())
    if config.alpha == 1.0 and user_model.row_zero_needs_training:
        logger.warning(_UNTRAINED_STRANGER)
    folder.mkdir(exist_ok=True)
    tokenizer = load_tokenizer(config.backbone.name)
    checkpoints.save(checkpoints.Checkpoint(model, users, tokenizer, settings), folder, run)


def _distinct_texts(pairs: Sequence[EncodedPair]) -> tuple[list[Encoded], torch.Tensor]:
    """Each text once, without its user id, and the positions [2, n] of chosen and rejected among them."""
    places: dict[tuple[Any, ...], int] = {}
    texts: list[Encoded] = []
    index = torch.empty(2, len(pairs), dtype=torch.long)
    for n, pair in enumerate(pairs):
        for side, sequence in enumerate((pair.chosen, pair.rejected)):
            start, end = sequence.response
            text = Encoded(sequence.ids[1:], (start - 1, end - 1))
            key = (*text.response, *text.ids)
            if key not in places:
                places[key] = len(texts)
                texts.append(text)
            index[side, n] = places[key]
    return texts, index


def train_steps(config: TrainConfig, parts: Parts, work: Path, run: dict[str, Any]) -> dict[str, Any]:
    """Soft prompts and LoRA: step by step on the RewardTrainer."""
    users = UserIndex.from_comparisons(parts.train)
    model, encoder, settings = load_model(config, users)
    learn = encode_pairs(encoder, users, parts.train, config.users.text_dropout, config.seed)
    check = encode_pairs(encoder, users, parts.validation)
    if config.reward.standardise:
        calibrate(model, learn, config.seed)
    if config.train == "lora":
        add_lora(model, config.lora)
    tokenizer = encoder.tokenizer
    trainer = build_trainer(model, tokenizer, learn, check, config, work)
    metrics = run_trainer(trainer)
    if config.alpha == 1.0 and model.user_model.row_zero_needs_training:
        logger.warning(_UNTRAINED_STRANGER)
        model.user_model.set_row(0, torch.arange(1, users.n_rows))
    if PartialState().is_main_process:
        model.eval()
        checkpoints.save(checkpoints.Checkpoint(model, users, tokenizer, settings), work, run)
    return metrics


@torch.no_grad()
def calibrate(model: RewardModel, pairs: Sequence[EncodedPair], seed: int) -> None:
    """Fix the head's mean and scale from hidden states of the untrained model on some training pairs."""
    chosen = random.Random(seed).sample(list(pairs), min(_CALIBRATION_PAIRS, len(pairs)))
    pooled = []
    for pair in chosen:
        batch = pad([pair.chosen, pair.rejected])
        batch = type(batch)(*(field.to(model.standard_mean.device) for field in batch))
        if model.is_linear:
            _, batch = model.take_off_users(batch)
        pooled.append(pool(model.read(batch), batch, model.form.pooling))
    model.standardise_by(torch.cat(pooled))
