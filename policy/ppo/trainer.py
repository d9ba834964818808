"""PPO from Python: a policy, a reward and a data set in, a run folder out."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from peft import PeftConfig
from transformers import PreTrainedTokenizerBase, TrainerCallback

from policy.arguments import PersonalizedPPOConfig
from policy.personalized_policy import PersonalizedPolicy, start_policy
from policy.ppo.roles import detach
from policy.ppo.train import start_training
from policy.rewards.personal import PersonalReward, RewardFunc
from policy.rewards.scales import SCALE_FILE
from prm.checkpoint.checkpoint import digest
from prm.checkpoint.config_file import TrainedBy, read_config
from prm.checkpoint.hub import local_folder
from prm.checkpoint.hub_model import HubModel, in_brief
from prm.checkpoint.saved_copy import save_copy
from prm.checks import built
from prm.config import FeedbackConfig, UserConfig
from prm.errors import PrmError
from prm.io.disk import make_folder, remove
from prm.models.backbones import processes
from prm.models.reward_model import RewardModel
from prm.scoring.scorer import Scorer
from prm.training.prepare_log import DataSplit, log_account, log_parts
from prm.training.trainers.arguments import arguments_or_default
from prm.training.trainers.python_trainer import (
    called_from_python,
    folder_for,
    refuse_other_model,
    refuse_other_tokenizer,
    run_record,
)
from prm.training.trainers.resume import interrupted, last_intact, newest_complete
from prm.training.trainers.sharding import refuse_launch
from prm.training.trainers.train_datasets import read_dataset
from prm.training.trainers.trainer_setting import refuse_callbacks
from prm.training.work_folder import STATES


class PersonalizedPPOTrainer:
    """Train a policy by PPO on a personalised reward of its own responses.

    Prompts and users are those of the data set; its responses are not used. `personalized` is the policy.

    Args:
        model: an untrained `PersonalizedPolicy`, or the name of a language model: a hub id, a folder (also of a run of
            `policy sft`), or `smollm2-135m`.
        reward: a run folder or hub id of a reward model, a `prm.Scorer`, a `PersonalizedRewardModel`, or a function
            from prompts, responses, users and user texts to one number each.
        args: `PersonalizedPPOConfig`; its defaults if not given.
        train_dataset: as of `PersonalizedRewardTrainer`.
        processing_class: the language model's own tokenizer; it is loaded if not given.
        callbacks: of transformers; they see steps and logs, and may end training.
        peft_config: a `LoraConfig` for the adapters, instead of `args.lora`.

    Raises `PrmError` for arguments that contradict each other or the model, `DataError` for a bad row, and `TypeError`
    for `args` or a model of another class.
    """

    def __init__(
        self,
        model: PersonalizedPolicy | str | Path,
        reward: str | Path | Scorer | HubModel[RewardModel] | RewardFunc,
        args: PersonalizedPPOConfig | None = None,
        train_dataset: object = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        peft_config: PeftConfig | None = None,
    ):
        self.args = arguments_or_default(PersonalizedPPOConfig, args, folder_for(model, "ppo"))
        refuse_callbacks(callbacks)
        refuse_other_model(model)
        if isinstance(reward, str | Path):
            reward = local_folder(reward)
            read_config(reward)  # a wrong name is refused before the language model is loaded
        self._folder, self._callbacks = Path(str(self.args.output_dir)), callbacks
        self.history: list[dict[str, float]] = []
        with called_from_python(self.args):
            refuse_launch("PPO", shards=False)
            self._start(model, train_dataset, processing_class, peft_config)
            self._reward, self._digest = _reward_of(reward)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({in_brief(self.personalized.checkpoint)}, output_dir='{self._folder}')"

    def _start(
        self,
        model: PersonalizedPolicy | str | Path,
        train_dataset: object,
        processing_class: PreTrainedTokenizerBase | None,
        peft_config: PeftConfig | None,
    ) -> None:
        """Read the data set, and make the policy; what became of the rows is logged."""
        known = model.checkpoint.settings.users if isinstance(model, HubModel) else self.args.users
        data = built(FeedbackConfig, self.args.data, "data")
        train = read_dataset(train_dataset, data, built(UserConfig, known, "users"))
        log_account(train.feedback)
        settings, objective = self.args.settings, TrainedBy("ppo", asdict(self.args.ppo()))
        self.personalized, config = start_policy(model, self.args, settings, train.comparisons, objective, peft_config)
        self.config = replace(config, data=replace(config.data, path=train.path))
        self.parts = DataSplit(train.comparisons, [], [], train.account)
        log_parts(self.parts)
        refuse_other_tokenizer(self.personalized.checkpoint, processing_class)

    def train(self, resume_from_checkpoint: bool = False) -> dict[str, float]:
        """Take all steps; returns the metrics of the last one. `history` holds those of each step.

        Args:
            resume_from_checkpoint: go on from the last state in the output folder, with the same result as without the
                interruption.

        Raises `PrmError` if there is no such state, or if there is one and it was not asked for. The
        `KeyboardInterrupt` of Ctrl-C says from which state to resume.
        """
        states, checkpoint = self._folder / STATES, self.personalized.checkpoint
        found = last_intact(states) is not None
        if found and not resume_from_checkpoint:
            raise PrmError(f"{states} has states of an earlier training: resume_from_checkpoint=True goes on from them")
        if resume_from_checkpoint and not found:
            raise PrmError(f"{states} has no state to resume from: leave out resume_from_checkpoint")
        if not found and processes().is_main_process:
            remove(self._folder / SCALE_FILE)
            make_folder(self._folder)
        processes().wait_for_everyone()
        try:
            with called_from_python(self.args):
                started = start_training(
                    checkpoint, self._reward, self.config, self.parts.train, self._folder, self._callbacks, self.args
                )
                metrics = started.training.run(self._digest)
        except KeyboardInterrupt:
            raise interrupted(newest_complete(states), True) from None
        finally:
            detach(checkpoint.model)
        self.history = metrics["history"]
        checkpoint.record |= run_record(self, checkpoint, self.config, self.parts, {**metrics})
        checkpoint.record["run.json"]["prompts_too_long"] = started.prompts_too_long
        checkpoint.record["metrics.json"]["shares_backbone"] = started.shares_backbone
        if self.args.push_to_hub:
            self.push_to_hub()
        return self.history[-1]

    def save_model(self, output_dir: str | Path | None = None) -> None:
        """Write a run folder, which `rerank.Sampler` and the commands load; states and tables in it stay.

        Raises `PrmError` before training.
        """
        self._refuse_untrained()
        if processes().is_main_process:
            save_copy(self.personalized.checkpoint, Path(output_dir) if output_dir is not None else self._folder)
        processes().wait_for_everyone()

    def push_to_hub(self, commit_message: str = "End of training") -> str | None:
        """Upload the policy as `PersonalizedPolicy.push_to_hub` does, to `hub_model_id` or by the folder's name.

        Returns the address of the commit; `None` on other processes than the first. Raises `PrmError` before training.
        """
        self._refuse_untrained()
        if not processes().is_main_process:
            return None
        return self.personalized.push_to_hub(
            self.args.hub_model_id or self._folder.absolute().name,
            private=self.args.hub_private_repo is not False,
            revision=self.args.hub_revision,
            token=self.args.hub_token,
            commit_message=commit_message,
        )

    def _refuse_untrained(self) -> None:
        if not self.history:
            raise PrmError("the policy has not been trained yet: call train() first")


def _reward_of(
    reward: str | Path | Scorer | HubModel[RewardModel] | RewardFunc,
) -> tuple[RewardFunc | Path, str | None]:
    """(a function, or the run folder of a reward model; its digest, by which a resumed training knows it)."""
    if isinstance(reward, str | Path):
        return Path(reward), digest(Path(reward))
    if isinstance(reward, HubModel):
        reward = Scorer(reward)
    if isinstance(reward, Scorer):
        return PersonalReward(reward), None
    return reward, None
