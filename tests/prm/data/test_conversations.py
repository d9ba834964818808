"""Which prompts are turns of one conversation, worked by hand."""

import time

import pytest

from prm.data.comparison import Comparison, Message, Prompt
from prm.data.conversations import first_prompts, history_of


def said(*turns: str) -> tuple[Message, ...]:
    """A conversation that the user begins."""
    return tuple(Message("assistant" if i % 2 else "user", turn) for i, turn in enumerate(turns))


def groups(*prompts: Prompt) -> list[int]:
    """For each prompt the place of the first one of its conversation; every prompt was answered with yes or no."""
    first = first_prompts([Comparison("u", prompt, "yes", "no") for prompt in prompts])
    keys = [first[prompt] for prompt in prompts]
    return [keys.index(key) for key in keys]


HH = "\n\nHuman: hi\n\nAssistant:"
JOINED: dict[str, tuple[list[Prompt], list[int]]] = {
    "turns": ([said("q"), said("q", "a", "r"), said("q", "a", "r", "b", "s"), said("x")], [0, 0, 0, 3]),
    "other first turns": ([said("q"), said("x", "q", "r")], [0, 1]),
    "two ways on from one turn": ([said("q", "a", "r"), said("q"), said("q", "b", "r")], [0, 0, 0]),
    "two ways on from a turn that nobody judged": ([said("q", "a", "r"), said("q", "b", "r")], [0, 1]),
    "a turn left out": ([said("q"), said("q", "a", "r", "b", "s")], [0, 0]),
    "a text and a conversation": (["q", said("q", "a", "r")], [0, 0]),
    "a system message": (
        [(Message("system", "s"), *said("q")), (Message("system", "s"), *said("q", "a", "r")), said("q")],
        [0, 0, 2],
    ),
    "half of a message": ([said("q"), said("q and q", "a", "r")], [0, 1]),
    "a message told in two": ([said("q", "a", "r"), said("q", "a r", "s")], [0, 1]),
    "white space round a turn": ([said("q\n"), said("q", " a", "r")], [0, 0]),
    "written out": ([HH, f"{HH} a\n\nHuman: so?\n\nAssistant:", "\n\nHuman: ho\n\nAssistant:"], [0, 0, 2]),
    "written out and bare": (["hi", HH, said("hi", "a", "so?"), f"{HH} a\n\nHuman: so?\n\nAssistant:"], [0, 0, 0, 0]),
    "written out in brackets": (["[user]: q", "[user]: q\n\n[model]: a\n\n[user]: r"], [0, 0]),
    "written out with marks": (["<|user|>\nq\n<|assistant|>\n", "<|user|>\nq\n<|assistant|>\na\n<|user|>\nr"], [0, 0]),
    "roles between words": (["say", "say AI: hello"], [0, 1]),
    "an answer goes on": (["[INST] q [/INST]", "[INST] q [/INST] yes </s>[INST] r [/INST]"], [0, 0]),
    "another text goes on": (["[INST] q [/INST]", "[INST] q [/INST] more"], [0, 1]),
    "lines go on": (["q", "q\nan answer\nr"], [0, 0]),
    "words go on": (["prompt 1", "prompt 10", "prompt 1 and more"], [0, 1, 2]),
    "a beginning that is none stands between": (["q", "q\nx", "q\nxy"], [0, 0, 0]),
}


@pytest.mark.parametrize("case", JOINED)
def test_prompts_that_begin_one_another_are_one_conversation(case: str) -> None:
    prompts, expected = JOINED[case]
    assert groups(*prompts) == expected
    backwards = groups(*reversed(prompts))
    n = len(prompts) - 1
    same = [[expected[i] == expected[j] for j in range(n + 1)] for i in range(n + 1)]
    assert [[backwards[n - i] == backwards[n - j] for j in range(n + 1)] for i in range(n + 1)] == same


def test_a_conversation_is_named_by_its_shortest_prompt() -> None:
    rows = [Comparison("u", prompt, "yes", "no") for prompt in (said("q", "a", "r"), "x", "q")]
    assert first_prompts(rows) == {said("q", "a", "r"): "q", "x": "x", "q": "q"}


def test_the_answers_that_a_prompt_holds() -> None:
    assert history_of("q") == history_of(said("q")) == ()
    assert history_of(said("q", "a", "r", "b", "s")) == ("a", "b")
    assert history_of("Human: q\n\nAssistant: a\n\nHuman: r\n\nAssistant:") == ("a",)


def test_many_prompts_that_begin_alike_take_seconds() -> None:
    """20,000 prompts of which 10,000 begin with others: comparing each with each would take minutes."""
    head = "SUBREDDIT: r/all\n" + "x" * 200
    texts = [f"{head} {i}" for i in range(10_000)]
    prompts: list[Prompt] = [
        *texts,
        *(said(text, "a", "b") for text in texts[:5_000]),
        *(f"{text}\ny" for text in texts[5_000:]),
    ]
    rows = [Comparison("u", prompt, "yes", "no") for prompt in prompts]
    started = time.process_time()
    first = first_prompts(rows)
    assert time.process_time() - started < 20
    assert len(set(first.values())) == 10_000
