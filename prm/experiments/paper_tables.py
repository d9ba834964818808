"""The paper's experiments on reward models, row by row, with the paper's figures.

The paper trains P-DPO policies and reports the accuracy of their implicit reward; here the reward model itself is
trained, with the same user models, splits and settings. Figures with "~" are from the paper's prose: the bodies of
its Tables 4 and 6 are not in our copy of the text.
"""

from dataclasses import replace

from prm.experiments.claims import (
    are_equal,
    generic_varies_more,
    group_beats,
    is_below,
    is_far_above,
    learns_slower,
    minority_keeps_up,
    unknown_users_fare_alike,
    unknown_users_gain,
)
from prm.experiments.experiment_parts import Claim, Experiment, ExperimentRow, Published

_UNIFORM = {"users.kind": "uniform", "users.num_virtual_tokens": 0}
_CLUSTER = {"users.kind": "cluster", "users.softmax": True}  # the paper's code mixes through a softmax
_LINEAR: dict[str, object] = {"reward.form": "linear_head", "train": "frozen", "users.num_virtual_tokens": 1}

# its uniform model is the baseline of every row: penalty, layer and pooling are chosen by cross-validation
LINEAR = ExperimentRow("linear", "individual, linear head, frozen backbone", _LINEAR)
VANILLA = ExperimentRow("vanilla", "vanilla (uniform)", _UNIFORM, Published("~59", "~55", "-", "~25"))
INDIVIDUAL = ExperimentRow("individual", "individual, T_u 10, alpha .5", {}, Published("~91", "~55", "~90", "~90"))
CLUSTER_5 = ExperimentRow(
    "cluster-5", "cluster, K 5", _CLUSTER | {"users.clusters": 5}, Published("~91", "~55", "~90", "~90")
)
_ABLATIONS = (
    ExperimentRow(
        "one-token",
        "individual, T_u 1",
        {"users.num_virtual_tokens": 1},
        Published("88.78", "54.92", "85.92±0.57", "94.15±0.11"),
    ),
    ExperimentRow(
        "alpha-1", "individual, alpha 1", {"alpha": 1.0}, Published("93.54", "54.87", "92.37±0.51", "95.23±0.08")
    ),
    ExperimentRow("alpha-0", "individual, alpha 0", {"alpha": 0.0}),
    ExperimentRow(
        "no-e0",
        "individual, without e_0",
        {"users.generic": False},
        Published("88.88", "54.77", "87.13±0.97", "91.96±0.65"),
    ),
    ExperimentRow(
        "cluster-2",
        "cluster, K 2",
        _CLUSTER | {"users.clusters": 2},
        Published("72.79", "55.01", "82.32±2.02", "51.24±9.30"),
    ),
)


_FEWER_EVALUATIONS = {
    "optim.eval_steps": 20
}  # each scores the validation part; together they take a quarter of a long row's time


def _with(
    row: ExperimentRow, suffix: str, settings: dict[str, object], paper: Published | None = None
) -> ExperimentRow:
    return replace(
        row,
        name=f"{row.name}-{suffix}",
        label=f"{row.label}, {suffix} people",
        settings={**row.settings, **settings},
        paper=paper or Published(),
        laptop=_FEWER_EVALUATIONS,
    )


_FORTY = tuple(
    _with(row, "40", {"data.tldr.num_users": 40, "data.judges_per_pair": 4}, paper)
    for row, paper in (
        (LINEAR, None),
        (VANILLA, None),
        (INDIVIDUAL, Published("~91", "~55", "~90", "~90")),
        (CLUSTER_5, Published("~91", "~55", "~90", "~90")),
    )
)


def _main_claims(suffix: str = "") -> tuple[Claim, ...]:
    individual, cluster, vanilla = (f"{name}{suffix}" for name in ("individual", "cluster-5", "vanilla"))
    return tuple(
        claim
        for row in (individual, cluster)
        for claim in (is_far_above(row, vanilla), minority_keeps_up(row), unknown_users_fare_alike(row, vanilla))
    )


_ABLATION_CLAIMS = (
    generic_varies_more("alpha-1", "individual"),
    learns_slower("no-e0", "individual"),
    is_below("cluster-2", "cluster-5"),
    is_far_above("one-token", "vanilla"),
)

# one fixed setting each, so that only the user model and alpha differ
_FIXED: dict[str, object] = _LINEAR | {"search.l2": [100.0], "search.user_l2": [10.0], "search.poolings": ["last"]}
_HUGE_PENALTY = 1e5  # shrinks the shared part to 0
USERS = (
    ExperimentRow("head-uniform", "uniform", _FIXED | {"users.kind": "uniform"}),
    ExperimentRow("head-individual", "individual, alpha .5", _FIXED),
    ExperimentRow("head-alpha-1", "individual, alpha 1", _FIXED | {"alpha": 1.0}),
    ExperimentRow("head-alpha-0", "individual, alpha 0", _FIXED | {"alpha": 0.0}),
    ExperimentRow(
        "head-no-common", "individual, alpha 1, e_0 held at 0", _FIXED | {"alpha": 1.0, "search.l2": [_HUGE_PENALTY]}
    ),
    ExperimentRow("head-no-e0", "individual, without e_0, alpha 1", _FIXED | {"users.generic": False, "alpha": 1.0}),
    ExperimentRow(
        "head-no-e0-half",
        "individual, without e_0, alpha .5, half the penalty",
        _FIXED | {"users.generic": False, "search.user_l2": [5.0]},
    ),
    ExperimentRow("head-cluster-2", "cluster, K 2", _FIXED | {"users.kind": "cluster", "users.clusters": 2}),
    ExperimentRow("head-cluster-5", "cluster, K 5", _FIXED | {"users.kind": "cluster", "users.clusters": 5}),
)
_USER_CLAIMS = (
    are_equal("head-alpha-0", "head-uniform", "alpha 0 trains no user's offset"),
    are_equal("head-no-common", "head-no-e0", "o_i alone, whether e_0 is left out or held at 0"),
    are_equal("head-no-e0-half", "head-no-e0", "without e_0 the two terms share nothing, so alpha scales the penalty"),
)

_TEXTS = {"data.tldr.user_texts": True}
_LONGER = {"backbone.max_length": 190}  # for the text before the prompt
TEXT = (
    ExperimentRow("text-linear", "individual and text, linear head, frozen backbone", _LINEAR | _TEXTS, laptop=_LONGER),
    INDIVIDUAL,
    ExperimentRow("text-explicit", "explicit only: uniform, reads the user texts", _UNIFORM | _TEXTS, laptop=_LONGER),
    ExperimentRow("text-both", "both", _TEXTS | {"users.text_dropout": 0.3}, laptop=_LONGER),
)
_TEXT_CLAIMS = (
    unknown_users_gain("text-explicit", "individual"),
    unknown_users_gain("text-both", "individual"),
    is_far_above("text-both", "text-linear"),
)

PSOUPS = (
    ExperimentRow("psoups-individual", "individual"),
    ExperimentRow("psoups-cluster", "cluster, K 3", {"users.kind": "cluster", "users.clusters": 3}),
    ExperimentRow("psoups-uniform", "uniform", {"users.kind": "uniform"}),
)
_BASELINES = ("longest answer", "length sign per user", "uniform, tuned", "users shuffled")
_PSOUPS_CLAIMS = (
    group_beats("psoups-individual", "P1", _BASELINES),
    group_beats("psoups-individual", "P2", ("length sign per user",)),
)

PRISM = (
    ExperimentRow("prism-cluster", "cluster, K 10", {}),
    ExperimentRow("prism-individual", "individual", {"users.kind": "individual"}),
    ExperimentRow("prism-uniform", "uniform, reads the user texts", _UNIFORM),
)

EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        Experiment(
            "table4",
            "Table 4: vanilla and personalised models, ten people",
            "tldr",
            (LINEAR, VANILLA, INDIVIDUAL, CLUSTER_5),
            _main_claims(),
            "prefers",
        ),
        Experiment(
            "table5",
            "Table 5: ablations, ten people",
            "tldr",
            (LINEAR, VANILLA, INDIVIDUAL, CLUSTER_5, *_ABLATIONS),
            _ABLATION_CLAIMS,
            "prefers",
        ),
        Experiment(
            "table6",
            "Table 6: vanilla and personalised models, forty people",
            "tldr",
            _FORTY,
            _main_claims("-40"),
            "prefers",
        ),
        Experiment(
            "figure4",
            "Figure 4: accuracies of all models",
            "tldr",
            (LINEAR, VANILLA, INDIVIDUAL, CLUSTER_5, *_ABLATIONS, *_FORTY),
            _main_claims() + _ABLATION_CLAIMS + _main_claims("-40"),
            "prefers",
        ),
        Experiment(
            "figure5",
            "Figure 5: accuracy over the steps of training",
            "tldr",
            (VANILLA, INDIVIDUAL, CLUSTER_5, *_ABLATIONS),
            _ABLATION_CLAIMS,
            "prefers",
            "curves",
        ),
        Experiment(
            "text",
            "User texts: alone, with implicit embeddings, and for users without comparisons",
            "tldr",
            TEXT,
            _TEXT_CLAIMS,
            "prefers",
        ),
        Experiment("psoups", "P-SOUPS: styles as users", "psoups", PSOUPS, _PSOUPS_CLAIMS, "axis"),
        Experiment("prism", "PRISM: users with a text of their own", "prism", PRISM),
        Experiment(
            "users",
            "User models as linear heads: rows that are equal by construction",
            "tldr",
            USERS,
            _USER_CLAIMS,
            "prefers",
        ),
    )
}
