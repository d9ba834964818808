"""Beside other work: sampling with one busy process on the machine, and what waiting passively costs without one.

OpenMP reads how its threads wait when torch is imported, so each way of waiting is measured in a process of its own.
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
    """Answers drawn beside a busy process over the same alone, by default; passive waiting over spinning, alone."""
    draw = partial(_seconds, backbone, n, new)
    name = f"drawing {n} answers of {new} tokens, "
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
    """A process that computes on one core as long as the block lasts."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _seconds(backbone: str, n: int, new: int, wait: str | None = None) -> float:
    """What drawing takes in a fresh process; `wait` is how its threads wait, the project's own way if left out."""
    given = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment = given if wait is None else given | {"OMP_WAIT_POLICY": wait}
    code = f"import prm; from benchmarks import busy; print(busy.seconds({backbone!r}, {n}, {new}))"  # prm before torch
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout)


def seconds(backbone: str, n: int, new: int) -> float:
    """What it takes to draw n answers of `new` tokens to a prompt of 60 words, the first draw left out."""
    sampler = Sampler.from_pretrained(backbone, torch.device("cpu"))
    sampling = Sampling(max_new_tokens=new, min_new_tokens=new)
    prompt = sampler.ask(words(60, torch.Generator().manual_seed(0)))
    sampler.draw([prompt], 2, Sampling(max_new_tokens=2))
    return timed(lambda: sampler.draw([prompt], n, sampling))
