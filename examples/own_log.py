"""From a log in pandas to ranked responses, and a new user from a few clicks. Run it: python examples/own_log.py"""

import pandas as pd

from prm import Comparison, train
from rerank import Reranker

QUESTIONS = ["store rice", "keep bread fresh", "clean a pan", "ripen a mango", "peel garlic", "cook lentils"]


def short(question: str) -> str:
    return f"To {question}, do it today."


def long(question: str) -> str:
    return f"To {question}, first read what others did, then make a plan, and only then begin, step by step."


# columns with names of your own: anna takes the short responses, ben the long ones
log = pd.DataFrame(
    {"customer": customer, "question": f"How do I {q}?", "better": chosen(q), "worse": rejected(q)}
    for q in QUESTIONS
    for customer, chosen, rejected in (("anna", short, long), ("ben", long, short))
)
run = train(
    log,
    data={
        "columns": {"user_id": "customer", "prompt": "question", "chosen": "better", "rejected": "worse"},
        "on_artefact": "warn",  # these responses differ in little but their form, and that is the point here
    },
    output_dir="runs/own_log",
    overwrite=True,
)

reranker = Reranker(run.scorer())
prompt, responses = "How do I boil an egg?", [short("boil an egg"), long("boil an egg")]
for user in ("anna", "ben"):
    best = reranker.rank(prompt, responses, user=user, top_k=1)[0]
    print(f"{user}: {best['text']}")

clicks = [Comparison("zoe", f"How do I {q}?", chosen=long(q), rejected=short(q)) for q in QUESTIONS[:3]]
reranker.scorer.fit_user("zoe", clicks)  # nobody else's scores move
print(f"zoe: {reranker.rank(prompt, responses, user='zoe', top_k=1)[0]['text']}")
