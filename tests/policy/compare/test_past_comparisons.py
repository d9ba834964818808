"""The control arm of `policy compare` whose prompts hold the user's own past comparisons."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from policy.compare.answering import Task, _batches, _made_of, sample_arm
from policy.compare.config import ArmSpec, CompareConfig, JudgeSpec
from prm.checks import built
from prm.config import DataConfig
from prm.data.comparison import Comparison
from prm.data.past_comparisons import past_by_user
from prm.errors import PrmError
from prm.io.yaml_settings import read_config
from rerank.sampling.config import Sampling
from rerank.sampling.sampler import Sampler
from tests.conftest import WORDS

CONFIGS = sorted(Path("configs/policy").glob("compare-*.yaml"))


def log_of(user: str, n: int) -> list[Comparison]:
    return [Comparison(user, f"{user} asks {i}?", f"{user} likes {i}", f"{user} hates {i}") for i in range(n)]


@pytest.fixture
def task(tiny: str) -> Task:
    """Anna and ben with past comparisons, carl without; anna is asked what the log holds as well."""
    held = [
        Comparison(user, f"{WORDS[i]}?", "held chosen", "held other") for i, user in enumerate(("anna", "ben", "carl"))
    ]
    leaks = [held[0], Comparison("anna", "else?", "held chosen", "x"), Comparison("anna", "a new one?", "p", "q")]
    past = past_by_user([*log_of("anna", 30), *leaks, *log_of("ben", 30)])
    arms = {"LM": ArmSpec(run=tiny)}
    config = CompareConfig(arms=arms, base="LM", max_new_tokens=5, batch_size=2, judge=JudgeSpec(rule_field="x"))
    base = Sampler.from_pretrained(tiny, dtype="float32")
    base.window = 4000
    return Task(config, tuple(held), {c.user_id: "all" for c in held}, base, past)


def prompts_of(task: Task, spec: ArmSpec, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the policy reads of each case."""
    read: list[str] = []
    generate = Sampler.generate

    def kept(self: Sampler, prompts: Sequence[list[int]], n: int, sampling: Sampling) -> list[list[int]]:
        read.extend(self.tokenizer.batch_decode(list(prompts)))
        assert all(len(prompt) + sampling.max_new_tokens <= self.window for prompt in prompts)
        return generate(self, prompts, n, sampling)

    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "generate", kept)
        assert len(list(sample_arm("x", spec, task))) == len(task.cases)
    return read


def test_each_user_is_answered_after_their_own_past(
    task: Task, tiny: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The newest that fit the window; never the pair that is held out; nothing for somebody without a past."""
    plain = prompts_of(task, ArmSpec(run=tiny), monkeypatch)
    assert not caplog.text
    anna, ben, carl = prompts_of(task, ArmSpec(run=tiny, max_history=3), monkeypatch)
    assert carl == plain[2]
    assert "1 of 3 prompts" in caplog.text
    assert [text.count("They preferred") for text in (anna, ben)] == [3, 3]
    assert "anna likes 29" in anna
    assert "anna likes 28" in anna
    assert "a new one?" in anna
    assert "ben likes 27" in ben
    for text in (anna, ben):
        assert "held" not in text
    assert "anna" not in ben
    assert "ben" not in anna
    assert anna.index("likes 28") < anna.index("likes 29") < anna.index("a new one?") < anna.index(f"{WORDS[0]}?")


def test_as_many_as_fit_the_window(task: Task, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ben's thirty, as many as leave room for a response; one more would not."""
    spec, counts = ArmSpec(run=tiny, max_history=100), []
    for window in (150, 700, 1500, 100_000):
        task.base.window = window
        ben = prompts_of(task, spec, monkeypatch)[1]
        counts.append(ben.count("They preferred"))
        task.base.window = 100_000
        more = prompts_of(task, replace(spec, max_history=counts[-1] + 1), monkeypatch)[1]
        assert counts[-1] == 30 or len(task.base.encoder.ids(more)) + 5 > window
    assert (counts[0], counts[-1]) == (0, 30)
    assert 0 < counts[1] < counts[2] < 30


def test_what_the_past_was_is_part_of_the_digest(task: Task, tiny: str) -> None:
    """So that responses to another past are sampled again; other arms do not depend on it."""
    spec, other = ArmSpec(run=tiny, max_history=3), replace(task, past=past_by_user(log_of("ben", 29)))
    assert _made_of(spec, task) != _made_of(spec, other)
    assert _made_of(spec, task) != _made_of(replace(spec, max_history=4), task)
    assert _made_of(ArmSpec(run=tiny), task) == _made_of(ArmSpec(run=tiny), other)


def test_prompts_that_are_sampled_together_are_not_too_long_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policy.compare.answering._MAX_PROMPT_TOKENS", 100)
    assert list(_batches([10] * 7, 3)) == [(0, 3), (3, 6), (6, 7)]
    assert list(_batches([10, 40, 40, 40, 200, 10, 10], 9)) == [(0, 2), (2, 4), (4, 5), (5, 7)]
    assert list(_batches([], 3)) == []


@pytest.mark.parametrize("other", [{"as_generic_user": True}, {"chosen": True, "run": ""}])
def test_nobody_in_particular_has_no_past(other: dict[str, object]) -> None:
    spec = built(ArmSpec, {"run": "x", "max_history": 2} | other, "arms.x")
    with pytest.raises(PrmError, match=r"'arms\.x'"):
        spec.check("x")


def test_the_base_has_no_past() -> None:
    arms = {"SFT": ArmSpec(run="x", max_history=2), "other": ArmSpec(run="y")}
    with pytest.raises(PrmError, match="'base'"):
        CompareConfig(arms=arms, judge=JudgeSpec(rule_field="x"), data=DataConfig(path="x")).check()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_comparison_has_the_control(path: Path) -> None:
    """On the policy that all others start from, or are compared with."""
    config = read_config(CompareConfig, path)
    controls = [arm for arm in config.arms.values() if arm.max_history]
    assert [arm.run for arm in controls] == [config.arms[config.base].run]
