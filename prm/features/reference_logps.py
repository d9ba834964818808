"""A policy's implicit reward, beta log pi(y|x, u) / pi_ref(y|x), with the reference's part cached on disk.

The reference is the language model that the policy started from, on the plain text, without user and user text
(section 4.4, equation of P-DPO).
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from prm.data.comparison import Prompt
from prm.data.encoding import Encoded, TextEncoder
from prm.errors import PrmError
from prm.features.cache_folder import LOGPS
from prm.features.extract import read_logps, read_reference_logps
from prm.features.store import ReadHere, ShardStore, read_or_compute, store_folder
from prm.io.progress import Bar, progress
from prm.models.policy_model import Policy
from prm.users.user_model import UserModel

Asked = tuple[Prompt, str, str, int]  # prompt, response, user text, row of the user


def completion(sequence: Encoded) -> Encoded:
    """The sequence with its end tokens as part of the response, since a policy must also learn to stop."""
    return Encoded(sequence.ids, (sequence.response[0], len(sequence.ids)))


def implicit_rewards(
    policy: Policy, encoder: TextEncoder, beta: float, asked: Sequence[Asked], max_tokens: int, user_model: UserModel
) -> Tensor:
    """beta log pi(y|x, u) / pi_ref(y|x), float32 [n], of each element of `asked`; rows are those of `user_model`.

    Each text is tokenised once and scored by the reference once, for all users.
    """
    position = {text: i for i, text in enumerate(dict.fromkeys(request[:3] for request in asked))}
    pairs = [encoder.encode_with_plain(prompt, response, 0, text) for prompt, response, text in position]
    index = [position[request[:3]] for request in asked]
    sequences = [completion(encoder.for_user(pairs[i][0], request[3])) for i, request in zip(index, asked, strict=True)]
    with progress(total=len(sequences) + len(pairs), desc="scoring", unit="text") as bar:
        reference = read_reference_logps(policy, [completion(plain) for _, plain in pairs], max_tokens, bar)
        return beta * (read_logps(policy, sequences, max_tokens, bar, user_model) - reference[index])


def reference_folder(policy: Policy) -> Path:
    """The cache folder of log-probabilities of the language model that a policy started from."""
    return store_folder(policy.origin, policy.config, next(policy.backbone.parameters()).dtype, LOGPS)


@torch.no_grad()
def kept_reference_logps(policy: Policy, texts: Sequence[Encoded], max_tokens: int = 4096) -> Tensor:
    """log pi_ref(y|x) [n] of plain sequences, float32 on the CPU, cached on disk.

    Call it before training, when the policy's own weights are the reference. Raises `PrmError` if one is not finite.
    """

    def read(part: Sequence[Encoded], bar: Bar) -> dict[str, Tensor]:
        logps = read_reference_logps(policy, part, max_tokens, bar)
        if not logps.isfinite().all():
            raise PrmError("log-probabilities of the reference are not finite: 'backbone.dtype' is too narrow")
        return {"logps": logps[:, None]}

    store = ShardStore(reference_folder(policy))
    reader = ReadHere(read, policy.backbone, "scoring with the reference")
    return read_or_compute({"logps": store}, texts, reader)["logps"].flatten()
