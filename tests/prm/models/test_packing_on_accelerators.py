"""Packs give on accelerators what separate sequences give there, and scores are those of the CPU.

The tests marked `gpu` have not been run anywhere: no machine with an accelerator was at hand. The same tests run on the
CPU with the attention of accelerators (`make_blocks`), in small blocks.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from prm.attention import tree_attention
from prm.attention.tree_attention import make_blocks
from prm.config import LoraSettings
from prm.data.encoding import Batch, Encoded, pad
from prm.models.backbones import choose_device, load_backbone, load_causal_lm
from prm.models.lora import add_lora
from prm.models.packing import can_pack, checkpointing
from prm.models.policy_model import Policy
from prm.models.reward_model import RewardModel, build_reward_model
from prm.scoring.scorer import Scorer
from prm.users.kinds import Individual
from tests.conftest import count_tokens
from tests.prm.scoring.test_threads import ANSWERS, PEOPLE, scorer_of
from tests.prm.training.trainers.test_packed_training import FORMS, farthest, pairs_of
from tests.tolerance import GRADIENT, rounding

ACCELERATOR = pytest.param(
    "accelerator",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.accelerator.is_available(), reason="torch sees no accelerator"),
    ],
)
Move = Callable[[], torch.device]


@pytest.fixture(params=["masks on the CPU", ACCELERATOR])
def move(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Move:
    """A function that returns the device; on the CPU, packs are then read with the attention of accelerators."""

    def device() -> torch.device:
        if request.param == "accelerator":
            return choose_device()
        monkeypatch.setattr(tree_attention, "_BLOCK", 50)
        monkeypatch.setattr("prm.models.packing.prepare", make_blocks)
        return torch.device("cpu")

    return device


def trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def reward_model(folder: str, form: str, device: torch.device, dtype: torch.dtype) -> RewardModel:
    """With adapters in float32, and what is trained far from 0."""
    reward, users = FORMS[form]
    model = build_reward_model(load_backbone(folder, None, dtype).requires_grad_(False), users, reward, 4, 0)
    add_lora(model, LoraSettings(lora_dropout=0.0))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trained(model).values():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=draw))
    return model.to(device)


def outcome(model: RewardModel, batch: Batch) -> dict[str, Tensor]:
    """Rewards, and gradients of a weighted sum of them, on the CPU."""
    model.zero_grad()
    rewards = model(*(field.to(model.standard_mean.device) for field in batch), terms="both")
    weights = torch.linspace(-1.0, 1.0, len(rewards.user), device=rewards.user.device)
    ((rewards.user + 2 * rewards.generic) * weights).sum().backward()
    found = {"user": rewards.user, "generic": rewards.generic}
    return {n: x.detach().cpu() for n, x in (found | {n: p.grad for n, p in trained(model).items()}).items()}


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> Callable[[RewardModel, Batch], dict[str, Tensor]]:
    """`outcome` with each sequence read by itself."""

    def read(model: RewardModel, batch: Batch) -> dict[str, Tensor]:
        with monkeypatch.context() as patch:
            patch.setattr("prm.models.reward_model.can_pack", lambda backbone: False)
            return outcome(model, batch)

    return read


def batch_of(form: str) -> Batch:
    return pad([side for pair in pairs_of(form) for side in (pair.chosen, pair.rejected)])


@pytest.mark.parametrize("checkpointed", [False, True], ids=["", "checkpointed"])
@pytest.mark.parametrize("form", FORMS)
def test_rewards_and_gradients_are_those_of_separate_sequences(
    tiny: str, form: str, checkpointed: bool, move: Move, whole: Callable[[RewardModel, Batch], dict[str, Tensor]]
) -> None:
    model, batch = reward_model(tiny, form, move(), torch.float32), batch_of(form)
    if checkpointed:
        model.train().backbone.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs=checkpointing(model.backbone)
        )
    assert can_pack(model.backbone)
    read = count_tokens(model.backbone)
    packed = outcome(model, batch)
    assert sum(read) < int(batch.attention_mask.sum()) * (1 if form == "linear" else 2)
    assert farthest(packed, whole(model, batch)) < rounding(GRADIENT)


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_is_no_farther_from_float32_than_separate_sequences_are(
    tiny: str, form: str, move: Move, whole: Callable[[RewardModel, Batch], dict[str, Tensor]]
) -> None:
    device, batch = move(), batch_of(form)
    exact = whole(reward_model(tiny, form, device, torch.float32), batch)
    model = reward_model(tiny, form, device, torch.bfloat16)
    assert can_pack(model.backbone)

    def apart(found: dict[str, Tensor]) -> float:
        return sum(float((found[name] - x).square().sum()) for name, x in exact.items()) ** 0.5

    assert 0.0 < apart(outcome(model, batch)) < 1.5 * apart(whole(model, batch))


@torch.no_grad()
def test_log_probabilities_are_those_of_separate_sequences(
    tiny: str, move: Move, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = Individual(4, 2, 32)
    torch.nn.init.normal_(users.offsets, std=0.5)
    policy = Policy(load_causal_lm(tiny), users).eval().to(move())
    prompt = [338, 339, *range(20, 50)]
    texts = [Encoded([*prompt, *range(60, 60 + n)], (len(prompt), len(prompt) + n)) for n in (3, 12, 40)]
    batch = Batch(*(field.to(policy.device) for field in pad(texts)))
    assert policy.packs
    packed = policy.token_logps(batch)
    monkeypatch.setattr("prm.models.policy_model.can_pack", lambda backbone: False)
    torch.testing.assert_close(packed, policy.token_logps(batch), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["linear", "linear, adapted", "prefix", "suffix", "policy"])
def test_scores_are_those_of_the_cpu(tiny: str, name: str, move: Move) -> None:
    """In packs that carry keys from one to the next, too."""

    def scores(device: torch.device) -> Tensor:
        checkpoint = scorer_of(tiny, name).checkpoint
        checkpoint.model.to(device)
        scorer = Scorer(checkpoint, max_tokens=30)
        return torch.stack([scorer.score("what of the fox?", ANSWERS, user) for user in PEOPLE])

    expected = scores(torch.device("cpu"))
    torch.testing.assert_close(scores(move()), expected, rtol=0, atol=1e-3)
