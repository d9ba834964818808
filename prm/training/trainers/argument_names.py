"""Messages about settings, with the names that the arguments of a trainer have."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from prm.checks import Settings, keys_of
from prm.errors import PrmError


def arguments_of(kind: type[Settings], key: str) -> dict[str, str]:
    """{setting: argument} of a group whose settings are arguments by themselves: `optim.user_lr` is `user_lr`."""
    return {full: full.removeprefix(f"{key}.") for full in keys_of(kind, key)}


@contextmanager
def named_as_arguments(names: Mapping[str, str]) -> Iterator[None]:
    """Name arguments where a `PrmError` of the block names settings: the caller has written no setting.

    Args:
        names: the argument of each setting that is called otherwise, as in `{"optim.epochs": "num_train_epochs"}`.
    """
    try:
        yield
    except PrmError as error:
        text = str(error).replace("config key '", "argument '")
        setting = re.compile(rf"(?<![\w.])({'|'.join(map(re.escape, names))})(?!\w)")
        error.args = (setting.sub(lambda found: names[found[1]], text),)
        raise
