"""Training reads what chosen and rejected share once: loss and gradients are those of whole sequences."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prm.config import BackboneConfig, LoraSettings, OptimConfig, RewardModelConfig, TrainConfig, UserConfig
from prm.data.encoding import Encoded
from prm.models.lora import add_lora
from prm.models.packing import can_pack
from prm.training.encoded_pairs import EncodedPair, collate, to_dataset
from prm.training.setup import encode_pairs, new_checkpoint
from prm.training.trainers.reward_trainer import build_reward_trainer
from prm.users.index import UserIndex
from tests.conftest import count_tokens
from tests.planted import opposed_people
from tests.tolerance import GRADIENT, rounding

V = 336
FORMS = {
    "prefix": (RewardModelConfig("soft_prompt", "prefix"), UserConfig(num_virtual_tokens=2)),
    "suffix": (RewardModelConfig("soft_prompt", "suffix"), UserConfig(num_virtual_tokens=2)),
    "linear": (RewardModelConfig(features=["1 mean", "2 last"]), UserConfig()),
}


def pairs_of(form: str, seed: int = 0, prompts: int = 3, share: bool = True) -> list[EncodedPair]:
    """Two judges a prompt, prompts of 1 to 60 tokens and answers of 1 to 50; without `share` no text begins alike."""
    draw = random.Random(seed)
    heads = iter(range(5, 300))
    out = []
    for _ in range(prompts):
        prompt = [next(heads), *(draw.randrange(5, 300) for _ in range(draw.randrange(60)))]
        for row in (draw.randrange(1, 4), draw.randrange(1, 4)):
            sides = []
            for _ in range(2):
                start = [] if share else [next(heads)]
                answer = [draw.randrange(5, 300) for _ in range(draw.randrange(1, 51))]
                text, response = [*start, *prompt, *answer], len(start) + len(prompt)
                user = [V + row] if form == "linear" else [V + 2 * row, V + 2 * row + 1]
                shift = 0 if form == "suffix" else len(user)
                ids = [*text, *user] if form == "suffix" else [*user, *text]
                sides.append(Encoded(ids, (response + shift, response + len(answer) + shift)))
            out.append(
                EncodedPair(sides[0], sides[1], p_chosen=0.5 + draw.random() / 2, weight=draw.choice([0.5, 1.0, 3.0]))
            )
    return out


def trainer_of(
    folder: str, form: str, pairs: list[EncodedPair], tmp: Path, **changes: Any
) -> Any:  # whose model may be None by its type
    reward, users = FORMS[form]
    optim = OptimConfig(gradient_checkpointing=changes.pop("checkpointing", False))
    backbone = BackboneConfig(folder, dtype=changes.pop("dtype", "float32"))
    config = TrainConfig(train="lora", reward=reward, users=users, backbone=backbone, optim=optim)
    config = replace(config, **changes)
    torch.manual_seed(0)
    checkpoint = new_checkpoint(config, UserIndex(["a", "b", "c"]))
    if config.train == "lora":
        add_lora(checkpoint.model, LoraSettings())
    trainer: Any = build_reward_trainer(checkpoint, pairs, pairs, config, tmp)
    for name, parameter in trainer.model.named_parameters():  # all that trains is far from 0: B of LoRA, offsets, heads
        if parameter.requires_grad and ("backbone" not in name or "lora_" in name):
            torch.nn.init.normal_(parameter, std=0.1)
    trainer.model.train()
    return trainer


def step(trainer: Any, pairs: list[EncodedPair], micro: int = 100) -> dict[str, torch.Tensor]:
    """Loss and gradients of one optimiser step over the pairs, by name."""
    trainer.model.zero_grad()
    rows = list(to_dataset(pairs))
    total, loss = torch.tensor(sum(p.weight for p in pairs)), torch.tensor(0.0)
    for i in range(0, len(rows), micro):
        part = trainer.compute_loss(trainer.model, collate(rows[i : i + micro]), num_items_in_batch=total)
        part.backward()
        loss = loss + part.detach()
    return {"loss": loss} | {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}


def plain(monkeypatch: pytest.MonkeyPatch, *args: Any) -> dict[str, torch.Tensor]:
    with monkeypatch.context() as patch:
        patch.setattr("prm.models.reward_model.can_pack", lambda backbone: False)
        return step(*args)


def farthest(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest difference of any number, relative to the largest of its tensor or 1e-3 of the largest of all."""
    assert found.keys() == expected.keys()
    least = 1e-3 * max(float(x.abs().max()) for x in expected.values())
    return max(float((found[n] - x).abs().max()) / max(float(x.abs().max()), least) for n, x in expected.items())


@pytest.mark.parametrize("share", [True, False], ids=["shared", "nothing-shared"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("form", FORMS)
def test_loss_and_gradients_are_those_of_whole_sequences(
    tiny: str, tmp_path: Path, form: str, alpha: float, share: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of three pairs share their prompt with another one; one micro-batch, and micro-batches of 4."""
    pairs = pairs_of(form, share=share)
    trainer = trainer_of(tiny, form, pairs, tmp_path, alpha=alpha)
    expected = plain(monkeypatch, trainer, pairs)
    assert len(expected) > 2 * 7 * 2  # both halves of every adapter
    for micro in (100, 4):
        assert farthest(step(trainer, pairs, micro), expected) < rounding(GRADIENT)


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("llama", {"train": "full"}),
        ("gpt_neox", {"train": "lora"}),
        ("qwen2", {"train": "full"}),
        ("llama", {"train": "lora", "checkpointing": True}),
        ("llama", {"train": "full", "checkpointing": True}),
    ],
    ids=str,
)
@pytest.mark.parametrize("form", FORMS)
def test_other_backbones_full_training_and_checkpointing(
    backbone_of: Callable[..., str],
    tmp_path: Path,
    form: str,
    architecture: str,
    changes: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pairs = pairs_of(form, seed=1)
    trainer = trainer_of(backbone_of(architecture), form, pairs, tmp_path, **changes)
    assert farthest(step(trainer, pairs), plain(monkeypatch, trainer, pairs)) < rounding(GRADIENT)


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_is_no_farther_from_float32_than_whole_sequences_are(
    tiny: str, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backbone in bfloat16, what trains in float32."""
    pairs = pairs_of(form, seed=2)
    exact = step(trainer_of(tiny, form, pairs, tmp_path), pairs)
    trainer = trainer_of(tiny, form, pairs, tmp_path, dtype="bfloat16")
    found, whole = step(trainer, pairs), plain(monkeypatch, trainer, pairs)
    assert {x.dtype for x in found.values()} == {torch.float32}

    def apart(side: dict[str, torch.Tensor]) -> float:
        return sum(float((side[n] - x).square().sum()) for n, x in exact.items()) ** 0.5

    assert 0.0 < apart(found) < 1.5 * apart(whole)


def test_a_step_computes_what_is_shared_once(tiny: str, tmp_path: Path) -> None:
    """Users behind: one text, its user and the unknown one behind it. In front: one prompt for each of the two."""
    draw = random.Random(0)
    prompt, *answers = ([draw.randrange(5, 300) for _ in range(n)] for n in (40, 10, 12))
    for form, tokens in (("suffix", 40 + 10 + 12 + 2 * 2 * 2), ("prefix", 2 * (2 + 40 + 10 + 12)), ("linear", 62)):
        user = [V + 1] if form == "linear" else [V + 2, V + 3]
        rows = [[*prompt, *a, *user] if form == "suffix" else [*user, *prompt, *a] for a in answers]
        pair = EncodedPair(Encoded(rows[0], (44, 48)), Encoded(rows[1], (44, 48)), 1.0, 1.0)
        trainer = trainer_of(tiny, form, [pair], tmp_path)
        read = count_tokens(trainer.model.backbone)
        step(trainer, [pair])
        assert read == [tokens], form


def test_a_backbone_that_cannot_pack_trains_on_whole_sequences(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prm.models.packing._is_supported", lambda backbone: False)
    pairs = pairs_of("prefix")
    trainer = trainer_of(tiny, "prefix", pairs, tmp_path, alpha=1.0)
    read = count_tokens(trainer.model.backbone)
    step(trainer, pairs)
    sides = [side.ids for pair in pairs for side in (pair.chosen, pair.rejected)]
    assert read == [len(sides) * max(map(len, sides))]


def test_a_run_ends_where_one_on_whole_sequences_does(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation likelihood and accuracy by step, accumulation included."""
    log = opposed_people(16, 0, people=2)
    optim = OptimConfig(epochs=2.0, batch_size=8, micro_batch_size=4, eval_steps=2, early_stopping_patience=50)
    history = []
    for packed in (True, False):
        monkeypatch.setattr("prm.models.reward_model.can_pack", can_pack if packed else lambda backbone: False)
        config = TrainConfig(
            train="lora", optim=optim, backbone=BackboneConfig(tiny, dtype="float32"),
            reward=RewardModelConfig("soft_prompt", "suffix"), users=UserConfig(num_virtual_tokens=2),
        )  # fmt: skip
        users = UserIndex.from_comparisons(log)
        torch.manual_seed(0)
        checkpoint = new_checkpoint(config, users)
        pairs = encode_pairs(checkpoint.encoder(), users, log)
        add_lora(checkpoint.model, LoraSettings())
        trainer = build_reward_trainer(checkpoint, pairs, pairs, config, tmp_path / str(packed))
        trainer.train()
        history.append([e for e in trainer.state.log_history if "eval_nll" in e])
    assert len(history[0]) == 4
    assert history[0][0]["eval_nll"] != history[0][-1]["eval_nll"]
    for ours, theirs in zip(*history, strict=True):
        for name in ("eval_nll", "eval_generic_nll", "eval_accuracy"):
            assert ours[name] == pytest.approx(theirs[name], abs=1e-4), name
