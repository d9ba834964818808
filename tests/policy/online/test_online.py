"""RLOO and GRPO on TRL's trainers: probabilities and advantages by hand, a reference that stays, people who move."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from policy.config import OnlineConfig
from policy.online.train import build_online_trainer, train_online
from policy.online.trainers import OnlineTrainer, _side_by_side
from policy.prompts import balanced_prompts, encode_prompts, prompts_that_fit
from policy.setup import new_policy
from prm.checkpoint.checkpoint import Checkpoint, load
from prm.checkpoint.config_file import TrainedBy
from prm.config import BackboneConfig, DataConfig, LoraSettings, OptimConfig, UserConfig
from prm.errors import CheckpointError, PrmError
from prm.io.run_files import read_run
from prm.io.tables import read_rows, write_jsonl
from prm.scoring.forget_user import forget_user
from prm.scoring.scorer import Scorer
from prm.users.index import UserIndex
from rerank.sampling.config import Sampling
from rerank.sampling.sampler import Sampler
from tests.conftest import count_tokens
from tests.planted import opposed_people
from tests.policy.ppo.toy import WORDS, save_toy
from tests.prm.scoring.test_scorer import train_small
from tests.prm.training.trainers.test_packed_training import farthest
from tests.tolerance import GRADIENT, rounding

TOY = ["one two", "four three", "five six", "eight seven"]
PROMPTS = ["what of a fox?", "why?", "what of seven lazy wizards and a king?", "how?"]
OPTIM = OptimConfig(
    epochs=1.0, batch_size=8, micro_batch_size=4, eval_steps=2, early_stopping_patience=99, warmup_steps=0
)


def online_config(backbone: str, folder: Path, **changes: Any) -> OnlineConfig:
    base = OnlineConfig(
        output_dir=str(folder / "run"),
        reward="none",
        data=DataConfig(path=str(folder / "log.jsonl")),
        backbone=BackboneConfig(backbone, dtype="float32", max_length=120),
        users=UserConfig(num_virtual_tokens=2),
        max_new_tokens=6,
        num_eval_samples=10,
        optim=OPTIM,
    )
    return replace(base, **changes)


def length_reward(completions: list[Any], user_id: list[str | None], **_: Any) -> list[float]:
    """More characters for anna, fewer for ben; the unknown user does not care."""
    taste = {"anna": 1.0, "ben": -1.0, None: 0.0}
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [taste[user] * len(text) / 8.0 for text, user in zip(texts, user_id, strict=True)]


def start(config: OnlineConfig) -> Checkpoint[Any]:
    return new_policy(config, config.users, UserIndex(["anna", "ben"]), TrainedBy(config.method))


def trainer_for(
    config: OnlineConfig, folder: Path, asked: list[tuple[Any, str | None]], reward: Any = length_reward
) -> Any:  # whose model may be None by its type
    checkpoint = start(config)
    texts = {"ben": "i like potions"}
    questions = encode_prompts(checkpoint.encoder(), checkpoint.users, asked, texts)
    return build_online_trainer(checkpoint, questions, questions[:4], reward, config, folder)


def moved(trainer: OnlineTrainer) -> None:
    """Away from the start, where the adapter does nothing and everyone is alike."""
    torch.manual_seed(5)
    for name, parameter in trainer.policy.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3 if "lora" in name else 1.0)
    trainer.policy.eval()


def logps_by_hand(model: Any, prompt: list[int], answer: list[int], temperature: float) -> list[float]:
    """log of the softmax at a temperature of each token of an answer, alone and without padding."""
    ids = torch.tensor([[*prompt, *answer]])
    with torch.no_grad():
        logs = (model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0] / temperature).log_softmax(-1)
    return [float(logs[len(prompt) - 1 + i, token]) for i, token in enumerate(answer)]


ASKED: list[tuple[Any, str | None]] = [
    (PROMPTS[0], "anna"),
    (PROMPTS[1], "ben"),
    (PROMPTS[2], None),
    (PROMPTS[3], "anna"),
]


@pytest.mark.parametrize("method", ["rloo", "grpo"])
@pytest.mark.parametrize("train", ["lora", "full", "frozen"])
@pytest.mark.parametrize("packs", [True, False])
def test_probabilities_of_policy_and_reference_by_hand(
    tiny: str, tmp_path: Path, method: Any, train: Any, packs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The policy reads user, user text and prompt, the reference the plain prompt; both at the draw's temperature."""
    if not packs:
        monkeypatch.setattr("prm.models.policy_model.can_pack", lambda backbone: False)
    config = online_config(tiny, tmp_path, method=method, train=train, temperature=0.7)
    trainer = trainer_for(config, tmp_path, ASKED)
    moved(trainer)
    trainer._prompt_rows = list(trainer.train_dataset)
    answers = [[5, 6, 7], [8], [9, 10, 11, 12, 2], [2]]
    asked = [row["ids"] for row in trainer._prompt_rows]
    assert asked[1][:2] == [336 + 4, 336 + 5]  # row 2, two tokens
    assert "i like potions" in trainer.sampler.tokenizer.decode(asked[1][2:])
    longest = max(map(len, asked))
    ids, mask = torch.zeros(4, longest + 5, dtype=torch.long), torch.zeros(4, longest + 5, dtype=torch.long)
    for i, (prompt, answer) in enumerate(zip(asked, answers, strict=True)):
        ids[i, longest - len(prompt) : longest + len(answer)] = torch.tensor([*prompt, *answer])
        mask[i, longest - len(prompt) : longest + len(answer)] = 1
    found = {
        name: trainer._get_per_token_logps_and_entropies(model, ids, mask, 5, batch_size=3)[0]
        for name, model in (("policy", trainer.model), ("reference", trainer.ref_model))
    }
    plain = AutoModelForCausalLM.from_pretrained(tiny)
    prompt_ids = [trainer.sampler.tokenizer(f"<|user|>{p}<|end|>\n<|assistant|>")["input_ids"] for p, _ in ASKED]
    for i, answer in enumerate(answers):
        n = len(answer)
        own = logps_by_hand(trainer.policy, asked[i], answer, 0.7)
        assert found["policy"][i, :n].tolist() == pytest.approx(own, abs=1e-4)
        assert found["reference"][i, :n].tolist() == pytest.approx(
            logps_by_hand(plain, prompt_ids[i], answer, 0.7), abs=1e-4
        )


def test_a_prompt_read_once_gives_what_whole_sequences_give(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Probabilities, entropies and gradients of three answers to one person's prompt, and fewer tokens."""
    trainer = trainer_for(online_config(tiny, tmp_path, temperature=0.7), tmp_path, ASKED)
    moved(trainer)
    prompt = trainer.train_dataset[1]["ids"]
    ids, mask = _side_by_side([prompt] * 3, [[5, 6, 7], [5, 9], [2]], 3)
    read = count_tokens(trainer.model.backbone)

    def found() -> tuple[dict[str, torch.Tensor], int]:
        trainer.model.zero_grad()
        read.clear()
        logps, entropies, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, mask, 3, compute_entropy=True
        )
        tokens = sum(read)
        (logps * mask[:, -3:]).sum().backward()
        grads = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
        assert entropies is not None
        return {"logps": logps.detach(), "entropies": entropies * mask[:, -3:]} | grads, tokens

    together, tokens = found()
    monkeypatch.setattr("prm.models.policy_model.can_pack", lambda backbone: False)
    expected, whole = found()
    assert len(expected) > 4
    assert farthest(together, expected) < rounding(GRADIENT)
    assert tokens < 0.6 * whole


@pytest.mark.parametrize("train", ["lora", "full", "frozen"])
def test_the_reference_stays_while_everything_moves(tiny: str, tmp_path: Path, train: Any) -> None:
    """To the bit, over steps with rates that tear the policy apart."""
    optim = replace(OPTIM, user_lr=1.0, lora_lr=0.1, backbone_lr=0.1, eval_steps=99)
    trainer = trainer_for(online_config(tiny, tmp_path, train=train, optim=optim), tmp_path, ASKED * 2)
    plain, answers = [q.plain_ids for q in trainer.check], [[5, 6], [7, 8], [9], [10, 2]]
    own = trainer._logps(trainer.model, [q.ids for q in trainer.check], answers)
    before = trainer._logps(trainer.ref_model, plain, answers)
    trainer.args.load_best_model_at_end = False
    trainer.train()
    assert torch.equal(trainer._logps(trainer.ref_model, plain, answers), before)
    asked = [q.ids for q in trainer.check]
    assert not torch.allclose(trainer._logps(trainer.model, asked, answers), own, atol=0.1)
    with pytest.raises(ValueError, match="users"):
        trainer._logps(trainer.ref_model, asked, answers)


def given(trainer: Any, answers: list[list[int]], questions: int = 2) -> dict[str, Any]:
    """What TRL makes of these answers to the first questions, two each."""
    rows = [row for row in list(trainer.train_dataset)[:questions] for _ in range(2)]
    trainer.sampler.generate = lambda *_: answers
    trainer.policy.train()
    trainer.current_gradient_accumulation_steps = 1  # as in training
    return trainer._generate_and_score_completions(rows)


def test_advantages_of_rloo_by_hand(tiny: str, tmp_path: Path) -> None:
    """reward - kl_coef KL of an answer, less that of the other one to its question; TRL is handed each user's rows."""
    seen: list[dict[str, Any]] = []

    def reward(**columns: Any) -> list[float]:
        seen.append(columns)
        return [1.0, 3.0, -2.0, 0.5]

    config = online_config(tiny, tmp_path, num_generations=2, kl_coef=0.25)
    trainer = trainer_for(config, tmp_path, ASKED, reward)
    moved(trainer)
    answers = [[5, 6, 2], [7, 2], [8, 9, 10], [2]]
    found = given(trainer, answers)
    assert seen[0]["user_id"] == ["anna", "anna", "ben", "ben"]
    assert seen[0]["user_text"] == ["", "", "i like potions", "i like potions"]
    assert seen[0]["completions"][3] == [{"role": "assistant", "content": ""}]  # an empty answer is one
    plain, worth = AutoModelForCausalLM.from_pretrained(tiny), []
    for i, answer in enumerate(answers):
        row = trainer.train_dataset[i // 2]
        own = sum(logps_by_hand(trainer.policy, row["ids"], answer, 1.0))
        ref = sum(logps_by_hand(plain, row["plain_ids"], answer, 1.0))
        worth.append([1.0, 3.0, -2.0, 0.5][i] - 0.25 * (own - ref))
    expected = [worth[0] - worth[1], worth[1] - worth[0], worth[2] - worth[3], worth[3] - worth[2]]
    assert found["advantages"].tolist() == pytest.approx(expected, abs=1e-3)


def test_advantages_of_grpo_by_hand(tiny: str, tmp_path: Path) -> None:
    """In deviations of the question's own rewards (two answers: n - 1 = 1), and the reference beside them."""
    config = online_config(tiny, tmp_path, method="grpo", num_generations=2)
    trainer = trainer_for(config, tmp_path, ASKED, lambda **_: [1.0, 3.0, -2.0, 0.5])
    moved(trainer)
    answers = [[5, 6, 2], [7, 2], [8, 9, 10], [2]]
    found = given(trainer, answers)
    assert found["advantages"].tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5, -(0.5**0.5), 0.5**0.5], abs=1e-3)
    plain = [trainer.train_dataset[i // 2]["plain_ids"] for i in range(4)]
    assert "ref_per_token_logps" not in found  # it is read with the policy, in the loss
    trainer._compute_loss(trainer.model, found)
    torch.testing.assert_close(found["ref_per_token_logps"], trainer._logps(trainer.ref_model, plain, answers))


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("method", ["rloo", "grpo"])
def test_in_bfloat16_nothing_moves_before_the_first_step(
    tiny: str, tmp_path: Path, method: Any, packs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Divergence 0 where nobody stands in front, and ratios of new to old 1, to the bit, whatever is read together."""
    if not packs:
        monkeypatch.setattr("prm.models.packing._is_supported", lambda backbone: False)
    config = online_config(
        tiny, tmp_path, method=method, num_generations=2, users=UserConfig("uniform", num_virtual_tokens=0)
    )
    config.backbone.dtype = "bfloat16"
    trainer = trainer_for(config, tmp_path, [(prompt, "anna") for prompt in PROMPTS])
    answers = [[20 + i + j for j in range(i % 4 + 3)] for i in range(8)]
    for policy_moved in (False, True):
        if policy_moved:
            moved(trainer)
        trainer._metrics["train"].clear()
        found = given(trainer, answers, questions=4)
        for rows in torch.randperm(8, generator=torch.Generator().manual_seed(1)).split(4):
            batch = {name: x[rows] if isinstance(x, torch.Tensor) and x.dim() else x for name, x in found.items()}
            loss = trainer._compute_loss(trainer.model, batch).detach()
            if method == "rloo":
                assert float(loss) == pytest.approx(-float(batch["advantages"].mean()), abs=1e-7)
        kl = trainer._metrics["train"]["kl"]
        assert all(x == 0.0 for x in kl) != policy_moved


def test_answers_are_the_groups_in_order_and_the_steps_own(tiny: str, tmp_path: Path) -> None:
    """Each answer follows its prompt, whether groups are whole or not; the state of training is left as it was."""
    trainer = trainer_for(online_config(tiny, tmp_path), tmp_path, ASKED)
    trainer.policy.train()
    asked = [row["ids"] for row in trainer.train_dataset]
    drawn: list[tuple[int, int]] = []
    taken = trainer.sampler.generate

    def draw(ids: Any, n: int, sampling: Sampling) -> Any:
        drawn.append((len(ids), n))
        assert (sampling.temperature, sampling.top_p) == (1.0, 1.0)
        return taken(ids, n, sampling)

    trainer.sampler.generate = draw
    first = trainer._sample_responses([ids for ids in asked for _ in range(3)])
    assert trainer.policy.training  # or TRL would count this step as evaluation
    assert len({*map(tuple, first)}) == len(first) == 12
    assert trainer._sample_responses([ids for ids in asked for _ in range(3)]) == first
    assert len(trainer._sample_responses([asked[0], asked[0], asked[1]])) == 3
    assert drawn == [(4, 3), (4, 3), (3, 1)]
    trainer.state.global_step = 1
    assert trainer._sample_responses([ids for ids in asked for _ in range(3)]) != first


def test_absent_people_keep_still(tiny: str, tmp_path: Path) -> None:
    """Two steps with anna, then two with ben: dense Adam's momentum would carry anna on."""
    optim = replace(OPTIM, user_lr=0.1, eval_steps=99)
    config = online_config(
        tiny, tmp_path, users=UserConfig(num_virtual_tokens=2, generic=False), train="frozen", optim=optim
    )
    asked: list[tuple[Any, str | None]] = [(p, user) for user in ("anna", "ben") for p in PROMPTS]
    trainer = trainer_for(config, tmp_path, asked)
    table = trainer.policy.user_model.embeddings
    states = [table.detach().clone()]
    taken = trainer.optimizer.step

    def step(*args: Any) -> Any:
        out = taken(*args)
        states.append(table.detach().clone())
        return out

    trainer.optimizer.step = step
    trainer.args.load_best_model_at_end = False
    trainer.train()
    assert len(states) == 5
    moves = [[not torch.equal(a[row], b[row]) for row in range(3)] for a, b in pairwise(states)]
    assert moves == [[False, True, False]] * 2 + [[False, False, True]] * 2


def odd(text: str) -> float:
    """Share of an answer's words that stand for odd numbers; half where there is no word."""
    words = text.split()
    return sum(word in WORDS[::2] for word in words) / len(words) if words else 0.5


def odd_reward(completions: list[Any], user_id: list[str], **_: Any) -> list[float]:
    """Anna likes odd numbers, ben likes even ones: each word tells, and the best answers are known."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [odd(text) * (1.0 if user == "anna" else -1.0) for text, user in zip(texts, user_id, strict=True)]


def learn_what_is_liked(folder: Path, method: Any, seed: int) -> tuple[float, float]:
    """Shares of odd numbers in anna's and ben's answers after 40 steps from where they are alike."""
    optim = replace(OPTIM, batch_size=64, micro_batch_size=64, user_lr=0.02, lora_lr=0.01, eval_steps=99)
    changes: dict[str, Any] = {"num_generations": 16, "max_new_tokens": 2, "kl_coef": 0.02, "alpha": 1.0}
    changes["users"] = UserConfig(num_virtual_tokens=2, generic=False)
    config = online_config(save_toy(folder / "toy"), folder, method=method, seed=seed, optim=optim, **changes)
    asked = balanced_prompts(TOY, ["anna", "ben"], 4 * 40, 1.0, seed)
    trainer = trainer_for(config, folder, asked, odd_reward)
    trainer.args.load_best_model_at_end = False
    trainer.train()
    how = Sampling(2, 1.0, 1.0)
    sampled = [[a for prompt in TOY for a in trainer.sampler.sample(prompt, 64, how, u)] for u in ("anna", "ben")]
    anna, ben = (sum(map(odd, answers)) / len(answers) for answers in sampled)
    return anna, ben


@pytest.mark.parametrize("method", ["rloo", "grpo"])
def test_people_get_what_they_like(tmp_path: Path, method: Any) -> None:
    """Two people of opposed taste from one language model; nearly all responses for each are to their liking."""
    anna, ben = learn_what_is_liked(tmp_path, method, 0)
    assert anna > 0.8
    assert ben < 0.2


@pytest.fixture(scope="module")
def reward_run(tmp_path_factory: pytest.TempPathFactory, backbone_of: Callable[..., str]) -> Path:
    return train_small(tmp_path_factory.mktemp("reward"), backbone_of("llama"), "linear", opposed_people(20, 0))


@pytest.fixture
def config(reward_run: Path, tiny: str, tmp_path: Path) -> OnlineConfig:
    """People of opposed taste and the reward model that knows it."""
    write_jsonl(tmp_path / "log.jsonl", opposed_people(20, 0))
    return online_config(tiny, tmp_path, reward=str(reward_run))


def test_a_run_from_log_to_answers(config: OnlineConfig) -> None:
    config = replace(config, kl_coef=0.01, optim=replace(OPTIM, epochs=1.0, user_lr=0.05, lora_lr=0.01))
    run = train_online(config)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["steps"] == 9  # 17 prompts to learn from, two a step
    assert metrics["validation_objective"] == min(entry["eval_objective"] for entry in metrics["history"])
    assert metrics["end"]["eval_objective"] == pytest.approx(metrics["validation_objective"], abs=1e-4)
    assert metrics["start"]["eval_kl"] == pytest.approx(0.0, abs=5.0)
    rows = {row["user_id"]: row for _, row in read_rows(run / "people.jsonl")}
    assert set(rows) == {None, "p0", "p1", "p2", "p3"}
    assert set(rows["p0"]) == {"user_id", "reward_start", "length_start", "reward_end", "length_end"}
    assert not list(run.glob("trainer"))
    assert load(run).settings.objective == TrainedBy("rloo", {"kl_coef": 0.01})
    assert len(Sampler.from_pretrained(str(run)).sample("why?", 2, Sampling(4), user="p0")) == 2
    with pytest.raises(CheckpointError, match=r"rloo.*reward"):
        Scorer.from_pretrained(run)
    parameters = read_run(run)["parameters"]
    assert parameters is not None
    assert parameters["users"] > 0
    forget_user(run, "p0")
    assert "p0" not in "".join((run / name).read_text() for name in ("people.jsonl", "reward_scale.jsonl"))


def test_questions_are_evenly_asked() -> None:
    """Any 30 in a row ask each of three people 8 to 10 times, the unknown user 3 times, and all prompts alike."""
    asked = balanced_prompts(PROMPTS, ["a", "b", "c"], 120, 0.9, 7)
    for first in (0, 30, 60, 45):
        people = Counter(user for _, user in asked[first : first + 30])
        assert people[None] == 3
        assert all(8 <= people[user] <= 10 for user in "abc")
    assert set(Counter(prompt for prompt, _ in asked).values()) == {30}
    assert {len({p for p, u in asked if u == user}) for user in "abc"} == {4}  # nobody has prompts of their own
    assert asked == balanced_prompts(PROMPTS, ["a", "b", "c"], 120, 0.9, 7)
    assert asked != balanced_prompts(PROMPTS, ["a", "b", "c"], 120, 0.9, 8)
    assert {user for _, user in balanced_prompts(PROMPTS, ["a"], 10, 1.0, 0)} == {"a"}
    assert {user for _, user in balanced_prompts(PROMPTS, ["a"], 10, 0.0, 0)} == {None}
    assert {user for _, user in balanced_prompts(PROMPTS, [], 10, 1.0, 0)} == {None}


def test_prompts_that_do_not_fit_are_left_out(tiny: str, tmp_path: Path) -> None:
    encoder = start(online_config(tiny, tmp_path)).encoder()
    encoder.max_length = 40
    sizes = {prompt: len(encoder.encode_prompt(prompt)) for prompt in PROMPTS}
    room = sorted(sizes.values())[2]
    assert set(prompts_that_fit(encoder, [*PROMPTS, *PROMPTS], [], 40 - room)) == {
        prompt for prompt, n in sizes.items() if n <= room
    }
    # what people say of themselves needs room, too
    assert len(prompts_that_fit(encoder, PROMPTS, ["i"], 40 - room)) < 3
    with pytest.raises(PrmError, match=r"backbone\.max_length.* 4 prompts"):
        prompts_that_fit(encoder, PROMPTS, [], 39)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"reward": ""}, "'reward' is missing"),
        ({"alpha": 1.5}, "alpha"),
        ({"num_generations": 1}, "num_generations"),
        ({"num_generations": 3}, "optim.batch_size"),
        ({"temperature": 0.0}, "temperature"),
        ({"kl_coef": -1.0}, "kl_coef"),
        ({"num_eval_samples": 1}, "num_eval_samples"),
        ({"lora": LoraSettings(lora_dropout=0.1)}, "lora.lora_dropout"),
        ({"users": UserConfig("uniform", num_virtual_tokens=0), "train": "frozen"}, "train"),
        ({"users": UserConfig("bayes")}, "users.kind"),
        ({"users": UserConfig(text_dropout=0.5)}, "users.text_dropout"),
        ({"max_new_tokens": 5000}, "max_new_tokens"),
    ],
)
def test_settings_that_make_no_sense_are_named(config: OnlineConfig, changes: dict[str, Any], key: str) -> None:
    with pytest.raises(PrmError, match=key):
        train_online(replace(config, **changes))


def test_a_reward_that_is_none(config: OnlineConfig, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="none: no such folder"):
        train_online(replace(config, reward=str(tmp_path / "none")))
