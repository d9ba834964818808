"""GRPO in TRL's own trainer with a personal reward: the data set says for whom. Run it: python examples/grpo.py"""

from datasets import Dataset
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer

from policy.rewards.adapters import trl_reward
from prm import FeedbackConfig, read_feedback, train
from prm.models.backbones import embedded_model

log = read_feedback(FeedbackConfig(path="ukp_sample")).comparisons
run = train(log, output_dir="runs/grpo_reward", overwrite=True)

# every column but the prompt reaches the reward function: it finds the user of each row there
prompts = Dataset.from_list([{"prompt": c.prompt, "user_id": c.user_id} for c in log])
trainer = GRPOTrainer(
    model=str(embedded_model()),  # any language model, by folder or hub id
    reward_funcs=trl_reward(run.scorer()),
    train_dataset=prompts,
    peft_config=LoraConfig(r=8, target_modules="all-linear"),
    args=GRPOConfig(
        output_dir="runs/grpo",
        max_steps=2,  # shows that it runs; a policy needs hundreds
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=16,
        gradient_checkpointing=False,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
    ),
)
trainer.train()
for step in trainer.state.log_history:
    if "reward" in step:
        print(f"step {step['step']}: mean reward {step['reward']:.2f} logits")
