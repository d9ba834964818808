"""The system prompt that a chat template writes on its own is left out; nothing else is."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from prm.data.chat_template import ChatTemplate
from prm.data.comparison import Message
from prm.data.system_prompt import default_system_prompt, without_default_system_prompt
from tests.conftest import CHAT_TEMPLATE, build_tokenizer

DEFAULT = "{% if messages[0]['role'] != 'system' %}{{ '<|system|>be kind<|end|>\n' }}{% endif %}"
OWN = DEFAULT + CHAT_TEMPLATE
BOS = "{{ bos_token }}" + OWN
# of Mistral's kind: no header before an answer, and a date in the prompt
DATED = (
    "{% set own = 'today is ' + strftime_now('%d %B %Y') %}{% if messages[0]['role'] == 'system' %}"
    "{% set own = messages[0]['content'] %}{% set messages = messages[1:] %}{% endif %}"
    "{{ '[SYS]' + own + '[/SYS]' }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST]' + m['content'] }}"
    "{{ '[/INST]' }}{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)
ALWAYS = (  # of Llama 3.1's kind: also above a system message
    "{% set own = '' %}{% if messages[0]['role'] == 'system' %}{% set own = messages[0]['content'] %}"
    "{% set messages = messages[1:] %}{% endif %}{{ '<|system|>as of 2023\n' + own + '<|end|>\n' }}"
) + CHAT_TEMPLATE
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHAT_TEMPLATE
TRIMMED = OWN.replace("m['content']", "m['content'] | trim")
SPACED = "  {%- set a = 1 %}\n" + OWN + "\n"

TALKS = {
    "one message": [Message("user", " why? ")],
    "several": [Message("user", "why?"), Message("assistant", "so"), Message("user", "oh?\n")],
    "an answer first": [Message("assistant", "so"), Message("user", "oh?")],
    "a header in a message": [Message("user", "<|user|>a<|user|>b"), Message("assistant", "<|assistant|>")],
}


def tokenizer_with(template: str | None, bos: str | None = None) -> PreTrainedTokenizerFast:
    tokenizer = build_tokenizer()
    tokenizer.chat_template, tokenizer.bos_token = template, bos
    return tokenizer


@pytest.mark.parametrize("answer_follows", [False, True])
@pytest.mark.parametrize("talk", TALKS.values(), ids=TALKS)
@pytest.mark.parametrize("template", [OWN, TRIMMED, SPACED], ids=["plain", "trims", "white space"])
def test_a_conversation_begins_with_its_first_message(template: str, talk: list[Message], answer_follows: bool) -> None:
    tokenizer = tokenizer_with(template)
    changed = without_default_system_prompt(tokenizer)
    whole = ChatTemplate(tokenizer)(talk, answer_follows)
    assert ChatTemplate(changed)(talk, answer_follows) == whole.partition("<|system|>be kind<|end|>\n")[2]
    # transformers' own rendering, which other programs use
    plain = [message._asdict() for message in talk]
    assert changed.apply_chat_template(plain, tokenize=False, add_generation_prompt=answer_follows) == ChatTemplate(
        changed
    )(talk, answer_follows)
    system = [Message("system", "be brief"), *talk]
    assert ChatTemplate(changed)(system, answer_follows) == ChatTemplate(tokenizer)(system, answer_follows)


def test_the_first_token_stays() -> None:
    changed = without_default_system_prompt(tokenizer_with(BOS, "<|system|>"))
    # here the token also opens the system's turn
    assert ChatTemplate(changed)(TALKS["one message"]) == "<|system|><|user|> why? <|end|>\n"
    same = tokenizer_with(OWN, "<|user|>")  # as SmolLM2's, whose token opens every turn
    assert ChatTemplate(without_default_system_prompt(same))(TALKS["one message"]) == "<|user|> why? <|end|>\n"


def test_a_prompt_with_a_date_is_left_out_on_every_day() -> None:
    tokenizer = tokenizer_with(DATED)
    assert default_system_prompt(tokenizer).startswith("today is ")
    changed = without_default_system_prompt(tokenizer)
    for day in ("2024-02-03", "2026-11-30"):
        assert ChatTemplate(changed, day)(TALKS["one message"]) == "[INST] why? [/INST]"
    assert "today" not in ChatTemplate(changed)([Message("system", "s"), *TALKS["several"]])


@pytest.mark.parametrize(
    "template", [None, CHAT_TEMPLATE, ALWAYS, NO_SYSTEM, "{{ raise_exception('no') }}"], ids=lambda t: str(t)[:20]
)
def test_other_templates_stay(template: str | None) -> None:
    tokenizer = tokenizer_with(template)
    assert default_system_prompt(tokenizer) == ""
    assert without_default_system_prompt(tokenizer) is tokenizer


def test_a_template_without_headers_stays() -> None:
    """Where the first message begins cannot be found, so nothing is cut."""
    bare = DEFAULT + "{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}"
    tokenizer = tokenizer_with(bare)
    assert without_default_system_prompt(tokenizer) is tokenizer
    assert default_system_prompt(tokenizer) == ""


def test_it_stays_out_in_a_saved_tokenizer(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(OWN)
    changed = without_default_system_prompt(tokenizer)
    changed.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == "<|user|>a<|end|>\n"
    assert without_default_system_prompt(loaded) is loaded
    assert ChatTemplate(tokenizer)(TALKS["one message"]).startswith("<|system|>be kind")  # the original is unchanged
