"""One progress bar for training with transformers' and TRL's trainers, in place of their bars and printed dicts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prm.io.progress import Bar, progress

# of what trainers log; the loss of RLOO and GRPO says nothing
_SHOWN, _SHOWN_ONLINE = ("loss",), ("reward", "kl")


@contextmanager
def training_bar(trainer: Trainer) -> Iterator[None]:
    """Show a bar while the trainer trains within the block. It is closed also where training ends with an error."""
    bar = _TrainingBar()
    trainer.add_callback(bar)
    try:
        yield
    finally:
        bar.close()
        trainer.remove_callback(bar)


class _TrainingBar(TrainerCallback):
    """A bar of optimiser steps with the last loss and the last value of the metric that training stops by.

    A long evaluation has a bar below it.
    """

    def __init__(self) -> None:
        self.bar: Bar | None = None
        self.evaluation: Bar | None = None
        self.values: dict[str, str] = {}

    def close(self) -> None:
        """Close the bars that are open."""
        for bar in (self.evaluation, self.bar):
            if bar is not None:
                bar.close()
        self.evaluation = self.bar = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self.bar = progress(total=state.max_steps, initial=state.global_step, desc="training", unit="step")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        if self.bar is None:
            return
        if self.evaluation is None:
            self.evaluation = progress(total=len(eval_dataloader), desc="evaluating", unit="batch")
        self.evaluation.update()

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        self._show({"validation": (metrics or {}).get(f"eval_{args.metric_for_best_model}")})
        if self.evaluation is not None:
            self.evaluation.close()
            self.evaluation = None

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = logs or {}
        self._show({name: logs.get(name) for name in (_SHOWN_ONLINE if "reward" in logs else _SHOWN)})

    def _show(self, values: dict[str, Any]) -> None:
        self.values |= {name: f"{value:.3g}" for name, value in values.items() if isinstance(value, float | int)}
        if self.bar is not None:
            self.bar.set_postfix(self.values, refresh=False)  # a refresh would show the bar of a short run, too
