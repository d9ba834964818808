"""Models with everything that scoring and sampling need, as libraries of the hub know them: load, save, upload."""

from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import torch
from huggingface_hub import ModelHubMixin
from torch import nn

from prm.checkpoint import checkpoint as checkpoints
from prm.checkpoint.checkpoint import Checkpoint
from prm.checkpoint.config_file import Kind
from prm.checkpoint.hub import local_folder, upload_run
from prm.checkpoint.saved_copy import save_copy
from prm.config import format_features
from prm.errors import CheckpointError
from prm.io.folders import scratch_folder
from prm.models.backbone_paths import EMBEDDED
from prm.models.policy_model import Policy
from prm.models.reward_model import RewardModel

Core = TypeVar("Core", RewardModel, Policy)


class HubModel(nn.Module, ModelHubMixin, Generic[Core]):
    """A reward model or policy with its users, tokenizer and settings, which a run folder holds.

    Args:
        checkpoint: what `prm.checkpoint.checkpoint.load` returns.
    """

    # not `None`, or the mixin would copy the whole checkpoint, for a config.json of its own
    _hub_mixin_config: dict[str, object] = {}  # noqa: RUF012
    KIND: Kind | None = None  # of the folders that the class loads; any if `None`

    def __init__(self, checkpoint: Checkpoint[Core]):
        super().__init__()
        if isinstance(checkpoint, str | Path):
            raise TypeError(
                f"{type(self).__name__} takes a loaded run: {type(self).__name__}.from_pretrained({str(checkpoint)!r})"
            )
        self.checkpoint: Checkpoint[Core] = checkpoint
        self.model: Core = checkpoint.model
        self.fresh = False  # untrained

    @property
    def users(self) -> list[str]:
        """Ids of the users that the model knows, in row order."""
        return self.checkpoint.users.ids

    def forward(self, *args: object, **inputs: object) -> object:
        """What the model itself returns (`prm.models`): rewards, or a language model's output."""
        return self.model(*args, **inputs)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        backbone: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        **hub: Any,
    ) -> Self:
        """Load a run folder by its path or hub id; nothing is unpickled and no remote code is run.

        Args:
            backbone: new name or path of its backbone, if that was moved.
            device: the CPU if not given.
            dtype: of the backbone; as trained if not given.
            hub: `revision`, `token`, `cache_dir`, `force_download` or `local_files_only`, for a hub id.

        Raises `CheckpointError` if the folder is damaged, does not fit its backbone or holds another kind of model.
        """
        return cls._from_pretrained(
            model_id=str(pretrained_model_name_or_path), backbone=backbone, device=device, dtype=dtype, **hub
        )

    @classmethod
    def _from_pretrained(  # type: ignore[override]
        cls,
        *,
        model_id: str,
        backbone: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        **hub: Any,
    ) -> Self:
        if model_id == EMBEDDED:
            made = "is a language model and no run: make a model of it with"
            raise CheckpointError(f"{model_id!r} {made} {cls.__name__}.from_backbone({model_id!r}), and train it")
        folder = local_folder(model_id, **hub)
        kind = checkpoints.read_config(folder).kind
        if cls.KIND not in (None, kind):
            raise CheckpointError(f"{model_id} holds a {kind.replace('_', ' ')}, which {cls.__name__} is not for")
        target = torch.device(device) if device is not None else None
        return cls(checkpoints.load(folder, backbone, target, dtype))

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | Path, *, push_to_hub: bool = False, repo_id: str | None = None, **hub: Any
    ) -> str | None:
        """Write a run folder, which every command and `from_pretrained` take; returns the address if it is uploaded.

        Args:
            push_to_hub: also upload it, as `repo_id` or by the folder's name.
            hub: of `push_to_hub`.

        Raises `PrmError` if the folder cannot be written, and as `push_to_hub` does.
        """
        save_copy(self.checkpoint, Path(save_directory))
        return self.push_to_hub(repo_id or Path(save_directory).name, **hub) if push_to_hub else None

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        private: bool = True,
        revision: str | None = None,
        token: str | None = None,
        commit_message: str = "Upload a personalised model",
        create_pr: bool = False,
    ) -> str:
        """Upload the model; returns the address of the commit.

        User ids and what was learnt about each user are personal data: a new repository is private, and an existing
        public one is refused, unless `private` is false. Raises `PrmError` for what the hub refuses.
        """
        with scratch_folder() as temporary:
            save_copy(self.checkpoint, temporary / "run")
            return upload_run(
                temporary / "run",
                repo_id,
                private=private,
                revision=revision,
                token=token,
                commit_message=commit_message,
                create_pr=create_pr,
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({in_brief(self.checkpoint)})"


def in_brief(checkpoint: Checkpoint[Any]) -> str:
    """What a model is, in a line: its form or method, users, backbone and features."""
    model, settings = checkpoint.model, checkpoint.settings
    if isinstance(model, Policy):
        form, read = settings.objective.method if settings.objective else "policy", ""
    else:
        form, read = model.form.form, f", features={format_features(model.feature_spec)}"
    users = f"users={settings.users.kind!r}, num_users={len(checkpoint.users)}"
    return f"{form!r}, {users}, backbone={settings.backbone.name!r}{read}"
