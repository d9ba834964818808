"""Fitting and updating new users, and empirical Bayes for many users."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from benchmarks.ratio import Ratio
from prm.config import RewardModelConfig, TrainConfig, UserConfig
from prm.data.comparison import Comparison
from prm.scoring.scorer import Scorer
from prm.training.setup import new_checkpoint
from prm.users.bayes.posterior import PosteriorData, iter_posteriors
from prm.users.bayes.prior import fit_prior
from prm.users.bayes_model import Bayes
from prm.users.index import UserIndex

_WORDS = "who asked for advice got an answer long enough to read with some care and a little joy".split()  # noqa: SIM905


def ratios(
    comparisons: int = 20, earlier: int = 200, few: int = 1_000, many: int = 100_000, backbone: str = "smollm2-135m"
) -> Iterator[Ratio]:
    """The fit of a new user over a backbone pass, an update over a refit, and many users over few.

    Args:
        comparisons: of the new user, and of each of the many.
        earlier: comparisons of the user who is updated with one more.
        few, many: users that empirical Bayes is fitted to, in 16 directions.
        backbone: computes the features of the new user's texts.
    """
    scorer = bayes_scorer(backbone)
    log = [_comparison(i) for i in range(earlier + 1)]
    anns, zoes, bobs = ([replace(c, user_id=user) for c in log] for user in ("ann", "zoe", "bob"))
    prompts = [c.prompt for c in log[:comparisons]] * 2
    responses = [getattr(c, side) for side in ("chosen", "rejected") for c in log[:comparisons]]
    plain = Scorer(scorer.checkpoint)
    scorer.fit_user("ann", anns)  # from here on all hidden states are cached on disk
    yield Ratio(
        f"fitting a new user to {comparisons} comparisons / reading their texts",
        lambda: scorer.fit_user("zoe", zoes[:comparisons]),
        lambda: plain.score_batch(prompts, responses, [None] * len(responses)),
        at_most=0.2,
    )
    scorer.fit_user("ann", anns[:-1])
    yield Ratio(
        f"one more comparison / refitting {earlier + 1}",
        lambda: scorer.update_user("ann", anns[-1:]),
        lambda: scorer.fit_user("bob", bobs),
        at_most=0.5,
    )
    yield Ratio(
        f"empirical Bayes, {many:,} users / {few:,}, {comparisons} comparisons each",
        lambda: _fit(_people(many, comparisons), many),
        lambda: _fit(_people(few, comparisons), few),
        at_most=1.2 * many / few,
        repeats=1,
    )


def bayes_scorer(backbone: str, cache: bool = True) -> Scorer:
    """Empirical Bayes in random directions: fitting takes as long as after training."""
    config = TrainConfig(users=UserConfig("bayes"), reward=RewardModelConfig(pooling="mean"))
    config.backbone.name = backbone
    checkpoint = new_checkpoint(config, UserIndex())
    users = checkpoint.model.user_model
    assert isinstance(users, Bayes)
    draw = torch.Generator().manual_seed(0)
    rank = len(users.prior)
    with torch.no_grad():
        users.generic.normal_(std=0.02, generator=draw)
        users.basis.copy_(torch.linalg.qr(torch.randn(users.dim, rank, generator=draw))[0])
        users.moment.copy_(torch.eye(rank))
    users.set_prior(0.01 * torch.eye(rank))
    return Scorer(checkpoint, cache=cache)


def _comparison(i: int) -> Comparison:
    draw = torch.Generator().manual_seed(i)
    return Comparison("ann", f"What now, number {i}?", words(60, draw), words(60, draw))


def words(n: int, draw: torch.Generator) -> str:
    """n random words, about one token each."""
    return " ".join(_WORDS[k] for k in torch.randint(len(_WORDS), (n,), generator=draw).tolist())


def _fit(log: PosteriorData, people: int) -> int:
    """Fit everybody; returns the number of columns of their posteriors."""
    return sum(block.factor[:, 0].numel() for _, block in iter_posteriors(log, fit_prior(log, people), people))


def _people(n: int, comparisons: int, rank: int = 16) -> PosteriorData:
    draw = torch.Generator().manual_seed(0)
    rows = torch.arange(n).repeat_interleave(comparisons)
    texts = torch.randn(2000, rank, generator=draw)
    first, second = torch.randint(2000, (2, len(rows)), generator=draw)
    z, offsets = texts[first] - texts[second], 0.5 * torch.randn(n, rank, generator=draw)
    won = torch.rand(len(rows), generator=draw) < torch.sigmoid((z * offsets[rows]).sum(1))
    chosen, rejected = torch.where(won, first, second), torch.where(won, second, first)
    ones = torch.ones(len(rows))
    return PosteriorData(texts, chosen, rejected, rows, ones, ones, torch.zeros(len(rows)))
