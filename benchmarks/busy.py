"""Sampling beside a busy process, and the cost of passively waiting threads without one.

OpenMP reads its wait policy when torch is imported, so each policy is measured in a separate process.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch

from benchmarks.ratio import Ratio, timed
from benchmarks.scoring import words
from rerank.sampling.config import Sampling
from rerank.sampling.sampler import Sampler


def ratios(backbone: str = "smollm2-135m", n: int = 16, new: int = 32, repeats: int = 3) -> Iterator[Ratio]:
    """Sampling beside a busy process over sampling alone; passive waiting over spinning, alone."""
    draw = partial(_seconds, backbone, n, new)
    name = f"sampling {n} responses of {new} tokens, "
    yield Ratio(
        name + "beside one busy process / alone",
        partial(_beside, draw),
        draw,
        at_most=3.0,
        repeats=repeats,
        unit="seconds of it",
    )
    yield Ratio(
        name + "alone, threads that wait passively / that spin",
        draw,
        partial(draw, wait="ACTIVE"),
        repeats=repeats,
        unit="seconds of it",
    )


def _beside(draw: partial[float]) -> float:
    with busy_process():
        return draw()


@contextmanager
def busy_process() -> Iterator[None]:
    """Keep one core busy while the block runs."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _seconds(backbone: str, n: int, new: int, wait: str | None = None) -> float:
    """Seconds of sampling in a fresh process; `wait` is its OMP_WAIT_POLICY, by default the project's."""
    inherited = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment = inherited if wait is None else inherited | {"OMP_WAIT_POLICY": wait}
    code = f"import prm; from benchmarks import busy; print(busy.seconds({backbone!r}, {n}, {new}))"  # prm before torch
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout)


def seconds(backbone: str, n: int, new: int) -> float:
    """Seconds to sample n responses of `new` tokens to a prompt of 60 words, after a warm-up."""
    sampler = Sampler.from_pretrained(backbone, torch.device("cpu"))
    sampling = Sampling(max_new_tokens=new, min_new_tokens=new)
    prompt = sampler.encode_prompt(words(60, torch.Generator().manual_seed(0)))
    sampler.generate([prompt], 2, Sampling(max_new_tokens=2))
    return timed(lambda: sampler.generate([prompt], n, sampling))
