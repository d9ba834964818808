"""A policy's implicit reward, beta log pi(y|x, u) / pi_ref(y|x), and the reference's half of it, kept on disk.

The reference is the language model that the policy started from, on the plain text: it is told neither who asks nor
what they say of themselves (section 4.4, equation of P-DPO).
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from prm.backbones import cache_dir
from prm.causal import Policy
from prm.comparison import Prompt
from prm.errors import PrmError
from prm.features import FeatureStore, text_key
from prm.progress import progress
from prm.reader import read_logps, read_reference_logps
from prm.tokens import Encoded, TextEncoder

_SHARD_TEXTS = 512

Asked = tuple[Prompt, str, str, int]  # prompt, response, user text, row of the user


def completion(sequence: Encoded) -> Encoded:
    """The sequence with its end counted to the response: a policy must know when to stop, too."""
    return Encoded(sequence.ids, (sequence.response[0], len(sequence.ids)))


def implicit_rewards(
    policy: Policy, encoder: TextEncoder, beta: float, asked: Sequence[Asked], max_tokens: int
) -> Tensor:
    """beta log pi(y|x, u) / pi_ref(y|x), float32 [n], of each in `asked`.

    A text is tokenised once, and read by the reference once, whoever asks for it.
    """
    place = {text: i for i, text in enumerate(dict.fromkeys(a[:3] for a in asked))}
    pairs = [encoder.encode_with_plain(prompt, response, 0, text) for prompt, response, text in place]
    index = [place[a[:3]] for a in asked]
    sequences = [completion(encoder.for_user(pairs[i][0], a[3])) for i, a in zip(index, asked, strict=True)]
    with progress(total=len(sequences) + len(pairs), desc="scoring", unit="text") as bar:
        reference = read_reference_logps(policy, [completion(plain) for _, plain in pairs], max_tokens, bar)
        return beta * (read_logps(policy, sequences, max_tokens, bar) - reference[index])


@torch.no_grad()
def kept_reference_logps(policy: Policy, texts: Sequence[Encoded], max_tokens: int = 4096) -> Tensor:
    """log pi_ref(y|x) [n] of plain sequences, float32 on the CPU: on disk afterwards, so that no run reads one twice.

    Before training the policy's own weights are the reference; call it then. Raises `PrmError` for what is no number.
    """
    dtype = next(policy.backbone.parameters()).dtype
    name = hashlib.sha256(f"{policy.origin} {dtype} {policy.config.model_type}".encode()).hexdigest()[:16]
    store = FeatureStore(cache_dir() / "references" / name)
    keys = [text_key(text) for text in texts]
    missing = [(key, text) for key, text in dict(zip(keys, texts, strict=True)).items() if key not in store]
    policy.eval()
    bar = progress(total=len(missing), desc="reading the reference", unit="text")
    for first in range(0, len(missing), _SHARD_TEXTS):
        part = missing[first : first + _SHARD_TEXTS]
        found = read_reference_logps(policy, [text for _, text in part], max_tokens, bar)[:, None].cpu()
        if not found.isfinite().all():
            raise PrmError("log-probabilities of the reference are not finite: 'backbone.dtype' is too narrow")
        store.write([key for key, _ in part], found)
    bar.close()
    return store.read(keys)[:, 0]
