"""TRL's RLOO and GRPO trainers with users in the prompts and a reference without them."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor, nn
from trl import GRPOTrainer, RLOOTrainer
from trl.trainer.utils import add_fused_lm_head

from policy.config import OnlineConfig
from policy.prompts import UserPrompt
from prm.checkpoint.checkpoint import Checkpoint
from prm.models.policy_model import Policy
from prm.training.trainers.step_trainer import StateTrainer
from rerank.sampling.config import Sampling
from rerank.sampling.sampler import Sampler

Inputs = dict[str, Any]  # what TRL passes on: tensors, numbers and texts by name


class PlainReference(nn.Module):
    """TRL's `ref_model`: the policy that training started from. It reads plain prompts, without users."""

    def __init__(self, policy: Policy):
        super().__init__()
        self.policy = policy

    @torch.no_grad()
    def forward(self, input_ids: Tensor, **inputs: object) -> object:
        """The starting policy's output, see `Policy.forward`. Raises `ValueError` for a user id."""
        self.policy.refuse_users(input_ids.flatten().tolist())
        with self.policy.reference() as start:
            return start(input_ids=input_ids, **inputs)


def sampling_of(config: OnlineConfig, seed: int) -> Sampling:
    """Sampling settings without top-p and penalties, which would change the policy's distribution."""
    return Sampling(config.max_new_tokens, config.temperature, top_p=1.0, seed=seed)


class OnlineTrainer(StateTrainer):
    """Mixin for TRL's online trainers: adds users to the prompts, and a reference without them.

    Args:
        check: the validation prompts of each evaluation.
    """

    def __init__(
        self, checkpoint: Checkpoint[Policy], check: Sequence[UserPrompt], config: OnlineConfig, **kwargs: Any
    ):
        self.policy, self.check, self.online = checkpoint.model, check, config
        self.sampler = Sampler(checkpoint)
        self.people = checkpoint.users
        self._prompt_rows: list[Inputs] = []
        super().__init__(**kwargs)
        trl = cast(Any, self)
        trl.aux_loss_enabled = False  # router loss of mixtures of experts: not part of the objective
        trl.eos_token_ids = self.sampler.end_ids
        # TRL got beta 0, otherwise it would load a reference model of its own
        trl.beta, trl.ref_model = config.kl_coef, PlainReference(self.policy)
        with self.policy.reference() as start:
            if start is not self.policy:
                add_fused_lm_head(cast(Any, start), temperature=config.temperature)

    def evaluate(
        self, eval_dataset: object = None, ignore_keys: object = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Sample responses to the validation prompts, with a fixed seed; return reward, KL and length, also per row.

        Rewards are standardised; the KL is log pi(response) - log pi_ref(response), nats; lengths are in tokens,
        without the end token. `objective` is `kl_coef` times the KL, minus the mean reward.
        """
        self.policy.eval()
        responses = self.sampler.generate([q.ids for q in self.check], 1, sampling_of(self.online, self.online.seed))
        texts = self.sampler.decode(responses)
        columns = [{"prompts": q.prompt, "completions": text, **columns_of(q)} for q, text in zip(self.check, texts)]
        rewards = torch.tensor(cast(Any, self).reward_funcs[0](**{k: [row[k] for row in columns] for k in columns[0]}))
        logps = self._logps(cast(nn.Module, self.model), [q.ids for q in self.check], responses)
        divergence = logps - self._logps(cast(Any, self).ref_model, [q.plain_ids for q in self.check], responses)
        kl, length = divergence.sum(-1).mean().item(), torch.tensor([float(self._length(a)) for a in responses])
        values = {
            "objective": self.online.kl_coef * kl - rewards.mean().item(),
            "reward": rewards.mean().item(),
            "kl": kl,
            "length": length.mean().item(),
            "empty": sum(not text for text in texts) / len(texts),
        }
        for row in sorted({q.row for q in self.check}):
            of_row = torch.tensor([q.row == row for q in self.check])
            values |= {f"reward/{row}": rewards[of_row].mean().item(), f"length/{row}": length[of_row].mean().item()}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in values.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _length(self, response: list[int]) -> int:
        return len(response) - (response[-1] in self.sampler.end_ids)

    def _generate_and_score_completions(self, inputs: list[Inputs]) -> Inputs:
        self._prompt_rows = inputs
        return cast(Inputs, super()._generate_and_score_completions(inputs))  # type: ignore[misc]

    def _tokenize_prompts(self, prompts: list[object]) -> tuple[list[list[int]], None, Inputs]:
        return [row["ids"] for row in self._prompt_rows], None, {}

    def _sample_responses(self, prompts: list[list[int]]) -> list[list[int]]:
        """Sample one response to each prompt; consecutive equal prompts are prefilled once."""
        groups = [(ids, len(list(copies))) for ids, copies in groupby(prompts)]
        if len({n for _, n in groups}) > 1:
            groups = [(ids, 1) for ids in prompts]
        # the seed depends on the step only, so that a resumed run samples the same responses
        number = self.state.global_step * self.accelerator.num_processes + self.accelerator.process_index
        sampling = sampling_of(self.online, (self.online.seed * 1_000_003 + 1 + number) % 2**63)
        return self.sampler.generate([ids for ids, _ in groups], groups[0][1], sampling)

    def _get_per_token_logps_and_entropies(
        self,
        model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **_: object,
    ) -> tuple[Tensor, Tensor | None, None]:
        """TRL's method, with positions that skip padding; the reference reads the plain prompts."""
        size = batch_size or len(input_ids)
        if isinstance(model, PlainReference):
            mask = attention_mask[:, -logits_to_keep:].bool()
            responses = [ids[real].tolist() for ids, real in zip(input_ids[:, -logits_to_keep:], mask, strict=True)]
            logps = self._logps(model, [row["plain_ids"] for row in self._prompt_rows], responses, size)
            return nn.functional.pad(logps, (0, logits_to_keep - logps.shape[1])), None, None
        parts = [
            self._forward(model, *part, logits_to_keep)
            for part in zip(input_ids.split(size), attention_mask.split(size), strict=True)
        ]
        logps, entropies = (torch.cat([part[name] for part in parts]) for name in ("log_probs", "entropy"))
        return logps[:, -logits_to_keep:], entropies[:, -logits_to_keep:] if compute_entropy else None, None

    @torch.no_grad()
    def _logps(
        self, model: nn.Module, prompts: Sequence[list[int]], responses: Sequence[list[int]], size: int | None = None
    ) -> Tensor:
        """log pi of each response token, nats, [n, longest]; 0 on padding.

        Batches of `size`, so that two models have the same rounding.
        """
        size, width = size or self.args.per_device_eval_batch_size, max(map(len, responses))
        ids, mask = (side.to(self.policy.device) for side in _side_by_side(prompts, responses, width))
        parts = [self._forward(model, *part, width)["log_probs"] for part in zip(ids.split(size), mask.split(size))]
        return torch.cat(parts)[:, -width:].masked_fill(mask[:, -width:] == 0, 0.0)

    def _forward(self, model: nn.Module, ids: Tensor, mask: Tensor, width: int) -> Mapping[str, Tensor]:
        """Outputs of TRL's fused head for sequences [b, l] whose last `width` positions are the responses'.

        The prompt of several responses is read once if the backbone can, with the same outputs.
        """
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, :-width] = -100
        if self.policy.packs:
            options: dict[str, object] = {"together": True, "temperature": self.online.temperature}
        else:
            options = {"fused_lm_head": True, "position_ids": (mask.long().cumsum(-1) - 1).clamp_min(0)}
        return model(input_ids=ids, attention_mask=mask, labels=labels, **options)


class PersonalizedRLOOTrainer(OnlineTrainer, RLOOTrainer):
    """TRL's RLOO (Ahmadian et al. 2024).

    A response is trained on once, by the policy that sampled it, so its old log-probability equals the new one. TRL
    computes the old ones in other batches, which in bfloat16 would add noise to the ratio of the two.
    """

    _loss_inputs: Inputs | None = None

    def _generate_single_turn(self, prompt_ids: list[list[int]], *_: object) -> list[list[int]]:
        return self._sample_responses(prompt_ids)

    def _compute_loss(self, model: nn.Module, inputs: Inputs) -> Tensor:
        self._loss_inputs = inputs
        try:
            return cast(Tensor, super()._compute_loss(model, inputs))
        finally:
            self._loss_inputs = None

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None, None]:
        outputs = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self._loss_inputs is not None:
            self._loss_inputs["old_logps"] = (outputs[0].detach() * self._loss_inputs["completion_mask"]).sum(1)
        return outputs


class PersonalizedGRPOTrainer(OnlineTrainer, GRPOTrainer):
    """TRL's GRPO (Shao et al. 2024), with TRL's usual loss.

    The KL is part of the loss: the reference reads the loss's batches, as the policy does, not the sampled ones.
    """

    def _generate_single_turn(self, prompt_ids: list[list[int]], *_: object) -> tuple[list[list[int]], None]:
        return self._sample_responses(prompt_ids), None

    def _generate_and_score_completions(self, inputs: list[Inputs]) -> Inputs:
        beta, self.beta = self.beta, 0.0  # skip the reference's log-probabilities here
        try:
            outputs = super()._generate_and_score_completions(inputs)
        finally:
            self.beta = beta
        plain, mask = _side_by_side([row["plain_ids"] for row in inputs], [[]] * len(inputs), 0)
        return outputs | {"plain_ids": plain.to(self.policy.device), "plain_mask": mask.to(self.policy.device)}

    def _compute_loss(self, model: nn.Module, inputs: Inputs) -> Tensor:
        if self.beta:
            completions = inputs["completion_ids"], inputs["completion_mask"]
            ids, mask = (torch.cat(pair, 1) for pair in zip((inputs["plain_ids"], inputs["plain_mask"]), completions))
            width = completions[0].shape[1]
            assert self.ref_model is not None
            reference = self._forward(self.ref_model, ids, mask, width)
            inputs["ref_per_token_logps"] = reference["log_probs"][:, -width:]
        return cast(Tensor, super()._compute_loss(model, inputs))


def _side_by_side(prompts: Sequence[list[int]], responses: Sequence[list[int]], width: int) -> tuple[Tensor, Tensor]:
    """(ids, mask) [n, l]: prompts padded on the left, responses on the right to `width`."""
    longest = max(map(len, prompts))
    ids, mask = torch.zeros(2, len(prompts), longest + width, dtype=torch.long)
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        span = slice(longest - len(prompt), longest + len(response))
        ids[i, span], mask[i, span] = torch.tensor([*prompt, *response]), 1
    return ids, mask


def columns_of(prompt: UserPrompt) -> dict[str, str | None]:
    """The reward's inputs besides prompt and response."""
    return {"user_id": prompt.user, "user_text": prompt.user_text}
