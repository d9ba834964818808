"""Encoders, which read both ways, as backbones of frozen linear heads: every text is read as a whole."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers as t
from torch import Tensor

from prm.checkpoint.sentence_transformers import export_sentence_transformers
from prm.config import BackboneConfig, DataConfig, RewardModelConfig, SearchConfig, TrainConfig, UserConfig
from prm.data.comparison import Comparison
from prm.data.encoding import Encoded, TextEncoder
from prm.errors import CheckpointError, PrmError
from prm.features.extract import read_pooled
from prm.io.progress import progress
from prm.io.tables import write_jsonl
from prm.models.backbones import load_backbone, load_tokenizer
from prm.models.length_limits import reach
from prm.models.packing import can_pack
from prm.models.reward_model import RewardModel, build_reward_model
from prm.scoring.scorer import Scorer
from prm.training.run import train
from tests.conftest import WORDS, save_random
from tests.planted import opposed_people


def small(make: Callable[..., t.PretrainedConfig], padding: int = 0) -> t.PretrainedConfig:
    return make(
        vocab_size=336,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
        pad_token_id=padding,
    )


ENCODERS: dict[str, t.PretrainedConfig] = {
    "bert": small(t.BertConfig),
    "roberta": small(t.RobertaConfig, padding=1),
    "mpnet": small(t.MPNetConfig, padding=1),
    "modernbert": small(t.ModernBertConfig),
}
_MEAN = RewardModelConfig(pooling="mean")
FIELDS = ("prompt", "chosen", "rejected", "user_id")
QUESTION, ANSWERS = "what about a king?", ["the fox", "seven wizards mix potions for an old king", "the fox jumps"]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("encoders")
    return {name: save_random(home / name, t.AutoModel, config) for name, config in ENCODERS.items()}


def settings(folder: Path, backbone: str) -> TrainConfig:
    write_jsonl(folder / "log.jsonl", opposed_people(8, 0))
    return TrainConfig(
        str(folder / "run"),
        data=DataConfig(str(folder / "log.jsonl"), test_fraction=0.25),
        backbone=BackboneConfig(backbone, dtype="float32", max_length=96),
        users=UserConfig("individual"),
        search=SearchConfig(folds=2, l2=[1.0], user_l2=[1.0], poolings=["mean"]),
    )


def with_direction(backbone: str, n: int, seed: int) -> list[Comparison]:
    """p0 likes what lies far along a direction of the encoder's features, p1 what does not; no noise."""
    model = build_reward_model(load_backbone(backbone, bidirectional=True), UserConfig(), _MEAN, 2, 0).eval()
    draw = random.Random(seed)
    pairs = [(" ".join(draw.choices(WORDS, k=6)), " ".join(draw.choices(WORDS, k=6))) for _ in range(n)]
    prompts = [f"{QUESTION} {i}" for i in range(n)]
    states = [read(model, backbone, prompts, [pair[side] for pair in pairs]) for side in (0, 1)]
    direction = torch.randn(model.width, generator=torch.Generator().manual_seed(0))
    first_is_far = ((states[0] - states[1]) @ direction > 0).tolist()
    return [
        Comparison(user, prompt, *(pair if far == (user == "p0") else pair[::-1]))
        for prompt, pair, far in zip(prompts, pairs, first_is_far, strict=True)
        for user in ("p0", "p1")
    ]


@torch.no_grad()
def read(model: RewardModel, backbone: str, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
    """Means over the responses, [n, d]."""
    texts = encoded(model, backbone, prompts, responses)
    with progress(total=len(texts), desc="", unit="text") as bar:
        return read_pooled(model, texts, model.feature_spec, 4096, bar)[model.feature_spec[0]]


def encoded(model: RewardModel, backbone: str, prompts: Sequence[str], responses: Sequence[str]) -> list[Encoded]:
    encoder = TextEncoder(load_tokenizer(backbone), model.vocab_size, 1, "apart", 96)
    return [encoder.without_user(encoder.encode(*one)) for one in zip(prompts, responses, strict=True)]


@pytest.fixture(scope="module")
def run(encoders: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = settings(tmp_path_factory.mktemp("run"), encoders["bert"])
    write_jsonl(config.data.path, with_direction(encoders["bert"], 160, seed=0))
    return train(config)


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_hidden_states_are_those_of_each_text_alone(encoders: dict[str, str], name: str) -> None:
    """As the encoder's own class gives them, without padding, prefixes that are shared, or positions of ours."""
    model = build_reward_model(load_backbone(encoders[name], bidirectional=True), UserConfig(), _MEAN, 2, 0).eval()
    assert model.bidirectional
    assert not can_pack(model.backbone)
    asked = [QUESTION] * len(ANSWERS), ANSWERS
    texts, states = encoded(model, encoders[name], *asked), read(model, encoders[name], *asked)
    plain = t.AutoModel.from_pretrained(encoders[name]).eval()
    for text, state in zip(texts, states, strict=True):
        alone: Tensor = plain(input_ids=torch.tensor([text.ids])).last_hidden_state[0, slice(*text.response)]
        torch.testing.assert_close(state, alone.mean(0), rtol=0, atol=1e-5)


@torch.no_grad()
def test_no_beginning_is_shared_even_where_later_tokens_change_little() -> None:
    """With small weights the states of packs are like those of whole texts, to a cosine of 0.98, and still others."""
    torch.manual_seed(0)
    encoder = t.AutoModel.from_config(ENCODERS["bert"]).eval()
    for name, weight in encoder.named_parameters():
        if weight.dim() > 1:
            weight.normal_(std=0.5 if "embeddings" in name else 0.15)
    assert not can_pack(encoder)


@pytest.mark.parametrize(("name", "longest"), [("bert", 128), ("roberta", 126), ("mpnet", 126)])
@torch.no_grad()
def test_the_longest_text_is_what_the_table_of_positions_holds(
    encoders: dict[str, str], name: str, longest: int
) -> None:
    """RoBERTa's table has 128 rows, the first of which are for padding: 126 are left."""
    assert reach(load_backbone(encoders[name], bidirectional=True)) == longest
    plain = t.AutoModel.from_pretrained(encoders[name]).eval()
    plain(input_ids=torch.full((1, longest), 7))
    with pytest.raises((IndexError, RuntimeError)):
        plain(input_ids=torch.full((1, longest + 1), 7))


def test_opposite_tastes_along_a_planted_direction_are_found(run: Path, encoders: dict[str, str]) -> None:
    scorer = Scorer.from_pretrained(run)
    held_out = with_direction(encoders["bert"], 60, seed=1)
    prompts, chosen, rejected, users = ([getattr(c, key) for c in held_out] for key in FIELDS)
    margins = scorer.margin_batch(prompts, chosen, rejected, users)
    assert float((margins > 0).float().mean()) > 0.9


def test_a_score_depends_on_its_own_row_alone(run: Path) -> None:
    scorer = Scorer.from_pretrained(run)
    together = scorer.score(QUESTION, ANSWERS, "p0")
    alone = torch.cat([scorer.score(QUESTION, [answer], "p0") for answer in ANSWERS])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)
    cached = Scorer.from_pretrained(run, cache=True)
    for _ in range(2):
        torch.testing.assert_close(cached.score(QUESTION, ANSWERS[::-1], "p0").flip(0), alone, rtol=0, atol=1e-4)


def test_features_of_an_encoder_can_be_given(run: Path) -> None:
    """Of another width, not finite, or with the digest of another export, they are refused."""
    scorer = Scorer.from_pretrained(run)
    states, index = scorer.reader.pooled([QUESTION] * 3, ANSWERS, [""] * 3)
    features = states[index]
    torch.testing.assert_close(scorer.score_features(features, "p0"), scorer.score(QUESTION, ANSWERS, "p0"))
    broken = features.clone()
    broken[1, 3] = float("nan")
    for given, digest in ((features[:, :31], ""), (broken, ""), (features, "0" * 16)):
        with pytest.raises(PrmError):
            scorer.score_features(given, "p0", digest=digest)


def test_no_prompt_is_taken_off_a_mean_that_depends_on_it(run: Path, tmp_path: Path) -> None:
    with pytest.raises(PrmError, match="later tokens"):
        Scorer.from_pretrained(run).feature_inputs(QUESTION, ANSWERS)
    with pytest.raises(PrmError, match="later tokens"):
        export_sentence_transformers(run, tmp_path / "export")


def test_another_encoder_than_in_training_is_refused(run: Path, encoders: dict[str, str], tmp_path: Path) -> None:
    other = save_random(tmp_path / "other", t.AutoModel, ENCODERS["bert"], seed=1)
    for name in (other, encoders["roberta"]):
        with pytest.raises(CheckpointError):
            Scorer.from_pretrained(run, backbone=name)


def test_only_frozen_linear_heads_read_an_encoder(encoders: dict[str, str], tmp_path: Path) -> None:
    linear = settings(tmp_path, encoders["bert"])
    soft = replace(linear, reward=RewardModelConfig("soft_prompt"), users=UserConfig(num_virtual_tokens=2))
    for config in (replace(linear, train="lora"), replace(linear, train="full"), replace(soft, train="lora")):
        with pytest.raises(PrmError, match="linear heads"):
            train(config)
    assert not (tmp_path / "run").exists()


def test_an_encoder_is_read_at_its_last_layer(encoders: dict[str, str], tmp_path: Path) -> None:
    """The default of other backbones, several depths, would ask BERT for layers that it has no name for."""
    search = SearchConfig(folds=2, l2=[1.0], user_l2=[1.0])
    config = replace(settings(tmp_path, encoders["bert"]), search=search)
    model = Scorer.from_pretrained(train(config)).model
    assert isinstance(model, RewardModel)
    assert {layers for layers, _ in model.feature_spec} == {2}
