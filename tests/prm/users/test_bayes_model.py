"""Compact posteriors: worked by hand, against posteriors with all columns, and what rows do."""

from math import pi, sqrt

import pytest
import torch
from torch import Tensor

from prm.errors import PrmError
from prm.training.heads.bayes_fit import continue_bayes, finish_bayes
from prm.training.heads.objective import PairFeatures
from prm.users import bayes_model
from prm.users.bayes.posterior import Posterior, PosteriorData, conditional_margins, fewest_columns, updated
from prm.users.bayes.prior import population
from prm.users.bayes.quadrature import Normal, inflated, information, integrated
from prm.users.bayes_model import Bayes
from tests.prm.users.bayes.dense import covariances, fit_posterior, variances

EVERY = torch.arange(9)
NO_FACTOR = torch.zeros(1, 2, 0)


@pytest.fixture
def all_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Posteriors lose no more than rounding does."""
    monkeypatch.setattr(bayes_model, "LEFT_OUT", 0.0)


def model_of(n_rows: int, prior: Tensor, moment: Tensor | None = None, dim: int = 0) -> Bayes:
    model, draw = Bayes(n_rows, 1, dim or len(prior), len(prior)), torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.basis.copy_(torch.linalg.qr(torch.randn(model.dim, len(prior), generator=draw))[0])
        model.generic.normal_(std=0.1, generator=draw)
        model.moment.copy_(torch.eye(len(prior)) if moment is None else moment)
    model.set_prior(prior)
    with torch.no_grad():
        model.flatness.fill_(float(model.flatness[0]))
    return model


def factor_of(*columns: list[float]) -> Tensor:
    return torch.tensor(columns).T[None]


@pytest.mark.parametrize(
    ("columns", "moment", "budget", "most", "kept"),
    [
        # reductions of 1 and 0.16: the second one may be left out, or not
        ([[0.0, 0.4], [1.0, 0.0]], [1.0, 1.0], 0.17, 64, [[1.0, 0.0]]),
        ([[0.0, 0.4], [1.0, 0.0]], [1.0, 1.0], 0.15, 64, [[1.0, 0.0], [0.0, 0.4]]),
        # the same direction twice is one column, of length 5 sqrt(1 + 1/4)
        ([[3.0, 4.0], [1.5, 2.0]], [1.0, 1.0], 1e-3, 64, [[3.0 * sqrt(1.25), 4.0 * sqrt(1.25)]]),
        # a short column that pairs differ in counts for more than a long one in which they do not
        ([[0.0, 3.0], [1.0, 0.0]], [1.0, 0.01], 0.1, 64, [[1.0, 0.0]]),
        # no more than one, whatever is lost
        ([[0.0, 2.0], [3.0, 0.0]], [1.0, 1.0], 0.0, 1, [[3.0, 0.0]]),
        # nothing is known, or everything may be left out
        ([[0.0, 0.0], [0.0, 0.0]], [1.0, 1.0], 0.0, 64, []),
        ([[0.0, 0.4], [1.0, 0.0]], [1.0, 1.0], 1.17, 64, []),
    ],
)
def test_the_columns_that_are_kept_by_hand(
    columns: list[list[float]], moment: list[float], budget: float, most: int, kept: list[list[float]]
) -> None:
    found, count, reduction = fewest_columns(
        factor_of(*columns), torch.diag(torch.tensor(moment)), torch.tensor([budget]), most
    )
    torch.testing.assert_close(found.abs(), torch.tensor(kept).view(-1, 2), atol=1e-5, rtol=0)
    assert count.tolist() == [len(kept)]
    whole = sum(m * x * x for column in columns for m, x in zip(moment, column, strict=True))
    assert float(reduction) == pytest.approx(whole, abs=1e-5)


def test_as_few_columns_as_can_be_and_never_too_narrow() -> None:
    """Every other rotation of as many columns leaves out more; what stays of the prior is a covariance."""
    draw = torch.Generator().manual_seed(0)
    factor, root = torch.randn(5, 6, 4, generator=draw), torch.randn(6, 6, generator=draw)
    moment, budget = root @ root.T / 6, torch.linspace(0.5, 9.0, 5)
    columns, count, reduction = fewest_columns(factor, moment, budget, 64)
    assert sorted(set(count.tolist())) != [4]
    for one, kept, loss in zip(factor, columns.split(count.tolist()), budget, strict=True):
        left = one @ one.T - kept.T @ kept
        assert float(torch.linalg.eigvalsh(left).min()) > -1e-5
        assert float((left * moment).sum()) <= float(loss) + 1e-4
        half = torch.linalg.cholesky(moment).T @ one  # the best by the theorem of Eckart and Young
        fewer = torch.linalg.svdvals(half).square()[max(0, len(kept) - 1) :].sum()
        assert len(kept) == 0 or float(fewer) > float(loss)
    torch.testing.assert_close(reduction, torch.einsum("mik,ij,mjk->m", factor, moment, factor))


def test_a_truncated_posterior_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prior variance of 4 + 2, of which 0.18 may be left out: 0.16 are, and then only 0.02 more."""
    monkeypatch.setattr(bayes_model, "LEFT_OUT", 0.03)
    model, row = model_of(3, torch.diag(torch.tensor([4.0, 2.0]))), torch.tensor([1])
    model.set_posterior(row, Posterior(torch.tensor([[0.5, 1.0]]), factor_of([0.0, 0.4], [1.0, 0.0])))
    assert model.factors.of(row)[0].abs().tolist() == [[1.0, 0.0]]
    assert float(model.left_out(row)) == pytest.approx(0.16, abs=1e-5)
    assert float(model.flatness[1]) == pytest.approx(sqrt(1 + pi / 8 * (6 - 1.16)))  # of all that is known
    states = torch.eye(2) @ model.basis.T
    expected = torch.tensor([3.0, 2.0]).sqrt() / model.flatness[1]  # 2 - 0.16 with all columns: too wide, by that
    torch.testing.assert_close(model.deviations(states, row.expand(2)), expected)
    assert model.share_known(row).item() == pytest.approx(1.16 / 6)
    more = torch.cat([model.posterior(row).factor, torch.tensor([[[0.0], [0.2]]])], 2)
    model.set_posterior(row, Posterior(model.means[row], more), model.left_out(row))
    assert model.factors.count.tolist() == [0, 2, 0]  # another 0.04 are too much
    assert float(model.left_out(row)) == pytest.approx(0.16, abs=1e-5)
    more = torch.cat([model.posterior(row).factor, torch.tensor([[[0.0], [0.1]]])], 2)
    model.set_posterior(row, Posterior(model.means[row], more), model.left_out(row))
    assert model.factors.count.tolist() == [0, 2, 0]  # 0.2^2 + 0.1^2, in one direction
    assert float(model.flatness[1]) == pytest.approx(sqrt(1 + pi / 8 * (6 - 1.21)))
    assert model.factors.of(torch.tensor([0, 2]))[0].shape == (0, 2)


def texts_and_pairs(model: Bayes, people: Tensor, seed: int = 0) -> PairFeatures:
    """A comparison for each of `people`, of 40 texts."""
    draw = torch.Generator().manual_seed(seed)
    texts, n = torch.randn(40, model.dim, generator=draw), len(people)
    chosen = torch.randint(40, (n,), generator=draw)
    rejected = (chosen + torch.randint(1, 40, (n,), generator=draw)) % 40
    weight = 0.5 + torch.rand(n, generator=draw)
    return PairFeatures(texts, chosen, rejected, people, (torch.rand(n, generator=draw) < 0.8).float(), weight, None)


def log_of(model: Bayes, pairs: PairFeatures) -> PosteriorData:
    margin = (pairs.texts[pairs.chosen] - pairs.texts[pairs.rejected]) @ model.generic[0]
    z = pairs.texts @ model.basis
    return PosteriorData(z, pairs.chosen, pairs.rejected, pairs.rows, pairs.p_chosen, pairs.weight, margin)


def fitted(n_rows: int = 9, each: int = 7, rank: int = 5) -> tuple[Bayes, PairFeatures]:
    """Users 2 and up have comparisons, the more the higher their row."""
    root = torch.randn(rank, rank, generator=torch.Generator().manual_seed(1))
    model = model_of(n_rows, 0.4 * root @ root.T + 0.1 * torch.eye(rank), dim=rank + 2)
    people = torch.cat([torch.full((min(row, each),), row) for row in range(2, n_rows)])
    pairs = texts_and_pairs(model, people)
    with torch.no_grad():
        z = log_of(model, pairs).differences()
        model.moment.copy_(z.T @ z / len(z))
    model.set_prior(model.prior.clone())
    model.flatness.fill_(float(model.flatness[0]))
    finish_bayes(model, pairs)
    return model, pairs


def assert_as_dense(model: Bayes, dense: Posterior, atol: float = 2e-5) -> None:
    """Margins, deviations and information are those of posteriors with all columns."""
    draw = torch.Generator().manual_seed(2)
    rows = torch.randint(0, model.n_rows, (60,), generator=draw)
    d = torch.randn(60, model.dim, generator=draw)
    z = d @ model.basis
    logit = inflated(d @ model.generic[0], ((z @ model.prior) * z).sum(1)) + (z * dense.mean[rows]).sum(1)
    variance = variances(dense, z, rows, model.prior)
    expected = torch.where(rows == 0, d @ model.generic[0], torch.logit(integrated(logit, variance)))
    torch.testing.assert_close(model.margins(d, rows), expected, atol=atol, rtol=1e-4)
    moments = covariances(dense, model.prior)
    flatness = (1.0 + torch.pi / 8.0 * torch.einsum("mij,ij->m", moments, model.moment)).sqrt()
    torch.testing.assert_close(model.flatness.data, flatness, atol=atol, rtol=0)
    torch.testing.assert_close(model.deviations(d, rows), variance.sqrt() / flatness[rows], atol=atol, rtol=0)
    one = torch.full((60,), model.n_rows - 1)
    mean, spread = model.logits(d, one)
    between = (z @ moments[one[0]] @ z.T)[:10, 10:]
    told = information(Normal(mean[:10], spread[:10]), Normal(mean[10:], spread[10:]), between)
    torch.testing.assert_close(model.information(d, one, 10), told, atol=atol, rtol=0)


@pytest.mark.usefixtures("all_columns")
def test_with_all_columns_it_is_the_dense_form() -> None:
    model, pairs = fitted()
    log = log_of(model, pairs)
    dense = fit_posterior(log, population(model.prior), 9)
    torch.testing.assert_close(model.means.data, dense.mean)
    assert_as_dense(model, dense)
    assert (model.factors.count.long() <= EVERY.clamp_max(5)).all()
    assert model.factors.count[:2].tolist() == [0, 0]


@pytest.mark.usefixtures("all_columns")
def test_comparisons_that_come_one_by_one_are_those_of_the_dense_form() -> None:
    model, pairs = fitted()
    dense = fit_posterior(log_of(model, pairs), population(model.prior), 9)
    people = torch.tensor([1, 3, 8, 8, 8, 3, 1, 8])
    more = texts_and_pairs(model, people, seed=5)
    log = log_of(model, more)
    logits = conditional_margins(log, model.prior)
    assert continue_bayes(model, more) == 4
    for i, row in enumerate(people.tolist()):
        after = updated(
            Posterior(dense.mean[[row]], dense.factor[[row]]),
            model.prior,
            log.differences(torch.tensor([i])),
            logits[[i]],
            log.p_chosen[[i]],
            log.weight[[i]],
        )
        dense = Posterior(dense.mean, torch.cat([dense.factor, torch.zeros(9, 5, 1)], 2))
        factor = torch.zeros(dense.factor.shape[1:])
        factor[:, : after.factor.shape[2]] = after.factor[0]
        dense.mean[row], dense.factor[row] = after.mean[0], factor
    torch.testing.assert_close(model.means.data, dense.mean, atol=1e-4, rtol=0)
    assert_as_dense(model, dense, atol=1e-4)
    assert int(model.factors.count.max()) <= 5


def test_many_small_steps_leave_out_no_more_than_one_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each comparison tells less than may be left out; a user would be as little known after a hundred of them."""
    monkeypatch.setattr(bayes_model, "LEFT_OUT", 0.03)
    model = model_of(2, 0.02 * torch.eye(6))
    pairs = texts_and_pairs(model, torch.ones(100, dtype=torch.long))
    continue_bayes(model, pairs.take(torch.arange(1)))
    assert model.factors.count.tolist() == [0, 0]
    assert float(model.left_out(torch.tensor([1]))) > 0.0
    continue_bayes(model, pairs.take(torch.arange(1, 100)))
    assert float(model.left_out(torch.tensor([1]))) <= 0.03 * 0.12 + 1e-6
    everything = model_of(2, 0.02 * torch.eye(6))
    finish_bayes(everything, pairs)
    known = everything.share_known(torch.tensor([1]))
    assert float(known) > 0.2
    torch.testing.assert_close(model.share_known(torch.tensor([1])), known, atol=0.02, rtol=0)
    assert 1 <= int(model.factors.count[1]) <= 6


def test_nobody_depends_on_who_else_is_fitted_or_in_which_order() -> None:
    whole, pairs = fitted()
    mixed = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(3))
    other, _ = fitted()
    for row in range(1, 9):
        other.forget_row(row)
    for row in (8, 2, 5, 3, 7, 4, 6):
        finish_bayes(other, pairs.take(mixed[pairs.rows[mixed] == row]))
    assert_rows_alike(whole, other, EVERY, EVERY, atol=5e-4)  # a fit ends within a thousandth of a deviation


def test_scores_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = fitted()
    draw = torch.Generator().manual_seed(4)
    d, rows = torch.randn(50, model.dim, generator=draw), torch.randint(0, 9, (50,), generator=draw)
    whole = model.margins(d, rows).sigmoid()  # a logit of 5 magnifies the rounding of its probability by 150
    alone = torch.cat([model.margins(d[[i]], rows[[i]]) for i in range(50)]).sigmoid()
    torch.testing.assert_close(alone, whole, atol=1e-6, rtol=0)
    monkeypatch.setattr("prm.users.ragged_rows.BLOCK", 12)
    torch.testing.assert_close(model.margins(d, rows).sigmoid(), whole, atol=1e-6, rtol=0)


def assert_rows_alike(a: Bayes, b: Bayes, rows: Tensor, others: Tensor, atol: float = 0.0) -> None:
    """These rows of one model are those of another; to the bit by default."""
    for mine, theirs in zip(a.per_row(), b.per_row(), strict=True):
        torch.testing.assert_close(mine[rows].data, theirs[others].data, atol=atol, rtol=0)
    if not atol:
        assert torch.equal(a.factors.of(rows)[0], b.factors.of(others)[0])
    reductions = [p.factor @ p.factor.transpose(1, 2) for p in (a.posterior(rows), b.posterior(others))]
    torch.testing.assert_close(*reductions, atol=atol, rtol=0)


def test_rows_are_copied_added_and_written_back_to_the_bit() -> None:
    model, before = fitted()[0], fitted()[0]
    some = torch.tensor([0, 7, 3])
    copy = model.subset(some)
    assert_rows_alike(copy, before, torch.arange(3), some)
    copy.grow(4)
    assert_rows_alike(copy, before, torch.arange(4), torch.tensor([0, 7, 3, 0]))
    model.grow(11)
    assert_rows_alike(model, before, torch.arange(11), torch.cat([EVERY, torch.zeros(2, dtype=torch.long)]))
    copy.forget_row(1)
    continue_bayes(copy, texts_and_pairs(copy, torch.tensor([3, 3, 2]), seed=8))
    assert_rows_alike(model, before, EVERY, EVERY)  # a copy is a copy
    model.scatter_(torch.tensor([0, 7, 3, 10]), copy)
    assert_rows_alike(model, copy, torch.tensor([7, 3, 10]), torch.tensor([1, 2, 3]))
    others = torch.tensor([0, 1, 2, 4, 5, 6, 8])
    assert_rows_alike(model, before, others, others)


def test_a_users_numbers_go_from_model_to_model_to_the_bit() -> None:
    """Also those that an earlier version kept, whose columns stood beside columns of zeros."""
    model, other = fitted()[0], fitted()[0]
    numbers = model.row_tensors(8)
    assert numbers["columns"].shape == (int(model.factors.count[8]), 5)
    other.set_row_tensors(3, numbers)
    assert_rows_alike(other, model, torch.tensor([3]), torch.tensor([8]))
    dense = torch.zeros(5, 5)
    dense[:, 5 - len(numbers["columns"]) :] = numbers["columns"].T
    old = {"means": numbers["means"], "flatness": numbers["flatness"], "factors": dense}
    other.set_row_tensors(4, old)
    assert_rows_alike(other, model, torch.tensor([4]), torch.tensor([8]))
    for wrong in (torch.ones(1, 4), torch.ones(5), torch.ones(65, 5)):
        with pytest.raises(PrmError, match="columns"):
            other.set_row_tensors(4, numbers | {"columns": wrong})
    assert_rows_alike(other, model, torch.tensor([4]), torch.tensor([8]))


@pytest.mark.usefixtures("all_columns")
def test_the_mean_of_posteriors_by_hand() -> None:
    """Covariances diag(3, 2) and diag(4, 1) under a prior diag(4, 2): their mean is diag(3.5, 1.5)."""
    model = model_of(4, torch.diag(torch.tensor([4.0, 2.0])))
    means = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    model.set_posterior(torch.tensor([1, 2]), Posterior(means, torch.eye(2)[:, :, None]))
    model.set_row(3, torch.tensor([1, 2]))
    assert model.means[3].tolist() == [0.5, 1.5]
    expected = torch.diag(torch.tensor([3.5, 1.5]))
    torch.testing.assert_close(covariances(model.posterior(torch.tensor([3])), model.prior)[0], expected)
    assert float(model.flatness[3]) == pytest.approx(sqrt(1 + pi / 8 * 5))


def test_a_forgotten_user_leaves_no_number_in_memory() -> None:
    model, before = fitted()[0], fitted()[0]
    numbers = {x for tensor in model.row_tensors(8).values() for x in tensor.flatten().tolist()}
    model.forget_row(8)
    factors = model.factors
    tensors = [*model.per_row(), factors.vectors, factors.added, *model.state_dict().values()]
    assert not numbers & {x for tensor in tensors for x in tensor.flatten().tolist()}
    assert_rows_alike(model, before, EVERY[:8], EVERY[:8])
    assert_rows_alike(model, before, EVERY[8:], EVERY[:1])


def test_a_user_takes_no_more_bytes_than_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mean, a flatness and at most 64 columns, of 5 float32 each; there are never more."""
    monkeypatch.setattr(bayes_model, "_MAX_FACTORS", 2)
    model, _ = fitted(each=20)
    assert int(model.factors.count.max()) == 2
    assert model.max_row_bytes == 4 * (5 + 1 + 2 * 5)
    assert max(sum(t.nbytes for t in model.row_tensors(row).values()) for row in range(9)) == model.max_row_bytes


def test_the_prior_has_no_columns() -> None:
    model = model_of(2, torch.eye(2))
    model.set_posterior(torch.tensor([1]), Posterior(torch.zeros(1, 2), NO_FACTOR))
    assert torch.equal(model.flatness[:1], model.flatness[1:])
    assert model.factors.count.tolist() == [0, 0]
