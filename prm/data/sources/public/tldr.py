"""Shared by the two sources of Reddit summaries: simulated tastes for length, and texts that state them."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

_SEED, _SHORTER = 3456, 0.3
# user texts; the last four of each taste are for users without training comparisons
_LONGER = (
    "I like long summaries that keep the details.",
    "Please be thorough. I would rather read more than miss something.",
    "Give me the whole story, with all that matters.",
    "I prefer detailed answers.",
    "Longer is better for me.",
    "Tell me everything, I have time.",
    "A good summary leaves nothing out.",
    "I enjoy rich, complete explanations.",
    "Walk me through all of it, step by step.",
    "I care about the background as much as about the point.",
    "I would rather know too much than too little.",
    "Short notes leave me with questions, so write a lot.",
    "Give examples, reasons and context.",
    "I read slowly and happily, pages are fine.",
    "Spell it out, nothing should be left to guess.",
    "Depth matters to me.",
    "I am curious about every detail.",
    "Explain it in full sentences and at length.",
    "Cover everything that was said.",
    "An extensive answer shows me that you care.",
    "The more detail the better.",
    "I want full and extensive summaries.",
    "Do not skip anything, I like to read at length.",
    "Comprehensive answers suit me best.",
)
_SHORTER_TEXTS = (
    "I like short summaries that get to the point.",
    "Please be brief. I have little time.",
    "Just the gist, nothing more.",
    "I prefer concise answers.",
    "Shorter is better for me.",
    "Keep it to a few words.",
    "A good summary is a quick one.",
    "I hate long texts, cut them down.",
    "One line is enough for me.",
    "I skim, so leave out what is not needed.",
    "I would rather know too little than read too much.",
    "Long notes lose me, so write little.",
    "No examples, no background, only the point.",
    "I read on the bus, a sentence is fine.",
    "Trim it down, I can guess the rest.",
    "Brevity matters to me.",
    "I do not care about the details.",
    "Say it in as few words as you can.",
    "Only mention what matters most.",
    "A quick answer shows me that you care.",
    "The fewer words the better.",
    "I want compact and snappy summaries.",
    "Do not go on and on, make it short.",
    "Terse answers suit me best.",
)
_N_TRAIN_TEXTS = 20


def draw_tastes(workers: int) -> list[bool]:
    """Whether each worker, those with most training comparisons first, prefers the shorter summary.

    The paper's draw (section 5.1), by numpy's legacy generator: of the first ten, the 4th, 5th and 6th do. Drawing for
    more workers does not change the first ones.
    """
    drawn = np.random.RandomState(_SEED).choice([0, 1], size=workers, p=[1 - _SHORTER, _SHORTER])
    return [bool(taste) for taste in drawn]


def self_descriptions(tastes: Sequence[bool], people: int) -> list[str]:
    """A text for each user that states the taste; users after the first `people` get texts of their own."""
    descriptions, counts = [], Counter[tuple[bool, bool]]()
    for number, shorter in enumerate(tastes):
        texts, unseen = _SHORTER_TEXTS if shorter else _LONGER, number >= people
        choice = texts[_N_TRAIN_TEXTS:] if unseen else texts[:_N_TRAIN_TEXTS]
        descriptions.append(choice[counts[shorter, unseen] % len(choice)])
        counts[shorter, unseen] += 1
    return descriptions
