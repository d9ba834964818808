"""What chat templates write: where answers end, on which day, and what becomes of conversations that they refuse."""

import threading
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from prm.data import chat_template
from prm.data.chat_template import ChatTemplate, writes_date
from prm.data.comparison import Message
from prm.data.encoding import TextEncoder
from prm.errors import DataError, PrmError
from tests.conftest import CHAT_TEMPLATE, Clock, build_tokenizer

LLAMA_2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
ALPACA = (
    "{% for m in messages %}{{ '### ' + m['role'] + ':\n' + m['content'] + '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant:\n' }}{% endif %}"
)
NEW_LINE = ALPACA.replace("'\n\n'", "'\n' + eos_token")
PHI_3 = CHAT_TEMPLATE + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
WORDS = ALPACA.replace("'\n\n'", "'\n### end ###\n'")
UPPER = CHAT_TEMPLATE.replace("m['content']", "m['content']|upper")
SYSTEM_FIRST = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHAT_TEMPLATE
DATED = "{{ '<|system|>today is ' + strftime_now('%d %B %Y') + '<|end|>' }}" + CHAT_TEMPLATE
# for seconds, not for ever: with the fault put back the test fails instead of hanging
LOOPS = "{% for i in range(7000) %}{% for j in range(7000) %}{% endfor %}{% endfor %}" + CHAT_TEMPLATE
QUESTION = [Message("user", "why?")]


def tokenizer_with(template: str | None, eos: str | None = "<|eos|>") -> PreTrainedTokenizerFast:
    tokenizer = build_tokenizer()
    tokenizer.chat_template, tokenizer.eos_token = template, eos
    return tokenizer


def encoder_with(template: str | None, eos: str | None = "<|eos|>", whole: bool = False) -> TextEncoder:
    return TextEncoder(tokenizer_with(template, eos), 336, 0, "prefix", 200, whole)


@pytest.mark.parametrize(
    ("template", "eos", "closing", "stops"),
    [
        pytest.param(CHAT_TEMPLATE, "<|eos|>", "<|end|>", "<|eos|><|end|>", id="end of turn"),
        pytest.param(CHAT_TEMPLATE, None, "<|end|>", "<|end|>", id="end of turn, no end of text"),
        pytest.param(LLAMA_2, "<|eos|>", " <|eos|>", "<|eos|>", id="a space before the end"),
        pytest.param(NEW_LINE, "<|eos|>", "\n<|eos|>", "<|eos|>", id="a line end before the end"),
        pytest.param(PHI_3, "<|eos|>", "<|end|>", "<|eos|><|end|>", id="end of turn, then end of text"),
        pytest.param(ALPACA, "<|eos|>", "<|eos|>", "<|eos|>", id="no end"),
        pytest.param(WORDS, "<|eos|>", "<|eos|>", "<|eos|>", id="words for an end"),
        pytest.param(UPPER, "<|eos|>", "<|eos|>", "<|eos|>", id="answers are rewritten"),
        pytest.param(SYSTEM_FIRST, "<|eos|>", "<|end|>", "<|eos|><|end|>", id="only behind a system message"),
        pytest.param(ALPACA, None, "", "", id="no end at all"),
        pytest.param(None, "<|eos|>", "<|eos|>", "<|eos|>", id="no template"),
        pytest.param(None, None, "", "", id="neither"),
    ],
)
def test_an_answer_ends_with_the_templates_end_token_and_never_at_white_space(
    template: str | None, eos: str | None, closing: str, stops: str
) -> None:
    made = encoder_with(template, eos)
    assert made.tokenizer.decode(made.end_ids) == closing
    assert made.tokenizer.decode(made.stop_ids) == stops
    question = [Message("system", "s"), *QUESTION] if template == SYSTEM_FIRST else QUESTION
    sequence = made.encode(tuple(question), "the fox")
    assert made.tokenizer.decode(sequence.ids[sequence.response[0] :]) == f"the fox{closing}"


@pytest.mark.parametrize(
    ("template", "closing"), [(LLAMA_2, " <|eos|>"), (PHI_3, "<|end|>\n<|eos|>"), (ALPACA, "\n\n"), (None, "<|eos|>")]
)
def test_a_reward_model_gets_all_that_its_template_writes_after_an_answer(template: str | None, closing: str) -> None:
    made = encoder_with(template, whole=True)
    assert made.tokenizer.decode(made.end_ids) == closing


def test_what_is_written_is_what_transformers_writes() -> None:
    """With the tokens, tools and documents that templates ask for."""
    template = (
        "{{ bos_token }}{{ pad_token }}{% if tools is none and documents is not defined or documents is none %}plain"
        "{% endif %}" + CHAT_TEMPLATE
    )
    tokenizer = tokenizer_with(template)
    tokenizer.bos_token = "<|system|>"
    turns = [Message("system", "be brief"), Message("user", "a\n b"), Message("assistant", "c"), Message("user", "d")]
    for follows in (True, False):
        expected = tokenizer.apply_chat_template(
            [m._asdict() for m in turns], tokenize=False, add_generation_prompt=follows
        )
        assert ChatTemplate(tokenizer)(turns, follows) == expected


def test_a_template_that_asks_for_the_date_gets_the_day_it_was_made_for(clock: Clock) -> None:
    tokenizer = tokenizer_with(DATED)
    assert writes_date(tokenizer)
    assert not writes_date(build_tokenizer())
    assert not writes_date(build_tokenizer(chat=False))
    clock.set("2026-11-29")
    made, given = ChatTemplate(tokenizer), ChatTemplate(tokenizer, "2024-02-03")
    assert made(QUESTION).startswith("<|system|>today is 29 November 2026<|end|>")
    clock.set("2026-11-30")
    assert made(QUESTION).startswith("<|system|>today is 29 November 2026<|end|>")
    assert given(QUESTION).startswith("<|system|>today is 03 February 2024<|end|>")
    assert ChatTemplate(tokenizer)(QUESTION).startswith("<|system|>today is 30 November 2026<|end|>")


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("{{ raise_exception('System role\nnot supported') }}", "refuses .*: System role not supported"),
        ("{{ messages[7]['content'] }}", "refuses .*: .*no element 7"),
        ("{{ 1 // 0 }}", "fails: ZeroDivisionError: "),
        ("{{ messages[0]['content'] + 1 }}", "fails: TypeError: "),
        ("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", "fails: RecursionError: "),
    ],
)
def test_a_conversation_that_a_template_refuses_is_a_bad_row_in_one_line(body: str, fault: str) -> None:
    tokenizer = tokenizer_with("{% if messages[0]['content'] == 'why?' %}" + body + "{% endif %}" + CHAT_TEMPLATE)
    made = TextEncoder(tokenizer, 336, 0, "prefix", 200)
    for attempt in (
        lambda: made.encode("why?", "so"),
        lambda: made.encode_prompt("why?"),
        lambda: made.encode_with_plain("why?", "so"),
    ):
        with pytest.raises(DataError, match=f"the chat template {fault}") as raised:
            attempt()
        assert "\n" not in str(raised.value)
    assert made.encode("how?", "so").ids


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("{% if %}", "broken in its line 1"),
        ("{{ raise_exception('never') }}", "where a response ends: .*never"),
    ],
)
def test_a_template_that_no_conversation_passes_is_refused_at_once(template: str, fault: str) -> None:
    with pytest.raises(PrmError, match=fault) as raised:
        encoder_with(template)
    assert not isinstance(raised.value, DataError)


@pytest.mark.timeout(30)
def test_a_template_that_loops_ends_in_seconds_on_any_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "_SECONDS", 0.1)
    looping = ChatTemplate(tokenizer_with(LOOPS))
    found: list[str] = []

    def run() -> None:
        with pytest.raises(DataError, match="loops") as raised:
            looping(QUESTION)
        found.append(str(raised.value))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    run()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert ChatTemplate(build_tokenizer())(QUESTION)  # and nothing is left over


def test_a_template_file_of_several_is_the_one_that_transformers_takes(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(None)
    tokenizer.chat_template = {"default": CHAT_TEMPLATE, "tool_use": LOOPS}
    assert TextEncoder(tokenizer, 336, 0, "prefix", 200).template_ids(QUESTION) == TextEncoder(
        build_tokenizer(), 336, 0, "prefix", 200
    ).template_ids(QUESTION)
