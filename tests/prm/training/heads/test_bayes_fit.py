"""Empirical-Bayes users in a run: trained, saved, scored, gone on with and forgotten."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prm.config import BackboneConfig, DataConfig, SearchConfig, TrainConfig, UserConfig
from prm.data.comparison import Comparison
from prm.errors import PrmError
from prm.evaluation.evaluate import evaluate
from prm.io.tables import write_jsonl
from prm.models.reward_model import RewardModel
from prm.scoring.forget_user import forget_user
from prm.scoring.scorer import Scorer
from prm.training.heads.bayes_fit import Tempered
from prm.training.heads.grid_search import HeadData
from prm.training.run import train
from prm.users.bayes.posterior import Posterior
from prm.users.bayes.quadrature import inflated, integrated
from prm.users.bayes_model import Bayes
from prm.users.stack_model import Stack
from prm.users.user_model import ALL_ALIKE
from tests.planted import opposed_people


def config_of(tiny: str, folder: Path, **changes: Any) -> TrainConfig:
    base = TrainConfig(
        output_dir=str(folder / "run"),
        data=DataConfig(path=str(folder / "log.jsonl")),
        backbone=BackboneConfig(tiny, dtype="float32"),
        users=UserConfig("bayes", rank=16),
        search=SearchConfig(folds=3, l2=[1.0, 10.0], user_l2=[1.0]),
    )
    return replace(base, **changes)


@pytest.fixture(scope="module")
def folder(backbone_of: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve people in two camps, and a run on them."""
    folder = tmp_path_factory.mktemp("bayes")
    write_jsonl(folder / "log.jsonl", opposed_people(60, 0, people=12))
    train(config_of(backbone_of("llama"), folder))
    return folder


def random_model(rank: int = 3, dim: int = 5) -> Bayes:
    draw = torch.Generator().manual_seed(0)
    model = Bayes(4, 1, dim, rank)
    root = torch.randn(rank, rank, generator=draw)
    with torch.no_grad():
        model.generic.normal_(generator=draw)
        model.basis.normal_(generator=draw)
        model.moment.copy_(torch.eye(rank) * 0.7)
    model.set_prior(root @ root.T + 0.1 * torch.eye(rank))
    rows = torch.arange(1, 4)
    model.set_posterior(rows, Posterior(torch.randn(3, rank, generator=draw), known(model, 0.7, 0.7, 0.7)))
    return model


def known(model: Bayes, *shares: float) -> torch.Tensor:
    """Factors [m, rank, rank] of people of whom these shares of the prior's variance are known."""
    root = torch.linalg.cholesky(model.prior)
    return torch.stack([share**0.5 * root for share in shares])


def covariance_of(model: Bayes, row: int) -> torch.Tensor:
    factor = model.posterior(torch.tensor([row])).factor[0]
    return model.prior - factor @ factor.T


def test_a_margin_is_the_average_over_what_is_not_known() -> None:
    """Against a draw of 200,000 offsets; the reward difference is its approximation for an average pair."""
    model = random_model()
    difference = torch.tensor([[0.4, -0.2, 0.1, 0.3, 0.0]])
    rows = torch.tensor([2])
    z = difference @ model.basis
    c = inflated(difference @ model.generic[0], ((z @ model.prior) * z).sum(-1))
    root = torch.linalg.cholesky(covariance_of(model, 2))
    draw = torch.randn(200_000, 3, generator=torch.Generator().manual_seed(1))
    offsets = model.means[2] + draw @ root.T
    sampled = torch.sigmoid(c + offsets @ z[0]).mean()
    found = torch.sigmoid(model.margins(difference, rows))
    torch.testing.assert_close(found[0], sampled, atol=3e-3, rtol=0)


def test_the_unknown_user_is_the_population_and_so_is_who_said_nothing() -> None:
    model = random_model()
    model.set_posterior(torch.tensor([3]), Posterior(torch.zeros(1, 3), known(model, 0.0)))
    embeddings = model(torch.arange(4))[:, 0]
    assert torch.equal(embeddings[0], model.generic[0])
    assert torch.equal(embeddings[3], model.generic[0])
    difference = torch.randn(50, 5, generator=torch.Generator().manual_seed(2))
    population = difference @ model.generic[0]
    assert torch.equal(model.margins(difference, torch.zeros(50, dtype=torch.long)), population)
    silent = model.margins(difference, torch.full((50,), 3))
    torch.testing.assert_close(torch.sigmoid(silent), torch.sigmoid(population), atol=1e-3, rtol=0)
    assert not torch.allclose(model.margins(difference, torch.full((50,), 1)), population)


def test_what_is_less_known_counts_less() -> None:
    """The same mean known better: a steeper reward along it, and the population's less steep."""
    model = random_model()
    mean = model.means[1:2].clone()
    model.set_posterior(torch.tensor([1, 2]), Posterior(mean.expand(2, -1), known(model, 0.1, 0.9)))
    own = model(torch.tensor([1, 2]))[:, 0] - model.generic * (model.flatness[0] / model.flatness[1:3, None])
    assert float(own[1].norm()) > float(own[0].norm())


def test_planted_users_are_recovered_and_unknown_ones_are_the_uniform_model(folder: Path) -> None:
    scorer, uniform = Scorer.from_pretrained(folder / "run"), Scorer.from_pretrained(folder / "run/uniform")
    test = opposed_people(30, 1, people=12)
    result = evaluate(scorer, test, uniform)
    assert result.row("personal").accuracy.value > 0.62
    assert result.row("uniform, tuned").accuracy.value == 0.5
    texts = [test[0].chosen, test[0].rejected]
    ours, theirs = (s.score(test[0].prompt, texts, None) for s in (scorer, uniform))
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)


def test_probabilities_are_integrated(folder: Path) -> None:
    scorer = Scorer.from_pretrained(folder / "run")
    model = scorer.model.user_model
    assert isinstance(model, Bayes)
    c = opposed_people(1, 5, people=12)[0]
    pooled, index = scorer.reader.pooled([c.prompt] * 2, [c.chosen, c.rejected], ["", ""])
    assert isinstance(scorer.model, RewardModel)
    h = scorer.model.standardised(pooled)[index]
    z = (h[:1] - h[1:]) @ model.basis
    row = scorer.users.index(c.user_id) + 1
    logit = inflated((h[:1] - h[1:]) @ model.generic[0], ((z @ model.prior) * z).sum(-1)) + z @ model.means[row]
    variance = ((z @ covariance_of(model, row)) * z).sum(-1)
    found = scorer.prefer(c.prompt, c.chosen, c.rejected, c.user_id)
    temper = model.temper(torch.tensor([row]), model.temperature)
    expected = torch.sigmoid(torch.logit(integrated(logit, variance)) / temper)
    assert found == pytest.approx(float(expected), abs=1e-4)
    assert abs(float(integrated(logit, variance)) - 0.5) < abs(float(torch.sigmoid(logit)) - 0.5)
    assert scorer.prefer(c.prompt, c.rejected, c.chosen, c.user_id) == pytest.approx(1.0 - found, abs=1e-4)


def test_going_on_moves_the_people_of_the_new_log_alone(folder: Path, tiny: str) -> None:
    new = [replace(c, user_id={"p1": "zoe"}.get(c.user_id, c.user_id)) for c in opposed_people(40, 7, people=2)]
    write_jsonl(folder / "new.jsonl", new)
    following = TrainConfig(
        output_dir=str(folder / "next"),
        start_from=str(folder / "run"),
        data=DataConfig(path=str(folder / "new.jsonl")),
    )
    before, after = (Scorer.from_pretrained(run) for run in (folder / "run", train(following)))
    test = opposed_people(20, 8, people=2)
    texts = [test[0].chosen, test[0].rejected]
    for user in ("p3", "p7", None):
        assert torch.equal(before.score(test[0].prompt, texts, user), after.score(test[0].prompt, texts, user))
    assert not torch.equal(before.score(test[0].prompt, texts, "p0"), after.score(test[0].prompt, texts, "p0"))
    assert after.knows("zoe")
    zoes = [replace(c, user_id="zoe") for c in test if c.user_id == "p1"]
    assert evaluate(after, zoes).row("personal").accuracy.value > 0.6


def test_a_forgotten_user_is_an_unknown_user(folder: Path, tiny: str) -> None:
    run = train(config_of(tiny, folder, output_dir=str(folder / "forgets")))
    c = opposed_people(1, 9)[0]
    texts = [c.chosen, c.rejected]
    scorer = Scorer.from_pretrained(run)
    row = scorer.users.index("p1") + 1
    assert not torch.equal(scorer.score(c.prompt, texts, "p1"), scorer.score(c.prompt, texts))
    forget_user(run, "p1")
    scorer = Scorer.from_pretrained(run)
    assert torch.equal(scorer.score(c.prompt, texts, "p1"), scorer.score(c.prompt, texts))
    model = scorer.model.user_model
    assert isinstance(model, Bayes)
    assert torch.equal(model.means[row], torch.zeros_like(model.means[row]))


def test_a_backbone_that_learns_is_not_for_bayes(tiny: str, tmp_path: Path) -> None:
    with pytest.raises(PrmError, match=r"users\.kind"):
        config_of(tiny, tmp_path, train="lora").check()


def test_deviations_by_hand(folder: Path) -> None:
    """The deviation of a margin is that of the difference, not the sum of two; known people's are smaller."""
    scorer = Scorer.from_pretrained(folder / "run")
    assert isinstance(scorer.model, RewardModel)
    model = scorer.model.posterior()
    c = opposed_people(1, 5, people=12)[0]
    texts = [c.chosen, c.rejected, "another answer of the fox"]
    pooled, index = scorer.reader.pooled([c.prompt] * 3, texts, [""] * 3)
    z = scorer.model.standardised(pooled)[index] @ model.basis
    row = scorer.users.index("p3") + 1
    rewards, std = scorer.score(c.prompt, texts, "p3", return_std=True)
    torch.testing.assert_close(rewards, scorer.score(c.prompt, texts, "p3"))
    expected = (z @ covariance_of(model, row) * z).sum(1).sqrt() / model.flatness[row]
    expected = expected / model.temper(torch.tensor([row]), model.temperature)
    torch.testing.assert_close(std, expected)
    gains = scorer.gains(c.prompt, texts, "p3")
    assert gains.pick == int(scorer.score(c.prompt, texts).argmax())
    assert float(gains.mean[gains.pick]) == pytest.approx(0.0, abs=1e-5)
    assert float(gains.std[gains.pick]) == 0.0
    away = z - z[gains.pick]
    torch.testing.assert_close(gains.std, (away @ covariance_of(model, row) * away).sum(1).sqrt())
    assert bool((gains.std <= scorer.gains(c.prompt, texts, None).std + 1e-6).all())
    with pytest.raises(PrmError, match="uncertainty"):
        Scorer.from_pretrained(folder / "run/uniform").score(c.prompt, texts, return_std=True)


def test_the_next_question_is_the_one_that_tells_most(folder: Path) -> None:
    """Two answers alike tell nothing, nor does what is known already; asked of a person again and again they learn."""
    scorer = Scorer.from_pretrained(folder / "run")
    pool = [(c.prompt, c.chosen, c.rejected) for c in opposed_people(12, 5, people=1)]
    question = scorer.next_question(None, pool)
    prompt, a, b = pool[question.position]
    alike = [(prompt, a, a), (prompt, b, b)]
    assert scorer.next_question(None, [*alike, (prompt, a, b)]).position == 2
    assert scorer.next_question(None, alike[:1]).information == 0.0
    scorer.fit_user("ann", [replace(c, user_id="ann") for c in opposed_people(40, 3, people=1)])
    assert scorer.next_question("ann", pool).information < question.information
    with pytest.raises(PrmError, match="'pool'"):
        scorer.next_question("ann", [])
    with pytest.raises(PrmError, match="uncertainty"):
        Scorer.from_pretrained(folder / "run/uniform").next_question(None, pool)


def test_the_first_direction_is_the_score_itself(tiny: str, tmp_path: Path) -> None:
    """People who all like kings, some more decidedly than others: what they differ in is how steep the score is."""
    log = []
    for c in opposed_people(60, 0, people=1):
        for person in range(8):
            sure = 0.95 if person % 2 else 0.55
            log.append(replace(c, user_id=f"p{person}", p_chosen=sure))
    write_jsonl(tmp_path / "log.jsonl", log)
    search = SearchConfig(folds=3, l2=[1.0], user_l2=[1.0], layers=[2], poolings=["mean"])
    whole = Scorer.from_pretrained(train(config_of(tiny, tmp_path, search=search))).model
    assert isinstance(whole, RewardModel)
    model = whole.posterior()
    score = model.generic[0] / model.generic[0].norm()
    torch.testing.assert_close(model.basis[:, 0], score, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.basis.T @ model.basis, torch.eye(16), atol=1e-4, rtol=0)
    steep = model.means[1:, 0]
    assert float(steep[1::2].min()) > float(steep[::2].max())


def test_the_temperature_is_of_those_who_are_known() -> None:
    """By hand: all is known of one person, half of another, nothing of the third, and the unknown user stays."""
    model = random_model()
    mean = model.means[1:2].expand(3, -1).clone()
    model.set_posterior(torch.arange(1, 4), Posterior(mean, known(model, 1.0, 0.5, 0.0)))
    difference, rows = torch.tensor([[0.4, -0.2, 0.1, 0.3, 0.0]]).expand(4, -1), torch.arange(4)
    before, rewards = model.margins(difference, rows), model(rows)[:, 0]
    model.temperature.fill_(1.44)
    by = torch.tensor([1.0, 1.44, 1.2, 1.0])
    torch.testing.assert_close(model.margins(difference, rows), before / by, atol=1e-4, rtol=0)
    torch.testing.assert_close(model(rows)[:, 0], rewards / by[:, None], atol=1e-4, rtol=0)


def test_people_who_are_surer_in_training_than_later_get_a_temperature() -> None:
    """Everybody judges by a coin what nobody has judged before: what was learnt of them must count for less."""
    model = random_model()
    draw = torch.Generator().manual_seed(3)
    texts = torch.randn(400, 5, generator=draw)
    rows = torch.randint(1, 4, (200,), generator=draw)
    first = torch.rand(200, generator=draw) < torch.sigmoid(
        0.6 * model.margins(texts[:200] - texts[200:], rows)  # they mean six tenths of what was learnt
    )
    chosen = torch.where(first, torch.arange(200), torch.arange(200, 400))
    rejected = torch.where(first, torch.arange(200, 400), torch.arange(200))
    ones, everything = torch.ones(200), torch.arange(200)
    data = HeadData({}, chosen, rejected, rows, ones, ones, torch.zeros(200, 2))

    def best_for(rows: torch.Tensor) -> tuple[int, float]:
        margin = model.margins(texts[chosen] - texts[rejected], rows)
        return Tempered(margin[None], model.share_known(rows)[None], ["linear"], data).best(everything)

    assert 1.3 < best_for(rows)[1] <= 2.0
    assert best_for(torch.zeros_like(rows)) == (0, 1.0)  # strangers say nothing of it


def test_what_is_true_of_one_topic_alone_does_not_carry_over(tiny: str, tmp_path: Path) -> None:
    """People who take sides anew with every prompt, and stay with them there: to another prompt little carries over."""
    draw, carry = random.Random(0), {}
    pairs = [opposed_people(8, prompt, people=1) for prompt in range(12)]
    for kind in ("steady", "fickle"):
        log = []
        for person in range(80):
            likes_kings = person % 2 == 0
            for prompt in draw.sample(range(12), 3):
                if kind == "fickle":
                    likes_kings = draw.random() < 0.5
                for c in pairs[prompt]:
                    sides = (c.chosen, c.rejected) if likes_kings != (draw.random() < 0.15) else (c.rejected, c.chosen)
                    log.append(Comparison(f"p{person}", f"what of the fox {prompt}?", *sides))
        write_jsonl(tmp_path / "log.jsonl", log)
        run = train(config_of(tiny, tmp_path, output_dir=str(tmp_path / kind)))
        carry[kind] = json.loads((run / "metrics.json").read_text())["personal"]["best"]["carry"]
    assert carry["fickle"] <= 0.1 < carry["steady"]  # two of the shares that are tried lie between


@pytest.mark.parametrize("differ", [True, False])
def test_a_run_that_can_tell_nobody_apart_says_so(
    tiny: str, tmp_path: Path, differ: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Where everybody prefers the same, no number of comparisons would move anybody."""
    log = [c for c in opposed_people(60, 0, people=12) if differ or int(c.user_id[1:]) % 2 == 0]
    write_jsonl(tmp_path / "log.jsonl", log)
    scorer = Scorer.from_pretrained(train(config_of(tiny, tmp_path)))
    assert scorer.model.user_model.all_alike is not differ  # type: ignore[union-attr]
    assert (ALL_ALIKE in caplog.text) is not differ


def test_a_stack_without_weights_tells_nobody_apart() -> None:
    model = Stack(3, 1, 4)
    with torch.no_grad():
        model.weights.zero_()
        assert model.all_alike
        model.weights[5] = 0.1
    assert not model.all_alike
