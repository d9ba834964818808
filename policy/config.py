"""Every setting of a policy's training, with its default. A YAML holds what differs."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from prm.config import BackboneConfig, DataConfig, LoraSettings, OptimConfig, UserConfig, require

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


class _PolicyRun:
    """What every training run of a policy answers alike (`prm.config.RunConfig`)."""

    @property
    def start_from(self) -> str:
        """None: what a policy starts from is its backbone."""
        return ""

    @property
    def fast_path(self) -> bool:
        """Never: training stops by a validation part."""
        return False


@dataclass
class SftConfig(_PolicyRun):
    """Supervised fine-tuning: the policy that P-DPO starts from and is compared with. It knows nobody.

    Args:
        output_dir: the run folder; it appears when training is finished.
        seed: of splits, starts and order.
        train: `lora` adapters, which are merged into the weights at the end, or the `full` language model.
        answers: JSON Lines of `prompt` and `response` to learn from, instead of the chosen answers of `data`; of
            `data` only `validation_fraction` then counts.
        overwrite: replace a run folder that exists.
    """

    output_dir: str = "runs/sft"
    seed: int = 0
    train: Literal["lora", "full"] = "lora"
    answers: str = ""
    overwrite: bool = False
    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    lora: LoraSettings = field(default_factory=LoraSettings)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def check(self) -> None:
        """Raise `PrmError` naming the key whose value, alone or with others, makes no sense."""
        require(not (self.answers and self.data.path), "answers", "and data.path exclude each other")
        require(bool(self.answers or self.data.path), "data.path", "is missing: name a file of feedback, or 'answers'")
        if not self.answers:
            self.data.check()
        _check_shared(self)

    def to_dict(self) -> dict[str, Any]:
        """The resolved settings, JSON-ready."""
        return asdict(self)


@dataclass
class Objective:
    """What P-DPO makes of a pair.

    Args:
        beta: how dear it is to move away from the reference; the larger, the closer the policy stays.
        loss: TRL's name of the loss of a pair: `sigmoid` is DPO, `ipo` IPO (on log-probabilities per token).
        label_smoothing: share of the labels taken to be wrong; `robust` and `exo_pair` only.
        sft: weight of the chosen answer's negative log-likelihood, nats a token, on top (Pang et al. 2024). It holds
            to language a policy that could please by making longer texts unlikely, whatever it writes instead.
    """

    beta: float = 0.1
    loss: Loss = "sigmoid"
    label_smoothing: float = 0.0
    sft: float = 0.0

    def check(self) -> None:
        """Raise `PrmError` naming the key whose value makes no sense."""
        require(self.beta > 0.0, "objective.beta", "must be greater than 0")
        require(self.sft >= 0.0, "objective.sft", "must not be negative")
        require(0.0 <= self.label_smoothing < 0.5, "objective.label_smoothing", "must lie in [0, 0.5)")
        smooth = self.loss in ("robust", "exo_pair")
        require(
            smooth or self.label_smoothing == 0.0, "objective.label_smoothing", "is for 'robust' and 'exo_pair' only"
        )
        positive = self.loss != "exo_pair" or self.label_smoothing > 0.0
        require(positive, "objective.label_smoothing", "must be greater than 0 with 'exo_pair'; 1e-3 is usual")


@dataclass
class DpoConfig(_PolicyRun):
    """Personalised direct preference optimisation (paper, section 4.4).

    Args:
        output_dir: the run folder; it appears when training is finished.
        seed: of splits, starts and order.
        alpha: weight of the personal term; 1 - alpha is the unknown user's.
        train: what learns besides the user model: nothing with a `frozen` language model, `lora` adapters in it, or
            the `full` language model.
        overwrite: replace a run folder that exists.
    """

    output_dir: str = "runs/dpo"
    seed: int = 0
    alpha: float = 0.5
    train: Literal["frozen", "lora", "full"] = "lora"
    overwrite: bool = False
    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    users: UserConfig = field(default_factory=UserConfig)
    objective: Objective = field(default_factory=Objective)
    lora: LoraSettings = field(default_factory=LoraSettings)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def check(self) -> None:
        """Raise `PrmError` naming the key whose value, alone or with others, makes no sense."""
        require(0.0 <= self.alpha <= 1.0, "alpha", "must lie in [0, 1]")
        self.data.check()
        self.users.check()
        require(self.users.kind != "bayes", "users.kind", "'bayes' is for reward models with linear heads")
        nothing = self.train == "frozen" and self.users.tokens == 0
        require(not nothing, "train", "is 'frozen' and users.tokens is 0: nothing is left to learn")
        self.objective.check()
        _check_shared(self)

    def to_dict(self) -> dict[str, Any]:
        """The resolved settings, JSON-ready."""
        return asdict(self)


@dataclass
class Ppo:
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

    steps: int = 100
    answers: int = 64
    generations: int = 1
    max_new_tokens: int = 53
    kl: float = 0.05
    missing_end: float = 1.0
    lam: float = 0.95
    clip: float = 0.2
    scale_answers: int = 64

    def check(self) -> None:
        """Raise `PrmError` naming the key whose value makes no sense."""
        for name in ("steps", "answers", "generations", "max_new_tokens"):
            require(getattr(self, name) >= 1, f"ppo.{name}", "must be at least 1")
        require(self.scale_answers >= 2, "ppo.scale_answers", "must be at least 2")
        for name in ("kl", "missing_end"):
            require(getattr(self, name) >= 0.0, f"ppo.{name}", "must not be negative")
        require(0.0 <= self.lam <= 1.0, "ppo.lam", "must lie in [0, 1]")
        require(0.0 < self.clip < 1.0, "ppo.clip", "must lie in (0, 1)")


def _ppo_optim() -> OptimConfig:
    return OptimConfig(
        epochs=4.0, batch_size=16, micro_batch_size=8, user_lr=1e-3, lora_lr=1e-4, head_lr=1e-3, warmup_steps=4
    )


@dataclass
class PpoConfig(_PolicyRun):
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

    output_dir: str = "runs/ppo"
    seed: int = 0
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

    def check(self) -> None:
        """Raise `PrmError` naming the key whose value, alone or with others, makes no sense."""
        self.data.check()
        self.users.check()
        require(self.users.kind != "bayes", "users.kind", "'bayes' is for reward models with linear heads")
        require(self.users.text_dropout == 0.0, "users.text_dropout", "is not for PPO, which learns from no comparison")
        self.ppo.check()
        _check_shared(self)
        optim, usual = self.optim, OptimConfig()
        require(self.lora.dropout == 0.0, "lora.dropout", "must be 0: the ratios of probabilities would be noise")
        for name in ("patience", "backbone_lr", "gradient_checkpointing"):
            require(getattr(optim, name) == getattr(usual, name), f"optim.{name}", "is not for PPO")
        require(optim.epochs >= 1.0 and optim.epochs == int(optim.epochs), "optim.epochs", "must be a whole number")
        whole = self.ppo.answers % optim.batch_size == 0
        fault = f"must be a multiple of optim.batch_size, {optim.batch_size}, got {self.ppo.answers}"
        require(whole, "ppo.answers", fault)
        whole = optim.batch_size % self.ppo.generations == 0
        fault = f"must be a multiple of ppo.generations, {self.ppo.generations}, got {optim.batch_size}"
        require(whole, "optim.batch_size", f"{fault}: answers to a question stay together")
        room = self.backbone.max_length > self.ppo.max_new_tokens
        require(room, "ppo.max_new_tokens", "leaves nothing of backbone.max_length for prompts")

    def to_dict(self) -> dict[str, Any]:
        """The resolved settings, JSON-ready."""
        return asdict(self)


def _check_shared(config: "SftConfig | DpoConfig | PpoConfig | OnlineConfig") -> None:
    require(config.backbone.layers is None, "backbone.layers", "must be left out: a policy speaks with all its layers")
    require(config.backbone.max_length >= 8, "backbone.max_length", "must be at least 8")
    config.lora.check()
    config.optim.check()


def _online_optim() -> OptimConfig:
    return OptimConfig(epochs=1.0, batch_size=32, lora_lr=3e-4, eval_steps=10)


@dataclass
class OnlineConfig(_PolicyRun):
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

    output_dir: str = "runs/online"
    seed: int = 0
    method: Literal["rloo", "grpo"] = "rloo"
    reward: str = ""
    alpha: float = 0.9
    train: Literal["frozen", "lora", "full"] = "lora"
    generations: int = 4
    max_new_tokens: int = 64
    temperature: float = 1.0
    kl_coef: float = 0.05
    check_answers: int = 64
    overwrite: bool = False
    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    users: UserConfig = field(default_factory=UserConfig)
    lora: LoraSettings = field(default_factory=LoraSettings)
    optim: OptimConfig = field(default_factory=_online_optim)

    def check(self) -> None:
        """Raise `PrmError` naming the key whose value, alone or with others, makes no sense."""
        require(bool(self.reward), "reward", "is missing: name the run folder of a reward model")
        require(0.0 <= self.alpha <= 1.0, "alpha", "must lie in [0, 1]")
        require(self.generations >= 2, "generations", "must be at least 2: answers are compared with one another")
        require(self.max_new_tokens >= 1, "max_new_tokens", "must be at least 1")
        require(0.0 < self.temperature < float("inf"), "temperature", "must be a number greater than 0")
        require(0.0 <= self.kl_coef < float("inf"), "kl_coef", "must be a number from 0")
        require(self.check_answers >= 2, "check_answers", "must be at least 2")
        self.data.check()
        self.users.check()
        require(self.users.kind != "bayes", "users.kind", "'bayes' is for reward models with linear heads")
        nothing = self.train == "frozen" and self.users.tokens == 0
        require(not nothing, "train", "is 'frozen' and users.tokens is 0: nothing is left to learn")
        told = self.users.text_dropout == 0.0
        require(told, "users.text_dropout", "must be left out: the unknown user asks without anybody's text anyway")
        _check_shared(self)
        still = self.lora.dropout == 0.0
        require(still, "lora.dropout", "must be 0: it would change an answer's probability by itself")
        whole = self.optim.batch_size % self.generations == 0
        fault = f"must be a multiple of generations, {self.generations}, got {self.optim.batch_size}"
        require(whole, "optim.batch_size", fault)

    def to_dict(self) -> dict[str, Any]:
        """The resolved settings, JSON-ready."""
        return asdict(self)
