"""What works on which architecture: train, score and sample tiny random models of each.

python -m tests.architectures     # writes docs/architectures.md
"""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers as t
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig

from policy.config import DpoConfig
from policy.dpo import train_dpo
from prm.config import BackboneConfig, DataConfig, OptimConfig, RewardModelConfig, SearchConfig, TrainConfig, UserConfig
from prm.errors import PrmError
from prm.io.tables import write_jsonl
from prm.models.packing import can_pack
from prm.scoring.scorer import Scorer
from prm.training.run import train
from rerank.sampling.config import Sampling
from rerank.sampling.sampler import Sampler
from tests.conftest import save_random
from tests.paths import ROOT
from tests.planted import opposed_people

PAGE = ROOT / "docs/architectures.md"
_IDS: dict[str, Any] = {"vocab_size": 336, "eos_token_id": 1, "pad_token_id": 0, "bos_token_id": None}
_SHAPE = _IDS | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_WIDE = _SHAPE | {"intermediate_size": 64, "max_position_embeddings": 256}
_GROUPED = _WIDE | {"num_key_value_heads": 2}
_HEADS = _GROUPED | {"head_dim": 8}
_EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "sliding_window": None}
_LATENT: dict[str, Any] = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
_GPT = _IDS | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
FAMILIES: dict[str, PretrainedConfig] = {
    "Llama": t.LlamaConfig(**_GROUPED),
    "Qwen2": t.Qwen2Config(**_GROUPED),
    "Qwen3": t.Qwen3Config(**_HEADS),
    "Mistral (sliding window)": t.MistralConfig(**_GROUPED, sliding_window=16),
    "Mixtral": t.MixtralConfig(**_GROUPED, **_EXPERTS, num_local_experts=4),
    "Gemma 2": t.Gemma2Config(**_HEADS, sliding_window=16),
    "Gemma 3": t.Gemma3TextConfig(**_HEADS, sliding_window=16),
    "Phi": t.PhiConfig(**_WIDE),
    "Phi-3": t.Phi3Config(**_GROUPED),
    "StableLM": t.StableLmConfig(**_GROUPED),
    "OLMo 2": t.Olmo2Config(**_GROUPED),
    "Cohere": t.CohereConfig(**_GROUPED),
    "Nemotron": t.NemotronConfig(**_GROUPED),
    "DeepSeek-V3": t.DeepseekV3Config(
        **_WIDE,
        **_LATENT,
        num_key_value_heads=4,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
    ),
    "GPT": t.OpenAIGPTConfig(**_GPT),
    "GPT-2": t.GPT2Config(**_GPT),
    "GPT-J": t.GPTJConfig(**_GPT, rotary_dim=4),
    "GPT-NeoX (Pythia)": t.GPTNeoXConfig(**_WIDE),
    "GPT-Neo": t.GPTNeoConfig(
        **_IDS, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=16
    ),
    "OPT": t.OPTConfig(**_SHAPE, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=256),
    "Bloom": t.BloomConfig(**_IDS, hidden_size=32, n_layer=2, n_head=4),
    "Falcon": t.FalconConfig(**_SHAPE),
    "OPT 350m": t.OPTConfig(**_SHAPE, ffn_dim=64, word_embed_proj_dim=16, max_position_embeddings=256),
    "RWKV": t.RwkvConfig(
        **_IDS, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32, intermediate_size=64, context_length=256
    ),
    "Mamba": t.MambaConfig(**_IDS, hidden_size=32, num_hidden_layers=2, state_size=8),
}
_STEPS = OptimConfig(epochs=1.0, batch_size=4, micro_batch_size=4, eval_steps=50)
_QUICK = SearchConfig(folds=2, l2=[1.0], user_l2=[1.0], kernels=["linear"])
PROMPTS, ANSWERS = ["what about a king?", "why? " * 6], ["the fox", "seven wizards mix potions for an old king"]


def examine(backbone: str, folder: Path) -> dict[str, str]:
    """The outcome of each use, by column: `yes`, or the error message."""
    write_jsonl(folder / "log.jsonl", opposed_people(6, 0, people=2))
    data = DataConfig(path=str(folder / "log.jsonl"), test_fraction=0.0)
    lm = BackboneConfig(backbone, dtype="float32")

    def linear() -> None:
        train(TrainConfig(str(folder / "linear"), data=data, backbone=lm, search=_QUICK))

    def soft() -> None:
        settings: dict[str, Any] = {
            "train": "lora",
            "users": UserConfig(num_virtual_tokens=2),
            "reward": RewardModelConfig("soft_prompt"),
            "optim": _STEPS,
        }
        train(TrainConfig(str(folder / "soft"), data=data, backbone=lm, **settings))

    def policy() -> None:
        train_dpo(DpoConfig(output_dir=str(folder / "dpo"), data=data, backbone=lm, optim=replace(_STEPS)))

    uses: dict[str, Callable[[], None]] = {"linear head": linear, "soft prompt": soft, "P-DPO": policy}
    outcomes = {use: _outcome(run) for use, run in uses.items()}
    runs = [folder / name for name in ("linear", "soft", "dpo") if (folder / name).is_dir()]
    outcomes["alike in any batch"] = _outcome(lambda: [_any_batch(run) for run in runs])
    outcomes["answers"] = _outcome(lambda: _responses(backbone))
    outcomes["reads shared text once"] = "yes" if _packs(backbone) else "no"
    return outcomes


def _outcome(use: Callable[[], Any]) -> str:
    try:
        use()
    except PrmError as error:
        return str(error)
    return "yes"


def _any_batch(run: Path) -> None:
    """Assert that scores do not depend on the batch, for known users and the generic user, float32."""
    scorer = Scorer.from_pretrained(run, device="cpu")
    rows = [(p, a, u) for p in PROMPTS for a in ANSWERS for u in ("p0", None)]
    together = scorer.score_batch(*map(list, zip(*rows, strict=True)))  # type: ignore[arg-type]
    alone = torch.cat([scorer.score(p, [a], u) for p, a, u in rows])
    assert float(together.std()) > 1e-3, run
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4, msg=str(run))


@torch.no_grad()
def _responses(backbone: str) -> None:
    """Assert that greedy responses to two prompts in one batch are those of transformers' `generate`."""
    sampler = Sampler.from_pretrained(backbone, torch.device("cpu"), torch.float32)
    responses = sampler.generate(
        [sampler.encode_prompt(p) for p in PROMPTS], 1, Sampling(max_new_tokens=8, temperature=1e-4)
    )
    plain = AutoModelForCausalLM.from_pretrained(backbone).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(backbone)
    for prompt, response in zip(PROMPTS, responses, strict=True):
        turns = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        out = plain.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=sampler.end_ids, pad_token_id=0)
        assert out[0, ids.shape[1] :].tolist() == response, backbone


def _packs(backbone: str) -> bool:
    return can_pack(AutoModelForCausalLM.from_pretrained(backbone).eval())


def save_family(name: str, folder: Path) -> str:
    """Save a tiny random model of the family, with a tokenizer; returns the folder."""
    return save_random(folder, AutoModelForCausalLM, FAMILIES[name])


def table(rows: dict[str, dict[str, str]]) -> str:
    """The rows as a Markdown table."""
    columns = list(next(iter(rows.values())))
    lines = [["architecture", *columns], ["---"] * (len(columns) + 1)]
    lines += [[name, *(row[column] for column in columns)] for name, row in rows.items()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    """Examine all families and write the table into docs/architectures.md."""
    rows = {}
    with tempfile.TemporaryDirectory() as home:
        for name in FAMILIES:
            folder = Path(home) / name
            backbone = save_family(name, folder / "backbone")
            rows[name] = {c: x.replace(backbone, "BACKBONE") for c, x in examine(backbone, folder).items()}
            print(name, rows[name], file=sys.stderr)
    head, _, _ = PAGE.read_text(encoding="utf-8").partition("| architecture |")
    PAGE.write_text(head + table(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
