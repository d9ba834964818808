"""Train linear heads on a frozen backbone: hidden states are computed once (`heads.grid_search`, `heads.objective`)."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from prm.checkpoint import checkpoint as checkpoints
from prm.checkpoint.checkpoint import Checkpoint
from prm.checkpoint.training_results import held_out
from prm.config import LANDMARKS, FeatureSpec, Pooling, TrainConfig, UserKind, format_features
from prm.data.comparison import Comparison
from prm.data.splits import folds, split, training_holdout
from prm.errors import PrmError
from prm.features.hidden_states import Elsewhere, Workers, feature_folder, read_features
from prm.io.disk import copy, make_folder
from prm.io.run_files import Metrics, RunRecord, read_run
from prm.models.reward_model import RewardModel
from prm.training.heads.average import scales, stretch
from prm.training.heads.grid_search import HeadData, Search, search
from prm.training.heads.objective import PairFeatures
from prm.training.heads.settings_choice import Chosen
from prm.training.heads.user_model_choice import choose_settings, fit_chosen
from prm.training.setup import (
    UNTRAINED_GENERIC,
    announce_backbone,
    encode_texts,
    load_earlier_checkpoint,
    new_checkpoint,
    with_shared_backbone,
)
from prm.training.user_fit import fit_heads, read_search
from prm.users.index import UserIndex
from prm.users.user_model import ALL_ALIKE

logger = logging.getLogger(__name__)


def train_head(
    config: TrainConfig,
    comparisons: Sequence[Comparison],
    work: Path,
    run: RunRecord,
    workers: Workers | None = None,
) -> Metrics:
    """Search all settings for the personalised and the uniform head, and save the best of each. Returns metrics.

    Args:
        workers: who reads the texts, if not this process.
    """
    users = UserIndex.from_comparisons(comparisons)
    checkpoint = new_checkpoint(config, users, day=run["day"])
    model = checkpoint.model
    announce_backbone(checkpoint)
    specs = feature_specs_of(config, model)
    texts, index = encode_texts(checkpoint.encoder(), comparisons, config.users.text_dropout, config.seed)
    _record_stores(run, model, specs)
    features = read_features(model, texts, specs, elsewhere=elsewhere(workers, checkpoint))
    rows = torch.tensor([users.row(c.user_id) for c in comparisons])
    labels = torch.tensor([[c.p_chosen, c.weight] for c in comparisons])
    with torch.no_grad():  # with a base there is one feature spec
        base = model.base_reward(features[specs[0]].to(model.standard_mean.device))
        base = base.cpu() if base is not None else None
    fold = folds_of(config, comparisons)
    part = choice_parts(config, comparisons, fold)
    data = HeadData(features, index[0], index[1], rows, labels[:, 0], labels[:, 1], fold, base, part)
    metrics: dict[str, object] = {}
    nobody = UserIndex()
    nobody.trained_on = None  # the file of the run itself says it, from which `forget_user` removes users
    with SummaryWriter(str(work / "logs")) as log:
        result: Search | None = None
        # the uniform model first: some kinds start from the result of its search
        kinds: dict[str, UserKind] = {"uniform": "uniform", "personal": config.users.kind}
        for name, kind in kinds.items():
            if name == "uniform" and config.users.kind == "uniform":
                continue
            head_config = config.of_kind(kind)
            if kind == "uniform":
                result = search(data, head_config, users.n_rows)
            best, trials = choose_settings(data, head_config, users.n_rows, result)
            for step, trial in enumerate(trials):
                log.add_scalar(f"{name}/validation_nll", trial.validation_nll, step)
            folder = work if name == "personal" else work / "uniform"
            head_users = users if name == "personal" else nobody
            head_run = run | {"config": head_config.to_dict()}
            _save_head(model, head_config, data, best, head_users, folder, head_run)
            metrics[name] = {"best": best.to_dict(), "trials": [trial.to_dict() for trial in trials]}
            result_in_words = held_out(best.validation_accuracy, best.validation_nll)
            logger.info("%s: %s by cross-validation, with %s", name, result_in_words, best.describe())
    return metrics


def continue_head(
    config: TrainConfig,
    comparisons: Sequence[Comparison],
    work: Path,
    run: RunRecord,
    workers: Workers | None = None,
) -> Metrics:
    """Fit the rows of the users in the comparisons, starting from the earlier run; all else stays the same.

    The penalty is the one that the earlier run chose. Returns metrics. `workers` as of `train_head`.
    """
    earlier = Path(config.start_from)
    metrics = read_search(earlier)
    known_rows = checkpoints.read_users(earlier).n_rows
    checkpoint = load_earlier_checkpoint(config, comparisons)
    model, users = checkpoint.model, checkpoint.users
    dropout = 1.0 if checkpoint.settings.user_text == "unread" else config.users.text_dropout
    texts, index = encode_texts(checkpoint.encoder(), comparisons, dropout, config.seed)
    earlier_stores = [name for name in read_run(earlier).get("feature_stores", []) if isinstance(name, str)]
    _record_stores(run, model, [model.feature_spec], earlier_stores)
    read = read_features(model, texts, [model.feature_spec], elsewhere=elsewhere(workers, checkpoint))
    pooled = read[model.feature_spec].to(model.standard_mean.device)
    rows = torch.tensor([users.row(c.user_id) for c in comparisons])
    labels = torch.tensor([[c.p_chosen, c.weight] for c in comparisons])
    with torch.no_grad():
        states, base = model.head_input(pooled)
    columns = [tensor.to(pooled.device) for tensor in (index[0], index[1], rows, labels[:, 0], labels[:, 1])]
    pairs = PairFeatures(states, columns[0], columns[1], columns[2], columns[3], columns[4], base)
    new = torch.arange(users.n_rows, device=pooled.device) >= known_rows
    steps = fit_heads(model.user_model, pairs, new, metrics["personal"]["best"]["user_l2"])
    if (earlier / "uniform").is_dir():
        copy(earlier / "uniform", work / "uniform")
    checkpoints.save(checkpoint, work, run | {"parameters": model.trained_parameters()})
    return {**metrics, "continued": {"people": len(set(rows.tolist())), "steps": steps}}


def elsewhere(workers: Workers | None, checkpoint: Checkpoint[RewardModel]) -> Elsewhere | None:
    """Where the hidden states of a model's frozen backbone are computed, if there are workers."""
    if workers is None:
        return None
    return Elsewhere(workers, checkpoints.backbone_of(checkpoint.settings.backbone, checkpoint.folder))


def folds_of(config: TrainConfig, comparisons: Sequence[Comparison]) -> Tensor:
    """Fold of each comparison's two responses, [n, 2]; -1 always trains. `search.folds: 1` has one validation part."""
    by = training_holdout(config.data.holdout_by, comparisons)
    if config.search.folds > 1:
        return torch.tensor(folds(comparisons, by, config.search.folds, config.seed + 1))
    parts = split(comparisons, by, config.data.validation_fraction, config.split_seed + 1)
    train, validation = ({id(c) for c in part} for part in parts)
    return torch.tensor([[-(id(c) in train or id(c) not in validation), -(id(c) in train)] for c in comparisons])


def choice_parts(config: TrainConfig, comparisons: Sequence[Comparison], fold: Tensor) -> Tensor | None:
    """With one fold, the half of it that holds each response, [n, 2]: each half scores the choice made on the other.

    `None` with more folds, and if the fold cannot be halved.
    """
    held_out = (fold == 0).all(1).nonzero()[:, 0]
    if config.search.folds > 1:
        return None
    half = torch.full_like(fold, -1)
    try:
        by = training_holdout(config.data.holdout_by, comparisons)
        halves = folds([comparisons[i] for i in held_out], by, 2, config.seed + 2)
    except PrmError:
        logger.warning("the held-out part cannot be halved: settings are chosen and evaluated on the same comparisons")
        return None
    half[held_out] = torch.tensor(halves)
    return half


def feature_specs_of(config: TrainConfig, model: RewardModel) -> list[FeatureSpec]:
    """The layers and poolings to try. Raises `PrmError` for layers that the backbone does not have."""
    if config.reward.features:
        return [model.feature_spec]
    full, poolings = model.layers, list(config.search.poolings)
    # an encoder was trained to say what a text means with its last layer
    by_default = [full] if model.bidirectional else sorted({-(-full // 2), full})
    depths = list(dict.fromkeys(config.search.layers)) or by_default
    if max(depths) > full or min(depths) < 1:
        raise PrmError(f"config key 'search.layers' holds {depths}, but the backbone has {full} layers")
    if model.base is not None:  # its head reads only the last token of the last layer
        if config.search.layers not in ([], [full]) or "last" not in poolings:
            raise PrmError(
                "a reward model reads its last layer's 'last' token: leave out 'search.layers' and 'search.poolings'"
            )
        depths, poolings = [full], ["last"]
    specs: list[FeatureSpec] = [((depth, pooling),) for depth in depths for pooling in poolings]
    if config.search.combine and "mean" in poolings:
        joined = [depths] if config.search.layers or model.bidirectional else [depths, _quarters(full)]
        specs += dict.fromkeys(tuple((depth, "mean") for depth in several) for several in joined if len(several) > 1)
    return specs


def _quarters(layers: int) -> list[int]:
    """A quarter, half, three quarters and all of the layers, without repeats."""
    return sorted({-(-layers // 4), -(-layers // 2), max(1, 3 * layers // 4), layers})


def _record_stores(
    run: RunRecord, model: RewardModel, specs: Sequence[FeatureSpec], earlier: Sequence[str] = ()
) -> None:
    """Record the folders with features of users' texts, so that `forget_user` finds them."""
    settings = {setting for spec in specs for setting in spec}
    stores = {*earlier, *(str(feature_folder(model, setting).resolve()) for setting in settings)}
    run["feature_stores"] = [*sorted(stores)]


def _with_features(config: TrainConfig, spec: FeatureSpec) -> TrainConfig:
    """The config of a model that reads these layers and poolings."""
    if len(spec) > 1:
        return replace(config, reward=replace(config.reward, features=format_features(spec), pooling="last"))
    ((layers, pooling),) = spec
    reward = replace(config.reward, features=[], pooling=cast(Pooling, pooling))
    return replace(config, backbone=replace(config.backbone, layers=layers), reward=reward)


def _save_head(
    searched: RewardModel,
    config: TrainConfig,
    data: HeadData,
    best: Chosen,
    users: UserIndex,
    folder: Path,
    run: RunRecord,
) -> None:
    """Fit the chosen setting on all comparisons, and save it with the backbone of `searched`, truncated."""
    chosen = _with_features(config, best.feature_spec) if data.base is None else config
    chosen = replace(chosen, reward=replace(chosen.reward, kernel=best.kernel))
    pooled = data.states(best.feature_spec)
    landmarks = min(len(pooled), LANDMARKS) if best.kernel == "rbf" else 0
    checkpoint = with_shared_backbone(searched, chosen, users, landmarks, run["day"])
    model = checkpoint.model
    with torch.no_grad():
        pooled = pooled.to(model.standard_mean.device)
        model.standardise_by(pooled)
        if model.kernel is not None:
            model.kernel.fit(model.standardised(pooled), config.seed)
        texts = model.head_input(pooled).states.cpu()
    user_model = fit_chosen(data, best, chosen, users.n_rows, texts)
    if len(best.trials) > 1 and user_model.per_row() and user_model.trained_by_gradients:
        stretch(model, user_model, scales(best))
    if config.users.text_dropout == 1.0:
        checkpoint.settings.user_text = "unread"
    model.user_model.load_state_dict(model.user_model.adopt(user_model.state_dict()))
    if config.alpha == 1.0 and user_model.row_zero_needs_training:
        logger.warning(UNTRAINED_GENERIC)
    if user_model.all_alike:
        logger.warning(ALL_ALIKE)
    make_folder(folder)
    checkpoints.save(checkpoint, folder, run | {"parameters": model.trained_parameters()})
