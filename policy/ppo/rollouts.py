"""Rollouts: responses sampled from a policy, with their rewards, log-probabilities and values."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from policy.config import PpoConfig
from policy.ppo.roles import Roles
from policy.prompts import prompts_that_fit, rounds
from policy.rewards.personal import RewardFunc, compute_rewards
from policy.rewards.scales import Scales
from prm.data.comparison import Comparison, Prompt, as_messages
from prm.data.encoding import Encoded
from rerank.sampling.config import Sampling
from rerank.sampling.sampler import Sampler


class SampledPrompt(NamedTuple):
    """A prompt, its user (`None` is the generic user) and the user's text."""

    prompt: Prompt
    user: str | None
    text: str


class PromptSampler:
    """Draws prompts and users of a log, in an endless order given by the seed.

    Each round is a new order of all users, including the generic one, so that their numbers of turns differ by at most
    one. Prompts have independent rounds of the same kind.

    Args:
        people: the text of each user; the key `None` is the generic user.
    """

    def __init__(self, prompts: Sequence[Prompt], people: dict[str | None, str], seed: int):
        self.prompts, self.people, self.seed = prompts, people, seed

    def take(self, start: int, n: int) -> list[SampledPrompt]:
        """Return n turns, starting with number `start`."""
        users = rounds(list(self.people.items()), f"{self.seed} people", start, n)
        prompts = rounds(self.prompts, f"{self.seed} prompts", start, n)
        return [SampledPrompt(prompt, user, text) for prompt, (user, text) in zip(prompts, users, strict=True)]


def prompt_sampler_of(
    comparisons: Sequence[Comparison], sampler: Sampler, config: PpoConfig
) -> tuple[PromptSampler, int]:
    """(sampler of the log's prompts and users, number of prompts left out because they leave no room for a response).

    A user's text is that of their last comparison. Raises `PrmError` if no prompt fits.
    """
    user_texts: dict[str | None, str] = {None: "", **{c.user_id: c.user_text for c in comparisons}}
    prompts = list(dict.fromkeys(c.prompt for c in comparisons))
    fitting = prompts_that_fit(sampler.encoder, prompts, user_texts.values(), config.ppo.max_new_tokens)
    return PromptSampler(fitting, user_texts, config.seed), len(prompts) - len(fitting)


@dataclass
class Rollouts:
    """n responses of a policy. Columns [n, l] are per response token, 0 where `mask` is False.

    Args:
        responses: as text; may be empty.
        sequences: user, prompt and response with its end token.
        ended: whether the response ended by itself, bool [n].
        scores: the reward's output, float64 [n], nan if it could not score the response.
        rewards: scores on the user's scale, minus the penalty for a missing end, [n].
        logps, reference: log pi and log pi_ref when the tokens were sampled, nats.
        values: predicted future reward before each token.
    """

    turns: list[SampledPrompt]
    responses: list[str]
    sequences: list[Encoded]
    ended: Tensor
    scores: Tensor
    rewards: Tensor
    mask: Tensor
    logps: Tensor
    reference: Tensor
    values: Tensor


def minibatches(roles: Roles, sequences: Sequence[Encoded], config: PpoConfig, seed: int) -> list[list[Tensor]]:
    """Split a step's rows into minibatches of micro-batches; responses to a prompt stay together.

    The micro-batches are the same after sampling and in every pass: in bfloat16 a token's log-probability changes by
    a tenth of a nat with the composition of its batch, which would add noise to the ratios of new to old.
    """
    num_generations, optim = config.ppo.num_generations, config.optim
    prompts = torch.randperm(len(sequences) // num_generations, generator=torch.Generator().manual_seed(seed))
    rows = (num_generations * prompts[:, None] + torch.arange(num_generations)).flatten()
    return [
        list(roles.in_order(sequences, batch.tolist()).split(optim.micro_batch_size))
        for batch in rows.split(optim.batch_size)
    ]


class RolloutGenerator:
    """Samples responses and computes their rewards, log-probabilities and values.

    Args:
        sampler: of the policy.
        roles: of the same policy.
    """

    def __init__(self, sampler: Sampler, roles: Roles, reward: RewardFunc, config: PpoConfig):
        self.sampler, self.roles, self.reward, self.config = sampler, roles, reward, config

    def reference_answers(self, prompts: Sequence[Prompt], seed: int) -> list[str]:
        """Sample one response of the reference to each prompt."""
        with self.roles.switched_to("reference"):
            response_ids = self.sampler.generate([self._plain(prompt) for prompt in prompts], 1, self._sampling(seed))
        return self.sampler.decode(response_ids)

    def draw(self, turns: Sequence[SampledPrompt], seed: int) -> tuple[list[list[int]], list[list[int]]]:
        """Sample (prompt ids, response ids); a response includes its end token, if any."""
        prompt_ids = [self.sampler.encode_prompt(*turn) for turn in turns]
        with self.roles.switched_to("policy"):
            return prompt_ids, self.sampler.generate(prompt_ids, 1, self._sampling(seed))

    def rollouts(self, turns: Sequence[SampledPrompt], seed: int, scales: Scales, order: int = 0) -> Rollouts:
        """Sample responses to these turns with this seed; evaluate them in the `minibatches` of the seed `order`."""
        prompt_ids, response_ids = self.draw(turns, seed)
        responses = self.sampler.decode(response_ids)
        prompts, users, texts = zip(*turns, strict=True)
        scores = compute_rewards(self.reward, prompts, responses, users, texts)
        ended = [ids[-1] in self.sampler.end_ids for ids in response_ids]
        penalty = self.config.ppo.missing_eos_penalty
        rewards = [scales[u](r) - penalty * (not e) for u, r, e in zip(users, scores, ended, strict=True)]
        sequences, plain = (
            self.joined(prompt_ids, response_ids),
            self.joined([self._plain(prompt) for prompt in prompts], response_ids),
        )
        roles = self.roles
        batches = [rows for batch in minibatches(roles, sequences, self.config, order) for rows in batch]
        device = self.sampler.device
        lengths = torch.tensor([len(ids) for ids in response_ids], device=device)
        return Rollouts(
            list(turns),
            responses,
            sequences,
            torch.tensor(ended),
            torch.tensor(scores, dtype=torch.float64),
            torch.tensor(rewards, device=device),
            torch.arange(int(lengths.max()), device=device) < lengths[:, None],
            roles.read(sequences, roles.logps, batches),
            roles.read(plain, roles.reference_logps, batches),
            roles.read(sequences, roles.values, batches),
        )

    def joined(self, prompt_ids: list[list[int]], response_ids: list[list[int]]) -> list[Encoded]:
        """Join prompts and responses to sequences; end tokens are part of the responses."""
        pairs = zip(prompt_ids, response_ids, strict=True)
        return [Encoded([*ids, *response], (len(ids), len(ids) + len(response))) for ids, response in pairs]

    def _plain(self, prompt: Prompt) -> list[int]:
        """Encode the prompt for the reference: without the user and the user's text."""
        return self.sampler.encoder.template_ids(as_messages(prompt))

    def _sampling(self, seed: int) -> Sampling:
        """Sample from the unmodified policy distribution, because the losses assume it."""
        return Sampling(self.config.ppo.max_new_tokens, temperature=1.0, top_p=1.0, seed=seed)
