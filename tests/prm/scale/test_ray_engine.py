"""`--engine ray` on a cluster of two nodes on this machine: the numbers of one process, workers and nodes that die."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open

from prm.cli import main
from prm.data.encoding import Encoded
from prm.errors import PrmError
from prm.features import hidden_states, store
from prm.io.tables import write_jsonl
from prm.scale import ray_engine, read_texts
from prm.scale.ray_features import RayWorkers
from prm.scale.score_files import score_files
from tests.paths import ROOT
from tests.prm.scale.conftest import rows_to_score
from tests.prm.scale.test_score_files import CLOSE, expected, written
from tests.tiny_runs import config_of, files_of, small_log

ray = pytest.importorskip("ray", reason="needs Ray")

from ray.cluster_utils import Cluster  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A node without CPUs that holds the driver, and two with one each."""
    os.environ |= {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    small = {"object_store_memory": 80 << 20, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    for _ in range(2):
        made.add_node(num_cpus=1, object_store_memory=80 << 20)
    ray.init(made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture(autouse=True)
def _small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that there are several, in several slices."""
    monkeypatch.setattr("prm.scale.job._GROUP_BYTES", 600)
    monkeypatch.setattr(read_texts, "_TASK_TEXTS", 8)


@pytest.fixture
def score(run_of: Callable[[str], Path], tmp_path: Path) -> Callable[..., None]:
    """Function that scores the rows with Ray, and compares with one process."""
    rows, run = rows_to_score(), run_of("linear")
    write_jsonl(tmp_path / "rows.jsonl", rows)

    def run_job(workers: int | None = None) -> None:
        path, folder = str(tmp_path / "rows.jsonl"), str(tmp_path / "out")
        out = score_files(str(run), path, folder, "ray", shard_rows=7, workers=workers)
        found = written(out)
        assert [row["place"] for row in found] == [row["place"] for row in rows]
        for row, rewards in zip(found, expected(run, rows), strict=True):
            assert row["rewards"] == pytest.approx(rewards, abs=CLOSE)

    return run_job


def test_two_nodes_give_the_numbers_of_one_process(
    cluster: Cluster, score: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And both read: the first to load leaves the other the time to load, too."""
    workers, send = set[object](), ray_engine.send

    def slowly(worker: object, texts: read_texts.Texts) -> object:
        workers.add(worker)
        if len(workers) == 1:
            time.sleep(3)
        return send(worker, texts)  # type: ignore[arg-type]

    monkeypatch.setattr(ray_engine, "send", slowly)
    score()
    assert len(workers) == 2


def test_a_dead_worker_is_replaced(
    cluster: Cluster, score: Callable[..., None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Killed with a task in its hands."""
    sent, send = list[int](), ray_engine.send

    def kill_second(worker: object, texts: read_texts.Texts) -> object:
        reference = send(worker, texts)  # type: ignore[arg-type]
        sent.append(len(texts.users))
        if len(sent) == 2:
            ray.kill(worker)
        return reference

    monkeypatch.setattr(ray_engine, "send", kill_second)
    score()
    assert "a worker died while reading rewards-" in caplog.text


def test_a_task_that_kills_its_workers_ends_the_job(
    cluster: Cluster, score: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    send = ray_engine.send

    def kill(worker: object, texts: read_texts.Texts) -> object:
        ray.kill(worker)
        return send(worker, texts)  # type: ignore[arg-type]

    monkeypatch.setattr(ray_engine, "send", kill)
    with pytest.raises(PrmError, match="3 workers died one after the other while reading rewards-"):
        score(1)


def test_what_a_worker_cannot_load_is_said(
    cluster: Cluster, run_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the words of the library, and without trying again."""
    write_jsonl(tmp_path / "rows.jsonl", rows_to_score(4))
    with pytest.raises(PrmError, match="no device 'cuda'"):
        score_files(
            str(run_of("linear")), str(tmp_path / "rows.jsonl"), str(tmp_path / "out"), "ray", device="cuda", workers=1
        )


def test_a_killed_job_goes_on(
    cluster: Cluster, score: Callable[..., None], run_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """A driver killed by the system, on the same cluster: what it had read is not read again."""
    code = """
import sys, time
from prm.scale import job, ray_engine, read_texts, score_files
job._GROUP_BYTES, read_texts._TASK_TEXTS = 600, 8
send = ray_engine.send
ray_engine.send = lambda worker, texts: time.sleep(0.5) or send(worker, texts)
score_files.score_files(sys.argv[1], sys.argv[2], sys.argv[3], "ray", shard_rows=7)
"""
    out = tmp_path / "out"
    command = [sys.executable, "-c", code, str(run_of("linear")), str(tmp_path / "rows.jsonl"), str(out)]
    environment = os.environ | {"RAY_ADDRESS": cluster.address}
    with subprocess.Popen(command, cwd=ROOT, env=environment) as process:
        until = time.monotonic() + 240
        while len(list(out.glob("_work/rewards-*.arrow"))) < 3 and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    kept = {path: path.stat().st_mtime_ns for path in out.glob("_work/rewards-*.arrow")}
    assert len(kept) >= 3
    assert not list(out.glob("*.parquet"))
    written_files = list[Path]()
    real = read_texts.write_batches
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read_texts, "write_batches", lambda path, *rest: written_files.append(path) or real(path, *rest))
        score()
    assert written_files
    assert not set(written_files) & kept.keys()


def test_a_dead_node_is_survived(cluster: Cluster, score: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each node has one worker: one of them is lost while work is under way, and nothing can replace it."""
    send, removed = ray_engine.send, list[bool]()

    def remove_node(worker: object, texts: read_texts.Texts) -> object:
        reference = send(worker, texts)  # type: ignore[arg-type]
        if not removed:
            removed.append(True)
            cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
        return reference

    monkeypatch.setattr(ray_engine, "send", remove_node)
    try:
        score()
    finally:
        cluster.add_node(num_cpus=1, object_store_memory=80 << 20)  # for the next test
    assert removed == [True]


@pytest.fixture
def train_on(
    backbone_of: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], tuple[dict[str, bytes], set[Path]]]:
    """Function that trains linear heads in the cache of that name; returns the run's files, and the store's shards."""
    monkeypatch.setattr(store, "_MAX_TEXTS", 4)
    write_jsonl(tmp_path / "log.jsonl", small_log(16))
    config = config_of("linear", backbone_of("llama"), tmp_path)
    config.search.layers, config.search.poolings = [], ["last", "mean"]  # type: ignore[attr-defined]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config.to_dict()))

    def run(name: str, *flags: str) -> tuple[dict[str, bytes], set[Path]]:
        monkeypatch.setenv("PRM_CACHE", str(tmp_path / name))
        folder = tmp_path / f"{name} run"
        main(["train", str(tmp_path / "run.yaml"), "--output_dir", str(folder), *flags])
        return files_of(folder), set((tmp_path / name).rglob("*.safetensors"))

    return run


def test_training_reads_its_texts_on_two_nodes(
    cluster: Cluster,
    train_on: Callable[..., tuple[dict[str, bytes], set[Path]]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The run of one process to the bit, although a worker dies on the way; this process writes, as texts come."""
    sent, send, written_before = list[int](), ray_engine.send, list[int]()
    here, _ = train_on("here")

    def kill_third(worker: object, texts: list[Encoded]) -> object:
        reference = send(worker, texts)  # type: ignore[arg-type]
        sent.append(len(texts))
        written_before.append(len(list(Path(os.environ["PRM_CACHE"]).rglob("*.safetensors"))))
        if len(sent) == 3:
            ray.kill(worker)
        return reference

    monkeypatch.setattr(ray_engine, "send", kill_third)
    monkeypatch.setattr(hidden_states, "read_pooled", None)  # not in this process
    elsewhere, shards = train_on("elsewhere", "--engine", "ray")
    assert elsewhere == here
    assert "a worker died while reading task " in caplog.text
    assert len(sent) > 4
    assert 0 < written_before[-1] < len(shards)


def test_a_killed_training_reads_the_rest(
    cluster: Cluster,
    train_on: Callable[..., tuple[dict[str, bytes], set[Path]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the same command, with the same run: a command killed by the system, on the same cluster."""
    code = """
import sys, time
from prm.cli import main
from prm.features import store
from prm.scale import ray_engine
store._MAX_TEXTS = 4
send = ray_engine.send
ray_engine.send = lambda worker, texts: time.sleep(0.5) or send(worker, texts)
main(["train", *sys.argv[1:], "--engine", "ray"])
"""
    here, _ = train_on("here")
    command = [sys.executable, "-c", code, str(tmp_path / "run.yaml"), "--output_dir", str(tmp_path / "killed run")]
    environment = os.environ | {"RAY_ADDRESS": cluster.address, "PRM_CACHE": str(tmp_path / "killed")}
    with subprocess.Popen(command, cwd=ROOT, env=environment) as process:
        until = time.monotonic() + 240
        while len(list((tmp_path / "killed").rglob("*.safetensors"))) < 8 and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    kept = set((tmp_path / "killed").rglob("*.safetensors"))
    assert len(kept) >= 8
    assert not (tmp_path / "killed run").exists()
    sent, send = list[int](), ray_engine.send
    monkeypatch.setattr(
        ray_engine,
        "send",
        lambda worker, texts: sent.append(len(texts)) or send(worker, texts),  # type: ignore[func-returns-value]
    )
    again, shards = train_on("killed", "--engine", "ray")
    assert again == here
    assert kept < shards
    assert sum(sent) == min(texts_by_store(shards)) - min(texts_by_store(kept)) > 0


def texts_by_store(shards: set[Path]) -> list[int]:
    """Number of texts in each store."""
    counts = Counter[Path]()
    for path in shards:
        with safe_open(path, framework="numpy") as file:
            counts[path.parent] += len(file.get_tensor("keys"))
    return list(counts.values())


@pytest.mark.parametrize(
    ("workers", "share", "nodes", "threads", "room"),
    [
        (2, 0.0, [(0, 0), (1, 0), (1, 0)], 1, 2),
        (2, 0.0, [(16, 0), (4, 0)], 8, 2),
        (20, 0.0, [(16, 0), (4, 0)], 1, 20),
        (8, 1.0, [(8, 0), (96, 8)], 12, 8),
        (1, 1.0, [(64, 0), (8, 1)], 8, 1),
        (3, 0.5, [(8, 2)], 2, 4),
        (8, 1.0, [(4, 8)], 1, 4),
        (5, 0.0, [(2, 0)], 1, 2),
    ],
)
def test_workers_have_no_more_threads_than_all_of_them_find_on_the_machines(
    workers: int, share: float, nodes: list[tuple[int, int]], threads: int, room: int
) -> None:
    """CPUs of a machine without GPUs are of no use to a worker on a GPU: one that asks for them never comes up."""
    resources = [{"CPU": cpus, "GPU": cards} if cards else {"CPU": cpus} for cpus, cards in nodes]
    assert ray_engine.room_for(workers, share, resources) == (threads, room)


def test_a_cluster_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(address: str, **_: object) -> None:
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 1.0")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(PrmError, match=rf"{address}.* Version mismatch"), ray_engine.connected():
            pass
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray tries for minutes where nothing answers"))
    for named in (address, f"ray://{address}", "127.0.0.1:no port"):
        monkeypatch.setenv("RAY_ADDRESS", named)
        with pytest.raises(PrmError, match=f"no Ray at '{named}'"), ray_engine.connected():
            pass
        with pytest.raises(PrmError, match=f"no Ray at '{named}'"):
            ray_engine.require_ray()


def test_without_ray_the_error_says_what_to_install(
    run_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl(tmp_path / "rows.jsonl", rows_to_score(4))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PrmError, match=r"personalized-rm\[ray\]"):
        score_files(str(run_of("linear")), str(tmp_path / "rows.jsonl"), str(tmp_path / "out"), "ray")
    with pytest.raises(PrmError, match=r"personalized-rm\[ray\]"):
        RayWorkers()
    assert not (tmp_path / "out").exists()
