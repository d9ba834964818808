"""The conditioned policy: a causal language model with user embeddings (paper, section 4.2)."""

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
from prm.io.run_files import Parameters
from prm.models.backbone_state import plain, switched
from prm.models.backbones import load_causal_lm, refuse_narrow_words, weights_fingerprint
from prm.models.dropout import without_dropout
from prm.models.packing import can_pack, forward_packed
from prm.models.reward_model import count_trained
from prm.models.user_token_embedding import condition
from prm.users.build import build_user_model, init_from_token_embeddings
from prm.users.user_model import UserModel

LOGITS_AT_ONCE = 64  # tokens whose logits are held in float32 together


class Policy(nn.Module):
    """A causal language model whose sequences contain user ids past the vocabulary.

    It never generates user ids: its output head has V rows. Use `backbone` for everything that transformers does:
    `policy.backbone.generate(...)`, caches, adapters.

    Args:
        backbone: the language model; its input embedding is wrapped and its dropout switched off.
        user_model: embeds users, T_u vectors each.
        origin: fingerprint of the language model that training started from, if not that of `backbone`.
    """

    def __init__(self, backbone: PreTrainedModel, user_model: UserModel, origin: str | None = None):
        super().__init__()
        self.fingerprint = weights_fingerprint(backbone)
        self.origin = origin or self.fingerprint
        without_dropout(backbone)
        self.config, self.generation_config = backbone.config, cast(Any, backbone.generation_config)
        self.backbone, self.user_model = backbone, user_model
        self.vocab_size = condition(backbone, user_model)
        self._start: list[Policy] = []  # the reference; a list, so that it is no submodule

    @property
    def user_tokens(self) -> int:
        """Ids per user in a sequence."""
        return self.user_model.tokens

    @property
    def device(self) -> torch.device:
        """The backbone's device."""
        return next(self.backbone.parameters()).device

    @property
    def base_model(self) -> nn.Module:
        """The transformer below the output head, with adapters, for TRL's fused head."""
        return cast(nn.Module, plain(self.backbone).base_model)

    @property
    def _no_split_modules(self) -> object:
        """The layers that FSDP shards one by one: the language model's."""
        return plain(self.backbone)._no_split_modules

    def get_input_embeddings(self) -> nn.Module:
        """The token table with users; FSDP asks for it, since the output head may be tied to it."""
        return self.backbone.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """The output head."""
        return cast(nn.Module, self.backbone.get_output_embeddings())

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **kwargs: Any) -> Any:
        """The language model's output for sequences [b, l]; `logits` are [b, l, V].

        With `together` and labels [b, l] it returns `forward_packed` instead, since trainers wrap `forward` alone.
        """
        if kwargs.pop("together", False):
            return self.forward_packed(input_ids, attention_mask.bool(), **kwargs)
        with switched(self.backbone):
            return self.backbone(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    @property
    def packs(self) -> bool:
        """Whether batches are processed as packs, with shared prefixes once."""
        return can_pack(self.backbone)

    def forward_packed(self, ids: Tensor, mask: Tensor, labels: Tensor, temperature: float = 1.0) -> dict[str, Tensor]:
        """The statistics of TRL's fused head, [b, l - 1] each, with shared prefixes processed once.

        log_probs (nats, float32, the only one with a gradient), entropy, mean_logits and is_top1; 0 where labels
        [b, l] are -100. Entry t belongs to token t + 1, with logits divided by `temperature`. The first label must be
        -100: prompts are not empty.
        """
        logits, predicted = self._logits_together(ids, mask, labels != -100)
        statistics: dict[str, list[Tensor]] = {name: [] for name in ("log_probs", "entropy", "mean_logits", "is_top1")}
        for chunk, target in _chunks(logits, labels[labels != -100]):
            chunk = chunk.float() / temperature
            statistics["log_probs"].append(-F.cross_entropy(chunk, target, reduction="none"))
            with torch.no_grad():
                logs = chunk.log_softmax(-1)
                statistics["entropy"].append(-(logs.exp() * logs).sum(-1))
                statistics["mean_logits"].append(chunk.mean(-1))
                statistics["is_top1"].append(chunk.argmax(-1) == target)
        values = {name: torch.cat(parts) for name, parts in statistics.items()}
        return {name: x.new_zeros(predicted.shape).masked_scatter(predicted, x) for name, x in values.items()}

    def _logits_together(self, ids: Tensor, mask: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor]:
        """(logits [n, V] that predict the n tokens of `predicted` [b, l], mask [b, l - 1] of their entries).

        No sequence may start with such a token.
        """
        out, _ = forward_packed(self.backbone, ids, mask, predicted.roll(-1, 1))
        return out.logits[0], predicted[:, 1:]

    def token_logps(self, batch: Batch, through: nn.Module | None = None) -> Tensor:
        """log pi(token | previous tokens, user), nats, float32 [b, l - 1]; 0 outside of the response mask.

        Entry t belongs to token t + 1. Padding may be on either side. `through` is this policy as wrapped by a
        trainer; without it, shared prefixes are processed once if the backbone can.
        """
        if through is None and self.packs:
            logits, predicted = self._logits_together(batch.input_ids, batch.attention_mask.bool(), batch.response_mask)
            targets = batch.input_ids[batch.response_mask]
            logps = [-F.cross_entropy(a.float(), b, reduction="none") for a, b in _chunks(logits, targets)]
            return torch.zeros(predicted.shape, device=predicted.device).masked_scatter(predicted, torch.cat(logps))
        columns = batch.response_mask.any(0).nonzero()[:, 0]
        positions = (batch.attention_mask.long().cumsum(-1) - 1).clamp_min(0)
        logits = (through or self)(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask.long(),
            position_ids=positions,
            use_cache=False,
            logits_to_keep=columns - 1,  # indices: on a slice's view, the head is many times slower
        ).logits
        labels = batch.input_ids.masked_fill(~batch.response_mask, -100)[:, columns]
        # row by row, to limit the memory of float32 logits
        rows = [-F.cross_entropy(row.float(), label, reduction="none") for row, label in zip(logits, labels)]
        out = torch.zeros(batch.input_ids.shape[0], batch.input_ids.shape[1] - 1, device=batch.input_ids.device)
        return out.index_copy(1, columns - 1, torch.stack(rows))

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
        """Raise `ValueError` for a user id: the reference has no users."""
        if max(ids, default=0) >= self.vocab_size:
            raise ValueError("the reference has no users, but its batch contains a user id")

    @contextmanager
    def reference(self) -> Iterator["Policy"]:
        """The policy that training started from, within the block: a separate model, or this one without adapter."""
        if self._start:
            yield self._start[0]
        else:
            with self.without_adapter():
                yield self

    def compare_with(self, start: "Policy") -> None:
        """Set the reference: the model that training started from, if the backbone's weights were trained."""
        self._start[:] = [start]

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Switch the adapter off within the block."""
        with switched(self.backbone, bare=True):
            yield

    def merge_adapter(self) -> None:
        """Merge the LoRA adapter, if there is one, into the weights; users stay as they are."""
        if isinstance(self.backbone, PeftModel):
            with switched(self.backbone):
                self.backbone = self.backbone.merge_and_unload()

    def trained_parameters(self) -> Parameters:
        """Numbers of trainable parameters: N_u of the user model, N_l of the rest (adapter, backbone)."""
        return count_trained(self, self.user_model)

    def head_state(self) -> dict[str, Tensor]:
        """The tensors outside of the backbone and its adapter, contiguous, by name."""
        return {f"user_model.{k}": v.detach().cpu().contiguous() for k, v in self.user_model.state_dict().items()}

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Always False, so that TRL does not toggle it in passes without gradients, which never recompute."""
        return False

    def add_model_tags(self, tags: list[str]) -> None:
        """Do nothing: TRL calls this, but `prm.checkpoint.checkpoint` writes the model card."""


def _chunks(logits: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Split into chunks of rows, to limit the memory of float32 logits."""
    return zip(logits.split(LOGITS_AT_ONCE), targets.split(LOGITS_AT_ONCE), strict=True)


def build_policy(name: str, users: UserConfig, n_rows: int, seed: int, dtype: torch.dtype) -> Policy:
    """Build an untrained policy: a frozen language model, and user embeddings initialised with token embeddings.

    Raises `PrmError` if the language model cannot be loaded, or its token embeddings differ in width from its states.
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
