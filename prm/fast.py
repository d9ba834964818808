"""The fast path: features of a frozen backbone once, then heads on them (`prm.features`, `prm.search`, `prm.heads`)."""

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.tensorboard import SummaryWriter

from prm import checkpoint as checkpoints
from prm.backbones import decoder_layers
from prm.bayes.fit import continue_bayes, fit_bayes, search_bayes
from prm.checkpoint import Checkpoint
from prm.comparison import Comparison
from prm.config import TrainConfig
from prm.errors import PrmError
from prm.features import Setting, compute_features, store_folder
from prm.heads import PairFeatures, fit_rows
from prm.model import RewardModel, standard_of
from prm.search import HeadData, Trial, fit_best, search
from prm.splits import folds, split
from prm.start import UNTRAINED_STRANGER, earlier_checkpoint, encode_texts, new_checkpoint, tell_of_base
from prm.user_models import Bayes
from prm.users import UserIndex

logger = logging.getLogger(__name__)


def train_head(
    config: TrainConfig, comparisons: Sequence[Comparison], work: Path, run: dict[str, Any]
) -> dict[str, Any]:
    """Every setting of the search, for the personal and the uniform head; the best ones are saved. Returns metrics."""
    users = UserIndex.from_comparisons(comparisons)
    checkpoint = new_checkpoint(config, users)
    model = checkpoint.model
    tell_of_base(checkpoint)
    settings = _settings(config, model)
    texts, index = encode_texts(checkpoint.encoder(), comparisons, config.users.text_dropout, config.seed)
    _note_stores(run, model, settings)
    features = compute_features(model, texts, settings)
    rows = torch.tensor([users.row(c.user_id) for c in comparisons])
    labels = torch.tensor([[c.p_chosen, c.weight] for c in comparisons])
    with torch.no_grad():  # with a base there is one setting
        base = model.base_reward(features[settings[0]].to(model.standard_mean.device))
        base = base.cpu() if base is not None else None
    fold = folds_of(config, comparisons)
    data = HeadData(features, index[0], index[1], rows, labels[:, 0], labels[:, 1], fold, base)
    metrics: dict[str, Any] = {}
    with SummaryWriter(str(work / "logs")) as log:
        trials: list[Trial] = []
        # the uniform model first: empirical Bayes starts from what its search found
        for name, kind in {"uniform": "uniform", "personal": config.users.kind}.items():
            if name == "uniform" and config.users.kind == "uniform":
                continue
            chosen = replace(config, users=replace(config.users, kind=kind))
            if kind == "bayes":
                trials = search_bayes(data, trials, chosen, users.n_rows)
            else:
                trials = search(data, chosen, users.n_rows)
            best = min(trials, key=lambda trial: trial.validation_nll)
            for step, trial in enumerate(trials):
                log.add_scalar(f"{name}/validation_nll", trial.validation_nll, step)
            folder = work if name == "personal" else work / "uniform"
            head_users = users if name == "personal" else UserIndex()
            _save_head(chosen, data, best, head_users, folder, run | {"config": chosen.to_dict()})
            metrics[name] = {"best": asdict(best), "trials": [asdict(trial) for trial in trials]}
            logger.info("%s: held-out likelihood %.4f nats with %s", name, best.validation_nll, best.describe())
    return metrics


def continue_head(
    config: TrainConfig, comparisons: Sequence[Comparison], work: Path, run: dict[str, Any]
) -> dict[str, Any]:
    """Fit the rows of the people in the comparisons, from where the earlier run left them; all else stays.

    The penalty is the one that run chose. Returns metrics.
    """
    earlier = Path(config.start_from)
    stored = earlier / "metrics.json"
    if not stored.is_file():
        raise PrmError(f"{stored} is missing: the penalty that the run chose cannot be known")
    metrics = json.loads(stored.read_text(encoding="utf-8"))
    checkpoint = earlier_checkpoint(config, [c.user_id for c in comparisons])
    model, users = checkpoint.model, checkpoint.users
    setting = (len(decoder_layers(model.backbone)), model.form.pooling)
    texts, index = encode_texts(checkpoint.encoder(), comparisons, config.users.text_dropout, config.seed)
    known = checkpoints.read_run(earlier).get("feature_stores", [])
    _note_stores(run, model, [setting], known)
    pooled = compute_features(model, texts, [setting])[setting].to(model.standard_mean.device)
    rows = torch.tensor([users.row(c.user_id) for c in comparisons])
    labels = torch.tensor([[c.p_chosen, c.weight] for c in comparisons])
    with torch.no_grad():
        base, standard = model.base_reward(pooled), model.standardised(pooled)
    on = [tensor.to(pooled.device) for tensor in (index[0], index[1], rows, labels[:, 0], labels[:, 1])]
    pairs = PairFeatures(standard, on[0], on[1], on[2], on[3], on[4], base)
    if isinstance(model.user_model, Bayes):
        steps = continue_bayes(model.user_model, pairs)
    else:
        steps = fit_rows(model.user_model, pairs, metrics["personal"]["best"]["user_l2"])
    if (earlier / "uniform").is_dir():
        shutil.copytree(earlier / "uniform", work / "uniform", dirs_exist_ok=True)
    checkpoints.save(checkpoint, work, run | {"parameters": model.trained_parameters()})
    return metrics | {"continued": {"people": len(set(rows.tolist())), "steps": steps}}


def folds_of(config: TrainConfig, comparisons: Sequence[Comparison]) -> torch.Tensor:
    """Fold of each comparison's two answers, [n, 2]; -1 always trains. With `search.folds: 1`, one part validates."""
    data = config.data
    if config.search.folds > 1:
        return torch.tensor(folds(comparisons, data.split_of_training, config.search.folds, config.seed + 1))
    parts = split(comparisons, data.split_of_training, data.validation_fraction, config.seed + 1)
    learn, validation = ({id(c) for c in part} for part in parts)
    return torch.tensor([[-(id(c) in learn or id(c) not in validation), -(id(c) in learn)] for c in comparisons])


def _settings(config: TrainConfig, model: RewardModel) -> list[Setting]:
    """Depths and poolings to try. Raises `PrmError` for what the backbone does not have."""
    full = len(decoder_layers(model.backbone))
    depths, poolings = config.search.layers or sorted({-(-full // 2), full}), list(config.search.poolings)
    if max(depths) > full or min(depths) < 1:
        raise PrmError(f"config key 'search.layers' holds {depths}, but the backbone has {full} layers")
    if model.base is not None:  # its head reads the last token of the last layer, and nothing else
        if config.search.layers not in ([], [full]) or "last" not in poolings:
            raise PrmError(
                "a reward model reads its last layer's 'last' token: leave out 'search.layers' and 'search.poolings'"
            )
        depths, poolings = [full], ["last"]
    return [(depth, pooling) for depth in depths for pooling in poolings]


def _note_stores(
    run: dict[str, Any], model: RewardModel, settings: Sequence[Setting], known: Sequence[str] = ()
) -> None:
    """Where features lie that may hold what people say of themselves: `forget_user` must find them."""
    stores = set(known)
    if run["data"]["has_user_text"]:
        dtype = next(model.backbone.parameters()).dtype
        stores |= {str(store_folder(model, dtype, setting).resolve()) for setting in settings}
    if stores:
        run["feature_stores"] = sorted(stores)


def _save_head(
    config: TrainConfig, data: HeadData, best: Trial, users: UserIndex, folder: Path, run: dict[str, Any]
) -> None:
    """Fit the chosen setting on everything, and save it with a cut backbone."""
    layers = config.backbone.layers if data.base is not None else best.layers
    chosen = replace(
        config,
        backbone=replace(config.backbone, layers=layers),
        reward=replace(config.reward, pooling=cast(Any, best.pooling)),
    )
    checkpoint: Checkpoint[RewardModel] = new_checkpoint(chosen, users)
    model = checkpoint.model
    texts = data.features[best.setting]
    if config.reward.standardise:
        model.standardise_by(texts)
        mean, scale = standard_of(texts)
        texts = (texts - mean) / scale
    fit = fit_bayes if config.users.kind == "bayes" else fit_best
    user_model = fit(data, best, chosen, users.n_rows, texts)
    model.user_model.load_state_dict(user_model.state_dict())
    if config.alpha == 1.0 and user_model.row_zero_needs_training:
        logger.warning(UNTRAINED_STRANGER)
    folder.mkdir(exist_ok=True)
    checkpoints.save(checkpoint, folder, run | {"parameters": model.trained_parameters()})
