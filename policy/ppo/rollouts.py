"""Answers drawn from a policy, and all that PPO needs to know of their tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from policy.config import PpoConfig
from policy.ppo.roles import Roles
from policy.prompts import prompts_that_fit, rounds
from policy.rewards.personal import Reward, ask
from policy.rewards.scales import Scales
from prm.data.comparison import Comparison, Prompt, as_messages
from prm.data.encoding import Encoded
from rerank.sampling.config import Sampling
from rerank.sampling.sampler import Sampler


class SampledPrompt(NamedTuple):
    """Who asks what, and what they say of themselves."""

    prompt: Prompt
    user: str | None
    text: str


class PromptSampler:
    """Prompts and people of a log, in an endless order by the seed.

    Each round is a new order of all people, the unknown user one of them, so that nobody has had more than one turn
    more than anybody else; prompts go round alike, apart from that.
    """

    def __init__(self, prompts: Sequence[Prompt], people: dict[str | None, str], seed: int):
        self.prompts, self.people, self.seed = prompts, people, seed

    def take(self, start: int, n: int) -> list[SampledPrompt]:
        """The turns from number `start` on."""
        users = rounds(list(self.people.items()), f"{self.seed} people", start, n)
        prompts = rounds(self.prompts, f"{self.seed} prompts", start, n)
        return [SampledPrompt(prompt, user, text) for prompt, (user, text) in zip(prompts, users, strict=True)]


def prompt_sampler_of(
    comparisons: Sequence[Comparison], sampler: Sampler, config: PpoConfig
) -> tuple[PromptSampler, int]:
    """(turns of the log's prompts and people, number of prompts left out: they leave no room for an answer).

    People's texts are those of their last comparison. Raises `PrmError` where no prompt fits.
    """
    people: dict[str | None, str] = {None: "", **{c.user_id: c.user_text for c in comparisons}}
    prompts = list(dict.fromkeys(c.prompt for c in comparisons))
    fit = prompts_that_fit(sampler.encoder, prompts, people.values(), config.ppo.max_new_tokens)
    return PromptSampler(fit, people, config.seed), len(prompts) - len(fit)


@dataclass
class Rollouts:
    """Answers of a policy, n of them. Columns [n, l] are of the answers' tokens, 0 where `mask` is False.

    Args:
        answers: their texts; empty ones are among them.
        sequences: prompt and answer with the user in front, the answer with its end.
        ended: whether each ended by itself, bool [n].
        scores: what the reward said, float64 [n], nan where it could not read; `rewards` are on the person's scale,
            less the penalty of an answer without an end.
        logps, reference: log pi and log pi_ref when the tokens were drawn, nats.
        values: reward to come before each.
    """

    turns: list[SampledPrompt]
    answers: list[str]
    sequences: list[Encoded]
    ended: Tensor
    scores: Tensor
    rewards: Tensor
    mask: Tensor
    logps: Tensor
    reference: Tensor
    values: Tensor


def minibatches(roles: Roles, sequences: Sequence[Encoded], config: PpoConfig, seed: int) -> list[list[Tensor]]:
    """The answers of each minibatch of a step, rows of a micro-batch each; answers to a question stay together.

    What is read together when answers are drawn is read together in every pass over them: in bfloat16 a token's
    log-probability changes by a tenth of a nat with what else is read, and ratios of new to old would be noise.
    """
    several, optim = config.ppo.num_generations, config.optim
    questions = torch.randperm(len(sequences) // several, generator=torch.Generator().manual_seed(seed))
    rows = (several * questions[:, None] + torch.arange(several)).flatten()
    return [
        list(roles.in_order(sequences, batch.tolist()).split(optim.micro_batch_size))
        for batch in rows.split(optim.batch_size)
    ]


class RolloutGenerator:
    """Draws answers and reads them in all roles.

    Args:
        sampler: of the policy.
        roles: the same policy's.
    """

    def __init__(self, sampler: Sampler, roles: Roles, reward: Reward, config: PpoConfig):
        self.sampler, self.roles, self.reward, self.config = sampler, roles, reward, config

    def reference_answers(self, prompts: Sequence[Prompt], seed: int) -> list[str]:
        """One answer of the reference to each prompt."""
        with self.roles.playing("reference"):
            drawn = self.sampler.draw([self._plain(prompt) for prompt in prompts], 1, self._sampling(seed))
        return self.sampler.texts(drawn)

    def draw(self, turns: Sequence[SampledPrompt], seed: int) -> tuple[list[list[int]], list[list[int]]]:
        """(what was asked, what the policy answers) as ids; an answer holds its end token, if it came to that."""
        asked = [self.sampler.ask(*turn) for turn in turns]
        with self.roles.playing("policy"):
            return asked, self.sampler.draw(asked, 1, self._sampling(seed))

    def rollouts(self, turns: Sequence[SampledPrompt], seed: int, scales: Scales, order: int = 0) -> Rollouts:
        """Answers to these turns, drawn with this seed; read as `minibatches` with the seed `order` are."""
        asked, drawn = self.draw(turns, seed)
        answers = self.sampler.texts(drawn)
        prompts, users, texts = zip(*turns, strict=True)
        scores = ask(self.reward, prompts, answers, users, texts)
        ended = [ids[-1] in self.sampler.end_ids for ids in drawn]
        penalty = self.config.ppo.missing_eos_penalty
        rewards = [scales[u](r) - penalty * (not e) for u, r, e in zip(users, scores, ended, strict=True)]
        sequences, plain = self.joined(asked, drawn), self.joined([self._plain(prompt) for prompt in prompts], drawn)
        roles = self.roles
        together = [rows for batch in minibatches(roles, sequences, self.config, order) for rows in batch]
        device = self.sampler.device
        lengths = torch.tensor([len(ids) for ids in drawn], device=device)
        return Rollouts(
            list(turns),
            answers,
            sequences,
            torch.tensor(ended),
            torch.tensor(scores, dtype=torch.float64),
            torch.tensor(rewards, device=device),
            torch.arange(int(lengths.max()), device=device) < lengths[:, None],
            roles.read(sequences, roles.logps, together),
            roles.read(plain, roles.reference_logps, together),
            roles.read(sequences, roles.values, together),
        )

    def joined(self, asked: list[list[int]], drawn: list[list[int]]) -> list[Encoded]:
        """Questions and their answers as sequences; an answer's end is part of it."""
        pairs = zip(asked, drawn, strict=True)
        return [Encoded([*ids, *answer], (len(ids), len(ids) + len(answer))) for ids, answer in pairs]

    def _plain(self, prompt: Prompt) -> list[int]:
        """The prompt as the reference reads it: without the user and what they say of themselves."""
        return self.sampler.encoder.template_ids(as_messages(prompt))

    def _sampling(self, seed: int) -> Sampling:
        """The policy's own distribution: what is learnt from must be what was drawn from."""
        return Sampling(self.config.ppo.max_new_tokens, temperature=1.0, top_p=1.0, seed=seed)
