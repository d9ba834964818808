"""Choose the settings of any user model on cached features by cross-validation, and fit them."""

from torch import Tensor

from prm.config import TrainConfig
from prm.training.heads.average import fit_average
from prm.training.heads.bayes_fit import fit_bayes, search_bayes
from prm.training.heads.grid_search import HeadData, Search, Trial, search
from prm.training.heads.settings_choice import Chosen, choose
from prm.training.heads.stack_fit import fit_stack, search_stack
from prm.users.build import user_model_class
from prm.users.user_model import UserModel

STARTS_UNIFORM = {"bayes": search_bayes, "stack": search_stack}  # kinds that start from the uniform model's search


def choose_settings(
    data: HeadData, config: TrainConfig, n_rows: int, uniform: Search | None = None
) -> tuple[Chosen, list[Trial]]:
    """The chosen settings, and all that were tried.

    Args:
        uniform: the search of the uniform model with the same kernels, from which some kinds start; searched if not
            given.
    """
    kind = config.users.kind
    if kind in STARTS_UNIFORM:
        start = uniform if uniform is not None else search(data, config.of_kind("uniform"), 1)
        return STARTS_UNIFORM[kind](data, start, config, n_rows)
    found = uniform if kind == "uniform" and uniform is not None else search(data, config, n_rows)
    return choose(found, data, user_model_class(config.users).CAN_AVERAGE), found.trials


def fit_chosen(data: HeadData, chosen: Chosen, config: TrainConfig, n_rows: int, texts: Tensor) -> UserModel:
    """The user model with all users, fitted on all of `data`; `texts`: head inputs of the distinct texts, [t, d]."""
    if config.users.kind == "bayes":
        return fit_bayes(data, chosen, config, n_rows, texts)
    if config.users.kind == "stack":
        return fit_stack(data, chosen, config, n_rows, texts)
    return fit_average(data, chosen, config, n_rows, texts)
