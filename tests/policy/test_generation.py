"""Answers for mixed people: the same alone and in a batch, with and without a cache, and no id past V."""

import json
from pathlib import Path

import pytest
import torch

from policy.cli import main as policy_main
from prm.checkpoint.checkpoint import load
from prm.errors import PrmError
from prm.models.policy_model import Policy
from rerank.cli import main as rerank_main
from rerank.sampling.config import Sampling
from rerank.sampling.decoding import penalised
from rerank.sampling.sampler import Sampler

GREEDY = Sampling(max_new_tokens=8, top_p=1e-6, temperature=1.0)
ASKED: list[tuple[str, str | None, str]] = [
    ("what of the quick brown fox and seven wizards?", "p0", ""),
    ("what of the quick brown fox and seven wizards?", "p1", ""),
    ("a?", "p1", "I am an old king."),
    ("a?", "stranger", ""),
    ("what of potions?", None, "wizards mix potions"),
]


@pytest.fixture(scope="module")
def sampler(trained: Path) -> Sampler:
    return Sampler.from_pretrained(str(trained), torch.device("cpu"))


def columns() -> tuple[list[str], list[str | None], list[str]]:
    prompts, users, texts = zip(*ASKED, strict=True)
    return list(prompts), list(users), list(texts)


def by_hand(policy: Policy, ids: list[int], sampling: Sampling, ends: list[int]) -> list[int]:
    """Greedy, the whole sequence read again for every token; penalties by their definitions, on words alone."""
    new: list[int] = []
    while len(new) < sampling.max_new_tokens and not (new and new[-1] in ends):
        sequence = torch.tensor([[*ids, *new]])
        with torch.no_grad():
            logits = policy(sequence, torch.ones_like(sequence)).logits[0, -1].clone()
        assert len(logits) == policy.vocab_size
        words = [i for i in [*ids, *new] if i < policy.vocab_size]
        for word in set(words):
            factor = sampling.repetition_penalty
            logits[word] = logits[word] / factor if logits[word] > 0 else logits[word] * factor
        if n := sampling.no_repeat_ngram:
            grams = [words[i : i + n] for i in range(len(words) - n + 1)]
            for gram in grams:
                if gram[:-1] == words[len(words) - n + 1 :]:
                    logits[gram[-1]] = -torch.inf
        if len(new) < sampling.min_new_tokens:
            logits[ends] = -torch.inf
        new.append(int(logits.argmax()))
    return new


SETTINGS = {
    "plain": GREEDY,
    "penalty": Sampling(max_new_tokens=8, top_p=1e-6, temperature=1.0, repetition_penalty=3.0),
    "ngrams": Sampling(max_new_tokens=12, top_p=1e-6, temperature=1.0, no_repeat_ngram=2, min_new_tokens=12),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_mixed_batch_is_answered_as_each_alone_without_a_cache(sampler: Sampler, name: str) -> None:
    sampling = SETTINGS[name]
    asked = [sampler.encode_prompt(*row) for row in ASKED]
    assert len(set(map(len, asked))) > 2  # there is padding
    expected = [by_hand(sampler.policy, ids, sampling, sampler.end_ids) for ids in asked]
    assert sampler.generate(asked, 1, sampling) == expected
    assert [sampler.generate([ids], 1, sampling)[0] for ids in asked] == expected
    if name != "plain":  # the setting does something
        assert expected != [by_hand(sampler.policy, ids, GREEDY, sampler.end_ids) for ids in asked]


def test_users_get_different_answers_and_unknown_ones_the_same(sampler: Sampler) -> None:
    prompt = ASKED[0][0]
    answers = sampler.sample_batch([prompt] * 4, ["p0", "p1", "stranger", None], GREEDY)
    assert answers[0] != answers[1]
    assert answers[2] == answers[3]
    assert sampler.sample(prompt, 1, GREEDY, "p1") == [answers[1]]
    assert sampler.encode_prompt(prompt, "p0", "I am a king.") != sampler.encode_prompt(prompt, "p0")


def test_several_answers_to_each_stand_together(sampler: Sampler) -> None:
    asked = [sampler.encode_prompt(*row) for row in ASKED]
    thrice = sampler.generate(asked, 3, GREEDY)
    assert thrice == [answer for answer in sampler.generate(asked, 1, GREEDY) for _ in range(3)]


def test_no_id_past_the_vocabulary_comes_out(sampler: Sampler) -> None:
    """Even at a temperature at which everything comes out."""
    hot = Sampling(max_new_tokens=60, temperature=50.0, top_p=1.0)
    out = [
        token for answer in sampler.generate([sampler.encode_prompt(*row) for row in ASKED], 8, hot) for token in answer
    ]
    assert max(out) < sampler.policy.vocab_size == 336
    assert len(set(out)) > 250


def test_penalties_see_words_alone(sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user id has no score; and padding, id 0, was not said."""
    asked, sampling = (
        [sampler.encode_prompt(*ASKED[0]), sampler.encode_prompt("a?")],
        Sampling(1, repetition_penalty=2.0),
    )
    seen: list[list[int]] = []

    def note(scores: torch.Tensor, how: Sampling, said: list[list[int]]) -> torch.Tensor:
        seen.extend(said)
        return penalised(scores, how, said)

    monkeypatch.setattr("rerank.sampling.decoding.penalised", note)
    sampler.generate(asked, 1, sampling)
    words = [[token for token in row if token < sampler.policy.vocab_size] for row in asked]
    assert seen == words
    assert words[0] != asked[0]
    assert penalised(torch.ones(1, 10), sampling, [[7, 8]]).tolist() == [[1, 1, 1, 1, 1, 1, 1, 0.5, 0.5, 1]]


def test_a_language_model_is_a_policy_that_knows_nobody(tiny: str) -> None:
    sampler = Sampler.from_pretrained(tiny, torch.device("cpu"), "float32")
    assert sampler.encode_prompt("a?", "p0", "I am a king.") == sampler.encode_prompt("a?")
    assert sampler.sample("a?", 1, GREEDY, "p0") == sampler.sample("a?", 1, GREEDY)


def test_a_run_is_sampled_as_it_was_trained_and_a_language_model_as_the_device_is_fast(
    trained: Path, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr("prm.models.backbones._cpu_has_bfloat16", lambda: True)
    assert Sampler.from_pretrained(str(trained), cpu).model.dtype == torch.float32
    assert Sampler.from_pretrained(tiny, cpu).model.dtype == torch.bfloat16
    assert Sampler.from_pretrained(tiny, cpu, "float32").model.dtype == torch.float32
    assert Sampler.from_pretrained(str(trained), cpu, torch.bfloat16).model.dtype == torch.bfloat16


def test_unequal_columns_and_no_prompts(sampler: Sampler) -> None:
    with pytest.raises(PrmError, match=r"prompts and users .* 2, 1"):
        sampler.sample_batch(["a?", "b?"], [None], GREEDY)
    assert sampler.sample_batch([], [], GREEDY) == []


def test_rerank_samples_from_the_policy_itself_for_its_people(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Candidates are the person's own samples, and their rewards the implicit ones."""
    flags = ["--prompt", "what of potions?", "-n", "4", "--sampling.max_new_tokens", "6", "--json", "--device", "cpu"]
    rankings = {}
    for user in ("p0", "p1"):
        rerank_main([str(trained), *flags, "--user", user])
        rankings[user] = json.loads(capsys.readouterr().out)["ranking"]
    sampler = Sampler.from_pretrained(str(trained), torch.device("cpu"))
    for user, ranking in rankings.items():
        drawn = sampler.sample("what of potions?", 4, Sampling(max_new_tokens=6), user)
        assert {r["text"] for r in ranking} == {text for text in drawn if text}
        assert [r["reward"] for r in ranking] == sorted((r["reward"] for r in ranking), reverse=True)
    assert rankings["p0"] != rankings["p1"]


def test_merge_from_the_command_line(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy_main(["merge", str(trained), str(tmp_path / "merged")])
    assert "done" in capsys.readouterr().out
    merged = Sampler.from_pretrained(str(tmp_path / "merged"), torch.device("cpu"))
    plain = Sampler.from_pretrained(str(trained), torch.device("cpu"))
    assert load(tmp_path / "merged").tuned
    assert merged.sample_batch(*columns()[:2], GREEDY) == plain.sample_batch(*columns()[:2], GREEDY)
