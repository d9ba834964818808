"""PPO on a language of ten words: it reaches what is best, goes on to the bit, and counts what it says."""

import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import policy.ppo.train
from policy.cli import main
from policy.config import Ppo, PpoConfig
from policy.ppo.loop import Training, advantages_of
from policy.ppo.roles import on_device
from policy.ppo.rollouts import PromptSampler, Rollouts, minibatches
from policy.ppo.train import train_ppo
from policy.rewards.scales import SCALE_FILE, Scale, read_scales
from prm.checkpoint.checkpoint import load
from prm.config import LoraSettings, UserConfig
from prm.errors import CheckpointError, PrmError
from prm.io.tables import read_rows, write_jsonl
from prm.scoring.forget_user import forget_user
from prm.scoring.scorer import Scorer
from rerank.cli import main as rerank_main
from rerank.sampling.config import Sampling
from rerank.sampling.sampler import Sampler
from tests.paths import ROOT
from tests.planted import opposed_people
from tests.policy.ppo import two_processes
from tests.policy.ppo.test_roles import train_reward
from tests.policy.ppo.toy import PEOPLE, PROMPTS, WORDS, first_word, likes, new_writer, save_toy, toy_config
from tests.prm.training.test_distributed import LAUNCH


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_toy(tmp_path_factory.mktemp("toy"))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def history(run: Path) -> list[dict[str, float]]:
    """Of the metrics, what is no matter of the clock."""
    steps = json.loads((run / "metrics.json").read_text())["history"]
    return [{k: v for k, v in step.items() if not k.startswith("seconds")} for step in steps]


def test_it_reaches_the_known_optimum(toy: str, tmp_path: Path) -> None:
    """Answers of one word: the best policy is pi_ref exp(r / kl), up to a factor, worth kl log E_ref exp(r / kl). Each
    person's comes within a seventh of that, from nothing; the KL penalty is part of the sum."""
    kl, reward = 0.5, likes(lambda answer: float(answer in ("nine", "ten")))
    ppo = {"max_steps": 50, "rollout_batch_size": 96, "max_new_tokens": 1, "kl_coef": kl, "num_scale_samples": 128}
    optim = {
        "epochs": 2.0,
        "batch_size": 96,
        "micro_batch_size": 96,
        "user_lr": 2e-2,
        "head_lr": 2e-2,
        "eval_steps": 50,
    }
    run = train_ppo(toy_config(toy, tmp_path, ppo=ppo, optim=optim), reward)
    sampler, scales = Sampler.from_pretrained(str(run), torch.device("cpu")), read_scales(run / SCALE_FILE)
    words = sampler.decode([[i] for i in range(16)])
    for user, bar in zip(PEOPLE, (0.8, 0.8, None), strict=True):
        found, best = 0.0, 0.0
        for prompt in PROMPTS:
            own, reference = first_word(sampler, prompt, user)
            scaled = torch.tensor([scales[user](r) for r in reward([prompt] * 16, words, [user] * 16, [])])
            found += float((own.exp() * (scaled - kl * (own - reference))).sum()) / len(PROMPTS)
            best += float(kl * torch.logsumexp(reference + scaled / kl, 0)) / len(PROMPTS)
        assert best >= found - 1e-6
        assert found > (bar * best if bar else -0.15), user


def test_some_are_answered_at_length_and_others_with_nothing(toy: str, tmp_path: Path) -> None:
    """Worth of an answer: its words, or less its words. The optima are six words and none (the paper's figure 3)."""
    ppo = {"max_steps": 25, "rollout_batch_size": 96, "max_new_tokens": 6, "num_scale_samples": 64}
    optim = {"batch_size": 48, "micro_batch_size": 48, "user_lr": 2e-2, "head_lr": 2e-2, "eval_steps": 25}
    run = train_ppo(toy_config(toy, tmp_path, ppo=ppo, optim=optim), likes(lambda answer: float(len(answer.split()))))
    last = {row["user_id"]: row for row in lines(run / "people.jsonl") if row["step"] == 25}
    first = {row["user_id"]: row for row in lines(run / "people.jsonl") if row["step"] == 1}
    assert last["likes"]["score"] > 5.0 > first["likes"]["score"]
    assert last["dislikes"]["score"] > -1.0 > first["dislikes"]["score"]
    assert history(run)[-1]["explained_variance"] > 0.5 > history(run)[0]["explained_variance"]
    sampler = Sampler.from_pretrained(str(run), torch.device("cpu"))
    answers = sampler.sample("one five", 20, Sampling(6, temperature=1.0, top_p=1.0), user="dislikes")
    assert answers.count("") > 10


def test_micro_batches_change_nothing(toy: str, tmp_path: Path) -> None:
    """A minibatch's loss is the mean over its tokens, however they are read: answers differ in length."""
    found = []
    for size in (6, 2):
        folder = tmp_path / str(size)
        folder.mkdir()
        optim = {"micro_batch_size": size, "user_lr": 1e-3, "lora_lr": 1e-3}
        run = train_ppo(toy_config(toy, folder, optim=optim), likes(lambda answer: float(len(answer))))
        found.append((load(run).model.user_model.offsets, history(run)))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-3, atol=1e-6)
    for a, b in zip(found[0][1], found[1][1], strict=True):
        counts = {"clipped", "value_clipped"}  # rounding moves all tokens at once that stand alike on an edge
        assert a.keys() == b.keys() > counts
        for name in a.keys() - counts:
            assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-4), name


def test_answers_to_a_question_stay_together(toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four to each: everybody asks as often, a minibatch holds whole questions, in another order every time."""
    read: list[list[tuple[int, ...]]] = []
    backward = Training._backward

    def noted(self: Training, found: Any, rows: torch.Tensor, *rest: Any) -> torch.Tensor:
        questions = [tuple(found.sequences[i].ids[: found.sequences[i].response[0]]) for i in rows.tolist()]
        read.append(questions)
        return backward(self, found, rows, *rest)

    monkeypatch.setattr(Training, "_backward", noted)
    ppo, optim = (
        {"max_steps": 2, "rollout_batch_size": 24, "num_generations": 4},
        {"batch_size": 8, "micro_batch_size": 4, "epochs": 2.0},
    )
    run = train_ppo(toy_config(toy, tmp_path, ppo=ppo, optim=optim), likes(lambda answer: float(len(answer))))
    assert [len(set(questions)) for questions in read] == [1] * len(read)
    assert len(read) == 2 * 2 * 6
    assert read[:6] != read[6:12]
    assert sorted(read[:6]) == sorted(read[6:12])
    rows = [row for _, row in read_rows(run / "people.jsonl") if row["step"] == 1]
    assert [row["answers"] for row in rows] == [8, 8, 8]  # two and nobody in particular


def test_what_is_known_of_drawn_answers(toy: str, tmp_path: Path) -> None:
    """Log-probabilities as transformers has them, the reference's without user and words of their own; the penalty for
    an answer that was cut off."""
    writer, _ = new_writer(toy, tmp_path, likes(lambda a: float(len(a.split()))), ppo={"missing_eos_penalty": 0.5})
    turns = PromptSampler(PROMPTS, {"likes": "eight nine", None: ""}, 0).take(0, 8)
    found = writer.rollouts(turns, 3, {"likes": Scale(1.0, 2.0), None: Scale(0.0, 1.0)})
    plain = AutoModelForCausalLM.from_pretrained(toy)
    own = writer.sampler.policy
    assert 0 < int(found.ended.sum()) < 8
    assert any(turn.text for turn in turns)
    for i, turn in enumerate(turns):
        ids, (start, end) = found.sequences[i]
        assert ids[:2] == writer.sampler.encoder.user_ids(1 if turn.user else 0)
        question = writer.sampler.tokenizer(turn.prompt)["input_ids"]
        assert ids[2:start][-len(question) :] == question
        assert (start - 2 > len(question)) == bool(turn.text)
        answer = ids[start:]
        assert len(answer) == end - start == int(found.mask[i].sum())
        assert bool(found.ended[i]) == (answer[-1] == 1)
        for model, sequence, column in ((own, ids, found.logps), (plain, [*question, *answer], found.reference)):
            with torch.no_grad():
                whole = torch.tensor([sequence])
                logs = model(input_ids=whole, attention_mask=torch.ones_like(whole)).logits[0].log_softmax(-1)
            first = len(sequence) - len(answer)
            by_hand = [float(logs[t - 1, sequence[t]]) for t in range(first, len(sequence))]
            assert column[i, : len(answer)].tolist() == pytest.approx(by_hand, abs=1e-5)
        words = len(found.responses[i].split())
        scaled = (words - 1.0) / 2.0 if turn.user else 0.0
        assert float(found.rewards[i]) == pytest.approx(scaled - 0.5 * (answer[-1] != 1))


def test_where_rewards_fall_by_hand() -> None:
    """Two answers, of two tokens and one; kl 0.5. The penalty falls on every token, the score on the last one."""
    mask = torch.tensor([[True, True], [True, False]])
    logps, reference = torch.tensor([[-1.0, -2.0], [-3.0, 0.0]]), torch.tensor([[-2.0, -2.5], [-1.0, 0.0]])
    rewards, values = torch.tensor([4.0, -1.0]), torch.tensor([[1.0, 2.0], [0.5, 0.0]])
    found = Rollouts([], [], [], rewards, rewards, rewards, mask, logps, reference, values)
    advantages, returns = advantages_of(found, PpoConfig(ppo=Ppo(kl_coef=0.5, lam=0.5)))
    # rewards -0.5, 4 - 0.25 and -1 + 1: deltas -0.5 + 2 - 1 = 0.5, 3.75 - 2 = 1.75, and 0 - 0.5
    assert advantages.tolist() == [[0.5 + 0.5 * 1.75, 1.75], [-0.5, 0.0]]
    assert returns.tolist() == [[2.375, 3.75], [0.0, 0.0]]


def test_two_processes_learn_what_one_does_from_all_answers(toy: str, tmp_path: Path) -> None:
    """Answers differ in length, so that their shares weigh differently: sums and moments are those of both."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    two_processes.main(toy, tmp_path / "one")
    launch = [*LAUNCH[:-1], "tests.policy.ppo.two_processes", toy, str(tmp_path / "two")]
    subprocess.run(launch, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
    one, two = (load_file(tmp_path / name / "learnt.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=2e-5, msg=name)


def test_the_first_pass_starts_where_the_answers_were_drawn(toy: str, tmp_path: Path) -> None:
    """Ratios are 1, nothing is clipped, and whitened advantages have mean 0."""
    optim = {"epochs": 1.0, "batch_size": 12, "micro_batch_size": 4}
    run = train_ppo(toy_config(toy, tmp_path, ppo={"max_steps": 1}, optim=optim), likes(lambda a: float(len(a))))
    (step,) = history(run)
    assert step["policy_loss"] == pytest.approx(0.0, abs=1e-5)
    assert step["clipped"] == step["value_clipped"] == 0.0


def test_values_are_clipped_by_their_own_range(toy: str, tmp_path: Path) -> None:
    shares = {}
    for cliprange in (1e-6, 1e6):
        folder = tmp_path / str(cliprange)
        folder.mkdir()
        ppo = {"max_steps": 1, "cliprange_value": cliprange}
        run = train_ppo(toy_config(toy, folder, ppo=ppo), likes(lambda a: float(len(a))))
        shares[cliprange] = history(run)[0]["value_clipped"]
    assert shares[1e-6] > 0.0
    assert shares[1e6] == 0.0


@pytest.mark.parametrize("packs", [True, False])
def test_in_bfloat16_nothing_moves_before_the_first_step(
    toy: str, tmp_path: Path, packs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KL is 0 where nobody stands in front, and ratios of new to old are 1, to the bit: it is one reading."""
    if not packs:
        monkeypatch.setattr("prm.models.packing._is_supported", lambda backbone: False)
    writer, config = new_writer(
        toy,
        tmp_path,
        likes(len),
        users=UserConfig("uniform", num_virtual_tokens=0),
        ppo={"num_generations": 2},
        dtype="bfloat16",
    )
    roles = writer.roles
    prompts = [" ".join([*WORDS, *WORDS[:i]]) for i in range(1, 7)]  # what they share is read once, if read together
    turns = [turn for turn in PromptSampler(prompts, {"likes": "", None: ""}, 0).take(0, 6) for _ in range(2)]
    found = writer.rollouts(turns, 3, dict.fromkeys(("likes", None), Scale(0.0, 1.0)), order=5)
    assert torch.equal(found.logps, found.reference)
    torch.manual_seed(0)
    for parameter in roles.trained().values():
        torch.nn.init.normal_(parameter, std=0.3)
    found = writer.rollouts(turns, 3, dict.fromkeys(("likes", None), Scale(0.0, 1.0)), order=5)
    assert not torch.equal(found.logps, found.reference)
    parts = [rows for batch in minibatches(roles, found.sequences, config, 5) for rows in batch]
    assert sorted(torch.cat(parts).tolist()) == list(range(12))
    for rows in parts:
        batch = on_device([found.sequences[i] for i in rows.tolist()], torch.device("cpu"))
        for new, old in ((roles.logps(batch), found.logps), (roles.values(batch), found.values)):
            assert torch.equal(new.detach(), old[rows, : new.shape[1]])


def test_everybody_has_as_many_turns() -> None:
    """The unknown user among them; whoever takes from the middle sees the same turns."""
    people: dict[str | None, str] = {None: "", "a": "x", "b": "", "c": ""}
    turns = PromptSampler(PROMPTS, people, 0)
    taken = turns.take(0, 42)
    assert sorted(Counter(turn.user for turn in taken).values()) == [10, 10, 11, 11]
    assert max(Counter(turn.prompt for turn in taken).values()) == 3
    assert all(turn.text == people[turn.user] for turn in taken)
    assert turns.take(7, 20) == taken[7:27]
    assert PromptSampler(PROMPTS, people, 1).take(0, 42) != taken
    assert [turn.user for turn in taken[:4]] != [turn.user for turn in taken[4:8]] or taken[:4] != taken[4:8]


@pytest.fixture(scope="module")
def trained(backbone_of: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(PPO's run, the reward model's) of two opposed people, by the command."""
    folder, backbone = tmp_path_factory.mktemp("ppo"), backbone_of("llama")
    reward = train_reward(folder, backbone, "linear", opposed_people(10, 0, people=2))
    (folder / "ppo.yaml").write_text(
        f"output_dir: {folder / 'ppo'}\nreward: {reward}\ndata:\n  path: {folder / 'log.jsonl'}\n  test_fraction: 0.2\n"
        f"backbone:\n  name: {backbone}\n  dtype: float32\n  max_length: 96\n"
        "ppo:\n  max_steps: 2\n  rollout_batch_size: 6\n  max_new_tokens: 5\n  num_scale_samples: 8\n"
        "optim:\n  batch_size: 6\n  micro_batch_size: 6\n"
    )
    main(["ppo", str(folder / "ppo.yaml"), "--optim.epochs", "1"])
    return folder / "ppo", reward


def test_a_run_shares_its_backbone_and_is_sampled_from(
    trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run, reward = trained
    info, metrics = (json.loads((run / name).read_text()) for name in ("run.json", "metrics.json"))
    assert metrics["shares_backbone"]
    assert metrics["steps"] == len(metrics["history"]) == 2
    assert info["config"]["optim"]["epochs"] == 1.0
    assert (run / "test.jsonl").is_file()
    checkpoint = load(run)
    assert checkpoint.settings.objective is not None
    assert checkpoint.settings.objective.method == "ppo"
    assert info["parameters"] == checkpoint.model.requires_grad_(True).trained_parameters() | {
        "shared": info["parameters"]["shared"]
    }
    assert [p.name for p in (run / "adapter").iterdir() if p.is_dir()] == []  # the value's is gone
    flags = ["--generator", str(run), "--user", "p0", "--prompt", "what of kings?", "-n", "2"]
    rerank_main([str(reward), *flags, "--sampling.max_new_tokens", "4"])
    assert "ranked for p0" in capsys.readouterr().out
    assert "Trained on rewards of its own responses" in (run / "README.md").read_text()
    with pytest.raises(CheckpointError, match=r"ppo.*reward"):
        Scorer.from_pretrained(run)


def test_its_own_reward_is_no_judge(
    trained: tuple[Path, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, reward = trained
    for name in ("ours", "theirs"):
        shutil.copytree(run, tmp_path / name)
        row = {"user_id": "p0", "prompt": "x?", "response": name}
        (tmp_path / name / "answers.jsonl").write_text(json.dumps(row))
    flags = [str(tmp_path / "ours"), str(tmp_path / "theirs" / "answers.jsonl"), "--output", str(tmp_path / "out")]
    twin = shutil.copytree(reward, tmp_path / "twin")
    write_jsonl(tmp_path / "elsewhere.jsonl", [row])
    elsewhere = str(tmp_path / "elsewhere.jsonl")
    for first, second, gold in [
        (flags[0], elsewhere, reward),
        (elsewhere, flags[1], reward),  # a file in a run is the run's
        (flags[0], elsewhere, reward / "uniform"),
        (flags[0], elsewhere, twin),
    ]:
        with pytest.raises(SystemExit):
            main(["judge", first, second, *flags[2:], "--gold", str(gold)])
        assert "--gold" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    settings = json.loads((twin / "config.json").read_text())
    (twin / "config.json").write_text(json.dumps(settings))  # as another run
    main(["judge", *flags, "--gold", str(twin)])
    assert "same data" in caplog.text


def test_a_person_is_forgotten(trained: tuple[Path, Path], tmp_path: Path) -> None:
    run = shutil.copytree(trained[0], tmp_path / "run")
    assert {row["user_id"] for row in lines(run / SCALE_FILE)} == {None, "p0", "p1"}
    forget_user(run, "p0")
    for path in run.rglob("*"):
        if path.is_file() and path.suffix in (".json", ".jsonl", ".md"):
            assert '"p0"' not in path.read_text(), path


def test_another_reward_does_not_go_on(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = opposed_people(10, 0, people=2)
    reward = train_reward(tmp_path, tiny, "soft", log)
    config = toy_config(tiny, tmp_path, reward=str(reward), ppo={"max_steps": 2})
    config.backbone.max_length = 96
    write_jsonl(tmp_path / "log.jsonl", log)
    publish = policy.ppo.train.checkpoints.save
    monkeypatch.setattr(policy.ppo.train.checkpoints, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train_ppo(config)
    monkeypatch.setattr(policy.ppo.train.checkpoints, "save", publish)
    settings = json.loads((reward / "config.json").read_text())
    (reward / "config.json").write_text(json.dumps(settings, indent=2))
    with pytest.raises(PrmError, match="is not what"):
        train_ppo(config)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"ppo": {"kl_coef": -1.0}}, "ppo.kl_coef"),
        ({"ppo": {"lam": 1.5}}, "ppo.lam"),
        ({"ppo": {"cliprange": 0.0}}, "ppo.cliprange"),
        ({"ppo": {"cliprange_value": 0.0}}, "ppo.cliprange_value"),
        ({"ppo": {"rollout_batch_size": 13}}, "multiple of optim.batch_size"),
        ({"ppo": {"num_generations": 4}}, "multiple of ppo.num_generations"),
        ({"ppo": {"max_new_tokens": 32}}, "nothing of backbone.max_length"),
        ({"ppo": {"max_new_tokens": 29}}, "14 prompts.* 3 tokens"),
        ({"optim": {"epochs": 1.5}}, "optim.epochs"),
        ({"optim": {"early_stopping_patience": 9}}, "optim.early_stopping_patience"),
        ({"lora": LoraSettings(lora_dropout=0.1)}, "lora.lora_dropout"),
        ({"users": UserConfig(text_dropout=0.1)}, "users.text_dropout"),
        ({"users": UserConfig("bayes")}, "users.kind"),
        ({"reward": "nowhere"}, "'reward' and a function"),
    ],
)
def test_settings_that_make_no_sense_are_named(toy: str, tmp_path: Path, changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(PrmError, match=fault):
        train_ppo(toy_config(toy, tmp_path, **changes), likes(len))
    with pytest.raises(PrmError, match="'reward'"):
        train_ppo(toy_config(toy, tmp_path))
    with pytest.raises(PrmError, match="trained"):
        train_ppo(toy_config(toy, tmp_path, reward=str(tmp_path)))
    assert not list(tmp_path.glob("run*"))


def test_what_is_no_number_ends_the_run(toy: str, tmp_path: Path) -> None:
    infinite = float("inf")
    with pytest.raises(PrmError, match="infinite"):
        train_ppo(toy_config(toy, tmp_path), lambda prompts, *_: [infinite] * len(prompts))
    calls: list[int] = []

    def later(prompts: Any, *_: Any) -> list[float]:
        calls.append(1)
        return [infinite if len(calls) > 1 else 0.0] * len(prompts)

    with pytest.raises(PrmError, match="infinite"):
        train_ppo(toy_config(toy, tmp_path), later)
    with pytest.raises(PrmError, match=r"\b1 numbers for [2-9]"):
        train_ppo(toy_config(toy, tmp_path), lambda *_: [0.0])
    assert not list(tmp_path.glob("run*"))
