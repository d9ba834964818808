"""Answer k has random numbers of its own, whatever N is: how often rounding makes another answer of it."""

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
    """Answers of N = `few` that are others at N = `many`, as a share, in either dtype.

    Args:
        new: tokens of an answer.
    """
    draw, sampling = torch.Generator().manual_seed(0), Sampling(max_new_tokens=new)
    asked = [words(60, draw) for _ in range(prompts)]
    for dtype, most in ((torch.float32, 0.1), (torch.bfloat16, None)):
        sampler = Sampler.from_pretrained(backbone, _CPU, dtype)
        name = str(dtype).removeprefix("torch.")
        yield Ratio(
            f"answers of N = {few} that are others at N = {many}, {name} / all",
            partial(differing, sampler, asked, few, many, sampling),
            lambda: few * prompts,
            at_most=most,
            repeats=1,
            unit="answers",
        )


def differing(sampler: Sampler, prompts: list[str], few: int, many: int, sampling: Sampling) -> int:
    """How many of the first answers change when more are drawn."""
    found = 0
    for prompt in prompts:
        pairs = zip(*(sampler.draw([sampler.ask(prompt)], n, sampling) for n in (few, many)), strict=False)
        found += sum(one != other for one, other in pairs)
    return found
