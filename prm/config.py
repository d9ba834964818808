"""Every setting of a training run, with its default. A YAML holds what differs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Annotated, Any, ClassVar, Literal, get_args

from prm.checks import Count, Filled, Inside, Natural, NonNegative, PartOf, Range, Seed, Settings, Share, Text, require
from prm.errors import PrmError
from prm.layer_pooling import Reading, depth, parse_reading

Pooling = Literal["last", "mean"]
Kernel = Literal["linear", "rbf"]
Dtype = Literal["auto", "float32", "bfloat16"]
LearningRate = Annotated[float, Range(0, 10, above=True)]
Steps = Annotated[int, Range(1, 1_000_000)]


@dataclass
class BackboneConfig(Settings, key="backbone"):
    """The language model that reads the texts.

    Args:
        name: `smollm2-135m` (embedded), a local folder, or a hub id. A reward model (sequence classification with
            one label) brings its head: strangers then start with its scores, and people add to them.
        layers: keep the first k layers only; all of them where not given.
        dtype: of the frozen weights; what is trained is always float32. `auto` picks what the device is fast at.
        max_length: most tokens per sequence. The oldest prompt text goes first; user and response are never cut.
    """

    name: Text = "smollm2-135m"
    layers: Count | None = None
    dtype: Dtype = "auto"
    max_length: Annotated[int, Range(8)] = 1024


@dataclass
class UserConfig(Settings, key="users"):
    """How a person becomes an embedding (paper, section 4.3).

    Args:
        kind: `uniform` (everyone alike), `individual` (one embedding each), `cluster` (a mixture of centres), or
            `bayes` (linear heads on a frozen backbone: empirical Bayes, how far people are from the average is learnt
            from all of them, and what little somebody judged moves them little).
        tokens: T_u, embedding vectors per person. 0 with `uniform` leaves the user out: the vanilla reward model.
        generic: `individual` only: e_0 + o_i if true, an embedding per person without a common part if false.
        clusters: K, `cluster` only.
        softmax: `cluster` only: mixture weights through a softmax; free real numbers, as in the paper, if false.
        rank: `bayes` only: directions in which people may differ; fewer where the texts or the features have fewer.
        text_dropout: share of training comparisons read without their `user_text`, so that a stranger without
            text has been trained too; not with `bayes`, which reads it by itself.
    """

    kind: Literal["uniform", "individual", "cluster", "bayes"] = "individual"
    tokens: Natural = 1
    generic: bool = True
    clusters: Count = 5
    softmax: bool = False
    rank: Count = 64
    text_dropout: PartOf = 0.0

    def check_together(self) -> None:
        """Raise `PrmError` for values of this group that do not go together."""
        require(self.tokens > 0 or self.kind == "uniform", "users.tokens", "is 0, which only 'uniform' can be")
        apart = self.kind == "bayes" and self.text_dropout > 0.0
        require(not apart, "users.text_dropout", "is not for 'bayes', which reads what people say by itself")


@dataclass
class RewardConfig(Settings, key="reward"):
    """How user and text become a reward (paper, section F.2).

    Each coordinate of the hidden state h is shifted and scaled by its mean and deviation over the training texts, fixed
    before training; but not for a soft prompt on a reward model, whose head knows h as it is.

    Args:
        form: `linear_head`: reward = <e_u, h>, the text is read once whoever judges. `soft_prompt`: the user is
            read along with the text, and one linear head serves all.
        place: `soft_prompt` only: user tokens `front` of the text, as in the paper, or `behind` the answer.
        pooling: h is the hidden state at the `last` token, or the `mean` over the response (`linear_head` only;
            on the fast path the search decides).
        reads: `linear_head` only: h is the concatenation of several hidden states, each named by the layers read
            through and the pooling, as in `["15 mean", "30 mean"]`. The backbone is cut at the deepest; the fast path
            then searches penalties alone. Where empty, `backbone.layers` and `pooling` name the one that is read.
        kernel: with `reads` on a frozen backbone: heads on h (`linear`), or with `rbf` on features in which
            <h, h'> is the likeness exp(-|h - h'|^2 / w) of two texts to each other; see `search.kernels`.
    """

    form: Literal["linear_head", "soft_prompt"] = "linear_head"
    place: Literal["front", "behind"] = "behind"
    pooling: Pooling = "last"
    reads: list[str] = field(default_factory=list)
    kernel: Kernel = "linear"

    def check_together(self) -> None:
        """Raise `PrmError` for `reads` that name no hidden states."""
        parse_reading(self.reads)

    @property
    def n_reads(self) -> int:
        """Number of hidden states, k, that a head reads."""
        return max(1, len(self.reads))

    def reading(self, layers: int) -> Reading:
        """What a head on a backbone of so many layers reads. Raises `PrmError` for `reads` that it cannot."""
        reading = parse_reading(self.reads) or ((layers, self.pooling),)
        if (deepest := depth(reading)) > layers:
            raise PrmError(f"config key 'reward.reads' reads {deepest} layers, but the backbone has {layers}")
        return reading


@dataclass
class LoraSettings(Settings, key="lora"):
    """Low-rank adapters on every linear layer of the backbone.

    Args:
        r: rank.
        alpha: the update is scaled by alpha / r.
        dropout: share of the adapters' inputs that is dropped in training.
    """

    r: Annotated[int, Range(1, 10_000)] = 8
    alpha: Annotated[int, Range(1, 1_000_000)] = 16
    dropout: PartOf = 0.0


@dataclass
class OptimConfig(Settings, key="optim"):
    """Step-by-step training on TRL's trainers; a linear head on a frozen backbone takes the fast path instead.

    Args:
        epochs: passes over the training pairs.
        batch_size: pairs per step on each device (process).
        micro_batch_size: pairs read at once; a step accumulates batch_size / micro_batch_size of them.
        user_lr: learning rate of the user model.
        head_lr: learning rate of the linear head of a soft prompt.
        lora_lr: learning rate of the adapters.
        backbone_lr: learning rate of the whole backbone, with `train: full`.
        warmup_steps: steps over which the rates rise to these values.
        schedule: afterwards they `hold` and fall to 0 over the last third of a run, or follow a `cosine` to 0.
        max_grad_norm: each group's gradient (users, head, adapters) is clipped to this norm.
        eval_steps: steps between two looks at the validation part; also between two saved states.
        patience: stop after this many looks without a better validation likelihood; the best state is kept.
        gradient_checkpointing: trade compute for memory.
    """

    epochs: Annotated[float, Range(0, 100_000, above=True)] = 2.0
    batch_size: Steps = 16
    micro_batch_size: Steps = 8
    user_lr: LearningRate = 1e-2
    head_lr: LearningRate = 2e-3
    lora_lr: LearningRate = 1e-3
    backbone_lr: LearningRate = 1e-5
    warmup_steps: Annotated[int, Range(0, 1_000_000)] = 8
    schedule: Literal["hold", "cosine"] = "hold"
    max_grad_norm: Annotated[float, Range(0, 1_000_000, above=True)] = 1.0
    eval_steps: Steps = 25
    patience: Steps = 4
    gradient_checkpointing: bool = False

    def check_together(self) -> None:
        """Raise `PrmError` for a step that is no whole number of micro-batches."""
        whole = self.batch_size % self.micro_batch_size == 0
        fault = f"must be a multiple of optim.micro_batch_size, {self.micro_batch_size}, got {self.batch_size}"
        require(whole, "optim.batch_size", fault)


@dataclass
class SearchConfig(Settings, key="search"):
    """Settings tried on the fast path, each judged on held-out folds.

    Every combination is tried, for the personal model and for the uniform one that it is compared with. Those within
    one standard error of the best are fitted on everything and averaged into one head; what that is worth is judged on
    each fold by what the others would keep. Of `cluster` and of kernels on different readings there is no such mean:
    the best is kept alone. `bayes` averages as the uniform model does.

    Args:
        folds: each setting is fitted on all folds but one, in turn; folds share nothing, by `data.split`. 1 holds
            out `data.validation_fraction` once, which is quicker and noisier.
        l2: penalties on the common part, as in 0.5 l2 |e_0|^2 beside the summed loss (centres alike).
        user_l2: penalties on each person's own part; none of it enters the uniform model.
        layers: numbers of layers to read through; half and all of the backbone's where empty.
        poolings: poolings to read with.
        combine: with pooling `mean` and several depths, also try heads on the means of all these depths at once.
        kernels: `rbf` also tries what is not linear in h: liking what is like liked texts. Worth it where the same
            or alike texts were judged many times; texts that are like none of the log's are then judged less surely.
    """

    folds: Count = 5
    l2: Annotated[list[NonNegative], Filled()] = field(default_factory=lambda: [10.0, 100.0, 1000.0, 10000.0])
    user_l2: Annotated[list[NonNegative], Filled()] = field(default_factory=lambda: [10.0, 100.0, 1000.0])
    layers: list[Count] = field(default_factory=list)
    poolings: Annotated[list[Pooling], Filled()] = field(default_factory=lambda: ["last", "mean"])  # type: ignore[arg-type]
    combine: bool = True
    kernels: Annotated[list[Kernel], Filled()] = field(default_factory=lambda: ["linear"])  # type: ignore[arg-type]


Kind = Literal["pairs", "ratings", "thumbs", "picks", "rankings"]
PublicSet = Literal["ukpconvarg1", "jester", "alpacaeval_styles", "tldr_length", "tldr_workers", "psoups", "prism"]
# what of a log's settings goes on to further logs of the same kind: all but where it lies and what bad rows do
HOW_A_LOG_IS_READ = (
    "source",
    "columns",
    "metadata",
    "part",
    "anonymous",
    "gap",
    "standardise",
    "max_pairs",
    "ties",
    "tldr",
)
_TLDR = ("tldr_length", "tldr_workers")


@dataclass
class TldrConfig(Settings, key="data.tldr"):
    """Reddit posts and their summaries, judged by length: for `tldr_length` and `tldr_workers` only.

    Args:
        people: how many people are learnt from: simulated ones, or the workers with most training comparisons.
        strangers: `tldr_length` only: further simulated people, whose judgements are never learnt from.
        prompt: the whole `post` with its subreddit and title, or `title`: those two alone, so that rows are short.
        texts: people say in a few words what they like (`user_text`), strangers in other words than those learnt from.
    """

    people: Count = 10
    strangers: Natural = 0
    prompt: Literal["post", "title"] = "post"
    texts: bool = False


@dataclass
class FeedbackConfig(Settings, key="data"):
    """A feedback log, and how its rows become comparisons.

    Args:
        path: JSON Lines, CSV or Parquet file, plain or `.gz`; or a folder or hub id of a `datasets` data set.
        source: kind of feedback: `pairs`, `ratings`, `thumbs`, `picks` or `rankings`; or the folder of a public data
            set: `ukpconvarg1`, `jester`, `tldr_length`, `alpacaeval_styles`, and those of the paper: `tldr_workers`,
            `psoups`, `prism`.
        columns: the log's name of a field where it is not ours, as in `user_id: annotator`; a list of columns is
            gathered into one field.
        metadata: further columns to carry along, for results by their values.
        part: split of a `datasets` data set.
        anonymous: true where the log names nobody: all of it is then one person's.
        gap: `ratings`: least difference that makes a pair; any difference if 0.
        standardise: `ratings`: per person, less their mean and over their deviation; `gap` then counts deviations.
        max_pairs: most pairs of one judgement (a person, a prompt, some answers) that any one answer enters, so
            that pairs grow with the answers somebody judged, not with their square.
        ties: `keep` them for likelihoods, or `drop` them.
        on_bad_row: `stop` at the first row that makes no sense, or `skip` it and list it in `skipped.jsonl`.
        tldr: of the two sources of Reddit summaries.
    """

    path: str = ""
    source: Literal[Kind, PublicSet] = "pairs"
    columns: dict[str, str | list[str]] = field(default_factory=dict)
    metadata: list[str] = field(default_factory=list)
    part: str = "train"
    anonymous: bool = False
    gap: NonNegative = 0.0
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
        public = self.source in get_args(PublicSet)
        for name in ("columns", "metadata", "anonymous"):
            require(not public or not getattr(self, name), f"data.{name}", f"is not for the data set {self.source}")
        rated = self.source in ("ratings", "jester")
        require(rated or self.gap == 0.0, "data.gap", "is for ratings only")
        require(rated or not self.standardise, "data.standardise", "is for ratings only")
        require(self.source in _TLDR or self.tldr == TldrConfig(), "data.tldr", f"is for {' and '.join(_TLDR)} only")
        simulated = self.source == "tldr_length"
        require(simulated or self.tldr.strangers == 0, "data.tldr.strangers", "is for data.source 'tldr_length' only")


@dataclass
class DataConfig(FeedbackConfig):
    """The feedback log of a training run, and how it is split.

    Args:
        split: what the held-out test part shares nothing of: `pair`, `prompt` (prompts that begin one another, as the
            turns of a conversation do, count as one), `conversation` (by `conversation_id`), `response` or `user`; or
            `time`: what came later is held out; or `given`: learn from what metadata `part` marks `train`, hold out
            the rest (folds and validation then go by conversation, by prompt without a `conversation_id`). With any
            other split, what it marks `test` or `unseen` is never learnt from.
        test_fraction: share held out, written to `test.jsonl` in the run folder; 0 trains on everything. With
            `time`, the latest share of each person's judgements.
        test_from: `time` only: ISO date or number; everything from then on is held out, instead of a fraction.
        validation_fraction: share of the rest, split alike, that stops training; on the fast path see `search.folds`.
        min_comparisons: people with fewer comparisons to learn from, ties aside, are left out of every part.
        judges_per_pair: learn from at most so many people's judgements of one pair, drawn at random; 0 takes all.
        on_artefact: `stop` where formats that go with being chosen, whatever is said, tell half of the pairs apart,
            or `warn`.
    """

    split: Literal["pair", "prompt", "conversation", "response", "user", "time", "given"] = "prompt"
    test_fraction: PartOf = 0.0
    test_from: float | str | None = None
    validation_fraction: Inside = 0.15
    min_comparisons: Natural = 0
    judges_per_pair: Natural = 0
    on_artefact: Literal["stop", "warn"] = "stop"

    def check_together(self) -> None:
        """Raise `PrmError` for what is not for this source or this split."""
        super().check_together()
        given = self.split == "given"
        require(not given or self.test_fraction == 0.0, "data.test_fraction", "is not for data.split 'given'")
        require(self.test_from is None or self.split == "time", "data.test_from", "is for data.split 'time' only")
        require(
            self.test_from is None or self.test_fraction == 0.0,
            "data.test_from",
            "and data.test_fraction exclude each other",
        )


class RunConfig(Settings):
    """What every training run settles, whatever it trains: `prm train`, `policy sft`, `policy dpo`.

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


def _at(settings: Settings, key: str) -> Any:
    return reduce(getattr, key.split("."), settings)


@dataclass
class TrainConfig(RunConfig):
    """One training run.

    Args:
        output_dir: the run folder; it appears when training is finished.
        seed: of splits, starts and order.
        alpha: weight of the personal term; 1 - alpha is the unknown user's (paper, section F.2).
        train: what learns besides the user model: nothing with a `frozen` backbone, `lora` adapters in it, or the
            `full` backbone.
        start_from: run folder to go on from (`prm train --from RUN`), with its model and settings. On a frozen
            backbone only the people of the new judgements learn, everyone else's scores stay the same to the bit;
            with `lora` or `full` everything goes on learning.
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
    reward: RewardConfig = field(default_factory=RewardConfig)
    lora: LoraSettings = field(default_factory=LoraSettings)
    search: SearchConfig = field(default_factory=SearchConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    @property
    def fast_path(self) -> bool:
        """True where hidden states are computed once and only the head is trained."""
        return self.reward.form == "linear_head" and self.train == "frozen"

    @property
    def kernels(self) -> list[Kernel]:
        """The kernels that the fast path tries, each once."""
        return [self.reward.kernel] if self.reward.reads else list(dict.fromkeys(self.search.kernels))

    def check(self) -> None:
        """Raise `PrmError` naming a key that is missing, or whose value does not go with the others."""
        super().check()
        users, reward = self.users, self.reward
        require(
            users.kind != "bayes" or self.fast_path, "users.kind", "'bayes' is for linear heads on a frozen backbone"
        )
        linear = reward.form == "linear_head"
        require(not linear or users.tokens == 1, "users.tokens", "must be 1 with reward.form 'linear_head'")
        require(linear or reward.pooling == "last", "reward.pooling", "must be 'last' with reward.form 'soft_prompt'")
        self._check_reads()
        self._check_kernels()

    def _check_reads(self) -> None:
        reward, search = self.reward, self.search
        if not reward.reads:
            return
        require(reward.form == "linear_head", "reward.reads", "is for reward.form 'linear_head' only")
        require(reward.pooling == "last", "reward.pooling", "is not for runs with 'reward.reads', which names its own")
        searched = bool(search.layers) and not self.start_from
        require(not searched, "search.layers", "is not for runs with 'reward.reads', which say what is read")

    def _check_kernels(self) -> None:
        reward, search = self.reward, self.search
        for key, rbf in {"reward.kernel": reward.kernel == "rbf", "search.kernels": "rbf" in search.kernels}.items():
            require(self.fast_path or not rbf, key, "'rbf' is for linear heads on a frozen backbone")
        if self.start_from:  # the run says what is read
            return
        named = bool(reward.reads)
        require(named or reward.kernel == "linear", "reward.kernel", "goes with 'reward.reads': set 'search.kernels'")
        require(
            not named or search.kernels == ["linear"],
            "search.kernels",
            "is not for runs with 'reward.reads': set 'reward.kernel'",
        )
