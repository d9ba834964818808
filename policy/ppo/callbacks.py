"""Callbacks of transformers in PPO's own loop: experiment trackers, and those of the caller."""

from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback

from prm.models.backbones import processes
from prm.models.policy_model import Policy


class LoopCallbacks:
    """Calls callbacks at the beginning and end of training, after each step and with what is logged.

    Args:
        arguments: say which trackers there are, and how often is logged.
    """

    def __init__(
        self,
        arguments: TrainingArguments,
        callbacks: Sequence[TrainerCallback],
        policy: Policy,
        tokenizer: PreTrainedTokenizerBase,
        max_steps: int,
    ):
        self._arguments, self._control = arguments, TrainerControl()
        trackers = get_reporting_integration_callbacks(arguments.report_to)
        self._handler = CallbackHandler([DefaultFlowCallback, *trackers, *callbacks], policy, tokenizer, None, None)
        main = processes().is_main_process
        self.state = TrainerState(max_steps=max_steps, is_local_process_zero=main, is_world_process_zero=main)
        self.state.compute_steps(arguments, max_steps)

    @property
    def stopped(self) -> bool:
        """Whether a callback has ended training."""
        return self._control.should_training_stop

    def begin(self, step: int) -> None:
        """Training begins, or goes on, after so many steps."""
        self.state.global_step = step
        self._control = self._handler.on_train_begin(self._arguments, self.state, self._control)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """A step was taken."""
        self.state.global_step = step
        self._control = self._handler.on_step_begin(self._arguments, self.state, self._control)
        self._control = self._handler.on_step_end(self._arguments, self.state, self._control)
        if self._control.should_log:
            logs: dict[str, float] = {f"ppo/{name}": value for name, value in metrics.items()}
            self.state.log_history.append({**logs, "step": step})
            self._control = self._handler.on_log(self._arguments, self.state, self._control, logs)

    def end(self) -> None:
        """Training has ended."""
        self._control = self._handler.on_train_end(self._arguments, self.state, self._control)
