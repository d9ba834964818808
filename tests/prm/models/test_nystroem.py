"""The RBF kernel before linear heads: by hand, against the whole kernel, through runs, and what is refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.linalg import fractional_matrix_power

import prm.training.linear_heads
from prm.checkpoint.checkpoint import load
from prm.config import DataConfig, RewardModelConfig, SearchConfig, TrainConfig, UserConfig
from prm.data.comparison import Comparison
from prm.errors import CheckpointError, PrmError
from prm.evaluation.evaluate import evaluate
from prm.io.tables import write_jsonl
from prm.models.nystroem import Rbf
from prm.scoring.adapt_run import adapt_run
from prm.scoring.forget_user import forget_user
from prm.scoring.scorer import Scorer
from prm.training.heads.bayes_fit import search_bayes
from prm.training.heads.grid_search import HeadData, head_states, search
from prm.training.heads.objective import margins
from prm.training.heads.user_model_choice import fit_chosen
from prm.training.run import train
from tests.conftest import resign
from tests.planted import opposed_people
from tests.prm.test_features import QUICK, READS, config_of
from tests.prm.training.test_setup import own_score, save_reward_model

ASKED = ("what about the fox?", ["a lazy dog", "seven wizards mix potions", "a king"])


def whole_kernel(a: torch.Tensor, b: torch.Tensor, width: float) -> torch.Tensor:
    """float64, difference by difference."""
    return torch.exp(-(a.double()[:, None] - b.double()[None]).square().sum(-1) / width)


def fitted(states: torch.Tensor, landmarks: int | None = None, seed: int = 0) -> Rbf:
    kernel = Rbf(landmarks or len(states), states.shape[1])
    kernel.fit(states, seed)
    return kernel


def test_three_points_by_hand() -> None:
    """(0, 0), (3, 0), (0, 4): mean (1, 4/3), squares from it 25/9, 52/9 and 73/9, so w = 50/9."""
    states = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    kernel = fitted(states)
    assert float(kernel.width) == pytest.approx(50 / 9)
    phi = kernel(states)
    likeness = [[1.0, exp(-1.62), exp(-2.88)], [exp(-1.62), 1.0, exp(-4.5)], [exp(-2.88), exp(-4.5), 1.0]]
    torch.testing.assert_close(phi @ phi.T, 50 / 9 * torch.tensor(likeness), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_with_all_texts_as_landmarks_it_is_the_kernel(shift: float) -> None:
    """And as long as the states are. Far from 0, squares are large and their differences small."""
    states = torch.randn(150, 20, generator=torch.Generator().manual_seed(0)) + shift
    kernel = fitted(states)
    width = float((states - states.mean(0)).square().sum(1).mean())
    phi = kernel(states).double() / width**0.5
    assert phi.shape == (150, 150)
    torch.testing.assert_close(phi @ phi.T, whole_kernel(states, states, width), rtol=0, atol=1e-5)
    torch.testing.assert_close(kernel(states).square().sum(1).mean(), torch.tensor(width), rtol=1e-4, atol=0)


def test_unseen_texts_follow_the_formula() -> None:
    """sqrt(w) K^(-1/2) k(landmarks, h), the root by SciPy; exact against every landmark."""
    draw = torch.Generator().manual_seed(0)
    states, unseen = torch.randn(40, 6, generator=draw), torch.randn(9, 6, generator=draw)
    kernel = fitted(states)
    width = float(kernel.width)
    root = fractional_matrix_power(whole_kernel(states, states, width).numpy(), -0.5)
    expected = width**0.5 * whole_kernel(unseen, states, width).numpy() @ root
    np.testing.assert_allclose(kernel(unseen).numpy(), expected, atol=2e-4)
    found = kernel(unseen) @ kernel(states).T / width
    torch.testing.assert_close(found.double(), whole_kernel(unseen, states, width), rtol=0, atol=1e-5)
    assert kernel(unseen).square().sum(1).max() <= width
    assert kernel(unseen + 100.0).abs().max() < 1e-6  # like nothing that it knows


def test_texts_that_are_the_same_are_one() -> None:
    states = torch.randn(10, 4, generator=torch.Generator().manual_seed(0)).repeat(3, 1)
    kernel = fitted(states)
    phi = kernel(states).double()
    expected = float(kernel.width) * whole_kernel(states, states, float(kernel.width))
    torch.testing.assert_close(phi @ phi.T, expected, rtol=0, atol=1e-3)
    assert fitted(states[:1])(states).isfinite().all()  # one text alone has no width


def test_landmarks_are_drawn_by_the_seed_and_the_width_is_everybodys() -> None:
    states = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    first, again, other = (fitted(states, 8, seed).landmarks for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len({tuple(row) for row in first.tolist()} & {tuple(row) for row in states.tolist()}) == 8
    assert float(fitted(states, 8).width) == pytest.approx(float((states - states.mean(0)).square().sum(1).mean()))


def test_blocks_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    states = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    kernel = fitted(states, 20)
    whole = kernel(states)
    monkeypatch.setattr("prm.models.nystroem._BLOCK", 60)
    torch.testing.assert_close(kernel(states), whole)
    assert kernel(states[:0]).shape == (0, 20)


def planted(kind: str) -> HeadData:
    """Twelve people who judge points by how far they are from a centre; unless `uniform`, half like far, half near."""
    draw = torch.Generator().manual_seed(0)
    texts, n = torch.randn(120, 3, generator=draw), 1500
    a = torch.randint(120, (n,), generator=draw)
    b = (a + 1 + torch.randint(119, (n,), generator=draw)) % 120
    rows = torch.arange(n) % 12 + 1
    sign = torch.where((rows % 2 == 0) | torch.tensor(kind == "uniform"), 1.0, -1.0)
    far = texts.norm(dim=1)
    first = torch.rand(n, generator=draw) < torch.sigmoid(5.0 * sign * (far[a] - far[b]))
    fold, ones = torch.stack([torch.arange(n) // 12 % 3] * 2, 1), torch.ones(n)
    chosen, rejected = torch.where(first, a, b), torch.where(first, b, a)
    return HeadData({((1, "mean"),): texts}, chosen, rejected, rows, ones, ones, fold)


@pytest.mark.parametrize("kind", ["uniform", "individual", "cluster", "bayes"])
def test_a_taste_that_is_not_linear_is_recovered(kind: Any) -> None:
    data = planted(kind)
    grid = SearchConfig(l2=[0.3], user_l2=[0.3], kernels=["linear", "rbf"])
    config = TrainConfig(alpha=1.0, users=UserConfig(kind, rank=40, clusters=2), search=grid)
    found = search(data, replace(config, users=UserConfig("uniform")), n_rows=1)
    trials = found.trials
    if kind != "uniform":
        kept, trials = (
            search_bayes(data, found, config, 13) if kind == "bayes" else (None, search(data, config, 13).trials)
        )
        assert kept is None or kept.kernel == "rbf"
    linear, rbf = (min((t for t in trials if t.kernel == k), key=lambda t: t.validation_nll) for k in ("linear", "rbf"))
    assert [linear.kernel, rbf.kernel] == ["linear", "rbf"]
    assert linear.validation_accuracy < 0.6
    assert rbf.validation_accuracy > 0.8
    assert rbf.validation_nll < linear.validation_nll - 0.1
    assert rbf.to_dict()["kernel"] == "rbf"
    assert "kernel rbf" in rbf.describe()


def test_a_folds_kernel_knows_its_training_texts_alone() -> None:
    data, config = planted("individual"), TrainConfig()
    ((reading, texts),) = data.features.items()
    train = ((data.chosen < 90) & (data.rejected < 90)).nonzero().squeeze(1)
    before = head_states(data, reading, "rbf", config, train)
    moved = replace(data, features={reading: torch.where(torch.arange(120)[:, None] < 90, texts, 5.0 * texts)})
    after = head_states(moved, reading, "rbf", config, train)
    assert before.shape == (120, 90)
    assert torch.equal(after[:90], before[:90])
    assert not torch.equal(after[90:], before[90:])


RBF = replace(QUICK, kernels=["rbf"])


@pytest.fixture(scope="module")
def folder(backbone_of: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of individual heads on a kernel, and its log."""
    folder = tmp_path_factory.mktemp("rbf")
    train(config_of(backbone_of("llama"), folder, search=RBF))
    return folder


@pytest.mark.parametrize("kind", ["individual", "cluster", "stack"])
def test_the_scorer_gives_what_was_fitted(
    tiny: str, tmp_path: Path, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Margins of the heads as the fast path fitted them; the same through the cache, and again from disk to the bit."""
    kept: list[torch.Tensor] = []

    def fit(data: HeadData, best: Any, config: TrainConfig, n_rows: int, texts: torch.Tensor) -> Any:
        model = fit_chosen(data, best, config, n_rows, texts)
        with torch.no_grad():
            kept.append(margins(model, data.pairs(texts)))
        return model

    monkeypatch.setattr(prm.training.linear_heads, "fit_chosen", fit)
    run = train(config_of(tiny, tmp_path, search=RBF, users=UserConfig(kind, clusters=2)))
    log = [Comparison(**json.loads(line)) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    checkpoint = load(run)
    assert checkpoint.model.kernel is not None
    assert len(checkpoint.model.kernel.landmarks) == checkpoint.model.user_model.dim == 32  # 16 prompts, two answers
    assert float(checkpoint.model.kernel.width) == pytest.approx(32, rel=1e-3)  # of standardised states
    asked = [c.prompt for c in log], [c.chosen for c in log], [c.rejected for c in log], [c.user_id for c in log]
    found = Scorer(checkpoint).margin_batch(*asked)
    torch.testing.assert_close(found, kept[-1], rtol=0, atol=1e-4)
    assert torch.equal(Scorer.from_pretrained(run).margin_batch(*asked), found)
    torch.testing.assert_close(Scorer.from_pretrained(run, cache=True).margin_batch(*asked), found, rtol=0, atol=1e-4)
    assert kept[-1].abs().max() > 0.3


def test_the_search_tries_kernels_for_both_models_and_says_which(
    tiny: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    run = train(config_of(tiny, tmp_path, search=replace(QUICK, kernels=["linear", "rbf"])))
    metrics = json.loads((run / "metrics.json").read_text())
    readings = (["1 mean"], ["2 mean"], ["1 mean", "2 mean"])
    for name, part in (("personal", run), ("uniform", run / "uniform")):
        trials = metrics[name]["trials"]
        tried = [(trial["features"], trial["kernel"]) for trial in trials]
        assert tried == [(reads, kernel) for reads in readings for kernel in ("linear", "rbf")]
        best = metrics[name]["best"]
        assert min(trials, key=lambda trial: trial["validation_nll"]) in best["averaged"]
        config = json.loads((part / "config.json").read_text())
        assert config["reward"]["kernel"] == best["kernel"]
        assert (load(part).model.kernel is not None) == (best["kernel"] == "rbf")
        assert ("kernel rbf" in (part / "README.md").read_text()) == (best["kernel"] == "rbf")
        assert any(m.startswith(name) and f"kernel {best['kernel']}" in m for m in caplog.messages)


@pytest.mark.parametrize("kind", ["individual", "bayes"])
def test_a_kernel_with_readings_that_are_named(tiny: str, tmp_path: Path, kind: Any) -> None:
    """Gone on with, adapted to, forgotten in: the landmarks stay, and nobody else moves by a bit."""
    reward = RewardModelConfig(features=READS, kernel="rbf")
    log = {"prompts": 60} if kind == "bayes" else {}
    run = train(config_of(tiny, tmp_path, reward=reward, users=UserConfig(kind, rank=8), **log))
    before = Scorer.from_pretrained(run)
    kernel: Any = before.model.kernel
    assert kernel is not None
    assert kernel.landmarks.shape[1] == 64
    new = [replace(c, user_id="zoe") for c in opposed_people(12, 5, people=1)]
    write_jsonl(tmp_path / "new.jsonl", new)
    data = DataConfig(path=str(tmp_path / "new.jsonl"))
    following = train(TrainConfig(str(tmp_path / "next"), start_from=str(run), data=data))
    adapt_run(run, new, tmp_path / "adapted")
    for folder in (following, tmp_path / "adapted"):
        after: Any = Scorer.from_pretrained(folder)
        assert all(torch.equal(*pair) for pair in zip(kernel.buffers(), after.model.kernel.buffers(), strict=True))
        for user in ("p0", "p1", None):
            assert torch.equal(before.score(*ASKED, user), after.score(*ASKED, user)), user
        assert not torch.equal(after.score(*ASKED, "zoe"), after.score(*ASKED))
    forget_user(following, "p1")
    after = Scorer.from_pretrained(following)
    assert torch.equal(after.score(*ASKED, "p1"), before.score(*ASKED))
    assert torch.equal(after.score(*ASKED, "p0"), before.score(*ASKED, "p0"))


def test_empirical_bayes_on_a_kernel(tiny: str, tmp_path: Path) -> None:
    """People are recovered, and strangers are the uniform model, averaged or not."""
    reward = RewardModelConfig(features=READS, kernel="rbf")
    run = train(config_of(tiny, tmp_path, prompts=60, reward=reward, users=UserConfig("bayes", rank=16)))
    scorer, uniform = Scorer.from_pretrained(run), Scorer.from_pretrained(run / "uniform")
    assert scorer.model.kernel is not None
    test = opposed_people(30, 1, people=12)
    assert evaluate(scorer, test, uniform).row("personal").accuracy.value > 0.58
    pairs = [c.prompt for c in test], [c.chosen for c in test], [c.rejected for c in test], [None] * len(test)
    integrated = scorer.margin_batch(*pairs)
    generic = scorer.score_batch(*pairs[:2], pairs[3]) - scorer.score_batch(pairs[0], *pairs[2:])
    torch.testing.assert_close(integrated, generic, atol=1e-4, rtol=0)
    torch.testing.assert_close(integrated, uniform.margin_batch(*pairs), atol=5e-3, rtol=0)
    rewards, std = scorer.score(*ASKED, "p0", return_std=True)
    torch.testing.assert_close(rewards, scorer.score(*ASKED, "p0"), atol=1e-4, rtol=0)
    assert (std > 0).all()
    assert scorer.gains(*ASKED, "p0").std.count_nonzero() == 2  # the pick against itself is sure


def test_a_reward_model_keeps_its_scores_under_a_kernel(tmp_path: Path) -> None:
    """Its head reads h as it is; with penalties that leave people nothing to add, its own scores are left."""
    backbone = save_reward_model(tmp_path / "rm", "llama")
    search = replace(RBF, l2=[1e9], user_l2=[1e9], poolings=["last"])
    scorer = Scorer.from_pretrained(train(config_of(backbone, tmp_path, search=search)))
    assert scorer.model.kernel is not None
    found = scorer.score(*ASKED, "p0")
    own = torch.tensor([own_score(backbone, ASKED[0], response) for response in ASKED[1]])
    torch.testing.assert_close(found - found[0], own - own[0], rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"train": "lora", "reward": RewardModelConfig(features=READS, kernel="rbf")}, r"'reward\.kernel'.*frozen"),
        ({"train": "full", "reward": RewardModelConfig(features=READS, kernel="rbf")}, r"'reward\.kernel'.*frozen"),
        ({"reward": RewardModelConfig("soft_prompt", kernel="rbf")}, r"'reward\.kernel'.*linear heads"),
        ({"train": "lora", "search": RBF}, r"'search\.kernels'.*frozen"),
        ({"reward": RewardModelConfig("soft_prompt"), "search": RBF}, r"'search\.kernels'.*linear heads"),
        ({"reward": RewardModelConfig(kernel="rbf")}, r"'reward\.kernel'.*'search\.kernels'"),
        ({"reward": RewardModelConfig(features=READS), "search": RBF}, r"'search\.kernels'.*'reward\.kernel'"),
    ],
)
def test_kernels_that_make_no_sense(tiny: str, tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    with pytest.raises(PrmError, match=key):
        train(config_of(tiny, tmp_path, **changes))
    assert not (tmp_path / "run").exists()


def test_another_kernel_than_the_runs_is_refused(folder: Path, tmp_path: Path) -> None:
    data = DataConfig(path=str(folder / "log.jsonl"))
    linear = train(config_of(str(load(folder / "run").settings.backbone.name), tmp_path))
    config = TrainConfig(
        str(tmp_path / "next"), start_from=str(linear), data=data, reward=RewardModelConfig(kernel="rbf")
    )
    with pytest.raises(PrmError, match=r"'reward\.kernel'.*'rbf'.*'linear'"):
        train(config)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"landmarks": 31}, r"model\.safetensors: .* has shape \[.*32.*\], expected \[.*31.*\]"),
        ({"landmarks": 0}, r"config\.json is damaged: a kernel 'rbf' with landmarks 0"),
        ({"landmarks": True}, r"config\.json is damaged: 'landmarks' must be a whole number"),
        ({"landmarks": 10**12}, r"config\.json is damaged: a kernel"),
        ({"reward": "linear"}, r"config\.json is damaged: a kernel 'linear' with landmarks 32"),
        (
            {"weights": {"kernel.whitening": torch.zeros(32, 3)}},
            r"kernel\.whitening has shape \[32, 3\], expected \[32, 32\]",
        ),
        (
            {"weights": {"kernel.landmarks": torch.zeros(32, 3)}},
            r"kernel\.landmarks has shape \[32, 3\], expected \[32, 32\]",
        ),
        ({"weights": None}, r"model\.safetensors: 3 tensors are missing \(kernel\."),
    ],
    ids=str,
)
def test_a_damaged_kernel_is_refused(folder: Path, tmp_path: Path, damage: dict[str, Any], message: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    config = json.loads((run / "config.json").read_text())
    config["landmarks"] = damage.get("landmarks", 32)
    config["reward"]["kernel"] = damage.get("reward", "rbf")
    (run / "config.json").write_text(json.dumps(config))
    if "weights" in damage:
        state = load_file(run / "model.safetensors")
        changed = damage["weights"]
        kept = {k: v for k, v in state.items() if changed is not None or not k.startswith("kernel.")}
        save_file(kept | (changed or {}), run / "model.safetensors")
    resign(run)
    with pytest.raises(CheckpointError, match=message):
        Scorer.from_pretrained(run)
