"""What the judge of a comparison reads, and how far it agrees with the rewards that the arms were trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from policy.compare.config import CompareConfig
from policy.compare.judging import Gold, gold_by_model, gold_by_rule
from policy.compare.training import Job
from prm.checkpoint.config_file import read_config
from prm.data.comparison import Comparison, prompt_key
from prm.errors import listed
from prm.io.formatting import estimated
from prm.io.rows import Json
from prm.metrics import Array, Estimate, over_both
from prm.report.section import Section
from prm.scoring.scorer import Scorer
from prm.scoring.user_warnings import backbones_below, shared_backbone


@dataclass(frozen=True)
class Alike:
    """A share of pairs of responses that judge and reward rank alike: 1 all, 0.5 by chance; a tie of one is half.

    Args:
        share: mean over users of each one's mean; `None` without pairs.
        count: number of pairs. Left out are empty responses and those that are too long for one of the two.
    """

    share: Estimate | None
    count: int


@dataclass(frozen=True)
class Agreement:
    """A reward beside the judge.

    Args:
        reward: its run folder.
        reads: its features, in words.
        shared: a language model or encoder that it and the judge started from; "" if there is none.
        comparisons: over the held-out comparisons of the users who are asked.
        pairs: over all pairs of the arms' responses to one case.
    """

    reward: str
    reads: str
    shared: str
    comparisons: Alike
    pairs: Alike


@dataclass(frozen=True)
class JudgeReport:
    """The judge: what it `reads`, in words, and its agreement with each reward of the comparison."""

    judge: str
    reads: str
    rewards: tuple[Agreement, ...]

    def to_dict(self) -> dict[str, Json]:
        """JSON-ready."""
        return asdict(self)

    def sentences(self) -> list[str]:
        """A warning for each model that the judge and rewards started from."""
        shared = {one.shared: [r.reward for r in self.rewards if r.shared == one.shared] for one in self.rewards}
        return [
            f"The judge is not independent: it and the reward {listed(rewards)} read {name}, and it overlooks what the "
            "reward overlooks. Train it on another backbone, such as a sentence encoder."
            for name, rewards in shared.items()
            if name
        ]

    def section(self) -> Section:
        """The table of the report."""
        header = ("reward", "reads", "held-out comparisons alike %", "of", "response pairs alike %", "of")
        rows = tuple(
            (one.reward, one.reads, *(cell for part in (one.comparisons, one.pairs) for cell in _cells(part)))
            for one in self.rewards
        )
        return Section("The judge", header, rows, (_HOW.format(judge=self.judge, reads=self.reads),))


def judge_report(
    config: CompareConfig,
    jobs: Sequence[Job],
    held_out: Sequence[Comparison],
    cases: Sequence[Comparison],
    responses: Mapping[str, Sequence[str]],
) -> JudgeReport:
    """Let the judge and each reward of the arms score the same responses; a text is read once by each.

    Args:
        held_out: the comparisons that the arms' runs held out.
        cases: what was asked; the comparisons of its users count.
        responses: of each arm, to the cases.
    """
    judge = config.resolve(config.judge.gold)
    users = {c.user_id for c in cases}
    asked = [c for c in held_out if c.user_id in users]
    gold = _gold_of(judge) if judge else gold_by_rule(config.judge.rule_field)
    rewards = []
    for run in rewards_of(config, jobs):
        score = _gold_of(run)
        shared = shared_backbone(run, judge) if judge else ""
        on_comparisons = alike_on_comparisons(gold, score, asked)
        on_pairs = alike_on_responses(gold, score, cases, responses)
        rewards.append(Agreement(run, what_it_reads(run), shared, on_comparisons, on_pairs))
    reads = what_it_reads(judge) if judge else f"the rule in {config.judge.rule_field!r}"
    return JudgeReport(judge or f"the rule in {config.judge.rule_field}", reads, tuple(rewards))


def rewards_of(config: CompareConfig, jobs: Sequence[Job]) -> list[str]:
    """The run folders of the rewards that arms pick by or that their runs were trained on, each once."""
    picked_by = [config.resolve(arm.reward) for arm in config.arms.values() if arm.reward]
    trained_on = [job.config.to_dict().get("reward") for job in jobs]
    return list(dict.fromkeys([*picked_by, *(run for run in trained_on if isinstance(run, str) and run)]))


def what_it_reads(run: str) -> str:
    """The features of a run's rewards, in words: layers, pooling, the model, and what that model was trained from."""
    settings = read_config(Path(run)).settings
    name, start = settings.backbone.name, list(dict.fromkeys(backbones_below(run).values()))
    made_from = [other for other in start if other != name and not Path(other, "run.json").is_file()]
    model = name + (f" (from {listed(made_from)})" if made_from else "")
    if settings.reward is None:
        return f"log-probabilities of {model}"
    if settings.reward.form == "soft_prompt":
        return f"the user's tokens with the text, by {model}"
    layers = settings.backbone.layers
    spec = settings.reward.features or [f"{layers or 'all'} {settings.reward.pooling}"]
    return f"layers {', '.join(spec)} of {model}"


def alike_on_comparisons(judge: Gold, reward: Gold, comparisons: Sequence[Comparison]) -> Alike:
    """Chosen against rejected response of each comparison, its label aside."""
    sides = [c.chosen for c in comparisons], [c.rejected for c in comparisons]
    margins = [gold([*comparisons, *comparisons], [*sides[0], *sides[1]]) for gold in (judge, reward)]
    values = _alike(*(m[: len(comparisons)] - m[len(comparisons) :] for m in margins))
    return _mean(values, comparisons, int(np.isfinite(values).sum()))


def alike_on_responses(
    judge: Gold, reward: Gold, cases: Sequence[Comparison], responses: Mapping[str, Sequence[str]]
) -> Alike:
    """Each case's distinct responses, two by two."""
    distinct = [list(dict.fromkeys(texts[i] for texts in responses.values())) for i in range(len(cases))]
    owners = [c for c, texts in zip(cases, distinct, strict=True) for _ in texts]
    flat = [text for texts in distinct for text in texts]
    scores = [gold(owners, flat) for gold in (judge, reward)]
    ends = np.cumsum([len(texts) for texts in distinct])
    values, count = np.full(len(cases), np.nan), 0
    for i, (stop, texts) in enumerate(zip(ends, distinct, strict=True)):
        pairs = np.array([*combinations(range(stop - len(texts), stop), 2)], np.int64).reshape(-1, 2)
        alike = _alike(*(of[pairs[:, 0]] - of[pairs[:, 1]] for of in scores))
        alike = alike[np.isfinite(alike)]
        if len(alike):
            values[i], count = alike.mean(), count + len(alike)
    return _mean(values, cases, count)


def _alike(first: Array, second: Array) -> Array:
    """1 where two margins have one sign, 0 where they have not, 0.5 where one is 0, NaN where one is unknown."""
    return 0.5 * (1.0 + np.sign(first) * np.sign(second))


def _mean(values: Array, cases: Sequence[Comparison], count: int) -> Alike:
    known = np.isfinite(values)
    if not known.any():
        return Alike(None, 0)
    users, prompts = np.array([c.user_id for c in cases]), np.array([prompt_key(c.prompt) for c in cases])
    return Alike(over_both(values[known], users[known], prompts[known]), count)


def _gold_of(run: str) -> Gold:
    return gold_by_model(Scorer.from_pretrained(run, cache=True), skip_unreadable=True)


def _cells(part: Alike) -> tuple[str, str]:
    if part.share is None:
        return "", "0"
    return estimated(part.share, 1, scale=100.0), f"{part.count:,}"


_HOW = (
    "The judge {judge} reads {reads}. Alike: of two responses, judge and reward put the same one first for the same "
    "user; 50 by chance. Mean over users of each one's mean, with 95% intervals over users (and prompts where each "
    "user has one value for a prompt). The comparisons are those that the rewards held out; a judge that learnt from "
    "them has seen which response was chosen."
)
