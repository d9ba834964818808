"""Best of N: sampling and scoring by `rerank`, over transformers' `generate` and plain scoring."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.ratio import Ratio, timed
from benchmarks.users import words
from prm.checkpoint.checkpoint import load_policy
from prm.config import RewardModelConfig, TrainConfig, UserConfig
from prm.data.encoding import pad
from prm.models.backbones import choose_dtype
from prm.models.reward_model import RewardModel
from prm.scoring.scorer import Scorer
from prm.training.setup import new_checkpoint
from prm.users.index import UserIndex
from rerank.ranking.candidates import Candidates
from rerank.sampling.config import Sampling
from rerank.sampling.sampler import Sampler

_CPU = torch.device("cpu")


def ratios(n: int = 16, prompt: int = 300, new: int = 64, backbone: str = "smollm2-135m") -> Iterator[Ratio]:
    """Sample n responses of `new` tokens to a prompt of about `prompt` tokens, and score them by a linear head.

    Policy and head have the same backbone. Both sides run in float32, then each in its fastest dtypes.
    """
    text = words(prompt, torch.Generator().manual_seed(0))
    sampling = Sampling(max_new_tokens=new, min_new_tokens=new)
    name = f"rerank -n {n}, prompt of {prompt}, {new} new tokens / generate and plain scoring, "
    dtypes = (torch.float32, torch.bfloat16)
    generate = {dtype: _generate(backbone, text, dtype, n, sampling) for dtype in dtypes}
    score = {dtype: _score(backbone, text, dtype) for dtype in dtypes}
    ours = _ours(backbone, text, n, sampling, torch.float32)
    plain = partial(_plain, generate[torch.float32], score[torch.float32])
    yield Ratio(name + "float32", ours, plain, at_most=1 / 1.8, repeats=3)
    responses = generate[torch.float32]()
    ours = _ours(backbone, text, n, sampling, choose_dtype("auto", _CPU))
    fastest_score = min(score.values(), key=lambda side: timed(partial(side, responses)))
    plain = partial(_plain, min(generate.values(), key=timed), fastest_score)
    yield Ratio(name + "best dtypes of each", ours, plain, at_most=1 / 1.4, repeats=3)


def _ours(backbone: str, text: str, n: int, sampling: Sampling, dtype: torch.dtype) -> Callable[[], Tensor]:
    scorer = _scorer(backbone, dtype)
    candidates = Candidates(Sampler.from_pretrained(backbone, _CPU, dtype), scorer)
    return lambda: scorer.score(text, candidates.sample(text, n, sampling))


def _plain(generate: Callable[[], list[str]], score: Callable[[list[str]], Tensor]) -> Tensor:
    return score(generate())


def _generate(backbone: str, text: str, dtype: torch.dtype, n: int, sampling: Sampling) -> Callable[[], list[str]]:
    """Sampling as with plain transformers."""
    loaded = load_policy(backbone, _CPU, dtype)
    tokenizer, generate = loaded.tokenizer, cast(Any, loaded.model.backbone).generate
    ids = torch.tensor([loaded.encoder().encode_prompt(text)])
    options = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    length = {"max_new_tokens": sampling.max_new_tokens, "min_new_tokens": sampling.max_new_tokens}

    def work() -> list[str]:
        new = generate(ids, attention_mask=torch.ones_like(ids), num_return_sequences=n, **options, **length)
        return list(map(str, tokenizer.batch_decode(new[:, ids.shape[1] :], skip_special_tokens=True)))

    return work


def _score(backbone: str, text: str, dtype: torch.dtype) -> Callable[[list[str]], Tensor]:
    """Scoring of all responses, each with its prompt, in one batch."""
    scorer = _scorer(backbone, dtype)
    model = cast(RewardModel, scorer.model)

    def work(responses: list[str]) -> Tensor:
        with torch.no_grad():
            pooled = model.pooled(pad([scorer.reader.encode(text, response) for response in responses]))
            return model.linear_reward(
                model.head_input(pooled), model.heads(torch.zeros(len(responses), dtype=torch.long))
            )

    return work


def _scorer(backbone: str, dtype: torch.dtype) -> Scorer:
    """An untrained linear head on all layers; its weights do not matter for the time."""
    config = TrainConfig(users=UserConfig("individual", num_virtual_tokens=1), reward=RewardModelConfig(pooling="mean"))
    config.backbone.name = backbone
    config.backbone.dtype = "float32" if dtype == torch.float32 else "bfloat16"
    return Scorer(new_checkpoint(config, UserIndex()))
