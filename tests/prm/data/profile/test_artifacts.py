"""Formats that give the chosen answer away: found where planted, not where there are none."""

import random

import numpy as np
import pytest

from prm.data.profile.artifacts import CUT, FORMATS, Artefacts, find_artefacts
from tests.conftest import WORDS

# one answer that has the format, and one that nearly has it
EXAMPLES = {
    "begins with white space": (" The fox.", "The fox. "),
    "begins with a lower-case letter": (" the fox.", "The fox."),
    "ends without punctuation": ("The fox ", "The fox?"),
    "ends with white space": ("The fox.\n", " The fox."),
    "has no capital letter": ("the fox.", "the Fox."),
    "has fewer than three words": ("The fox.", "The old fox."),
    "has a line break": ("The fox.\nAnd more.", "The fox.\n"),
    "has a list": ("Take:\n- a fox\n- a dog", "Take a fox - or a dog - 2. at most"),
    "has a code fence": ("```py\nx\n```", "`x`"),
    "has bold markdown": ("The **old** fox.", "2 ** 3 ** 4 is 2**81, says snake_case__name."),
    "has a markdown heading": ("# Foxes\nare red.", "The #1 fox.\n#fox"),
    "is a Python list or dict": ("['The fox.']", "[The fox] said 'no'."),
    "has quotes round the whole": ('"The fox."', '"The fox" is "red"'),
    "has a role word before a colon": ("Assistant: The fox.", "The assistant: a fox."),
    "has control tokens": ("The fox.<|im_end|>", "If a < b | b > c, the fox."),
    "has HTML tags": ("The fox.<br/>", "The <fox> is 1 < 2."),
    "has HTML entities": ("The fox &amp; the dog", "R&D; fox & dog"),
    "has written-out escapes": (r"The fox.\nThe dog", "The fox/dog"),
    "has broken characters": ("It\u00e2\u20ac\u2122s", "It\u2019s a na\u00efve caf\u00e9"),
    "has letters beyond ASCII": ("na\u00efve", "naive \u2019 \u20ac"),
    "has emoji": ("The fox \U0001f98a", "The fox :-) \u2019"),
    "has a space before punctuation": ("The fox , the dog .", "The fox, the dog."),
    "has two spaces in a row": ("The  fox.", "  The fox.  "),
}
MORE = [
    ("is a Python list or dict", '[{"role": "assistant", "content": "The fox."}]'),
    ("is a Python list or dict", "{'content': 'The fox.'}\n"),
    ("has control tokens", "The fox.</s>"),
    ("has control tokens", "[/INST] The fox."),
    ("has role word", "\n\nHuman: and now?"),
    ("has a list", "1. fox\n2) dog"),
    ("has HTML tags", '<a href="x">The fox</a>'),
    ("has broken characters", "caf\ufffd"),
    ("has quotes round the whole", "\u201cThe fox.\u201d"),
]


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_distinguished_from_what_looks_like_them(name: str) -> None:
    has, nearly = EXAMPLES[name]
    assert FORMATS[name](has)
    assert not FORMATS[name](nearly)


@pytest.mark.parametrize(("name", "text"), MORE)
def test_further_forms_of_formats(name: str, text: str) -> None:
    rule = next(rule for known, rule in FORMATS.items() if known.startswith(name) or name[4:] in known)
    assert rule(text)


def found_in(pairs: list[tuple[str, str]], most: int = 20_000, seed: int = 0) -> Artefacts:
    """Of (chosen, rejected)."""
    texts = sorted({text for pair in pairs for text in pair})
    chosen, rejected = (np.array([texts.index(pair[i]) for pair in pairs]) for i in (0, 1))
    return find_artefacts(texts, chosen, rejected, most, seed)


def clean(n: int, seed: int = 0) -> list[tuple[str, str]]:
    """Sentences that differ in words alone, some of them in lists, bold or without a full stop, whoever wins."""
    draw = random.Random(seed)

    def sentence() -> str:
        text = " ".join(draw.choices(WORDS, k=draw.randrange(4, 9))).capitalize() + draw.choice([".", ".", ""])
        return draw.choice([text, text, f"**{text}**", f"- {text}\n- {text}", text.lower(), f" {text} "])

    return [(sentence(), sentence()) for _ in range(n)]


def test_clean_data_is_not_flagged() -> None:
    for seed in range(5):
        found = found_in(clean(300, seed))
        assert found.flagged == ()
        assert len(found.formats) > 5
        assert (found.decided, np.isnan(found.decided_rightly)) == (0.0, True)


FAULTS = {
    "is a Python list or dict": lambda text: f"['{text}']",
    "begins with white space": lambda text: f" {text}",
    "has control tokens": lambda text: f"{text}<|im_end|>",
    "has role word": lambda text: f"Assistant: {text}",
    "has quotes round the whole": lambda text: f'"{text}"',
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_planted_faults_are_found(name: str, side: str) -> None:
    """One side of every pair is rendered otherwise, as where one of two columns held a list."""
    spoil = FAULTS[name]
    plain = [(a.replace('"', ""), b) for a, b in ((f"The {x.strip()}.", f"The {y.strip()}.") for x, y in clean(60))]
    found = found_in([(spoil(a), b) if side == "chosen" else (a, spoil(b)) for a, b in plain])
    flagged = next(f for f in found.flagged if f.name == name or name[4:] in f.name)
    assert (flagged.pairs, flagged.share_of_pairs) == (60, 1.0)
    assert flagged.chosen == (1.0 if side == "chosen" else 0.0)
    assert f"it is the {side} one in 100.0% of them" in flagged.words
    assert (found.decided, found.decided_rightly) == (1.0, 1.0)


def bold(n: int, chosen: int, others: int) -> Artefacts:
    """n pairs with one bold answer, which is the chosen one in `chosen` of them, and `others` without."""
    pairs = [(f"A **bold** fox {i}.", f"A plain fox {i}.") for i in range(n)]
    pairs = [pair if i < chosen else pair[::-1] for i, pair in enumerate(pairs)]
    return found_in(pairs + [(f"One old fox {i}.", f"Two old foxes {i}.") for i in range(others)])


@pytest.mark.parametrize(
    ("n", "chosen", "others", "flagged"),
    [
        (20, 20, 0, True),
        (19, 19, 0, False),  # too few pairs
        (20, 19, 0, True),  # 95%
        (20, 1, 0, True),  # 5%
        (20, 18, 0, False),
        (20, 2, 0, False),
        (20, 20, 980, True),  # 2% of all
        (20, 20, 981, False),
    ],
)
def test_what_is_flagged(n: int, chosen: int, others: int, flagged: bool) -> None:
    found = bold(n, chosen, others)
    assert [f.name for f in found.formats] == ["has bold markdown"]
    only = found.formats[0]
    assert (only.pairs, only.chosen, only.texts) == (n, chosen / n, n)
    assert only.share_of_pairs == pytest.approx(n / (n + others))
    assert only.flagged is flagged
    assert found.decided == (pytest.approx(n / (n + others)) if flagged else 0.0)


def test_pairs_in_which_both_have_a_format_say_nothing() -> None:
    pairs = [(f"A **bold** fox {i}.", f"A plain fox {i}.") for i in range(30)]
    pairs += [(f"A **bold** king {i}.", f"A **bold** dog {i}.") for i in range(30)]
    (only,) = found_in(pairs).formats
    assert (only.pairs, only.share_of_pairs, only.texts) == (30, 0.5, 90)


def test_what_flagged_formats_tell_together() -> None:
    """30 bold chosen, one bold rejected, 25 lists rejected; in 5 the chosen one is bold too: 51 told, 50 right."""
    pairs = [(f"A **bold** fox {i}.", f"A fox {i}.") for i in range(25)]
    pairs += [(f"A **bold** dog {i}.", f"- A dog {i}.") for i in range(5)]
    pairs += [(f"A dog {i}.", f"- A king {i}.") for i in range(20)]
    pairs += [("An old fox.", "A **bold** king.")]
    pairs += [(f"A fox {i}?", f"A dog {i}?") for i in range(49)]
    found = found_in(pairs)
    assert {f.name: (f.pairs, f.flagged) for f in found.formats} == {
        "has bold markdown": (31, True),
        "has a list": (25, True),
    }
    assert (found.decided, found.decided_rightly) == (pytest.approx(0.51), pytest.approx(50 / 51))


def test_opposite_votes_of_flagged_formats_tell_nothing() -> None:
    pairs = [(f"A **bold** fox {i}.", f"A fox {i}.") for i in range(40)]
    pairs += [(f"A dog {i}.", f"- A king {i}.") for i in range(40)]
    pairs += [("- A **bold** list.", "Nothing of it.")]
    found = found_in(pairs)
    assert len(found.flagged) == 2
    assert found.decided == pytest.approx(80 / 81)


def test_answers_cut_at_one_length_are_found() -> None:
    draw = random.Random(0)
    long = ["".join(draw.choices("abc ", k=draw.randrange(150, 400))).strip() + "!" for _ in range(40)]
    pairs = [("A" + text, "B" + text[:99]) for text in long]
    (cut,) = [f for f in found_in(pairs).formats if f.name == CUT]
    assert (cut.pairs, cut.chosen, cut.flagged) == (40, 0.0, True)
    few = [*pairs[:9], *clean(30)]  # nine of one length may be chance
    assert CUT not in {f.name for f in found_in(few).formats}
    short = [(a, b[:70]) for a, b in pairs]  # so may short texts be
    assert CUT not in {f.name for f in found_in(short).formats}


def test_length_is_not_a_format() -> None:
    pairs = [(f"The old king and the old fox {i} sleep.", f"The fox {i} sleeps.") for i in range(50)]
    assert found_in(pairs).flagged == ()


def test_one_answer_in_many_pairs_is_named_as_such() -> None:
    found = found_in([(f"A fox {i}.", "A **bold** fox.") for i in range(30)])
    (only,) = found.flagged
    assert only.texts == 1
    assert only.words.endswith("(one response only)")


def test_no_pairs_and_samples() -> None:
    empty = find_artefacts([], np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert (empty.pairs, empty.formats, empty.decided) == (0, (), 0.0)
    found = found_in([(f"A **bold** fox {i}.", f"A fox {i}.") for i in range(100)], most=40)
    assert (found.pairs, found.of_pairs, found.formats[0].pairs) == (40, 100, 40)


def test_which_pairs_are_looked_at_depends_on_the_seed_alone() -> None:
    """Half of the chosen answers are bold: among 40 of 400 pairs their number is the draw's."""
    draw = random.Random(0)
    pairs = [(f"A **bold** fox {i}." if draw.random() < 0.5 else f"A fox {i}.", f"Fox {i}.") for i in range(400)]
    seen = [found_in(pairs, most=40, seed=seed).formats for seed in (0, 0, 0, 0, 1, 2, 3)]
    assert len(set(seen[:4])) == 1 < len(set(seen))
