"""The model card of a run: its model, its training data, and whose personal data it contains."""

from typing import Any

from prm.checkpoint.config_file import ModelSettings
from prm.config import format_features
from prm.models.policy_model import Policy
from prm.models.reward_model import RewardModel

_WITHOUT_USERS = """It has no user parameters. `test.jsonl`, if there is one, contains held-out comparisons with ids.
"""
_REWARD_METHODS = ("ppo", "rloo", "grpo")  # methods without comparisons
_WITH_USERS = """The user index contains the ids of the users in the training data, and user parameters reflect their
preferences: treat the folder as personal data. `prm forget` removes a user; what shared weights learnt from their
comparisons stays. An unknown user is treated as the generic user.
"""


def model_card(model: RewardModel | Policy, settings: ModelSettings, people: int, run: dict[str, Any]) -> str:
    """The README.md of a run folder, Markdown with the hub's header.

    Args:
        run: as in `prm.checkpoint.checkpoint.save`.
        people: number of users in the index.
    """
    data = run.get("data", {})
    card = data.get("card")
    dataset = f" of {card['name']} ({card['citation']}; licence: {card['licence']})" if card else ""
    amount = (
        f"{data['train_answers']} responses"
        if "train_answers" in data
        else f"{data.get('train_comparisons', '?')} comparisons"
    )
    if isinstance(model, Policy):
        assert settings.objective is not None
        method, has_users = settings.objective.method, settings.users.num_virtual_tokens > 0
        title, tag, trained = (
            "Personalised policy" if has_users else "Policy",
            "text-generation",
            f"objective | {method}",
        )
        for_user = "for a given user" if has_users else "without users"
        use = f"Responds to a prompt {for_user}. Sample from it with `rerank.Sampler.from_pretrained(folder)`."
        if method in _REWARD_METHODS:
            amount = f"rewards of its own responses, for the prompts and users of {amount}"
    else:
        feature_list = ", ".join(format_features(model.feature_spec))
        title, tag = "Personalised reward model" if people else "Reward model", "reward-model"
        kernel = f", kernel {model.form.kernel}" if model.kernel else ""
        trained = f"reward | {model.form.form}, features (layers, pooling) {feature_list}{kernel}"
        use = "Scores a response to a prompt for a given user. Load it with `prm.Scorer.from_pretrained(folder)`."
    linear = isinstance(model, RewardModel) and model.is_linear
    tokens = "" if linear else f", {settings.users.num_virtual_tokens} token(s)"
    return f"""---
library_name: personalized-rm
tags: [{tag}, personalisation]
---
# {title}

{use}

| | |
|---|---|
| backbone | {settings.backbone.name} ({settings.backbone.layers or "all"} layers) |
| user model | {settings.users.kind}{tokens}, {people} users |
| {trained} |
| trained on | {amount}{dataset}, fingerprint {data.get("fingerprint", "?")} |

{_WITH_USERS if people else _WITHOUT_USERS}"""
