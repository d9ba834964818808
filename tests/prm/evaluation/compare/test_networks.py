"""Networks of `prm compare`: planted people are found and new ones learnt, and nobody is taken for somebody else."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prm.evaluation.compare import contenders as compared
from prm.evaluation.compare.amortised import AmortisedFit
from prm.evaluation.compare.config import NETWORKS, Name
from prm.evaluation.compare.contenders import Choice, Fitted, Task, contenders
from prm.evaluation.compare.mlp import MlpFit
from prm.evaluation.compare.problem import Fold, Problem, folds_to_hold_out, take
from prm.evaluation.compare.run import run_models
from prm.evaluation.compare.summary import Gains, summarise
from prm.evaluation.compare.verdict import verdict_on
from prm.metrics import Estimate
from prm.training.heads.grid_search import HeadData
from tests.prm.evaluation.compare.test_compare import ONE, config_of, problem_of

PEOPLE = 40


@pytest.fixture(scope="module", autouse=True)
def one_setting_each() -> Iterator[None]:
    """Instead of a grid, which takes a minute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compared, "_MLP_GRID", [(32, 0.2, 1.0)])
        patch.setattr(compared, "_AMORTISED_GRID", [(16, 1.0)])
        yield


@pytest.fixture(scope="module")
def problem() -> Problem:
    """Two camps of 20, who differ along one direction and share another."""
    return problem_of(3.0, people=PEOPLE)


@pytest.fixture(scope="module")
def fold(problem: Problem) -> Fold:
    return folds_to_hold_out(problem, config_of(Path()))[0]


@pytest.fixture(scope="module")
def choices(problem: Problem, fold: Fold) -> dict[Name, Choice]:
    task = Task(problem, fold, config_of(Path()).train_config())
    return {name: contenders()[name](task) for name in ("uniform", *NETWORKS)}


@pytest.fixture(scope="module")
def fits(problem: Problem, fold: Fold, choices: dict[Name, Choice]) -> dict[Name, Fitted]:
    """Fitted without the last four people."""
    data = problem.of(fold.train)
    return {name: choice.fit(take(data, (data.rows <= PEOPLE - 4).nonzero()[:, 0])) for name, choice in choices.items()}


def right(model: Fitted, data: HeadData) -> float:
    return float((model.margins(data) > 0).float().mean())


def of_rows(data: HeadData, low: int, high: int) -> HeadData:
    return take(data, ((data.rows >= low) & (data.rows <= high)).nonzero()[:, 0])


@pytest.mark.parametrize("name", NETWORKS)
def test_planted_people_are_found_and_new_ones_learnt(
    problem: Problem, fold: Fold, fits: dict[Name, Fitted], name: Name
) -> None:
    test, train = problem.of(fold.test), problem.of(fold.train)
    known, new = of_rows(test, 1, PEOPLE - 4), of_rows(test, PEOPLE - 3, PEOPLE)
    model, uniform = fits[name], fits["uniform"]
    assert right(model, known) > right(uniform, known) + 0.15
    first = of_rows(train, PEOPLE - 3, PEOPLE)
    assert torch.bincount(first.rows)[-4:].tolist() == [20] * 4
    learnt = model.with_new_users(first)
    assert right(learnt, new) > right(model, new) + 0.15
    assert torch.equal(learnt.margins(known), model.margins(known))


@pytest.mark.parametrize("name", NETWORKS)
def test_somebody_unknown_is_the_generic_user_to_the_bit(
    problem: Problem, fold: Fold, fits: dict[Name, Fitted], name: Name
) -> None:
    new = of_rows(problem.of(fold.test), PEOPLE - 3, PEOPLE)
    model = fits[name]
    assert isinstance(model, MlpFit | AmortisedFit)
    generic = model.generic(new)
    assert generic.abs().min() > 0.0
    assert torch.equal(model.margins(new), generic)
    assert torch.equal(model.margins(replace(new, rows=torch.zeros_like(new.rows))), generic)


def test_the_order_of_comparisons_makes_no_difference(problem: Problem, fold: Fold, fits: dict[Name, Fitted]) -> None:
    new = of_rows(problem.of(fold.test), PEOPLE - 3, PEOPLE)
    first = of_rows(problem.of(fold.train), PEOPLE - 3, PEOPLE)
    shuffled = take(first, torch.randperm(len(first.rows), generator=torch.Generator().manual_seed(0)))
    learnt = [fits["amortised"].with_new_users(data).margins(new) for data in (first, shuffled)]
    torch.testing.assert_close(*learnt)


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_count_and_a_swapped_comparison_is_the_same(
    problem: Problem, fold: Fold, fits: dict[Name, Fitted], name: Name
) -> None:
    """Weight 2 is two comparisons; a label of 0.8 is one of 0.2 with the texts swapped; 0.8 says less than 1."""
    new = of_rows(problem.of(fold.test), PEOPLE - 3, PEOPLE)
    first = of_rows(problem.of(fold.train), PEOPLE - 3, PEOPLE)
    soft = replace(first, p_chosen=torch.full_like(first.p_chosen, 0.8))
    swapped = replace(soft, chosen=soft.rejected, rejected=soft.chosen, p_chosen=1.0 - soft.p_chosen)
    twice = take(soft, torch.arange(len(soft.rows)).repeat(2))
    double = replace(soft, weight=2.0 * soft.weight)
    hard, plain, same, two, heavy = (
        fits[name].with_new_users(data).margins(new) for data in (first, soft, swapped, twice, double)
    )
    assert (plain - same).abs().max() < 0.01  # Newton's method ends at 0.001
    assert (two - heavy).abs().max() < 0.01
    assert (heavy - plain).abs().max() > 0.1
    assert (hard - plain).abs().max() > 0.1


@pytest.mark.parametrize("name", NETWORKS)
def test_base_rewards_that_say_everything_leave_nothing_to_learn(problem: Problem, fold: Fold, name: Name) -> None:
    """Labels are drawn from the base rewards: margins are near theirs, neither nothing nor twice as much."""
    data = problem.data
    base = 2.0 * data.features[ONE][:, 0]
    truth = base[data.chosen] - base[data.rejected]
    draw = torch.rand(len(truth), generator=torch.Generator().manual_seed(1))
    labels = (draw < torch.sigmoid(truth)).float()
    with_base = replace(problem, data=replace(data, base=base, p_chosen=labels))
    choice = contenders()[name](Task(with_base, fold, config_of(Path()).train_config()))
    model, test = choice.fit(with_base.of(fold.train)), with_base.of(fold.test)
    assert isinstance(model, MlpFit | AmortisedFit)
    for margin in (model.margins(test), model.generic(test)):
        assert (margin - truth[fold.test]).abs().mean() < 0.25 * truth.abs().mean()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_comparisons_give_the_same_network(
    problem: Problem, fold: Fold, choices: dict[Name, Choice], name: Name
) -> None:
    """To the bit, whatever was drawn elsewhere."""
    data, test = problem.of(fold.train), problem.of(fold.test)
    torch.manual_seed(1)
    first = choices[name].fit(data).margins(test)
    torch.manual_seed(2)
    assert torch.equal(choices[name].fit(data).margins(test), first)


@pytest.mark.parametrize("name", NETWORKS)
def test_coin_flips_are_not_predicted(problem: Problem, fold: Fold, name: Name) -> None:
    """The choice is scored on comparisons that neither fitted nor chose it: 0.69 nats a flip, or more."""
    flips = torch.rand(len(problem.data.rows), generator=torch.Generator().manual_seed(2)).round()
    coins = replace(problem, data=replace(problem.data, p_chosen=flips))
    choice = contenders()[name](Task(coins, fold, config_of(Path()).train_config()))
    assert choice.validation_nll > 0.68


def test_a_network_that_wins_is_named_and_another_model_trained(tmp_path: Path) -> None:
    """The flip test works for networks, too."""
    config = config_of(tmp_path, models=["low_rank", *NETWORKS])
    result = summarise(run_models(config, problem_of(3.0, people=20, each=30)), config.after)
    for name in NETWORKS:
        follows = result.row(name).follows
        assert follows is not None
        assert follows.low > 0.05
    won = replace(result, winners={"mlp": 2})
    verdict = verdict_on(won)
    assert (verdict.state, verdict.train) == ("better", "low_rank")
    assert any("mlp" in sentence for sentence in verdict.says)
    nothing = Gains(*[Estimate(0.0, -1.0, 1.0)] * 4)
    rows = [replace(row, gains=nothing) if row.name == "low_rank" else row for row in won.rows]
    assert verdict_on(replace(won, rows=rows)).train == "uniform"
