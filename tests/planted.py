"""Simulated people whose taste a personal model must recover and a uniform one cannot."""

import random

from prm.comparison import Comparison
from tests.conftest import WORDS


def opposed_people(n_prompts: int, seed: int, people: int = 4) -> list[Comparison]:
    """Half of the people prefer the answer with "king" in it, the other half the one without; no noise."""
    draw = random.Random(seed)
    plain = [w for w in WORDS if w != "king"]
    out = []
    for i in range(n_prompts):
        prompt = f"what of {draw.choice(plain)} {draw.choice(plain)} {i}?"
        words = draw.choices(plain, k=5)
        spot = draw.randrange(5)
        with_king, without = " ".join([*words[:spot], "king", *words[spot:]]), " ".join(draw.choices(plain, k=6))
        for person in range(people):
            pair = (with_king, without) if person % 2 == 0 else (without, with_king)
            out.append(Comparison(f"p{person}", prompt, *pair))
    return out
