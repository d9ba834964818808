"""Every ratio, on the terminal and in `runs/bench.json`."""

import os
import platform
from itertools import chain
from pathlib import Path

import torch

from benchmarks import best_of_n, people, ppo, scoring, training
from prm.checkpoint import environment
from prm.files import write_json
from prm.report import show, table


def main() -> None:
    """Measure all of them; takes some minutes."""
    found = []
    for ratio in chain(people.ratios(), scoring.ratios(), training.ratios(), best_of_n.ratios(), ppo.ratios()):
        found.append(ratio.measure())
        show(f"{found[-1]['name']}: {found[-1]['median']:.3f}")
    rows = [
        [
            m["name"],
            f"{m['median']:.3f}",
            f"{m['quartiles'][0]:.3f} to {m['quartiles'][1]:.3f}",
            " / ".join(f"{s:.3g}" for s in m[m["unit"]]) + f" {m['unit']}",
            "-" if m["bar"] is None else f"{m['bar']}: {'holds' if m['holds'] else 'FAILS'}",
        ]
        for m in found
    ]
    show(table("ratios", ["", "median", "quartiles", "what both take", "bar"], rows))
    machine = {"machine": platform.machine(), "cpus": os.cpu_count(), "threads": torch.get_num_threads()}
    write_json(Path("runs/bench.json"), {"ratios": found, **machine, "environment": environment()})


if __name__ == "__main__":
    main()
