"""The fast path: features of a frozen backbone once, then heads on them (`head_search`, `head_objective`)."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from prm.checkpoint import checkpoint as checkpoints
from prm.checkpoint.checkpoint import Checkpoint
from prm.config import TrainConfig
from prm.data.comparison import Comparison
from prm.data.splits import folds, split, training_holdout
from prm.errors import PrmError
from prm.features.hidden_states import feature_folder, read_features
from prm.io.disk import copy, make_folder
from prm.io.run_files import read_run
from prm.layer_pooling import FeatureSpec, words
from prm.models.nystroem import LANDMARKS
from prm.models.reward_model import RewardModel
from prm.training.bayes_fit import fit_bayes, fit_text_prior, search_bayes
from prm.training.head_average import fit_average, scales, stretch
from prm.training.head_choice import Chosen, choose
from prm.training.head_objective import PairFeatures
from prm.training.head_search import HeadData, Search, search
from prm.training.setup import (
    UNTRAINED_STRANGER,
    announce_base_head,
    encode_people,
    encode_texts,
    load_earlier_checkpoint,
    new_checkpoint,
)
from prm.training.user_fit import fit_heads, read_search
from prm.users.bayes.text_regression import FEWEST
from prm.users.index import UserIndex
from prm.users.models import Bayes

logger = logging.getLogger(__name__)


def train_head(
    config: TrainConfig, comparisons: Sequence[Comparison], work: Path, run: dict[str, Any]
) -> dict[str, Any]:
    """Every setting of the search, for the personal and the uniform head; the best ones are saved. Returns metrics."""
    users = UserIndex.from_comparisons(comparisons)
    checkpoint = new_checkpoint(config, users, day=run["day"])
    model = checkpoint.model
    announce_base_head(checkpoint)
    readings = feature_specs_of(config, model)
    apart = config.users.kind == "bayes"  # what people say moves their prior, and is not read with every prompt
    texts, index = encode_texts(
        checkpoint.encoder(), comparisons, 1.0 if apart else config.users.text_dropout, config.seed
    )
    _note_stores(run, model, readings)
    features = read_features(model, texts, readings)
    rows = torch.tensor([users.row(c.user_id) for c in comparisons])
    labels = torch.tensor([[c.p_chosen, c.weight] for c in comparisons])
    with torch.no_grad():  # with a base there is one reading
        base = model.base_reward(features[readings[0]].to(model.standard_mean.device))
        base = base.cpu() if base is not None else None
    fold = folds_of(config, comparisons)
    part = halves_of(config, comparisons, fold)
    data = HeadData(features, index[0], index[1], rows, labels[:, 0], labels[:, 1], fold, base, part)
    metrics: dict[str, Any] = {}
    with SummaryWriter(str(work / "logs")) as log:
        found = Search([], torch.empty(0, 0))
        # the uniform model first: empirical Bayes starts from what its search found
        for name, kind in {"uniform": "uniform", "personal": config.users.kind}.items():
            if name == "uniform" and config.users.kind == "uniform":
                continue
            chosen = replace(config, users=replace(config.users, kind=kind))
            if kind == "bayes":
                best, trials = search_bayes(data, found, chosen, users.n_rows)
            else:
                found = search(data, chosen, users.n_rows)
                best, trials = choose(found, data, clusters=kind == "cluster"), found.trials
            for step, trial in enumerate(trials):
                log.add_scalar(f"{name}/validation_nll", trial.validation_nll, step)
            folder = work if name == "personal" else work / "uniform"
            head_users = users if name == "personal" else UserIndex()
            comparisons_with_text = comparisons if apart else None
            _save_head(
                chosen, data, best, head_users, folder, run | {"config": chosen.to_dict()}, comparisons_with_text
            )
            metrics[name] = {"best": best.to_dict(), "trials": [trial.to_dict() for trial in trials]}
            logger.info("%s: %.4f nats by cross-validation, with %s", name, best.validation_nll, best.describe())
    return metrics


def continue_head(
    config: TrainConfig, comparisons: Sequence[Comparison], work: Path, run: dict[str, Any]
) -> dict[str, Any]:
    """Fit the rows of the people in the comparisons, from where the earlier run left them; all else stays.

    The penalty is the one that run chose. Returns metrics.
    """
    earlier = Path(config.start_from)
    metrics = read_search(earlier)
    known_rows = checkpoints.read_users(earlier).n_rows
    checkpoint = load_earlier_checkpoint(config, comparisons)
    model, users = checkpoint.model, checkpoint.users
    apart = checkpoint.settings["user_text"] != "prompt"
    texts, index = encode_texts(
        checkpoint.encoder(), comparisons, 1.0 if apart else config.users.text_dropout, config.seed
    )
    known = read_run(earlier).get("feature_stores", [])
    _note_stores(run, model, [model.reading], known)
    pooled = read_features(model, texts, [model.reading])[model.reading].to(model.standard_mean.device)
    rows = torch.tensor([users.row(c.user_id) for c in comparisons])
    labels = torch.tensor([[c.p_chosen, c.weight] for c in comparisons])
    with torch.no_grad():
        states, base = model.head_input(pooled)
    on = [tensor.to(pooled.device) for tensor in (index[0], index[1], rows, labels[:, 0], labels[:, 1])]
    pairs = PairFeatures(states, on[0], on[1], on[2], on[3], on[4], base)
    fresh = torch.arange(users.n_rows, device=pooled.device) >= known_rows
    if isinstance(model.user_model, Bayes) and model.user_model.text_prior is not None:
        comparisons_with_text, states, places = _read_people(checkpoint, comparisons)
        model.user_model.set_text_prior(comparisons_with_text, states[places])
    steps = fit_heads(model.user_model, pairs, fresh, metrics["personal"]["best"]["user_l2"])
    if (earlier / "uniform").is_dir():
        copy(earlier / "uniform", work / "uniform")
    checkpoints.save(checkpoint, work, run | {"parameters": model.trained_parameters()})
    return metrics | {"continued": {"people": len(set(rows.tolist())), "steps": steps}}


def folds_of(config: TrainConfig, comparisons: Sequence[Comparison]) -> Tensor:
    """Fold of each comparison's two answers, [n, 2]; -1 always trains. With `search.folds: 1`, one part validates."""
    by = training_holdout(config.data.holdout_by, comparisons)
    if config.search.folds > 1:
        return torch.tensor(folds(comparisons, by, config.search.folds, config.seed + 1))
    parts = split(comparisons, by, config.data.validation_fraction, config.seed + 1)
    learn, validation = ({id(c) for c in part} for part in parts)
    return torch.tensor([[-(id(c) in learn or id(c) not in validation), -(id(c) in learn)] for c in comparisons])


def halves_of(config: TrainConfig, comparisons: Sequence[Comparison], fold: Tensor) -> Tensor | None:
    """With one fold, the half of it that holds each comparison's answers, [n, 2]: either judges what the other chose.

    `None` with more folds, and where a fold cannot be halved.
    """
    held_out = (fold == 0).all(1).nonzero()[:, 0]
    if config.search.folds > 1:
        return None
    half = torch.full_like(fold, -1)
    try:
        by = training_holdout(config.data.holdout_by, comparisons)
        found = folds([comparisons[i] for i in held_out], by, 2, config.seed + 2)
    except PrmError:
        logger.warning("the held-out part cannot be halved: the choice of settings is judged by what made it")
        return None
    half[held_out] = torch.tensor(found)
    return half


def feature_specs_of(config: TrainConfig, model: RewardModel) -> list[FeatureSpec]:
    """What to try reading. Raises `PrmError` for what the backbone does not have."""
    if config.reward.features:
        return [model.reading]
    full, poolings = model.layers, list(config.search.poolings)
    depths = list(dict.fromkeys(config.search.layers)) or sorted({-(-full // 2), full})
    if max(depths) > full or min(depths) < 1:
        raise PrmError(f"config key 'search.layers' holds {depths}, but the backbone has {full} layers")
    if model.base is not None:  # its head reads the last token of the last layer, and nothing else
        if config.search.layers not in ([], [full]) or "last" not in poolings:
            raise PrmError(
                "a reward model reads its last layer's 'last' token: leave out 'search.layers' and 'search.poolings'"
            )
        depths, poolings = [full], ["last"]
    readings: list[FeatureSpec] = [((depth, pooling),) for depth in depths for pooling in poolings]
    if config.search.combine and "mean" in poolings and len(depths) > 1:
        readings.append(tuple((depth, "mean") for depth in depths))
    return readings


def _note_stores(
    run: dict[str, Any], model: RewardModel, readings: Sequence[FeatureSpec], known: Sequence[str] = ()
) -> None:
    """Where features of people's texts lie: `forget_user` must find them."""
    settings = {setting for reading in readings for setting in reading}
    run["feature_stores"] = sorted({*known, *(str(feature_folder(model, setting).resolve()) for setting in settings)})


def _on_features(config: TrainConfig, reading: FeatureSpec) -> TrainConfig:
    """The config of a model that reads this."""
    if len(reading) > 1:
        return replace(config, reward=replace(config.reward, features=words(reading), pooling="last"))
    ((layers, pooling),) = reading
    reward = replace(config.reward, features=[], pooling=cast(Any, pooling))
    return replace(config, backbone=replace(config.backbone, layers=layers), reward=reward)


def _save_head(
    config: TrainConfig,
    data: HeadData,
    best: Chosen,
    users: UserIndex,
    folder: Path,
    run: dict[str, Any],
    comparisons_with_text: Sequence[Comparison] | None,
) -> None:
    """Fit the chosen setting on everything, and save it with a cut backbone.

    `comparisons_with_text`: the comparisons, where their `user_text` was not part of the prompt and may move priors.
    """
    chosen = _on_features(config, best.reading) if data.base is None else config
    chosen = replace(chosen, reward=replace(chosen.reward, kernel=best.kernel))
    pooled = data.states(best.reading)
    landmarks = min(len(pooled), LANDMARKS) if best.kernel == "rbf" else 0
    checkpoint: Checkpoint[RewardModel] = new_checkpoint(chosen, users, landmarks, run["day"])
    model = checkpoint.model
    with torch.no_grad():
        pooled = pooled.to(model.standard_mean.device)
        model.standardise_by(pooled)
        if model.kernel is not None:
            model.kernel.fit(model.standardised(pooled), config.seed)
        texts = model.head_input(pooled).states.cpu()
    fit = fit_bayes if config.users.kind == "bayes" else fit_average
    user_model = fit(data, best, chosen, users.n_rows, texts)
    if len(best.trials) > 1 and user_model.per_row() and not isinstance(user_model, Bayes):
        stretch(model, user_model, scales(best))
    if comparisons_with_text is not None:
        checkpoint.settings["user_text"] = "unread"
        if isinstance(user_model, Bayes) and _learn_texts(
            checkpoint, user_model, data.pairs(texts), comparisons_with_text
        ):
            checkpoint.settings["user_text"] = "prior"
            assert isinstance(model.user_model, Bayes)
            model.user_model.text_prior = user_model.text_prior
    model.user_model.load_state_dict(user_model.state_dict())
    if config.alpha == 1.0 and user_model.row_zero_needs_training:
        logger.warning(UNTRAINED_STRANGER)
    make_folder(folder)
    checkpoints.save(checkpoint, folder, run | {"parameters": model.trained_parameters()})


def _learn_texts(
    checkpoint: Checkpoint[RewardModel], people: Bayes, pairs: PairFeatures, comparisons: Sequence[Comparison]
) -> bool:
    """Whether what people say of themselves now moves their prior; says so."""
    if not any(c.user_text for c in comparisons):
        return False
    rows, states, places = _read_people(checkpoint, comparisons)
    found = fit_text_prior(people, pairs, rows.cpu(), states.cpu(), places.cpu())
    if found is not None:
        logger.info(
            "what %d people say of themselves (%d texts) tells %.1f%% of what they differ in: it moves their prior",
            len(rows),
            len(states),
            100.0 * found.share,
        )
    elif len(states) < FEWEST:
        logger.warning("user_text is left unread: %d texts are too few (%d) to learn from", len(states), FEWEST)
    else:
        logger.info(
            "what people say of themselves (%d texts) does not tell their taste: it is left unread", len(states)
        )
    return found is not None


def _read_people(
    checkpoint: Checkpoint[RewardModel], comparisons: Sequence[Comparison]
) -> tuple[Tensor, Tensor, Tensor]:
    """(rows [m] of who says something, hidden states [t, d] of the distinct texts, places [m] among them)."""
    model = checkpoint.model
    texts, rows, places = encode_people(checkpoint.encoder(), checkpoint.users, comparisons)
    states, where = read_features(model, texts, [model.reading])[model.reading], model.standard_mean.device
    return rows.to(where), states.to(where), places.to(where)
