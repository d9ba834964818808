"""Scoring beside what users would take instead: CrossEncoder of sentence-transformers, transformers, bare matrices.

All of them score the same responses to one prompt with the same backbone and one linear head, in float32.
"""

import tempfile
from collections.abc import Iterator

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.ratio import Ratio
from benchmarks.scoring import answers_of, untrained_scorer, words
from prm.attention.prefix_tree import make_plan
from prm.models.backbones import resolve
from prm.models.reward_model import RewardModel
from prm.scoring.scorer import Scorer

_SIDE = 2048  # of the matrices whose product shows what the machine can do


def ratios(
    backbone: str = "smollm2-135m", prompt_words: int = 300, words_each: int = 60, responses: int = 16
) -> Iterator[Ratio]:
    """Their time over ours, and the share of the time of a bare matrix product with as many operations."""
    from sentence_transformers import CrossEncoder

    scorer = untrained_scorer(backbone, "float32")
    prompt, texts = words(prompt_words), answers_of(responses, words_each)
    what = f"{responses} responses of {words_each} words to a prompt of {prompt_words}"
    tokenizer = AutoTokenizer.from_pretrained(resolve(backbone), trust_remote_code=False)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForSequenceClassification.from_pretrained(
        resolve(backbone), num_labels=1, dtype=torch.float32, trust_remote_code=False
    ).eval()
    model.config.pad_token_id = tokenizer.pad_token_id

    @torch.no_grad()
    def padded() -> None:
        batch = tokenizer([prompt] * responses, texts, padding=True, return_tensors="pt")
        batch.pop("token_type_ids", None)
        model(**batch)

    def ours() -> None:
        scorer.score(prompt, texts)

    yield Ratio(f"{what}: transformers, one padded batch / Scorer", padded, ours, at_least=3.0, repeats=5)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        cross = CrossEncoder(folder, device="cpu", trust_remote_code=False)
    pairs = [(prompt, text) for text in texts]
    yield Ratio(
        f"{what}: CrossEncoder.predict / Scorer",
        lambda: cross.predict(pairs, batch_size=responses, show_progress_bar=False),
        ours,
        at_least=3.0,
        repeats=5,
    )
    a, b = torch.randn(_SIDE, _SIDE), torch.randn(_SIDE, _SIDE)
    yield Ratio(
        f"{what}: a bare matrix product of as many operations / Scorer",
        lambda: a @ b,
        ours,
        at_least=0.75,
        scale=operations(scorer, prompt, texts) / (2 * _SIDE**3),
    )


def operations(scorer: Scorer, prompt: str, texts: list[str]) -> float:
    """Multiplications and additions that scoring needs: every distinct token through every layer, and attention.

    2 a parameter and token, embeddings aside; 4 times the width for a token and each one before it, in each layer.
    """
    assert isinstance(scorer.model, RewardModel)
    config = scorer.model.backbone.config.get_text_config()
    plan = make_plan([scorer.encoder.encode(prompt, text).ids[1:] for text in texts])
    layers = [
        p for name, p in scorer.model.backbone.named_parameters() if ".layers." in name or name.startswith("layers.")
    ]
    before = sum(int(position) + 1 for position in plan.positions)
    width = config.num_attention_heads * getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    return 2.0 * sum(p.numel() for p in layers) * len(plan.ids) + 4.0 * width * before * config.num_hidden_layers
