"""Every setting of a policy's training, with its default. A YAML holds what differs."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from prm.checks import Count, Inside, NonNegative, Positive, Range, Seed, Settings, Share, Text, require
from prm.config import (
    HEADS_ONLY,
    BackboneConfig,
    DataConfig,
    LoraSettings,
    OptimConfig,
    RunConfig,
    TrainerArguments,
    UserConfig,
)
from prm.io.missing import no_such

LossType = Literal["sigmoid", "hinge", "robust", "ipo", "ipo_sequence"]

# of `trainer`, what PPO's own loop has
PPO_TRAINER = (
    "report_to",
    "run_name",
    "project",
    "logging_steps",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
    "hub_revision",
)
NO_REWARD = "is missing: name the run folder of a reward model"
_ALL_LAYERS = {"backbone.layers": "a policy speaks with all its layers"}
_NO_HEAD = {"optim.head_lr": "a policy has no head"}


@dataclass
class SftConfig(RunConfig):
    """Supervised fine-tuning: the policy that P-DPO starts from and is compared with. It knows no users.

    Args:
        output_dir: the run folder; it appears when training has finished.
        seed: random seed for splits, initialisation and example order.
        train: `lora` adapters, which are merged into the weights at the end, or the `full` language model.
        responses: JSON Lines of `prompt` and `response` to train on, instead of the chosen responses of `data`; only
            `data.validation_fraction` is then used.
        overwrite: replace a run folder that exists.
    """

    output_dir: Text = "runs/sft"
    seed: Seed = 0
    train: Literal["lora", "full"] = "lora"
    responses: str = ""
    overwrite: bool = False
    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    lora: LoraSettings = field(default_factory=LoraSettings)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerArguments = field(default_factory=dict)

    left_out: ClassVar = _ALL_LAYERS | _NO_HEAD | {"optim.user_lr": "it knows nobody"}

    def check(self) -> None:
        """Raise `PrmError` naming a key that is missing, or whose value does not go with the others."""
        require(not (self.responses and self.data.path), "responses", "and data.path exclude each other")
        require(
            bool(self.responses or self.data.path), "data.path", "is missing: name a file of feedback, or 'responses'"
        )
        self.check_settings()
        if not self.responses:
            self.data.check()

    def check_responses(self) -> None:
        """Raise `PrmError` if the file of `responses` does not exist."""
        missing = bool(self.responses) and not Path(self.responses).is_file()
        require(not missing, "responses", f"names {no_such(self.responses, 'file')}")


@dataclass
class Objective(Settings, key="objective"):
    """The loss of P-DPO.

    Args:
        beta: strength of the pull towards the reference; a larger beta keeps the policy closer to it.
        loss_type: loss of a pair: `sigmoid` is DPO, `hinge` SLiC, `robust` DPO for logs with wrong labels, `ipo` IPO on
            log-probabilities per token as in TRL, and `ipo_sequence` IPO on those of whole responses as in the paper
            (section F.3).
        label_smoothing: assumed share of wrong labels; `robust` only.
        sft_weight: weight of the chosen response's negative log-likelihood, in nats per token (Pang et al. 2024). It
            stops a policy from making longer texts unlikely whatever they say.
    """

    beta: Positive = 0.1
    loss_type: LossType = "sigmoid"
    label_smoothing: Annotated[float, Range(0, 0.5, below=True)] = 0.0
    sft_weight: NonNegative = 0.0

    def check_together(self) -> None:
        """Raise `PrmError` for a smoothing that this loss does not know."""
        smooth = self.loss_type == "robust" or self.label_smoothing == 0.0
        require(smooth, "objective.label_smoothing", "is for 'robust' only")


@dataclass
class DpoConfig(RunConfig):
    """Personalised direct preference optimisation (paper, section 4.4).

    Args:
        output_dir: the run folder; it appears when training has finished.
        seed: random seed for splits, initialisation and example order.
        alpha: weight of the personalised term; the generic user's term has 1 - alpha.
        train: what is trained besides the user model: nothing with a `frozen` language model, `lora` adapters, or the
            `full` language model.
        overwrite: replace a run folder that exists.
    """

    output_dir: Text = "runs/dpo"
    seed: Seed = 0
    alpha: Share = 0.5
    train: Literal["frozen", "lora", "full"] = "lora"
    overwrite: bool = False
    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    users: UserConfig = field(default_factory=UserConfig)
    objective: Objective = field(default_factory=Objective)
    lora: LoraSettings = field(default_factory=LoraSettings)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerArguments = field(default_factory=dict)

    left_out: ClassVar = _ALL_LAYERS | _NO_HEAD

    def check(self) -> None:
        """Raise `PrmError` naming a key that is missing, or whose value does not go with the others."""
        super().check()
        _require_tokens(self.users)
        _require_something_to_learn(self.train, self.users)


@dataclass
class Ppo(Settings, key="ppo"):
    """Proximal policy optimisation: rollouts and their losses.

    Args:
        max_steps: number of steps; each draws a batch of rollouts and trains on it.
        rollout_batch_size: responses per step on each device (process), a multiple of optim.batch_size.
        num_generations: responses per prompt; a CPU reads the prompt they share once.
        max_new_tokens: maximum length of a response, in tokens; it may be empty.
        kl_coef: cost of a nat of log pi / pi_ref, per token, in units of the scaled reward.
        missing_eos_penalty: subtracted from the scaled reward of a response that does not end by itself.
        lam: lambda of GAE: how far ahead advantages look beyond the next value.
        cliprange: how far the ratio of new to old probability may be from 1 and still count.
        cliprange_value: how far a new value may be from its old one and still count, in standard deviations of reward.
        num_scale_samples: responses of the reference that fix the shift and scale of each user's rewards.
    """

    max_steps: Count = 100
    rollout_batch_size: Count = 64
    num_generations: Count = 1
    max_new_tokens: Count = 53
    kl_coef: NonNegative = 0.05
    missing_eos_penalty: NonNegative = 1.0
    lam: Share = 0.95
    cliprange: Inside = 0.2
    cliprange_value: Positive = 0.2
    num_scale_samples: Annotated[int, Range(2)] = 64


def _ppo_optim() -> OptimConfig:
    return OptimConfig(
        epochs=4.0, batch_size=16, micro_batch_size=8, user_lr=1e-3, lora_lr=1e-4, head_lr=1e-3, warmup_steps=4
    )


@dataclass
class PpoConfig(RunConfig):
    """Proximal policy optimisation against a reward model, per user (Schulman et al. 2017; Ziegler et al. 2019).

    Args:
        output_dir: the run folder; it appears when training has finished.
        seed: random seed for splits, initialisation, the order of prompts, and sampling.
        reward: run folder of the reward model; its `uniform` folder is a reward model that knows no users.
        overwrite: replace a run folder that exists.
        data: prompts and users are taken from the training part of this log; its responses are not used.
        optim: as elsewhere, but `epochs` are passes over a step's rollouts, `batch_size` and `micro_batch_size` count
            responses, and `warmup_steps`, `lr_scheduler_type` and `eval_steps` (between saved states) count steps of
            sampling; `head_lr` is that of the value head.
        trainer: as elsewhere, of what PPO has: `report_to`, `run_name`, `project`, `logging_steps` and where to upload.
    """

    output_dir: Text = "runs/ppo"
    seed: Seed = 0
    reward: str = ""
    overwrite: bool = False
    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    users: UserConfig = field(default_factory=UserConfig)
    ppo: Ppo = field(default_factory=Ppo)
    lora: LoraSettings = field(default_factory=LoraSettings)
    optim: OptimConfig = field(default_factory=_ppo_optim)
    trainer: TrainerArguments = field(default_factory=dict)

    # policy and value are two adapters on one language model, and without them it is the reference
    train: ClassVar[Literal["lora"]] = "lora"  # type: ignore[misc]

    left_out: ClassVar = _ALL_LAYERS | {
        "users.text_dropout": "PPO learns from no comparison",
        "lora.lora_dropout": "the ratios of probabilities would be noise",
        "optim.early_stopping_patience": "PPO stops after ppo.max_steps",
        "optim.backbone_lr": "PPO trains adapters",
    }

    def check(self) -> None:
        """Raise `PrmError` naming a key that is missing, or whose value does not go with the others."""
        super().check()
        _require_tokens(self.users)
        for name in self.trainer:
            require(
                name in PPO_TRAINER, f"trainer.{name}", f"is not for PPO's own loop, which has {', '.join(PPO_TRAINER)}"
            )
        optim = self.optim
        require(optim.epochs >= 1.0 and optim.epochs == int(optim.epochs), "optim.epochs", "must be a whole number")
        whole = self.ppo.rollout_batch_size % optim.batch_size == 0
        fault = f"must be a multiple of optim.batch_size, {optim.batch_size}, got {self.ppo.rollout_batch_size}"
        require(whole, "ppo.rollout_batch_size", fault)
        whole = optim.batch_size % self.ppo.num_generations == 0
        fault = f"must be a multiple of ppo.num_generations, {self.ppo.num_generations}, got {optim.batch_size}"
        require(whole, "optim.batch_size", f"{fault}: answers to a question stay together")
        room = self.backbone.max_length > self.ppo.max_new_tokens
        require(room, "ppo.max_new_tokens", "leaves nothing of backbone.max_length for prompts")


def _require_tokens(users: UserConfig) -> None:
    require(users.kind not in HEADS_ONLY, "users.kind", f"{users.kind!r} is for reward models with linear heads")
    require(users.text_dropout < 1.0, "users.text_dropout", "can be 1 for reward models with linear heads only")


def _require_something_to_learn(train: str, users: UserConfig) -> None:
    nothing = train == "frozen" and users.num_virtual_tokens == 0
    require(not nothing, "train", "is 'frozen' and users.num_virtual_tokens is 0: nothing is left to learn")


def _online_optim() -> OptimConfig:
    return OptimConfig(epochs=1.0, batch_size=32, lora_lr=3e-4, eval_steps=10)


@dataclass
class OnlineConfig(RunConfig):
    """A policy trained on the rewards of its own responses with TRL's RLOO or GRPO, per user.

    A step takes `optim.batch_size / num_generations` prompts on each process; an epoch has as many as there are
    training prompts. `backbone.max_length` holds a prompt with its response; longer prompts are left out. Early
    stopping goes by the mean reward minus `kl_coef` times the KL divergence, on the validation part.

    Args:
        output_dir: the run folder; it appears when training has finished.
        seed: random seed for splits, initialisation, example order and sampling.
        method: `rloo` (each response against the mean of the others to its prompt; the KL is part of the reward) or
            `grpo` (that difference divided by the standard deviation of the prompt's rewards; the KL is a loss).
        reward: run folder of a reward model, personalised or not (`RUN/uniform`), or of a P-DPO policy.
        alpha: share of the prompts that are asked by users, each equally often; the generic user asks the rest.
        train: what is trained besides the user model: nothing with a `frozen` language model, `lora` adapters, or the
            `full` language model, with a copy as the reference.
        num_generations: responses per prompt of a step.
        max_new_tokens: maximum length of a response, in tokens; it may be empty.
        temperature: sampling temperature, above 0; log-probabilities use it too.
        kl_coef: cost of a nat of KL divergence from the reference, in units of the standardised reward (TRL's beta).
        num_eval_samples: responses to validation prompts that are sampled at each evaluation, and before training to
            fix the scale of each user's rewards.
        overwrite: replace a run folder that exists.
    """

    output_dir: Text = "runs/online"
    seed: Seed = 0
    method: Literal["rloo", "grpo"] = "rloo"
    reward: str = ""
    alpha: Share = 0.9
    train: Literal["frozen", "lora", "full"] = "lora"
    num_generations: Annotated[int, Range(2)] = 4
    max_new_tokens: Count = 64
    temperature: Positive = 1.0
    kl_coef: NonNegative = 0.05
    num_eval_samples: Annotated[int, Range(2)] = 64
    overwrite: bool = False
    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    users: UserConfig = field(default_factory=UserConfig)
    lora: LoraSettings = field(default_factory=LoraSettings)
    optim: OptimConfig = field(default_factory=_online_optim)
    trainer: TrainerArguments = field(default_factory=dict)

    left_out: ClassVar = (
        _ALL_LAYERS
        | _NO_HEAD
        | {
            "users.text_dropout": "the unknown user asks without anybody's text anyway",
            "lora.lora_dropout": "it would change an answer's probability by itself",
        }
    )

    def check(self) -> None:
        """Raise `PrmError` naming a key that is missing, or whose value does not go with the others."""
        require(bool(self.reward), "reward", NO_REWARD)
        super().check()
        _require_tokens(self.users)
        _require_something_to_learn(self.train, self.users)
        whole = self.optim.batch_size % self.num_generations == 0
        fault = f"must be a multiple of num_generations, {self.num_generations}, got {self.optim.batch_size}"
        require(whole, "optim.batch_size", fault)
