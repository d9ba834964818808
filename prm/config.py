"""Every setting of a training run, with its default. A YAML holds what differs."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Annotated, ClassVar, Literal, get_args

from prm.checks import (
    Count,
    Filled,
    Inside,
    Matching,
    Natural,
    NonNegative,
    PartOf,
    Range,
    Seed,
    Settings,
    Share,
    Text,
    require,
)
from prm.errors import PrmError, shown

Pooling = Literal["last", "mean"]
Position = Literal["prefix", "suffix"]  # of a user's virtual tokens
Kernel = Literal["linear", "rbf"]
Dtype = Literal["auto", "float32", "bfloat16"]
Device = Annotated[
    str, Matching(r"(cpu|cuda|hpu|mps|mtia|npu|xpu)(:\d+)?", "that names a device, such as cpu, cuda or cuda:1")
]
UserKind = Literal["uniform", "individual", "cluster", "low_rank", "stack", "bayes"]
HEADS_ONLY = ("stack", "bayes")  # kinds that are fitted as linear heads on a frozen backbone, and in no other way
UseOfText = Literal["prompt", "unread"]  # `user_text` is read before the prompt, or never
LearningRate = Annotated[float, Range(0, 10, above=True)]
Steps = Annotated[int, Range(1, 1_000_000)]

LayerPooling = tuple[int, str]  # (number of layers, pooling)
FeatureSpec = tuple[LayerPooling, ...]  # one or more, without repeats: h [k d] is their concatenation in this order

_ENTRY = re.compile(r"([1-9][0-9]{0,3}) (last|mean)")

LANDMARKS = 1024  # maximum number of landmark texts of an rbf kernel


@dataclass
class BackboneConfig(Settings, key="backbone"):
    """The language model that reads the texts.

    Args:
        name: `smollm2-135m` (embedded), a local folder, or a hub id. A reward model (sequence classification with one
            label) keeps its head: the generic user starts with its scores, and users add to them. Linear heads on a
            frozen backbone can also read an encoder, such as those of sentence-transformers.
        layers: keep the first k layers only; all layers if empty.
        dtype: of the frozen weights; trained weights are always float32. `auto` picks what is fast on the device.
        max_length: maximum tokens per sequence. Truncation drops the oldest prompt text, never user or response.
    """

    name: Text = "smollm2-135m"
    layers: Count | None = None
    dtype: Dtype = "auto"
    max_length: Annotated[int, Range(8)] = 1024


@dataclass
class UserConfig(Settings, key="users"):
    """The user model: how a user becomes an embedding (paper, section 4.3).

    Args:
        kind: `uniform` (the same for everyone), `individual` (one embedding per user), `cluster` (a mixture of
            centres), `low_rank` (an offset in few directions that all users share), `stack` (the uniform model and an
            offset, which counts as much as the offsets of others with as many comparisons predicted), or `bayes`
            (empirical Bayes: how much users differ is learnt from all of them, and users with few comparisons stay
            close to the average). The last two are for linear heads on a frozen backbone.
        num_virtual_tokens: T_u, embedding vectors per user. 0 with `uniform` leaves the user out: the vanilla reward
            model.
        generic: `individual` only: true is e_0 + o_i, false is one embedding per user without a shared part.
        clusters: `cluster` only: K, the number of centres.
        softmax: `cluster` only: true puts the mixture weights through a softmax, false leaves them free (paper).
        rank: `bayes` and `low_rank`: maximum number of directions in which users differ.
        text_dropout: share of training comparisons that are read without their `user_text`, so that users without a
            text are trained too; 1, for linear heads on a frozen backbone, leaves it unread for good.
    """

    kind: UserKind = "individual"
    num_virtual_tokens: Natural = 1
    generic: bool = True
    clusters: Count = 5
    softmax: bool = False
    rank: Count = 64
    text_dropout: Share = 0.0

    def check_together(self) -> None:
        """Raise `PrmError` for values of this group that do not go together."""
        require(
            self.num_virtual_tokens > 0 or self.kind == "uniform",
            "users.num_virtual_tokens",
            "is 0, which only 'uniform' can be",
        )


def parse_features(reads: Sequence[str]) -> FeatureSpec:
    """Parse entries like `15 mean`. Raises `PrmError` for invalid and duplicate entries."""
    settings: list[LayerPooling] = []
    for entry in reads:
        match = _ENTRY.fullmatch(entry)
        if match is None:
            raise PrmError(
                f"config key 'reward.features' holds {shown(entry)}: write layers and pooling, as in '15 mean'"
            )
        setting = (int(match[1]), match[2])
        if setting in settings:
            raise PrmError(f"config key 'reward.features' names {entry!r} twice")
        settings.append(setting)
    return tuple(settings)


def format_features(spec: FeatureSpec) -> list[str]:
    """The entries of `reward.features` for these features; the inverse of `parse_features`."""
    return [f"{layers} {pooling}" for layers, pooling in spec]


def feature_depth(spec: FeatureSpec) -> int:
    """Number of layers that the backbone must run for these features."""
    return max(layers for layers, _ in spec)


@dataclass
class RewardModelConfig(Settings, key="reward"):
    """How user and text become a reward (paper, section F.2).

    The hidden state h is standardised by its mean and standard deviation over the training texts, before training. A
    soft prompt on a reward model does not do this: the head knows h as it is.

    Args:
        form: `linear_head`: reward = <e_u, h>, the text is read once for all users. `soft_prompt`: the user's tokens
            are read with the text, and one linear head serves all users.
        position: `soft_prompt` only: the user's tokens stand before the text (`prefix`, as in the paper) or after the
            response (`suffix`).
        pooling: h is the hidden state of the `last` token, or the `mean` over the response (`linear_head` only; on a
            frozen backbone the search chooses).
        features: `linear_head` only: h is the concatenation of several hidden states, each named by its layer and
            pooling, as in `["15 mean", "30 mean"]`. Layers above the deepest are dropped, and the search on a frozen
            backbone tries penalties only. If empty, `backbone.layers` and `pooling` name the one hidden state.
        kernel: with `features` on a frozen backbone: heads on h (`linear`), or on features of the kernel
            exp(-|h - h'|^2 / w) (`rbf`); see `search.kernels`.
    """

    form: Literal["linear_head", "soft_prompt"] = "linear_head"
    position: Position = "suffix"
    pooling: Pooling = "last"
    features: list[str] = field(default_factory=list)
    kernel: Kernel = "linear"

    def check_together(self) -> None:
        """Raise `PrmError` for `features` that name no hidden states."""
        parse_features(self.features)

    @property
    def num_features(self) -> int:
        """Number of hidden states, k, that a head reads."""
        return max(1, len(self.features))

    def feature_spec(self, layers: int) -> FeatureSpec:
        """What a head on a backbone of so many layers reads. Raises `PrmError` for `features` that it cannot."""
        spec = parse_features(self.features) or ((layers, self.pooling),)
        if (deepest := feature_depth(spec)) > layers:
            raise PrmError(f"config key 'reward.features' reads {deepest} layers, but the backbone has {layers}")
        return spec


@dataclass
class LoraSettings(Settings, key="lora"):
    """Low-rank adapters on every linear layer of the backbone.

    Args:
        r: rank.
        lora_alpha: the update is scaled by lora_alpha / r.
        lora_dropout: dropout probability of the adapters' inputs in training.
    """

    r: Annotated[int, Range(1, 10_000)] = 8
    lora_alpha: Annotated[int, Range(1, 1_000_000)] = 16
    lora_dropout: PartOf = 0.0


@dataclass
class OptimConfig(Settings, key="optim"):
    """Training by gradient steps, on TRL's trainers. Linear heads on a frozen backbone do not use it, see `search`.

    Args:
        epochs: passes over the training pairs.
        batch_size: pairs per step on each device (process).
        micro_batch_size: pairs per forward pass; a step accumulates batch_size / micro_batch_size of them.
        user_lr: learning rate of the user model.
        head_lr: learning rate of the linear head of a soft prompt.
        lora_lr: learning rate of the adapters.
        backbone_lr: learning rate of the whole backbone, with `train: full`.
        warmup_steps: steps over which the learning rates rise to these values.
        lr_scheduler_type: after the warmup, `warmup_stable_decay` keeps the learning rates and lowers them to 0 over
            the last third of the run; `cosine` lowers them to 0 along a cosine.
        max_grad_norm: each group's gradient (users, head, adapters) is clipped to this norm.
        eval_steps: evaluate on the validation part and save a checkpoint every so many steps.
        early_stopping_patience: stop after this many evaluations without a better validation log loss; the best
            checkpoint is kept.
        gradient_checkpointing: save memory, recompute activations.
    """

    epochs: Annotated[float, Range(0, 100_000, above=True)] = 2.0
    batch_size: Steps = 16
    micro_batch_size: Steps = 8
    user_lr: LearningRate = 1e-2
    head_lr: LearningRate = 2e-3
    lora_lr: LearningRate = 1e-3
    backbone_lr: LearningRate = 1e-5
    warmup_steps: Annotated[int, Range(0, 1_000_000)] = 8
    lr_scheduler_type: Literal["warmup_stable_decay", "cosine"] = "warmup_stable_decay"
    max_grad_norm: Annotated[float, Range(0, 1_000_000, above=True)] = 1.0
    eval_steps: Steps = 25
    early_stopping_patience: Steps = 4
    gradient_checkpointing: bool = False

    def check_together(self) -> None:
        """Raise `PrmError` for a step that is no whole number of micro-batches."""
        whole = self.batch_size % self.micro_batch_size == 0
        fault = f"must be a multiple of optim.micro_batch_size, {self.micro_batch_size}, got {self.batch_size}"
        require(whole, "optim.batch_size", fault)


@dataclass
class SearchConfig(Settings, key="search"):
    """Settings to try for linear heads on a frozen backbone, each judged on held-out folds.

    Every combination is tried, for the personalised model and for the uniform baseline. Combinations within one
    standard error of the best are fitted on all data and averaged into one head; the log loss of this choice is
    measured on each fold with a choice made on the other folds. `cluster`, and `rbf` kernels on different features,
    cannot be averaged: the best is kept.

    Args:
        folds: number of folds, which share nothing by `data.holdout_by`. 1 holds out `data.validation_fraction` once,
            which is faster and noisier.
        l2: penalties on the generic user's embedding, 0.5 l2 |e_0|^2 beside the summed loss.
        user_l2: penalties on how far each user's embedding is from it, 0.5 user_l2 |e_i - e_0|^2; the uniform model has
            none. With `low_rank` they are on the user's weights, and l2 on the directions, too.
        layers: numbers of layers to read through; half and all of the backbone's if empty, and all of an encoder's.
        poolings: poolings to try.
        combine: with pooling `mean`, also try a head on all these layers at once, and if `layers` is empty one on a
            quarter, half, three quarters and all of the backbone's layers (not of an encoder).
        kernels: `rbf` also tries a kernel. It helps where the same or similar texts were compared many times; on new
            texts it is less certain. It is taken if it beats the linear head in every fold.
    """

    folds: Count = 5
    l2: Annotated[list[NonNegative], Filled()] = field(default_factory=lambda: [10.0, 100.0, 1000.0, 10000.0])
    user_l2: Annotated[list[NonNegative], Filled()] = field(default_factory=lambda: [10.0, 100.0, 1000.0])
    layers: list[Count] = field(default_factory=list)
    poolings: Annotated[list[Pooling], Filled()] = field(default_factory=lambda: ["last", "mean"])  # type: ignore[arg-type]
    combine: bool = True
    kernels: Annotated[list[Kernel], Filled()] = field(default_factory=lambda: ["linear"])  # type: ignore[arg-type]


Kind = Literal["pairs", "ratings", "thumbs", "picks", "rankings"]
LogFormat = Literal["arena", "fastchat", "label_studio", "argilla", "openai"]
SHIPPED = "ukp_sample"  # the `path` of the comparisons that come with the package
PublicSet = Literal["ukpconvarg1", "jester", "alpacaeval_styles", "tldr_length", "tldr_workers", "psoups", "prism"]
# what of a log's settings goes on to further logs of the same kind: all but where it lies and what bad rows do
INHERITED_LOG_KEYS = (
    "source",
    "columns",
    "values",
    "metadata",
    "dataset_split",
    "anonymous",
    "min_rating_difference",
    "standardise",
    "max_pairs",
    "ties",
    "tldr",
)
_TLDR = ("tldr_length", "tldr_workers")
Cell = bool | int | float | str  # a value in a log
TrainerArguments = dict[str, Cell | list[str] | None]  # of transformers' TrainingArguments, by name


def cell_key(value: object) -> str:
    """A value of a log as text in lower case; 1, "1" and 1.0 are one, and so are true and "True"."""
    text = str(value).strip().lower()
    try:
        number = float(text)
        return str(int(number)) if number.is_integer() else str(number)
    except ValueError:
        return text


@dataclass
class TldrConfig(Settings, key="data.tldr"):
    """Reddit posts and their summaries, compared by length: for `tldr_length` and `tldr_workers` only.

    Args:
        num_users: how many users to train on: simulated ones, or the workers with most training comparisons.
        num_unseen_users: `tldr_length` only: further simulated users, whose comparisons are never trained on.
        prompt: the whole `post` with its subreddit and title, or only subreddit and `title`, so that rows are short.
        user_texts: users say in a few words what they like (`user_text`); unseen users say it in other words.
    """

    num_users: Count = 10
    num_unseen_users: Natural = 0
    prompt: Literal["post", "title"] = "post"
    user_texts: bool = False


@dataclass
class FeedbackConfig(Settings, key="data"):
    """A feedback log, and how its rows become comparisons.

    Args:
        path: JSON Lines, JSON list, CSV, Excel (`.xlsx`) or Parquet file, plain, `.gz` or `.bz2`; or a folder or hub id
            of a `datasets` data set; or the store of `rerank serve` (`sqlite:///...`, `postgresql://...`); or
            `ukp_sample`, 200 comparisons that come with the package.
        source: `auto` recognises the log by its columns and says how it reads them. Or the kind of feedback: `pairs`,
            `ratings`, `thumbs`, `picks` or `rankings`, with columns named as ours, as usual or by `columns`; or the
            format: `arena` (Chatbot Arena, MT-bench), `fastchat` (FastChat's own logs), `label_studio`, `argilla`,
            `openai` (preference fine-tuning); or the folder of a public data set: `ukpconvarg1`, `jester`,
            `tldr_length`, `alpacaeval_styles`, and those of the paper: `tldr_workers`, `psoups`, `prism`.
        columns: the log's name of a field where it is not ours, as in `user_id: annotator`; a list of columns is
            gathered into one field.
        values: how the log writes which response was chosen, as in `{a: 1, b: 2, tie: [0, both]}`: `a` is the first
            response, `b` the second, and so on. Any other value is then a bad row.
        metadata: further columns to keep, for results by their values.
        dataset_split: split of a `datasets` data set, or sheet of an Excel workbook with several.
        anonymous: true if the log names no users: all of it then belongs to one user.
        min_rating_difference: `ratings`: minimum difference between two ratings that make a pair; 0 takes any
            difference.
        standardise: `ratings`: subtract each user's mean and divide by their standard deviation;
            `min_rating_difference` then counts standard deviations.
        max_pairs: maximum number of pairs that one response enters, per user and prompt, so that pairs grow with the
            number of responses and not with its square.
        ties: `keep` them for the log loss, or `drop` them.
        on_bad_row: `stop` at the first bad row, or `skip` bad rows and list them in `skipped.jsonl`.
        tldr: of the two sources of Reddit summaries.
    """

    path: str = ""
    source: Literal["auto", Kind, LogFormat, PublicSet] = "auto"
    columns: dict[str, str | list[str]] = field(default_factory=dict)
    values: dict[str, Cell | list[Cell]] = field(default_factory=dict)
    metadata: list[str] = field(default_factory=list)
    dataset_split: str = "train"
    anonymous: bool = False
    min_rating_difference: NonNegative = 0.0
    standardise: bool = False
    max_pairs: Count = 8
    ties: Literal["keep", "drop"] = "keep"
    on_bad_row: Literal["stop", "skip"] = "stop"
    tldr: TldrConfig = field(default_factory=TldrConfig)

    def check(self) -> None:
        """Raise `PrmError` where no log is named."""
        require(bool(self.path), "data.path", "is missing: name a file of feedback")

    def check_together(self) -> None:
        """Raise `PrmError` for what is not for this source."""
        shipped = self.path == SHIPPED and self.source not in ("auto", "pairs")
        require(not shipped, "data.source", f"must be left out, or be 'pairs', for {SHIPPED}")
        public = self.source in get_args(PublicSet)
        for name in ("columns", "values", "metadata", "anonymous"):
            require(not public or not getattr(self, name), f"data.{name}", f"is not for the data set {self.source}")
        rated = self.source in ("auto", "ratings", "jester")  # of `auto` it shows when the log is read
        only = "is for ratings only: set 'data.source: ratings'"
        require(rated or self.min_rating_difference == 0.0, "data.min_rating_difference", only)
        require(rated or not self.standardise, "data.standardise", only)
        unpicked = self.source in ("pairs", "ratings", "thumbs", "rankings", "openai")
        require(not unpicked or not self.values, "data.values", "is for picks: which of the responses was chosen")
        for name in self.values:
            known = name == "tie" or (len(name) == 1 and "a" <= name <= "z")
            require(known, "data.values", f"has {name!r}: its names are a (the first response), b, ..., and tie")
        said = [
            cell_key(one) for value in self.values.values() for one in (value if isinstance(value, list) else [value])
        ]
        require(len(set(said)) == len(said), "data.values", f"has a value twice: {', '.join(said)}")
        require(self.source in _TLDR or self.tldr == TldrConfig(), "data.tldr", f"is for {' and '.join(_TLDR)} only")
        simulated = self.source == "tldr_length"
        require(
            simulated or self.tldr.num_unseen_users == 0,
            "data.tldr.num_unseen_users",
            "is for data.source 'tldr_length' only",
        )


@dataclass
class DataConfig(FeedbackConfig):
    """The feedback log of a training run, and how it is split.

    Args:
        holdout_by: what the held-out test part must not share with training: `pair`, `prompt` (prompts that begin one
            another, as the turns of a conversation do, count as one), `conversation` (by `conversation_id`),
            `response` or `user`; or `time`: later comparisons are held out; or `given`: metadata `split` says which
            rows to `train` on and the rest is held out (folds and validation then go by conversation, or by prompt
            without a `conversation_id`). With any other value, rows marked `test` or `unseen` are never trained on.
        test_fraction: share held out, written to `test.jsonl` in the run folder; 0 trains on everything. With `time`,
            the latest share of each user's comparisons.
        test_from: `time` only: ISO date or number; everything from then on is held out, instead of a fraction.
        validation_fraction: share of the rest, split alike, for early stopping; linear heads on a frozen backbone use
            it with `search.folds: 1` only.
        min_comparisons: users with fewer training comparisons, ties aside, are left out of every part.
        judges_per_pair: train on at most so many users' comparisons of one pair, drawn at random; 0 takes all.
        split_seed: random seed of all that is drawn here, so that runs with other seeds learn from the same parts; the
            run's `seed` if not given.
        on_artefact: `stop` if formatting alone predicts the label in half of the pairs, or `warn`.
    """

    holdout_by: Literal["pair", "prompt", "conversation", "response", "user", "time", "given"] = "prompt"
    test_fraction: PartOf = 0.0
    test_from: float | str | None = None
    validation_fraction: Inside = 0.15
    min_comparisons: Natural = 0
    judges_per_pair: Natural = 0
    split_seed: Seed | None = None
    on_artefact: Literal["stop", "warn"] = "stop"

    def check_together(self) -> None:
        """Raise `PrmError` for what is not for this source or this split."""
        super().check_together()
        given = self.holdout_by == "given"
        require(not given or self.test_fraction == 0.0, "data.test_fraction", "is not for data.holdout_by 'given'")
        require(
            self.test_from is None or self.holdout_by == "time", "data.test_from", "is for data.holdout_by 'time' only"
        )
        require(
            self.test_from is None or self.test_fraction == 0.0,
            "data.test_from",
            "and data.test_fraction exclude each other",
        )


class SplitConfig(Settings):
    """What every command that splits a log settles.

    `left_out` holds keys that the groups have and this run has no use for, and why: they are no flags of its command,
    and must stand at their defaults.
    """

    output_dir: str
    seed: int
    overwrite: bool
    data: DataConfig
    left_out: ClassVar[Mapping[str, str]] = {}

    @property
    def start_from(self) -> str:
        """Run folder to go on from, if any."""
        return ""

    @property
    def split_seed(self) -> int:
        """Random seed of the split."""
        return self.seed if self.data.split_seed is None else self.data.split_seed

    @property
    def fast_path(self) -> bool:
        """True where no validation part is held out."""
        return False

    def check(self) -> None:
        """Raise `PrmError` naming a key that is missing, or whose value does not go with the others."""
        self.check_settings()
        self.data.check()

    def check_settings(self) -> None:
        """Raise `PrmError` naming a key whose value is wrong, or that must be left out."""
        self.check_again()
        utf8 = self.output_dir.encode(errors="replace").decode() == self.output_dir  # logs for TensorBoard need it
        require(utf8, "output_dir", f"must be a name in UTF-8, got {self.output_dir!r}")
        for key, why in self.left_out.items():
            require(_at(self, key) == _at(type(self)(), key), key, f"must be left out: {why}")


class RunConfig(SplitConfig):
    """What every training run settles besides, whatever it trains: `prm train`, `policy sft`, `policy dpo`.

    `train` says what is trained of the language model: nothing if it is `frozen`, `lora` adapters, or the `full` model.

    Args:
        trainer: arguments of transformers' `TrainingArguments` by name, such as `report_to`, `logging_steps`,
            `push_to_hub` and `hub_model_id`, for training by gradient steps. What another setting decides is refused.
    """

    train: Literal["frozen", "lora", "full"]
    backbone: BackboneConfig
    lora: LoraSettings
    optim: OptimConfig
    trainer: TrainerArguments


def _at(settings: Settings, key: str) -> object:
    return reduce(getattr, key.split("."), settings)


@dataclass
class TrainConfig(RunConfig):
    """One training run of a reward model.

    Args:
        output_dir: the run folder; it appears when training has finished.
        seed: random seed for splits, initialisation and example order.
        alpha: weight of the personalised term; the generic user's term has 1 - alpha (paper, section F.2).
        train: what is trained besides the user model: nothing with a `frozen` backbone, `lora` adapters, or the `full`
            backbone.
        start_from: run folder to continue from (`prm train --from RUN`), with its model and settings. On a frozen
            backbone only the users of the new comparisons are trained, and everyone else's scores stay the same to
            the bit; with `lora` or `full` everything is trained further.
        overwrite: replace a run folder that exists.
    """

    output_dir: Text = "runs/rewards"
    seed: Seed = 0
    alpha: Share = 0.5
    train: Literal["frozen", "lora", "full"] = "frozen"
    start_from: str = ""
    overwrite: bool = False
    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    users: UserConfig = field(default_factory=UserConfig)
    reward: RewardModelConfig = field(default_factory=RewardModelConfig)
    lora: LoraSettings = field(default_factory=LoraSettings)
    search: SearchConfig = field(default_factory=SearchConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerArguments = field(default_factory=dict)

    @property
    def fast_path(self) -> bool:
        """True where hidden states are computed once and only the head is trained."""
        return self.reward.form == "linear_head" and self.train == "frozen"

    def of_kind(self, kind: UserKind) -> "TrainConfig":
        """The same settings with another user model."""
        return replace(self, users=replace(self.users, kind=kind))

    @property
    def kernels(self) -> list[Kernel]:
        """The kernels that the fast path tries, each once."""
        return [self.reward.kernel] if self.reward.features else list(dict.fromkeys(self.search.kernels))

    def check(self) -> None:
        """Raise `PrmError` naming a key that is missing, or whose value does not go with the others."""
        super().check()
        self.check_model()

    def check_model(self) -> None:
        """Raise `PrmError` naming a key of the model whose value does not go with the others."""
        users, reward = self.users, self.reward
        fault = f"{users.kind!r} is for linear heads on a frozen backbone"
        require(users.kind not in HEADS_ONLY or self.fast_path, "users.kind", fault)
        unread = users.text_dropout == 1.0
        require(
            not unread or self.fast_path, "users.text_dropout", "can be 1 for linear heads on a frozen backbone only"
        )
        linear = reward.form == "linear_head"
        require(
            not linear or users.num_virtual_tokens == 1,
            "users.num_virtual_tokens",
            "must be 1 with reward.form 'linear_head'",
        )
        require(linear or reward.pooling == "last", "reward.pooling", "must be 'last' with reward.form 'soft_prompt'")
        self._check_reads()
        self._check_kernels()

    def _check_reads(self) -> None:
        reward, search = self.reward, self.search
        if not reward.features:
            return
        require(reward.form == "linear_head", "reward.features", "is for reward.form 'linear_head' only")
        require(
            reward.pooling == "last", "reward.pooling", "is not for runs with 'reward.features', which names its own"
        )
        searched = bool(search.layers) and not self.start_from
        require(not searched, "search.layers", "is not for runs with 'reward.features', which say what is read")

    def _check_kernels(self) -> None:
        reward, search = self.reward, self.search
        for key, rbf in {"reward.kernel": reward.kernel == "rbf", "search.kernels": "rbf" in search.kernels}.items():
            require(self.fast_path or not rbf, key, "'rbf' is for linear heads on a frozen backbone")
        if self.start_from:  # the run says what is read
            return
        named = bool(reward.features)
        require(
            named or reward.kernel == "linear", "reward.kernel", "goes with 'reward.features': set 'search.kernels'"
        )
        require(
            not named or search.kernels == ["linear"],
            "search.kernels",
            "is not for runs with 'reward.features': set 'reward.kernel'",
        )
