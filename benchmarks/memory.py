"""Memory in fresh processes: of scoring beyond the loaded model, and of a million users beyond one.

`python -m benchmarks.memory PART ARGUMENTS` measures one part (Linux only: from /proc) and prints it as JSON.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.ratio import Ratio
from benchmarks.scoring import answers_of, soft_prompts, words
from prm.checkpoint import checkpoint as checkpoints
from prm.config import TrainConfig, UserConfig
from prm.scoring.scorer import Scorer
from prm.training.setup import new_checkpoint
from prm.users.index import UserIndex

_SCORED = 100  # users of the million, spread over all rows


def ratios(backbone: str = "smollm2-135m", million: int = 1_000_000, people: int = 100) -> Iterator[Ratio]:
    """Memory of a hundred users' soft prompts; seconds to load a million users' linear heads, and their memory.

    Loading is measured after all imports and without disk reads: the files were just written. Memory is the process's
    anonymous memory; the kernel also maps up to two megabytes of cached file pages around each row that is read.
    """
    if sys.platform != "linux":
        return
    for tokens in (1, 10):
        for field, what, bar in (("peak", "with the model", 2.0), ("above", "above the loaded model", None)):
            yield Ratio(
                f"peak memory of scoring {what}, soft prompt of {tokens} behind, 16 answers: {people} people / one",
                partial(_scoring_takes, field, backbone, people, tokens),
                partial(_scoring_takes, field, backbone, 1, tokens),
                at_most=bar,
                repeats=1,
                unit="bytes",
            )
    with saved_people(backbone, million) as many, saved_people(backbone, 1) as one:
        yield Ratio(
            f"loading the linear heads of {million:,} people / two seconds",
            lambda: measured_apart("loading", many, million)["seconds"],
            lambda: 2.0,
            at_most=1.0,
            repeats=3,
            unit="reported seconds",
        )
        table = (many / "model.safetensors").stat().st_size
        for field, what, bar in (("own", "memory", 0.01), ("mapped", "mapped pages of files", None)):
            yield Ratio(
                f"{what} that {million:,} people add to one, {_SCORED} of them asked for / their table",
                partial(_added, field, many, million, one),
                lambda: table,
                at_most=bar,
                repeats=1,
                unit="bytes",
            )


def _scoring_takes(field: str, backbone: str, people: int, tokens: int) -> float:
    return float(measured_apart("scoring", backbone, people, tokens)[field])


def _added(field: str, many: Path, people: int, one: Path) -> float:
    return float(measured_apart("loading", many, people)[field] - measured_apart("loading", one, 1)[field])


@contextmanager
def saved_people(backbone: str, people: int) -> Iterator[Path]:
    """A temporary run folder with linear heads of random weights."""
    with tempfile.TemporaryDirectory() as parent:
        config = TrainConfig(users=UserConfig("individual"))
        config.backbone.name = backbone
        checkpoint = new_checkpoint(config, UserIndex(f"person {i}" for i in range(people)))
        with torch.no_grad():
            checkpoint.model.user_model.per_row()[0].uniform_(generator=torch.Generator().manual_seed(0))
        folder = Path(parent) / "run"
        folder.mkdir()
        checkpoints.save(checkpoint, folder, {})
        del checkpoint
        yield folder


def scoring(backbone: str, people: int, tokens: int) -> dict[str, float]:
    """Peak bytes of scoring 16 responses for suffix soft prompts, without loading, and bytes above the model."""
    users = [f"u{i}" for i in range(people)]
    scorer = soft_prompts(backbone, "bfloat16", tokens, users)
    prompt, responses = words(300), answers_of(16, 60)
    scorer.score(words(8), answers_of(1, 4))  # warm-up: libraries allocate memory at first use
    before = _restart_peak()
    scorer.score_users(prompt, responses, users)
    peak = status("VmHWM")
    return {"peak": peak, "above": peak - before}


def loading(folder: str, people: int) -> dict[str, float]:
    """Seconds to load a run; anonymous memory and mapped file pages, in bytes, after some users were scored."""
    started = time.perf_counter()
    scorer = Scorer.from_pretrained(folder, device="cpu")
    seconds = time.perf_counter() - started
    scored = [f"person {i * people // _SCORED}" for i in range(min(people, _SCORED))]
    assert all(scorer.knows(user) for user in scored)
    scorer.score_users("What now?", ["This.", "That, I say."], scored)
    return {"seconds": seconds, "own": status("RssAnon"), "mapped": status("RssFile")}


PARTS: dict[str, Callable[..., dict[str, float]]] = {"scoring": scoring, "loading": loading}


def measured_apart(part: str, *arguments: object) -> dict[str, Any]:
    """The result of a part in a separate process."""
    command = [sys.executable, "-m", "benchmarks.memory", part, *map(str, arguments)]
    result: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return result


def _restart_peak() -> int:
    """Reset the peak to the resident bytes, and return them."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def status(field: str) -> int:
    """A field of /proc/self/status in bytes: resident memory (`VmRSS`; `RssAnon`, `RssFile`) or its peak (`VmHWM`)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


if __name__ == "__main__":
    part, name, *numbers = sys.argv[1:]
    print(json.dumps(PARTS[part](name, *map(int, numbers))))
