"""Users behind a frozen text: what is kept and what is trained are what a whole reading gives, at a share of its cost."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from prm.comparison import Comparison
from prm.conditioned import to_generic
from prm.config import BackboneConfig, DataConfig, LoraSettings, OptimConfig, RewardConfig, TrainConfig, UserConfig
from prm.key_store import keep_texts
from prm.losses import personalized_bradley_terry
from prm.model import RewardModel
from prm.scorer import Scorer
from prm.start import encode_pairs, new_checkpoint
from prm.tokens import Batch, Encoded, pad
from prm.trainer import add_lora, build_trainer, collate, to_dataset
from prm.users import UserIndex
from tests.conftest import ARCHITECTURES

FROZEN_TEXT = RewardConfig("soft_prompt", "behind", frozen_text=True)


def config_of(backbone: str, folder: Path, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "train": "lora",
        "data": DataConfig(path=str(folder / "log.jsonl")),
        "backbone": BackboneConfig(backbone, dtype="float32"),
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
