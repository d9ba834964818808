"""Empirical-Bayes users: worked numbers, the individual model as a special case, and planted people."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from prm.users.bayes.posterior import Posterior, PosteriorData, Prior, conditional_margins, updated
from prm.users.bayes.prior import fit_prior, population
from prm.users.bayes.quadrature import Normal, inflated, information, integrated
from tests.prm.users.bayes.dense import covariances, fit_posterior, variances


def test_integrals_by_hand() -> None:
    """Without variance nothing is averaged; around 0 everything cancels; with very much variance a coin is left."""
    zero = torch.zeros(3, dtype=torch.float64)
    margin = torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(integrated(margin, zero), torch.sigmoid(margin))
    torch.testing.assert_close(inflated(margin, zero), margin)
    assert float(integrated(torch.zeros(()).double(), torch.tensor(4.0).double())) == pytest.approx(0.5)
    # a trapezoid over 20,000 points
    x = torch.linspace(-40, 40, 20001, dtype=torch.float64)
    density = torch.exp(-0.5 * (x - 1.5) ** 2 / 4.0) / math.sqrt(2 * math.pi * 4.0)
    exact = float(torch.trapezoid(torch.sigmoid(x) * density, x))
    assert float(integrated(torch.tensor(1.5).double(), torch.tensor(4.0).double())) == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize("variance", [0.01, 0.5, 2.0, 6.0])
def test_inflated_logits_give_the_marginal_back(variance: float) -> None:
    margin = torch.linspace(-4, 4, 41, dtype=torch.float64)
    spread = torch.full_like(margin, variance)
    c = inflated(margin, spread)
    torch.testing.assert_close(integrated(c, spread), torch.sigmoid(margin), atol=1e-6, rtol=0)
    assert bool((c.abs() >= margin.abs() - 1e-9).all())  # averaging flattens, so what is averaged must be steeper


def random_judgements(people: int, each: int, r: int, seed: int = 0, texts: int = 60) -> PosteriorData:
    draw = torch.Generator().manual_seed(seed)
    n = people * each
    a = torch.randint(0, texts, (n,), generator=draw)
    b = (a + torch.randint(1, texts, (n,), generator=draw)) % texts
    z = torch.randn(texts, r, generator=draw)
    labels = 1.0 - 0.5 * torch.randint(0, 3, (n,), generator=draw).float().clamp_max(1.0) * 0.6
    weight = 0.5 + torch.rand(n, generator=draw)
    return PosteriorData(z, a, b, torch.arange(people).repeat_interleave(each), labels, weight, torch.zeros(n))


def predicted(log: PosteriorData, prior: Prior, posterior: Posterior) -> Tensor:
    z = log.differences()
    mean = conditional_margins(log, prior.marginal) + (z * posterior.mean[log.people]).sum(-1)
    return integrated(mean, variances(posterior, z, log.people, prior.covariance))


def test_people_without_a_judgement_have_the_prior() -> None:
    log = random_judgements(3, 4, 2)
    covariance = torch.tensor([[1.0, 0.2], [0.2, 0.5]])
    prior = Prior(torch.tensor([0.3, -0.2]), covariance, covariance)
    posterior = fit_posterior(log, prior, 5)
    assert torch.equal(posterior.mean[3:], prior.mean.expand(2, -1))
    assert not posterior.factor[3:].any()
    assert not torch.allclose(posterior.mean[0], prior.mean)


def test_nobody_depends_on_who_else_is_there() -> None:
    """Neither on the order of the log, nor on how people fall into blocks."""
    log = random_judgements(6, 9, 3)
    uneven = torch.cat([torch.arange(54)[i * 9 : i * 9 + 1 + i] for i in range(6)])  # 1 to 6 judgements
    keep = ("chosen", "rejected", "people", "p_chosen", "weight", "margin")
    log = replace(log, **{name: getattr(log, name)[uneven] for name in keep})
    prior = population(torch.eye(3))
    whole = fit_posterior(log, prior, 6)
    mixed = torch.randperm(len(log), generator=torch.Generator().manual_seed(1))
    shuffled = fit_posterior(replace(log, **{name: getattr(log, name)[mixed] for name in keep}), prior, 6)
    torch.testing.assert_close(shuffled.mean, whole.mean, atol=1e-4, rtol=0)
    own = log.people == 4
    part = replace(log, **{name: getattr(log, name)[own] for name in keep})
    alone = fit_posterior(replace(part, people=torch.zeros_like(part.people)), prior, 1)
    torch.testing.assert_close(alone.mean[0], whole.mean[4], atol=1e-4, rtol=0)
    torch.testing.assert_close(
        covariances(alone, prior.covariance)[0], covariances(whole, prior.covariance)[4], atol=1e-4, rtol=0
    )


@pytest.fixture(scope="module")
def planted() -> tuple[PosteriorData, Tensor, Tensor]:
    """(log, offsets [m, r], S) of 1,200 people with 20 judgements each, whose population follows a marginal logit."""
    draw = torch.Generator().manual_seed(0)
    people, each, r, texts = 1200, 20, 6, 400
    truth = torch.diag(torch.tensor([1.5, 1.2, 0.9, 0.6, 0.4, 0.2]))
    offsets = torch.randn(people, r, generator=draw) @ truth.sqrt()
    z = 0.7 * torch.randn(texts, r, generator=draw)
    n = people * each
    a, b = (torch.randint(0, texts, (n,), generator=draw) for _ in range(2))
    who = torch.arange(people).repeat_interleave(each)
    common = torch.tensor([0.8, -0.5, 0.0, 0.3, 0.0, 0.0])
    log = PosteriorData(z, a, b, who, torch.ones(n), torch.ones(n), (z[a] - z[b]) @ common)
    logit = conditional_margins(log, truth) + (log.differences() * offsets[who]).sum(-1)
    first = torch.rand(n, generator=draw) < torch.sigmoid(logit)
    chosen, rejected = torch.where(first, a, b), torch.where(first, b, a)
    return replace(log, chosen=chosen, rejected=rejected, margin=(z[chosen] - z[rejected]) @ common), offsets, truth


def test_the_spread_of_people_is_recovered_and_intervals_cover(planted: tuple[PosteriorData, Tensor, Tensor]) -> None:
    """A mode with the curvature there would put S at half its size, and cover 70 of 100 instead of 90."""
    log, offsets, truth = planted
    prior = fit_prior(log, len(offsets))
    posterior = fit_posterior(log, prior, len(offsets))
    torch.testing.assert_close(prior.covariance.diagonal(), truth.diagonal(), rtol=0.25, atol=0.08)
    off = prior.covariance - torch.diag(prior.covariance.diagonal())
    assert float(off.abs().max()) < 0.15
    deviation = covariances(posterior, prior.covariance).diagonal(dim1=1, dim2=2).sqrt()
    inside = ((posterior.mean - offsets).abs() <= 1.645 * deviation).float()
    assert 0.87 <= float(inside.mean()) <= 0.93
    # who judged most like nobody else is told apart
    assert float(torch.corrcoef(torch.stack([posterior.mean[:, 0], offsets[:, 0]]))[0, 1]) > 0.6


def test_an_unknown_user_is_the_population(planted: tuple[PosteriorData, Tensor, Tensor]) -> None:
    """Integrated over S a stranger's probability is the marginal one; without inflation it is nearer to a half."""
    log, offsets, _ = planted
    prior = fit_prior(log, len(offsets) + 1)  # the last one has not judged
    posterior = fit_posterior(log, prior, len(offsets) + 1)
    stranger = replace(log, people=torch.full_like(log.people, len(offsets)))
    found, marginal = predicted(stranger, prior, posterior), torch.sigmoid(log.margin)
    assert float((found - marginal).abs().max()) < 0.01
    z = log.differences()
    flattened = integrated(log.margin, ((z @ prior.covariance) * z).sum(-1))
    assert float((flattened - marginal).abs().max()) > 0.05


def test_one_more_judgement_without_the_earlier_ones(planted: tuple[PosteriorData, Tensor, Tensor]) -> None:
    """The first update of all is the fit itself; after twenty, means are off by a few hundredths of a deviation."""
    log, offsets, _ = planted
    prior = fit_prior(log, len(offsets))
    refit = fit_posterior(log, prior, len(offsets))
    margin = conditional_margins(log, prior.covariance)
    m, each = len(offsets), len(log) // len(offsets)
    r = len(prior.mean)
    posterior = Posterior(prior.mean.expand(m, -1), torch.zeros(m, r, r))
    for k in range(each):
        index = torch.arange(m) * each + k
        z, label = log.differences(index), log.p_chosen[index]
        posterior = updated(posterior, prior.covariance, z, margin[index], label, log.weight[index])
        if k == 0:
            keep = ("chosen", "rejected", "people", "p_chosen", "weight", "margin")
            first = fit_posterior(replace(log, **{name: getattr(log, name)[index] for name in keep}), prior, m)
            torch.testing.assert_close(posterior.mean, first.mean, atol=5e-3, rtol=0)
            torch.testing.assert_close(
                covariances(posterior, prior.covariance), covariances(first, prior.covariance), atol=5e-3, rtol=0
            )
    deviation = covariances(refit, prior.covariance).diagonal(dim1=1, dim2=2).sqrt()
    away = ((posterior.mean - refit.mean) / deviation).abs()
    assert float(away.mean()) < 0.05
    assert float(away.max()) < 0.5
    spread = covariances(posterior, prior.covariance).diagonal(dim1=1, dim2=2).sqrt() / deviation
    assert float((spread - 1.0).abs().mean()) < 0.05
    assert float((spread - 1.0).abs().max()) < 0.4


@pytest.mark.parametrize(
    ("means", "variances", "covariance"),
    [
        ((0.0, 0.0), (1.0, 1.0), 0.6),
        ((1.5, -0.5), (2.0, 4.0), -1.8),
        ((-1.0, 1.0), (4.0, 4.0), 2.0),
        ((0.5, 0.5), (1.0, 1.0), 0.0),
    ],
)
def test_information_is_that_of_four_million_draws(
    means: tuple[float, float], variances: tuple[float, float], covariance: float
) -> None:
    """What one outcome tells of the other, from the four probabilities of both."""
    draw = np.random.default_rng(0)
    logits = draw.multivariate_normal(means, [[variances[0], covariance], [covariance, variances[1]]], 4_000_000)
    p, q = 1.0 / (1.0 + np.exp(-logits.T))
    joint = np.array([[(p * q).mean(), (p * (1 - q)).mean()], [((1 - p) * q).mean(), ((1 - p) * (1 - q)).mean()]])
    expected = (joint * np.log(joint / joint.sum(1, keepdims=True) / joint.sum(0))).sum()
    one, other = (
        Normal(torch.tensor([m]).double(), torch.tensor([v]).double()) for m, v in zip(means, variances, strict=True)
    )
    found = float(information(one, other, torch.tensor([[covariance]]).double()))
    assert found == pytest.approx(expected, rel=0.1, abs=1e-5)


def test_a_question_is_worth_what_it_tells_on_average() -> None:
    """Of two others, one has nothing to do with the question; a second question tells less, its result is known."""
    questions = Normal(torch.tensor([0.0, 8.0]).double(), torch.ones(2).double())
    others = Normal(torch.zeros(2).double(), torch.ones(2).double())
    both = information(questions, others, torch.tensor([[0.9, 0.0], [0.9, 0.0]]).double())
    first = information(questions, Normal(others.mean[:1], others.variance[:1]), torch.tensor([[0.9], [0.9]]).double())
    torch.testing.assert_close(both, first / 2)
    assert float(both[1]) < 0.1 * float(both[0])


def test_people_who_never_contradict_themselves_leave_the_prior_finite() -> None:
    """Without a bound S doubles with every round of EM, and nobody's posterior is worth anything."""
    draw = torch.Generator().manual_seed(0)
    people, each, r = 12, 100, 12
    texts = torch.randn(2 * people * each, r, generator=draw)
    index = torch.arange(people * each)
    offsets = torch.randn(people, r, generator=draw)
    rows = index % people
    z = texts[2 * index] - texts[2 * index + 1]
    first = (z * offsets[rows]).sum(1) > 0
    chosen, rejected = torch.where(first, 2 * index, 2 * index + 1), torch.where(first, 2 * index + 1, 2 * index)
    ones = torch.ones(len(index))
    log = PosteriorData(texts, chosen, rejected, rows, ones, ones, torch.zeros(len(index)))
    prior = fit_prior(log, people)
    posterior = fit_posterior(log, prior, people)
    assert float(prior.covariance.trace()) * 2.0 < 25.5  # an average difference has covariance 2 I
    other = torch.randn(500, r, generator=draw)
    agree = torch.sign(other @ posterior.mean.T) == torch.sign(other @ offsets.T)
    assert float(agree.float().mean()) > 0.85


def test_people_who_are_all_alike_end_em() -> None:
    """They have no opinion: S shrinks with every round, and ends where nobody is told apart."""
    log = random_judgements(8, 6, 4)
    covariance = fit_prior(replace(log, p_chosen=torch.full_like(log.p_chosen, 0.5)), 8).covariance
    z = log.differences()
    assert float(((z @ covariance) * z).sum(1).mean()) == pytest.approx(1e-4, rel=0.01)


def answered(questions: int, chosen: bool, seed: int) -> float:
    """How often 200 planted people are told apart on other pairs after so many questions, chosen for each or drawn."""
    draw = torch.Generator().manual_seed(seed)
    people, r, pool = 200, 8, 120
    covariance = torch.diag(3.0 * 0.6 ** torch.arange(r))
    offsets = torch.randn(people, r, generator=draw) @ covariance.sqrt()
    z, other = torch.randn(pool, r, generator=draw), torch.randn(1000, r, generator=draw)
    posterior, everybody = Posterior(torch.zeros(people, r), torch.zeros(people, r, r)), torch.arange(people)
    asked = torch.zeros(people, pool, dtype=torch.bool)
    for _ in range(questions):
        worth = torch.rand(people, pool, generator=draw)
        if chosen:
            each = everybody.repeat_interleave(pool)
            variance = variances(posterior, z.repeat(people, 1), each, covariance).view(people, pool)
            mean, between = posterior.mean @ z.T, z @ covariances(posterior, covariance) @ z.T
            logits = [Normal(*person) for person in zip(mean, variance, strict=True)]
            worth = torch.stack(
                [information(own, own, with_own) for own, with_own in zip(logits, between, strict=True)]
            )
        question = worth.masked_fill(asked, -1.0).argmax(1)
        asked[everybody, question] = True
        yes = torch.rand(people, generator=draw) < torch.sigmoid((z[question] * offsets).sum(1))
        nothing = torch.zeros(people)
        posterior = updated(posterior, covariance, z[question], nothing, yes.float(), nothing + 1.0)
    return float((torch.sign(other @ posterior.mean.T) == torch.sign(other @ offsets.T)).float().mean())


@pytest.mark.parametrize("seed", [0, 1])
def test_chosen_questions_are_worth_nearly_twice_as_many_drawn_at_random(seed: int) -> None:
    assert answered(4, True, seed) > answered(7, False, seed)
    assert answered(4, True, seed) > answered(4, False, seed) + 0.03
