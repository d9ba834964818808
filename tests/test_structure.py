"""The shape of the project, held over the syntax trees: who imports whom, what the configs hold, what no file does."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from policy.compare.config import CompareConfig
from policy.config import DpoConfig, OnlineConfig, PpoConfig, SftConfig
from prm.checks import built
from prm.config import SplitConfig, TrainConfig
from prm.errors import PrmError
from prm.io.yaml_settings import read_config, read_train_config
from tests.paths import ROOT

PACKAGES = ("prm", "rerank", "policy")
SOURCES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
FOLDERS = [ROOT / "configs" / name for name in ("paper", "policy", "prm")]  # `accelerate` has no runs
CONFIGS = sorted(path for folder in FOLDERS for end in ("yaml", "yml") for path in folder.rglob(f"*.{end}"))
# From the ground up: a room imports rooms of lower lines alone, nowhere and for no type one of its own line.
FLOORS = """
prm.errors
prm.metrics
prm.checks
prm.config
prm.io
prm.data
prm.users prm.attention
prm.models
prm.features prm.checkpoint
prm.training.losses prm.training.encoded_pairs prm.training.prepare_log prm.training.template_check
prm.training.heads prm.training.setup
prm.training.personalized_model
prm.training.trainers
prm.training
prm.scoring
prm.scale
prm.evaluation
prm.experiments
prm.report
prm.cli
prm prm.__main__
rerank.sampling
rerank.ranking
rerank.pairs rerank.curves rerank.service
rerank.demo rerank.cli
rerank.serve_demo
rerank rerank.__main__
policy.config policy.prompts policy.responses
policy.dpo_losses policy.arguments
policy.setup policy.rewards policy.dpo_metrics
policy.personalized_policy policy.dpo_pairs
policy.sft policy.dpo policy.merge policy.ppo policy.online policy.judging
policy.compare
policy.cli
policy policy.__main__
"""
MOST_ANY = {"prm": 153, "rerank": 14, "policy": 15, "benchmarks": 2, "tests": 645}  # lower it whenever it falls
FLOOR = {room: number for number, line in enumerate(FLOORS.split("\n")) for room in line.split()}
NO_TORCH = (
    "data.arguments",
    "data.comparison",
    "data.sources",
    "users.index",
    "data.splits",
    "data.baselines",
    "metrics",
    "config",
    "data.profile",
    "evaluation.groups",
    "evaluation.audit",
    "report",
    "experiments.theory",
    "experiments.paper_tables",
    "attention.prefix_tree",
)
HEAVY = {"torch", "transformers", "trl", "peft", "accelerate", "datasets", "safetensors"}  # they all bring torch in

Tree = dict[str, ast.Module]


def name_of(file: Path, root: Path = ROOT) -> str:
    """`prm/data/sources/__init__.py` -> `prm.data.sources`."""
    return ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def parse(files: list[Path], root: Path = ROOT) -> Tree:
    return {name_of(file, root): ast.parse(file.read_text(encoding="utf-8"), str(file)) for file in files}


def typing_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def nodes(tree: ast.AST, lazy: bool) -> Iterator[ast.AST]:
    """Every node that runs; without `lazy`, only what runs on import: no bodies of functions."""
    for child in ast.iter_child_nodes(tree):
        if typing_only(child):
            for branch in child.orelse:  # type: ignore[attr-defined]
                yield from (branch, *nodes(branch, lazy))
        elif lazy or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from nodes(child, lazy)


def imports(
    name: str, tree: ast.Module, known: set[str], lazy: bool = False, packages: Collection[str] = frozenset()
) -> set[str]:
    """Modules that a module names: `from prm import report` is `prm.report` if there is such a file, else `prm`."""
    found = set()
    for node in nodes(tree, lazy):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = name.split(".")
            up = len(parts) - node.level + (name in packages)
            base = ".".join([*(parts[:up] if node.level else []), *([node.module] if node.module else [])])
            found |= {f"{base}.{a.name}" if f"{base}.{a.name}" in known else base for a in node.names}
    return found


def import_graph(trees: Tree, lazy: bool = False, packages: Collection[str] = frozenset()) -> dict[str, set[str]]:
    return {name: imports(name, tree, set(trees), lazy, packages) for name, tree in trees.items()}


def cycle(graph: dict[str, set[str]]) -> list[str] | None:
    """A path of modules that leads back to its start, if there is one."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str] | None:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done or name not in graph:
            return None
        for other in sorted(graph[name]):
            if found := visit(other, [*path, name]):
                return found
        done.add(name)
        return None

    return next((found for name in sorted(graph) if (found := visit(name, []))), None)


def reached(start: str, graph: dict[str, set[str]]) -> set[str]:
    """All that importing a module imports, packages on the way included: `prm.users` runs `prm/__init__.py` too."""
    seen: set[str] = set()
    todo = [start]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        parts = name.split(".")
        todo += [".".join(parts[:i]) for i in range(1, len(parts))]
        todo += graph.get(name, ())
    return seen


@pytest.fixture(scope="module")
def trees() -> Tree:
    found = parse(SOURCES)
    assert {
        "prm",
        "prm.models.reward_model",
        "prm.data.sources.public.everyday",
        "rerank",
        "rerank.cli",
        "policy.dpo",
    } <= set(found)
    return found


PACKAGE_NAMES = {name_of(file) for file in SOURCES if file.name == "__init__.py"}


def room_of(name: str) -> str:
    """The room of `FLOORS` that a module belongs to: the longest of its beginnings that is one."""
    parts = name.split(".")
    return next(
        room for k in range(len(parts), 0, -1) if (room := ".".join(parts[:k])) in FLOOR and (k > 1 or room == name)
    )


def all_imports(name: str, tree: ast.Module, known: set[str]) -> set[str]:
    """What a module names anywhere: in functions, for types, and as text for `import_module`."""
    everything = ast.Module(body=[], type_ignores=[])
    everything.body = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    texts = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return imports(name, everything, known, True, PACKAGE_NAMES) | {text for text in texts & known if "." in text}


def test_no_import_points_up(trees: Tree) -> None:
    for name, tree in trees.items():
        room = room_of(name)
        for other in all_imports(name, tree, set(trees)) & set(trees):
            assert room_of(other) == room or FLOOR[room_of(other)] < FLOOR[room], f"{name} imports {other}"


def test_prm_has_six_files_of_its_own() -> None:
    assert len(list((ROOT / "prm").glob("*.py"))) <= 6


def test_tests_mirror_the_packages() -> None:
    """Each folder of tests is a folder of sources."""
    for folder in (ROOT / "tests").rglob("test_*.py"):
        place = folder.relative_to(ROOT / "tests").parent
        assert (ROOT / place).is_dir(), place


def test_modules_import_without_cycles(trees: Tree) -> None:
    assert cycle(import_graph(trees, packages=PACKAGE_NAMES)) is None


@pytest.mark.parametrize("module", NO_TORCH)
def test_modules_without_torch(trees: Tree, module: str) -> None:
    """By the trees: neither they, in a function or outside, nor what they import brings torch in."""
    graph = import_graph(trees, packages=PACKAGE_NAMES)
    graph[f"prm.{module}"] = imports(f"prm.{module}", trees[f"prm.{module}"], set(trees), True, PACKAGE_NAMES)
    inside = [name for name in trees if f"{name}.".startswith(f"prm.{module}.")]  # a lazy package names them as text
    assert not {name.split(".")[0] for start in inside for name in reached(start, graph)} & HEAVY


def test_modules_without_torch_when_run() -> None:
    """By the interpreter: torch is not loaded after their import. Command lines parse their flags without it too."""
    names = [*(f"prm.{module}" for module in NO_TORCH), "prm.cli", "rerank.cli", "rerank.sampling.config"]
    names += [
        "policy.cli",
        "policy.config",
        "policy.judging.judges",
        "policy.judging.commands",
        "policy.judging.sample",
        "policy.rewards.adapters",
    ]
    code = f"import sys, {', '.join(names)}\nfrom prm.report import *\nprint(*({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, done.stdout.strip()) == (0, "", "")


def test_the_rules_themselves_find_what_they_look_for(tmp_path: Path) -> None:
    """A small project with every fault, and with what looks like one."""
    files = {
        "p/__init__.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.a import x\n",
        "p/a.py": "from p import b\n",
        "p/b.py": "def f():\n    import p.c\n",
        "p/c.py": "try:\n    from . import d\nexcept ImportError:\n    pass\nclass C:\n    import p.a\n",
        "p/d.py": "from .c import C\n",
        "p/s/__init__.py": "from .e import x\n",
        "p/s/e.py": "import os.path\nimport torch.nn\n",
    }
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    found = parse(sorted(tmp_path.rglob("*.py")), tmp_path)
    graph = import_graph(found, packages={"p", "p.s"})
    assert graph == {
        "p": {"typing"},
        "p.a": {"p.b"},
        "p.b": set(),
        "p.c": {"p.d", "p.a"},
        "p.d": {"p.c"},
        "p.s": {"p.s.e"},
        "p.s.e": {"os.path", "torch.nn"},
    }
    assert cycle(graph) == ["p.c", "p.d", "p.c"]
    assert cycle({**graph, "p.d": set()}) is None
    assert imports("p.b", found["p.b"], set(found), lazy=True) == {"p.c"}
    assert reached("p.s", graph) == {"p", "p.s", "p.s.e", "os", "os.path", "torch", "torch.nn", "typing"}


def leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, (*path, key))
    else:
        yield path, tree


def at(tree: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = (tree or {}).get(key)
    return tree


def test_there_are_configs() -> None:
    assert {ROOT / "configs/prm/demo.yaml", ROOT / "configs/policy/laptop/tldr-dpo.yaml"} <= set(CONFIGS)


def below(path: Path) -> list[Path]:
    """The configs that one is laid over: for `configs/paper/laptop/x.yaml`, `configs/paper/x.yaml`."""
    return [path.parents[1] / path.name] if path.parent.name == "laptop" else []


def kind_of(path: Path) -> tuple[type[SplitConfig], list[str]]:
    """(what a config holds, the command that takes it), by its place and name."""
    if ROOT / "configs/policy" not in path.parents:
        return TrainConfig, ["prm", "train"]
    if path.stem.startswith("compare-"):
        return CompareConfig, ["policy", "compare"]
    kinds: dict[str, type[SplitConfig]] = {"dpo": DpoConfig, "ppo": PpoConfig, "sft": SftConfig, "online": OnlineConfig}
    name = path.stem.rpartition("-")[2]
    return kinds[name], ["policy", name]


def read(path: Path, *paths: Path) -> SplitConfig:
    """`paths` as settings of the kind that `path` holds."""
    kind, _ = kind_of(path)
    return read_config(kind, *paths)


@pytest.mark.parametrize(
    "path", CONFIGS, ids=lambda path: "-".join(path.relative_to(ROOT / "configs").with_suffix("").parts)
)
def test_configs_parse_strictly_and_make_sense(path: Path) -> None:
    config = read(path, *below(path), path)
    config.check()
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    for key, value in leaves(given):
        assert at(config.to_dict(), key) == value, key


@pytest.mark.parametrize(
    "path", CONFIGS, ids=lambda path: "-".join(path.relative_to(ROOT / "configs").with_suffix("").parts)
)
def test_configs_hold_only_what_differs_from_the_defaults(path: Path) -> None:
    """Or, where it is laid over another one, from that."""
    config, default = (read(path, *paths).to_dict() for paths in ([*below(path), path], below(path)))
    given = [key for key, _ in leaves(yaml.safe_load(path.read_text(encoding="utf-8")))]
    assert given
    for key in given:
        assert at(config, key) != at(default, key), ".".join(key)


@pytest.mark.parametrize(
    "path", CONFIGS, ids=lambda path: "-".join(path.relative_to(ROOT / "configs").with_suffix("").parts)
)
def test_configs_start_with_their_command(path: Path) -> None:
    """`# make TARGET` with a target of the Makefile, or the command and the file's own place, last if on others."""
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    command = first[2:].split()
    if command[0] == "make":
        assert len(command) == 2
        assert re.search(rf"^{re.escape(command[1])}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    else:
        first, *later = (str(config.relative_to(ROOT)) for config in [*below(path), path])
        assert command == [*kind_of(path)[1], first, *(word for config in later for word in ("--config", config))]


WRONG = [
    pytest.param("alfa: 0.3", "alfa", id="unknown-key"),
    pytest.param("search:\n  fold: 2", "fold", id="unknown-key-in-a-group"),
    pytest.param("serach:\n  folds: 2", "serach", id="unknown-group"),
    pytest.param("alpha: high", "alpha", id="text-for-a-number"),
    pytest.param("alpha: null", "alpha", id="null-for-a-number"),
    pytest.param("search:\n  folds: 2.5", "search.folds", id="fraction-for-a-count"),
    pytest.param("search:\n  l2: 3", "search.l2", id="number-for-a-list"),
    pytest.param("overwrite: 3", "overwrite", id="number-for-a-switch"),
    pytest.param("output_dir: 5", "output_dir", id="number-for-a-text"),
    pytest.param("backbone: 3", "backbone", id="number-for-a-group"),
    pytest.param("backbone: smollm2-135m", "backbone", id="text-for-a-group"),
    pytest.param("search: null", "search", id="null-for-a-group"),
    pytest.param("search: [2]", "search", id="list-for-a-group"),
    pytest.param("train: frozn", "train", id="misspelt-enum"),
    pytest.param("users:\n  kind: indvidual", "users.kind", id="misspelt-enum-in-a-group"),
    pytest.param("data:\n  tldr:\n    num_usres: 3", "num_usres", id="unknown-key-in-an-inner-group"),
    pytest.param("data:\n  tldr:\n    num_users: null", "data.tldr.num_users", id="null-in-an-inner-group"),
    pytest.param("data:\n  tldr: 3", "data.tldr", id="number-for-an-inner-group"),
    pytest.param("data:\n  tldr: null", "data.tldr", id="null-for-an-inner-group"),
    pytest.param("search:\n  poolings: [mien]", "search.poolings", id="misspelt-enum-in-a-list"),
]


@pytest.mark.parametrize(("text", "key"), WRONG)
def test_a_wrong_config_is_refused_by_its_key(tmp_path: Path, text: str, key: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"# make x\n{text}\n")
    with pytest.raises(PrmError, match=re.escape(key)) as raised:
        read_train_config(path)
    assert str(path) in str(raised.value)


def test_all_wrong_keys_of_a_config_are_named(tmp_path: Path) -> None:
    """Unknown ones and wrong values, in groups and outside, each once; and then nothing is read."""
    path = tmp_path / "run.yaml"
    path.write_text("alfa: 0.3\nalpha: high\nusers:\n  knd: x\n  clusters: 0\nsearch: null\n")
    with pytest.raises(PrmError) as raised:
        read_train_config(path)
    assert [str(raised.value).count(f"'{key}'") for key in ("alfa", "users.knd", "users.clusters", "search")] == [1] * 4
    assert "'alpha' must be" in str(raised.value)
    assert "\n" not in str(raised.value)
    with pytest.raises(PrmError, match=r"'one'.*'two'"):
        built(TrainConfig, {"one": 1, "two": 2})


def test_a_config_that_is_no_mapping_or_missing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    with pytest.raises(PrmError, match="yaml"):
        read_train_config(path)
    for text in ("- alpha", "alpha: [", "", "alpha"):
        path.write_text(text)
        with pytest.raises(PrmError, match=re.escape(str(path))):
            read_train_config(path)


def test_a_right_config_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("alpha: 1e-1\ntrain: lora\nsearch:\n  l2: [1, 2.5]\nbackbone:\n  layers: 3\n")
    config = read_train_config(path)
    assert (config.alpha, config.train, config.search.l2, config.backbone.layers) == (0.1, "lora", [1.0, 2.5], 3)
    assert config.search.folds == TrainConfig().search.folds


def unsafe_loads(tree: ast.Module) -> list[str]:
    """What runs code that a file holds: pickles, by whatever name they come."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in ("pickle", "joblib", "dill", "cloudpickle")]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{a.name}" for a in node.names]
            found += [
                n for n in names if re.match(r"(pickle|joblib|dill|cloudpickle)\.|torch(\.serialization)?\.load$", n)
            ]
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "torch.serialization.load"):
            found.append("torch.load")
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            found.append("allow_pickle")
    return found


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "import torch\nx = torch.load('a')",
        "from torch import load",
        "from pickle import loads as l",
        "from torch.serialization import load",
        "np.load(a, allow_pickle=True)",
    ],
)
def test_unsafe_loads_are_found(text: str) -> None:
    assert unsafe_loads(ast.parse(text))


@pytest.mark.parametrize(
    ("first", "given", "expected"),
    [("prm", None, "PASSIVE"), ("rerank", None, "PASSIVE"), ("policy", None, "PASSIVE"), ("prm", "ACTIVE", "ACTIVE")],
)
def test_threads_wait_passively_unless_the_user_says_otherwise(first: str, given: str | None, expected: str) -> None:
    """Read by OpenMP when torch is imported: it must stand there before, and the user's own value stays."""
    own = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    code = f"import {first}, os, sys; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    environment = own if given is None else own | {"OMP_WAIT_POLICY": given}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == [expected, "False"]


def test_no_file_loads_pickles(trees: Tree) -> None:
    assert {name: found for name, tree in trees.items() if (found := unsafe_loads(tree))} == {}


LOADERS = {"from_pretrained", "from_config", "load_dataset", "load_dataset_builder", "pipeline"}
OURS = {
    "Scorer",
    "PersonalizedRewardModel",
    "PersonalizedPolicy",
    "Reranker",
    "Sampler",
    "PeftConfig",
    "PeftModel",
}  # classes whose `from_pretrained` knows no code but our own, or PEFT's


def may_run_code(tree: ast.AST) -> list[int]:
    """Lines that load with transformers or datasets and do not say `trust_remote_code=False`, or only pass it on."""
    safe: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and any(
            k.arg == "trust_remote_code" and isinstance(k.value, ast.Constant) and k.value.value is False
            for k in node.keywords
        ):
            safe.add(id(node.func))
    return [
        node.lineno
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and node.attr in LOADERS and ast.unparse(node.value) not in OURS)
        or (isinstance(node, ast.Name) and node.id in LOADERS)
        if id(node) not in safe
    ]


def test_loads_that_may_run_code_are_found() -> None:
    for text in (
        "AutoModel.from_pretrained('a')",
        "x.AutoConfig.from_pretrained('a', trust_remote_code=given)",
        "f(**more, trust_remote_code=False, g=AutoModel.from_config(c))",
        "AutoTokenizer.from_pretrained('a', **load)",
        "from datasets import load_dataset\nload_dataset('a', trust_remote_code=True)",
        "load = partial(AutoModel.from_pretrained, dtype=x)",
    ):
        assert may_run_code(ast.parse(text)), text
    text = "Scorer.from_pretrained(run)\nAutoModel.from_pretrained('a', trust_remote_code=False)"
    assert not may_run_code(ast.parse(text))


def test_no_load_runs_remote_code() -> None:
    """In no module, script, example or Python of the docs."""
    files = [*SOURCES, *(file for name in ("examples", "benchmarks") for file in (ROOT / name).rglob("*.py"))]
    found = {str(f.relative_to(ROOT)): may_run_code(ast.parse(f.read_text(encoding="utf-8"))) for f in files}
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        found |= {f"{page.name}: {block}": may_run_code(ast.parse(block)) for block in blocks}
    assert len(found) > 100
    assert {name: lines for name, lines in found.items() if lines} == {}


CHANGES = re.compile(  # what changes files and folders, by the names of functions
    r"(os\.(replace|rename|remove|unlink|rmdir|mkdir|makedirs|truncate|link|symlink|open|write|removedirs|chmod)"
    r"|shutil\.(rm|copy|move|make|unpack|chown)\w*|tempfile\.\w+|(.*\.)?(save_file|SummaryWriter)"
    r"|.*\.(write_text|write_bytes|mkdir|unlink|rmdir|touch|symlink_to|hardlink_to|chmod"
    r"|save_pretrained|savefig|to_csv|to_parquet|save_to_disk|push_to_hub)"
    r"|(torch|np|numpy|json|pickle)\.(save\w*|dump))$"
)
CHANGERS = {  # who may change files, and how: everybody else asks these
    "prm.io.disk": ".*",
    "prm.io.locks": ".*",
    "prm.io.tables": r"temporary\.(open|write_bytes)",  # into what `prm.io.disk` gives
    "prm.cli.output": r"os\.open",  # the null device
    "prm.io.tensors": "save_file",
    "prm.report.drawing": r"figure\.savefig",  # into memory
    # what other packages write, within `written_by_others` or a folder that takes its place when it is whole
    "prm.checkpoint.checkpoint": r".*\.save_pretrained",
    "prm.checkpoint.sentence_transformers": r".*\.save_pretrained",
    "prm.models.backbones": r".*\.save_pretrained",
    # uploads of a copy, made by `prm.checkpoint.hub`
    "prm.checkpoint.hub_model": r"self\.push_to_hub",
    "prm.scoring.scorer": r"model\.push_to_hub",
    "prm.training.trainers.python_trainer": r"self\.(personalized\.)?push_to_hub",
    "policy.ppo.trainer": r"self\.(personalized\.)?push_to_hub",
    "prm.training.linear_heads": "SummaryWriter",
    "prm.training.trainers.step_trainer": r"SummaryWriter|torch\.save",  # a schedule, which transformers loads
    "policy.ppo.loop": "SummaryWriter",
}


def changes(tree: ast.Module) -> list[str]:
    """Calls that change files or folders."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ("os", "shutil", "tempfile"):
            found += [
                f"from {node.module} import {a.name}" for a in node.names if a.name not in ("PathLike", "environ")
            ]
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        modes = [ast.unparse(x) for x in [*node.args[:2], *(k.value for k in node.keywords if k.arg == "mode")]]
        opens = name.rpartition(".")[2] == "open" and any(re.fullmatch(r"'[rbt]*[wax+][wax+rbt]*'", m) for m in modes)
        path_replace = name.endswith(".replace") and len(node.args) == 1 and not node.keywords
        if CHANGES.match(name) or opens or path_replace:
            found.append(name)
    return found


@pytest.mark.parametrize(
    "text",
    [
        "open(a, 'w')",
        "a.open('ab')",
        "a.open(mode='r+')",
        "a.replace(b)",
        "(a / 'b').write_text(c)",
        "os.replace(a, b)",
        "shutil.rmtree(a)",
        "from shutil import rmtree",
        "tokenizer.save_pretrained(a)",
        "save_file(a, b)",
        "torch.save(a, b)",
        "a.parent.mkdir()",
        "SummaryWriter(a)",
    ],
)
def test_changes_of_files_are_found(text: str) -> None:
    assert changes(ast.parse(text))


def test_one_module_changes_files(trees: Tree) -> None:
    """So that a test can end a run before any change, and each is whole (`tests/test_kills.py`)."""
    for text in ("a.open()", "open(a, 'rb')", "'a'.replace('b', 'c')", "os.environ.get('a')", "os.path.realpath(a)"):
        assert not changes(ast.parse(text)), text
    found = {
        name: left
        for name, tree in trees.items()
        if (left := [call for call in changes(tree) if not re.fullmatch(CHANGERS.get(name, "(?!)"), call)])
    }
    assert found == {}


PLACE = re.compile(r"(?<![\w./~-])/(?:home|root|tmp|work)(?![\w-])")


def test_paths_of_a_machine_are_found() -> None:
    for text in ('"/{}/me"', "'/{}'", "see /{}/x", "=/{}"):
        text = text.format("home")
        assert PLACE.search(text), text
    for text in ("a/home", "/homepage", "https://x.org/home", "./tmp", "/work-in-progress", "../root"):
        assert not PLACE.search(text), text


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    kinds: Callable[[Path], bool] = lambda f: f.suffix in (".py", ".html", ".yaml", ".yml", ".jsonl", ".toml", ".txt")  # noqa: E731
    folders = [ROOT / name for name in (*PACKAGES, "configs", "examples")]
    files = [f for folder in folders for f in folder.rglob("*") if f.is_file() and kinds(f)]
    files += [ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / "constraints.txt"]
    assert len(files) > 30
    found = {str(f.relative_to(ROOT)): m[0] for f in files if (m := PLACE.search(f.read_text(encoding="utf-8")))}
    assert found == {}


def test_identifiers_are_the_fields_words(trees: Tree) -> None:
    """A short list of private words that no identifier of the packages is, or is made of."""
    banned = {"told", "untold", "askers", "foretold", "stranger", "strangers", "newcomer", "newcomers", "tapped"}
    for name, tree in trees.items():
        words = {part for used in identifiers(tree) for part in used.lower().split("_")}
        assert not words & banned, name


def identifiers(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name"):
            if isinstance(used := getattr(node, field, None), str):
                yield used


@pytest.mark.parametrize(("package", "most"), MOST_ANY.items())
def test_any_becomes_no_commoner(package: str, most: int) -> None:
    """By lines that name the type `Any`."""
    texts = [file.read_text(encoding="utf-8") for file in (ROOT / package).rglob("*.py")]
    assert sum(len(re.findall(r"^.*\bAny\b", text, re.MULTILINE)) for text in texts) <= most
