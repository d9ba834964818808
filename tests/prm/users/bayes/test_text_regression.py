"""What texts say of people, in numbers: ridge and leave-one-out by hand, planted texts, and texts that say nothing."""

import pytest
import torch
from torch import Tensor

from prm.training.heads.bayes_fit import finish_bayes
from prm.training.heads.objective import PairFeatures
from prm.users.bayes.posterior import Posterior, PosteriorData, Prior, fit_posterior
from prm.users.bayes.prior import population
from prm.users.bayes.text_regression import (
    MIN_TEXTS,
    TextMap,
    TextStatistics,
    explained,
    fit_text_map,
    gain_of,
    ridges,
    text_statistics,
)
from prm.users.bayes_model import Bayes


def test_a_ridge_and_its_leave_one_out_by_hand() -> None:
    """Two texts, 1 and 2, whose people's shares known sum to 1 and 1/2, their means to 0.5 and 0.4; penalty 1.

    w = (0.5 + 2 x 0.4) / (1 + 2 + 1); without the first (2 x 0.4) / (2 + 1), without the second 0.5 / (1 + 1).
    """
    phi = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    known = TextStatistics(
        torch.tensor([[0.5], [0.4]]).double(), torch.tensor([1.0, 0.5]).double(), torch.ones(1).double()
    )
    ((penalty, weight, left_out),) = ridges(phi, known, [1.0])
    assert penalty == 1.0
    assert float(weight) == pytest.approx(0.325)
    assert left_out.flatten().tolist() == pytest.approx([0.8 / 3.0, 2.0 * 0.25])
    # what is gained over saying nothing: (0.5 - 0)^2 - (0.5 - 0.8 / 3)^2, and half of (0.8 - 0)^2 - (0.8 - 0.5)^2
    assert gain_of(known, left_out).tolist() == pytest.approx([0.25 - (0.5 - 0.8 / 3.0) ** 2, 0.5 * (0.64 - 0.09)])


def test_left_out_is_what_a_fit_without_it_says() -> None:
    draw = torch.Generator().manual_seed(0)
    phi, sums = (torch.randn(9, n, generator=draw).double() for n in (4, 3))
    known = TextStatistics(sums, torch.rand(9, generator=draw).double() + 0.2, torch.tensor([0.5, 1.0, 1.5]).double())
    ((_, _, left_out),) = ridges(phi, known, [0.3])
    for t in range(9):
        rest = torch.arange(9) != t
        without = TextStatistics(sums[rest], known.people[rest], known.directions)
        ((_, weight, _),) = ridges(phi[rest], without, [0.3])
        torch.testing.assert_close(left_out[t], weight @ phi[t])


def test_what_posteriors_tell_by_hand() -> None:
    """S = diag(4, 1): a factor of 1 along the first direction is a quarter of it; people of one text are summed."""
    scale = torch.diag(torch.tensor([2.0, 1.0]))
    factor = torch.tensor([[[1.0], [0.0]], [[0.0], [0.5]], [[0.0], [0.0]]])
    known = text_statistics(
        Posterior(torch.tensor([[2.0, 1.0], [4.0, 0.0], [0.0, 0.0]]), factor), torch.tensor([1, 1, 0]), 2, scale
    )
    assert known.sums.tolist() == [[0.0, 0.0], [3.0, 1.0]]
    assert known.people.tolist() == [0.0, 0.25]  # a quarter in one of two directions each
    assert known.directions.tolist() == [1.0, 1.0]


def planted(
    people: int, share: float, seed: int, texts: int | None = None, r: int = 6, d: int = 10
) -> tuple[TextMap | None, Tensor, Tensor, Tensor]:
    """(the map, true offsets [m, r], what texts say of them [m, r], S) of people with much and little known.

    Texts tell `share` of the variance in the first half of the directions, and nothing of the others.
    """
    draw = torch.Generator().manual_seed(seed)
    texts = texts or people
    phi, place = torch.randn(texts, d, generator=draw), torch.arange(people) % texts
    weight = torch.linalg.qr(torch.randn(d, r, generator=draw)).Q.T * share**0.5
    weight[r // 2 :] = 0.0
    predicted = (phi @ weight.T)[place]
    alone = torch.ones(r)
    alone[: r // 2] -= share
    v = predicted + torch.randn(people, r, generator=draw) * alone.sqrt()
    known = 0.1 + 0.8 * torch.rand(people, r, generator=draw)
    mean = known * v + torch.randn(people, r, generator=draw) * (known * (1.0 - known)).sqrt()
    root = torch.tril(torch.randn(r, r, generator=draw)) * 0.3 + torch.eye(r)
    covariance = root @ root.T
    scale = torch.linalg.cholesky(covariance)
    posterior = Posterior(mean @ scale.T, scale * known.sqrt()[:, None, :])
    return fit_text_map(phi, place, posterior, covariance), v @ scale.T, phi[place], covariance


@pytest.mark.parametrize("texts", [800, 200])
def test_planted_texts_are_learnt_with_how_much_they_tell(texts: int) -> None:
    found, offsets, phi, covariance = planted(800, 0.6, 1, texts)
    assert found is not None
    assert found.share == pytest.approx(0.3, abs=0.04)  # of half of the directions six tenths
    expected = phi @ found.weight.T
    slope = float((expected * offsets).sum() / expected.square().sum())
    assert slope == pytest.approx(1.0, abs=0.1)
    narrower = covariance - found.root @ found.root.T
    left = torch.linalg.solve_triangular(torch.linalg.cholesky(narrower), (offsets - expected).T, upper=False)
    assert float(left.square().mean()) == pytest.approx(1.0, abs=0.08)
    assert float((found.root @ found.root.T).trace()) > 0.2 * float(covariance.trace())


def test_texts_that_say_nothing_are_refused() -> None:
    assert sum(planted(150, 0.0, seed)[0] is None for seed in range(40)) >= 38
    assert sum(planted(150, 0.6, seed)[0] is None for seed in range(10)) == 0


def test_people_who_say_the_same_are_left_out_together() -> None:
    """As one text that all of them tell of; 19 texts are too few, whoever many say them."""
    draw = torch.Generator().manual_seed(3)
    phi, v = torch.randn(MIN_TEXTS, 2, generator=draw), torch.randn(MIN_TEXTS, 3, generator=draw) + 3.0
    factor = torch.eye(3).expand(MIN_TEXTS, 3, 3) * 0.5**0.5
    covariance = torch.eye(3)
    phi[:, 0] = v[:, 0]
    single = fit_text_map(phi, torch.arange(MIN_TEXTS), Posterior(v * 0.5, factor), covariance)
    twice = torch.arange(2 * MIN_TEXTS) % MIN_TEXTS
    double = fit_text_map(phi, twice, Posterior((v * 0.25)[twice], factor[twice] * 0.5**0.5), covariance)
    assert single is not None
    assert double is not None
    assert double.penalty == single.penalty
    torch.testing.assert_close(double.weight, single.weight)
    place = torch.arange(2 * MIN_TEXTS) % (MIN_TEXTS - 1)
    assert fit_text_map(phi[:-1], place, Posterior((v * 0.5)[place], factor[place]), covariance) is None


def test_judgements_come_on_top_of_what_was_said() -> None:
    """Of three people two said something: as fitted under their own prior, though kept as narrower than everybody's."""
    draw = torch.Generator().manual_seed(5)
    model = Bayes(4, 1, 5, 5, text_dim=2)
    model.generic.copy_(torch.randn(1, 5, generator=draw))
    model.basis.copy_(torch.eye(5))
    model.moment.copy_(torch.eye(5))
    root = torch.tril(torch.randn(5, 5, generator=draw)) * 0.3 + torch.eye(5)
    model.set_prior(root @ root.T)
    assert model.text_prior is not None
    model.text_prior.weight.copy_(torch.randn(5, 2, generator=draw))
    model.text_prior.factor.copy_(0.8 * root @ torch.diag(torch.tensor([1.0, 0.5, 0.0, 0.0, 0.0])))
    model.set_text_prior(torch.tensor([1, 2]), torch.randn(2, 2, generator=draw))
    said = model.means.clone()
    texts, n = torch.randn(30, 5, generator=draw), 24
    chosen, rejected = (torch.randint(0, 15, (n,), generator=draw) + k for k in (0, 15))
    rows = torch.arange(n) % 3 + 1
    pairs = PairFeatures(texts, chosen, rejected, rows, torch.ones(n), torch.ones(n))
    finish_bayes(model, pairs)

    margin = (texts[chosen] - texts[rejected]) @ model.generic[0]
    log = PosteriorData(texts, chosen, rejected, rows, torch.ones(n), torch.ones(n), margin)
    narrower = model.prior - model.text_prior.factor @ model.text_prior.factor.T
    for people, prior in (([3], population(model.prior)), ([1, 2], Prior(said, narrower, model.prior))):
        expected = fit_posterior(log, prior, 4)
        torch.testing.assert_close(model.means[people], expected.mean[people], atol=1e-3, rtol=0)
        covariance = prior.covariance - expected.factor @ expected.factor.transpose(1, 2)
        found = model.prior - model.factors @ model.factors.transpose(1, 2)
        torch.testing.assert_close(found[people], covariance[people], atol=1e-3, rtol=0)


def test_no_direction_is_explained_away() -> None:
    """Of the trace as much as is confirmed; whatever texts claim, a tenth of each direction stays."""
    expected = torch.tensor([[2.0, -2.0], [0.0, 0.0]]).double()
    people = torch.ones(2).double()
    for share, found in ((0.3, 0.6), (1.0, 0.9)):
        root = explained(expected, people, share)
        torch.testing.assert_close(root @ root.T, torch.diag(torch.tensor([found, 0.0])).double())
