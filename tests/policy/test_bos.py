"""User tokens behind a beginning-of-text token, in every path: by hand, from embeddings, with plain transformers."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM

from policy.prompts import encode_prompts
from policy.setup import new_policy
from prm.checkpoint import checkpoint as checkpoints
from prm.checkpoint.config_file import TrainedBy
from prm.config import BackboneConfig, RewardModelConfig, TrainConfig, UserConfig
from prm.errors import CheckpointError
from prm.scoring.scorer import Scorer
from prm.training.setup import new_checkpoint
from prm.users.index import UserIndex
from rerank.sampling.config import Sampling
from rerank.sampling.sampler import Sampler
from tests.conftest import CHAT_TEMPLATE, build_tokenizer, save_backbone
from tests.policy.conftest import dpo_config

PROMPT, ANSWERS, USERS = "what of the fox?", ["a lazy dog", "seven wizards"], UserIndex(["anna", "ben"])
BETA, TOKENS = 0.1, 2


@pytest.fixture(scope="module", params=["tokenizer", "template"])
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Llama for which the tokenizer, or the chat template, opens every text with <|system|>."""
    folder = Path(save_backbone(tmp_path_factory.mktemp(request.param), "llama"))
    tokenizer = build_tokenizer(chat=False)
    tokenizer.bos_token = "<|system|>"
    special = [("<|system|>", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<|system|> $A", special_tokens=special)
    if request.param == "template":
        tokenizer.chat_template = "{{ bos_token }}" + CHAT_TEMPLATE
    (folder / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(folder)
    return str(folder)


def policy_of(backbone: str, tmp_path: Path) -> Any:
    config = dpo_config(backbone, tmp_path, users=UserConfig(num_virtual_tokens=TOKENS))
    found = new_policy(config, config.users, USERS, TrainedBy("dpo", {**asdict(config.objective), "beta": BETA}))
    return spread(found)


def reward_model_of(backbone: str, place: Any) -> Any:
    reward = RewardModelConfig("soft_prompt", place)
    config = TrainConfig(
        backbone=BackboneConfig(backbone, dtype="float32"), reward=reward, users=UserConfig(num_virtual_tokens=2)
    )
    return spread(new_checkpoint(config, USERS))


def spread(checkpoint: Any) -> Any:
    """People far apart."""
    torch.manual_seed(1)
    for parameter in checkpoint.model.user_model.parameters():
        torch.nn.init.normal_(parameter.requires_grad_(False), std=0.5)
    checkpoint.model.eval()
    return checkpoint


def parts(checkpoint: Any, answer: str) -> tuple[list[int], list[int]]:
    """(prompt behind the beginning-of-text token, answer and end), by hand."""
    tokenizer = checkpoint.tokenizer
    chat = tokenizer.chat_template is not None
    text = f"<|user|>{PROMPT}<|end|>\n<|assistant|>" if chat else PROMPT
    ids = lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"])  # noqa: E731
    return ids(text), ids(answer) + ids("<|end|>" if chat else "<|eos|>")


def embedded(lm: Any, checkpoint: Any, row: int | None, rest: list[int]) -> Tensor:
    """[1, l, d]: the beginning of text, the person's vectors, the rest."""
    words = lm.get_input_embeddings()
    user = checkpoint.model.user_model(torch.tensor([row]))[0] if row is not None else torch.empty(0, 32)
    bos = torch.tensor([checkpoint.tokenizer.bos_token_id])
    return torch.cat([words(bos), user, words(torch.tensor(rest))])[None]


def test_implicit_rewards_are_those_of_users_after_it(backbone: str, tmp_path: Path) -> None:
    checkpoint, lm = policy_of(backbone, tmp_path), AutoModelForCausalLM.from_pretrained(backbone).eval()
    expected = []
    for answer in ANSWERS:
        asked, said = parts(checkpoint, answer)
        logps = []
        for row in (2, None):
            logs = lm(inputs_embeds=embedded(lm, checkpoint, row, [*asked, *said])).logits[0].log_softmax(-1)
            predicted = logs[-len(said) - 1 : -1].gather(1, torch.tensor(said)[:, None])
            logps.append(float(predicted.detach().sum()))
        expected.append(BETA * (logps[0] - logps[1]))
    scorer = Scorer(checkpoint)
    torch.testing.assert_close(scorer.score(PROMPT, ANSWERS, "ben"), torch.tensor(expected), rtol=0, atol=1e-4)
    assert abs(expected[0] - expected[1]) > 0.05
    users = scorer.score_users(PROMPT, ANSWERS, ["anna", "ben", None])
    torch.testing.assert_close(users[1], torch.tensor(expected), rtol=0, atol=1e-4)


def test_answers_are_drawn_with_users_after_it(backbone: str, tmp_path: Path) -> None:
    """The likeliest tokens, one at a time; and what PPO, RLOO and GRPO ask is what is asked here."""
    checkpoint, lm = policy_of(backbone, tmp_path), AutoModelForCausalLM.from_pretrained(backbone).eval()
    sampler = Sampler(checkpoint)
    drawn = sampler.generate(
        [sampler.encode_prompt(PROMPT, user) for user in ("anna", "ben")], 1, Sampling(6, 1e-4, 1.0)
    )
    assert drawn[0] != drawn[1]
    for row, answer in enumerate(drawn, start=1):
        asked, _ = parts(checkpoint, "x")
        for t, token in enumerate(answer):
            logits = lm(inputs_embeds=embedded(lm, checkpoint, row, [*asked, *answer[:t]])).logits[0, -1]
            assert token == int(logits.argmax())
    question = encode_prompts(sampler.encoder, USERS, [(PROMPT, "ben")], {"ben": "I am brief."})[0]
    bos, user = checkpoint.tokenizer.bos_token_id, sampler.encoder.user_ids(2)
    assert question.ids == sampler.encode_prompt(PROMPT, "ben", "I am brief.")
    assert question.ids[:3] == [bos, *user]
    assert question.plain_ids == [bos, *parts(checkpoint, "x")[0]]


def test_a_prefix_soft_prompt_stands_after_it(backbone: str) -> None:
    checkpoint, lm = reward_model_of(backbone, "prefix"), AutoModel.from_pretrained(backbone).eval()
    asked, said = parts(checkpoint, ANSWERS[0])
    state = lm(inputs_embeds=embedded(lm, checkpoint, 2, [*asked, *said])).last_hidden_state[0, -1]
    expected = checkpoint.model.score(state).detach()
    torch.testing.assert_close(Scorer(checkpoint).score(PROMPT, ANSWERS[:1], "ben"), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["policy", "prefix", "suffix"])
def test_a_run_scores_alike_when_loaded_and_one_from_before_is_refused(
    backbone: str, tmp_path: Path, kind: str
) -> None:
    checkpoint = policy_of(backbone, tmp_path) if kind == "policy" else reward_model_of(backbone, kind)
    run = tmp_path / "run"
    run.mkdir()
    checkpoints.save(checkpoint, run, {})
    loaded = Scorer.from_pretrained(run)
    torch.testing.assert_close(loaded.score(PROMPT, ANSWERS, "ben"), Scorer(checkpoint).score(PROMPT, ANSWERS, "ben"))
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"format": 1}))
    with pytest.raises(CheckpointError, match=r"format 1.* 4.*beginning-of-text"):
        checkpoints.load(run)
