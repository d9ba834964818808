"""A new user from ten clicks, one after the other, as a product sends them. Run it: python examples/new_user.py"""

import random

from prm import Comparison, Scorer, train

TASKS = ["store rice", "keep bread fresh", "clean a pan", "ripen a mango", "peel garlic", "cook lentils", "dry herbs"]
TASKS += ["wash a wool coat", "sharpen a knife", "descale a kettle", "repot a fern", "patch a tyre", "oil a table"]


def click(user: str, task: str, likes_long: float, draw: random.Random) -> Comparison:
    """One simulated choice: the long response with probability `likes_long`."""
    short = f"To {task}, do it today."
    long = f"To {task}, first read what others did, then make a plan, and only then begin, step by step."
    chosen, rejected = (long, short) if draw.random() < likes_long else (short, long)
    return Comparison(user, f"How do I {task}?", chosen=chosen, rejected=rejected)


draw = random.Random(0)
log = [click(f"user {i}", task, likes_long=0.9 if i % 2 else 0.1, draw=draw) for i in range(8) for task in TASKS]
run = train(
    log,
    users={"kind": "bayes"},  # learns how much people differ, and how sure it is of each
    data={"on_artefact": "warn"},  # these responses differ in little but their length, and that is the point here
    output_dir="runs/new_user",
    overwrite=True,
)

scorer = run.scorer()
prompt, short, long = (
    "How do I boil an egg?",
    "To boil an egg, do it today.",
    "To boil an egg, first read what others did.",
)
print(f"before the first click: P(short) = {scorer.prefer(prompt, short, long, user='zoe'):.2f}, as for anybody")
for number, task in enumerate(TASKS[:10], start=1):
    scorer.update_user("zoe", [click("zoe", task, likes_long=0.1, draw=draw)])  # nobody else's scores move
    if number in (1, 3, 10):
        print(f"after {number} clicks: P(short) = {scorer.prefer(prompt, short, long, user='zoe'):.2f}")

scorer.save_pretrained("runs/with_zoe")  # a run folder, which knows her
assert Scorer.from_pretrained("runs/with_zoe").knows("zoe")
