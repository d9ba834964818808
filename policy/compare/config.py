"""Every setting of a comparison of policies, with its default. A YAML holds what differs."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from prm.checks import Count, Natural, Seed, Settings, Text, require
from prm.config import DataConfig, RunConfig
from prm.errors import listed

Command = Literal["train", "sft", "dpo", "ppo", "online"]

_PLACE = re.compile(r"\{([^{}/]+)\}")


@dataclass
class RunSpec(Settings, key="runs.NAME"):
    """A run that the comparison trains. Its `data` and `seed` are the comparison's, but where `settings` say otherwise.

    Args:
        command: `train` a reward model (`prm train`), or what `policy` trains by this command.
        configs: YAML files, later ones over earlier ones.
        settings: what differs from them. `{NAME}` in a text stands for the folder of the run NAME.
    """

    command: Command
    configs: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class ArmSpec(Settings, key="arms.NAME"):
    """Somebody who answers.

    Args:
        run: who writes: a policy's run folder (`{NAME}` for a run of the comparison), or a language model by name.
            It is told what people say of themselves where the log that it learnt from did.
        stranger: everybody asks as somebody unknown, who says nothing of themselves.
        chosen: take the answers that people chose in the log instead.
        told: an instruction for each group, which then stands in front of the prompt.
        best_of: pick the best of so many answers by `reward`, for each number as an arm `NAME N`.
        reward: run folder of the reward model that picks; `{NAME}/uniform` knows nobody.
    """

    run: str = ""
    stranger: bool = False
    chosen: bool = False
    told: dict[str, str] = field(default_factory=dict)
    best_of: list[Count] = field(default_factory=list)
    reward: str = ""

    def check(self, name: str) -> None:
        """Raise `PrmError` naming the key whose value makes no sense."""
        key = f"arms.{name}"
        require(self.chosen != bool(self.run), key, "needs either 'run', who writes, or 'chosen: true'")
        require(not (self.chosen and (self.told or self.best_of)), key, "is 'chosen', and answers nothing by itself")
        mixed = self.stranger and (self.chosen or self.told or self.best_of)
        require(not mixed, key, "is 'stranger', of whom 'chosen', 'told' and 'best_of' would tell something")
        require(bool(self.best_of) == bool(self.reward), key, "needs both or none of 'best_of' and 'reward'")

    def names(self, name: str) -> list[str]:
        """The arms that it stands for."""
        return [f"{name} {n}" for n in self.best_of] or [name]


@dataclass
class JudgeSpec(Settings, key="judge"):
    """What is true: something that no arm was trained on.

    Args:
        rule_field: metadata field whose value is the person's rule: `longer`, `shorter` or `contains:PHRASE`.
        gold: run folder of a reward model that learnt from other data, `{NAME}` for a run of the comparison.
    """

    rule_field: str = ""
    gold: str = ""


@dataclass
class CompareConfig(RunConfig):
    """Policies side by side, on the same held-out prompts for the same people.

    Args:
        output_dir: folder of the page, the figures, the answers and the runs.
        seed: of every run and every draw.
        overwrite: train anew what is there with other settings.
        base: the arm that all others are compared with; their divergence is from it.
        people: most people who ask, those with most to learn from; 0 takes all.
        prompts: most held-out prompts that each of them asks.
        max_new_tokens: longest answer, in tokens.
        batch: answers that are drawn together.
        group_by: metadata field that tells groups of people apart; if left out, halves by how often somebody sides
            with most others.
        data: what everything learns from; the held-out part asks the questions.
        runs: what is trained, in this order, into OUTPUT/runs/NAME.
        arms: who answers.
    """

    output_dir: Text = "runs/compare"
    seed: Seed = 0
    overwrite: bool = False
    base: str = "SFT"
    people: Natural = 10
    prompts: Count = 40
    max_new_tokens: Count = 48
    batch: Count = 40
    group_by: str = ""
    judge: JudgeSpec = field(default_factory=JudgeSpec)
    data: DataConfig = field(default_factory=DataConfig)
    runs: dict[str, RunSpec] = field(default_factory=dict)
    arms: dict[str, ArmSpec] = field(default_factory=dict)

    @property
    def fast_path(self) -> bool:
        """True: of the split, the held-out part alone is of interest."""
        return True

    def check(self) -> None:
        """Raise `PrmError` naming the key whose value, alone or with others, makes no sense."""
        super().check()
        require(
            bool(self.judge.rule_field) != bool(self.judge.gold), "judge", "needs 'rule_field' or 'gold', one of them"
        )
        known: list[str] = []
        for name, run in self.runs.items():
            require(
                bool(re.fullmatch(r"[\w.-]+", name)), f"runs.{name}", "is a folder's name: letters, digits, '-', '_'"
            )
            _require_known(f"runs.{name}", named_in(run.settings), known)
            known.append(name)
        for name, arm in self.arms.items():
            require("/" not in name and not name.startswith("."), f"arms.{name}", "cannot be the name of a file")
            arm.check(name)
            _require_known(f"arms.{name}", named_in([arm.run, arm.reward]), known)
            for made in named_in(arm.reward):
                command = self.runs[made].command
                fault = f"names {made!r}, a run of 'policy {command}', which gives no reward"
                require(command in ("train", "dpo"), f"arms.{name}.reward", fault)
        _require_known("judge.gold", named_in(self.judge.gold), known)
        every = [one for name, arm in self.arms.items() for one in arm.names(name)]
        require(len(set(every)) == len(every), "arms", "holds two arms of one name")
        require(len(every) >= 2, "arms", "holds fewer than two: nothing is to be compared")
        base = self.arms.get(self.base)
        plain = base is not None and not (base.stranger or base.chosen or base.told or base.best_of)
        arms = listed([repr(name) for name in self.arms])
        require(plain, "base", f"must name an arm that answers by itself, got {self.base!r}; there are {arms}")

    def place(self, text: str) -> str:
        """The text with the folders of runs in place of their names."""
        return _PLACE.sub(lambda found: f"{self.output_dir}/runs/{found[1]}", text)


def named_in(value: Any) -> list[str]:
    """The runs whose folders stand in settings."""
    if isinstance(value, str):
        return _PLACE.findall(value)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return list(dict.fromkeys(name for item in inner for name in named_in(item)))


def _require_known(key: str, names: Iterable[str], known: list[str]) -> None:
    for name in names:
        fault = f"names the run {name!r}, which is not among those before it: {listed(known)}"
        require(name in known, key, fault)
