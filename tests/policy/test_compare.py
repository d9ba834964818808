"""`policy compare` from end to end on a tiny model, and its figures by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from policy.cli import main
from prm.comparison import Comparison
from prm.files import write_jsonl
from tests.conftest import WORDS

TINY: dict[str, Any] = {
    "users": {"tokens": 2},
    "optim": {"epochs": 1.0, "batch_size": 8, "micro_batch_size": 8, "eval_steps": 2, "warmup_steps": 0},
}
VANILLA = TINY | {"users": {"kind": "uniform", "tokens": 0}}
ON_SFT = {"name": "{sft}", "dtype": "float32", "max_length": 120}


def log_of(n: int) -> list[Comparison]:
    """Three people of whom two like it long, one short; each says so."""
    found = []
    for i in range(n):
        long, short = " ".join(WORDS[i % 5 : i % 5 + 6]), " ".join(WORDS[i % 9 + 8 : i % 9 + 10])
        for user, taste in (("anna", "longer"), ("ben", "longer"), ("carl", "shorter")):
            pair = (long, short) if taste == "longer" else (short, long)
            about = {"metadata": {"prefers": taste}, "user_text": f"i like it {taste}"}
            found.append(Comparison(user, f"what of {WORDS[i % 16]} {i}?", *pair, **about))
    return found


def tree(backbone: str, folder: Path) -> dict[str, Any]:
    """Every kind of arm, in seconds."""
    write_jsonl(folder / "log.jsonl", log_of(20))
    own = {"name": backbone, "dtype": "float32", "max_length": 120}
    search = {"folds": 2, "l2": [1.0], "user_l2": [1.0], "layers": [2], "poolings": ["last"], "combine": False}
    ppo = {"steps": 1, "answers": 8, "max_new_tokens": 5, "scale_answers": 4}
    online = {"max_new_tokens": 5, "check_answers": 4, "backbone": ON_SFT, **TINY}
    few = {"backbone": ON_SFT, "reward": "{reward}", "ppo": ppo, **TINY}
    return {
        "output_dir": str(folder / "out"),
        "people": 3,
        "prompts": 3,
        "max_new_tokens": 5,
        "batch": 5,
        "group_by": "prefers",
        "judge": {"rule_field": "prefers"},
        "data": {
            "path": str(folder / "log.jsonl"),
            "test_fraction": 0.3,
            "validation_fraction": 0.3,
            "on_artefact": "warn",
        },
        "runs": {
            "sft": {"command": "sft", "settings": {"backbone": own, "optim": TINY["optim"]}},
            "reward": {"command": "train", "settings": {"backbone": ON_SFT, "search": search}},
            "dpo": {"command": "dpo", "settings": {"backbone": ON_SFT, **VANILLA}},
            "p-dpo": {"command": "dpo", "settings": {"backbone": ON_SFT, **TINY}},
            "ppo": {"command": "ppo", "settings": few | {"reward": "{reward}/uniform"} | VANILLA},
            "p-ppo": {"command": "ppo", "settings": few},
            "rloo": {"command": "online", "settings": online | {"reward": "{reward}"}},
        },
        "arms": {
            "SFT": {"run": "{sft}"},
            "SFT, told": {"run": "{sft}", "told": {"longer": "Be long.", "shorter": "Be short."}},
            "chosen": {"chosen": True},
            "DPO": {"run": "{dpo}"},
            "P-DPO": {"run": "{p-dpo}"},
            "PPO, uniform": {"run": "{ppo}"},
            "PPO": {"run": "{p-ppo}"},
            "RLOO": {"run": "{rloo}"},
            "best of": {"run": "{sft}", "best_of": [1, 2, 4], "reward": "{reward}"},
        },
    }


def write(folder: Path, settings: dict[str, Any]) -> str:
    path = folder / "compare.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return str(path)


@pytest.fixture(scope="module")
def done(backbone_of: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(the folder, its config): every arm trained, asked and judged once."""
    folder = tmp_path_factory.mktemp("compare")
    path = write(folder, tree(backbone_of("llama"), folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRM_CACHE", str(folder / "cache"))
        main(["compare", path])
    return folder / "out", path


def test_every_arm_is_trained_asked_and_judged(done: tuple[Path, str]) -> None:
    out, _ = done
    found = json.loads((out / "metrics.json").read_text())
    print(found["advice"])
