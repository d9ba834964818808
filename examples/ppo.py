"""PPO in Python with a personal reward: each rollout is rewarded as its user would. Run it: python examples/ppo.py"""

from policy import PersonalizedPPOConfig, PersonalizedPPOTrainer
from prm import FeedbackConfig, read_feedback, train
from rerank import Sampler, Sampling

log = read_feedback(FeedbackConfig(path="ukp_sample")).comparisons
reward = train(log, output_dir="runs/ppo_reward", overwrite=True).folder

args = PersonalizedPPOConfig(
    "runs/ppo",
    max_steps=2,  # shows that it runs; a policy needs hundreds
    rollout_batch_size=8,
    num_generations=2,
    max_new_tokens=24,
    num_scale_samples=16,
    per_device_train_batch_size=4,  # responses, as all batch sizes here
    gradient_accumulation_steps=2,
)
trainer = PersonalizedPPOTrainer("smollm2-135m", reward, args, train_dataset=log)  # prompts and users of the log
trainer.train()
trainer.save_model()
for step in trainer.history:
    print(f"step {step['step']}: reward {step['reward']:+.2f}, KL {step['kl']:.2f} nats")

sampler = Sampler.from_pretrained("runs/ppo")
print(sampler.sample(log[0].prompt, 1, Sampling(max_new_tokens=32), user=log[0].user_id)[0])
