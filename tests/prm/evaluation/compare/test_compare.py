"""User models side by side: planted people are followed, agreement gains nothing, no held-out label chooses."""

import json
import random
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from prm.config import DataConfig, SearchConfig, TrainConfig
from prm.data.baselines import length_margins, length_votes
from prm.data.comparison import Comparison
from prm.data.text_counts import text_counts
from prm.errors import PrmError
from prm.evaluation.compare.config import CompareModelsConfig
from prm.evaluation.compare.contenders import Task, contenders
from prm.evaluation.compare.parts import _new_users, part_file
from prm.evaluation.compare.problem import COUNTS, Problem, folds_to_hold_out, take
from prm.evaluation.compare.recipe import recipe
from prm.evaluation.compare.rules import LengthFit
from prm.evaluation.compare.run import Finished, run_models
from prm.evaluation.compare.summary import BEST_PERSONAL, Comparisons, _follows, _Held, summarise
from prm.evaluation.compare.verdict import verdict_on
from prm.io.tensors import write_tensors
from prm.io.yaml_settings import read_train_config
from prm.metrics import Estimate
from prm.training.heads.grid_search import HeadData, Search, search
from prm.users.index import UserIndex

PEOPLE, TEXTS, PARTS, EACH = 12, 60, 2, 40
ONE, OTHER = ((1, "mean"),), ((2, "mean"),)


def config_of(folder: Path, **changes: object) -> CompareModelsConfig:
    search = SearchConfig(folds=2, l2=[1.0, 10.0], user_l2=[1.0, 10.0])
    base = CompareModelsConfig(
        output_dir=str(folder), folds=PARTS, after=[0, 5], data=DataConfig("x.jsonl"), search=search
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def problem_of(differ: float, each: int = EACH, seed: int = 0, people: int = PEOPLE) -> Problem:
    """People who share a taste and each have one of their own by `differ`, over texts that are random numbers."""
    draw = torch.Generator().manual_seed(seed)
    n = people * each
    first = torch.randn(TEXTS, 4, generator=draw)
    a = torch.randint(TEXTS, (n,), generator=draw)
    b = (a + 1 + torch.randint(TEXTS - 1, (n,), generator=draw)) % TEXTS
    rows = torch.arange(n) % people + 1
    camp = torch.where(rows % 2 == 0, differ, -differ)
    z = first[a] - first[b]
    yes = torch.rand(n, generator=draw) < torch.sigmoid(z[:, 0] + camp * z[:, 1])
    chosen, rejected = torch.where(yes, a, b), torch.where(yes, b, a)
    words = [" ".join(["word"] * (i % 7 + 1) + [str(i)]) for i in range(TEXTS)]
    log = [
        Comparison(f"p{r}", f"question {i}", words[c], words[d])
        for i, (r, c, d) in enumerate(zip(rows.tolist(), chosen.tolist(), rejected.tolist(), strict=True))
    ]
    fold = torch.arange(n) // people % PARTS
    features = {
        ONE: first,
        OTHER: torch.randn(TEXTS, 4, generator=draw),
        COUNTS: torch.from_numpy(text_counts(words)).float(),
    }
    ones = torch.ones(n)
    data = HeadData(features, chosen, rejected, rows, ones, ones, torch.stack([fold, fold], 1))
    lengths = torch.tensor([float(len(text.split())) for text in words])
    half, group = torch.arange(people + 1) % 3 == 1, torch.arange(people + 1) // 2 % PARTS  # of both camps
    return Problem(log, UserIndex.from_comparisons(log), data, lengths, half, group, torch.arange(n) // people)


@pytest.fixture(scope="module")
def differing(tmp_path_factory: pytest.TempPathFactory) -> tuple[Finished, Comparisons]:
    finished = run_models(config_of(tmp_path_factory.mktemp("differ")), problem_of(2.0))
    return finished, summarise(finished, [0, 5])


@pytest.fixture(scope="module")
def agreeing(tmp_path_factory: pytest.TempPathFactory) -> tuple[Finished, Comparisons]:
    models = ["uniform", "uniform_kernel", "length_sign", "individual", "bayes", "stack"]
    finished = run_models(config_of(tmp_path_factory.mktemp("agree"), models=models), problem_of(0.0))
    return finished, summarise(finished, [0, 5])


@pytest.mark.parametrize("name", ["individual", "cluster", "low_rank", "bayes", "stack", BEST_PERSONAL])
def test_planted_users_are_distinguished(differing: tuple[Finished, Comparisons], name: str) -> None:
    """Every personal model gains on them, and follows those whose labels are reversed; new people gain, too."""
    _, result = differing
    row = result.row(name)
    assert row.gains is not None
    assert row.follows is not None
    assert row.gains.points.low > 0.05
    assert row.gains.nats.low > 0.03
    assert row.follows.low > 0.1
    before, after = (step.accuracy[name].value for step in result.new_users)
    assert after > before + 0.03


def test_models_without_users_follow_nobody(differing: tuple[Finished, Comparisons]) -> None:
    _, result = differing
    for name in ("uniform", "uniform_kernel", "rules"):
        assert result.row(name).follows == Estimate(0.0, 0.0, 0.0)
    assert result.row("uniform").accuracy.value > 0.6


def test_who_is_followed_by_hand() -> None:
    """Rows 1 to 3; row 2's labels are reversed; row 3 has a tie, and a comparison without others in training.

    Own margins are right, as trained, for 2 of 2, 2 of 3 and 1 of 1, the unknown person's for 1, 2 and 0.5: 5 less 3.5
    of 6.
    """
    held = _Held(
        p=np.array([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 1.0]),
        users=np.array([1, 1, 2, 2, 2, 3, 3, 3]),
        count=np.array([5, 5, 5, 5, 5, 5, 5, 0]),
        reversed=np.array([False, False, True, True, True, False, False, False]),
        part=np.zeros(8, np.int64),
    )
    own = np.array([2.0, 1.0, -1.0, -2.0, 1.0, 1.0, -3.0, 9.0])
    unknown = np.array([1.0, -1.0, -1.0, 1.0, -1.0, 0.0, 3.0, -9.0])
    follows = _follows(own, unknown, held)
    assert follows is not None
    assert follows.value == pytest.approx(1.5 / 6)
    nobody = replace(held, reversed=np.zeros(8, np.bool_))
    assert _follows(own, unknown, nobody) is None


def test_the_verdict_names_a_personal_model_and_its_settings_train(
    differing: tuple[Finished, Comparisons], tmp_path: Path
) -> None:
    finished, result = differing
    verdict = verdict_on(result)
    assert verdict.state == "better"
    assert verdict.train in result.winners
    for name in CompareModelsConfig().names:
        if name in ("rules", "length_sign"):
            continue
        settings = [part.record.settings for part in finished.results[name]]
        path = tmp_path / f"{name}.yaml"
        path.write_text(recipe(config_of(tmp_path), name, settings))
        config = read_train_config(path)
        config.check()
        assert config.users.kind == {"uniform_kernel": "uniform"}.get(name, name)
        assert config.data.path == "x.jsonl"
        assert config != TrainConfig()


def test_settings_are_those_of_most_parts(tmp_path: Path) -> None:
    parts = [
        {"features": ["2 mean"], "alpha": alpha, "l2": l2, "user_l2": 3.0001, "clusters": 4}
        for alpha, l2 in ((1.0, 10.0), (0.5, 100.0), (1.0, 10.0))
    ]
    path = tmp_path / "cluster.yaml"
    path.write_text(recipe(config_of(tmp_path), "cluster", parts))
    config = read_train_config(path)
    assert (config.alpha, config.users.clusters, config.reward.features) == (1.0, 4, ["2 mean"])
    assert (config.search.l2, config.search.user_l2) == ([10.0, 100.0], [3.0])


def test_people_who_agree_gain_nothing(agreeing: tuple[Finished, Comparisons]) -> None:
    _, result = agreeing
    verdict = verdict_on(result)
    assert verdict.state in ("no better", "worse")
    assert verdict.train in ("uniform", "uniform_kernel")
    stack = result.row("stack")
    assert stack.gains is not None
    assert stack.gains.nats.value > -0.005
    for settings in stack.settings:
        assert max(settings["weights"]) < 0.3


def test_every_comparison_is_held_out_once_from_all_models(differing: tuple[Finished, Comparisons]) -> None:
    finished, result = differing
    held_out = torch.cat([fold.test for fold in finished.folds])
    assert sorted(held_out.tolist()) == list(range(PEOPLE * EACH))
    for fold in finished.folds:
        assert not set(fold.train.tolist()) & set(fold.test.tolist())
        assert fold.inner.shape == (len(fold.train), 2)
    for parts in finished.results.values():
        assert [len(part.margin) for part in parts] == [len(fold.test) for fold in finished.folds]
    assert result.held_out == PEOPLE * EACH


def test_new_people_are_learnt_from_their_first_comparisons_alone() -> None:
    """They are not in the fit; after k comparisons each, they are fitted to k, the first by the problem's order."""
    seen: list[HeadData] = []

    class Recorder:
        margin, validation_nll, tried = torch.zeros(0), 0.0, 1

        def fit(self, data: HeadData) -> "Recorder":
            seen.append(data)
            return self

        with_new_users = fit

        def margins(self, data: HeadData) -> torch.Tensor:
            return torch.ones(len(data.rows))

        def to_dict(self) -> dict[str, object]:
            return {}

    problem = problem_of(1.0)
    fold = folds_to_hold_out(problem, config_of(Path()))[1]
    found = _new_users(problem, fold, Recorder(), [0, 3, 1000])
    population, first = seen
    assert not set(population.rows.tolist()) & set(fold.new_rows.tolist())
    assert len(population.rows) == len(fold.train) // 2
    assert torch.bincount(first.rows)[fold.new_rows].tolist() == [3] * len(fold.new_rows)
    for row in fold.new_rows.tolist():
        theirs = fold.train[problem.data.rows[fold.train] == row]
        earliest = theirs[problem.order[theirs].argsort()[:3]]
        assert sorted(first.chosen[first.rows == row].tolist()) == sorted(problem.data.chosen[earliest].tolist())
    is_new = torch.isin(problem.data.rows[fold.test], fold.new_rows)
    assert torch.equal(~found.isnan(), torch.stack([is_new, is_new, torch.zeros_like(is_new)]))


@pytest.mark.parametrize("name", ["uniform", "length_sign", "individual", "low_rank", "bayes", "stack"])
def test_no_held_out_label_chooses_settings(name: str, tmp_path: Path) -> None:
    """The choice of the first part is the same when the labels of its held-out comparisons are reversed."""
    problem, config = problem_of(1.0, each=30), config_of(tmp_path)
    fold = folds_to_hold_out(problem, config)[0]
    p = problem.data.p_chosen.clone()
    p[fold.test] = 0.0
    other = replace(problem, data=replace(problem.data, p_chosen=p))
    choices = [contenders()[name](Task(each, fold, config.train_config())) for each in (problem, other)]  # type: ignore[index]
    settings = [json.dumps({**choice.to_dict(), "averaged": None}) for choice in choices]
    assert settings[0] == settings[1]
    torch.testing.assert_close(choices[0].margin, choices[1].margin, equal_nan=True)


def test_fits_side_by_side_share_searches_and_come_out_as_one_after_another(
    differing: tuple[Finished, Comparisons], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searches = []

    def counted(data: HeadData, config: TrainConfig, n_rows: int) -> Search:
        searches.append(config.kernels)
        return search(data, config, n_rows)

    monkeypatch.setattr("prm.evaluation.compare.contenders.search", counted)
    models = ["stack", "bayes", "uniform", "uniform_kernel"]
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        beside = run_models(config_of(tmp_path, models=models), problem_of(2.0))
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(threads)
    assert sorted(searches) == [["linear"]] * PARTS + [["rbf"]] * PARTS
    for name in models:
        for one, other in zip(beside.results[name], differing[0].results[name], strict=True):
            torch.testing.assert_close(one.margin, other.margin, rtol=0.0, atol=1e-4)


def test_a_resumed_comparison_is_the_uninterrupted_one(tmp_path: Path) -> None:
    """Some results are missing, one is cut off, one lacks the losses by fold: they are computed again, to the bit."""
    problem = problem_of(1.0, each=20)
    config = config_of(tmp_path / "one", models=["uniform", "individual", "stack"])
    whole = run_models(config, problem)
    for fold in whole.folds[1:]:
        part_file(tmp_path / "one", fold, "stack").unlink()
    broken = part_file(tmp_path / "one", whole.folds[0], "individual")
    broken.write_bytes(broken.read_bytes()[:100])
    older = part_file(tmp_path / "one", whole.folds[1], "uniform")
    record = asdict(whole.results["uniform"][1].record)
    by_fold = record.pop("validation_nll_by_fold")
    assert min(by_fold) < record["validation_nll"] < max(by_fold)
    write_tensors(older, load_file(older), {"record": json.dumps(record)})
    again = run_models(config, problem)
    assert again.results["uniform"][1].record.validation_nll_by_fold == by_fold
    for name, parts in whole.results.items():
        for part, other in zip(parts, again.results[name], strict=True):
            for field in ("margin", "reversed", "reversed_generic", "new"):
                torch.testing.assert_close(getattr(part, field), getattr(other, field), atol=0, rtol=0, equal_nan=True)
    times = [file.stat().st_mtime_ns for file in sorted((tmp_path / "one/parts").iterdir())]
    run_models(config, problem)
    assert times == [file.stat().st_mtime_ns for file in sorted((tmp_path / "one/parts").iterdir())]


def test_settings_that_make_no_comparison_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PrmError, match=r"data\.holdout_by"):
        config_of(tmp_path, data=DataConfig("x", holdout_by="user")).check()
    with pytest.raises(PrmError, match=r"search\.folds"):
        config_of(tmp_path, search=SearchConfig(folds=1)).check()
    with pytest.raises(PrmError, match="models"):
        config_of(tmp_path, models=["indvidual"])


def test_the_length_rule_is_that_of_an_evaluation() -> None:
    """The same probabilities from the same comparisons at the same weight; user 3 has none."""
    draw = random.Random(0)
    texts = ["w " * draw.randint(1, 6) + str(i) for i in range(30)]
    pairs = [draw.sample(range(30), 2) for _ in range(61)]
    rows = [(draw.randrange(3), a, b, draw.choice([1.0, 0.7, 0.5])) for a, b in pairs[:60]]
    rows.append((3, pairs[60][0], pairs[60][1], 1.0))
    user, chosen, rejected = torch.tensor([row[:3] for row in rows]).T
    p = torch.tensor([row[3] for row in rows])
    data = HeadData({}, chosen, rejected, user, p, torch.ones(61), torch.zeros(61, 2, dtype=torch.int64))
    log = [Comparison(f"u{u}", "q", texts[a], texts[b], p_chosen=w) for u, a, b, w in rows]
    words = torch.tensor([len(text.split()) for text in texts])
    fit = LengthFit.of(take(data, torch.arange(60)), words, 3.0)
    expected = length_margins(log, length_votes(log[:60]), 3.0)
    assert fit.margins(data).tolist() == pytest.approx(expected.tolist(), abs=1e-5)
