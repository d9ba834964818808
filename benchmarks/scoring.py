"""The cost of scoring, against a plain backbone pass over the texts, and against a pass for every user."""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, get_args

import torch

from benchmarks.ratio import Ratio
from prm.attention.prefix_tree import make_plan
from prm.config import Position, RewardModelConfig, TrainConfig, UserConfig
from prm.data.encoding import Encoded, batches, pad
from prm.models.reward_model import RewardModel
from prm.scoring.scorer import Scorer
from prm.training.setup import new_checkpoint
from prm.users.index import UserIndex

Dtype = Literal["float32", "bfloat16"]

# lengths in words of one token each: deciles 1, 3, 5, 7 and 9 of two data sets
UKP = ([9, 11, 14, 20, 22], [23, 41, 60, 78, 114])  # topics and arguments
_TLDR = ([228, 292, 358, 418, 473], [31, 37, 40, 43, 46])  # posts and summaries
_WORDS = "the of and a to in is that for it as was with be by on not he his but at are this have from".split()  # noqa: SIM905
_PREFIX_SHARE = 10  # one in so many users is timed with prefixes: they share no pass, so all take so many times it


def ratios(
    backbone: str = "smollm2-135m",
    dtypes: Sequence[Dtype] = ("float32", "bfloat16"),
    size: float = 1.0,
    people: int = 100,
    many: int = 10_000,
) -> Iterator[Ratio]:
    """Scoring over a plain backbone pass; one plan over full passes; many users over one.

    Args:
        size: of all texts, as a share of the size that the bars are set for.
        people, many: numbers of users with soft prompts, and with linear heads.
    """
    for dtype in dtypes:
        scorer = untrained_scorer(backbone, dtype)
        prompts, responses = _mixed(size)
        encoded = [scorer.reader.encode(p, y) for p, y in zip(prompts, responses, strict=True)]
        unique = len(make_plan([s.ids for s in encoded]).ids) / sum(len(s.ids) for s in encoded)
        yield Ratio(
            f"unique tokens a second, mixed lengths, {dtype}: scoring / bare backbone",
            _bare(scorer, encoded),
            _scoring(scorer, prompts, responses),
            at_least=0.9,
            scale=unique,
            repeats=3,
        )
        prompt, responses = words(int(300 * size)), answers_of(16, int(60 * size))
        yield Ratio(
            f"16 responses of 60 tokens to a prompt of 300, {dtype}: full readings / one plan",
            _bare(scorer, [scorer.reader.encode(prompt, y) for y in responses]),
            _scoring(scorer, [prompt] * 16, responses),
            at_least=3.7 if dtype == "float32" else 2.4,
        )
    users = [f"u{i}" for i in range(many)]
    linear = untrained_scorer(backbone, dtypes[-1], UserConfig("individual"), people=users)
    yield Ratio(
        f"linear heads, 16 responses: {many:,} users / one",
        lambda: linear.score_users(prompt, responses, users),
        lambda: linear.score_users(prompt, responses, users[:1]),
        at_most=1.05,
    )
    for tokens, bar in ((1, 25.0), (10, 5.0)):
        prefix, suffix = (
            soft_prompts(backbone, dtypes[-1], tokens, users, position) for position in get_args(Position)
        )
        yield Ratio(
            f"soft prompt of {tokens}, {people} users and 16 responses: prefix / suffix",
            _for_users(prefix, prompt, responses, users[: people // _PREFIX_SHARE]),
            _for_users(suffix, prompt, responses, users[:people]),
            at_least=bar,
            scale=float(people // (people // _PREFIX_SHARE)),
            repeats=1,
        )


def untrained_scorer(
    backbone: str,
    dtype: Dtype,
    users: UserConfig | None = None,
    reward: RewardModelConfig | None = None,
    people: Sequence[str] = (),
) -> Scorer:
    config = TrainConfig(users=users or UserConfig("uniform"), reward=reward or RewardModelConfig())
    config.backbone.name, config.backbone.dtype = backbone, dtype
    return Scorer(new_checkpoint(config, UserIndex(people)))


def soft_prompts(
    backbone: str, dtype: Dtype, tokens: int, people: Sequence[str], position: Position = "suffix"
) -> Scorer:
    """A scorer with an untrained soft prompt of `tokens` virtual tokens for each user."""
    reward = RewardModelConfig("soft_prompt", position)
    return untrained_scorer(backbone, dtype, UserConfig("individual", tokens), reward, people)


def _scoring(scorer: Scorer, prompts: Sequence[str], responses: Sequence[str]) -> Callable[[], object]:
    return lambda: scorer.score_batch(prompts, responses, [None] * len(responses))


def _for_users(scorer: Scorer, prompt: str, responses: Sequence[str], users: Sequence[str]) -> Callable[[], object]:
    return lambda: scorer.score_users(prompt, responses, users)


def _bare(scorer: Scorer, texts: Sequence[Encoded]) -> Callable[[], object]:
    """The backbone alone on full sequences, sorted by length, with the scorer's token budget per batch."""
    model = scorer.model
    assert isinstance(model, RewardModel)
    padded = [pad([texts[i] for i in indices]) for indices in batches([len(s.ids) for s in texts], 4096)]

    @torch.no_grad()
    def read() -> None:
        for batch in padded:
            model.backbone(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long(), use_cache=False)

    return read


def _mixed(size: float) -> tuple[list[str], list[str]]:
    """(prompts, responses): two responses to a prompt, equally many of either data set."""
    draw = torch.Generator().manual_seed(0)
    prompts, responses = [], []
    for prompt_lengths, response_lengths in (UKP, _TLDR):
        for length in prompt_lengths:
            prompt = words(int(length * size), draw)
            for i in torch.randint(5, (2,), generator=draw).tolist():
                prompts.append(prompt)
                responses.append(words(int(response_lengths[i] * size), draw))
    return prompts, responses


def answers_of(n: int, length: int) -> list[str]:
    """n responses of `length` words."""
    draw = torch.Generator().manual_seed(1)
    return [words(length, draw) for _ in range(n)]


def words(n: int, draw: torch.Generator | None = None) -> str:
    """n random words, one token each."""
    draw = draw or torch.Generator().manual_seed(2)
    return " ".join(_WORDS[i] for i in torch.randint(len(_WORDS), (max(1, n),), generator=draw).tolist())
