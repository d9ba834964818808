"""The policies' trainers as used from Python: the same training as the commands', and runs that load."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback, TrainerControl, TrainerState

from policy import (
    PersonalizedDPOConfig,
    PersonalizedDPOTrainer,
    PersonalizedPolicy,
    PersonalizedPPOConfig,
    PersonalizedPPOTrainer,
    train_dpo,
    train_ppo,
)
from policy.config import Objective
from prm import PersonalizedRewardConfig, PersonalizedRewardModel, PersonalizedRewardTrainer, Scorer
from prm.checkpoint.checkpoint import load
from prm.config import OptimConfig
from prm.errors import PrmError
from prm.io.tables import write_jsonl
from prm.training.prepare_log import split_data
from prm.training.trainers.arguments import PersonalizedArguments
from rerank import Sampler, Sampling
from tests.planted import opposed_people
from tests.policy.conftest import dpo_config
from tests.policy.ppo.toy import likes, save_toy, toy_config
from tests.tiny_runs import files_of

LOG = opposed_people(6, 0, people=2)
ROWS = [
    {
        "prompt": [{"role": "user", "content": c.prompt}],
        "chosen": [{"role": "assistant", "content": c.chosen}],
        "rejected": [{"role": "assistant", "content": c.rejected}],
        "user_id": c.user_id,
    }
    for c in LOG
]


def dpo_arguments(folder: Path, **changes: Any) -> PersonalizedDPOConfig:
    common: dict[str, Any] = {
        "num_train_epochs": 1,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "dtype": "float32",
        "logging_steps": 1,
        "seed": 0,
        "users": {"num_virtual_tokens": 2},
    }
    return PersonalizedDPOConfig(str(folder), **common | changes)


class Steps(TrainerCallback):
    """Keeps what is logged; ends training after so many steps."""

    def __init__(self, most: int = 100) -> None:
        self.most = most
        self.logs: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.logs.append({"step": state.global_step, **logs})

    def on_step_end(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        control.should_training_stop |= state.global_step >= self.most


class Stops(TrainerCallback):
    """Ctrl-C in the third step, once."""

    stopped = False

    def on_step_end(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        if state.global_step == 3 and not self.stopped:
            self.stopped = True
            raise KeyboardInterrupt


@pytest.mark.parametrize("how", ["frozen", "lora", "full"])
def test_dpo_is_that_of_the_command(tiny: str, tmp_path: Path, how: Any) -> None:
    """Same settings, same data: the same losses and metrics in each step, but for the validation part of a command."""
    write_jsonl(tmp_path / "log.jsonl", LOG)
    optim = OptimConfig(epochs=1.0, batch_size=4, micro_batch_size=4, eval_steps=100, warmup_steps=2)
    objective, command = Objective(beta=0.3, loss_type="ipo", sft_weight=0.2), Steps()
    config = dpo_config(tiny, tmp_path, optim=optim, train=how, alpha=0.25, objective=objective)
    config.data.validation_fraction = 0.2
    config.trainer = {"logging_steps": 1}
    train_dpo(config, callbacks=[command])
    parts = split_data(config).train
    args = dpo_arguments(
        tmp_path / "out", train=how, alpha=0.25, beta=0.3, loss_type="ipo", sft_weight=0.2, warmup_steps=2
    )
    trainer = PersonalizedDPOTrainer(tiny, args, train_dataset=parts)
    trainer.train()
    ours = [entry for entry in trainer.state.log_history if "loss" in entry]
    theirs = [entry for entry in command.logs if "loss" in entry]
    assert len(ours) == len(theirs) > 1
    for mine, other in zip(ours, theirs, strict=True):
        for name in ("loss", "rewards/margins", "logps/chosen", "grad_norm"):
            assert mine[name] == pytest.approx(other[name], rel=1e-5), name
    trainer.save_model(str(tmp_path / "saved"))
    backbone = tiny if how == "full" else None
    scorer = Scorer.from_pretrained(tmp_path / "saved", backbone=backbone, device="cpu")
    assert scorer.users == ["p0", "p1"]
    assert scorer.score("what?", ["one", "two"], user="p0").isfinite().all()
    if how == "lora":
        assert Sampler.from_pretrained(str(tmp_path / "saved")).sample("what?", 2, Sampling(3), user="p1")


def test_trls_rows_and_an_adapter_of_peft_train_a_policy(tiny: str, tmp_path: Path) -> None:
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=4, target_modules=["q_proj"])
    dataset = Dataset.from_list(ROWS)
    args = dpo_arguments(tmp_path / "out", num_train_epochs=6, users={"num_virtual_tokens": 4}, user_lr=0.05)
    trainer = PersonalizedDPOTrainer(
        tiny,
        args,
        train_dataset=dataset,
        eval_dataset=dataset,
        compute_metrics=lambda found: {"pairs": float(len(found.predictions[0]))},
        peft_config=lora,
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate(dataset)
    assert after["eval_objective"] < before["eval_objective"] - 0.05
    assert after["eval_pairs"] == len(LOG)
    trainer.save_model(str(tmp_path / "run"))
    assert json.loads((tmp_path / "run/adapter/adapter_config.json").read_text())["r"] == 2
    assert load(tmp_path / "run").settings.objective.beta == 0.1  # type: ignore[union-attr]


def test_a_policy_is_made_and_trained_once(tiny: str, tmp_path: Path) -> None:
    users = {"num_virtual_tokens": 2}
    model = PersonalizedPolicy.from_backbone(tiny, users=users, user_ids=["p1"], lora={"r": 2}, dtype="float32")
    model.save_pretrained(tmp_path / "new")
    assert PersonalizedPolicy.from_pretrained(tmp_path / "new").users == ["p1"]
    trainer = PersonalizedDPOTrainer(model, dpo_arguments(tmp_path / "out", users={}), train_dataset=ROWS)
    trainer.train()
    assert model.users == ["p1", "p0"]
    assert repr(model).startswith("PersonalizedPolicy('dpo', users='individual', num_users=2")
    with pytest.raises(PrmError, match="has been trained"):
        PersonalizedDPOTrainer(model, dpo_arguments(tmp_path / "again"), train_dataset=ROWS)


BATCH = r"per_device_train_batch_size \* gradient_accumulation_steps"


@pytest.mark.parametrize(
    ("kind", "changes", "named"),
    [
        (PersonalizedDPOConfig, {"loss_type": "nca_pair"}, "loss_type"),
        (PersonalizedDPOConfig, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 1.0]}, "loss_weights"),
        (PersonalizedDPOConfig, {"sync_ref_model": True}, "sync_ref_model"),
        (PersonalizedPPOConfig, {"alpha": 0.1}, "alpha"),
        (PersonalizedPPOConfig, {"train": "full"}, "train"),
        (PersonalizedPPOConfig, {"eval_strategy": "steps", "eval_steps": 3}, "eval_strategy"),
        (
            PersonalizedPPOConfig,
            {"rollout_batch_size": 17},
            rf"argument 'rollout_batch_size'.* multiple of {BATCH}, 16",
        ),
        (PersonalizedPPOConfig, {"num_generations": 5}, rf"argument '{BATCH}'.* multiple of num_generations, 5"),
        (PersonalizedPPOConfig, {"num_ppo_epochs": 0}, "argument 'num_ppo_epochs'"),
        (PersonalizedPPOConfig, {"save_steps": 0.5}, "argument 'save_steps'"),
        (PersonalizedPPOConfig, {"max_length": 50}, "'max_new_tokens' leaves nothing of max_length"),
        (PersonalizedDPOConfig, {"beta": -1.0}, "argument 'beta'"),
        (PersonalizedPPOConfig, {"lr_scheduler_type": "linear"}, "lr_scheduler_type"),
        (PersonalizedPPOConfig, {"users": {"kind": "bayes"}}, "bayes"),
    ],
)
def test_wrong_arguments_are_refused_by_name(tmp_path: Path, kind: Any, changes: Any, named: str) -> None:
    with pytest.raises(PrmError, match=named):
        kind(str(tmp_path), **changes)


@pytest.mark.parametrize("kind", [PersonalizedRewardConfig, PersonalizedDPOConfig, PersonalizedPPOConfig])
def test_arguments_that_errors_name_exist(kind: type[PersonalizedArguments]) -> None:
    known = {one.name for one in fields(kind)} | {"model"}
    known |= {"early_stopping_patience", "head_lr"}  # of settings that a trainer's arguments leave at their defaults
    assert {name for names in kind.names.values() for name in names.split(" * ")} <= known


@pytest.mark.parametrize("kind", [PersonalizedDPOConfig, PersonalizedPPOConfig])
def test_arguments_and_models_of_other_classes_are_refused_with_what_to_use(
    tiny: str, tmp_path: Path, kind: type[PersonalizedArguments]
) -> None:
    def trainer(model: object, args: PersonalizedArguments) -> object:
        if kind is PersonalizedDPOConfig:
            return PersonalizedDPOTrainer(model, args, train_dataset=ROWS)  # type: ignore[arg-type]
        return PersonalizedPPOTrainer(model, REWARD, args, train_dataset=ROWS)  # type: ignore[arg-type]

    with pytest.raises(TypeError, match=rf"'args'.*policy\.{kind.__name__}.*prm\.PersonalizedRewardConfig"):
        trainer(tiny, PersonalizedRewardConfig(str(tmp_path)))
    with pytest.raises(TypeError, match=r"'model'.*Linear"):
        trainer(torch.nn.Linear(1, 1), kind(str(tmp_path)))
    with pytest.raises(TypeError, match="did you mean 'learning_rate'"):
        kind(str(tmp_path), learning_rat=1.0)  # type: ignore[call-arg]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_toy(tmp_path_factory.mktemp("toy"))


def ppo_arguments(folder: Path, **changes: Any) -> PersonalizedPPOConfig:
    """The same as `toy_config`."""
    common: dict[str, Any] = {
        "seed": 0,
        "dtype": "float32",
        "max_length": 32,
        "users": {"num_virtual_tokens": 2},
        "max_steps": 3,
        "rollout_batch_size": 12,
        "max_new_tokens": 4,
        "missing_eos_penalty": 0.0,
        "num_scale_samples": 8,
        "num_ppo_epochs": 2,
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 2,
        "warmup_steps": 1,
        "save_steps": 2,
        "user_lr": 1e-2,
        "learning_rate": 1e-2,
        "head_lr": 1e-2,
    }
    return PersonalizedPPOConfig(str(folder), **common | changes)


REWARD = likes(lambda answer: float(len(answer.split())))


def of_training(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in step.items() if not k.startswith("seconds")} for step in history]


def test_ppo_is_that_of_the_command_to_the_bit_and_resumes(toy: str, tmp_path: Path) -> None:
    """A callback ends the first training after a state; the second goes on from it, and from Ctrl-C."""
    config = toy_config(toy, tmp_path)
    config.data.validation_fraction = 0.01
    run = train_ppo(config, REWARD)
    expected = json.loads((run / "metrics.json").read_text())["history"]
    log = split_data(config).train
    steps = Steps(most=2)
    first = PersonalizedPPOTrainer(toy, REWARD, ppo_arguments(tmp_path / "out"), train_dataset=log, callbacks=[steps])
    first.train()
    assert of_training(first.history) == of_training(expected)[:2]
    assert [entry["step"] for entry in steps.logs] == [1, 2]
    assert steps.logs[1]["ppo/kl"] == expected[1]["kl"]
    second = PersonalizedPPOTrainer(
        toy, REWARD, ppo_arguments(tmp_path / "out"), train_dataset=log, callbacks=[Stops()]
    )
    with pytest.raises(PrmError, match="resume_from_checkpoint"):
        second.train()
    with pytest.raises(KeyboardInterrupt, match=r"resume_from_checkpoint=True.*step 2"):
        second.train(resume_from_checkpoint=True)
    second.train(resume_from_checkpoint=True)
    assert of_training(second.history) == of_training(expected)
    second.save_model(tmp_path / "saved")
    ours, theirs = files_of(tmp_path / "saved"), files_of(run)
    assert ours["model.safetensors"] == theirs["model.safetensors"]
    assert ours["adapter/adapter_model.safetensors"] == theirs["adapter/adapter_model.safetensors"]
    sampler = Sampler.from_pretrained(str(tmp_path / "saved"), torch.device("cpu"))
    assert len(sampler.sample("one five", 3, Sampling(3), user="likes")) == 3


def test_ppo_takes_a_reward_model_in_every_form(tiny: str, tmp_path: Path) -> None:
    """A run that shares the policy's backbone, and the same model as a scorer, give the same rewards."""
    args = PersonalizedRewardConfig(str(tmp_path / "reward"), num_train_epochs=1, train="frozen", dtype="float32")
    reward = PersonalizedRewardTrainer(tiny, args, train_dataset=ROWS)
    reward.train()
    reward.save_model()
    short = {"max_steps": 1, "users": {}, "max_length": 100}
    forms: list[Any] = [
        str(tmp_path / "reward"),
        Scorer.from_pretrained(tmp_path / "reward"),
        PersonalizedRewardModel.from_pretrained(tmp_path / "reward"),
    ]
    found = []
    for i, form in enumerate(forms):
        trainer = PersonalizedPPOTrainer(tiny, form, ppo_arguments(tmp_path / str(i), **short), train_dataset=ROWS)
        with pytest.raises(PrmError, match="not been trained"):
            trainer.save_model()
        found.append(trainer.train()["reward"])
    assert found[1:] == pytest.approx(found[:1] * 2, rel=1e-4)


def test_a_reward_that_is_not_there_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    for reward in (str(tmp_path / "nope"), tmp_path / "nope"):
        with pytest.raises(PrmError, match="nope: no such folder"):
            PersonalizedPPOTrainer("no/model", reward, train_dataset=ROWS)


def test_ppo_has_few_of_transformers_arguments(toy: str, tmp_path: Path) -> None:
    steps = Steps()
    train_ppo(toy_config(toy, tmp_path, trainer={"logging_steps": 3, "run_name": "mine"}), REWARD, callbacks=[steps])
    assert [entry["step"] for entry in steps.logs] == [3]
    with pytest.raises(PrmError, match=r"trainer\.dataloader_num_workers"):
        train_ppo(toy_config(toy, tmp_path, trainer={"dataloader_num_workers": 2}), REWARD)
