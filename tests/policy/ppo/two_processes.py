"""Learn from the same answers of the toy, each process from its share: run under `accelerate launch`, or alone."""

import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from policy.ppo.loop import Training
from policy.ppo.rollouts import PromptSampler, Rollouts
from policy.rewards.scales import Scale
from prm.models.backbones import processes
from tests.policy.ppo.toy import PROMPTS, likes, new_writer


def share(found: Rollouts, rank: int, of: int) -> Rollouts:
    """Every `of`-th answer from the one of number `rank` on."""
    columns = {f.name: getattr(found, f.name)[rank::of] for f in fields(Rollouts)}
    return Rollouts(**columns)


def main(backbone: str, folder: Path) -> None:
    """Two passes, one minibatch each, of 12 answers; the main process saves what was learnt."""
    state = processes()
    rank, of = state.process_index, state.num_processes
    own = folder / str(rank)
    own.mkdir()
    batch: dict[str, Any] = {"batch_size": 12 // of, "micro_batch_size": 3}
    writer, config = new_writer(backbone, own, likes(len), ppo={"rollout_batch_size": 12 // of}, optim=batch)
    turns = PromptSampler(PROMPTS, {"likes": "", "dislikes": "", None: ""}, 0)
    scales = dict.fromkeys(turns.people, Scale(0.0, 5.0))
    found = share(writer.rollouts(turns.take(0, 12), 3, scales), rank, of)
    logged = Training(config, writer.roles, writer, turns, scales, own).learn(found)
    if state.is_main_process:
        learnt = {name: p.detach().contiguous() for name, p in writer.roles.trained().items()}
        save_file({**learnt, "logged": torch.tensor(list(logged.values()))}, folder / "learnt.safetensors")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
