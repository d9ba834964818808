"""Every setting of a comparison of policies, with its default. A YAML holds what differs."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from prm.checks import Count, Natural, Seed, Settings, Text, require
from prm.config import DataConfig, SplitConfig
from prm.errors import listed, meant

Command = Literal["train", "sft", "dpo", "ppo", "online"]

_RUN = re.compile(r"\{([^{}/]+)\}")


@dataclass
class RunSpec(Settings, key="runs.NAME"):
    """A run that the comparison trains. It uses the comparison's `data` and `seed` unless `settings` say otherwise.

    A run with a `seed` of its own learns from the same part of the log as the others.

    Args:
        command: `train` a reward model (`prm train`), or the `policy` command of that name.
        configs: YAML files; later ones override earlier ones.
        settings: settings that differ from them. `{NAME}` in a text stands for the folder of the run NAME.
    """

    command: Command
    configs: list[str] = field(default_factory=list)
    settings: dict[str, object] = field(default_factory=dict)


@dataclass
class ArmSpec(Settings, key="arms.NAME"):
    """One way to answer.

    Args:
        run: run folder of a policy (`{NAME}` for a run of the comparison), or a language model by name. It reads
            `user_text` if the log that it was trained on had it.
        as_generic_user: all prompts are asked as the generic user, without `user_text`.
        chosen: use the chosen responses of the log.
        prompted: an instruction for each group, put before the prompt.
        max_history: maximum number of the user's own training comparisons put before the prompt: the newest, as many
            as fit into the model's window.
        best_of: pick the best of so many responses by `reward`; each number makes an arm `NAME N`.
        reward: run folder of the reward model that picks; `{NAME}/uniform` knows no users.
    """

    run: str = ""
    as_generic_user: bool = False
    chosen: bool = False
    prompted: dict[str, str] = field(default_factory=dict)
    max_history: Natural = 0
    best_of: list[Count] = field(default_factory=list)
    reward: str = ""

    def check(self, name: str) -> None:
        """Raise `PrmError` naming the key whose value makes no sense."""
        key = f"arms.{name}"
        require(self.chosen != bool(self.run), key, "needs either 'run', who writes, or 'chosen: true'")
        for_user = self.prompted or self.max_history or self.best_of
        require(not (self.chosen and for_user), key, "is 'chosen', and answers nothing by itself")
        require(
            not (self.as_generic_user and (self.chosen or for_user)),
            key,
            "is 'as_generic_user', which excludes 'chosen', 'prompted', 'max_history' and 'best_of'",
        )
        require(bool(self.best_of) == bool(self.reward), key, "needs both or none of 'best_of' and 'reward'")

    def names(self, name: str) -> list[str]:
        """The arms that it stands for."""
        return [f"{name} {n}" for n in self.best_of] or [name]


@dataclass
class JudgeSpec(Settings, key="judge"):
    """Who decides which response is better: something that no arm was trained on.

    Args:
        rule_field: metadata field with the user's rule: `longer`, `shorter` or `contains:PHRASE`.
        gold: run folder of a reward model trained on other data, `{NAME}` for a run of the comparison.
    """

    rule_field: str = ""
    gold: str = ""


@dataclass
class CompareConfig(SplitConfig):
    """Policies side by side, on the same held-out prompts for the same users.

    Args:
        output_dir: folder of the page, the figures, the responses and the runs.
        seed: random seed of every run and every draw.
        overwrite: train runs again that exist with other settings.
        base: the arm that all others are compared with; KL divergence is measured from it.
        max_users: maximum number of users, those with most training comparisons first; 0 takes all.
        max_prompts: maximum number of held-out prompts for each user.
        max_new_tokens: maximum length of a response, in tokens.
        batch_size: responses that are sampled together.
        group_by: metadata field that divides users into groups; if empty, users are divided in halves by how often
            they agree with the majority.
        data: the log; its held-out part gives the prompts.
        runs: what is trained, in this order, into OUTPUT/runs/NAME.
        arms: who answers.
    """

    output_dir: Text = "runs/compare"
    seed: Seed = 0
    overwrite: bool = False
    base: str = "SFT"
    max_users: Natural = 10
    max_prompts: Count = 40
    max_new_tokens: Count = 48
    batch_size: Count = 40
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
        plain = base is not None and base == ArmSpec(run=base.run) and bool(base.run)
        arms = listed([repr(name) for name in self.arms])
        near = meant(self.base, self.arms) if self.base not in self.arms else ""
        require(plain, "base", f"must name an arm that answers by itself, got {self.base!r}; there are {arms}{near}")

    def resolve(self, text: str) -> str:
        """The text with the folders of runs in place of their names."""
        return _RUN.sub(lambda found: f"{self.output_dir}/runs/{found[1]}", text)


def named_in(value: object) -> list[str]:
    """The runs whose folders stand in settings."""
    if isinstance(value, str):
        return _RUN.findall(value)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return list(dict.fromkeys(name for item in inner for name in named_in(item)))


def _require_known(key: str, names: Iterable[str], known: list[str]) -> None:
    for name in names:
        fault = f"names the run {name!r}, which is not among those before it: {listed(known)}{meant(name, known)}"
        require(name in known, key, fault)
