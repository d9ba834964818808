"""Every setting of a policy's training, with its default. A YAML holds what differs."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from prm.checks import Count, Inside, NonNegative, Positive, Range, Seed, Settings, Share, Text, require
from prm.config import BackboneConfig, DataConfig, LoraSettings, OptimConfig, RunConfig, UserConfig

Loss = Literal[
    "sigmoid",
    "ipo",
    "hinge",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
    "discopop",
    "sigmoid_norm",
]  # TRL's losses of single pairs; `aot` sorts a whole batch; of `sft` there is a weight, and a command


_ALL_LAYERS = {"backbone.layers": "a policy speaks with all its layers"}
_NO_RANK = {"users.rank": "'bayes' is for reward models with linear heads"}
_NO_HEAD = {"optim.head_lr": "a policy has no head"}


@dataclass
class SftConfig(RunConfig):
    """Supervised fine-tuning: the policy that P-DPO starts from and is compared with. It knows nobody.

    Args:
        output_dir: the run folder; it appears when training is finished.
        seed: of splits, starts and order.
        train: `lora` adapters, which are merged into the weights at the end, or the `full` language model.
        answers: JSON Lines of `prompt` and `response` to learn from, instead of the chosen answers of `data`; of
            `data` only `validation_fraction` then counts.
        overwrite: replace a run folder that exists.
    """

    output_dir: Text = "runs/sft"
    seed: Seed = 0
    train: Literal["lora", "full"] = "lora"
    answers: str = ""
    overwrite: bool = False
    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    lora: LoraSettings = field(default_factory=LoraSettings)
    optim: OptimConfig = field(default_factory=OptimConfig)

    left_out: ClassVar = _ALL_LAYERS | _NO_HEAD | {"optim.user_lr": "it knows nobody"}

    def check(self) -> None:
        """Raise `PrmError` naming a key that is missing, or whose value does not go with the others."""
        require(not (self.answers and self.data.path), "answers", "and data.path exclude each other")
        require(bool(self.answers or self.data.path), "data.path", "is missing: name a file of feedback, or 'answers'")
        self.check_settings()
        if not self.answers:
            self.data.check()


@dataclass
class Objective(Settings, key="objective"):
    """What P-DPO makes of a pair.

    Args:
        beta: how dear it is to move away from the reference; the larger, the closer the policy stays.
        loss: TRL's name of the loss of a pair: `sigmoid` is DPO, `ipo` IPO (on log-probabilities per token).
        label_smoothing: share of the labels taken to be wrong; `robust` and `exo_pair` only.
        sft: weight of the chosen answer's negative log-likelihood, nats a token, on top (Pang et al. 2024). It holds
            to language a policy that could please by making longer texts unlikely, whatever it writes instead.
    """

    beta: Positive = 0.1
    loss: Loss = "sigmoid"
    label_smoothing: Annotated[float, Range(0, 0.5, below=True)] = 0.0
    sft: NonNegative = 0.0

    def check_together(self) -> None:
        """Raise `PrmError` for a smoothing that this loss does not know."""
        smooth = self.loss in ("robust", "exo_pair")
        require(
            smooth or self.label_smoothing == 0.0, "objective.label_smoothing", "is for 'robust' and 'exo_pair' only"
        )
        positive = self.loss != "exo_pair" or self.label_smoothing > 0.0
        require(positive, "objective.label_smoothing", "must be greater than 0 with 'exo_pair'; 1e-3 is usual")


@dataclass
class DpoConfig(RunConfig):
    """Personalised direct preference optimisation (paper, section 4.4).

    Args:
        output_dir: the run folder; it appears when training is finished.
        seed: of splits, starts and order.
        alpha: weight of the personal term; 1 - alpha is the unknown user's.
        train: what learns besides the user model: nothing with a `frozen` language model, `lora` adapters in it, or
            the `full` language model.
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

    left_out: ClassVar = _ALL_LAYERS | _NO_RANK | _NO_HEAD

    def check(self) -> None:
        """Raise `PrmError` naming a key that is missing, or whose value does not go with the others."""
        super().check()
        _require_no_bayes(self.users)
        _require_something_to_learn(self.train, self.users)


@dataclass
class Ppo(Settings, key="ppo"):
    """What proximal policy optimisation does with the answers of a step.

    Args:
        steps: how often answers are drawn and learnt from.
        answers: drawn per step on each device (process), a multiple of optim.batch_size.
        generations: of them, to each question; what they share is read once on a CPU.
        max_new_tokens: longest answer; no answer has a least length, its end may come first.
        kl: what a nat of log pi / pi_ref costs, in the scaled reward's unit, token by token.
        missing_end: taken off the scaled reward of an answer that does not end by itself.
        lam: lambda of GAE: how far ahead advantages look beyond the next value.
        clip: how far from 1 the ratio of new to old probability still counts.
        scale_answers: answers of the reference from which each person's shift and scale of rewards are fixed.
    """

    steps: Count = 100
    answers: Count = 64
    generations: Count = 1
    max_new_tokens: Count = 53
    kl: NonNegative = 0.05
    missing_end: NonNegative = 1.0
    lam: Share = 0.95
    clip: Inside = 0.2
    scale_answers: Annotated[int, Range(2)] = 64


def _ppo_optim() -> OptimConfig:
    return OptimConfig(
        epochs=4.0, batch_size=16, micro_batch_size=8, user_lr=1e-3, lora_lr=1e-4, head_lr=1e-3, warmup_steps=4
    )


@dataclass
class PpoConfig(RunConfig):
    """Proximal policy optimisation against a reward model (Schulman et al. 2017; Ziegler et al. 2019), user by user.

    Args:
        output_dir: the run folder; it appears when training is finished.
        seed: of splits, starts, who asks what, and draws.
        reward: run folder of the reward model; its `uniform` folder is a reward that knows nobody.
        overwrite: replace a run folder that exists.
        data: of the log, prompts and people of the training part are taken, no answers.
        optim: as elsewhere, but `epochs` are passes over the answers of a step, `batch_size` and `micro_batch_size`
            count answers, `warmup_steps`, `schedule` and `eval_steps` (between saved states) steps of drawing;
            `head_lr` is that of the value's head.
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

    @property
    def train(self) -> Literal["lora"]:
        """Adapters: policy and value are two of them on one language model, and without them it is the reference."""
        return "lora"

    left_out: ClassVar = (
        _ALL_LAYERS
        | _NO_RANK
        | {
            "users.text_dropout": "PPO learns from no comparison",
            "lora.dropout": "the ratios of probabilities would be noise",
            "optim.patience": "PPO stops after ppo.steps",
            "optim.backbone_lr": "PPO trains adapters",
            "optim.gradient_checkpointing": "PPO reads a step's answers again by themselves",
        }
    )

    def check(self) -> None:
        """Raise `PrmError` naming a key that is missing, or whose value does not go with the others."""
        super().check()
        _require_no_bayes(self.users)
        optim = self.optim
        require(optim.epochs >= 1.0 and optim.epochs == int(optim.epochs), "optim.epochs", "must be a whole number")
        whole = self.ppo.answers % optim.batch_size == 0
        fault = f"must be a multiple of optim.batch_size, {optim.batch_size}, got {self.ppo.answers}"
        require(whole, "ppo.answers", fault)
        whole = optim.batch_size % self.ppo.generations == 0
        fault = f"must be a multiple of ppo.generations, {self.ppo.generations}, got {optim.batch_size}"
        require(whole, "optim.batch_size", f"{fault}: answers to a question stay together")
        room = self.backbone.max_length > self.ppo.max_new_tokens
        require(room, "ppo.max_new_tokens", "leaves nothing of backbone.max_length for prompts")


def _require_no_bayes(users: UserConfig) -> None:
    require(users.kind != "bayes", "users.kind", "'bayes' is for reward models with linear heads")


def _require_something_to_learn(train: str, users: UserConfig) -> None:
    nothing = train == "frozen" and users.tokens == 0
    require(not nothing, "train", "is 'frozen' and users.tokens is 0: nothing is left to learn")


def _online_optim() -> OptimConfig:
    return OptimConfig(epochs=1.0, batch_size=32, lora_lr=3e-4, eval_steps=10)


@dataclass
class OnlineConfig(RunConfig):
    """A policy that learns from the rewards of its own answers, by TRL's RLOO or GRPO, for each person.

    A step asks `optim.batch_size / generations` questions on each process; an epoch is as many as there are prompts to
    learn from. `backbone.max_length` holds a prompt with its answer; longer prompts are left out. Training stops by the
    mean reward less `kl_coef` times the divergence, on the validation part.

    Args:
        output_dir: the run folder; it appears when training is finished.
        seed: of splits, starts, order and answers.
        method: `rloo` (each answer against the mean of the others to its question; the divergence is part of the
            reward) or `grpo` (that difference in deviations of the question's rewards; the divergence is a loss).
        reward: run folder of a reward model, personal or not (`RUN/uniform`), or of a P-DPO policy.
        alpha: share of the questions that people ask, each as often as any other; the unknown user asks the rest.
        train: what learns besides the user model: nothing with a `frozen` language model, `lora` adapters in it, or
            the `full` language model, with a copy as the reference.
        generations: answers to each question of a step.
        max_new_tokens: longest answer, in tokens; an answer may be empty.
        temperature: of the draw, above 0; probabilities are taken at it too.
        kl_coef: how dear a nat of divergence from the reference is, in standardised rewards (TRL's beta).
        check_answers: answers to validation prompts that are sampled at each look, everybody in turn, and, before
            training, for the scale of everybody's rewards.
        overwrite: replace a run folder that exists.
    """

    output_dir: Text = "runs/online"
    seed: Seed = 0
    method: Literal["rloo", "grpo"] = "rloo"
    reward: str = ""
    alpha: Share = 0.9
    train: Literal["frozen", "lora", "full"] = "lora"
    generations: Annotated[int, Range(2)] = 4
    max_new_tokens: Count = 64
    temperature: Positive = 1.0
    kl_coef: NonNegative = 0.05
    check_answers: Annotated[int, Range(2)] = 64
    overwrite: bool = False
    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    users: UserConfig = field(default_factory=UserConfig)
    lora: LoraSettings = field(default_factory=LoraSettings)
    optim: OptimConfig = field(default_factory=_online_optim)

    left_out: ClassVar = (
        _ALL_LAYERS
        | _NO_RANK
        | _NO_HEAD
        | {
            "users.text_dropout": "the unknown user asks without anybody's text anyway",
            "lora.dropout": "it would change an answer's probability by itself",
        }
    )

    def check(self) -> None:
        """Raise `PrmError` naming a key that is missing, or whose value does not go with the others."""
        require(bool(self.reward), "reward", "is missing: name the run folder of a reward model")
        super().check()
        _require_no_bayes(self.users)
        _require_something_to_learn(self.train, self.users)
        whole = self.optim.batch_size % self.generations == 0
        fault = f"must be a multiple of generations, {self.generations}, got {self.optim.batch_size}"
        require(whole, "optim.batch_size", fault)
