"""One language model in four parts: who plays what, with whose people, and that no part moves another."""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from policy.config import PpoConfig
from policy.ppo.roles import Roles, detach, on_device, response_tokens
from policy.ppo.shared_reward import shared_reward
from policy.setup import new_policy
from prm.checkpoint import checkpoint as checkpoints
from prm.checkpoint.checkpoint import Checkpoint
from prm.checkpoint.config_file import TrainedBy
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
from prm.data.encoding import Encoded
from prm.io.tables import write_jsonl
from prm.models.policy_model import Policy
from prm.models.reward_model import RewardModel
from prm.scoring.scorer import Scorer
from prm.training.run import train
from prm.users.index import UserIndex
from rerank.sampling.config import Sampling
from rerank.sampling.sampler import Sampler
from tests.conftest import count_tokens
from tests.planted import opposed_people
from tests.prm.scoring.test_threads import at_once

CPU = torch.device("cpu")


def new_checkpoint(backbone: str, users: UserConfig | None = None, recompute: bool = False) -> Checkpoint[Policy]:
    config = PpoConfig(
        backbone=BackboneConfig(backbone, dtype="float32"),
        users=users or UserConfig(num_virtual_tokens=2),
        optim=OptimConfig(gradient_checkpointing=recompute),
    )
    return new_policy(config, config.users, UserIndex(["p0", "p1"]), TrainedBy("ppo"))


def new_roles(backbone: str, users: UserConfig | None = None) -> Roles:
    return roles_of(new_checkpoint(backbone, users))


def roles_of(checkpoint: Checkpoint[Policy]) -> Roles:
    roles = Roles(checkpoint.model, 0)
    with torch.no_grad():  # as if trained: fresh adapters and equal people would hide a wrong role
        for parameter in roles.trained().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return roles


@pytest.fixture
def roles(tiny: str) -> Roles:
    return new_roles(tiny)


USER = [336 + 2, 336 + 3]  # row 1
PLAIN = [Encoded([5, 6, 7, 8, 9], (2, 5)), Encoded([10, 11, 12], (2, 3))]
ASKED = [Encoded([*USER, *ids], (start + 2, end + 2)) for ids, (start, end) in PLAIN]


def test_the_reference_is_the_plain_language_model(roles: Roles, tiny: str) -> None:
    """Whatever adapters and people hold; it reads in batches what it reads alone."""
    model = AutoModelForCausalLM.from_pretrained(tiny)
    found = roles.read(PLAIN, roles.reference_logps, torch.arange(2).split(2))
    for row, (ids, (start, end)) in zip(found, PLAIN, strict=True):
        with torch.no_grad():
            logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        by_hand = [float(logs[t - 1, ids[t]]) for t in range(start, end)]
        assert row.tolist() == pytest.approx([*by_hand, *[0.0] * (3 - len(by_hand))], abs=1e-5)
    with pytest.raises(ValueError, match="users"):
        roles.reference_logps(on_device(ASKED, CPU))


def test_answers_to_one_question_read_it_once(roles: Roles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-probabilities, values and gradients are those of whole sequences, whatever is read with what."""
    question, other = [*USER, *range(20, 50)], [*USER, *range(60, 90)]
    answers = [[5], [5, 6, 7], [8, 6], [5, 6, 9, 10]]
    asked = [Encoded([*q, *a], (len(q), len(q) + len(a))) for q in (question, other) for a in answers]
    asked.append(asked[1])  # drawn twice
    tokens = count_tokens(roles.policy.backbone)

    def outcome() -> tuple[list[torch.Tensor], int]:
        tokens.clear()
        found = [roles.read(asked, through, [torch.arange(9)]) for through in (roles.logps, roles.values)]
        read = sum(tokens)
        roles.zero_grad()
        batch = on_device(asked, CPU)
        (roles.logps(batch).square().sum() + roles.values(batch).sum()).backward()
        return [*found, *(p.grad.clone() for p in roles.trained().values() if p.grad is not None)], read

    together, few = outcome()
    monkeypatch.setattr("prm.models.policy_model.can_pack", lambda backbone: False)
    apart, many = outcome()
    assert len(together) == len(apart) > 20
    for a, b in zip(together, apart, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert few < 0.35 * many


@pytest.mark.parametrize("packs", [True, False])
def test_recomputed_layers_are_those_of_the_role(tiny: str, packs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of policy and value are those without recomputation, although another role is on in between."""
    if not packs:
        monkeypatch.setattr("prm.models.policy_model.can_pack", lambda backbone: False)
    batch, found, layers = on_device(ASKED, CPU), list[dict[str, torch.Tensor]](), list[int]()
    for recompute in (False, True):
        roles = roles_of(new_checkpoint(tiny, recompute=recompute))
        block = roles.policy.base_model.layers[0]  # type: ignore[union-attr, index]
        passes = list[int]()
        block.mlp.register_forward_pre_hook(lambda *_, passes=passes: passes.append(1))  # type: ignore[union-attr]
        with roles.recomputing():
            losses = roles.logps(batch).sum(), roles.values(batch).square().sum()
            passes.clear()  # with those of `can_pack`
            with roles.switched_to("reference"):
                (losses[0] + losses[1]).backward()
        assert not roles.policy.backbone.training
        found.append({n: p.grad for n, p in roles.trained().items() if p.grad is not None})
        layers.append(len(passes))
    assert layers == [0, 2]
    assert found[0].keys() == found[1].keys()
    assert {name.split(".")[0] for name in found[0]} == {"policy", "value_users", "value_head"}
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_adapter_and_people_change_together(roles: Roles) -> None:
    """Each part reads by its own of both: the other's people or adapter would give other numbers."""
    batch = on_device(ASKED, CPU)
    with torch.no_grad():
        before, values = roles.logps(batch), roles.values(batch)
        for parameter in roles.value_users.parameters():
            parameter.add_(1.0)
        for name, parameter in roles.policy.backbone.named_parameters():
            if ".value." in name:
                parameter.add_(0.1)
        assert torch.equal(roles.logps(batch), before)
        moved = roles.values(batch)
        assert not torch.allclose(moved, values, atol=1e-3)
        for parameter in roles.policy.user_model.parameters():
            parameter.add_(1.0)
        assert torch.equal(roles.values(batch), moved)
        assert not torch.allclose(roles.logps(batch), before, atol=1e-3)


def test_each_loss_moves_its_own_part_alone(roles: Roles) -> None:
    batch = on_device(ASKED, CPU)
    value = {n for n in roles.trained() if ".value." in n or n.startswith("value_")}
    policy = set(roles.trained()) - value
    assert any("user_model" in n for n in policy)
    assert any("value_users" in n for n in value)
    for through, own in ((roles.logps, policy), (roles.values, value)):
        roles.zero_grad(set_to_none=True)
        through(batch).sum().backward()
        touched = {n for n, p in roles.trained().items() if p.grad is not None and bool(p.grad.any())}
        assert touched <= own
        assert {n.partition(".")[0] for n in touched} >= {n.partition(".")[0] for n in own}
    with roles.switched_to("reference"):
        pass
    assert set(roles.trained()) == value | policy  # peft freezes what is not at work


def test_values_begin_at_zero(tiny: str) -> None:
    config = PpoConfig(backbone=BackboneConfig(tiny, dtype="float32"))
    roles = Roles(new_policy(config, config.users, UserIndex(["a"]), TrainedBy("ppo")).model, 0)
    assert not roles.values(on_device([Encoded([337, 5, 6], (2, 3))], CPU)).any()


def test_tokens_of_answers_by_hand() -> None:
    batch = on_device(PLAIN, CPU)
    found = torch.arange(8.0).view(2, 4)  # of tokens 1 to 4; the answers begin at token 2
    assert response_tokens(found, batch).tolist() == [[1.0, 2.0, 3.0], [5.0, 0.0, 0.0]]
    assert response_tokens(found[..., None], batch)[0].tolist() == [[1.0], [2.0], [3.0]]


FORMS = {
    "linear": TrainConfig(reward=RewardModelConfig(pooling="last"), search=SearchConfig(poolings=["last"], layers=[1])),
    "bayes": TrainConfig(users=UserConfig("bayes"), search=SearchConfig(folds=2, poolings=["mean"], layers=[1, 2])),
    "soft": TrainConfig(users=UserConfig(num_virtual_tokens=2), reward=RewardModelConfig("soft_prompt", "prefix")),
    "lora": TrainConfig(
        users=UserConfig(num_virtual_tokens=2),
        reward=RewardModelConfig("soft_prompt", "suffix"),
        train="lora",
        lora=LoraSettings(lora_dropout=0.3),
    ),
    "cut": TrainConfig(reward=RewardModelConfig(pooling="mean"), train="lora"),
    "full": TrainConfig(reward=RewardModelConfig(pooling="last"), train="full"),
}


def train_reward(folder: Path, backbone: str, form: str, log: list[Comparison], max_length: int = 512) -> Path:
    write_jsonl(folder / "log.jsonl", log)
    base = FORMS[form]
    return train(
        replace(
            base,
            output_dir=str(folder / form),
            data=DataConfig(str(folder / "log.jsonl")),
            backbone=BackboneConfig(backbone, 1 if form == "cut" else None, "float32", max_length),
            search=replace(base.search, folds=2, l2=[1.0], user_l2=[1.0]),
            optim=OptimConfig(epochs=1.0, batch_size=4, micro_batch_size=4, eval_steps=20, user_lr=0.1, head_lr=0.1),
        )
    )


@pytest.mark.parametrize("form", FORMS)
def test_a_shared_reward_model_scores_as_apart(tiny: str, tmp_path: Path, form: str) -> None:
    """On the policy's language model, between its adapters, and the policy is none the wiser."""
    run = train_reward(tmp_path, tiny, form, opposed_people(10, 0, people=2))
    roles = new_roles(tiny)
    batch = on_device(ASKED, CPU)
    with torch.no_grad():
        before = roles.logps(batch), roles.values(batch)
    names = set(roles.trained())
    reward, shared = shared_reward(run, roles)
    assert shared == (form != "full")
    if shared:
        assert reward.scorer.model.backbone is roles.policy.base_model
    rows = [("what of kings?", "an old king", "p0"), ("what?", "a fox", "p1"), ("what?", "a fox", None)]
    prompts, answers, users = (list(column) for column in zip(*rows, strict=True))
    apart = Scorer.from_pretrained(run, device="cpu")
    expected = apart.score_batch(prompts, answers, users)
    assert reward(prompts, answers, users, [""] * 3) == pytest.approx(expected.tolist(), abs=1e-4)
    with torch.no_grad():
        assert torch.equal(roles.logps(batch), before[0])
        assert torch.equal(roles.values(batch), before[1])
    assert set(roles.trained()) == names
    assert not any(".reward." in n for n, _ in detach(roles.policy).named_parameters())
    empty = reward(["what?"], [""], ["p0"], [""])[0]
    assert isinstance(apart.model, RewardModel)
    assert (empty == empty) == reward.scorer.scores_empty == all(p == "last" for _, p in apart.model.feature_spec)


@pytest.mark.parametrize("form", ["linear", "lora"])
def test_a_thread_samples_while_another_scores_with_the_same_backbone(tiny: str, tmp_path: Path, form: str) -> None:
    """Both, and one who reads values, get what they get alone: adapters, users, attention and hooks do not mix."""
    run = train_reward(tmp_path, tiny, form, opposed_people(10, 0, people=2))
    checkpoint = new_checkpoint(tiny)
    roles, sampler = roles_of(checkpoint), Sampler(checkpoint)
    reward, shared = shared_reward(run, roles)
    assert shared
    batch, how = on_device(ASKED, CPU), Sampling(max_new_tokens=8, seed=1)

    def sample() -> list[str]:
        return sampler.sample("what of kings?", 3, how, "p0")

    def score() -> list[float]:
        return list(reward(["what of kings?"] * 2, ["an old king", "a fox"], ["p0", "p1"], [""] * 2))

    def values() -> list[float]:
        with torch.no_grad():
            return roles.values(batch).flatten().tolist()

    works: list[Callable[[], Any]] = [sample, score, values] * 2
    alone = [work() for work in works]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        found = at_once([partial(repeatedly, work) for work in works])
    finally:
        sys.setswitchinterval(before)
    for outcomes, expected in zip(found, alone, strict=True):
        for outcome in outcomes:
            assert outcome == (expected if isinstance(expected[0], str) else pytest.approx(expected, abs=1e-4))


def repeatedly(work: Callable[[], Any]) -> list[Any]:
    return [work() for _ in range(4)]


def test_what_cannot_be_read_is_counted_apart(tiny: str, tmp_path: Path) -> None:
    """Answers that do not fit, empty ones under the mean; the others are scored as alone."""
    run = train_reward(tmp_path, tiny, "bayes", opposed_people(6, 0, people=2), max_length=40)
    reward, _ = shared_reward(run, new_roles(tiny))
    answers = ["a fox", "dog " * 60, "", "an old king", "fox " * 60, "two foxes"]
    found = reward(["what?"] * 6, answers, ["p0"] * 6, [""] * 6)
    assert [i for i, r in enumerate(found) if r != r] == [1, 2, 4]
    alone = Scorer.from_pretrained(run, device="cpu").score("what?", ["a fox", "an old king", "two foxes"], "p0")
    assert [found[i] for i in (0, 3, 5)] == pytest.approx(alone.tolist(), abs=1e-4)


def test_other_weights_are_loaded_apart(tiny: str, tmp_path: Path, backbone_of: Callable[..., str]) -> None:
    run = train_reward(tmp_path, backbone_of("llama", 1), "soft", opposed_people(6, 0, people=2))
    reward, shared = shared_reward(run, new_roles(tiny))
    assert not shared
    expected = Scorer.from_pretrained(run, device="cpu").score("a?", ["a fox"], "p0").tolist()
    assert reward(["a?"], ["a fox"], ["p0"], [""]) == expected
    with pytest.raises(checkpoints.CheckpointError, match="memory"):
        checkpoints.load_onto(run, new_roles(tiny).policy.base_model)  # type: ignore[arg-type]
