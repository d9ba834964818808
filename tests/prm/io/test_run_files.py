"""A run's files, each damaged in every way: one line that names the file and says what to do, or the same numbers."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from policy.compare.answering import kept_rows, texts_of_run
from policy.compare.training import read_seconds
from policy.rewards.scales import read_scales
from prm.checkpoint.checkpoint import load_policy, read_users
from prm.config import TrainConfig
from prm.errors import PrmError
from prm.evaluation.audit import audit_run
from prm.evaluation.evaluate import evaluate_run
from prm.evaluation.pooled_runs import pool
from prm.experiments.run import _stored
from prm.io.run_files import read_group, read_run
from prm.io.tables import write_json, write_jsonl
from prm.scoring.adapt_run import adapt_run
from prm.scoring.forget_user import forget_user
from prm.scoring.scorer import Scorer
from prm.training.setup import with_settings_of_run
from prm.users.id_table import to_arrays
from tests.conftest import read_log, resign
from tests.planted import opposed_people
from tests.prm.experiments.test_experiments import looks, result
from tests.tiny_runs import SEARCH, config_of, small_log, train_any

KINDS = ("linear", "bayes", "soft", "dpo")
MORE = opposed_people(4, 5, people=3)
WHOLE: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "empty": lambda path: path.write_bytes(b""),
    "no JSON": lambda path: path.write_text("{]"),
    "no UTF-8": lambda path: path.write_bytes(b"\xff\xfe" + path.read_bytes()),
    "a list": lambda path: path.write_text("[1]\n"),
    "a number": lambda path: path.write_text("NaN\n"),
    "text": lambda path: path.write_text('"kind"\n'),
    "nested": lambda path: path.write_text("[" * 100_000),
    "a key twice": lambda path: path.write_text('{"kind": 1, "kind": 2}\n'),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.fixture(scope="module")
def runs(backbone_of: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each kind, with what was measured of it."""
    made, home = {}, tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRM_CACHE", str(home / "cache"))
        for kind in KINDS:
            folder, log = home / kind, small_log(12)
            write_jsonl(folder / "log.jsonl", log)
            config = config_of(kind, backbone_of("llama"), folder)
            if isinstance(config, TrainConfig):
                config.search.layers = [1]  # a run on a part of the backbone
            made[kind] = train_any(kind, config)
            found = evaluate_run(made[kind], log[:4])
            write_json(made[kind] / "evaluation-test.json", found.to_dict())
    assert SEARCH.layers == [1]
    return made


@pytest.fixture
def run(runs: dict[str, Path], tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return shutil.copytree(runs[request.param], tmp_path / "run")


def scores(run: Path) -> Any:
    return Scorer.from_pretrained(run, device="cpu").score("what of it?", ["a king", "no"], "p0").tolist()


def learnt(run: Path) -> Any:
    scorer = Scorer.from_pretrained(run, device="cpu")
    scorer.fit_user("zoe", [replace(c, user_id="zoe") for c in opposed_people(2, 3, people=1)])
    return scorer.score("what of it?", ["a king", "no"], "zoe").tolist()


def evaluated(run: Path) -> Any:
    return str(evaluate_run(run, MORE[:3]).to_dict())


def audited(run: Path) -> Any:
    return str(audit_run(run, MORE[:3]).to_dict())


def adapted(run: Path) -> Any:
    copy = run.parent / "adapted"
    shutil.rmtree(copy, ignore_errors=True)
    adapt_run(run, MORE, copy)
    return scores(copy)


def goes_on(run: Path) -> None:
    """Whatever the earlier run says: fewer settings are those of an earlier version."""
    with_settings_of_run(TrainConfig(str(run.parent / "next"), start_from=str(run)))


def policy_of(run: Path) -> int:
    return len(load_policy(str(run)).users)


def forgotten(run: Path) -> None:
    copy = run.parent / "forgotten"
    shutil.rmtree(copy, ignore_errors=True)
    before = contents(shutil.copytree(run, copy))
    try:
        forget_user(copy, "p0")
    except PrmError:
        assert contents(copy) == before
        raise


def contents(run: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in run.rglob("*") if path.is_file()}


Reader = Callable[[Path], Any]
READERS: list[tuple[str, str, Reader]] = [
    *((kind, "config.json", scores) for kind in KINDS),
    ("linear", "config.json", read_users),
    ("linear", "config.json", evaluated),
    ("linear", "config.json", adapted),
    ("linear", "config.json", goes_on),
    ("linear", "config.json", forgotten),
    ("dpo", "config.json", policy_of),
    *((kind, "run.json", goes_on) for kind in ("linear", "soft")),
    *((kind, "run.json", forgotten) for kind in ("linear", "dpo")),
    ("linear", "run.json", evaluated),
    ("bayes", "run.json", adapted),
    ("soft", "run.json", learnt),
    ("linear", "metrics.json", learnt),
    ("bayes", "metrics.json", learnt),
    ("dpo", "metrics.json", forgotten),
    ("linear", "controls.json", evaluated),
    ("linear", "controls.json", audited),
    ("linear", "controls.json", adapted),
    ("soft", "controls.json", forgotten),
    ("linear", "test.jsonl", adapted),
    ("dpo", "test.jsonl", lambda run: texts_of_run(str(run))),
    ("soft", "test.jsonl", forgotten),
    ("linear", "evaluation-test.json", lambda run: pool([run]).to_dict()),
    *((kind, name, scores) for kind in KINDS for name in ("model.safetensors", "users.safetensors")),
    ("linear", "users.safetensors", lambda run: read_users(run).to_json()),
    ("linear", "comparisons.safetensors", evaluated),
    ("dpo", "adapter/adapter_config.json", scores),
]
NAMES = [f"{kind}-{name}-{getattr(read, '__name__', '')}" for kind, name, read in READERS]


def outcome(read: Reader, run: Path) -> tuple[str, str]:
    """(what is said in the one line, what is read)."""
    try:
        return "", str(read(run))
    except PrmError as error:
        said = str(error)
    assert "\n" not in said
    return said, ""


@pytest.mark.parametrize(("run", "name", "read"), READERS, ids=NAMES, indirect=["run"])
def test_a_file_that_is_no_json_object_is_named(run: Path, name: str, read: Reader) -> None:
    path = run / name
    good = path.read_bytes()
    for damage, do in WHOLE.items():
        if read is forgotten and damage == "a folder" and name not in ("run.json", "config.json"):
            continue  # nothing of anybody's is in it
        if path.suffix == ".safetensors" and damage == "a number":
            continue
        do(path)
        said, _ = outcome(read, run)
        empty = name == "test.jsonl" and read is forgotten and damage == "empty"
        place = str(path).replace(str(run), str(run.parent / "forgotten")) if read is forgotten else str(path)
        assert said.startswith(place) or "config.json is missing" in said or empty, (damage, said)
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.write_bytes(good)


WRONG: dict[type, list[Any]] = {
    str: [5, None, [], {}],
    int: ["text", None, float("nan"), [], True, -5],
    float: ["text", None, float("nan"), [], True],
    bool: ["text", None, 5],
    dict: ["text", None, [], 5],
    list: ["text", None, {}, 5],
    type(None): [{}],
}
ABSENT = object()


def damaged(value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    """(which key, the value with that key gone, or with another kind of value)."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    for key in keys:
        for wrong in [ABSENT, *WRONG[type(value[key])]]:
            copy = dict(value) if isinstance(value, dict) else list(value)
            if wrong is ABSENT:
                del copy[key]
            else:
                copy[key] = wrong
            yield f"{key}: {'absent' if wrong is ABSENT else wrong}", copy
        for where, inner in damaged(value[key], depth - 1) if depth else ():
            copy = dict(value) if isinstance(value, dict) else list(value)
            copy[key] = inner
            yield f"{key}.{where}", copy


USED = {"metrics.json": ["personal"], "evaluation-test.json": ["users", "per_user"]}  # the rest takes minutes
KEYS: list[tuple[str, str, Reader, int]] = [
    *((kind, "config.json", scores, 2) for kind in KINDS),
    ("linear", "run.json", goes_on, 3),
    ("soft", "run.json", goes_on, 3),
    ("linear", "metrics.json", learnt, 2),
    ("linear", "evaluation-test.json", lambda run: pool([run]).to_dict(), 3),
]


@pytest.mark.parametrize(
    ("run", "name", "read", "depth"), KEYS, ids=[f"{kind}-{name}" for kind, name, *_ in KEYS], indirect=["run"]
)
def test_a_key_that_is_missing_or_of_another_kind_is_refused_or_makes_no_difference(
    run: Path, name: str, read: Reader, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prm.metrics._RESAMPLES", 9)
    path = run / name
    good = json.loads(path.read_text())
    good = {key: good[key] for key in USED.get(name, good)}
    path.write_text(json.dumps(good))
    whole, refused = str(read(run)), 0
    for where, broken in damaged(good, depth):
        path.write_text(json.dumps(broken))
        said, found = outcome(read, run)
        refused += bool(said)
        assert name in said or found == whole, (where, said)
    assert refused > 5


ANSWER = {"response": "a king", "made_of": "m", "surprise": 1.5, "tokens": 3, "seconds": 0.1, "ended": True}
ANSWER |= {"logp": -2.0, "base_logp": -3.0}


def stored_result(path: Path) -> Any:
    config = TrainConfig(str(path.parent))
    write_json(path.parent / "run.json", {"config": config.to_dict()})
    return _stored(config)


STORED: dict[str, tuple[Any, Reader]] = {
    "result.json": ({"result": result(looks=looks([0.7], [0.5])).to_dict()}, stored_result),
    "seconds.json": ({"sft": 1.5, "dpo": 2.0}, lambda path: read_seconds(path.parent)),
    "reward_scale.jsonl": ({"user_id": "anna", "shift": 0.5, "scale": 2.0}, read_scales),
    "arm.jsonl": (ANSWER, lambda path: kept_rows(path, "m", 2)),
}


def numbers_in(text: str) -> set[str]:
    return set(re.findall(r"\d[\d.e-]*", text))


@pytest.mark.parametrize("name", STORED)
def test_other_files_are_read_alike(tmp_path: Path, name: str) -> None:
    """Rows of an experiment and what policies leave: nothing may be said that was not there, but less may."""
    path, (good, read) = tmp_path / name, STORED[name]
    lines = path.suffix == ".jsonl"

    def write(value: Any) -> None:
        path.write_text(json.dumps(value) + "\n" + (json.dumps(good) + "\n" if lines else ""))

    write(good)
    whole, refused = str(read(path)), 0
    for where, broken in damaged(good, 4):
        write(broken)
        said, found = outcome(read, path)
        refused += bool(said)
        assert name in said or numbers_in(found) <= numbers_in(whole), (where, said)
    assert refused > 5
    for damage, do in WHOLE.items():
        do(path)
        assert name in outcome(read, path)[0], damage
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        write(good)


@pytest.mark.parametrize("run", ["linear", "dpo"], indirect=True)
def test_an_index_or_a_table_that_does_not_fit_is_refused_whatever_its_digest(run: Path) -> None:
    path, table = run / "users.safetensors", run / "model.safetensors"
    good, numbers = ({k: v.clone() for k, v in load_file(p).items()} for p in (path, table))
    texts = {name: torch.from_numpy(array) for name, array in to_arrays(["p0", "p0"], [1, 1]).items()}
    more = {name: torch.from_numpy(array) for name, array in to_arrays(["p0", "p1", "p2"], [1] * 3).items()}
    people = next(name for name in numbers if name.startswith("user_model."))
    for broken, place, fault in [
        (texts, path, "has 'p0' twice"),
        (good | {"text": texts["text"]}, path, "has 'p0' twice"),
        (good | {"text": torch.tensor(list(b"pxp1"), dtype=torch.uint8)}, path, "wrong rows"),
        (good | {"text": torch.tensor(list(b"\xff0p1"), dtype=torch.uint8)}, path, "UTF-8"),
        (good | {"rows": torch.tensor([1, 1])}, path, "wrong rows"),
        (good | {"rows": torch.tensor([7, 1])}, path, "wrong rows"),
        (good | {"rows": good["rows"].flip(0)}, path, "wrong rows"),
        (good | {"keys": good["keys"].flip(0)}, path, "wrong rows"),
        (good | {"ends": torch.tensor([-2, 4])}, path, "wrong rows"),
        (good | {"judgements": torch.tensor([3, -7])}, path, "negative"),
        (more, path, "has shape"),
        (numbers | {people: numbers[people][:-1].clone()}, table, "has shape"),
        (numbers | {people: numbers[people] * float("nan")}, table, "not finite"),
    ]:
        save_file(broken, place)
        resign(run)
        said, _ = outcome(scores, run)
        assert fault in said, (fault, said)
        assert fault == "not finite" or (table if fault == "has shape" else path).name in said
        save_file(good, path)
        save_file(numbers, table)


def counted(caplog: pytest.LogCaptureFixture, evaluated: Callable[[], Any]) -> tuple[Any, list[Any]]:
    """(what is returned, how many comparisons each warning says were trained on)."""
    caplog.clear()
    result = evaluated()
    return result, [
        r.args[1] for r in caplog.records if r.name == "prm.evaluation.overlap" and isinstance(r.args, tuple)
    ]


@pytest.mark.parametrize("run", ["linear", "soft", "dpo"], indirect=True)
def test_comparisons_that_were_trained_on_are_counted(
    run: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 24 comparisons 6 are held out; gradient steps were trained on some of the others and stopped by the rest."""
    monkeypatch.setattr("prm.metrics._RESAMPLES", 9)
    held_out, log = read_log(run / "test.jsonl"), small_log(12)
    seen = next(c for c in log if c.prompt not in {c.prompt for c in held_out})
    swapped = replace(seen, chosen=seen.rejected, rejected=seen.chosen)
    log += [swapped, replace(seen, p_chosen=0.5), replace(seen, user_id="zoe"), replace(seen, prompt="another one?")]
    expected = {"own": 20, "others": 1}
    result, warnings = counted(caplog, lambda: evaluate_run(run, log, against=run))
    assert (result.to_dict()["overlap"], result.overlap_against, warnings) == (expected, expected, [20, 20])
    if (run / "uniform").is_dir():
        result, warnings = counted(caplog, lambda: audit_run(run, log))
        assert (result.overlap, warnings) == (expected, [20])
        result, warnings = counted(caplog, lambda: evaluate_run(run, held_out, against=run / "uniform"))
        assert (result.overlap, result.overlap_against, warnings) == ({"own": 0, "others": 0}, None, [])


@pytest.mark.parametrize("run", ["linear"], indirect=True)
def test_a_run_that_does_not_record_its_comparisons_never_says_that_there_are_none(
    run: Path, runs: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """One of an earlier version, also after more was added to it, and saved in place of a run that does."""
    (run / "comparisons.safetensors").unlink()
    resign(run)
    adapt_run(run, MORE)
    other = shutil.copytree(runs["bayes"], run.parent / "other")
    Scorer.from_pretrained(run).save_pretrained(other)
    for one in (run, other):
        result, warnings = counted(caplog, lambda one=one: evaluate_run(one, small_log(12)))  # type: ignore[misc]
        assert (result.to_dict()["overlap"], warnings) == (None, [])


@pytest.mark.parametrize("run", ["linear"], indirect=True)
def test_digests_of_comparisons_are_read_by_evaluations_alone(run: Path) -> None:
    path, whole = run / "comparisons.safetensors", scores(run)
    good = {name: tensor.clone() for name, tensor in load_file(path).items()}
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert scores(run) == whole
    assert outcome(evaluated, run)[0].startswith(str(path))
    integers = {name: tensor.int() for name, tensor in good.items()}
    for broken in ({"digests": good["digests"]}, good | {"users": good["users"][1:].clone()}, integers):
        save_file(broken, path)
        resign(run)
        assert outcome(evaluated, run)[0].startswith(str(path))


RECORD: dict[str, object] = {
    "kind": "linear",
    "seed": 3,
    "day": "2026-01-02",
    "config": {"data": {"path": "log.jsonl", "of_a_later_version": 1}, "users": {"kind": "mean"}},
    "environment": {"versions": {"torch": "2.9"}},
}


def test_the_record_of_another_version_is_kept_as_it_is(tmp_path: Path) -> None:
    """Fewer keys than today are an earlier version's, others a later one's."""
    write_json(tmp_path / "run.json", RECORD | {"of_a_later_version": {"a": 1}})
    assert read_run(tmp_path, "config.data") == RECORD | {"of_a_later_version": {"a": 1}}
    assert read_group(tmp_path, "data") == {"path": "log.jsonl", "of_a_later_version": 1}


@pytest.mark.parametrize(
    ("broken", "key"),
    [
        ({"day": 3}, "'day'"),
        ({"seed": -1}, "'seed'"),
        ({"config": {"data": {"path": 3}}}, r"'config\.data\.path'"),
        ({"config": {"data": "log.jsonl"}}, r"'config\.data'"),
        ({"config": {"users": {}}}, r"'config\.data' is missing"),
        ({"environment": {"versions": {"torch": 2}}}, r"'environment\.versions\.torch'"),
        ({"adapted": [{"people": 2}]}, r"'adapted\[0\]\.comparisons' is missing"),
    ],
)
def test_a_record_of_other_types_is_refused_by_its_key(tmp_path: Path, broken: dict[str, object], key: str) -> None:
    write_json(tmp_path / "run.json", RECORD | broken)
    with pytest.raises(PrmError, match=rf"run\.json.* {key}"):
        read_group(tmp_path, "data")
