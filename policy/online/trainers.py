"""TRL's RLOO and GRPO trainers with people in the prompts and a reference that never sees them."""

from collections.abc import Sequence
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
from prm.training.trainer_base import StateTrainer
from rerank.sampling.config import Sampling
from rerank.sampling.sampler import Sampler

_REFERENCE = cast(Any, object())  # stands where TRL keeps a reference model of its own


def sampling_of(config: OnlineConfig, seed: int) -> Sampling:
    """As the policy has it: nothing is cut off or made less likely, or its probabilities would be others."""
    return Sampling(config.max_new_tokens, config.temperature, top_p=1.0, seed=seed)


class OnlineTrainer(StateTrainer):
    """To be put before one of TRL's online trainers: users in the prompts, and a reference that never sees them.

    Args:
        check: what is asked at each look at the validation part.
    """

    def __init__(
        self, checkpoint: Checkpoint[Policy], check: Sequence[UserPrompt], config: OnlineConfig, **kwargs: Any
    ):
        self.policy, self.check, self.online = checkpoint.model, check, config
        self.sampler = Sampler(checkpoint)
        self.people = checkpoint.users
        self._asked: list[dict[str, Any]] = []
        super().__init__(model=self.policy, processing_class=checkpoint.tokenizer, **kwargs)
        trl = cast(Any, self)
        trl.aux_loss_enabled = False  # for mixtures of experts: no part of the objective
        trl.eos_token_ids = self.sampler.end_ids  # what ends an answer here
        if config.kl_coef:  # TRL was told 0, or it would load a reference of its own
            trl.beta, trl.ref_model = config.kl_coef, _REFERENCE
            for start in self.policy._start:
                add_fused_lm_head(cast(Any, start), temperature=config.temperature)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Answers to the validation questions, drawn alike each time: reward, divergence and length, in all and by row.

        Rewards are standardised; the divergence is log pi(answer) - log pi_ref(answer), nats; lengths are in tokens,
        the end not counted. `objective` is minus the mean reward, plus `kl_coef` times the divergence.
        """
        self.policy.eval()
        answers = self.sampler.draw([q.ids for q in self.check], 1, sampling_of(self.online, self.online.seed))
        texts = self.sampler.texts(answers)
        columns = [{"prompts": q.prompt, "completions": text, **columns_of(q)} for q, text in zip(self.check, texts)]
        rewards = torch.tensor(cast(Any, self).reward_funcs[0](**{k: [row[k] for row in columns] for k in columns[0]}))
        own = self._logps(self.model, [q.ids for q in self.check], answers)
        divergence = own - self._reference_logps([q.plain_ids for q in self.check], answers)
        kl, length = divergence.sum(-1).mean().item(), torch.tensor([float(self._length(a)) for a in answers])
        found = {
            "objective": self.online.kl_coef * kl - rewards.mean().item(),
            "reward": rewards.mean().item(),
            "kl": kl,
            "length": length.mean().item(),
            "empty": sum(not text for text in texts) / len(texts),
        }
        for row in sorted({q.row for q in self.check}):
            own_rows = torch.tensor([q.row == row for q in self.check])
            found |= {f"reward/{row}": rewards[own_rows].mean().item(), f"length/{row}": length[own_rows].mean().item()}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _length(self, answer: list[int]) -> int:
        return len(answer) - (answer[-1] in self.sampler.end_ids)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._asked = inputs
        return cast(dict[str, Any], super()._generate_and_score_completions(inputs))  # type: ignore[misc]

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [row["ids"] for row in self._asked], None, {}

    def _answers(self, prompts: list[list[int]]) -> list[list[int]]:
        """One answer to each prompt; a prompt that stands several times in a row is read once."""
        groups = [(ids, len(list(same))) for ids, same in groupby(prompts)]
        if len({n for _, n in groups}) > 1:
            groups = [(ids, 1) for ids in prompts]
        # a seed of the step's own, not of what was drawn before: a run that is taken up draws what it would have drawn
        place = self.state.global_step * self.accelerator.num_processes + self.accelerator.process_index
        sampling = sampling_of(self.online, (self.online.seed * 1_000_003 + 1 + place) % 2**63)
        return self.sampler.draw([ids for ids, _ in groups], groups[0][1], sampling)

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **_: Any,
    ) -> tuple[Tensor, Tensor | None, None]:
        """TRL's, with positions that do not count padding; in place of the reference, that of the plain prompts."""
        size = batch_size or len(input_ids)
        if model is _REFERENCE:
            mask = attention_mask[:, -logits_to_keep:].bool()
            answers = [ids[own].tolist() for ids, own in zip(input_ids[:, -logits_to_keep:], mask, strict=True)]
            logps = self._reference_logps([row["plain_ids"] for row in self._asked], answers, size)
            return nn.functional.pad(logps, (0, logits_to_keep - logps.shape[1])), None, None
        parts = [
            self._read(model, *part, logits_to_keep)
            for part in zip(input_ids.split(size), attention_mask.split(size), strict=True)
        ]
        logps, entropies = (torch.cat([part[name] for part in parts]) for name in ("log_probs", "entropy"))
        return logps[:, -logits_to_keep:], entropies[:, -logits_to_keep:] if compute_entropy else None, None

    def _reference_logps(
        self, plain: Sequence[list[int]], answers: Sequence[list[int]], size: int | None = None
    ) -> Tensor:
        """log pi_ref of each token of the answers to the plain prompts, nats, [n, longest]; 0 behind an answer."""
        with self.policy.reference() as start:
            return self._logps(start, plain, answers, size)

    @torch.no_grad()
    def _logps(
        self, model: Any, prompts: Sequence[list[int]], answers: Sequence[list[int]], size: int | None = None
    ) -> Tensor:
        """log pi of the same; `size` of them are read together, so that two models that read the same round alike."""
        size, width = size or self.args.per_device_eval_batch_size, max(map(len, answers))
        ids, mask = (side.to(self.policy.device) for side in _side_by_side(prompts, answers, width))
        parts = [self._read(model, *part, width)["log_probs"] for part in zip(ids.split(size), mask.split(size))]
        return torch.cat(parts)[:, -width:].masked_fill(mask[:, -width:] == 0, 0.0)

    def _read(self, model: Any, ids: Tensor, mask: Tensor, answer: int) -> Any:
        """What TRL's fused head makes of sequences [b, l] whose last `answer` places are the answers'.

        On a CPU the model reads the prompt of several answers once, and tells the same.
        """
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, :-answer] = -100
        if self.policy.packs:
            how: dict[str, Any] = {"together": True, "temperature": self.online.temperature}
        else:
            how = {"fused_lm_head": True, "position_ids": (mask.long().cumsum(-1) - 1).clamp_min(0)}
        return model(input_ids=ids, attention_mask=mask, labels=labels, **how)


class PersonalizedRLOOTrainer(OnlineTrainer, RLOOTrainer):
    """TRL's RLOO (Ahmadian et al. 2024).

    An answer is learnt from once, by the policy that drew it: its old log-probability is the new one, to the bit. TRL
    reads the old ones in other batches, and in bfloat16 the ratio of the two would be noise.
    """

    _learning: dict[str, Any] | None = None

    def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any) -> list[list[int]]:
        return self._answers(prompt_ids)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        self._learning = inputs
        try:
            return cast(Tensor, super()._compute_loss(model, inputs))
        finally:
            self._learning = None

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None, None]:
        found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self._learning is not None:
            self._learning["old_logps"] = (found[0].detach() * self._learning["completion_mask"]).sum(1)
        return found


class PersonalizedGRPOTrainer(OnlineTrainer, GRPOTrainer):
    """TRL's GRPO (Shao et al. 2024), with TRL's usual loss.

    The divergence is part of the loss: the reference reads each batch of it as the policy does, not what was drawn.
    """

    def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any) -> tuple[list[list[int]], None]:
        return self._answers(prompt_ids), None

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        beta, self.beta = self.beta, 0.0  # no reading of the reference yet
        try:
            found = super()._generate_and_score_completions(inputs)
        finally:
            self.beta = beta
        plain, mask = _side_by_side([row["plain_ids"] for row in inputs], [[]] * len(inputs), 0)
        return found | {"plain_ids": plain.to(self.policy.device), "plain_mask": mask.to(self.policy.device)}

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        if self.beta:
            completions = inputs["completion_ids"], inputs["completion_mask"]
            ids, mask = (torch.cat(pair, 1) for pair in zip((inputs["plain_ids"], inputs["plain_mask"]), completions))
            width = completions[0].shape[1]
            with self.policy.reference() as start, torch.no_grad():
                inputs["ref_per_token_logps"] = self._read(start, ids, mask, width)["log_probs"][:, -width:]
        return cast(Tensor, super()._compute_loss(model, inputs))


def _side_by_side(prompts: Sequence[list[int]], answers: Sequence[list[int]], width: int) -> tuple[Tensor, Tensor]:
    """(ids, mask) [n, l]: prompts padded on the left, answers on the right to `width`."""
    longest = max(map(len, prompts))
    ids, mask = torch.zeros(2, len(prompts), longest + width, dtype=torch.long)
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        place = slice(longest - len(prompt), longest + len(answer))
        ids[i, place], mask[i, place] = torch.tensor([*prompt, *answer]), 1
    return ids, mask


def columns_of(question: UserPrompt) -> dict[str, Any]:
    """What the reward is told of a question beside the prompt."""
    return {"user_id": question.user, "user_text": question.user_text}
