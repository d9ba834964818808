"""The conditioned policy: a causal language model that knows whom it answers (paper, section 4.2)."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from prm.config import UserConfig
from prm.data.encoding import Batch
from prm.models.backbone_state import plain, switched
from prm.models.backbones import load_causal_lm, refuse_narrow_words, weights_fingerprint
from prm.models.dropout import without_dropout
from prm.models.packing import can_pack, read_together
from prm.models.reward_model import build_user_model, count_trained
from prm.models.user_embedding import condition
from prm.users.models import UserModel, init_from_token_embeddings

LOGITS_AT_ONCE = 64  # tokens whose logits are held in float32 together


class Policy(nn.Module):
    """A causal language model whose sequences carry their user as ids past the vocabulary.

    It reads such ids and never writes one: its output head is V wide. Everything that transformers does with a model
    is done with `backbone`: `policy.backbone.generate(...)`, caches, adapters.

    Args:
        backbone: the language model; its input embedding is wrapped, and it drops nothing of its own from now on.
        user_model: everyone's embeddings, T_u vectors each.
        origin: fingerprint of the language model that it started from, where that is no longer `backbone`'s own.
    """

    def __init__(self, backbone: PreTrainedModel, user_model: UserModel, origin: str | None = None):
        super().__init__()
        self.fingerprint = weights_fingerprint(backbone)
        self.origin = origin or self.fingerprint
        without_dropout(backbone)
        self.config, self.generation_config = backbone.config, cast(Any, backbone.generation_config)
        self.backbone, self.user_model = backbone, user_model
        self.vocab_size = condition(backbone, user_model)
        self._start: list[Policy] = []  # a list hides it: it is no part of what is trained and saved

    @property
    def user_tokens(self) -> int:
        """Ids per user in a sequence."""
        return self.user_model.tokens

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.backbone.parameters()).device

    @property
    def base_model(self) -> nn.Module:
        """The transformer below the output head, adapters included, as TRL's fused head asks for it."""
        return cast(nn.Module, plain(self.backbone).base_model)

    def get_output_embeddings(self) -> nn.Module:
        """The output head."""
        return cast(nn.Module, self.backbone.get_output_embeddings())

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **kwargs: Any) -> Any:
        """What the language model returns for sequences [b, l]; `logits` are [b, l, V].

        With `together` and labels [b, l] it is `read_together` instead: through here, as trainers wrap a model's call.
        """
        if kwargs.pop("together", False):
            return self.read_together(input_ids, attention_mask.bool(), **kwargs)
        with switched(self.backbone):
            return self.backbone(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    @property
    def packs(self) -> bool:
        """Whether it reads faster what sequences of a batch share once."""
        # measured on CPUs alone
        return self.device.type == "cpu" and can_pack(self.backbone)

    def read_together(self, ids: Tensor, mask: Tensor, labels: Tensor, temperature: float = 1.0) -> dict[str, Tensor]:
        """What TRL's fused head tells of each label, [b, l - 1] each, from one reading of what sequences share.

        log_probs (nats, float32, the one with a gradient), entropy, mean_logits and is_top1; 0 where labels [b, l] are
        -100. Entry t is that of token t + 1, of logits over `temperature`. The prompt must be longer than nothing: the
        first label is -100.
        """
        logits, predicted = self._logits_together(ids, mask, labels != -100)
        found: dict[str, list[Tensor]] = {name: [] for name in ("log_probs", "entropy", "mean_logits", "is_top1")}
        for part, target in _some(logits, labels[labels != -100]):
            part = part.float() / temperature
            found["log_probs"].append(-F.cross_entropy(part, target, reduction="none"))
            with torch.no_grad():
                logs = part.log_softmax(-1)
                found["entropy"].append(-(logs.exp() * logs).sum(-1))
                found["mean_logits"].append(part.mean(-1))
                found["is_top1"].append(part.argmax(-1) == target)
        values = {name: torch.cat(parts) for name, parts in found.items()}
        return {name: x.new_zeros(predicted.shape).masked_scatter(predicted, x) for name, x in values.items()}

    def _logits_together(self, ids: Tensor, mask: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor]:
        """(logits [n, V] that foretell the n tokens of `predicted` [b, l], which of the entries [b, l - 1] these are).

        No sequence begins with such a token.
        """
        out, _ = read_together(self.backbone, ids, mask, predicted.roll(-1, 1))
        return out.logits[0], predicted[:, 1:]

    def token_logps(self, batch: Batch, through: nn.Module | None = None) -> Tensor:
        """log pi(token | what stands before it, user), nats, float32 [b, l - 1]; 0 outside of the response mask.

        Entry t is that of token t + 1. Padding may stand on either side. `through` is this policy as a trainer has
        wrapped it; without one, what sequences share is read once where that is faster.
        """
        if through is None and self.packs:
            logits, predicted = self._logits_together(batch.input_ids, batch.attention_mask.bool(), batch.response_mask)
            targets = batch.input_ids[batch.response_mask]
            logps = [-F.cross_entropy(a.float(), b, reduction="none") for a, b in _some(logits, targets)]
            return torch.zeros(predicted.shape, device=predicted.device).masked_scatter(predicted, torch.cat(logps))
        columns = batch.response_mask.any(0).nonzero()[:, 0]
        positions = (batch.attention_mask.long().cumsum(-1) - 1).clamp_min(0)
        logits = (through or self)(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask.long(),
            position_ids=positions,
            use_cache=False,
            logits_to_keep=columns - 1,  # as indices: the output head is many times slower on a slice's view
        ).logits
        labels = batch.input_ids.masked_fill(~batch.response_mask, -100)[:, columns]
        # row by row: the float32 copy of one row's logits is small, that of all rows is not
        rows = [-F.cross_entropy(row.float(), label, reduction="none") for row, label in zip(logits, labels)]
        found = torch.zeros(batch.input_ids.shape[0], batch.input_ids.shape[1] - 1, device=batch.input_ids.device)
        return found.index_copy(1, columns - 1, torch.stack(rows))

    def logps(self, batch: Batch) -> Tensor:
        """log pi(response | prompt, user) of each sequence, nats, float32 [b]."""
        return self.token_logps(batch).sum(-1)

    def reference_logps(self, batch: Batch) -> Tensor:
        """log pi_ref(response | prompt), nats, float32 [b], of sequences without users.

        The reference is the language model that the policy started from. Raises `ValueError` for a user id.
        """
        self.refuse_users(batch.input_ids.flatten().tolist())
        with self.reference() as start:
            return start.logps(batch)

    def refuse_users(self, ids: Iterable[int]) -> None:
        """Raises `ValueError` for a user id: what the reference reads holds none."""
        if max(ids, default=0) >= self.vocab_size:
            raise ValueError("the reference never sees users, and a user id stands in its batch")

    @contextmanager
    def reference(self) -> Iterator["Policy"]:
        """The policy that it started from, as long as the block lasts: one kept apart, or this one without adapter."""
        if self._start:
            yield self._start[0]
        else:
            with self.without_adapter():
                yield self

    def compare_with(self, start: "Policy") -> None:
        """Take another model as the reference: the one it started from, where its own weights were trained."""
        self._start[:] = [start]

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """The language model below the adapter, as long as the block lasts."""
        with switched(self.backbone, bare=True):
            yield

    def merge_adapter(self) -> None:
        """Fold the LoRA adapter, if there is one, into the weights; people stay as they are beside them."""
        if isinstance(self.backbone, PeftModel):
            self.backbone = self.backbone.merge_and_unload()

    def trained_parameters(self) -> dict[str, int]:
        """How many numbers training may change: N_u of the user model, N_l of all else (adapter, backbone)."""
        return count_trained(self, self.user_model)

    def head_state(self) -> dict[str, Tensor]:
        """Everything of this model that is neither the language model nor its adapter: contiguous tensors by name."""
        return {f"user_model.{k}": v.detach().cpu().contiguous() for k, v in self.user_model.state_dict().items()}

    @property
    def is_gradient_checkpointing(self) -> bool:
        """False, so that TRL does not switch it off where no gradient is taken: nothing is recomputed there anyway."""
        return False

    def add_model_tags(self, tags: list[str]) -> None:
        """TRL names its trainer on hub models here; our card is written by `prm.checkpoint.checkpoint`."""


def _some(logits: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """A few rows after the other: the float32 copy of a few rows' logits is small, that of all is not."""
    return zip(logits.split(LOGITS_AT_ONCE), targets.split(LOGITS_AT_ONCE), strict=True)


def build_policy(name: str, users: UserConfig, n_rows: int, seed: int, dtype: torch.dtype) -> Policy:
    """A policy ready to be trained, its language model frozen: user embeddings start from words.

    Raises `PrmError` where the language model cannot be loaded, or has no place for users.
    """
    backbone = load_causal_lm(name, dtype).requires_grad_(False)
    if users.num_virtual_tokens:
        refuse_narrow_words(name, backbone)
    user_model = build_user_model(users, n_rows, backbone.config.get_text_config().hidden_size)
    init_from_token_embeddings(user_model, cast(Tensor, backbone.get_input_embeddings().weight), seed)
    for parameter in user_model.parameters():
        if parameter.numel() == 0:
            parameter.requires_grad_(False)
    return Policy(backbone, user_model)
