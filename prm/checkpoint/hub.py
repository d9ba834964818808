"""Run folders on the Hugging Face hub: downloaded without anything that could be code, uploaded without comparisons."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.utils import HFValidationError, validate_repo_id

from prm.errors import CheckpointError, PrmError
from prm.io.disk import copy, make_folder
from prm.io.folders import scratch_folder
from prm.io.run_files import read_json
from prm.io.tables import write_json
from prm.models.backbone_paths import is_out_of_reach, is_run

# weights, settings, chat templates, and what tokenizers consist of; never pickles or Python
_DOWNLOADED = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "README.md"]
# what a model consists of; comparisons, controls and results name users and stay here
_UPLOADED = (
    "config.json",
    "run.json",
    "model.safetensors",
    "users.safetensors",
    "comparisons.safetensors",
    "metrics.json",
    "README.md",
    "adapter",
    "backbone",
    "tokenizer",
)
_LOCAL = ("feature_stores",)  # keys of run.json that name folders of this machine


def local_folder(name: str | Path, **options: Any) -> Path:
    """The folder of a run that is named by its folder or by its hub id, which is downloaded to the hub's cache.

    Args:
        options: of `huggingface_hub.snapshot_download`: `revision`, `token`, `cache_dir`, `force_download`,
            `local_files_only`.

    Raises `CheckpointError` if the hub does not give it. A folder that is missing is returned as it is.
    """
    path = Path(name).expanduser()
    if isinstance(name, Path) or path.exists() or not _may_be_on_hub(name, path):
        return path
    away = is_out_of_reach(name)
    with _one_line(
        f"{name}: there is no such folder, and the hub {'does not answer' if away else 'gives no such run'}"
    ):
        folder = Path(snapshot_download(name, allow_patterns=_DOWNLOADED, **{"local_files_only": away, **options}))
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{name}: the hub has no run of this library there (config.json is missing)")
    return folder


def local_if_run(name: str | Path) -> str:
    """The folder of a run as by `local_folder`; the name of a language model stays as it is.

    Raises as `local_folder` does.
    """
    path, config = Path(name).expanduser(), None
    if not isinstance(name, Path) and not path.exists() and _may_be_on_hub(name, path):
        with suppress(Exception):  # what the hub does not give is named when it is loaded as a language model
            config = hf_hub_download(name, "config.json", local_files_only=is_out_of_reach(name))
    return str(local_folder(name) if config is not None and is_run(Path(config).parent) else name)


def _may_be_on_hub(name: str, path: Path) -> bool:
    """True for "owner/name", unless the part before the name is a folder here."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1 and not path.parent.is_dir()


def upload_run(
    folder: Path,
    repo_id: str,
    *,
    private: bool = True,
    revision: str | None = None,
    token: str | None = None,
    commit_message: str = "Upload a personalised model",
    create_pr: bool = False,
) -> str:
    """Upload the model of a run folder to the hub; returns the address of the commit.

    Comparisons (`test.jsonl`), results by user and paths of this machine's cache are left out. User ids, what was
    learnt about each user and digests of the comparisons that were trained on are part of the model.

    Args:
        private: of a repository that is made. An existing public one is refused unless this is false.
        revision: branch; the main one by default.

    Raises `PrmError` for what the hub refuses, and for a public repository that was not asked for.
    """
    with scratch_folder() as temporary, _one_line(f"not uploaded to {repo_id}"):
        _copy_model(folder, temporary)
        api = HfApi(token=token)
        repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if private and not api.repo_info(repo).private:
            raise PrmError("the repository is public, and a model holds personal data: set private=False to publish it")
        return str(
            api.upload_folder(
                repo_id=repo,
                folder_path=temporary,
                commit_message=commit_message,
                revision=revision,
                create_pr=create_pr,
            )
        )


def _copy_model(folder: Path, target: Path) -> None:
    for name in _UPLOADED:
        if (folder / name).exists():
            copy(folder / name, target / name)
    if (folder / "run.json").is_file():
        run = read_json(folder / "run.json", dict[str, object])
        write_json(target / "run.json", {name: value for name, value in run.items() if name not in _LOCAL})
    if (folder / "uniform").is_dir():
        make_folder(target / "uniform")
        _copy_model(folder / "uniform", target / "uniform")


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Turn any error of the hub's client into a `CheckpointError` of one line that begins with `what`."""
    try:
        yield
    except Exception as error:  # of the network, of the hub and of the client: they share no class
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise CheckpointError(f"{what}: {lines[0] if lines else type(error).__name__}") from None
