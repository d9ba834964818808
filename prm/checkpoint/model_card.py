"""The model card of a run: what it is, what it learnt from, and whose data it holds."""

from typing import Any

from prm.layer_pooling import words
from prm.models.policy_model import Policy
from prm.models.reward_model import RewardModel

_NOBODY = """It holds no people's numbers. `test.jsonl`, where there is one, holds held-out comparisons with their ids.
"""
_REWARDED = ("ppo", "rloo", "grpo")  # methods that learn from no comparison
_PEOPLE = """The user index holds the ids of the people in the training data, and each person's numbers hold something
of their taste: treat the folder as personal data. `prm forget` removes one person; what shared weights learnt
from them stays. An unknown user gets what the generic user gets.
"""


def model_card(model: RewardModel | Policy, settings: dict[str, Any], people: int, run: dict[str, Any]) -> str:
    """The README.md of a run folder, Markdown with the hub's header.

    Args:
        settings, run: as `prm.checkpoint.checkpoint.save` has them.
        people: whose ids the run holds.
    """
    data = run.get("data", {})
    card = data.get("card")
    of_what = f" of {card['name']} ({card['citation']}; licence: {card['licence']})" if card else ""
    amount = (
        f"{data['train_answers']} answers"
        if "train_answers" in data
        else f"{data.get('train_comparisons', '?')} comparisons"
    )
    if isinstance(model, Policy):
        method, knows = settings["objective"]["method"], settings["users"]["num_virtual_tokens"] > 0
        title, tag, trained = "Personalised policy" if knows else "Policy", "text-generation", f"objective | {method}"
        whom = "for a given person" if knows else "for nobody in particular"
        use = f"Answers a prompt {whom}. Sample from it with `rerank.Sampler.from_pretrained(folder)`."
        if method in _REWARDED:
            amount = f"rewards of its own answers to the prompts, for the people, of {amount}"
    else:
        reads = ", ".join(words(model.reading))
        title, tag = "Personalised reward model" if people else "Reward model", "reward-model"
        kernel = f", kernel {settings['reward']['kernel']}" if settings["landmarks"] else ""
        trained = f"reward | {settings['reward']['form']}, reads (layers, pooling) {reads}{kernel}"
        use = "Scores an answer to a prompt for a given person. Load it with `prm.Scorer.from_pretrained(folder)`."
    linear = isinstance(model, RewardModel) and model.is_linear
    tokens = "" if linear else f", {settings['users']['num_virtual_tokens']} token(s)"
    return f"""---
library_name: personalized-rm
tags: [{tag}, personalisation]
---
# {title}

{use}

| | |
|---|---|
| backbone | {settings["backbone"]["name"]} ({settings["backbone"]["layers"] or "all"} layers) |
| user model | {settings["users"]["kind"]}{tokens}, {people} people |
| {trained} |
| trained on | {amount}{of_what}, fingerprint {data.get("fingerprint", "?")} |

{_PEOPLE if people else _NOBODY}"""
