"""Measure all ratios, print them and write `runs/bench.json`; with named parts, `runs/bench-PART.json`."""

import json
import os
import platform
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import torch

from benchmarks import (
    best_of_n,
    busy,
    flips,
    growth,
    heads,
    memory,
    peers,
    ppo,
    scale,
    scoring,
    service,
    startup,
    training,
    users,
)
from benchmarks.ratio import Measured, Ratio
from prm.io.environment import environment
from prm.io.tables import write_json
from prm.report import show, table

PARTS: dict[str, Callable[[], Iterator[Ratio]]] = {
    "startup": startup.ratios,
    "users": users.ratios,
    "scoring": scoring.ratios,
    "peers": peers.ratios,
    "heads": heads.ratios,
    "training": training.ratios,
    "best_of_n": best_of_n.ratios,
    "busy": busy.ratios,
    "flips": flips.ratios,
    "memory": memory.ratios,
    "ppo": ppo.ratios,
    "service": service.ratios,
    "scale": scale.ratios,
}


def main(arguments: Sequence[str] | None = None, folder: Path = Path("runs")) -> None:
    """Measure; a killed run at the same commit is resumed after its finished ratios."""
    parser = ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--repeats", type=int, default=99, help="maximum number of measurements of each side")
    args = parser.parse_args(arguments)
    if unknown := set(args.parts) - PARTS.keys():
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    versions = environment()
    about: dict[str, object] = {
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    about |= {"most_repeats": args.repeats, "environment": versions}
    output = folder / ("-".join(["bench", *args.parts]) + ".json")
    unfinished = output.with_name(output.name + ".partial")
    measured = _measured(unfinished, args.repeats, versions["commit"])
    for ratio in chain.from_iterable(PARTS[part]() for part in args.parts or PARTS):
        if ratio.name not in measured:
            measured[ratio.name] = replace(ratio, repeats=min(ratio.repeats, args.repeats)).measure()
            folder.mkdir(parents=True, exist_ok=True)
            write_json(unfinished, {"ratios": list(measured.values()), **about})
        show(f"{ratio.name}: {measured[ratio.name]['median']:.3f}")
    if "scale" in (args.parts or PARTS):
        growth.write_growth(folder)
    show(table("ratios", ["", "median", "quartiles", "cost of both", "bar"], list(map(_row, measured.values()))))
    unfinished.replace(output)


def _measured(unfinished: Path, repeats: int, commit: str | None) -> dict[str, Measured]:
    """Finished ratios of a killed run of the same code and repeats, by name."""
    known = json.loads(unfinished.read_text(encoding="utf-8")) if unfinished.is_file() else None
    if known is None or commit is None or (known["most_repeats"], known["environment"]["commit"]) != (repeats, commit):
        return {}
    return {m["name"]: m for m in known["ratios"]}


def _row(m: Measured) -> list[str]:
    bar = "-" if m["bar"] is None else f"{m['bar']}: {'holds' if m['holds'] else 'FAILS'}"
    quartiles = f"{m['quartiles'][0]:.3f} to {m['quartiles'][1]:.3f}"
    return [
        m["name"],
        f"{m['median']:.3f}",
        quartiles,
        " / ".join(f"{s:.3g}" for s in m["costs"]) + f" {m['unit']}",
        bar,
    ]


if __name__ == "__main__":
    main()
