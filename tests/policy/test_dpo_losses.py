"""The losses of P-DPO by hand and beside TRL's; soft labels."""

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig as TrlConfig
from trl import DPOTrainer

from policy.config import LossType, Objective
from policy.dpo_losses import ResponseLogps, dpo_loss, log_ratio_margin, sft, soft_label_loss
from policy.dpo_metrics import METRICS, pair_metrics
from prm.errors import PrmError


def logps(*values: float) -> torch.Tensor:
    return torch.tensor(values)


def loss_of(objective: Objective) -> Callable[[ResponseLogps, ResponseLogps], torch.Tensor]:
    return lambda chosen, rejected: dpo_loss(chosen, rejected, **asdict(objective))


# two pairs, the second with the sides swapped: log-ratios 2 and -1, 5 and 2 tokens
A = ResponseLogps(logps(-10.0), logps(-12.0), torch.tensor([5]))
B = ResponseLogps(logps(-9.0), logps(-8.0), torch.tensor([2]))
CHOSEN = ResponseLogps(*(torch.cat(both) for both in zip(A, B, strict=True)))
REJECTED = ResponseLogps(*(torch.cat(both) for both in zip(B, A, strict=True)))
# beta is 0.25: beta h is 0.75 and -0.75, 1 / (2 beta) is 2; h per token is 2/5 + 1/2 = 0.9 and -0.9
NATS, SWAPPED = math.log(1 + math.exp(-0.75)), math.log(1 + math.exp(0.75))
BY_HAND: dict[LossType, tuple[float, float]] = {
    "sigmoid": (NATS, SWAPPED),
    "hinge": (1 - 0.75, 1 + 0.75),
    "robust": ((0.8 * NATS - 0.2 * SWAPPED) / 0.6, (0.8 * SWAPPED - 0.2 * NATS) / 0.6),
    "ipo": ((0.9 - 2) ** 2, (-0.9 - 2) ** 2),
    "ipo_sequence": ((3 - 2) ** 2, (-3 - 2) ** 2),
}


def objective_of(loss_type: LossType, beta: float = 0.25, sft_weight: float = 0.0) -> Objective:
    return Objective(beta, loss_type, 0.2 if loss_type == "robust" else 0.0, sft_weight)


def test_there_is_a_loss_for_each_name() -> None:
    assert BY_HAND.keys() == set(get_args(LossType))


@pytest.mark.parametrize("loss_type", BY_HAND)
def test_losses_by_hand(loss_type: LossType) -> None:
    losses = loss_of(objective_of(loss_type))(CHOSEN, REJECTED)
    assert losses.tolist() == pytest.approx(BY_HAND[loss_type], rel=1e-5)
    with_sft = loss_of(objective_of(loss_type, sft_weight=0.5))(CHOSEN, REJECTED)
    assert (with_sft - losses).tolist() == pytest.approx([0.5 * 10 / 5, 0.5 * 9 / 2], rel=1e-5)
    assert log_ratio_margin(CHOSEN, REJECTED).tolist() == [3.0, -3.0]


def test_hinge_is_0_beyond_its_margin() -> None:
    assert loss_of(objective_of("hinge", beta=1.0))(A, B).tolist() == [0.0]


@pytest.mark.parametrize("loss_type", BY_HAND)
def test_a_soft_label_weighs_both_orders(loss_type: LossType) -> None:
    """The likelihood of the chosen response, too, is then partly that of the other one."""
    loss = loss_of(objective_of(loss_type, sft_weight=0.5))
    first, second = BY_HAND[loss_type]
    first, second = first + 0.5 * 10 / 5, second + 0.5 * 9 / 2
    mixed = soft_label_loss(loss, CHOSEN, REJECTED, logps(0.7, 1.0))
    assert mixed.tolist() == pytest.approx([0.7 * first + 0.3 * second, second], rel=1e-5)


def test_hard_labels_need_one_order() -> None:
    calls: list[ResponseLogps] = []

    def loss(chosen: ResponseLogps, rejected: ResponseLogps) -> torch.Tensor:
        calls.append(chosen)
        return sft(chosen)

    soft_label_loss(loss, CHOSEN, REJECTED, logps(1.0, 1.0))
    assert calls == [CHOSEN]
    soft_label_loss(loss, CHOSEN, REJECTED, logps(1.0, 0.0))
    assert calls == [CHOSEN, CHOSEN, REJECTED]


@pytest.mark.parametrize("loss_type", BY_HAND)
def test_gradients_are_right_and_those_of_the_policy_alone(loss_type: LossType) -> None:
    chosen, rejected = (
        side._replace(logps=side.logps.double().requires_grad_(), ref_logps=side.ref_logps.double())
        for side in (CHOSEN, REJECTED)
    )

    def losses(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        loss = loss_of(objective_of(loss_type, sft_weight=0.5))
        return soft_label_loss(loss, chosen._replace(logps=a), rejected._replace(logps=b), logps(0.7, 1.0).double())

    assert torch.autograd.gradcheck(losses, (chosen.logps, rejected.logps))


@pytest.mark.parametrize("loss_type", [name for name in get_args(LossType) if name != "robust"])
def test_smoothing_is_for_robust_only(loss_type: LossType) -> None:
    with pytest.raises(PrmError, match=r"objective\.label_smoothing"):
        Objective(loss_type=loss_type, label_smoothing=0.1)


@pytest.fixture(scope="module")
def trl(backbone_of: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """TRL's own trainer, whose loss takes the outputs of any model."""
    backbone = backbone_of("llama", chat=False)
    return DPOTrainer(
        AutoModelForCausalLM.from_pretrained(backbone, dtype=torch.float32),
        args=TrlConfig(
            output_dir=str(tmp_path_factory.mktemp("trl")), precompute_ref_log_probs=True, use_cpu=True, bf16=False,
            report_to="none", gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_list([{"prompt": "what?", "chosen": "a king", "rejected": "the fox"}]),
        processing_class=AutoTokenizer.from_pretrained(backbone),
    )  # fmt: skip


def random_pairs(n: int, longest: int) -> tuple[SimpleNamespace, dict[str, torch.Tensor]]:
    """(statistics of a fused head for 2n responses after prompts of 3 tokens, TRL's inputs)."""
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, longest + 1, (2 * n,), generator=draw)
    mask = torch.zeros(2 * n, 3 + longest, dtype=torch.long)
    for row, length in zip(mask, lengths.tolist(), strict=True):
        row[3 : 3 + length] = 1
    real = mask[:, 1:].bool()

    def statistic(values: torch.Tensor) -> torch.Tensor:
        return values.masked_fill(~real, 0)

    statistics = SimpleNamespace(
        log_probs=statistic(-3 * torch.rand(real.shape, generator=draw)),
        entropy=statistic(torch.rand(real.shape, generator=draw)),
        mean_logits=statistic(torch.randn(real.shape, generator=draw)),
        is_top1=statistic(torch.rand(real.shape, generator=draw) < 0.5),
    )
    references = statistics.log_probs.sum(1) + 2 * torch.randn(2 * n, generator=draw)
    return statistics, {
        "input_ids": torch.zeros_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask,
        "ref_chosen_logps": references[:n], "ref_rejected_logps": references[n:],
    }  # fmt: skip


@pytest.mark.parametrize("sft_weight", [0.0, 0.7])
@pytest.mark.parametrize("loss_type", [name for name in get_args(LossType) if name != "ipo_sequence"])
def test_a_pair_has_the_loss_and_the_metrics_that_trl_gives_it(
    trl: Any, monkeypatch: pytest.MonkeyPatch, loss_type: LossType, sft_weight: float
) -> None:
    """On random numbers; TRL has no `ipo_sequence`."""
    n = 6
    statistics, inputs = random_pairs(n, 7)
    objective = objective_of(loss_type, 0.3, sft_weight)
    monkeypatch.setattr(trl, "beta", objective.beta)
    monkeypatch.setattr(trl, "label_smoothing", objective.label_smoothing)
    monkeypatch.setattr(trl, "loss_types", [loss_type, "sft"])
    monkeypatch.setattr(trl, "loss_weights", [1.0, sft_weight])
    trl.model.eval()
    trl._metrics["eval"].clear()
    expected = []
    for i in range(n):
        pair = {name: column[[i, n + i] if len(column) == 2 * n else [i]] for name, column in inputs.items()}
        outputs = SimpleNamespace(**{name: column[[i, n + i]] for name, column in vars(statistics).items()})
        expected.append(float(trl._compute_loss(lambda outputs=outputs, **_: outputs, pair, return_outputs=False)))
    lengths = inputs["completion_mask"].sum(1)
    sums = statistics.log_probs.sum(1)
    chosen = ResponseLogps(sums[:n], inputs["ref_chosen_logps"], lengths[:n])
    rejected = ResponseLogps(sums[n:], inputs["ref_rejected_logps"], lengths[n:])
    assert loss_of(objective)(chosen, rejected).tolist() == pytest.approx(expected, rel=1e-5)
    metrics = pair_metrics(statistics, chosen, rejected, objective.beta)
    for name, column in zip(METRICS, metrics.T.tolist(), strict=True):
        assert column == pytest.approx(trl._metrics["eval"][name], rel=1e-5, abs=1e-6), name
    assert set(trl._metrics["eval"]) - set(METRICS) == {"num_tokens"}


def test_swapped_labels_swap_the_losses() -> None:
    """p = 0 is the pair the other way round."""
    loss = loss_of(replace(Objective(), sft_weight=0.3))
    swapped = soft_label_loss(loss, CHOSEN, REJECTED, logps(0.0, 0.0))
    assert torch.equal(swapped, loss(REJECTED, CHOSEN))
