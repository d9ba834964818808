"""Simulated people whose taste a personal model must recover and a uniform one cannot."""

import random
from dataclasses import replace

from prm.data.comparison import Comparison
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


def told_people(n_prompts: int, seed: int, people: int, of: str = "p", tells: bool = True) -> list[Comparison]:
    """`opposed_people` who each say something of themselves, in words of their own; half of them judge each prompt.

    Those who prefer "king" name it, the others do not; unless `tells`: then who names it is drawn.
    """
    draw = random.Random(seed + 1)
    plain = [w for w in WORDS if w != "king"]
    texts = {}
    for person in range(people):
        likes = person % 2 == 0 if tells else draw.random() < 0.5
        words = draw.choices(plain, k=4)
        spot = draw.randrange(4)
        texts[f"p{person}"] = " ".join([*words[:spot], "king" if likes else draw.choice(plain), *words[spot:]])
    log = opposed_people(n_prompts, seed, people)
    kept = [c for c in log if draw.random() < 0.3]
    return [replace(c, user_id=of + c.user_id[1:], user_text=texts[c.user_id], p_chosen=0.85) for c in kept]
