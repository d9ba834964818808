"""Simulated users whose preferences a personalised model must recover and a uniform one cannot."""

import random
from dataclasses import replace

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


def users_with_texts(n_prompts: int, seed: int, people: int, of: str = "p", tells: bool = True) -> list[Comparison]:
    """`opposed_people` with a `user_text` each; a random 30 % of their comparisons.

    With `tells`, the texts of users who prefer "king" contain it and the others do not; otherwise at random.
    """
    draw = random.Random(seed + 1)
    plain = [w for w in WORDS if w != "king"]
    texts = {}
    for person in range(people):
        likes = person % 2 == 0 if tells else draw.random() < 0.5
        words = draw.choices(plain, k=4)
        i_king = draw.randrange(4)
        texts[f"p{person}"] = " ".join([*words[:i_king], "king" if likes else draw.choice(plain), *words[i_king:]])
    log = opposed_people(n_prompts, seed, people)
    kept = [c for c in log if draw.random() < 0.3]
    return [replace(c, user_id=of + c.user_id[1:], user_text=texts[c.user_id], p_chosen=0.85) for c in kept]
