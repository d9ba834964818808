"""`PersonalizedRewardTrainer` as people who know TRL use it: its data and losses, runs that load, refusals."""

import json
import logging
import re
import shutil
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)
from trl import RewardConfig, RewardTrainer

from prm import (
    Comparison,
    PersonalizedRewardConfig,
    PersonalizedRewardModel,
    PersonalizedRewardTrainer,
    Scorer,
    train,
)
from prm.cli import main
from prm.config import DataConfig, OptimConfig, TrainConfig
from prm.data.comparison import Message
from prm.data.sources.in_memory import rows_in_memory
from prm.errors import DataError, PrmError
from prm.evaluation.evaluate import evaluate_run
from prm.evaluation.overlap import how_to_hold_out
from prm.io import progress
from prm.training.encoded_pairs import collate
from prm.training.prepare_log import split_data
from tests.conftest import build_config, save_random
from tests.planted import opposed_people

LOG = opposed_people(6, 0, people=2)
SOFT = {"form": "soft_prompt"}
PROMPT, PAIR = "what of the fox?", ["the king mixes", "seven lazy dogs"]


def conversation(c: Comparison) -> dict[str, Any]:
    """A row as TRL's data sets have it."""
    return {
        "prompt": [{"role": "user", "content": c.prompt}],
        "chosen": [{"role": "assistant", "content": c.chosen}],
        "rejected": [{"role": "assistant", "content": c.rejected}],
        "user_id": c.user_id,
    }


ROWS = [conversation(c) for c in LOG]


def arguments(folder: Path, **changes: Any) -> PersonalizedRewardConfig:
    common: dict[str, Any] = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "dtype": "float32",
        "logging_steps": 1,
        "max_length": 120,
        "seed": 0,
    }
    return PersonalizedRewardConfig(str(folder), **common | changes)


def scores(scorer: Scorer) -> torch.Tensor:
    return scorer.score_users(PROMPT, PAIR, ["p0", "p1", None])


def trained_on(scorer: Scorer, log: list[Comparison]) -> int:
    """How many of the comparisons the scorer's model was trained on."""
    assert scorer.checkpoint.users.trained_on is not None
    return scorer.checkpoint.users.trained_on.overlap(log)["own"]


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def rows_of(trainer: Any) -> Any:
    """Its encoded training data."""
    return trainer.train_dataset


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    config = build_config("llama")
    config.num_labels = 1
    return save_random(tmp_path_factory.mktemp("classifier"), AutoModelForSequenceClassification, config, seed=3)


def test_a_data_set_of_trls_with_users_trains_in_a_few_lines(tiny: str, tmp_path: Path) -> None:
    """Its row form is one that TRL's own trainer takes."""
    dataset = Dataset.from_list(ROWS)
    args = PersonalizedRewardConfig(str(tmp_path / "out"), num_train_epochs=8, dtype="float32", user_lr=0.1)
    trainer = PersonalizedRewardTrainer(tiny, args, train_dataset=dataset, eval_dataset=dataset)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    trainer.save_model(str(tmp_path / "run"))
    scorer = Scorer.from_pretrained(tmp_path / "run")
    assert after["eval_nll"] < before["eval_nll"] - 0.1
    assert after["eval_accuracy"] > 0.9
    assert scorer.users == ["p0", "p1"]
    assert {scorer.prefer(c.prompt, c.chosen, c.rejected, user=c.user_id) > 0.5 for c in LOG[:4]} == {True}
    assert not list(tmp_path.glob("out/*.bin"))


@pytest.mark.parametrize("prefix", ["", "eval_"])
def test_metrics_of_the_caller_are_beside_ours(tiny: str, tmp_path: Path, prefix: str) -> None:
    trainer = PersonalizedRewardTrainer(
        tiny,
        arguments(tmp_path, train="frozen"),
        train_dataset=ROWS,
        eval_dataset=ROWS[:4],
        compute_metrics=lambda found: {f"{prefix}pairs": float(len(found.predictions[0])), f"{prefix}accuracy": 7.0},
    )
    found = trainer.evaluate()
    assert (found["eval_pairs"], found["eval_accuracy"]) == (4.0, 7.0)
    assert 0.6 < found["eval_nll"] < 0.8
    assert (trainer.predict(ROWS[:4]).metrics or {})["test_nll"] == found["eval_nll"]


def test_losses_are_trls_step_by_step_without_users(reward_model: str, tmp_path: Path) -> None:
    """T_u = 0 is the vanilla reward model: same start, same optimiser, same losses; and it evaluates the same."""
    dataset = Dataset.from_list(ROWS)
    common: dict[str, Any] = {
        "per_device_train_batch_size": len(LOG),
        "num_train_epochs": 4,
        "logging_steps": 1,
        "max_grad_norm": 0.0,
    }

    def optimizers(model: torch.nn.Module) -> Any:
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        return optimizer, LambdaLR(optimizer, lambda step: 1.0)

    classifier = AutoModelForSequenceClassification.from_pretrained(reward_model, trust_remote_code=False)
    plain = RewardConfig(str(tmp_path / "trl"), bf16=False, gradient_checkpointing=False, **common)
    tokenizer = AutoTokenizer.from_pretrained(reward_model, trust_remote_code=False)
    theirs = RewardTrainer(
        classifier, plain, train_dataset=dataset, processing_class=tokenizer, optimizers=optimizers(classifier)
    )
    theirs.train()
    users, settings = {"kind": "uniform", "num_virtual_tokens": 0}, {"train": "full", "reward": SOFT}
    model = PersonalizedRewardModel.from_backbone(reward_model, users=users, **settings)  # type: ignore[arg-type]
    args = PersonalizedRewardConfig(str(tmp_path / "ours"), users=users, **common, gradient_accumulation_steps=1)
    ours = PersonalizedRewardTrainer(
        model, args, train_dataset=dataset, processing_class=tokenizer, optimizers=optimizers(model)
    )
    ours.train()
    assert len(losses(ours)) == 4
    assert losses(ours)[0] - losses(ours)[-1] > 0.02
    assert losses(ours) == pytest.approx(losses(theirs), rel=1e-4)
    accuracies = [[e["accuracy"] for e in t.state.log_history if "accuracy" in e] for t in (ours, theirs)]
    assert accuracies[0] == pytest.approx(accuracies[1])


class FirstStep(TrainerCallback):
    """Keeps loss and gradients of the first step."""

    def __init__(self) -> None:
        self.loss = 0.0
        self.gradients: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if not self.gradients:
            self.gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.global_step == 1 and "loss" in logs:
            self.loss = logs["loss"]


@pytest.mark.parametrize(
    ("how", "reward", "users"),
    [
        ("lora", SOFT, {"num_virtual_tokens": 2}),
        ("full", SOFT, {"kind": "cluster", "clusters": 3}),
        ("lora", {"pooling": "mean"}, {"generic": False}),
    ],
)
def test_the_first_step_is_that_of_prm_train(tiny: str, tmp_path: Path, how: Any, reward: Any, users: Any) -> None:
    """Same data, same settings: same loss and same gradient of every parameter."""
    optim = OptimConfig(epochs=1.0, batch_size=8, micro_batch_size=4, eval_steps=1, max_grad_norm=0.05)
    command, seen = FirstStep(), FirstStep()
    settings: dict[str, Any] = {"reward": reward, "users": users | {"text_dropout": 0.3}, "train": how, "alpha": 0.3}
    data = DataConfig(on_artefact="warn", validation_fraction=0.3)
    log = [replace(c, weight=0.5 + i % 3, p_chosen=1.0 - 0.1 * (i % 2), user_text="fox") for i, c in enumerate(LOG)]
    train(
        log,
        output_dir=str(tmp_path / "run"),
        backbone={"name": tiny, "dtype": "float32", "max_length": 120},
        optim=optim,
        data=data,
        trainer={"callbacks": [command], "logging_steps": 1},
        **settings,
    )
    config = TrainConfig(train=how, data=replace(data, path="x"))
    part = split_data(config, log=rows_in_memory(log)[1]).train
    args = arguments(
        tmp_path / "trainer", num_train_epochs=1, gradient_accumulation_steps=2, max_grad_norm=0.05, **settings
    )
    trainer = PersonalizedRewardTrainer(tiny, args, train_dataset=part, callbacks=[seen])
    trainer.train()
    assert command.gradients.keys() == seen.gradients.keys()
    assert sum(float(gradient.abs().sum()) for gradient in seen.gradients.values()) > 0
    assert command.loss == seen.loss > 0.1
    for name, gradient in command.gradients.items():
        assert torch.equal(gradient, seen.gradients[name]), name


def standard(c: Comparison) -> dict[str, Any]:
    return {"prompt": c.prompt, "chosen": c.chosen, "rejected": c.rejected, "user_id": c.user_id}


def implicit(c: Comparison) -> dict[str, Any]:
    row = conversation(c)
    return {name: row["prompt"] + row[name] for name in ("chosen", "rejected")} | {"user_id": c.user_id}


def implicit_text(c: Comparison) -> dict[str, Any]:
    return {name: f"{c.prompt} {getattr(c, name)}" for name in ("chosen", "rejected")} | {"user_id": c.user_id}


FORMS: dict[str, Any] = {
    "standard": lambda: Dataset.from_list([standard(c) for c in LOG]),
    "conversational": lambda: Dataset.from_list(ROWS),
    "implicit prompt": lambda: Dataset.from_list([implicit(c) for c in LOG]),
    "implicit prompt, text": lambda: Dataset.from_list([implicit_text(c) for c in LOG]),
    "dicts": lambda: [standard(c) for c in LOG],
    "another name": lambda: Dataset.from_list(ROWS).rename_column("user_id", "annotator"),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_trl_are_read_alike(tiny: str, tmp_path: Path, form: str) -> None:
    trainer = PersonalizedRewardTrainer(tiny, arguments(tmp_path, train="frozen"), train_dataset=FORMS[form]())
    expected = PersonalizedRewardTrainer(tiny, arguments(tmp_path, train="frozen"), train_dataset=LOG)
    ours, theirs = (collate(list(rows_of(t))) for t in (trainer, expected))
    if form == "implicit prompt, text":  # the space before the response is the prompt's
        assert ours["response_mask"].sum() == theirs["response_mask"].sum()
        return
    for name in theirs:
        assert torch.equal(ours[name], theirs[name]), name


def test_weights_labels_and_texts_are_read(tiny: str, tmp_path: Path) -> None:
    rows = [row | {"weight": 1.0 + i, "p_chosen": 0.9, "user_text": "the king"} for i, row in enumerate(ROWS)]
    args = arguments(tmp_path, train="frozen")
    trainer = PersonalizedRewardTrainer(tiny, args, train_dataset=Dataset.from_list(rows))
    plain = PersonalizedRewardTrainer(tiny, arguments(tmp_path, train="frozen"), train_dataset=Dataset.from_list(ROWS))
    assert rows_of(trainer)["weight"][:] == [1.0 + i for i in range(len(LOG))]
    assert set(rows_of(trainer)["p_chosen"]) == {0.9}
    assert len(rows_of(trainer)[0]["chosen_ids"]) > len(rows_of(plain)[0]["chosen_ids"])


@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize(
    ("how", "reward"), [("lora", SOFT), ("full", SOFT), ("frozen", {"form": "linear_head"})], ids=str
)
def test_what_is_saved_scores_the_same_and_goes_through_the_commands(
    tiny: str, tmp_path: Path, how: Any, reward: Any
) -> None:
    args = arguments(tmp_path, train=how, reward=reward, num_train_epochs=1)
    trainer = PersonalizedRewardTrainer(tiny, args, train_dataset=ROWS)
    trainer.train()
    trainer.save_model(str(tmp_path / "run"))
    in_memory, scorer = Scorer(trainer.personalized), Scorer.from_pretrained(tmp_path / "run", device="cpu")
    assert torch.equal(scores(in_memory), scores(scorer))
    assert len(scores(scorer).unique()) > 3
    assert not any(p.name.endswith((".bin", ".pt")) for p in (tmp_path / "run").rglob("*"))
    result = evaluate_run(tmp_path / "run", LOG)
    assert result.parameters is not None
    assert result.learnt_from == {"comparisons": 12, "prompts": 6, "people": 2}
    assert result.overlap == {"own": 12, "others": 0}
    assert "'train_dataset'" in how_to_hold_out(tmp_path / "run")
    if how == "frozen":
        scorer.fit_user(
            "zoe", [replace(c, user_id="zoe") for c in LOG[:4]]
        )  # the run has no search, whose penalty is used
        assert scorer.knows("zoe")
        return
    further = train(
        [replace(c, user_id="new") for c in LOG],
        start_from=str(tmp_path / "run"),
        output_dir=str(tmp_path / "further"),
        data={"on_artefact": "warn", "validation_fraction": 0.3},
        optim={"epochs": 1.0},
    )
    assert further.scorer().knows("new")


def test_a_model_is_trained_further(tiny: str, tmp_path: Path) -> None:
    """One from a folder, with users of its own; on a frozen backbone only the new data's users move."""
    args = arguments(tmp_path / "a", train="frozen", reward=SOFT)
    first = PersonalizedRewardTrainer(tiny, args, train_dataset=ROWS)
    first.train()
    first.save_model(str(tmp_path / "run"))
    model = PersonalizedRewardModel.from_pretrained(tmp_path / "run")
    before = scores(Scorer(model))
    rows = [row | {"user_id": "zoe"} for row in ROWS]
    second = PersonalizedRewardTrainer(model, arguments(tmp_path / "b"), train_dataset=rows)
    second.train()
    scorer = Scorer(second.personalized)
    assert trained_on(scorer, [*LOG, *(replace(c, user_id="zoe") for c in LOG)]) == 24
    assert torch.equal(scores(scorer), before)
    assert scorer.users == ["p0", "p1", "zoe"]
    assert not torch.equal(scorer.score(PROMPT, PAIR, user="zoe"), scorer.score(PROMPT, PAIR))
    with pytest.raises(PrmError, match="'train'"):
        PersonalizedRewardTrainer(str(tmp_path / "run"), arguments(tmp_path / "c", train="full"), train_dataset=rows)


class Stops(TrainerCallback):
    """Ctrl-C after so many steps, once."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        if state.global_step == self.step:
            self.step = -1
            raise KeyboardInterrupt


def test_training_resumes_to_the_bit(tiny: str, tmp_path: Path) -> None:
    def trainer(rows: list[dict[str, Any]] = ROWS, stops: int = -1) -> Any:
        args = arguments(tmp_path / "out", save_strategy="steps", save_steps=2, reward=SOFT)
        return PersonalizedRewardTrainer(tiny, args, train_dataset=rows, callbacks=[Stops(stops)])

    stopped, named = trainer(stops=5), f"resume_from_checkpoint='{tmp_path}/out/checkpoint-4'"
    with pytest.raises(KeyboardInterrupt, match=re.escape(named)) as interrupt:
        stopped.train()
    assert is_alone(interrupt.value)
    stopped.train(resume_from_checkpoint=f"{tmp_path}/out/checkpoint-4")
    whole = trainer()
    whole.train()
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(stopped).items())
    for step in (4, 6):  # what was killed: the last checkpoint is damaged, the one before is gone
        target = tmp_path / f"out/checkpoint-{step}/model.safetensors"
        target.write_bytes(target.read_bytes()[:-1] + b"x")
    resumed = trainer()
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
    for name, value in weights(resumed).items():
        assert torch.equal(value, expected[name]), name
    with pytest.raises(PrmError, match="offsets"):
        trainer([*ROWS, ROWS[0] | {"user_id": "zoe"}]).train(resume_from_checkpoint=str(tmp_path / "out/checkpoint-2"))
    early = PersonalizedRewardTrainer(tiny, arguments(tmp_path / "none"), train_dataset=ROWS, callbacks=[Stops(1)])
    with pytest.raises(PrmError, match="no checkpoint"):
        early.train(True)
    with pytest.raises(KeyboardInterrupt, match="no checkpoint"):
        early.train()


def test_saving_keeps_checkpoints_and_replaces_an_older_run(tiny: str, tmp_path: Path) -> None:
    args = arguments(tmp_path / "out", num_train_epochs=1, save_strategy="steps", save_steps=3)
    trainer = PersonalizedRewardTrainer(tiny, args, train_dataset=ROWS)
    trainer.train()
    (tmp_path / "out/test.jsonl").write_text("{}\n")
    (tmp_path / "out/mine.txt").write_text("stays")
    trainer.save_model()
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"checkpoint-3", "mine.txt", "config.json", "adapter"} <= names
    assert "test.jsonl" not in names


@pytest.mark.parametrize("chooses", [False, True])
def test_what_training_is_evaluated_on_is_held_out_unless_it_chooses(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], chooses: bool
) -> None:
    """`prm evaluate RUN` reads it; a part that chose the checkpoint is refused there, and the card says what it did."""
    best = {"load_best_model_at_end": True, "metric_for_best_model": "a_nll", "greater_is_better": False}
    evaluating = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "max_steps": 3, "train": "frozen"}
    args = arguments(tmp_path / "out", **evaluating, **(best if chooses else {}))
    parts = {"a": ROWS[8:10], "b": ROWS[10:]}
    trainer = PersonalizedRewardTrainer(tiny, args, train_dataset=ROWS[:8], eval_dataset=parts)
    trainer.train()
    Scorer(trainer.personalized).forget_user("p1")
    trainer.save_model()
    run = tmp_path / "out"
    counts = json.loads((run / "run.json").read_text())["data"]
    assert (counts["validation_comparisons"], counts["test_comparisons"]) == ((4, 0) if chooses else (0, 4))
    assert ("chose the checkpoint" in (run / "README.md").read_text()) is chooses
    assert "p1" not in (run / "controls.json").read_text()
    if chooses:
        with pytest.raises(SystemExit):
            main(["evaluate", str(run)])
        assert "chose the checkpoint" in capsys.readouterr().err
        return
    assert {json.loads(line)["user_id"] for line in (run / "test.jsonl").read_text().splitlines()} == {"p0"}
    capsys.readouterr()  # the trainer's own log
    main(["evaluate", str(run), "--json"])
    assert json.loads(capsys.readouterr().out)["comparisons"] == 2


def test_peft_config_is_lora_of_ours(tiny: str, tmp_path: Path) -> None:
    """A configuration for sequence classification, as TRL's examples have it, makes the same adapters."""
    peft = LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules="all-linear", modules_to_save=["score"])
    args = arguments(tmp_path / "a", reward=SOFT)
    theirs = PersonalizedRewardTrainer(tiny, args, train_dataset=ROWS, peft_config=peft)
    args = arguments(tmp_path / "b", reward=SOFT, lora={"r": 4, "lora_alpha": 8})
    ours = PersonalizedRewardTrainer(tiny, args, train_dataset=ROWS)
    assert weights(ours).keys() == weights(theirs).keys()
    for trainer in (ours, theirs):
        trainer.train()
        trainer.save_model(str(tmp_path / str(id(trainer))))
    for name, value in weights(ours).items():
        assert torch.equal(value, weights(theirs)[name]), name
    assert torch.equal(*(scores(Scorer.from_pretrained(tmp_path / str(id(t)))) for t in (ours, theirs)))


def test_training_does_not_give_a_reward_model_a_padding_token(tmp_path: Path) -> None:
    """Trainers need one, and write it into the config; the model would then read the end of texts differently."""
    config = build_config("llama")
    config.num_labels, config.pad_token_id = 1, None
    folder = save_random(tmp_path / "model", AutoModelForSequenceClassification, config)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    trainer = PersonalizedRewardTrainer(folder, arguments(tmp_path / "out", train="frozen"), train_dataset=ROWS)
    trainer.train()
    assert trainer.personalized.model.config.pad_token_id is None
    trainer.save_model()
    assert torch.equal(scores(Scorer(trainer.personalized)), scores(Scorer.from_pretrained(tmp_path / "out")))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"alpha": 2.0}, "alpha"),
        ({"users": {"kind": "indvidual"}}, r"users\.kind"),
        ({"users": {"knd": "uniform"}}, r"users\.knd"),
        ({"lora": {"rank": 3}}, r"lora\.rank"),
        ({"bf16": True}, "bf16"),
        ({"weight_decay": 0.1}, "weight_decay"),
        ({"center_rewards_coefficient": 0.01}, "center_rewards_coefficient"),
        ({"model_init_kwargs": {"dtype": "bfloat16"}}, "model_init_kwargs"),
        ({"hub_strategy": "every_save"}, "hub_strategy"),
        ({"user_lr": -1.0}, "argument 'user_lr'"),
        ({"data": {"colums": {}}}, r"'data\.colums' is not known; did you mean 'data\.columns'"),
    ],
)
def test_wrong_arguments_are_refused_by_name(tmp_path: Path, changes: Any, named: str) -> None:
    with pytest.raises(PrmError, match=named):
        arguments(tmp_path, **changes)


def test_a_misspelt_argument_is_refused_with_the_one_that_was_meant(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"PersonalizedRewardConfig.*'learning_rat'.*'learning_rate'"):
        arguments(tmp_path, learning_rat=1.0)
    with pytest.raises(TypeError, match=r"DataConfig.*'test_fracton'.*'test_fraction'"):
        DataConfig(test_fracton=0.1)  # type: ignore[call-arg]
    for shown in (signature(DataConfig), DataConfig.__signature__):  # Sphinx takes the second
        assert list(shown.parameters)[:2] == ["path", "source"]


def test_arguments_and_models_of_other_classes_are_refused_with_what_to_use(tiny: str, tmp_path: Path) -> None:
    theirs = RewardConfig(str(tmp_path), bf16=False)
    with pytest.raises(TypeError, match=r"'args'.*prm\.PersonalizedRewardConfig.*trl\.RewardConfig"):
        PersonalizedRewardTrainer(tiny, theirs, train_dataset=ROWS)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"'model'.*Linear"):
        PersonalizedRewardTrainer(torch.nn.Linear(1, 1), arguments(tmp_path), train_dataset=ROWS)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_train_epochs": -1}, "argument 'num_train_epochs' must be"),
        ({"max_length": 3}, "argument 'max_length' must be"),
        ({"max_length": 12}, "or raise 'max_length' to"),
        ({"seed": -1}, "argument 'seed' must be"),
    ],
)
def test_errors_of_a_trainer_name_its_arguments_in_one_traceback(
    tiny: str, tmp_path: Path, changes: dict[str, object], named: str
) -> None:
    with pytest.raises(PrmError, match=named) as caught:
        PersonalizedRewardTrainer(tiny, arguments(tmp_path, **changes), train_dataset=ROWS)
    assert is_alone(caught.value)


def is_alone(error: BaseException) -> bool:
    """Whether a traceback shows this error and none before it."""
    return error.__cause__ is None and (error.__suppress_context__ or error.__context__ is None)


@pytest.mark.parametrize("silent", [False, True])
def test_what_became_of_the_rows_and_how_far_it_is_are_shown(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], silent: bool
) -> None:
    """As by `prm train`; `disable_tqdm` leaves out the progress alone."""
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(progress, "_AFTER", 0.0)
    rows = [*ROWS, ROWS[0], ROWS[0]]
    best: dict[str, Any] = {"eval_strategy": "steps", "save_strategy": "steps", "load_best_model_at_end": True}
    args = arguments(tmp_path / "trainer", disable_tqdm=silent, max_steps=1, **(best if silent else {}))
    validation = [row | {"user_id": "val"} for row in ROWS[:10:2]]
    trainer = PersonalizedRewardTrainer(tiny, args, train_dataset=rows, eval_dataset=validation)
    trainer.train()
    asked = [replace(c, user_id="val") for c in LOG[::2]]  # they count if they chose the best step
    assert trained_on(Scorer(trainer.personalized), asked) == (5 if silent else 0)
    lines = capsys.readouterr().err.splitlines()
    account, extent = f"{len(rows)} rows: {len(ROWS)} used, 2 said twice", "comparisons of"
    assert account in lines
    assert "5 rows: 5 used" in lines
    assert [line.partition(": ")[0] for line in lines if extent in line] == [
        "training",
        "validation" if silent else "held out",
    ]
    assert f"loading {tiny}" in lines
    for bar in ("tokenising: ", "standardising hidden states: "):
        assert any(line.startswith(bar) for line in lines) is not silent


def test_data_and_models_that_cannot_be_trained_are_named(tiny: str, tmp_path: Path) -> None:
    def trainer(rows: Any = ROWS, model: Any = tiny, peft: Any = None, **changes: Any) -> Any:
        return PersonalizedRewardTrainer(model, arguments(tmp_path, **changes), train_dataset=rows, peft_config=peft)

    without = [{name: value for name, value in row.items() if name != "user_id"} for row in ROWS]
    with pytest.raises(DataError, match="user_id") as caught:
        trainer(without)
    assert is_alone(caught.value)
    assert trainer(without, users={"kind": "uniform"}).personalized.users == ["anonymous"]
    with pytest.raises(DataError, match="margin"):
        trainer([row | {"margin": 1.0} for row in ROWS])
    with pytest.raises(DataError, match="tokenised"):
        trainer(Dataset.from_list([{"chosen_ids": [1], "rejected_ids": [2], "user_id": "a"}]))
    with pytest.raises(DataError, match=r"row 1 of the list.*chosen"):
        trainer([ROWS[0], ROWS[1] | {"chosen": ""}])
    with pytest.raises(PrmError, match="bayes"):
        trainer(users={"kind": "bayes"}, train="frozen")
    with pytest.raises(PrmError, match="'peft_config'"):
        trainer(peft=LoraConfig(), train="frozen")
    with pytest.raises(PrmError, match="modules_to_save"):
        trainer(peft=LoraConfig(modules_to_save=["lm_head"]))


def test_another_tokenizer_is_refused(tiny: str, tmp_path: Path) -> None:
    """A run is loaded with the backbone's own: with another one it would read other texts than in training."""
    tokenizer = AutoTokenizer.from_pretrained(tiny, trust_remote_code=False)
    tokenizer.pad_token = tokenizer.eos_token  # as TRL's examples do; it changes no text
    PersonalizedRewardTrainer(tiny, arguments(tmp_path), train_dataset=ROWS, processing_class=tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.replace("<|end|>", "<|eos|>")
    with pytest.raises(PrmError, match="chat template"):
        PersonalizedRewardTrainer(tiny, arguments(tmp_path), train_dataset=ROWS, processing_class=tokenizer)


def test_the_own_tokenizer_of_a_backbone_with_a_default_system_prompt_is_taken(tiny: str, tmp_path: Path) -> None:
    """The run leaves that prompt out; the tokenizer that a caller loads has it."""
    folder = shutil.copytree(tiny, tmp_path / "backbone")
    template = folder / "chat_template.jinja"
    default = "{% if messages[0]['role'] != 'system' %}{{ '<|system|>be kind<|end|>\n' }}{% endif %}"
    template.write_text(default + template.read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    trainer = PersonalizedRewardTrainer(
        str(folder), arguments(tmp_path), train_dataset=ROWS, processing_class=tokenizer
    )
    assert "be kind" not in trainer.personalized.checkpoint.encoder().prompt_text([Message("user", "?")])


def test_learning_rates_go_to_their_groups(tiny: str, tmp_path: Path) -> None:
    args = arguments(tmp_path, reward=SOFT, learning_rate=3e-4, user_lr=0.05, head_lr=0.007, max_grad_norm=0.5)
    trainer: Any = PersonalizedRewardTrainer(tiny, args, train_dataset=ROWS)
    trainer.create_optimizer()
    names = {id(p): n for n, p in trainer.model.named_parameters()}
    found = {names[id(p)].split(".")[0]: g["lr"] for g in trainer.optimizer.param_groups for p in g["params"]}
    assert found == {"user_model": 0.05, "score": 0.007, "backbone": 3e-4}
    assert {g["max_norm"] for g in trainer.optimizer.param_groups} == {0.5}
