"""Every setting of a comparison of user models, with its default."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, get_args

from prm.checks import Filled, Natural, Range, Seed, Share, Text, require
from prm.config import BackboneConfig, DataConfig, RewardModelConfig, SearchConfig, SplitConfig, TrainConfig

Name = Literal[
    "uniform",
    "uniform_kernel",
    "rules",
    "length_sign",
    "individual",
    "cluster",
    "low_rank",
    "bayes",
    "stack",
    "mlp",
    "amortised",
]
NAMES: tuple[Name, ...] = get_args(Name)
NETWORKS: tuple[Name, ...] = ("mlp", "amortised")  # `prm train` does not train them
KERNEL: Name = "uniform_kernel"
STACK: Name = "stack"
BASELINES: tuple[Name, ...] = ("uniform", "uniform_kernel", "rules", "length_sign")


@dataclass
class CompareModelsConfig(SplitConfig):
    """User models side by side on one log.

    Args:
        output_dir: folder of the page, the results and what a killed command resumes from.
        seed: random seed of folds, of what is drawn, and of every fit.
        models: `core`: rules, and what `prm train` trains; `all`: `mlp` and `amortised`, too; or a list of names.
        folds: the log is cut into so many parts by `data.holdout_by`. Each is held out once; settings are chosen by
            cross-validation on the others (`search.folds`).
        after: numbers of comparisons after which users are evaluated who were not in the training part.
        alpha: weight of the personalised term in models that have two; `individual` also tries 1.
        overwrite: begin anew in a folder that holds a comparison with other settings or data.
    """

    output_dir: Text = "runs/compare"
    seed: Seed = 0
    models: Literal["core", "all"] | Annotated[list[Name], Filled()] = "core"
    folds: Annotated[int, Range(2)] = 5
    after: list[Natural] = field(default_factory=lambda: [0, 1, 2, 5, 10, 20, 50])
    alpha: Share = 0.5
    overwrite: bool = False
    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    search: SearchConfig = field(
        default_factory=lambda: SearchConfig(
            folds=3, l2=[10.0 * 10**k for k in range(6)], user_l2=[3.0 * 10**k for k in range(6)]
        )
    )

    left_out: ClassVar = {
        "data.test_fraction": "every comparison is held out once",
        "data.test_from": "every comparison is held out once",
        "data.validation_fraction": "settings are chosen by cross-validation",
        "search.kernels": "the kernel is a model of its own",
    }

    @property
    def fast_path(self) -> bool:
        """True: no validation part is held out."""
        return True

    @property
    def names(self) -> tuple[Name, ...]:
        """The models to compare, in the order of the tables, baselines first; `uniform` is always among them."""
        if isinstance(self.models, str):
            return tuple(name for name in NAMES if self.models == "all" or name not in NETWORKS)
        return tuple(name for name in NAMES if name in ("uniform", *self.models))

    def train_config(self) -> TrainConfig:
        """The settings that all models have in common."""
        return TrainConfig(
            output_dir=self.output_dir,
            seed=self.seed,
            alpha=self.alpha,
            data=self.data,
            backbone=self.backbone,
            reward=RewardModelConfig(),
            search=self.search,
        )

    def check(self) -> None:
        """Raise `PrmError` naming a key that is missing, or whose value does not go with the others."""
        super().check()
        require(self.data.holdout_by != "user", "data.holdout_by", "is 'user': users who are held out have no models")
        require(self.search.folds >= 2, "search.folds", "must be at least 2, got 1")
