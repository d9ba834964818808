"""The reward model against independent implementations, by hand, and under changes that must not matter."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForSequenceClassification, GPT2Config, GPT2Model
from trl import RewardConfig as TrlRewardConfig
from trl import RewardTrainer

from prm.attention.prefix_tree import make_plan
from prm.config import RewardModelConfig, UserConfig
from prm.data.encoding import Batch, Encoded, TextEncoder, pad
from prm.models.backbones import load_backbone, load_tokenizer
from prm.models.reward_model import RewardModel, build_reward_model, pool
from prm.models.user_token_embedding import to_generic
from prm.training.encoded_pairs import EncodedPair, collate, to_dataset
from prm.training.losses import personalized_bradley_terry, weighted_mean
from tests.conftest import ARCHITECTURES, count_tokens
from tests.tolerance import GRADIENT, rounding

FORMS = [
    pytest.param(RewardModelConfig("soft_prompt", "prefix"), UserConfig(num_virtual_tokens=3), id="prefix"),
    pytest.param(RewardModelConfig("soft_prompt", "suffix"), UserConfig(num_virtual_tokens=3), id="suffix"),
    pytest.param(RewardModelConfig("linear_head", pooling="last"), UserConfig(), id="linear-last"),
    pytest.param(RewardModelConfig("linear_head", pooling="mean"), UserConfig(), id="linear-mean"),
    pytest.param(RewardModelConfig("linear_head", features=["1 mean", "2 last"]), UserConfig(), id="linear-two"),
]
TEXTS = [("one fox?", "the lazy dog"), ("why so?", "wizards mix potions for an old king"), ("a?", "fox")]


def build(
    folder: str, users: UserConfig, reward: RewardModelConfig, n_rows: int = 4
) -> tuple[RewardModel, TextEncoder]:
    model = build_reward_model(load_backbone(folder), users, reward, n_rows, seed=0).eval()
    torch.manual_seed(1)
    for parameter in [*model.user_model.parameters(), *(model.score.parameters() if model.score else [])]:
        parameter.data.normal_()
    place = "prefix" if reward.form == "linear_head" else reward.position
    return model, TextEncoder(load_tokenizer(folder), model.vocab_size, users.num_virtual_tokens, place, 256)


def encode(encoder: TextEncoder, rows: list[int]) -> list[Encoded]:
    return [encoder.encode(*text, row) for text, row in zip(TEXTS, rows, strict=True)]


def rewards(model: RewardModel, sequences: list[Encoded]) -> Tensor:
    with torch.no_grad():
        reward = model(*pad(sequences)).user
    assert reward is not None
    return reward


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_without_user_and_alpha_0_it_is_the_vanilla_reward_model(
    backbone_of: Callable[..., str], architecture: str, tmp_path: object
) -> None:
    """Same weights as AutoModelForSequenceClassification: same rewards, TRL's own loss, same gradients."""
    folder = backbone_of(architecture)
    model, encoder = build(folder, UserConfig("uniform", num_virtual_tokens=0), RewardModelConfig("soft_prompt"))
    vanilla = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    vanilla.config.pad_token_id = 0
    assert model.score is not None
    vanilla.score.weight.data.copy_(model.score.weight)
    pairs = [
        EncodedPair(encoder.encode("one fox?", "the lazy dog"), encoder.encode("one fox?", "a king"), 1.0, 1.0),
        EncodedPair(encoder.encode("why?", "seven"), encoder.encode("why?", "mix potions for an old king"), 1.0, 1.0),
    ]
    settings = TrlRewardConfig(str(tmp_path), report_to="none", bf16=False, max_length=None, use_cpu=True)
    trainer = RewardTrainer(vanilla, settings, train_dataset=to_dataset(pairs), processing_class=load_tokenizer(folder))
    batch = trainer.data_collator([dict(row) for row in to_dataset(pairs)])
    expected = trainer.compute_loss(vanilla.train(), dict(batch))
    expected.backward()

    inputs = collate(list(to_dataset(pairs)))
    out = model(inputs["input_ids"], inputs["attention_mask"], inputs["response_mask"], terms="generic").generic
    chosen, rejected = out.chunk(2)
    losses = personalized_bradley_terry(None, chosen - rejected, inputs["p_chosen"], alpha=0.0)
    loss = weighted_mean(losses, inputs["weight"])
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model.score.weight.grad, vanilla.score.weight.grad, rtol=1e-4, atol=1e-6)
    ours = dict(model.backbone.named_parameters())
    largest = max(float(p.grad.abs().max()) for p in ours.values() if p.grad is not None)
    for name, parameter in vanilla.base_model.named_parameters():
        if parameter.grad is not None and "embed" not in name:
            torch.testing.assert_close(ours[name].grad, parameter.grad, rtol=0.0, atol=rounding(GRADIENT) * largest)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("place", ["prefix", "suffix"])
def test_soft_prompt_equals_embeddings_concatenated_by_hand(
    backbone_of: Callable[..., str], architecture: str, place: str
) -> None:
    """Section 4.4: the user's embedding stands beside the word embeddings; the reward is read at the last token."""
    folder = backbone_of(architecture)
    reward = RewardModelConfig("soft_prompt", place)  # type: ignore[arg-type]
    model, encoder = build(folder, UserConfig(num_virtual_tokens=3), reward)
    plain = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    text = TextEncoder(load_tokenizer(folder), model.vocab_size, 0, "prefix", 256).encode(*TEXTS[1]).ids
    words = plain.get_input_embeddings()(torch.tensor([text]))
    people: Any = model.user_model
    user = (people.generic + people.offsets[2])[None]
    joined = torch.cat([user, words] if place == "prefix" else [words, user], dim=1)
    assert model.score is not None
    with torch.no_grad():
        state = plain(inputs_embeds=joined).last_hidden_state[0, -1]
        expected = model.score.weight[0] @ state
    torch.testing.assert_close(rewards(model, [encoder.encode(*TEXTS[1], 2)])[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_linear_head_is_an_inner_product_by_hand(tiny: str, pooling: str) -> None:
    reward = RewardModelConfig("linear_head", pooling=pooling)  # type: ignore[arg-type]
    model, encoder = build(tiny, UserConfig(), reward)
    plain = AutoModel.from_pretrained(tiny, dtype=torch.float32).eval()
    encoded = encoder.encode(*TEXTS[1], 3)
    start, end = encoded.response
    with torch.no_grad():
        states = plain(torch.tensor([encoded.ids[1:]])).last_hidden_state[0]
    hidden = states[-1] if pooling == "last" else states[start - 1 : end - 1].mean(0)
    people: Any = model.user_model
    expected = (people.generic[0] + people.offsets[3, 0]) @ hidden
    torch.testing.assert_close(rewards(model, [encoded])[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("reward", "users"), FORMS)
def test_rewards_do_not_depend_on_batch_padding_or_order(
    tiny: str, reward: RewardModelConfig, users: UserConfig
) -> None:
    model, encoder = build(tiny, users, reward)
    sequences = encode(encoder, [1, 0, 3])
    alone = torch.cat([rewards(model, [sequence]) for sequence in sequences])
    torch.testing.assert_close(rewards(model, sequences), alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rewards(model, sequences[::-1]).flip(0), alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("reward", "users"), FORMS)
def test_left_padding_gives_the_same_rewards(tiny: str, reward: RewardModelConfig, users: UserConfig) -> None:
    model, encoder = build(tiny, users, reward)
    right = pad(encode(encoder, [1, 0, 3]))
    lengths = right.attention_mask.sum(1).tolist()
    width = right.input_ids.shape[1]
    left = Batch(*(torch.stack([row.roll(width - n) for row, n in zip(f, lengths, strict=True)]) for f in right))
    with torch.no_grad():
        torch.testing.assert_close(model(*left).user, model(*right).user, rtol=1e-4, atol=1e-4)


def test_positions_count_real_tokens_where_a_backbone_learnt_them_one_by_one() -> None:
    """GPT-2 adds a vector per position; rotary backbones would not notice a shift."""
    torch.manual_seed(0)
    backbone = GPT2Model(GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=1, n_head=2)).eval()
    torch.nn.init.normal_(backbone.wpe.weight)
    model = build_reward_model(backbone, UserConfig(), RewardModelConfig(), n_rows=2, seed=0)
    ids, mask = (
        torch.tensor([[0, 0, 7, 8, 9], [7, 8, 9, 0, 0]]),
        torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]]).bool(),
    )
    left, right = model.pooled(Batch(ids, mask, mask))
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("reward", "users"), FORMS)
def test_generic_term_is_the_same_text_with_row_0(tiny: str, reward: RewardModelConfig, users: UserConfig) -> None:
    model, encoder = build(tiny, users, reward)
    with torch.no_grad():
        both = model(*pad(encode(encoder, [1, 2, 3])), terms="both")
        generic = model(*pad(encode(encoder, [0, 0, 0]))).user
    torch.testing.assert_close(both.generic, generic, rtol=1e-5, atol=1e-5)
    assert (both.user - both.generic).abs().min() > 1e-4  # users do matter


def test_linear_head_encodes_the_text_once_whatever_alpha(tiny: str) -> None:
    model, encoder = build(tiny, UserConfig(), RewardModelConfig("linear_head"))
    batch = pad(encode(encoder, [1, 2, 3]))
    once = len(make_plan([s.ids[1:] for s in encode(encoder, [1, 2, 3])]).ids)
    read = count_tokens(model.backbone)
    for terms in ("user", "generic", "both"):
        read.clear()
        model(*batch, terms=terms)
        assert read == [once], terms


def test_to_generic_keeps_words_and_slots() -> None:
    ids = torch.tensor([[10, 11, 12, 4, 5], [13, 14, 15, 9, 0]])  # V = 10, T_u = 3: rows 0 and 1
    assert to_generic(ids, 10, 3).tolist() == [[10, 11, 12, 4, 5], [10, 11, 12, 9, 0]]
    assert to_generic(ids, 10, 0) is ids


def test_pooling_by_hand() -> None:
    states = torch.arange(12.0).view(1, 4, 3)
    mask = torch.tensor([[True, True, True, False]])
    response = torch.tensor([[False, True, True, False]])
    batch = Batch(torch.zeros(1, 4, dtype=torch.long), mask, response)
    assert pool(states, batch, "last").tolist() == [[6.0, 7.0, 8.0]]
    assert pool(states, batch, "mean").tolist() == [[4.5, 5.5, 6.5]]


def test_standardising_uses_mean_and_deviation_of_the_texts_given(tiny: str) -> None:
    model, _ = build(tiny, UserConfig(), RewardModelConfig("linear_head"))
    pooled = torch.randn(50, 32) * 3 + 1
    model.standardise_by(pooled)
    z = model.standardised(pooled)
    torch.testing.assert_close(z.mean(0), torch.zeros(32), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(32), atol=1e-5, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_truncated_backbone_applies_k_layers_and_the_final_norm(
    backbone_of: Callable[..., str], architecture: str
) -> None:
    folder = backbone_of(architecture)
    ids = torch.tensor([[7, 9, 30, 41]])
    with torch.no_grad():
        whole: Any = load_backbone(folder)
        states = whole(ids, output_hidden_states=True).hidden_states[1]
        norm = whole.final_layer_norm if architecture == "gpt_neox" else whole.norm
        cut = load_backbone(folder, layers=1)
        torch.testing.assert_close(cut(ids).last_hidden_state, norm(states), rtol=1e-5, atol=1e-5)


def test_unused_word_rows_beyond_the_tokenizer_are_not_users(tiny: str) -> None:
    """V is the table's width (336), not the tokenizer's length: ids between the two are words."""
    model, encoder = build(tiny, UserConfig(), RewardModelConfig("linear_head"))
    assert len(encoder.tokenizer) < model.vocab_size == 336
    assert encoder.encode(*TEXTS[0], 0).ids[0] == 336
    embedding = model.backbone.get_input_embeddings()
    words = AutoModel.from_pretrained(tiny, dtype=torch.float32).get_input_embeddings()
    ids = torch.tensor([[335, 5]])
    assert torch.equal(embedding(ids), words(ids))


def test_gradient_reaches_only_the_users_in_the_batch(tiny: str) -> None:
    model, encoder = build(tiny, UserConfig(num_virtual_tokens=2), RewardModelConfig("soft_prompt", "prefix"))
    out = model(*pad(encode(encoder, [1, 3, 1])), terms="user").user
    F.logsigmoid(out).sum().backward()
    people: Any = model.user_model
    moved = people.offsets.grad.flatten(1).abs().sum(1) > 0
    assert moved.tolist() == [False, True, False, True]
