"""Best of 16 responses of a model behind an OpenAI-compatible server, for each user, and pairs for training from them.

Start a server, such as `vllm serve Qwen/Qwen3-4B-Instruct-2507`, and train a reward model (`prm train`). Then run it:
python examples/best_of_n_openai_server.py runs/mine http://localhost:8000/v1
"""

import sys

from rerank import BestOfN, Endpoint, PairRules, Reranker, Sampling, make_pairs

PROMPTS = ["How do I store rice?", "How do I keep bread fresh?"]

run, url = sys.argv[1:3]
reranker = Reranker.from_pretrained(run)
users = reranker.scorer.users[:2]

# the only model of the server; the key comes from $OPENAI_API_KEY, if the server wants one
server = Endpoint(url, timeout=300, concurrency=8)
sampling = Sampling(max_new_tokens=200, temperature=1.0, top_p=1.0)

best_of = BestOfN(reranker, generator=server, n=16, sampling=sampling)
for prompt in PROMPTS:
    print(prompt)
    for user, best in zip(users, best_of.generate_batch([prompt] * len(users), users), strict=True):
        cut = " (cut)" if best.ended is False else ""
        worst = best.candidates[-1]["score"]
        print(f"  {user}: {best.text}{cut}  [{best.score:+.2f}; the worst of {len(best.candidates)} has {worst:+.2f}]")

# each user's best and worst response to each prompt, for `policy dpo pairs.jsonl`
rows = [{"prompt": prompt, "user_id": user} for prompt in PROMPTS for user in users]
made = make_pairs(reranker.scorer, rows, PairRules(soft_labels=True), server, n=16, sampling=sampling)
made.save("pairs.jsonl", overwrite=True)
print(f"pairs.jsonl: {made.counts.pairs} pairs of {made.counts.requests} users with a prompt")
