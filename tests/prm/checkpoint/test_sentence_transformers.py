"""Exports: sentence-transformers computes our features from them, and heads score these as they score texts."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import processors
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config

from prm.checkpoint.sentence_transformers import export_sentence_transformers
from prm.cli import main
from prm.config import OptimConfig, RewardModelConfig, SearchConfig
from prm.data.comparison import Comparison, PromptLike
from prm.errors import DataError, PrmError
from prm.io.tables import write_jsonl
from prm.scoring.adapt_run import adapt_run
from prm.scoring.given_features import text_of
from prm.scoring.scorer import Scorer
from prm.training.run import train
from tests.conftest import WORDS, build_tokenizer, save_random
from tests.tiny_runs import config_of, small_log

PROMPT = " ".join(WORDS)
LONG = " ".join(WORDS * 9)  # cut, to another length for each response
CONVERSATION: PromptLike = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "seven wizards?"},
    {"role": "assistant", "content": "a potion"},
    {"role": "user", "content": PROMPT},
]
RESPONSES = ["fox", "jumps over a lazy dog", " ".join(WORDS * 2), "an old king. \n"]
USERS = ["p0", None, "nobody", "p1"]
OPTIM = OptimConfig(epochs=2.0, batch_size=4, micro_batch_size=4, eval_steps=3, warmup_steps=0, lora_lr=0.05)
ONE = RewardModelConfig(features=["1 last"])
RUNS: dict[str, dict[str, Any]] = {
    "cut": {"reward": ONE},
    "two": {"reward": RewardModelConfig(features=["2 last", "1 last"], kernel="rbf")},
    "lora": {"train": "lora", "optim": OPTIM, "reward": RewardModelConfig(pooling="mean")},
    "full": {"train": "full", "optim": replace(OPTIM, lora_lr=OptimConfig().lora_lr)},
    "gpt2": {"reward": ONE},
    "joined": {"reward": RewardModelConfig(features=["1 mean", "2 last", "2 mean"])},
    "bidirectional": {"reward": RewardModelConfig(features=["1 mean"])},
    "soft": {"train": "lora", "reward": RewardModelConfig("soft_prompt"), "optim": OPTIM},
}
EXPORTED = ("cut", "two", "lora", "full", "gpt2", "joined")
MEANS = ("lora", "joined")


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory, backbone_of: Callable[..., str]) -> Callable[[str], Path]:
    """Function from a name in `RUNS` to its run, made once.

    GPT-2 has a table of positions; its tokenizer has no chat template, pads on the left, and has no padding token.
    """
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            backbone = backbone_of("llama")
            if name == "gpt2":
                shape = GPT2Config(vocab_size=336, n_positions=512, n_embd=32, n_layer=2, n_head=4, eos_token_id=1)
                backbone = save_random(folder / "gpt2", AutoModelForCausalLM, shape, chat=False)
                path = folder / "gpt2/tokenizer_config.json"
                settings = {k: v for k, v in json.loads(path.read_text()).items() if k != "pad_token"}
                path.write_text(json.dumps(settings | {"padding_side": "left"}))
            if name == "bidirectional":
                both_ways = Gemma3TextConfig(
                    vocab_size=336, hidden_size=32, num_hidden_layers=2, use_bidirectional_attention=True
                )
                backbone = save_random(folder / "gemma3", AutoModelForCausalLM, both_ways)
            write_jsonl(folder / "log.jsonl", small_log())
            common: dict[str, Any] = {"search": SearchConfig(folds=2, l2=[1.0], user_l2=[1.0])}
            made[name] = train(config_of("linear", backbone, folder, **common | RUNS[name]))  # type: ignore[arg-type]
        return made[name]

    return get


@pytest.fixture(scope="module")
def export_of(run_of: Callable[[str], Path]) -> Callable[[str], Path]:
    """Function from a name in `EXPORTED` to the run's export, made once by the command."""

    def get(name: str) -> Path:
        folder = run_of(name).parent / "export"
        if not folder.exists():
            main(["export", str(run_of(name)), "--output", str(folder)])
        return folder

    return get


@pytest.fixture(scope="module")
def models_of(export_of: Callable[[str], Path]) -> Callable[[str], list[SentenceTransformer]]:
    """Function from a name in `EXPORTED` to the models of its export, loaded once."""
    loaded: dict[str, list[SentenceTransformer]] = {}

    def get(name: str) -> list[SentenceTransformer]:
        if name not in loaded:
            export = export_of(name)
            features = json.loads((export / "export.json").read_text())["features"]
            loaded[name] = [SentenceTransformer(str(export / one["folder"]), device="cpu") for one in features]
        return loaded[name]

    return get


@pytest.mark.parametrize("name", EXPORTED)
def test_sentence_transformers_computes_our_features(
    run_of: Callable[[str], Path], models_of: Callable[[str], list[SentenceTransformer]], name: str
) -> None:
    """Also of a prompt that is cut, of a conversation, and of a text about the user; lengths differ."""
    scorer = Scorer.from_pretrained(run_of(name))
    about = "I like foxes"
    # without a chat template GPT-2's tokenizer joins the end of a conversation and a response
    prompts: list[PromptLike] = [PROMPT, LONG] if name == "gpt2" else [PROMPT, CONVERSATION, LONG]
    for prompt in prompts:
        assert not scorer.encoder.cuts.sequences
        inputs = scorer.feature_inputs(prompt, RESPONSES, about)
        vectors = [model.encode(texts) for model, texts in zip(models_of(name), inputs.texts, strict=True)]
        expected, _ = scorer.reader.pooled([prompt] * 4, RESPONSES, [about] * 4)
        torch.testing.assert_close(inputs.features(vectors), expected, rtol=0, atol=1e-5)
        lengths = [len(ids) for of_model in inputs.ids for ids in of_model]
        assert len(set(lengths)) > 1 or prompt == LONG
        assert max(lengths) <= 120
    assert scorer.encoder.cuts.sequences


@pytest.mark.parametrize("name", EXPORTED)
def test_heads_score_features_as_they_score_texts(
    run_of: Callable[[str], Path],
    export_of: Callable[[str], Path],
    models_of: Callable[[str], list[SentenceTransformer]],
    name: str,
) -> None:
    scorer, digest = Scorer.from_pretrained(run_of(name)), json.loads((export_of(name) / "export.json").read_text())
    if name in MEANS:
        inputs = scorer.feature_inputs(PROMPT, RESPONSES)
        given = inputs.features([m.encode(texts) for m, texts in zip(models_of(name), inputs.texts, strict=True)])
    else:
        texts = scorer.feature_texts(PROMPT, RESPONSES)
        given = torch.from_numpy(np.concatenate([model.encode(texts) for model in models_of(name)], axis=1))
    matrix = scorer.score_features(given, users=USERS, digest=digest["digest"])
    torch.testing.assert_close(matrix, scorer.score_users(PROMPT, RESPONSES, USERS), rtol=0, atol=1e-4)
    torch.testing.assert_close(scorer.score_features(given.tolist(), "p1"), matrix[3], rtol=0, atol=1e-6)
    own, index = scorer.reader.pooled([PROMPT] * 4, RESPONSES, [""] * 4)
    assert torch.equal(scorer.score_features(own[index], "p0"), scorer.score(PROMPT, RESPONSES, "p0"))
    assert (matrix[0] - matrix[3]).abs().max() > 1e-3
    assert scorer.score_features(given[:0], users=USERS).shape == (4, 0)


def test_a_mean_is_taken_from_each_prompt_with_its_response_and_from_the_prompt(run_of: Callable[[str], Path]) -> None:
    """By hand; what the chat template writes after a response is not in its mean."""
    scorer = Scorer.from_pretrained(run_of("joined"))
    inputs = scorer.feature_inputs(PROMPT, ["fox", "an old king"])
    means, last, _ = inputs.ids
    end = scorer.encoder.end_ids
    assert means[:2] == [ids[: -len(end)] for ids in last]
    assert means[2:] == [scorer.encoder.encode_prompt(PROMPT)[1:]]  # without the user's id
    k, p = (torch.tensor([[len(ids)] for ids in part]) for part in (means[:2], means[2:]))
    vectors = torch.arange(96.0).view(3, 32).square() + 0.1
    found = inputs.features([vectors, torch.ones(2, 32) * 3, vectors])
    torch.testing.assert_close(found[:, :32], (k * vectors[:2] - p * vectors[2]) / (k - p))
    assert torch.equal(found[:, :32], found[:, 64:])
    assert (found[:, 32:64] == 3).all()
    assert len(scorer.feature_inputs(LONG, RESPONSES).ids[0]) == 8  # no two cut alike


def test_an_export_holds_what_servers_read(export_of: Callable[[str], Path], run_of: Callable[[str], Path]) -> None:
    """The keys that vLLM and text-embeddings-inference look for, and no layer, norm or user too many."""
    folder = export_of("cut")
    files = {name: json.loads((folder / name).read_text()) for name in ("modules.json", "config.json", "export.json")}
    assert [one["type"].rpartition(".")[2] for one in files["modules.json"]] == ["Transformer", "Pooling"]
    assert files["config.json"]["num_hidden_layers"] == 1
    assert files["config.json"]["architectures"] == ["LlamaModel"]
    pooling = json.loads((folder / "1_Pooling/config.json").read_text())
    assert [key for key, value in pooling.items() if value is True] == ["pooling_mode_lasttoken", "include_prompt"]
    limits = json.loads((folder / "sentence_bert_config.json").read_text())
    assert limits == {"max_seq_length": 120, "do_lower_case": False}
    assert files["export.json"]["features"] == [{"folder": ".", "layers": 1, "pooling": "last", "width": 32}]
    assert files["export.json"]["digest"] in (folder / "README.md").read_text()
    assert isinstance(json.loads((export_of("gpt2") / "config.json").read_text())["pad_token_id"], int)
    assert not any(path.suffix in (".bin", ".pt", ".py", ".jinja") for path in folder.rglob("*"))
    users = Scorer.from_pretrained(run_of("cut")).users
    words = set("".join(path.read_text() for path in folder.rglob("*.json")).split(chr(34)))
    assert users
    assert not words & {*users}


def test_an_export_is_replaced_only_by_name(
    export_of: Callable[[str], Path], run_of: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, run = export_of("cut"), run_of("cut")
    for more in ([], ["--overwrite"]):
        with pytest.raises(SystemExit):
            main(["export", str(run), "--output", str(run), *more])
        assert ("no earlier export" if more else "exists already") in capsys.readouterr().err
    with pytest.raises(PrmError, match="exists already"):
        export_sentence_transformers(run, folder)
    before = (folder / "model.safetensors").read_bytes()
    main(["export", str(run), "--output", str(folder), "--overwrite", "--json"])
    assert json.loads(capsys.readouterr().out) == json.loads((folder / "export.json").read_text())
    assert (folder / "model.safetensors").read_bytes() == before


def test_what_a_server_cannot_compute_is_refused(run_of: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(PrmError, match=r"later tokens.*search\.poolings"):
        export_sentence_transformers(run_of("bidirectional"), tmp_path / "out")
    with pytest.raises(PrmError, match=r"reward\.form 'linear_head'"):
        export_sentence_transformers(run_of("soft"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    soft = Scorer.from_pretrained(run_of("soft"))
    for call in (lambda: soft.score_features([[0.0] * 32]), lambda: soft.feature_texts(PROMPT, RESPONSES)):
        with pytest.raises(PrmError, match="no linear heads"):
            call()


def test_features_that_cannot_be_the_runs_are_refused(run_of: Callable[[str], Path]) -> None:
    scorer = Scorer.from_pretrained(run_of("cut"))
    good = scorer.reader.pooled([PROMPT] * 4, RESPONSES, [""] * 4)[0]
    broken = good.clone()
    broken[2, 5] = torch.nan
    faults: list[tuple[Any, str]] = [
        (good[:, :31], r"shape \[n, 32\], got \[4, 31\]"),
        (good[0], r"got \[32\]"),
        (broken, r"features\[2\]"),
        (good / good.norm(dim=1, keepdim=True), "normalisation"),
        ("text", "must be numbers"),
        ([[1.0], [2.0, 3.0]], "must be numbers"),
    ]
    for features, fault in faults:
        with pytest.raises(PrmError, match=fault):
            scorer.score_features(features)
    with pytest.raises(PrmError, match="feature_inputs"):
        Scorer.from_pretrained(run_of("joined")).feature_texts(PROMPT, RESPONSES)
    with pytest.raises(PrmError, match="'0123'"):
        scorer.score_features(good, digest="0123")
    with pytest.raises(PrmError, match="not both"):
        scorer.score_features(good, "p0", users=["p0"])


def test_vectors_of_another_kind_or_number_are_refused(run_of: Callable[[str], Path]) -> None:
    scorer = Scorer.from_pretrained(run_of("joined"))
    inputs = scorer.feature_inputs(PROMPT, RESPONSES)
    means, last = torch.randn(5, 32) * 3, torch.randn(4, 32) * 3
    assert inputs.features([means, last, means]).shape == (4, 96)
    assert inputs.features([means, last.bfloat16(), means]).shape == (4, 96)
    faults: list[tuple[list[Any], str]] = [
        ([means, last], r"list of 3.*'1 mean', '2 last', '2 mean'; got 2"),
        ([last, means, last], r"vectors\[0\]' must have the shape \[5, 32\], got \[4, 32\]"),
        ([means, last, means[:, :31]], r"vectors\[2\]' must have the shape \[5, 32\], got \[5, 31\]"),
        ([means, last * torch.inf, means], r"vectors\[1\]\[0\]' has values that are not finite"),
        ([means / means.norm(dim=1, keepdim=True), last, means], r"vectors\[0\]'.*normalisation"),
        ([means, last, means.bfloat16()], r"vectors\[2\]' were rounded to bfloat16"),
        ([means, last, means.half()], r"vectors\[2\]' were rounded to float16"),
    ]
    for vectors, fault in faults:
        with pytest.raises(PrmError, match=fault):
            inputs.features(vectors)


def test_the_digest_is_of_what_reads_the_text_and_not_of_users(run_of: Callable[[str], Path], tmp_path: Path) -> None:
    digests = {name: Scorer.from_pretrained(run_of(name)).feature_digest for name in EXPORTED}
    assert len(set(digests.values())) == len(EXPORTED)
    new = [Comparison("zoe", "why?", "fox", "a lazy dog"), Comparison("zoe", "how?", "king", "an old king")]
    adapt_run(run_of("cut"), new, tmp_path / "adapted")
    adapted = Scorer.from_pretrained(tmp_path / "adapted")
    assert adapted.knows("zoe")
    assert adapted.feature_digest == digests["cut"]
    other = Scorer.from_pretrained(run_of("lora"))
    next(p for name, p in other.model.named_parameters() if "lora_B" in name).data += 0.5
    assert other.feature_digest != digests["lora"]


@pytest.mark.parametrize("special", ["", "<|user|> $A", "$A <|end|>", "<|user|> $A <|end|>"])
def test_a_text_gives_its_ids_whatever_the_tokenizer_adds(special: str) -> None:
    tokenizer = build_tokenizer()
    ids = tokenizer("<|user|>what of the king?<|assistant|>a fox<|end|>")["input_ids"]
    if special:
        named = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<|user|>", "<|end|>")]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=special, special_tokens=named)
    assert tokenizer(text_of(tokenizer, ids))["input_ids"] == ids


def test_a_text_that_the_tokenizer_would_join_is_refused() -> None:
    tokenizer = build_tokenizer()
    joined = tokenizer("the")["input_ids"]
    apart = [*tokenizer("t")["input_ids"], *tokenizer("he")["input_ids"]]
    assert len(joined) < len(apart)
    with pytest.raises(DataError, match="feature_ids"):
        text_of(tokenizer, apart)
