"""What a command costs before it does anything: a fresh process, against one that imports numpy."""

import resource
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

from benchmarks.ratio import Ratio

_PACKAGES = ("prm", "rerank", "policy")


def ratios(repeats: int = 15) -> Iterator[Ratio]:
    """CPU seconds and wall time of `import prm`, `prm --help` and the same of the other two, over `import numpy`."""
    codes = {f"import {package}": f"import {package}" for package in _PACKAGES}
    codes |= {f"{package} --help": f"from {package}.cli import main; main(['--help'])" for package in _PACKAGES}
    for name, code in codes.items():
        for unit, cost in (("CPU seconds", cpu_seconds), ("seconds", run)):
            sides = (partial(cost, code), partial(cost, "import numpy"))
            yield Ratio(f"{name} / import numpy, {unit}", *sides, at_most=2.0, repeats=repeats, unit=unit)


def run(code: str) -> None:
    """Run code in a fresh process. Raises `CalledProcessError` if it fails."""
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)


def cpu_seconds(code: str) -> float:
    """CPU seconds, in user and kernel mode, of a fresh process that runs the code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(code)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
