"""Step-by-step training: exact weights, people who keep still, and runs that resume to the bit."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset
from torch.utils.data import BatchSampler
from transformers import EvalPrediction

import prm.training.gradient_training
from prm.attention.prefix_tree import make_plan
from prm.config import (
    BackboneConfig,
    DataConfig,
    LoraSettings,
    OptimConfig,
    RewardModelConfig,
    SearchConfig,
    TrainConfig,
    UserConfig,
)
from prm.data.comparison import Comparison
from prm.errors import PrmError
from prm.evaluation.evaluate import evaluate
from prm.features.hidden_states import read_features
from prm.io.tables import write_jsonl
from prm.models.lora import add_lora
from prm.scoring.scorer import Scorer
from prm.scoring.train_from_python import TrainingRun
from prm.training.encoded_pairs import collate, to_dataset
from prm.training.heads.objective import PairFeatures, Penalty, objective
from prm.training.losses import bradley_terry, weighted_mean
from prm.training.run import split_data, train
from prm.training.setup import encode_pairs, encode_texts, new_checkpoint
from prm.training.trainers.optimizer import RowAdamW, parameter_groups, rate
from prm.training.trainers.reward_trainer import build_reward_trainer, validation_metrics
from prm.training.trainers.step_trainer import PaddedDataset, PaddedSampler, total_steps
from prm.users.index import UserIndex
from tests.conftest import count_tokens
from tests.planted import opposed_people


def config_of(tiny: str, tmp_path: Path, **changes: Any) -> TrainConfig:
    base = TrainConfig(
        output_dir=str(tmp_path / "run"),
        train="lora",
        data=DataConfig(path=str(tmp_path / "log.jsonl")),
        backbone=BackboneConfig(tiny, dtype="float32"),
        users=UserConfig(num_virtual_tokens=2),
        reward=RewardModelConfig("soft_prompt", "suffix"),
        optim=OptimConfig(epochs=1.0, batch_size=4, micro_batch_size=4, eval_steps=5, early_stopping_patience=50),
    )
    return replace(base, **changes)


def small_log(seed: int = 0, prompts: int = 8) -> list[Comparison]:
    """A log with weights and soft labels that differ from row to row."""
    rows = opposed_people(prompts, seed, people=2)
    return [replace(c, weight=0.5 + (i % 5), p_chosen=1.0 - 0.1 * (i % 3)) for i, c in enumerate(rows)]


def trainer_for(config: TrainConfig, log: list[Comparison], folder: Path) -> Any:  # whose model may be None by its type
    users = UserIndex.from_comparisons(log)
    torch.manual_seed(0)
    checkpoint = new_checkpoint(config, users)
    pairs = encode_pairs(checkpoint.encoder(), users, log)
    return build_reward_trainer(checkpoint, pairs, pairs, config, folder)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
@pytest.mark.parametrize(
    "form", [RewardModelConfig(pooling="mean"), RewardModelConfig(features=["2 mean", "1 last"])], ids=str
)
def test_fast_path_equals_reward_trainer(tiny: str, tmp_path: Path, alpha: float, form: RewardModelConfig) -> None:
    """Loss and gradient on cached features are those of the RewardTrainer on the same weights."""
    users_config = UserConfig()
    config = config_of(tiny, tmp_path, alpha=alpha, train="frozen", reward=form, users=users_config)
    log = small_log()
    trainer = trainer_for(config, log, tmp_path)
    model = trainer.model
    for parameter in model.user_model.parameters():
        torch.nn.init.normal_(parameter)
    encoder, users = _encoder_and_users(config, log)
    pairs = list(to_dataset(encode_pairs(encoder, users, log)))
    inputs = collate(pairs)
    loss = trainer.compute_loss(model, inputs, num_items_in_batch=inputs["weight"].sum())
    loss.backward()
    expected = {name: p.grad.clone() for name, p in model.user_model.named_parameters() if p.grad is not None}
    model.zero_grad()

    texts, index = encode_texts(encoder, log)
    hidden = model.standardised(read_features(model, texts, [model.feature_spec])[model.feature_spec])
    rows = torch.tensor([users.row(c.user_id) for c in log])
    features = PairFeatures(hidden, index[0], index[1], rows, inputs["p_chosen"], inputs["weight"])
    fast = objective(model.user_model, features, alpha, Penalty(0.0, 0.0))
    fast.backward()
    torch.testing.assert_close(fast, loss, rtol=1e-5, atol=1e-6)
    for name, parameter in model.user_model.named_parameters():
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found, expected.get(name, torch.zeros_like(parameter)), rtol=1e-4, atol=1e-6)


def test_accumulation_equals_one_batch_with_unequal_weights(tiny: str, tmp_path: Path) -> None:
    """Peers weigh a pair by the micro-batch it fell into; here the whole step is one weighted mean."""
    states = []
    for micro in (8, 2):
        optim = OptimConfig(epochs=2.0, batch_size=8, micro_batch_size=micro, eval_steps=100)
        trainer = trainer_for(config_of(tiny, tmp_path, optim=optim), small_log(), tmp_path / str(micro))
        trainer.train()
        states.append({k: v.clone() for k, v in trainer.model.named_parameters() if v.requires_grad})
    moved = 0.0
    for name in states[0]:
        torch.testing.assert_close(states[0][name], states[1][name], rtol=1e-3, atol=2e-5)
        moved += float(states[0][name].detach().abs().sum())
    assert moved > 0


def test_rows_absent_from_a_step_do_not_move() -> None:
    """Row 1 gets a gradient at step 1 only. Dense Adam would drag it along by its momentum at step 2."""
    table = torch.nn.Parameter(torch.zeros(3, 2))
    optimizer = RowAdamW([{"params": [table], "lr": 0.1, "rowwise": True, "max_norm": 10.0}], betas=(0.9, 0.98))
    table.grad = torch.tensor([[0.0, 0.0], [1.0, -1.0], [0.0, 0.0]])
    optimizer.step()
    torch.testing.assert_close(table.data, torch.tensor([[0.0, 0.0], [-0.1, 0.1], [0.0, 0.0]]))
    after_one = table.detach().clone()
    table.grad = torch.tensor([[0.0, 0.0], [0.0, 0.0], [2.0, 0.0]])
    optimizer.step()
    assert torch.equal(table[:2], after_one[:2])
    # row 2's first step is a full first step: its bias correction counts its own steps
    torch.testing.assert_close(table[2], torch.tensor([-0.1, 0.0]))


def test_row_adam_is_adam_where_every_row_is_present() -> None:
    torch.manual_seed(0)
    start = torch.randn(4, 3)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    rowwise = RowAdamW([{"params": [ours], "lr": 0.05, "rowwise": True, "max_norm": 1e9}], betas=(0.9, 0.98))
    dense = torch.optim.AdamW([theirs], lr=0.05, betas=(0.9, 0.98), weight_decay=0.0)
    for _ in range(5):
        gradient = torch.randn(4, 3)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        rowwise.step()
        dense.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["individual", "cluster"])
def test_tables_of_people_are_trained_row_by_row(tiny: str, tmp_path: Path, kind: Any) -> None:
    """And what everyone shares is not: those rows are no people."""
    config = config_of(tiny, tmp_path, users=UserConfig(kind, num_virtual_tokens=2))
    model = new_checkpoint(config, UserIndex(["a", "b"])).model
    rowwise = {
        id(p) for g in parameter_groups(model, TrainConfig().optim, full=False) if g["rowwise"] for p in g["params"]
    }
    names = {name for name, p in model.named_parameters() if id(p) in rowwise}
    assert names == {"user_model.offsets" if kind == "individual" else "user_model.weights"}
    rates = {id(p): g["lr"] for g in parameter_groups(model, TrainConfig().optim, full=False) for p in g["params"]}
    assert model.score is not None
    assert rates[id(model.score.weight)] == TrainConfig().optim.head_lr
    assert len(rates) == sum(p.requires_grad for p in model.parameters())


def test_adapters_stand_on_every_linear_layer(tiny: str, tmp_path: Path) -> None:
    model = new_checkpoint(config_of(tiny, tmp_path), UserIndex(["a"])).model
    layers = {name for name, module in model.backbone.named_modules() if isinstance(module, torch.nn.Linear)}
    assert len(layers) == 2 * 7  # q, k, v, o, gate, up and down
    add_lora(model, LoraSettings())
    adapted = {name for name, _ in model.backbone.named_modules() if name.endswith(".lora_A")}
    assert adapted == {f"base_model.model.{name}.lora_A" for name in layers}


@pytest.mark.parametrize(
    ("kind", "alpha", "computed"),
    [
        ("individual", 0.0, (False, True)),
        ("individual", 0.5, (True, True)),
        ("individual", 1.0, (True, False)),
        ("uniform", 0.5, (False, True)),
    ],
)
def test_a_term_of_weight_0_is_not_computed(
    tiny: str, tmp_path: Path, kind: Any, alpha: float, computed: tuple[bool, bool]
) -> None:
    """And the backbone reads the texts once, and the users behind them once for each term that is."""
    config, log = (
        config_of(tiny, tmp_path, alpha=alpha, users=UserConfig(kind, num_virtual_tokens=2)),
        small_log(prompts=2),
    )
    trainer = trainer_for(config, log, tmp_path)
    read = count_tokens(trainer.model.backbone)
    encoder, users = _encoder_and_users(config, log)
    pairs = encode_pairs(encoder, users, log)
    inputs = collate(list(to_dataset(pairs)))
    found = trainer.margins(trainer.model, inputs)
    assert tuple(margin is not None for margin in found) == computed
    sides = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
    wanted = [s.ids for s in sides if computed[0]] + [encoder.for_user(s, 0).ids for s in sides if computed[1]]
    assert read == [len(make_plan(wanted).ids)]


def test_each_group_is_clipped_on_its_own() -> None:
    a, b = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    groups = [{"params": [p], "lr": 0.1, "rowwise": False, "max_norm": 1.0} for p in (a, b)]
    optimizer = RowAdamW(groups, betas=(0.9, 0.98))
    a.grad, b.grad = torch.tensor([30.0, 40.0]), torch.tensor([0.3, 0.4])
    optimizer.step()
    torch.testing.assert_close(optimizer.state[a]["exp_avg"], 0.1 * torch.tensor([0.6, 0.8]))  # 50 -> norm 1
    torch.testing.assert_close(optimizer.state[b]["exp_avg"], 0.1 * torch.tensor([0.3, 0.4]))  # 0.5 stays


def test_an_unfinished_run_with_other_settings_is_not_mixed_in(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl(tmp_path / "log.jsonl", opposed_people(8, 0, people=2))
    config = config_of(tiny, tmp_path)

    def fail(*args: Any) -> None:
        raise InterruptedError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(prm.training.gradient_training, "build_reward_trainer", fail)
        with pytest.raises(InterruptedError):
            train(config)
    with pytest.raises(PrmError, match="unfinished"):
        train(replace(config, seed=3))
    assert train(replace(config, seed=3, overwrite=True)).is_dir()


def test_a_finished_run_is_not_overwritten_unasked(tiny: str, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "log.jsonl", opposed_people(8, 0, people=2))
    config = config_of(tiny, tmp_path, train="frozen", users=UserConfig(), reward=RewardModelConfig())
    config.search = SearchConfig(folds=2, l2=[1.0], user_l2=[1.0])
    train(config)
    with pytest.raises(PrmError, match="exists"):
        train(config)


def test_the_schedule_ends_with_the_run(tiny: str, tmp_path: Path) -> None:
    """A part of an epoch, too: no step is taken at a rate of 0."""
    optim = OptimConfig(epochs=0.7, batch_size=4, micro_batch_size=4, eval_steps=100, warmup_steps=1)
    trainer = trainer_for(config_of(tiny, tmp_path, optim=optim), small_log(prompts=6), tmp_path)
    trainer.train()
    assert trainer.state.global_step == total_steps(12, optim) == 3
    assert rate(2, 3, optim) > 0.0


def test_rewards_that_are_no_numbers_end_the_run() -> None:
    margin, p, weight = np.array([1.0, -1.0, 0.0, 2.0]), np.array([1.0, 1.0, 1.0, 0.5]), np.array([1.0, 1.0, 1.0, 3.0])
    given: Callable[..., EvalPrediction] = EvalPrediction  # whose own types know of no three columns
    found = validation_metrics(given((margin, p, weight), None))
    assert found["accuracy"] == pytest.approx(0.5)
    assert found["nll"] == pytest.approx(
        np.average(np.log1p(np.exp([-1.0, 1.0, 0.0, 2.0])) - [0, 0, 0, 1], weights=weight)
    )
    with pytest.raises(PrmError, match="1 of 4"):
        validation_metrics(given((np.array([1.0, np.nan, 0.0, 2.0]), p, weight), None))


def test_early_stopping_keeps_the_best_state(tiny: str, tmp_path: Path) -> None:
    """A rate far too high makes later states worse; what is saved is the best that validation saw."""
    write_jsonl(tmp_path / "log.jsonl", opposed_people(20, 0, people=2))
    optim = OptimConfig(
        epochs=8.0, batch_size=4, micro_batch_size=4, eval_steps=2, early_stopping_patience=3, user_lr=1.0, lora_lr=0.1
    )
    config = config_of(tiny, tmp_path, optim=optim)
    run = train(config)
    metrics = json.loads((run / "metrics.json").read_text())
    seen = [entry["eval_nll"] for entry in metrics["history"]]
    assert metrics["validation_nll"] == TrainingRun(run).summary["personal"].nll == min(seen)
    assert seen[-1] > min(seen)
    assert metrics["steps"] < 8 * 9  # it did stop
    saved = evaluate(Scorer.from_pretrained(run), split_data(config).validation).row("personal").nll
    assert saved is not None
    assert saved.value == pytest.approx(min(seen), abs=1e-4)


KINDS = {
    "individual": UserConfig("individual", num_virtual_tokens=2),
    "separate": UserConfig("individual", num_virtual_tokens=2, generic=False),
    "cluster": UserConfig("cluster", num_virtual_tokens=2, clusters=2),
    "softmax": UserConfig("cluster", num_virtual_tokens=2, clusters=3, softmax=True),
    "uniform": UserConfig("uniform", num_virtual_tokens=2),
}
PLANTED = [  # every user model once, every place with two of them: each run takes half a minute
    pytest.param("soft_prompt", place, KINDS[name], id=f"{place}-{name}")
    for place, names in {"prefix": ("individual", "cluster"), "suffix": ("separate", "softmax", "uniform")}.items()
    for name in names
]
PLANTED += [
    pytest.param("linear_head", "prefix", replace(KINDS["individual"], num_virtual_tokens=1), id="linear-individual")
]


@pytest.mark.parametrize(("form", "place", "users"), PLANTED)
def test_planted_people_are_recovered_but_not_by_the_uniform_model(
    tiny: str, tmp_path: Path, form: Any, place: Any, users: UserConfig
) -> None:
    """Two pairs of opposed people. Whoever knows nobody is right exactly half the time."""
    write_jsonl(tmp_path / "log.jsonl", opposed_people(100, 0))
    optim = OptimConfig(epochs=14.0, batch_size=16, micro_batch_size=16, eval_steps=40, early_stopping_patience=99)
    optim.user_lr = 0.1 if users.kind == "cluster" else 0.03
    optim.lora_lr, optim.head_lr = 3e-3, 1e-2
    if users.kind == "uniform":
        optim.epochs = 2.0
    config = config_of(tiny, tmp_path, users=users, reward=RewardModelConfig(form, place), optim=optim)
    scorer = Scorer.from_pretrained(train(config))
    result = evaluate(scorer, opposed_people(20, 1))
    accuracy = result.row("personal").accuracy.value
    if users.kind == "uniform":
        assert accuracy == 0.5
    else:
        assert accuracy > 0.72
        assert result.row("generic user").accuracy.value == 0.5


def test_planted_people_are_recovered_on_the_fast_path(tiny: str, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "log.jsonl", opposed_people(100, 0))
    search = SearchConfig(folds=2, l2=[1.0, 10.0], user_l2=[1.0, 10.0])
    for kind in ("individual", "cluster"):
        users = UserConfig(kind, clusters=2)
        config = config_of(tiny, tmp_path, train="frozen", users=users, reward=RewardModelConfig(), search=search)
        config.overwrite = True
        run = train(config)
        result = evaluate(Scorer.from_pretrained(run), opposed_people(40, 1), Scorer.from_pretrained(run / "uniform"))
        assert result.row("personal").accuracy.value > 0.62
        assert result.row("uniform, tuned").accuracy.value == 0.5
        assert result.gain is not None
        assert result.gain.value > 0.12


def _encoder_and_users(config: TrainConfig, log: list[Comparison]) -> tuple[Any, UserIndex]:
    users = UserIndex.from_comparisons(log)
    return new_checkpoint(config, users).encoder(), users


@pytest.mark.parametrize("architecture", ["gpt_neox", "qwen2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_other_architectures_and_bfloat16_train_save_and_score(
    backbone_of: Callable[..., str], tmp_path: Path, architecture: str, dtype: Any
) -> None:
    """The frozen weights keep their dtype; whatever trains, and every reward, is float32; reloading changes nothing."""
    write_jsonl(tmp_path / "log.jsonl", opposed_people(8, 0, people=2))
    config = config_of("any", tmp_path, backbone=BackboneConfig(backbone_of(architecture), layers=1, dtype=dtype))
    run = train(config)
    assert list((run / "logs").glob("events*"))  # TensorBoard
    assert not (run / "trainer").exists()
    scorer = Scorer.from_pretrained(run)
    assert next(scorer.model.backbone.parameters()).dtype == getattr(torch, dtype)
    trained = [p for n, p in scorer.model.named_parameters() if "lora" in n or not n.startswith("backbone.")]
    assert len(trained) > 4
    assert {p.dtype for p in trained} == {torch.float32}
    rewards = scorer.score("what?", ["a king", "the fox"], "p0")
    assert rewards.dtype == torch.float32
    assert rewards.isfinite().all()
    assert torch.equal(Scorer.from_pretrained(run).score("what?", ["a king", "the fox"], "p0"), rewards)


def test_what_was_trained_is_what_is_scored(tiny: str, tmp_path: Path) -> None:
    """Margins of the trainer's model on the validation part are those of the loaded Scorer."""
    write_jsonl(tmp_path / "log.jsonl", opposed_people(12, 0, people=2))
    config = config_of(tiny, tmp_path, optim=OptimConfig(epochs=1.0, batch_size=4, micro_batch_size=2, eval_steps=100))
    run = train(config)
    nll = json.loads((run / "metrics.json").read_text())["validation_nll"]
    result = evaluate(Scorer.from_pretrained(run), split_data(config).validation)
    found = result.row("personal").nll
    assert found is not None
    assert found.value == pytest.approx(nll, abs=1e-4)


@pytest.mark.parametrize("form", ["linear_head", "soft_prompt"])
def test_alpha_1_without_a_common_part_says_that_the_generic_user_is_the_mean(
    tiny: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, form: Any
) -> None:
    write_jsonl(tmp_path / "log.jsonl", opposed_people(8, 0, people=2))
    config = config_of(tiny, tmp_path, alpha=1.0, users=UserConfig(generic=False), reward=RewardModelConfig(form))
    config.train = "frozen"
    config.search = SearchConfig(folds=2, l2=[1.0], user_l2=[1.0])
    scorer = Scorer.from_pretrained(train(config))
    assert "mean of all users" in caplog.text
    everyone = scorer.model.user_model(torch.tensor([0, 1, 2]))
    torch.testing.assert_close(everyone[0], everyone[1:].mean(0))


def test_truncations_are_counted_and_reported_per_part(
    tiny: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two of four sequences are too long by what their long prompt holds; the second call tells only its own."""
    fits, cut = Comparison("a", "why?", "a fox", "a dog"), Comparison("a", "why " * 60, "a fox", "a dog")
    config = config_of(tiny, tmp_path, backbone=BackboneConfig(tiny, dtype="float32", max_length=40))
    users = UserIndex(["a"])
    encoder = new_checkpoint(config, users).encoder()
    encode_pairs(encoder, users, [fits, cut])
    assert "2 sequences lost" in caplog.text
    caplog.clear()
    encode_pairs(encoder, users, [cut])
    assert "2 sequences lost" in caplog.text
    caplog.clear()
    encode_pairs(encoder, users, [fits])
    assert not caplog.text


@pytest.mark.parametrize(("n", "size"), [(10, 4), (8, 4), (11, 8)])
def test_rounds_are_filled_with_a_pair_that_weighs_nothing(n: int, size: int) -> None:
    order = PaddedSampler(n, size, seed=1)
    first = list(order)
    assert len(first) == len(order) == -(-n // size) * size
    assert sorted(first[:n]) == list(range(n))
    assert set(first[n:]) <= {n}
    assert list(order) == first
    order.set_epoch(1)
    assert list(order) != first
    assert list(PaddedSampler(n, size, seed=2)) != first


def test_nine_rows_are_all_seen_by_whoever_brings_their_own(tiny: str, tmp_path: Path) -> None:
    """The trainer as a library: what fills rounds up is no row of the data set, and row 8 is one like any other."""
    trainer = trainer_for(config_of(tiny, tmp_path), small_log(), tmp_path)
    rows = list(trainer.train_dataset)[:9]
    trainer.train_dataset = Dataset.from_list([row | {"weight": 2.0**i} for i, row in enumerate(rows)])
    for epoch in range(2):
        loader = trainer.get_train_dataloader()
        loader.set_epoch(epoch)
        batches = list(loader)
        assert [len(batch["weight"]) for batch in batches] == [4, 4, 4]
        weights = torch.cat([batch["weight"] for batch in batches])
        assert sorted(weights.tolist()) == [0.0] * 3 + [2.0**i for i in range(9)]


@pytest.mark.parametrize(("n", "processes"), [(9, 2), (9, 3), (16, 2), (1, 2)])
def test_processes_see_every_row_once_between_them(n: int, processes: int) -> None:
    """As accelerate deals batches out: weights of all rows, and nothing twice."""
    rows = PaddedDataset([{"weight": 2.0**i} for i in range(n)])
    order = PaddedSampler(n, 4 * processes, seed=0)
    parts = [
        [rows[i]["weight"] for batch in BatchSamplerShard(BatchSampler(order, 4, False), processes, p) for i in batch]
        for p in range(processes)
    ]
    assert len({len(part) for part in parts}) == 1
    assert sorted(w for part in parts for w in part if w) == [2.0**i for i in range(n)]


def test_an_epoch_holds_every_pair_once_by_weight(tiny: str, tmp_path: Path) -> None:
    """Fourteen pairs in micro-batches of four: the last one is filled up, and weighs what its two pairs weigh."""
    log = small_log(prompts=7)
    trainer = trainer_for(config_of(tiny, tmp_path), log, tmp_path)
    batches = list(trainer.get_train_dataloader())
    assert [len(batch["weight"]) for batch in batches] == [4, 4, 4, 4]
    weights = sorted(w for batch in batches for w in batch["weight"].tolist())
    assert weights == sorted([0.0, 0.0, *(c.weight for c in log)])


def test_rates_by_schedule() -> None:
    """Worked by hand: 8 steps of warm-up; held until two thirds, or half a cosine from the end of the warm-up."""
    hold, cosine = (OptimConfig(warmup_steps=8, lr_scheduler_type=name) for name in ("warmup_stable_decay", "cosine"))
    assert [rate(step, 108, hold) for step in (0, 7, 40, 72, 90, 108)] == pytest.approx([1 / 8, 1, 1, 1, 0.5, 0])
    assert [rate(step, 108, cosine) for step in (0, 7, 8, 33, 58, 108)] == pytest.approx(
        [1 / 8, 1, 1, 0.5 + 0.5 * 0.5**0.5, 0.5, 0], abs=1e-6
    )


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_a_look_at_the_validation_part_sees_judges_and_the_unknown_user(
    tiny: str, tmp_path: Path, alpha: float
) -> None:
    """Whatever alpha trains; and training stops by the term that is trained."""
    log = small_log()
    users = UserConfig(num_virtual_tokens=2, generic=False)  # row 0 has numbers of its own
    trainer = trainer_for(config_of(tiny, tmp_path, alpha=alpha, users=users), log, tmp_path)
    found = trainer.evaluate()
    model = trainer.model.eval()
    inputs = collate(list(trainer.eval_dataset))
    with torch.no_grad():
        rewards = model(inputs["input_ids"], inputs["attention_mask"], inputs["response_mask"], terms="both")
    p, weight = inputs["p_chosen"], inputs["weight"]
    expected = {}
    for name, reward in (("user", rewards.user), ("generic", rewards.generic)):
        chosen, rejected = reward.chunk(2)
        expected[name] = float(weighted_mean(bradley_terry(chosen - rejected, p), weight))
    assert expected["user"] != pytest.approx(expected["generic"], abs=1e-5)
    assert found["eval_generic_nll"] == pytest.approx(expected["generic"], abs=1e-5)
    assert found["eval_nll"] == pytest.approx(expected["generic" if alpha == 0.0 else "user"], abs=1e-5)


def test_dropout_is_that_of_the_adapters(tiny: str, tmp_path: Path) -> None:
    """TRL silences every dropout of a model, unless told otherwise: `lora.lora_dropout` would do nothing."""
    config = config_of(tiny, tmp_path, lora=LoraSettings(lora_dropout=0.5))
    log = small_log()
    checkpoint = new_checkpoint(config, UserIndex.from_comparisons(log))
    model, encoder = checkpoint.model, checkpoint.encoder()
    add_lora(model, config.lora)
    pairs = encode_pairs(encoder, checkpoint.users, log)
    build_reward_trainer(checkpoint, pairs, pairs, config, tmp_path)
    rates = {name: m.p for name, m in model.named_modules() if isinstance(m, torch.nn.Dropout)}
    assert {p for name, p in rates.items() if "lora_dropout" in name} == {0.5}
