"""PPO: its memory over that of SFT, and a step over sampling and one training pass."""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.memory import status
from benchmarks.ratio import Ratio
from policy.config import Ppo, PpoConfig, SftConfig
from policy.ppo.loop import Training
from policy.ppo.roles import Roles, on_device
from policy.ppo.rollouts import PromptSampler, RolloutGenerator
from policy.ppo.shared_reward import shared_reward
from policy.rewards.scales import Scale
from policy.setup import new_policy
from policy.sft import build_sft_trainer, encode_responses
from prm.checkpoint import checkpoint as checkpoints
from prm.checkpoint.config_file import TrainedBy
from prm.config import BackboneConfig, OptimConfig, TrainConfig, UserConfig
from prm.training.setup import new_checkpoint
from prm.training.trainers.step_trainer import run_trainer
from prm.users.index import UserIndex
from rerank.sampling.sampler import Sampler

_PEOPLE = [f"person {i}" for i in range(10)]
_PROMPTS = [f"What would you say of number {i} to somebody who asks for a few words of advice?" for i in range(40)]
_OPTIM = OptimConfig(epochs=1.0, batch_size=8, micro_batch_size=8)


def ratios(backbone: str = "smollm2-135m", tokens: int = 48) -> Iterator[Ratio]:
    """Peak memory in fresh processes, with the same LoRA and batch; then the time of a step.

    Args:
        tokens: per response.
    """
    if sys.platform == "linux":  # /proc has the peak of the process; getrusage may give its parent's
        yield Ratio(
            "memory of PPO, a reward model included / of SFT",
            lambda: _apart("ppo", backbone, tokens),
            lambda: _apart("sft", backbone, tokens),
            at_most=1.5,
            repeats=1,
            unit="bytes",
        )
    with tempfile.TemporaryDirectory() as folder:
        training = new_training(backbone, tokens, Path(folder))
        yield Ratio(
            "a step of PPO / sampling its responses and one training pass of the policy",
            training.take_step,
            lambda: _draw_and_pass(training),
            repeats=3,
        )


def new_training(backbone: str, tokens: int, folder: Path) -> Training:
    """PPO for ten users with an untrained linear head each as reward, which costs as much as a trained one."""
    reward = new_checkpoint(TrainConfig(backbone=BackboneConfig(backbone)), UserIndex(_PEOPLE))
    (folder / "reward").mkdir()
    checkpoints.save(reward, folder / "reward", {})
    del reward
    config = PpoConfig(
        backbone=BackboneConfig(backbone),
        ppo=Ppo(max_steps=2, rollout_batch_size=8, max_new_tokens=tokens),
        optim=_OPTIM,
    )
    checkpoint = new_policy(config, config.users, UserIndex(_PEOPLE), TrainedBy("ppo", asdict(config.ppo)))
    roles = Roles(checkpoint.model, 0)
    reward_model, shared = shared_reward(folder / "reward", roles)
    assert shared
    user_texts: dict[str | None, str] = {None: "", **dict.fromkeys(_PEOPLE, "")}
    generator = RolloutGenerator(Sampler(checkpoint), roles, reward_model, config)
    scales = dict.fromkeys(user_texts, Scale(0.0, 1.0))
    return Training(config, roles, generator, PromptSampler(_PROMPTS, user_texts, 0), scales, folder)


def _draw_and_pass(training: Training) -> None:
    generator, roles = training.generator, training.roles
    prompts, responses = generator.draw(training.turns.take(0, 8), 0)
    batch = on_device(generator.joined(prompts, responses), roles.policy.device)
    training.optimizer.zero_grad()
    (-roles.logps(batch).mean()).backward()
    training.optimizer.step()


def sft_memory(backbone: str, tokens: int, folder: Path) -> None:
    """Two steps of supervised fine-tuning on responses of about `tokens` tokens."""
    config = SftConfig(backbone=BackboneConfig(backbone), optim=_OPTIM)
    checkpoint = new_policy(config, UserConfig("uniform", num_virtual_tokens=0), UserIndex(), TrainedBy("sft"))
    encoded = encode_responses(checkpoint.encoder(), [(prompt, "a " * tokens) for prompt in _PROMPTS[:16]])
    run_trainer(build_sft_trainer(checkpoint, encoded, encoded[:1], config, folder))


def ppo_memory(backbone: str, tokens: int, folder: Path) -> None:
    """Two steps of PPO."""
    new_training(backbone, tokens, folder).run(None)


PARTS: dict[str, Callable[[str, int, Path], None]] = {"sft": sft_memory, "ppo": ppo_memory}


def _apart(part: str, backbone: str, tokens: int) -> int:
    """Peak resident bytes of a part in a separate process, minus those of its imports."""
    command = [sys.executable, "-m", "benchmarks.ppo", part, backbone, str(tokens)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    """Print the peak memory of the part on the command line."""
    part, backbone, tokens = sys.argv[1:]
    torch.manual_seed(0)
    imported = status("VmHWM")
    with tempfile.TemporaryDirectory() as folder:
        PARTS[part](backbone, int(tokens), Path(folder))
    print(status("VmHWM") - imported)


if __name__ == "__main__":
    main()
