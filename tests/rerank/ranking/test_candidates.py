"""Candidates whose hidden states the scorer need not read again, and what it makes of pools of them."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import prm.scoring.text_reader
from prm.config import BackboneConfig, DataConfig, RewardModelConfig, SearchConfig, TrainConfig, UserConfig
from prm.data.encoding import Encoded
from prm.io.tables import write_jsonl
from prm.scoring.scorer import Scorer
from prm.training.run import train
from rerank.ranking.candidates import Candidates, LocalGenerator, collect
from rerank.sampling.config import Sampling
from rerank.sampling.generator import FunctionGenerator
from rerank.sampling.hidden_states import same_weights
from rerank.sampling.sampler import Sampler
from tests.planted import opposed_people

PROMPT = "what of fox potions?"
HOW = Sampling(max_new_tokens=5, temperature=20.0, top_p=1.0)


@pytest.fixture(scope="module")
def run_of(backbone_of: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Run folders of linear heads on the tiny Llama, by what they read, of three people."""
    made: dict[tuple[Any, ...], Path] = {}

    def get(reads: tuple[str, ...] = ("2 mean",), seed: int = 0, **changes: Any) -> Path:
        key = (reads, seed, tuple(changes))
        if key not in made:
            folder = tmp_path_factory.mktemp("pools")
            write_jsonl(folder / "log.jsonl", opposed_people(20, seed, people=3))
            settings = TrainConfig(
                output_dir=str(folder / "run"),
                data=DataConfig(path=str(folder / "log.jsonl")),
                backbone=BackboneConfig(backbone_of("llama"), dtype="float32"),
                reward=RewardModelConfig(features=list(reads)),
                search=SearchConfig(folds=2, l2=[1.0], user_l2=[1.0]),
                **changes,
            )
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("PRM_CACHE", str(folder / "cache"))
                made[key] = train(settings)
        return made[key]

    return get


@pytest.fixture
def generator(backbone_of: Callable[..., str]) -> Sampler:
    return Sampler.from_pretrained(backbone_of("llama"), torch.device("cpu"), "float32")


@pytest.fixture(autouse=True)
def _words(generator: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model says bytes: leave it words with a space before them, some letters, and short answers.

    A text that begins with a space, or has letters that make a word, is tokenised otherwise than it was drawn.
    """
    known = generator.tokenizer.get_vocab()
    bonus = torch.full((336,), -torch.inf)
    for token, i in known.items():
        if re.fullmatch("\u0120[a-z]{3,}|[a-d]", token):
            bonus[i] = 0.0
    bonus[generator.end_ids] = 10.0
    monkeypatch.setattr(Sampling, "penalises", True)
    monkeypatch.setattr("rerank.sampling.decoding.penalised", lambda scores, how, said: scores + bonus)


def read_of(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts the scorer's backbone reads from here on, time by time."""
    times: list[int] = []
    read = prm.scoring.text_reader.read_pooled

    def counted(model: Any, sequences: Sequence[Encoded], *rest: Any) -> Any:
        if model is scorer.model:
            times.append(len(sequences))
        return read(model, sequences, *rest)

    monkeypatch.setattr("prm.scoring.text_reader.read_pooled", counted)
    return times


@pytest.mark.parametrize("reads", [("2 mean",), ("2 last",), ("1 last", "2 mean"), ("1 mean",)], ids=str)
def test_scores_of_answers_that_were_seen_are_those_of_reading_them(
    run_of: Callable[..., Path], generator: Sampler, reads: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers of every length: ended by either end token, or cut. Only those that read otherwise are read again."""
    plain, scorer = (Scorer.from_pretrained(run_of(reads)) for _ in range(2))
    assert same_weights(generator.policy, scorer.model)
    passes = read_of(scorer, monkeypatch)
    texts = Candidates(generator, scorer).sample(PROMPT, 60, HOW)
    assert texts == generator.sample(PROMPT, 60, HOW)
    texts = [text for text in dict.fromkeys(texts) if text]
    expected = plain.score_users(PROMPT, texts, ["p0", "p1", None])
    torch.testing.assert_close(scorer.score_users(PROMPT, texts, ["p0", "p1", None]), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scorer.score(PROMPT, texts, "p1"), expected[1], atol=1e-4, rtol=1e-4)
    assert expected.std() > 0.01
    again = sum(passes) // 2
    assert 0 < again < len(texts) - 5
    scorer.score("another prompt?", texts[:3], "p1")
    assert sum(passes) == 2 * again + 3  # what is held belongs to its prompt


def test_users_who_share_features(
    run_of: Callable[..., Path], generator: Sampler, backbone_of: Callable[..., str]
) -> None:
    model = Scorer.from_pretrained(run_of()).model
    assert same_weights(generator.policy, model)
    assert not same_weights(Sampler.from_pretrained(backbone_of("llama", seed=3), dtype="float32").policy, model)
    coarse = Sampler.from_pretrained(backbone_of("llama"), torch.device("cpu"), torch.bfloat16).policy
    assert not same_weights(coarse, model)
    soft = run_of(("2 last",), 0, train="lora", users=UserConfig("individual", num_virtual_tokens=1))
    assert not same_weights(generator.policy, Scorer.from_pretrained(soft).model)


def test_pools_of_several_people(run_of: Callable[..., Path], generator: Sampler) -> None:
    """Empty answers have the lowest rewards of their pool, equal ones equal rewards."""
    scorer, gold = Scorer.from_pretrained(run_of()), Scorer.from_pretrained(run_of(("2 last",), 5))
    pools = collect(LocalGenerator(generator, scorer, HOW), scorer, gold, [PROMPT, "a king?"], ["p1", "p0"], 40)
    assert [[(pool.prompt, pool.user) for pool in row] for row in pools] == [
        [(prompt, user) for user in ("p1", "p0")] for prompt in (PROMPT, "a king?")
    ]
    for row in pools:
        for pool in row:
            assert list(pool.texts) == generator.sample(pool.prompt, 40, HOW)
            for model, user, found in (
                (scorer, pool.user, pool.personal),
                (scorer, None, pool.generic),
                (gold, pool.user, pool.gold),
            ):
                said = [i for i, text in enumerate(pool.texts) if text]
                expected = model.score(pool.prompt, [pool.texts[i] for i in said], user).numpy()
                np.testing.assert_allclose(found[said], expected, atol=1e-4)
                silent = [i for i, text in enumerate(pool.texts) if not text]
                assert (found[silent] == found.min()).all()
    assert any("" in row[0].texts for row in pools)


def test_prompts_without_any_answer_are_left_out(run_of: Callable[..., Path]) -> None:
    scorer = Scorer.from_pretrained(run_of())
    function = FunctionGenerator(lambda prompt, n, user: ["", ""] if prompt == PROMPT else ["fox", ""])
    (row,) = collect(function, scorer, scorer, [PROMPT, "a?"], ["p0"], 2)
    assert row[0].prompt == "a?"
    assert row[0].personal[0] == row[0].personal[1]
