"""Heads that read several hidden states at once: by hand from heads on one, through whole runs, and what is refused."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prm.checkpoint.checkpoint import load
from prm.config import (
    BackboneConfig,
    DataConfig,
    LoraSettings,
    OptimConfig,
    RewardModelConfig,
    SearchConfig,
    TrainConfig,
    UserConfig,
    feature_depth,
    format_features,
    parse_features,
)
from prm.data.encoding import Batch, Encoded, pad
from prm.errors import PrmError
from prm.evaluation.evaluate import evaluate
from prm.features.hidden_states import own_stores
from prm.io.tables import write_jsonl
from prm.io.yaml_settings import read_train_config
from prm.models.backbones import load_backbone
from prm.models.lora import add_lora
from prm.models.reward_model import RewardModel, build_reward_model
from prm.scoring.forget_user import forget_user
from prm.scoring.scorer import Scorer
from prm.training.heads.average import fit_average
from prm.training.heads.bayes_fit import fit_bayes, search_bayes
from prm.training.heads.grid_search import HeadData, search
from prm.training.heads.settings_choice import choose
from prm.training.linear_heads import feature_specs_of
from prm.training.run import train
from prm.training.setup import new_checkpoint
from prm.users.index import UserIndex
from tests.conftest import ARCHITECTURES
from tests.planted import opposed_people
from tests.prm.training.test_setup import save_reward_model

READS = ["1 mean", "2 last"]
BATCH = pad([Encoded([7, 8, 9, 10], (2, 3)), Encoded([11, 12], (1, 2)), Encoded([7, 8, 9, 10, 11, 12], (3, 6))])
QUICK = SearchConfig(folds=2, l2=[1.0], user_l2=[1.0], poolings=["mean"])


def model_of(folder: str, layers: int | None, reward: RewardModelConfig) -> RewardModel:
    return build_reward_model(load_backbone(folder, layers), UserConfig(), reward, n_rows=3, seed=0)


def three_models(folder: str) -> tuple[RewardModel, RewardModel, RewardModel]:
    """One that reads two states, and two that read one of them each, with the first's numbers."""
    both = model_of(folder, None, RewardModelConfig(features=READS))
    singles = (
        model_of(folder, 1, RewardModelConfig(pooling="mean")),
        model_of(folder, 2, RewardModelConfig(pooling="last")),
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in both.user_model.parameters():
            parameter.normal_()
        both.standard_mean.normal_()
        both.standard_scale.uniform_(0.5, 2.0)
        for model, part in zip(singles, (slice(0, 32), slice(32, 64)), strict=True):
            for one, whole in zip(model.user_model.parameters(), both.user_model.parameters(), strict=True):
                one.copy_(whole[..., part])
            model.standard_mean.copy_(both.standard_mean[part])
            model.standard_scale.copy_(both.standard_scale[part])
    return both, *singles


def with_users(batch: Batch, model: RewardModel, rows: list[int]) -> Batch:
    """The batch with a user id in front of every sequence."""
    front = torch.ones(len(rows), 1, dtype=torch.bool)
    ids = torch.cat([torch.tensor(rows)[:, None] + model.vocab_size, batch.input_ids], 1)
    return Batch(ids, torch.cat([front, batch.attention_mask], 1), torch.cat([~front, batch.response_mask], 1))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_two_states_are_those_of_two_backbones_cut_to_their_depths(
    backbone_of: Callable[..., str], architecture: str
) -> None:
    """Concatenated in the order given; and the reward is the sum of two heads' rewards."""
    both, first, second = three_models(backbone_of(architecture))
    with torch.no_grad():
        pooled = both.pooled(BATCH)
        assert pooled.shape == (3, 64)
        expected = torch.cat([first.pooled(BATCH), second.pooled(BATCH)], 1)
        torch.testing.assert_close(pooled, expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(pooled[:, :32], pooled[:, 32:], atol=0.1)
        asked = with_users(BATCH, both, [1, 0, 2])
        rewards = [model(*asked, terms="both") for model in (both, first, second)]
    for term in ("user", "generic"):
        found, one, other = (getattr(reward, term) for reward in rewards)
        torch.testing.assert_close(found, one + other, rtol=1e-4, atol=1e-4)


def test_a_backbone_is_read_once_for_all_states(tiny: str) -> None:
    model, calls = model_of(tiny, None, RewardModelConfig(features=["1 mean", "1 last", "2 mean"])), []
    model.backbone.register_forward_pre_hook(lambda *args: calls.append(1))
    assert model.pooled(BATCH).shape == (3, 96)
    assert calls == [1]
    layers: Any = model.backbone.layers
    assert not any(layer._forward_hooks for layer in layers)  # nothing is left in the backbone


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_the_layers_through_every_state(tiny: str, checkpointing: bool) -> None:
    """Those of the two single heads add up, with gradient checkpointing too."""
    models = three_models(tiny)
    if checkpointing:
        models[0].backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for model in models:
        model.train()  # checkpoints are set in training alone
        model.linear_reward(
            model.head_input(model.pooled(BATCH)), model.heads(torch.tensor([1, 0, 2]))
        ).sum().backward()
    both, first, second = (dict(model.backbone.named_parameters()) for model in models)
    for name, parameter in both.items():
        parts = [model[name].grad for model in (first, second) if name in model and model[name].grad is not None]
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, sum(parts), rtol=1e-3, atol=1e-4, msg=name)
    grad = first["layers.0.mlp.up_proj.weight"].grad
    assert grad is not None
    assert grad.abs().sum() > 0


def test_adapters_learn_through_the_state_before_the_last(tiny: str) -> None:
    model = model_of(tiny, None, RewardModelConfig(features=READS)).requires_grad_(False)
    add_lora(model, LoraSettings())
    model.pooled(BATCH)[:, :32].sum().backward()  # the first layer's alone
    moved = {name for name, p in model.backbone.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved
    assert all(".layers.0." in name for name in moved)


def config_of(tiny: str, folder: Path, prompts: int = 16, **changes: Any) -> TrainConfig:
    """A quick run on twelve opposed people who err now and then."""
    err = random.Random(0)
    log = opposed_people(prompts, 0, people=12)
    log = [replace(c, chosen=c.rejected, rejected=c.chosen) if err.random() < 0.15 else c for c in log]
    write_jsonl(folder / "log.jsonl", log)
    base = TrainConfig(
        output_dir=str(folder / "run"),
        data=DataConfig(path=str(folder / "log.jsonl")),
        backbone=BackboneConfig(tiny, dtype="float32"),
        search=QUICK,
        optim=OptimConfig(epochs=1.0, batch_size=4, micro_batch_size=4, eval_steps=5, early_stopping_patience=50),
    )
    return replace(base, **changes)


def test_the_search_tries_the_means_together_for_both_models(tiny: str, tmp_path: Path) -> None:
    metrics = json.loads((train(config_of(tiny, tmp_path)) / "metrics.json").read_text())
    for name in ("personal", "uniform"):
        assert [trial["features"] for trial in metrics[name]["trials"]] == [
            ["1 mean"],
            ["2 mean"],
            ["1 mean", "2 mean"],
        ]
        assert all(trial in metrics[name]["trials"] for trial in metrics[name]["best"]["averaged"])


def test_what_is_tried(backbone_of: Callable[..., str], tiny: str) -> None:
    """Half and all of an odd number of layers; joined ones need several depths and means, and can be left out."""

    def tried(folder: str, reads: list[str] = [], **search: Any) -> list[list[str]]:  # noqa: B006
        config = TrainConfig(backbone=BackboneConfig(folder), search=SearchConfig(**search))
        config.reward.features = reads
        model = new_checkpoint(config, UserIndex()).model
        layers: Any = model.backbone.layers
        assert len(layers) == (2 if reads else model.layers)  # nothing is run in vain
        return [format_features(r) for r in feature_specs_of(config, model)]

    three = backbone_of("llama", layers=3)
    single = [["2 last"], ["2 mean"], ["3 last"], ["3 mean"]]
    assert tried(three) == [*single, ["2 mean", "3 mean"], ["1 mean", "2 mean", "3 mean"]]
    assert tried(three, combine=False) == single
    assert tried(three, poolings=["last"]) == [["2 last"], ["3 last"]]
    assert tried(three, layers=[1]) == [["1 last"], ["1 mean"]]
    assert tried(three, layers=[3, 3, 1], poolings=["mean"]) == [["3 mean"], ["1 mean"], ["3 mean", "1 mean"]]
    assert tried(three, ["2 last", "1 mean"]) == [["2 last", "1 mean"]]
    assert tried(backbone_of("llama", layers=7), poolings=["mean"])[-1] == ["2 mean", "4 mean", "5 mean", "7 mean"]


RUNS: dict[str, dict[str, Any]] = {
    "frozen": {"users": UserConfig()},
    "cluster": {"users": UserConfig("cluster", clusters=2)},
    "bayes": {"users": UserConfig("bayes", rank=8), "prompts": 60},
    "stack": {"users": UserConfig("stack"), "prompts": 60},
    "lora": {"train": "lora"},
    "full": {"train": "full"},
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_with_features_of_two_layers(
    backbone_of: Callable[..., str], tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Cut at the deepest, saved, read back to the bit, the same through the cache, and named in what it leaves."""
    reward = RewardModelConfig(features=["2 last", "1 mean"])
    run = train(config_of(backbone_of("llama", layers=3), tmp_path, reward=reward, **RUNS[kind]))
    config = json.loads((run / "config.json").read_text())
    assert (config["backbone"]["layers"], config["reward"]["features"]) == (2, ["2 last", "1 mean"])
    assert "2 last, 1 mean" in (run / "README.md").read_text()
    checkpoint = load(run)
    assert len(checkpoint.model.backbone.base_model.layers if kind == "lora" else checkpoint.model.backbone.layers) == 2
    asked = (["what about the fox?"] * 3, ["a lazy dog", "seven wizards", "a king"], ["p0", None, "p1"])
    scores = Scorer(checkpoint).score_batch(*asked)
    assert torch.equal(Scorer.from_pretrained(run).score_batch(*asked), scores)
    cached = Scorer.from_pretrained(run, cache=True)
    torch.testing.assert_close(cached.score_batch(*asked), scores, rtol=0, atol=1e-4)
    assert isinstance(cached.model, RewardModel)
    assert all(store.is_dir() for store in own_stores(cached.model)) == (kind != "lora")
    assert len(set(scores.tolist())) == 3
    everyone = cached.score_users(asked[0][0], asked[1], ["p0", None, "p1"])
    torch.testing.assert_close(everyone.diagonal(), scores, rtol=0, atol=1e-4)
    if kind not in ("lora", "full"):
        uniform = load(run / "uniform").model
        assert format_features(uniform.feature_spec) == ["2 last", "1 mean"]


@pytest.mark.parametrize("kind", ["frozen", "bayes", "lora"])
def test_going_on_with_two_states(tiny: str, tmp_path: Path, kind: str) -> None:
    first = train(config_of(tiny, tmp_path, reward=RewardModelConfig(features=READS), **RUNS[kind]))
    new = [replace(c, user_id="zoe") for c in opposed_people(12, 5, people=1)]
    write_jsonl(tmp_path / "new.jsonl", new)
    data = DataConfig(path=str(tmp_path / "new.jsonl"))
    before = Scorer.from_pretrained(first)
    after = Scorer.from_pretrained(train(TrainConfig(str(tmp_path / "next"), start_from=str(first), data=data)))
    assert after.model.feature_spec == before.model.feature_spec == ((1, "mean"), (2, "last"))
    asked = ("what about the fox?", ["a lazy dog", "seven wizards mix potions"])
    for user in ("p0", "p1", None):
        assert torch.equal(before.score(*asked, user), after.score(*asked, user)) == (kind != "lora"), user
    assert not torch.equal(after.score(*asked, "zoe"), after.score(*asked))


def test_whoever_is_forgotten_leaves_none_of_the_stores(tiny: str, tmp_path: Path) -> None:
    """Those that an evaluation left, one for each state."""
    log = [replace(c, user_text=f"{c.user_id} likes") for c in opposed_people(8, 0, people=2)]
    config = config_of(tiny, tmp_path, train="full", reward=RewardModelConfig(features=READS))
    write_jsonl(tmp_path / "log.jsonl", log)
    run = train(config)
    scorer = Scorer.from_pretrained(run, cache=True)
    evaluate(scorer, log)
    assert isinstance(scorer.model, RewardModel)
    stores = own_stores(scorer.model)
    assert [store.is_dir() for store in stores] == [True, True]
    forget_user(run, "p1")
    assert not any(store.exists() for store in stores)


def planted() -> HeadData:
    """Twelve opposed people who like x + y, not without doubt; x is one state's first coordinate, y another's."""
    draw = torch.Generator().manual_seed(0)
    half, whole = torch.randn(160, 6, generator=draw), torch.randn(160, 6, generator=draw)
    n = 1200
    a = torch.randint(160, (n,), generator=draw)
    b = (a + 1 + torch.randint(159, (n,), generator=draw)) % 160
    rows = torch.arange(n) % 12 + 1
    liked = (half + whole)[:, 0]
    margin = 2.0 * (liked[a] - liked[b]) * torch.where(rows % 2 == 0, 1.0, -1.0)
    first = torch.rand(n, generator=draw) < torch.sigmoid(margin)
    features = {((1, "mean"),): half, ((2, "mean"),): whole, ((1, "mean"), (2, "mean")): torch.cat([half, whole], 1)}
    fold = torch.stack([torch.arange(n) // 12 % 3] * 2, 1)
    ones = torch.ones(n)
    return HeadData(features, torch.where(first, a, b), torch.where(first, b, a), rows, ones, ones, fold)


@pytest.mark.parametrize("kind", ["individual", "bayes"])
def test_people_whose_taste_shows_in_two_states_are_read_in_both(kind: Any) -> None:
    data = planted()
    config = TrainConfig(users=UserConfig(kind, rank=12), search=SearchConfig(l2=[1.0], user_l2=[1.0]))
    uniform = search(data, replace(config, users=UserConfig("uniform")), n_rows=1)
    assert all(0.4 < trial.validation_accuracy < 0.6 for trial in uniform.trials)
    if kind == "bayes":
        kept, _ = search_bayes(data, uniform, config, 13)
    else:
        found = search(data, config, 13)
        one, other, both = found.trials
        assert max(one.validation_accuracy, other.validation_accuracy) < 0.75
        assert both.validation_nll < min(one.validation_nll, other.validation_nll) - 0.1
        kept = choose(found, data)
        assert kept.trials == [both]
    assert set(kept.feature_spec) == {(1, "mean"), (2, "mean")}
    assert kept.validation_accuracy > 0.77
    fit = fit_bayes if kind == "bayes" else fit_average
    model = fit(data, kept, config, 13, data.states(kept.feature_spec))
    head = model(torch.tensor([2]))[0, 0]
    assert head[[0, 6]].min() > 2.5 * head[[1, 2, 3, 4, 5, 7, 8, 9, 10, 11]].abs().max()  # x and y, and nothing else


@pytest.mark.parametrize(
    "entry",
    # the last two: a digit that is none of 0 to 9, and a number that `int` would not read
    [
        "15 men",
        "mean 15",
        "0 mean",
        "-1 mean",
        "15  mean",
        "15 mean\n",
        "1.5 mean",
        "",
        "\u0661 mean",
        "9" * 9999 + " mean",
    ],
)
def test_an_entry_that_names_no_state_is_refused(entry: str) -> None:
    with pytest.raises(PrmError, match=r"'reward\.features'.*'15 mean'") as raised:
        parse_features(["2 mean", entry])
    assert len(str(raised.value)) < 400


def test_words_and_readings_are_the_same() -> None:
    spec = parse_features(["15 mean", "30 last", "30 mean"])
    assert spec == ((15, "mean"), (30, "last"), (30, "mean"))
    assert format_features(spec) == ["15 mean", "30 last", "30 mean"]
    assert feature_depth(spec) == 30
    with pytest.raises(PrmError, match="'15 mean'"):
        parse_features(["15 mean", "30 mean", "15 mean"])


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (
            {"reward": RewardModelConfig(features=["1 mean", "3 mean"])},
            r"reward\.features' reads 3 layers, but the backbone has 2",
        ),
        ({"reward": RewardModelConfig("soft_prompt", features=READS), "train": "lora"}, r"reward\.features"),
        ({"reward": RewardModelConfig(features=READS, pooling="mean")}, r"reward\.pooling"),
        ({"reward": RewardModelConfig(features=READS), "search": replace(QUICK, layers=[1])}, r"search\.layers"),
    ],
)
def test_readings_that_make_no_sense(tiny: str, tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    with pytest.raises(PrmError, match=key):
        train(config_of(tiny, tmp_path, **changes))
    assert not (tmp_path / "run").exists()


def test_a_reward_model_has_its_own_features_alone(tmp_path: Path) -> None:
    folder = save_reward_model(tmp_path / "rm", "llama")
    with pytest.raises(PrmError, match=r"reward model.*reward\.features"):
        train(config_of(folder, tmp_path, reward=RewardModelConfig(features=READS)))


@pytest.mark.parametrize("text", ["1 mean", "null", "[[1 mean]]", "{1: mean}", "[1 mean, 1 mean]", "[mean 1]"])
def test_features_in_a_file_are_a_list_of_texts(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"# x\nreward:\n  features: {text}\n")
    with pytest.raises(PrmError, match=r"reward\.features"):
        read_train_config(path)
    path.write_text("# x\nreward:\n  features: [15 mean, 30 last]\n")
    assert read_train_config(path).reward.features == ["15 mean", "30 last"]
