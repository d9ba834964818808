"""Token lengths and cuts against the encoder itself."""

from dataclasses import asdict

from prm.data.comparison import Comparison, Message
from prm.data.profile.token_lengths import measure_tokens
from tests.conftest import WORDS
from tests.prm.data.profile.logs import encoder_of


def test_token_lengths_and_cuts_are_the_encoders(tiny: str) -> None:
    """Against encoding every sequence, with and without the limit."""
    # without its first turn, the conversation is far shorter than the limit
    chat = (Message("user", "fox " * 20), Message("assistant", "a dog"), Message("user", "the old king?"))
    rows = [
        Comparison("a", " ".join(WORDS[: i + 2]), f"{WORDS[i]} {'fox ' * i}", "king", user_text="I am old" * (i % 2))
        for i in range(8)
    ]
    rows += [
        Comparison("b", chat, "a king mixes", "wizards"),
        Comparison("b", "q", "x" * 200, "y", origin="log, line 9"),
    ]
    roomy, tight = encoder_of(tiny, 10_000), encoder_of(tiny, 32)
    found = measure_tokens(rows, tight)
    sequences = {(c.prompt, r, c.user_text) for c in rows for r in (c.chosen, c.rejected)}
    full = {key: roomy.encode(key[0], key[1], 0, key[2]) for key in sequences}
    answers = {key[1]: e.response[1] - e.response[0] for key, e in full.items()}
    prompts = {(key[0], key[2]): e.response[0] for key, e in full.items()}
    assert found.sequences == found.of_sequences == len(sequences)
    assert tuple(asdict(found.answers).values())[0:2] == (len(answers), min(answers.values()))
    assert (found.answers.maximum, found.answers.median) == (200, sorted(answers.values())[(len(answers) - 1) // 2])
    assert (found.prompts.texts, found.prompts.minimum, found.prompts.maximum) == (
        len(prompts),
        min(prompts.values()),
        max(prompts.values()),
    )
    assert found.unfit == 1
    assert found.first_unfit.startswith("log, line 9: the response")
    assert (tight.cuts.sequences, tight.cuts.tokens) == (0, 0)  # ours to look at, not to change
    for prompt, answer, text in sequences - {("q", "x" * 200, "")}:
        tight.encode(prompt, answer, 0, text)
    assert found.cut > 0
    lost = sum(len(e.ids) for e in full.values()) - len(full["q", "x" * 200, ""].ids)
    lost -= sum(len(tight.encode(p, a, 0, t).ids) for p, a, t in sequences - {("q", "x" * 200, "")})
    assert found.tokens_lost == lost > 0
    assert found.cut * 2 == tight.cuts.sequences  # encoded twice above


def test_tokens_of_a_sample(tiny: str) -> None:
    rows = [Comparison("a", f"q{'x' * i}", f"y{'z' * i}", "no", origin=f"line {i}") for i in range(40)]
    found = measure_tokens(rows, encoder_of(tiny, 40), most=20)
    assert (found.sequences, found.of_sequences) == (20, 80)
    assert measure_tokens(rows[::-1], encoder_of(tiny, 40), most=20).tokens_lost == found.tokens_lost > 0
    assert measure_tokens(rows, encoder_of(tiny, 40), most=20, seed=1).tokens_lost != found.tokens_lost


def test_the_first_answer_that_does_not_fit_is_named(tiny: str) -> None:
    rows = [Comparison("a", "q", "x" * (10 + 50 * i), "no", origin=f"line {i}") for i in range(4)]
    found = measure_tokens(rows, encoder_of(tiny, 40))
    assert found.unfit == 3
    assert found.first_unfit.startswith("line 1: ")
