"""Step-by-step training on TRL's RewardTrainer: soft prompts, and linear heads with LoRA."""

import logging
import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Sampler
from torch.utils.tensorboard import SummaryWriter
from transformers import EarlyStoppingCallback, EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import TensorBoardCallback
from trl import RewardConfig as TrlRewardConfig
from trl import RewardTrainer

from prm.backbones import processes
from prm.config import LoraSettings, OptimConfig, TrainConfig
from prm.losses import personalized_bradley_terry
from prm.metrics import correct, nll
from prm.model import RewardModel
from prm.tokens import Encoded, pad
from prm.user_models import Uniform

logger = logging.getLogger(__name__)

_WEIGHTS = "model.safetensors"  # the name under which transformers looks for a state to resume from


@dataclass(frozen=True)
class EncodedPair:
    """One comparison after the encoder: two sequences that carry the judge, and the label."""

    chosen: Encoded
    rejected: Encoded
    p_chosen: float
    weight: float


class RowAdamW(torch.optim.AdamW):
    """AdamW in which a row without a gradient keeps still, and each group's gradient is clipped on its own.

    Groups with `rowwise=True` hold tables with one person per row. Dense Adam would move absent people by
    their momentum; here a row's moments and step count change only when the row has a gradient.
    Each group's gradient is clipped to the group's `max_norm`.
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float]):
        super().__init__(groups, betas=betas, weight_decay=0.0)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            grads = [p.grad for p in group["params"] if p.grad is not None]
            torch.nn.utils.clip_grad_norm_(group["params"], group["max_norm"]) if grads else None
        tables = [(g, p) for g in self.param_groups if g["rowwise"] for p in g["params"] if p.grad is not None]
        for group, table in tables:
            self._step_rows(group, table)
            table.grad = None  # so that the dense step leaves it alone
        super().step(closure)

    def _step_rows(self, group: dict[str, Any], table: Tensor) -> None:
        state, grad = self.state[table], cast(Tensor, table.grad)
        if not state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(table), torch.zeros_like(table)
            state["step"] = torch.zeros(len(table), device=table.device)
        rows = grad.flatten(1).ne(0).any(1).nonzero().squeeze(1)
        beta1, beta2 = group["betas"]
        g = grad[rows]
        state["step"][rows] += 1
        first = state["exp_avg"][rows].lerp_(g, 1 - beta1)
        second = state["exp_avg_sq"][rows].mul_(beta2).addcmul_(g, g, value=1 - beta2)
        state["exp_avg"][rows], state["exp_avg_sq"][rows] = first, second
        shape = (-1, *[1] * (table.dim() - 1))
        step = state["step"][rows].view(shape)
        denominator = (second / (1 - beta2**step)).sqrt_().add_(group["eps"])
        table[rows] -= group["lr"] * (first / (1 - beta1**step)) / denominator


class FilledOrder(Sampler[int]):
    """A seeded order of n pairs, filled up to a multiple of `size` with position n, a pair that weighs nothing.

    Without it the processes fill the last round with pairs of the first, which then count twice. The order is that
    of the epoch and the seed, however many processes share it.
    """

    def __init__(self, n: int, size: int, seed: int):
        self.n, self.size, self.seed, self.epoch = n, size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Told by the loop that prepares the data."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.n // self.size) * self.size

    def __iter__(self) -> Iterator[int]:
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        yield from torch.randperm(self.n, generator=draw).tolist()
        yield from [self.n] * (len(self) - self.n)


class PersonalizedRewardTrainer(RewardTrainer):
    """TRL's RewardTrainer with the two-term loss of section F.2.

    The loss of an optimiser step is the weighted mean over all its pairs, however they fall into
    micro-batches and processes. Only what trains is written to the states that a killed run resumes from.
    """

    loss_is_scaled_for_ga = True  # compute_loss divides by the weight of the whole step

    def __init__(self, model: RewardModel, alpha: float, **kwargs: Any):
        self.alpha = alpha
        super().__init__(model=cast(Any, model), **kwargs)

    def _send_telemetry(self) -> None:
        """Nothing leaves the machine."""

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        total = torch.stack([batch["weight"].sum() for batch in batch_samples]).sum().to(device)
        return cast(Tensor, self.accelerator.gather(total)).sum()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Weighted sum of the pairs' losses over the weight of the whole optimiser step, in nats."""
        user, generic = self.margins(model, inputs)
        losses = personalized_bradley_terry(user, generic, inputs["p_chosen"], self.alpha)
        total = inputs["weight"].sum() if num_items_in_batch is None else num_items_in_batch
        # gradients are averaged over processes, while `total` counts the pairs of all of them
        loss = (losses * inputs["weight"]).sum() / total * self.accelerator.num_processes
        if not return_outputs:
            return loss
        learnt = user if user is not None and self.alpha > 0.0 else generic
        told = {"margin": learnt, "generic": generic} if generic is not None else {"margin": learnt}
        return loss, told | {"p_chosen": inputs["p_chosen"], "weight": inputs["weight"]}

    def margins(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor | None, Tensor | None]:
        """r(chosen) - r(rejected) for the judge and for the unknown user.

        In training a term of weight 0 is `None`; a look at the validation part has both but for the uniform model.
        """
        one_term = isinstance(cast(RewardModel, self.accelerator.unwrap_model(model)).user_model, Uniform)
        terms: Literal["user", "generic", "both"] = "both"
        if one_term or (model.training and self.alpha == 0.0):
            terms = "generic"
        elif model.training and self.alpha == 1.0:
            terms = "user"
        rewards = model(inputs["input_ids"], inputs["attention_mask"], inputs["response_mask"], terms=terms)

        def margin(reward: Tensor | None) -> Tensor | None:
            if reward is None:
                return None
            chosen, rejected = reward.chunk(2)
            return chosen - rejected

        return margin(rewards.user), margin(rewards.generic)

    def _get_train_sampler(self, train_dataset: Any = None) -> FilledOrder:
        size = self.args.per_device_train_batch_size * self.accelerator.num_processes
        return FilledOrder(len(cast(Dataset, self.train_dataset)) - 1, size, self.args.seed)

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset  # the encoder has done it

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if self.args.should_save:
            folder = Path(cast(str, output_dir or self.args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            model = cast(RewardModel, self.accelerator.unwrap_model(self.model))
            state = {n: p.detach().cpu().contiguous() for n, p in model.named_parameters() if p.requires_grad}
            save_file(state, folder / _WEIGHTS, metadata={"format": "pt"})

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """The frozen weights are missing from a state on purpose."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """`prm.checkpoint` writes the card."""


def collate(pairs: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """[2n, l] ids and masks, chosen first, as TRL stacks them; labels and weights [n]."""
    sequences = [
        Encoded(pair[f"{side}_ids"], tuple(pair[f"{side}_response"]))
        for side in ("chosen", "rejected")
        for pair in pairs
    ]
    batch = pad(sequences)._asdict()
    batch |= {name: torch.tensor([pair[name] for pair in pairs]) for name in ("p_chosen", "weight")}
    return batch


def to_dataset(pairs: Iterable[EncodedPair]) -> Dataset:
    """The pairs in the columns that TRL takes as already tokenised."""
    rows = [
        {
            "chosen_ids": pair.chosen.ids,
            "rejected_ids": pair.rejected.ids,
            "chosen_response": list(pair.chosen.response),
            "rejected_response": list(pair.rejected.response),
            "p_chosen": float(pair.p_chosen),
            "weight": float(pair.weight),
        }
        for pair in pairs
    ]
    return Dataset.from_list(rows)


def add_lora(model: RewardModel, settings: LoraSettings) -> None:
    """LoRA adapters, float32, on every linear layer of the backbone, which itself stays frozen."""
    config = LoraConfig(
        r=settings.r, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules="all-linear"
    )
    model.backbone = cast(PreTrainedModel, get_peft_model(model.backbone, config))


def validation_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Weighted likelihood (nats) and accuracy of the validation part, for its judges and for the unknown user.

    What training stops by is `nll`: that of the judges, or of the unknown user where alpha = 0 trains nothing else.
    Raises `PrmError`, which ends the run, where the model's rewards are no longer numbers.
    """
    columns = [np.asarray(column, np.float64) for column in cast(tuple[Any, ...], prediction.predictions)]
    *margins, p, weight = columns
    found: dict[str, float] = {}
    for name, margin in zip(["", "generic_"], margins, strict=False):
        right = correct(margin, p)
        found[f"{name}nll"] = float(np.average(nll(margin, p), weights=weight))
        found[f"{name}accuracy"] = float(np.nanmean(right)) if (p != 0.5).any() else float("nan")
    return found


def parameter_groups(model: RewardModel, config: TrainConfig) -> list[dict[str, Any]]:
    """Users, their tables, head and backbone or adapters, each with its learning rate and clipped on its own."""
    optim, users = config.optim, model.user_model
    backbone = [p for p in model.backbone.parameters() if p.requires_grad]
    head = list(model.score.parameters()) if model.score is not None else []
    groups = [
        (users.shared(), optim.user_lr, False),
        (users.per_row(), optim.user_lr, True),
        (head, optim.head_lr, False),
        (backbone, optim.backbone_lr if config.train == "full" else optim.lora_lr, False),
    ]
    return [
        {"params": trained, "lr": lr, "rowwise": rowwise, "max_norm": optim.max_grad_norm}
        for parameters, lr, rowwise in groups
        if (trained := [p for p in parameters if p.requires_grad])
    ]


def rate(step: int, total: int, optim: OptimConfig) -> float:
    """Share in [0, 1] of the learning rates at a step, from 0, of `total`."""
    warm = min(1.0, (step + 1) / max(1, optim.warmup_steps))
    if optim.schedule == "hold":
        return warm * min(1.0, max(0, total - step) / max(1.0, total / 3))
    done = (step - optim.warmup_steps) / max(1, total - optim.warmup_steps)
    return warm * 0.5 * (1.0 + math.cos(math.pi * min(1.0, max(0.0, done))))


def build_trainer(
    model: RewardModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Sequence[EncodedPair],
    validation: Sequence[EncodedPair],
    config: TrainConfig,
    folder: Path,
) -> PersonalizedRewardTrainer:
    """A trainer that stops early on the validation part, logs to TensorBoard, and can be resumed from `folder`."""
    optim = config.optim
    optimizer = RowAdamW(parameter_groups(model, config), betas=(0.9, 0.98))
    steps_per_epoch = -(-len(train) // (optim.batch_size * processes().num_processes))
    total = max(1, int(optim.epochs * steps_per_epoch))
    every = min(optim.eval_steps, total)

    arguments = TrlRewardConfig(
        output_dir=str(folder / "trainer"),
        num_train_epochs=optim.epochs,
        per_device_train_batch_size=optim.micro_batch_size,
        per_device_eval_batch_size=optim.micro_batch_size,
        gradient_accumulation_steps=optim.batch_size // optim.micro_batch_size,
        max_grad_norm=0.0,  # the optimiser clips group by group
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="nll",
        greater_is_better=False,
        logging_steps=min(10, every),
        logging_nan_inf_filter=False,  # a loss that is no number is shown as one, not as the mean of the others
        report_to="none",
        seed=config.seed,
        use_cpu=not torch.accelerator.is_available(),
        remove_unused_columns=False,
        dataloader_pin_memory=torch.accelerator.is_available(),
        max_length=None,
        bf16=False,  # the frozen weights carry their own dtype; what trains is float32
        activation_checkpointing=False,
    )
    # several GPUs are for `accelerate launch`; one process alone must not spread the model over them
    arguments._n_gpu = min(1, arguments.n_gpu)
    model.config.num_labels = 1  # TRL asks; the backbone alone has no head to count
    if optim.gradient_checkpointing:
        model.backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return PersonalizedRewardTrainer(
        model,
        alpha=config.alpha,
        args=arguments,
        train_dataset=to_dataset([*train, replace(train[0], weight=0.0)]),  # the last one fills rounds up
        eval_dataset=to_dataset(validation),
        data_collator=collate,
        processing_class=tokenizer,
        compute_metrics=validation_metrics,
        callbacks=[
            EarlyStoppingCallback(early_stopping_patience=optim.patience),
            *([TensorBoardCallback(SummaryWriter(str(folder / "logs")))] if processes().is_main_process else []),
        ],
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, total, optim))),
    )


def run_trainer(trainer: PersonalizedRewardTrainer) -> dict[str, Any]:
    """Train, from the last saved state if there is one; the model ends at its best validation likelihood."""
    folder = Path(cast(str, trainer.args.output_dir))
    states = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))
    # a state without its progress file was being written when the run was killed
    whole = [state for state in states if (state / "trainer_state.json").is_file()]
    for state in set(states) - set(whole):
        shutil.rmtree(state, ignore_errors=True)
    if whole:
        logger.info("taking up the run from its state of step %s", whole[-1].name.rpartition("-")[2])
    trainer.train(resume_from_checkpoint=str(whole[-1]) if whole else None)
    return {
        "steps": trainer.state.global_step,
        "best_step": trainer.state.best_global_step,
        "validation_nll": trainer.state.best_metric,
        "history": [entry for entry in trainer.state.log_history if "eval_nll" in entry],
    }
