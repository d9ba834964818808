"""What a run starts from: an existing reward model, or an earlier run that goes on."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import prm.cli
import prm.training.gradient_training
from prm.checkpoint.checkpoint import Checkpoint, load
from prm.config import (
    BackboneConfig,
    DataConfig,
    OptimConfig,
    RewardModelConfig,
    SearchConfig,
    TldrConfig,
    TrainConfig,
    UserConfig,
)
from prm.data.comparison import Comparison
from prm.errors import CheckpointError, PrmError
from prm.evaluation.evaluate import evaluate_run
from prm.io.tables import write_jsonl
from prm.scoring.forget_user import forget_user
from prm.scoring.scorer import Scorer
from prm.training.run import train
from prm.training.setup import announce_backbone, encode_pairs, new_checkpoint, with_settings_of_run
from prm.training.template_check import TALKS
from prm.users.index import UserIndex
from tests.conftest import build_config, build_tokenizer, save_random
from tests.planted import opposed_people

QUICK = SearchConfig(folds=2, l2=[1.0], user_l2=[1.0], poolings=["last"])
STEPS = OptimConfig(epochs=1.0, batch_size=4, micro_batch_size=4, eval_steps=5, early_stopping_patience=50)
TALK = [
    {"role": "user", "content": "what about the fox?"},
    {"role": "assistant", "content": "a lazy dog"},
    {"role": "user", "content": "and the king?"},
]


def test_who_is_read_without_their_text_depends_on_the_seed_alone(tiny: str, tmp_path: Path) -> None:
    log = [replace(c, user_text=f"I am {c.user_id}") for c in opposed_people(12, 0, people=2)]
    users = UserIndex.from_comparisons(log)
    encoder = new_checkpoint(config_of(tiny, tmp_path, log), users).encoder()
    first, again, other = (encode_pairs(encoder, users, log, 0.5, seed) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def save_reward_model(folder: Path, architecture: str, labels: int = 1, pad: int = 0) -> str:
    """A tiny random `AutoModelForSequenceClassification`, as others publish reward models."""
    config = build_config(architecture)
    config.num_labels, config.pad_token_id = labels, pad
    return save_random(folder, AutoModelForSequenceClassification, config, seed=3)


def config_of(backbone: str, folder: Path, log: list[Comparison], **changes: Any) -> TrainConfig:
    path = folder / "log.jsonl"
    write_jsonl(path, log)
    base = TrainConfig(
        output_dir=str(folder / "run"),
        data=DataConfig(path=str(path)),
        backbone=BackboneConfig(backbone, dtype="float32"),
        search=QUICK,
        optim=STEPS,
    )
    return replace(base, **changes)


def own_scorer(folder: str) -> Callable[[Any, str], float]:
    """What the reward model itself says of (prompt, answer), by its own classes and its own template."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def score(prompt: Any, response: str) -> float:
        turns = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
        turns = [*turns, {"role": "assistant", "content": response}]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            return float(model(ids).logits[0, 0])

    return score


def own_score(folder: str, prompt: Any, response: str) -> float:
    """The same of one answer."""
    return own_scorer(folder)(prompt, response)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt_neox"])
@pytest.mark.parametrize("form", ["linear_head", "soft_prompt"])
def test_a_reward_model_without_user_data_scores_as_it_did(tmp_path: Path, architecture: str, form: str) -> None:
    """Whoever asks; a soft prompt only for the model that has no user tokens, since those would be read along."""
    folder = save_reward_model(tmp_path / "rm", architecture)
    users = UserConfig() if form == "linear_head" else UserConfig("uniform", num_virtual_tokens=0)
    config = TrainConfig(
        train="frozen" if form == "linear_head" else "lora",
        backbone=BackboneConfig(folder, dtype="float32"),
        users=users,
        reward=RewardModelConfig(form),  # type: ignore[arg-type]
    )
    scorer = Scorer(new_checkpoint(config, UserIndex(["ann"])))
    for prompt in ("what about the fox?", TALK):
        answers = ["a lazy dog", "seven wizards mix potions for an old king", "no"]
        expected = torch.tensor([own_score(folder, prompt, answer) for answer in answers])
        for user in (None, "ann", "nobody"):
            torch.testing.assert_close(scorer.score(prompt, answers, user), expected, rtol=0, atol=1e-5)
        assert expected.std() > 0.1


def test_a_reward_model_that_pads_with_its_end_of_turn_pools_the_token_before(tmp_path: Path) -> None:
    """Its own class takes the last token that is not padding: with the template's closing mark as padding, the line
    end behind it; with the line end, the mark."""
    tokenizer: Any = build_tokenizer()
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
    assert len(newline) == 1
    for pad in (tokenizer.convert_tokens_to_ids("<|end|>"), newline[0]):
        folder = save_reward_model(tmp_path / str(pad), "llama", pad=pad)
        config = TrainConfig(backbone=BackboneConfig(folder, dtype="float32"))
        scorer = Scorer(new_checkpoint(config, UserIndex()))
        for answer in ("a lazy dog", "no"):
            expected = own_score(folder, "what about the fox?", answer)
            assert float(scorer.score("what about the fox?", [answer])[0]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("eos", ["<|end|>", None])
def test_a_tokenizer_without_padding_is_trained_with_and_read_alike_afterwards(tmp_path: Path, eos: str | None) -> None:
    """Its trainer pads; the run keeps tokenizer and settings as they were, or its texts would be read otherwise."""
    folder = Path(save_reward_model(tmp_path / "rm", "llama"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.bos_token = tokenizer.chat_template = None
    tokenizer.eos_token = eos
    (folder / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": None}))
    log = opposed_people(8, 0, people=2)
    run = train(config_of(str(folder), tmp_path, log, train="lora", reward=RewardModelConfig("linear_head")))
    assert Scorer.from_pretrained(run).score(log[0].prompt, [log[0].chosen]).isfinite().all()


WRITES = "{{ m['content'] }}"
CHANGES = {  # what a template makes of a message, and a kind of texts that its own pipeline then reads otherwise
    "as it is": (WRITES, None),
    "trimmed": (WRITES.replace(" }}", " | trim }}"), "a response with spaces at its ends"),
    "no line ends behind": (WRITES.replace("']", "'].rstrip('\\n')"), "a response with line ends at its ends"),
    "no empty lines": (WRITES.replace("']", "'].replace('\\n\\n', '\\n')"), "a response of two paragraphs"),
    "no thoughts": (WRITES.replace("']", "'].split('</think>')[-1]"), "a response in tags"),
    "something before": ("{% if loop.last and m['role'] == 'assistant' %}! {% endif %}" + WRITES, "a plain response"),
    "who spoke first": (WRITES + "{% if loop.length == 3 %}{{ messages[0]['role'] }}{% endif %}", "a system message"),
    "no system": ("{% if m['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + WRITES, None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_texts_that_its_own_pipeline_reads_otherwise_are_named(
    tmp_path: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Of every kind of text: named where the score is not the model's own, and only there."""
    folder, (writes, named) = save_reward_model(tmp_path / "rm", "llama"), CHANGES[change]
    template = tmp_path / "rm/chat_template.jinja"
    template.write_text(template.read_text().replace(WRITES, writes))
    checkpoint = new_checkpoint(TrainConfig(backbone=BackboneConfig(folder, dtype="float32")), UserIndex())
    announce_backbone(checkpoint)
    scorer, own = Scorer(checkpoint), own_scorer(folder)
    for name, (*prompt, answer) in TALKS.items():
        if change == "no system" and prompt[0].role == "system":
            continue
        found = float(scorer.score(prompt, [answer.content])[0])
        differs = abs(found - own([m._asdict() for m in prompt], answer.content)) > 1e-4
        assert (name in caplog.text) == differs, name
    assert (named or "") in caplog.text
    assert ("own pipeline" in caplog.text) == (named is not None)


def test_users_add_to_the_reward_model(tmp_path: Path) -> None:
    """Trained with penalties so strong that nothing moves, scores are its own; with weak ones people part."""
    folder = save_reward_model(tmp_path / "rm", "llama")
    log = opposed_people(16, 0, people=2)
    held = SearchConfig(folds=2, l2=[1e9], user_l2=[1e9])
    run = train(config_of(folder, tmp_path, log, search=held, output_dir=str(tmp_path / "held")))
    scorer = Scorer.from_pretrained(run)
    answers = [log[0].chosen, log[0].rejected]
    expected = torch.tensor([own_score(folder, log[0].prompt, answer) for answer in answers])
    for user in (None, *scorer.users):
        torch.testing.assert_close(scorer.score(log[0].prompt, answers, user), expected, rtol=0, atol=1e-4)
    scorer = Scorer.from_pretrained(train(config_of(folder, tmp_path, log)))
    first, second = scorer.score_users(log[0].prompt, answers, scorer.users).diff(dim=1).flatten().tolist()
    assert (first > 0) != (second > 0)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["base_head"] is True
    torch.testing.assert_close(  # the uniform opponent starts from the same head
        Scorer.from_pretrained(tmp_path / "held" / "uniform").score(log[0].prompt, answers), expected, rtol=0, atol=1e-4
    )


def test_a_reward_model_that_cannot_be_started_from_is_refused(tmp_path: Path) -> None:
    log = opposed_people(8, 0, people=2)
    two = save_reward_model(tmp_path / "two", "llama", labels=2)
    with pytest.raises(PrmError, match=r"\b2 (classes|labels|outputs)"):
        train(config_of(two, tmp_path, log))
    one = save_reward_model(tmp_path / "one", "llama")
    with pytest.raises(PrmError, match=r"search\.layers"):
        train(config_of(one, tmp_path, log, search=replace(QUICK, layers=[1])))
    with pytest.raises(PrmError, match=r"backbone\.layers"):
        train(replace(config_of(one, tmp_path, log), backbone=BackboneConfig(one, layers=1)))


@pytest.mark.parametrize("form", ["linear_head", "soft_prompt"])
def test_full_fine_tuning_moves_the_backbone_and_is_saved_with_the_run(tiny: str, tmp_path: Path, form: str) -> None:
    reward = RewardModelConfig(form)  # type: ignore[arg-type]
    config = config_of(tiny, tmp_path, opposed_people(8, 0, people=2), train="full", reward=reward)
    config.optim = replace(STEPS, backbone_lr=1e-3)
    run = train(config)
    before, after = (load_words(folder) for folder in (tiny, run / "backbone"))
    assert before.keys() == after.keys()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(moved) > 0.9 * len(before)
    with pytest.raises(CheckpointError, match="weights"):
        Scorer.from_pretrained(run, backbone=tiny)


def test_full_fine_tuning_scores_as_at_the_end_of_training(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model in memory at the end and the one that is read back are one and the same."""
    kept: list[Checkpoint[Any]] = []
    from prm.checkpoint import checkpoint as checkpoints

    save = checkpoints.save
    monkeypatch.setattr(checkpoints, "save", lambda c, *args: (kept.append(c), save(c, *args)))
    reward = RewardModelConfig("soft_prompt", "prefix")
    config = config_of(tiny, tmp_path, opposed_people(8, 0, people=2), train="full", reward=reward)
    config.backbone.layers = 1
    run = train(config)
    asked = ("what about the fox?", ["a lazy dog", "no"])
    for user in (None, *kept[0].users.ids):
        assert torch.equal(Scorer(kept[0]).score(*asked, user), Scorer.from_pretrained(run).score(*asked, user))


def load_words(folder: str | Path) -> dict[str, torch.Tensor]:
    from transformers import AutoModel

    return dict(AutoModel.from_pretrained(folder, dtype=torch.float32).state_dict())


KINDS = {
    "individual": UserConfig(),
    "separate": UserConfig(generic=False),
    "cluster": UserConfig("cluster", clusters=2),
}
ROW_TABLES = ("offsets", "embeddings", "weights")


def likes_short(user: str, n: int, seed: int) -> list[Comparison]:
    """Judgements like those of the planted person who takes the one side."""
    rows = [c for c in opposed_people(n, seed, people=2) if c.user_id == "p0"]
    return [replace(c, user_id=user) for c in rows]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["linear_head", "soft_prompt"])
def test_going_on_from_a_run_moves_nobody_else_by_a_bit(tiny: str, tmp_path: Path, kind: str, form: str) -> None:
    """p0 judges again, zoe is new; p1, strangers and the words for everyone stay, and rows keep their place."""
    users = KINDS[kind] if form == "linear_head" else replace(KINDS[kind], num_virtual_tokens=2)
    reward = RewardModelConfig(form)  # type: ignore[arg-type]
    log = opposed_people(16, 0, people=2)
    alpha = 1.0 if kind == "separate" else 0.5  # with 1, strangers get the mean of the trained: once, not again
    first = train(config_of(tiny, tmp_path, log, users=users, reward=reward, alpha=alpha))
    new = tmp_path / "new.jsonl"
    write_jsonl(new, [*likes_short("zoe", 16, 5), *likes_short("p0", 16, 6)])
    config = TrainConfig(
        output_dir=str(tmp_path / "next"), start_from=str(first), data=DataConfig(path=str(new)), optim=STEPS
    )
    before, after = Scorer.from_pretrained(first), Scorer.from_pretrained(train(config))
    assert before.users == ["p0", "p1"]
    assert after.users == ["p0", "p1", "zoe"]
    asked = ("what about the fox?", ["a lazy dog", "seven wizards mix potions"])
    for user in ("p1", None, "stranger"):
        assert torch.equal(before.score(*asked, user), after.score(*asked, user)), user
    assert not torch.equal(before.score(*asked, "p0"), after.score(*asked, "p0"))
    assert not torch.equal(after.score(*asked, "zoe"), after.score(*asked))
    names = [name for name, _ in before.model.user_model.named_parameters()]
    old, grown = (dict(s.model.head_state()) for s in (before, after))
    for name, tensor in old.items():
        if name.removeprefix("user_model.") in names and len(tensor) == 3 and tensor.shape != grown[name].shape:
            assert torch.equal(tensor[[0, 2]], grown[name][[0, 2]]), name
        elif tensor.shape == grown[name].shape:
            assert torch.equal(tensor, grown[name]), name
    counts = [json.loads((run / "run.json").read_text())["parameters"] for run in (first, tmp_path / "next")]
    assert counts[0]["shared"] == counts[1]["shared"] == (0 if form == "linear_head" else 32)
    one = sum(t[0].numel() for name, t in grown.items() if name.removeprefix("user_model.") in ROW_TABLES)
    assert counts[1]["users"] == counts[0]["users"] + one


def test_a_new_person_is_learnt_from_their_judgements_alone(tiny: str, tmp_path: Path) -> None:
    """zoe agrees with p0: after going on she is told from p1 (who would be right on 0.1) on prompts nobody judged."""
    log = opposed_people(80, 0, people=2)
    weak = SearchConfig(folds=2, l2=[0.1], user_l2=[0.1], poolings=["mean"])
    first = train(config_of(tiny, tmp_path, log, search=weak))
    write_jsonl(tmp_path / "new.jsonl", likes_short("zoe", 80, 5))
    config = TrainConfig(
        output_dir=str(tmp_path / "next"), start_from=str(first), data=DataConfig(path=str(tmp_path / "new.jsonl"))
    )
    scorer = Scorer.from_pretrained(train(config))
    test = likes_short("zoe", 120, 9)
    right = [scorer.prefer(c.prompt, c.chosen, c.rejected, "zoe") > 0.5 for c in test]
    assert sum(right) / len(right) > 0.68  # as good as p0, who judged as much, on these tiny features
    metrics = json.loads((tmp_path / "next" / "metrics.json").read_text())
    assert metrics["continued"]["people"] == 1
    run = json.loads((tmp_path / "next" / "run.json").read_text())
    assert run["config"]["start_from"] == str(first)
    assert [scorer.judgements(user) for user in ("p0", "p1", "zoe")] == [80, 80, 80]
    signs = json.loads((tmp_path / "next" / "controls.json").read_text())["length_sign"]
    assert {"p0", "p1", "zoe"} <= signs.keys()
    assert (tmp_path / "next" / "uniform" / "config.json").is_file()


def test_going_on_with_adapters_teaches_everything(tiny: str, tmp_path: Path) -> None:
    log = opposed_people(8, 0, people=2)
    reward = RewardModelConfig("soft_prompt")
    first = train(config_of(tiny, tmp_path, log, train="lora", reward=reward, users=UserConfig(num_virtual_tokens=2)))
    config = config_of(tiny, tmp_path, log, start_from=str(first), output_dir=str(tmp_path / "next"))
    config = replace(config, backbone=BackboneConfig())
    second = train(config)
    one, two = ((run / "adapter" / "adapter_model.safetensors").read_bytes() for run in (first, second))
    assert one != two
    asked = ("what about the fox?", ["a lazy dog", "no"])
    before, after = Scorer.from_pretrained(first), Scorer.from_pretrained(second)
    for user in (None, "p0", "p1"):
        assert not torch.equal(before.score(*asked, user), after.score(*asked, user)), user


def test_going_on_refuses_other_settings_and_models_with_nobody_in_them(tiny: str, tmp_path: Path) -> None:
    log = opposed_people(8, 0, people=2)
    first = train(config_of(tiny, tmp_path, log))
    other = config_of(tiny, tmp_path, log, start_from=str(first), output_dir=str(tmp_path / "next"))
    with pytest.raises(PrmError, match=r"users\.kind.*'cluster'.*'individual'"):
        train(replace(other, users=UserConfig("cluster")))
    with pytest.raises(PrmError, match="none: no such folder"):
        train(replace(other, start_from=str(tmp_path / "none")))
    with pytest.raises(PrmError, match="exists"):
        train(replace(other, output_dir=str(first)))
    uniform = config_of(tiny, tmp_path, log, users=UserConfig("uniform"), output_dir=str(tmp_path / "uniform"))
    train(uniform)
    with pytest.raises(PrmError, match="uniform is uniform"):
        train(replace(other, start_from=str(tmp_path / "uniform")))


def test_going_on_by_command_may_replace_the_run_itself(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    first = train(config_of(tiny, tmp_path, opposed_people(8, 0, people=2)))
    write_jsonl("new.jsonl", likes_short("zoe", 8, 5))
    flags = ["--data.path", "new.jsonl", "--output_dir", str(first), "--overwrite", "true"]
    prm.cli.main(["train", f"--from={first}", *flags])
    assert load(first).users.ids == ["p0", "p1", "zoe"]
    rows = load(first).model.user_model.per_row()[0]
    prm.cli.main(["train", "--from", str(first), *flags])
    checkpoint = load(first)
    assert checkpoint.users.ids == ["p0", "p1", "zoe"]
    again = checkpoint.model.user_model.per_row()[0]
    assert torch.equal(rows[:3], again[:3])
    assert not torch.equal(rows[3], again[3])


def test_settings_are_taken_over_unless_given_anew(tiny: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The model's stay (with what the search chose), the optimiser's and the log's may change; all of it is logged."""
    log = opposed_people(8, 0, people=2)
    optim = replace(STEPS, user_lr=0.5, epochs=2.0)
    first = config_of(tiny, tmp_path, log, alpha=0.8, users=UserConfig("cluster", clusters=3), optim=optim)
    first.search = replace(QUICK, poolings=["mean"], layers=[1])
    first.data.ties = "drop"
    train(first)
    given = TrainConfig(start_from=str(tmp_path / "run"), optim=OptimConfig(epochs=3.0))
    with caplog.at_level("INFO"):
        found = with_settings_of_run(given)
    assert (found.alpha, found.users.kind, found.users.clusters) == (0.8, "cluster", 3)
    assert (found.backbone.layers, found.reward.pooling) == (1, "mean")
    assert (found.optim.epochs, found.optim.user_lr) == (3.0, 0.5)
    assert (found.data.ties, found.data.path) == ("drop", "")
    assert "users.kind 'cluster'" in caplog.text


def test_the_settings_of_a_source_go_on_and_runs_from_before_they_existed_too(tiny: str, tmp_path: Path) -> None:
    folder = tmp_path / "tldr"
    folder.mkdir()
    rows = [{"prompt": f"post {i}", "response_model": "a b", "response_reference": "c"} for i in range(6)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = DataConfig(path=str(folder), source="tldr_length", tldr=TldrConfig(num_users=3))
    run = train(config_of(tiny, tmp_path, [], data=data))
    found = with_settings_of_run(TrainConfig(start_from=str(run), data=DataConfig(path="new")))
    assert (found.data.source, found.data.tldr) == ("tldr_length", TldrConfig(num_users=3))
    stored = json.loads((run / "run.json").read_text())
    del stored["config"]["data"]["tldr"]
    (run / "run.json").write_text(json.dumps(stored))
    found = with_settings_of_run(TrainConfig(start_from=str(run), data=DataConfig(path="new")))
    assert (found.data.source, found.data.tldr) == ("tldr_length", TldrConfig())


def test_a_run_without_its_files_is_refused_by_name(tiny: str, tmp_path: Path) -> None:
    log = opposed_people(8, 0, people=2)
    first = train(config_of(tiny, tmp_path, log))
    other = config_of(tiny, tmp_path, log, start_from=str(first), output_dir=str(tmp_path / "next"))
    (first / "metrics.json").rename(first / "elsewhere.json")
    with pytest.raises(PrmError, match=r"metrics\.json"):
        train(other)
    (first / "run.json").unlink()
    with pytest.raises(PrmError, match=r"run\.json"):
        train(other)
    with pytest.raises(PrmError, match="uniform"):
        train(replace(other, start_from=str(first / "uniform")))


def test_a_run_that_goes_on_is_not_taken_up_from_another_start(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """p1 is forgotten while a run that started from theirs lies killed: their numbers must not come back."""
    log = opposed_people(8, 0, people=2)
    config = config_of(
        tiny, tmp_path, log, users=UserConfig(num_virtual_tokens=2), reward=RewardModelConfig("soft_prompt")
    )
    first = train(config)
    write_jsonl(tmp_path / "new.jsonl", likes_short("zoe", 8, 5))
    going_on = TrainConfig(
        output_dir=str(tmp_path / "next"), start_from=str(first), data=DataConfig(path=str(tmp_path / "new.jsonl"))
    )

    def fail(*args: Any) -> None:
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(prm.training.gradient_training, "build_reward_trainer", fail)
        with pytest.raises(InterruptedError):
            train(going_on)
    forget_user(first, "p1")
    with pytest.raises(PrmError, match="unfinished"):
        train(going_on)


def test_an_unfinished_run_names_the_settings_that_differ(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tiny, tmp_path, opposed_people(8, 0, people=2), train="lora")

    def fail(*args: Any) -> None:
        raise InterruptedError

    monkeypatch.setattr(prm.training.gradient_training, "build_reward_trainer", fail)
    with pytest.raises(InterruptedError):
        train(config)
    other = replace(config, alpha=0.25, optim=replace(config.optim, user_lr=0.02))
    with pytest.raises(PrmError, match=r"\(alpha, optim\.user_lr\)"):
        train(other)


def test_a_run_replaced_by_itself_is_put_back_after_a_kill_between_two_renames(tiny: str, tmp_path: Path) -> None:
    first = train(config_of(tiny, tmp_path, opposed_people(8, 0, people=2)))
    write_jsonl(tmp_path / "new.jsonl", likes_short("zoe", 8, 5))
    first.rename(first.with_name(".run.old"))
    data = DataConfig(path=str(tmp_path / "new.jsonl"))
    train(TrainConfig(output_dir=str(first), start_from=str(first), overwrite=True, data=data, search=QUICK))
    assert load(first).users.ids == ["p0", "p1", "zoe"]


def test_the_uniform_opponent_of_a_run_that_goes_on_is_called_old(tiny: str, tmp_path: Path) -> None:
    first = train(config_of(tiny, tmp_path, opposed_people(8, 0, people=2)))
    write_jsonl(tmp_path / "new.jsonl", likes_short("zoe", 8, 5))
    data = DataConfig(path=str(tmp_path / "new.jsonl"))
    second = train(TrainConfig(output_dir=str(tmp_path / "next"), start_from=str(first), data=data))
    test = opposed_people(4, 3, people=2)
    assert "was not trained on later" in evaluate_run(second, test).note
    assert evaluate_run(first, test).note == ""
    assert (
        evaluate_run(second, test, against=first).note
        == f"not counted as training data: the comparisons that {first} was trained on"
    )
