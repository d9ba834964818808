"""Users behind a frozen text: what is kept and trained is what a whole reading gives."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, MistralConfig

from prm import key_store
from prm.adapt import adapt_run
from prm.comparison import Comparison
from prm.conditioned import to_generic
from prm.config import BackboneConfig, DataConfig, LoraSettings, OptimConfig, RewardConfig, TrainConfig, UserConfig
from prm.errors import PrmError
from prm.files import write_jsonl
from prm.forget import forget_user
from prm.key_store import KeyStore, ids_key, keep_texts, store_folder
from prm.losses import personalized_bradley_terry
from prm.model import RewardModel
from prm.run import train
from prm.scorer import Scorer
from prm.start import encode_pairs, new_checkpoint
from prm.tokens import Batch, Encoded, pad
from prm.trainer import add_lora, build_trainer, collate, to_dataset
from prm.users import UserIndex
from tests.conftest import ARCHITECTURES, save_random
from tests.planted import opposed_people

FROZEN_TEXT = RewardConfig("soft_prompt", "behind", frozen_text=True)


def config_of(name: str, folder: Path, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "train": "lora",
        "data": DataConfig(path=str(folder / "log.jsonl")),
        "backbone": BackboneConfig(name, dtype="float32"),
        "users": UserConfig(tokens=2),
        "reward": FROZEN_TEXT,
        "optim": OptimConfig(epochs=1.0, batch_size=4, micro_batch_size=4, eval_steps=5, patience=50),
    }
    return TrainConfig(**settings | changes)


def stirred(model: RewardModel) -> RewardModel:
    """Adapters and people as if trained: fresh ones change nothing."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or name.startswith("user_model."):
                parameter.normal_(std=0.3)
            if name == "score.weight":
                parameter.normal_()
    return model


@contextmanager
def adapters_on(model: RewardModel, where: Tensor) -> Iterator[None]:
    """LoRA acts where the mask [b, l] is true, and nowhere else."""

    def masked(layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return torch.where(where[..., None], out, layer.base_layer(*args))  # type: ignore[operator]

    handles = [m.register_forward_hook(masked) for m in model.backbone.modules() if isinstance(m, LoraLayer)]
    assert handles
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def whole(model: RewardModel, batch: Batch) -> Tensor:
    """Rewards by one reading of the whole sequences, as transformers does it, adapters masked to user tokens."""
    with adapters_on(model, batch.input_ids >= model.vocab_size):
        states = model.backbone(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask.long(), use_cache=False
        ).last_hidden_state
    last = batch.attention_mask.sum(1) - 1
    return model.soft_reward_of(states[torch.arange(len(last)), last].float())


def case(config: TrainConfig, log: list[Comparison], folder: Path) -> tuple[Any, RewardModel, list[dict[str, Any]]]:
    """(a trainer, its model, the pairs as its collator takes them)."""
    users = UserIndex.from_comparisons(log)
    checkpoint = new_checkpoint(config, users)
    model, encoder = checkpoint.model, checkpoint.encoder()
    pairs = encode_pairs(encoder, users, log)
    batch_of = keep_texts(model, [side for p in pairs for side in (p.chosen, p.rejected)], 1.0).batch
    add_lora(model, LoraSettings())
    trainer = build_trainer(stirred(model), encoder.tokenizer, pairs, pairs, config, folder, batch_of)
    return trainer, model, list(to_dataset(pairs))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_a_step_is_that_of_the_whole_reading(
    backbone_of: Callable[..., str], tmp_path: Path, comparisons: list[Comparison], architecture: str, alpha: float
) -> None:
    """Loss and gradients of users, head and adapters."""
    config = config_of(backbone_of(architecture), tmp_path, alpha=alpha)
    trainer, model, pairs = case(config, comparisons, tmp_path)
    inputs = trainer.data_collator(pairs)
    loss = trainer.compute_loss(model.train(), inputs, num_items_in_batch=inputs["weight"].sum())
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    plain = collate(pairs)
    batch = Batch(plain["input_ids"], plain["attention_mask"], plain["response_mask"])
    generic = batch._replace(input_ids=to_generic(batch.input_ids, model.vocab_size, 2))
    first, second = whole(model, batch).chunk(2)
    first_0, second_0 = whole(model, generic).chunk(2)
    losses = personalized_bradley_terry(first - second, first_0 - second_0, plain["p_chosen"], alpha)
    expected = (losses * plain["weight"]).sum() / plain["weight"].sum()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    moved = {name.split(".")[0] for name, gradient in found.items() if gradient.abs().max() > 1e-4}
    assert moved == {"backbone", "user_model", "score"}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradient = found.get(name, torch.zeros_like(parameter))
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_scores_are_those_of_the_whole_reading(tiny: str, tmp_path: Path, comparisons: list[Comparison]) -> None:
    """Whatever is asked for along with them, and however much is read at once."""
    users = UserIndex.from_comparisons(comparisons)
    checkpoint = new_checkpoint(config_of(tiny, tmp_path), users)
    add_lora(checkpoint.model, LoraSettings())
    model = stirred(checkpoint.model).eval()
    prompts = [c.prompt for c in comparisons] * 2
    answers = [c.chosen for c in comparisons] + [c.rejected for c in comparisons]
    people = [c.user_id if i % 4 else None for i, c in enumerate([*comparisons, *comparisons])]
    sequences = [
        checkpoint.encoder().encode(p, y, users.row(u)) for p, y, u in zip(prompts, answers, people, strict=True)
    ]
    with torch.no_grad():
        expected = whole(model, pad(sequences))
    assert expected.std() > 0.1
    for max_tokens in (30, 4096):
        scorer = Scorer(checkpoint, max_tokens)
        torch.testing.assert_close(scorer.score_batch(prompts, answers, people), expected, rtol=0, atol=1e-4)
    alone = torch.cat([scorer.score(*row) for row in zip(prompts, [[y] for y in answers], people, strict=True)])
    torch.testing.assert_close(alone, expected, rtol=0, atol=1e-4)
    many = scorer.score_users(prompts[0], answers[:1], [people[0]] * 70 + [people[1]])
    torch.testing.assert_close(many[:70, 0], expected[:1].expand(70), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="kept"):
        model.soft_reward(pad(sequences))  # no way to a score that reads the text with adapters


def test_a_text_is_read_without_adapters_and_what_trains_goes_on_training(tiny: str, tmp_path: Path) -> None:
    checkpoint = new_checkpoint(config_of(tiny, tmp_path), UserIndex())
    sequence = Encoded([*range(20, 40), *checkpoint.encoder().user_ids(0)], (10, 20))
    keys = []
    for step in range(2):
        keys.append(keep_texts(checkpoint.model, [sequence], 1.0, tmp_path / str(step)).batch([sequence]).keys)
        if step == 0:
            add_lora(checkpoint.model, LoraSettings())
            stirred(checkpoint.model)
            trained = [p.requires_grad for p in checkpoint.model.parameters()]
    assert torch.equal(*keys)
    assert trained == [p.requires_grad for p in checkpoint.model.parameters()]


FEW_STEPS = OptimConfig(epochs=3.0, batch_size=32, micro_batch_size=32, user_lr=3e-2)
ONE_STEP = OptimConfig(epochs=0.1, batch_size=32, micro_batch_size=32)


def log_of(config: TrainConfig, **changes: Any) -> TrainConfig:
    """The config, with its log written."""
    write_jsonl(Path(config.data.path), [replace(c, **changes) for c in opposed_people(60, 0, people=12)])
    return config


def test_a_run_from_log_to_scores_and_new_people(tiny: str, tmp_path: Path) -> None:
    """Saved and loaded it scores as trained; `prm adapt` moves nobody else; its checkpoint says what it is."""
    run = train(log_of(config_of(tiny, tmp_path, optim=FEW_STEPS)))
    assert json.loads((run / "config.json").read_text())["reward"]["frozen_text"] is True
    scorer = Scorer.from_pretrained(run)
    test = [replace(c, user_id="zoe") for c in opposed_people(80, 6, people=1)]
    texts, everybody = [test[0].chosen, test[0].rejected], [*scorer.users, None]
    before = scorer.score_users("why?", texts, everybody)
    assert before.std(0).min() > 1e-3
    log = [replace(c, user_id="zoe") for c in opposed_people(60, 5, people=1)]
    adapt_run(run, log)
    after = Scorer.from_pretrained(run)
    assert torch.equal(after.score_users("why?", texts, everybody), before)
    chosen, rejected = [c.chosen for c in log], [c.rejected for c in log]
    own, generic = (after.margin_batch([c.prompt for c in log], chosen, rejected, [u] * 60) for u in ("zoe", None))
    assert logsigmoid(own).mean() > logsigmoid(generic).mean() + 0.01
    scorer.fit_user("zoe", log)  # in memory: nothing more is kept
    torch.testing.assert_close(scorer.score("why?", texts, "zoe"), after.score("why?", texts, "zoe"), rtol=0, atol=1e-4)
    assert len(list((tmp_path / "cache" / "keys").iterdir())) == 1


def test_training_reads_each_text_once(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run on the same texts reads none of them, whoever judges and whatever is trained."""
    read, counts = key_store.read_keys, []

    def counted(backbone: nn.Module, texts: list[Any], max_tokens: int = 4096) -> Any:
        counts.append(len(texts))
        return read(backbone, texts, max_tokens)

    monkeypatch.setattr(key_store, "read_keys", counted)
    config = log_of(config_of(tiny, tmp_path, optim=ONE_STEP))
    train(config)
    rows = opposed_people(60, 0, people=12)
    distinct = len({(str(c.prompt), y) for c in rows for y in (c.chosen, c.rejected)})
    assert sum(counts) in (distinct, distinct + 1)  # one more token tells how much a token takes
    counts.clear()
    train(replace(config, output_dir=str(tmp_path / "again"), train="frozen", alpha=0.2))
    assert counts == []


def sequences_of(model: RewardModel, n: int, first: int = 20) -> list[Encoded]:
    """n texts of 30 ids that share nothing, the unknown user behind each."""
    return [Encoded([first + i, *range(100, 129), model.vocab_size, model.vocab_size + 1], (5, 9)) for i in range(n)]


def test_another_backbone_dtype_or_depth_has_another_store(backbone_of: Callable[..., str], tmp_path: Path) -> None:
    backbones = [
        BackboneConfig(backbone_of("llama"), dtype="float32"),
        BackboneConfig(backbone_of("llama"), dtype="bfloat16"),
        BackboneConfig(backbone_of("llama"), dtype="float32", layers=1),
        BackboneConfig(backbone_of("llama", seed=1), dtype="float32"),
    ]
    models = [new_checkpoint(config_of("", tmp_path, backbone=b), UserIndex()).model for b in backbones]
    assert len({store_folder(model) for model in models}) == 4
    a, b = (ids_key(list(range(20, end))) for end in (40, 41))  # a template or a cut changes the ids
    assert a != b


def test_a_killed_build_goes_on_where_it_stopped(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written whole stays; half a shard is no shard."""
    model = new_checkpoint(config_of(tiny, tmp_path), UserIndex()).model
    sequences = sequences_of(model, 9)
    monkeypatch.setattr(key_store, "_SHARD_TOKENS", 70)
    with monkeypatch.context() as killed:
        moves = []

        def dies(source: Path, target: Path) -> None:
            moves.append(target)
            if len(moves) == 3:
                raise KeyboardInterrupt
            shutil.move(source, target)

        killed.setattr(key_store.os, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            keep_texts(model, sequences, 1.0)
    store = KeyStore(store_folder(model))
    there = sum(ids_key(s.ids[:-2]) in store for s in sequences)
    assert there == 4
    read, counts = key_store.read_keys, []
    monkeypatch.setattr(key_store, "read_keys", lambda b, texts: (counts.append(len(texts)), read(b, texts))[1])
    resumed = keep_texts(model, sequences, 1.0).batch(sequences)
    assert sum(counts) == 1 + 9 - there
    fresh = keep_texts(model, sequences, 1.0, tmp_path / "fresh").batch(sequences)
    torch.testing.assert_close(resumed.keys, fresh.keys, rtol=1e-5, atol=1e-5)


def test_the_cache_is_bounded(tiny: str, tmp_path: Path) -> None:
    """What is needed is refused where it is too much, before anything is read; what is not needed goes."""
    model = new_checkpoint(config_of(tiny, tmp_path), UserIndex()).model
    old, new = sequences_of(model, 6), sequences_of(model, 6, first=40)
    keep_texts(model, old, 1.0)
    size = sum(path.stat().st_size for path in store_folder(model).iterdir()) / 1e9
    with pytest.raises(PrmError, match=r"optim\.kept_gb"):
        keep_texts(model, [*old, *new], 1.5 * size)
    assert ids_key(old[0].ids[:-2]) in KeyStore(store_folder(model))
    keep_texts(model, new, 1.5 * size)
    store = KeyStore(store_folder(model))
    assert all(ids_key(s.ids[:-2]) in store for s in new)
    assert not any(ids_key(s.ids[:-2]) in store for s in old)


def test_a_full_disk_is_told_before_anything_is_read(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = new_checkpoint(config_of(tiny, tmp_path), UserIndex()).model
    monkeypatch.setattr(key_store.shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(PrmError, match="PRM_CACHE"):
        keep_texts(model, sequences_of(model, 3), 1.0)
    assert not store_folder(model).exists()


def test_keys_that_are_no_numbers_are_refused_and_never_kept(tiny: str, tmp_path: Path) -> None:
    model = new_checkpoint(config_of(tiny, tmp_path), UserIndex()).model
    with torch.no_grad():
        model.backbone.layers[1].self_attn.k_proj.weight[0, 0] = float("nan")
    with pytest.raises(PrmError, match="finite"):
        keep_texts(model, sequences_of(model, 1), 1.0)
    assert not store_folder(model).exists()


@pytest.mark.parametrize("told", ["", "I like kings."])
def test_forgetting_somebody_removes_kept_texts_that_may_hold_theirs(tiny: str, tmp_path: Path, told: str) -> None:
    config = log_of(config_of(tiny, tmp_path, optim=ONE_STEP), user_text=told)
    run = train(config)
    keys = tmp_path / "cache" / "keys"
    assert len(list(keys.glob("*/*.safetensors"))) > 0
    forget_user(run, Scorer.from_pretrained(run).users[0])
    assert (len(list(keys.glob("*/*.safetensors"))) == 0) is bool(told)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"reward": replace(FROZEN_TEXT, place="front")}, "reward.frozen_text"),
    ({"reward": RewardConfig(frozen_text=True), "users": UserConfig()}, "reward.frozen_text"),
    ({"train": "full"}, "reward.frozen_text"),
    ({"users": UserConfig("uniform", tokens=0)}, "users.tokens"),
    ({"optim": OptimConfig(gradient_checkpointing=True)}, "optim.gradient_checkpointing"),
]


@pytest.mark.parametrize(("changes", "key"), WRONG, ids=str)
def test_settings_that_make_no_sense_with_it(tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    with pytest.raises(PrmError, match=key):
        config_of("x", tmp_path, **changes).check()


def test_a_backbone_with_windows_is_refused(tmp_path: Path) -> None:
    shape = {"vocab_size": 336, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    sliding = MistralConfig(**shape, num_attention_heads=4, num_key_value_heads=2, sliding_window=8)
    name = save_random(tmp_path / "sliding", AutoModelForCausalLM, sliding)
    with pytest.raises(PrmError, match="full attention"):
        new_checkpoint(config_of(name, tmp_path), UserIndex())
