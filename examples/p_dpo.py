"""P-DPO in Python: a language model that answers for a person. Run it: python examples/p_dpo.py"""

from policy import PersonalizedDPOConfig, PersonalizedDPOTrainer
from prm import FeedbackConfig, Scorer, read_feedback
from rerank import Sampler, Sampling

log = read_feedback(
    FeedbackConfig(path="ukp_sample")
).comparisons  # or a Dataset with prompt, chosen, rejected, user_id
args = PersonalizedDPOConfig(
    "runs/p_dpo",
    users={"num_virtual_tokens": 4},
    beta=0.1,
    max_steps=3,  # shows that it runs: users speak differently after hundreds
    per_device_train_batch_size=4,
    gradient_accumulation_steps=1,
)
trainer = PersonalizedDPOTrainer("smollm2-135m", args, train_dataset=log)
trainer.train()
trainer.save_model()

one, other = sorted({c.user_id for c in log})[:2]
prompt = log[0].prompt
sampler = Sampler.from_pretrained("runs/p_dpo")
for user in (one, other):
    print(f"{user}: {sampler.sample(prompt, 1, Sampling(max_new_tokens=32), user=user)[0]}")

scorer = Scorer.from_pretrained("runs/p_dpo")  # its implicit reward
for user in (one, other):
    print(f"{user}: P(first > second) = {scorer.prefer(prompt, log[0].chosen, log[0].rejected, user=user):.3f}")
