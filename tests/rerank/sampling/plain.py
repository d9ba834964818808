"""Sampling by plain transformers, to compare with."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TemperatureLogitsWarper, TopPLogitsWarper

from rerank.sampling.config import Sampling
from rerank.sampling.sampler import Sampler


def plain(folder: str, prompt: str, n: int, sampling: Sampling, ends: list[str]) -> tuple[list[str], list[list[int]]]:
    """(texts, ids): the whole sequence is read again for each token, and transformers' own warpers are used.

    Answer k draws with random numbers of its own: the token at which the distribution function passes them.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    text = prompt
    if tokenizer.chat_template:
        turn = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        text = re.sub(r"^<\|im_start\|>system\n.*?<\|im_end\|>\n", "", text)  # SmolLM2's own, which is left out
    ids, end_ids = tokenizer(text)["input_ids"], tokenizer.convert_tokens_to_ids(ends)
    answers = []
    for k in range(n):
        new: list[int] = []
        for u in np.random.default_rng([sampling.seed, k, *ids]).random(sampling.max_new_tokens):
            with torch.no_grad():
                scores = model(torch.tensor([[*ids, *new]])).logits[:, -1]
            scores = TemperatureLogitsWarper(sampling.temperature)(None, scores)
            if sampling.top_p < 1.0:
                scores = TopPLogitsWarper(sampling.top_p)(None, scores)
            p = scores[0].double().softmax(-1)
            order = p.argsort(descending=True) if sampling.top_p < 1.0 else torch.arange(len(p))
            new.append(int(order[(p[order].cumsum(-1) > u).nonzero()[0, 0]]))
            if new[-1] in end_ids:
                break
        answers.append(new)
    return [t.strip() for t in tokenizer.batch_decode(answers, skip_special_tokens=True)], answers


@contextmanager
def counted(sampler: Sampler) -> Iterator[list[tuple[int, ...]]]:
    """Shapes of the ids that the generator's transformer is given in here."""
    calls: list[tuple[int, ...]] = []

    def note(module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(tuple((args[0] if args else kwargs["input_ids"]).shape))  # by place or by name

    handle = sampler.model.base_model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()
