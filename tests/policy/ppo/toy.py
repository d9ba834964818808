"""A language of ten words for which the best policy is known, and what PPO needs to be run on it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from policy.config import Ppo, PpoConfig
from policy.ppo.roles import Roles
from policy.ppo.rollouts import RolloutGenerator
from policy.setup import new_policy
from prm.checkpoint.config_file import TrainedBy
from prm.config import BackboneConfig, DataConfig, OptimConfig, UserConfig
from prm.data.comparison import Comparison, as_messages
from prm.io.tables import write_jsonl
from prm.models.policy_model import Policy
from prm.users.index import UserIndex
from rerank.sampling.sampler import Sampler

WORDS = "one two three four five six seven eight nine ten".split()  # noqa: SIM905
PROMPTS = [f"{a} {b}" for a in WORDS[:4] for b in WORDS[4:8]]
PEOPLE: list[str | None] = ["likes", "dislikes", None]


def save_toy(folder: Path) -> str:
    """A random language model of these words, a pad and an end; no chat template."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    shape: dict[str, Any] = {"vocab_size": 16, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(**shape, num_attention_heads=4, max_position_embeddings=64, eos_token_id=1, pad_token_id=0)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.15)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def toy_config(backbone: str, folder: Path, **changes: Any) -> PpoConfig:
    """A short run on `folder`/log.jsonl, which is written; `ppo`, `optim` and `dtype` change these of their own."""
    log = [
        Comparison(user, prompt, *(("nine", "ten") if user == "likes" else ("ten", "nine")))
        for prompt in PROMPTS
        for user in ("likes", "dislikes")
    ]
    write_jsonl(folder / "log.jsonl", log)
    ppo = Ppo(max_steps=3, rollout_batch_size=12, max_new_tokens=4, missing_eos_penalty=0.0, num_scale_samples=8)
    optim = OptimConfig(epochs=2.0, batch_size=6, micro_batch_size=3, warmup_steps=1, eval_steps=2)
    optim.user_lr = optim.lora_lr = optim.head_lr = 1e-2
    config = PpoConfig(
        output_dir=str(folder / "run"),
        data=DataConfig(path=str(folder / "log.jsonl")),
        backbone=BackboneConfig(backbone, dtype=changes.pop("dtype", "float32"), max_length=32),
        users=UserConfig(num_virtual_tokens=2),
        ppo=replace(ppo, **changes.pop("ppo", {})),
        optim=replace(optim, **changes.pop("optim", {})),
    )
    return replace(config, **changes)


def likes(score: Callable[[str], float]) -> Callable[..., list[float]]:
    """The reward of somebody who likes what scores high, somebody who dislikes it, and a stranger who minds nothing."""
    sign = {"likes": 1.0, "dislikes": -1.0, None: 0.0}

    def reward(
        prompts: Sequence[Any], answers: Sequence[str], users: Sequence[Any], texts: Sequence[str]
    ) -> list[float]:
        return [sign[user] * score(answer) for answer, user in zip(answers, users, strict=True)]

    return reward


def new_writer(backbone: str, folder: Path, reward: Any, **changes: Any) -> tuple[RolloutGenerator, PpoConfig]:
    """A policy of the two that has learnt nothing yet, as PPO draws from it."""
    config = toy_config(backbone, folder, **changes)
    checkpoint = new_policy(config, config.users, UserIndex(["likes", "dislikes"]), TrainedBy("ppo"))
    return RolloutGenerator(Sampler(checkpoint), Roles(checkpoint.model, 0), reward, config), config


def first_word(sampler: Sampler, prompt: str, user: str | None) -> tuple[Tensor, Tensor]:
    """log pi and log pi_ref of every first token of an answer, float64 [V]."""

    def read(policy: Policy, ids: list[int]) -> Tensor:
        with torch.no_grad():
            return policy(torch.tensor([ids]), torch.ones(1, len(ids))).logits[0, -1].double().log_softmax(-1)

    policy = sampler.policy
    own = read(policy, sampler.encode_prompt(prompt, user))
    with policy.without_adapter():
        return own, read(policy, sampler.encoder.template_ids(as_messages(prompt)))
