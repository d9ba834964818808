"""Threads that share a scorer get what one alone gets, whatever the others ask, learn or forget meanwhile."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from typing import Any, TypeVar, cast

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

from policy.config import DpoConfig
from policy.setup import new_policy
from prm.checkpoint.config_file import TrainedBy
from prm.config import BackboneConfig, OptimConfig, RewardModelConfig, TrainConfig, UserConfig
from prm.data.comparison import Comparison
from prm.models.lora import add_lora
from prm.scoring import update_users
from prm.scoring.scorer import Scorer
from prm.training import user_fit
from prm.training.setup import new_checkpoint
from prm.users.index import UserIndex
from rerank.sampling.config import Sampling
from rerank.sampling.sampler import Sampler
from tests.planted import opposed_people

N = 8
PEOPLE = ["anna", "ben", None, "carl"]
ANSWERS = ["a king jumps", "seven lazy dogs", "mix potions over an old fox"]
MODELS: dict[str, tuple[RewardModelConfig, UserConfig, bool]] = {
    "linear": (RewardModelConfig(features=["1 mean", "2 last"]), UserConfig(), False),
    "linear, adapted": (RewardModelConfig(), UserConfig(), True),
    "prefix": (RewardModelConfig("soft_prompt", "prefix"), UserConfig(num_virtual_tokens=2), True),
    "suffix": (RewardModelConfig("soft_prompt", "suffix"), UserConfig(num_virtual_tokens=2), False),
}
Found = TypeVar("Found")


@pytest.fixture(autouse=True)
def _threads_take_turns_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a penalty that does not follow from who is known."""
    monkeypatch.setattr("prm.scoring.update_users.penalty_of", lambda checkpoint: 1.0)
    monkeypatch.setattr(user_fit, "_MIN_STEPS", 3)
    monkeypatch.setattr(
        user_fit, "rates_of", lambda checkpoint: OptimConfig(batch_size=4, micro_batch_size=2, user_lr=0.1)
    )
    monkeypatch.setattr("prm.scoring.update_users.rates_of", user_fit.rates_of)


def stirred(model: Any) -> None:
    """Adapters and people as if trained: fresh ones change nothing."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or name.startswith(("user_model.", "score.")):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
    model.requires_grad_(False)


def scorer_of(backbone: str, name: str) -> Scorer:
    """The same scorer each time, on a backbone that nobody has read with."""
    index = UserIndex(["anna", "ben", "carl"])
    if name == "policy":
        config = DpoConfig(backbone=BackboneConfig(backbone, dtype="float32"))
        made: Any = new_policy(
            config, UserConfig(num_virtual_tokens=2), index, TrainedBy("dpo", asdict(config.objective))
        )
    else:
        reward, users, adapted = MODELS[name]
        made = new_checkpoint(
            TrainConfig(backbone=BackboneConfig(backbone, dtype="float32"), reward=reward, users=users), index
        )
        torch.manual_seed(0)
        if adapted:
            add_lora(made.model, TrainConfig().lora)
    stirred(made.model)
    return Scorer(made, max_tokens=64)


def at_once(works: list[Callable[[], Found]]) -> list[Found]:
    """What each returns, in threads of their own that begin together."""
    start = threading.Barrier(len(works))

    def begin(work: Callable[[], Found]) -> Found:
        start.wait()
        return work()

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(begin, works))


def asked(scorer: Scorer, i: int) -> Tensor:
    """One of three ways to ask, [3]."""
    prompt, user = f"what of fox {i % 3}?", PEOPLE[i % len(PEOPLE)]
    if i % 3 == 0:
        return scorer.score(prompt, ANSWERS, user)
    if i % 3 == 1:
        return scorer.score_users(prompt, ANSWERS, [user])[0]
    return scorer.score_batch([prompt] * 3, ANSWERS, [user] * 3)


def alike(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", [*MODELS, "policy"])
def test_the_first_call_may_come_from_several_threads(tiny: str, name: str) -> None:
    alone, shared = scorer_of(tiny, name), scorer_of(tiny, name)
    found = at_once([partial(asked, shared, i) for i in range(N)])
    expected = [asked(alone, i) for i in range(N)]
    assert not alike(expected[0], expected[3])  # people differ
    assert [alike(*pair) for pair in zip(found, expected, strict=True)] == [True] * N


def judged(user: str, seed: int) -> list[Comparison]:
    return [replace(c, user_id=user) for c in opposed_people(4, seed, people=1)]


@pytest.mark.parametrize(("name", "packs"), [("linear", True), ("linear", False), ("prefix", True), ("suffix", False)])
def test_others_score_alike_while_somebody_is_learnt_and_forgotten(
    tiny: str, name: str, packs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever scores meanwhile gets the scores of before, and the learnt ones are those of learning alone."""
    for module in ("prm.models.reward_model", "prm.features.extract") if not packs else ():
        monkeypatch.setattr(f"{module}.can_pack", lambda backbone: False)
    alone, shared = scorer_of(tiny, name), scorer_of(tiny, name)
    expected, done = [asked(alone, i) for i in range(6)], threading.Event()

    def live(scorer: Scorer) -> list[bool]:
        for i in range(2):
            scorer.fit_user(f"new {i}", judged(f"new {i}", i))
            scorer.update_user(f"new {i}", judged(f"new {i}", i + 1))
            if i == 1:
                scorer.forget_user(f"new {i}")
        return []

    def live_and_tell() -> list[bool]:
        try:
            return live(shared)
        finally:
            done.set()

    def score(first: int) -> list[bool]:
        right: list[bool] = []
        while len(right) < 12 and not (done.is_set() and right):
            place = (first + len(right)) % 6
            right.append(alike(asked(shared, place), expected[place]))
        return right

    works: list[Callable[[], list[bool]]] = [live_and_tell, *(partial(score, i) for i in range(3))]
    right = [r for found in at_once(works) for r in found]
    assert right.count(False) == 0
    live(alone)
    assert shared.users == alone.users == ["anna", "ben", "carl", "new 0"]
    for i in range(2):
        assert alike(shared.score("why?", ANSWERS, f"new {i}"), alone.score("why?", ANSWERS, f"new {i}"))


@pytest.mark.parametrize("name", ["linear", "suffix"])
def test_a_score_is_that_of_before_or_after(tiny: str, name: str) -> None:
    """Somebody who is fitted to one log and the other in turn never scores as neither, nor as the unknown user."""
    scorer, done = scorer_of(tiny, name), threading.Event()
    states = []
    for seed in (0, 1):
        scorer.fit_user("zoe", judged("zoe", seed))
        states.append(scorer.score("why?", ANSWERS, "zoe"))
    unknown = scorer.score("why?", ANSWERS)
    assert not alike(*states)
    assert not any(alike(state, unknown) for state in states)

    def learn() -> list[bool]:
        try:
            for i in range(4):
                scorer.fit_user("zoe", judged("zoe", i % 2))
        finally:
            done.set()
        return []

    def score() -> list[bool]:
        right: list[bool] = []
        while len(right) < 40 and not (done.is_set() and right):
            found = scorer.score("why?", ANSWERS, "zoe")
            right.append(any(alike(found, state) for state in states))
        return right

    assert [r for found in at_once([learn, *[score] * 2]) for r in found].count(False) == 0


def test_people_learnt_at_once_are_those_learnt_in_turn(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each gets a row, and of two updates of one person neither is lost, whichever comes first."""
    alone, shared = scorer_of(tiny, "linear"), scorer_of(tiny, "linear")
    for i in range(3):
        alone.fit_user(f"new {i}", judged(f"new {i}", i))
    at_once([partial(shared.fit_user, f"new {i}", judged(f"new {i}", i)) for i in range(3)])
    assert sorted(shared.users) == sorted(alone.users)
    for i in range(3):
        assert alike(shared.score("why?", ANSWERS, f"new {i}"), alone.score("why?", ANSWERS, f"new {i}"))
    for user, order in (("first", (0, 1)), ("second", (1, 0))):
        for seed in order:
            alone.update_user(user, judged(user, seed))
    fit = update_users._fit

    def slowly(*args: Any) -> int:
        steps = fit(*args)
        time.sleep(0.2)  # the other one would have begun meanwhile
        return steps

    monkeypatch.setattr(update_users, "_fit", slowly)
    at_once([partial(shared.update_user, "both", judged("both", seed)) for seed in (0, 1)])
    found = shared.score("why?", ANSWERS, "both")
    assert any(alike(found, alone.score("why?", ANSWERS, user)) for user in ("first", "second"))
    assert shared.judgements("both") == 8


def test_a_sampler_is_shared_by_threads(tiny: str) -> None:
    """Each draws what it would have drawn alone; scores by the same policy go on beside them."""
    alone, shared = scorer_of(tiny, "policy"), scorer_of(tiny, "policy")
    how = Sampling(max_new_tokens=6, seed=3)

    def draw(sampler: Sampler, i: int) -> list[str]:
        return sampler.sample(f"what of fox {i % 3}?", 3, how, PEOPLE[i % len(PEOPLE)])

    samplers = [Sampler(cast(Any, scorer.checkpoint)) for scorer in (alone, shared)]
    expected = [draw(samplers[0], i) for i in range(4)], [asked(alone, i) for i in range(4)]
    works: list[Callable[[], Any]] = [partial(draw, samplers[1], i) for i in range(4)]
    works += [partial(asked, shared, i) for i in range(4)]
    found = at_once(works)
    assert found[:4] == expected[0]
    assert all(map(alike, found[4:], expected[1]))


def test_an_answer_is_that_of_before_or_after_its_user_is_forgotten(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sampler reads the policy's own rows; nobody samples with a row that is being written to."""
    scorer = scorer_of(tiny, "policy")
    sampler, done, user_model = Sampler(cast(Any, scorer.checkpoint)), threading.Event(), scorer.model.user_model
    prompt, forget_row = sampler.encode_prompt("what of the fox?", "anna"), user_model.forget_row

    def answers() -> list[str]:
        return sampler.decode(sampler.generate([prompt], 3, Sampling(max_new_tokens=6, seed=3)))

    known = answers()

    def slowly(row: int) -> None:
        with torch.no_grad():
            for table in user_model.per_row():
                table[row] = 100.0
        time.sleep(0.3)
        forget_row(row)

    monkeypatch.setattr(user_model, "forget_row", slowly)

    def forget() -> list[list[str]]:
        time.sleep(0.1)
        scorer.forget_user("anna")
        done.set()
        return []

    def sample() -> list[list[str]]:
        found = []
        while not done.is_set():
            found.append(answers())
        return found

    found = [texts for drawn in at_once([forget, sample, sample]) for texts in drawn]
    forgotten = answers()
    assert known != forgotten
    assert known in found
    assert all(texts in (known, forgotten) for texts in found)


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("name", ["linear, adapted", "prefix", "policy"])
def test_scores_are_without_dropout_and_leave_the_mode_as_it_is(
    tiny: str, name: str, packs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model that somebody else trains meanwhile, whose adapters drop inputs; fitting a user, too."""
    for module in ("prm.models.reward_model", "prm.features.extract") if not packs else ():
        monkeypatch.setattr(f"{module}.can_pack", lambda backbone: False)
    evaluated, trained = scorer_of(tiny, name), scorer_of(tiny, name)
    evaluated.model.eval()
    for layer in trained.model.modules():
        if isinstance(layer, LoraLayer):
            layer.lora_dropout["default"] = torch.nn.Dropout(0.5)
    trained.model.train()
    if name != "policy":
        for scorer in (evaluated, trained):
            scorer.fit_user("zoe", judged("zoe", 0))
    users = [*PEOPLE, "zoe"]
    found, expected = (scorer.score_users("what of the fox?", ANSWERS, users) for scorer in (trained, evaluated))
    assert alike(found, expected)
    assert all(module.training for module in trained.model.modules())
