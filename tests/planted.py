"""Simulated users whose preferences a personalised model must recover and a uniform one cannot."""

import random

from prm.data.comparison import Comparison
from tests.conftest import WORDS


def opposed_people(n_prompts: int, seed: int, people: int = 4) -> list[Comparison]:
    """Half of the users prefer the response with "king", the other half the one without; no noise."""
    draw = random.Random(seed)
    plain = [w for w in WORDS if w != "king"]
    out = []
    for i in range(n_prompts):
        prompt = f"what of {draw.choice(plain)} {draw.choice(plain)} {i}?"
        words = draw.choices(plain, k=5)
        i_king = draw.randrange(5)
        with_king, without = " ".join([*words[:i_king], "king", *words[i_king:]]), " ".join(draw.choices(plain, k=6))
        for person in range(people):
            pair = (with_king, without) if person % 2 == 0 else (without, with_king)
            out.append(Comparison(f"p{person}", prompt, *pair))
    return out
