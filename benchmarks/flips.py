"""Response k has its own random numbers for any N: how often rounding changes it when N changes."""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.ratio import Ratio
from benchmarks.scoring import words
from rerank.sampling.config import Sampling
from rerank.sampling.sampler import Sampler

_CPU = torch.device("cpu")


def ratios(
    backbone: str = "smollm2-135m", few: int = 4, many: int = 16, prompts: int = 3, new: int = 32
) -> Iterator[Ratio]:
    """Share of the responses at N = `few` that differ at N = `many`, in float32 and bfloat16.

    Args:
        new: tokens per response.
    """
    draw, sampling = torch.Generator().manual_seed(0), Sampling(max_new_tokens=new)
    texts = [words(60, draw) for _ in range(prompts)]
    for dtype, bar in ((torch.float32, 0.1), (torch.bfloat16, None)):
        sampler = Sampler.from_pretrained(backbone, _CPU, dtype)
        name = str(dtype).removeprefix("torch.")
        yield Ratio(
            f"responses of N = {few} that are others at N = {many}, {name} / all",
            partial(differing, sampler, texts, few, many, sampling),
            lambda: few * prompts,
            at_most=bar,
            repeats=1,
            unit="responses",
        )


def differing(sampler: Sampler, prompts: list[str], few: int, many: int, sampling: Sampling) -> int:
    """How many of the first responses change when more are sampled."""
    changed = 0
    for prompt in prompts:
        pairs = zip(
            *(sampler.generate([sampler.encode_prompt(prompt)], n, sampling) for n in (few, many)), strict=False
        )
        changed += sum(one != other for one, other in pairs)
    return changed
