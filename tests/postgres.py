"""A PostgreSQL server of the tests' own, for tests marked `postgres`; they skip where none is installed."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_USER = "postgres"  # the server refuses to run as root
_SETTINGS = "-c listen_addresses='' -c fsync=off -c max_connections=100"


class Server:
    """A server on a Unix socket in a temporary folder."""

    def __init__(self, programs: Path, folder: Path):
        self._programs, self.folder, self._made = programs, folder, 0

    def url(self) -> str:
        """The address of a new database."""
        self._made += 1
        name = f"store{self._made}"
        self._run("createdb", "-h", str(self.folder), "-U", _USER, name)
        return f"postgresql://{_USER}@/{name}?host={self.folder}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        log, options = str(self.folder / "log"), f"{_SETTINGS} -k {self.folder}"
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-w", "-l", log, "-o", options, "start")

    def stop(self, mode: str = "immediate") -> None:
        """Stop it; `immediate` is as a power cut."""
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-m", mode, "-w", "stop")

    def initialise(self) -> None:
        """Make the folder of its data."""
        self._run("initdb", "-D", str(self.folder / "data"), "-U", _USER, "-A", "trust", "--no-sync", "-E", "UTF8")

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), *arguments]
        if os.geteuid() == 0:
            command = ["runuser", "-u", _USER, "--", *command]
        # pg_ctl's server would keep a pipe open
        done = subprocess.run(
            command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", timeout=60
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed: see {self.folder / 'log'}")


@contextmanager
def open_server() -> Iterator[Server]:
    """Start a server; skips the test, and says why, where there is none."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin")) or [Path(shutil.which("pg_ctl") or "/none").parent]
    if not (programs[-1] / "initdb").is_file():
        pytest.skip("no PostgreSQL is installed: apt-get install postgresql")
    if os.geteuid() == 0 and shutil.which("runuser") is None:
        pytest.skip("PostgreSQL does not run as root, and there is no runuser")
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))  # short, as a socket's path must be
    server = Server(programs[-1], folder)
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, _USER)
        server.initialise()
        server.start()
        yield server
        server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
