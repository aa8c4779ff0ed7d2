"""Settings of training."""

from __future__ import annotations

from dataclasses import dataclass

COUNTS = (
    *("max_steps", "batch_size", "gradient_accumulation_steps", "eval_steps", "save_steps", "save_total_limit"),
    "logging_steps",
)


@dataclass
class TrainingConfig:
    """The `training` section of a recipe.

    Args:
        max_steps: Updates of the weights.
        batch_size: Windows of an update, over all processes and accumulation steps.
        gradient_accumulation_steps: Forward and backward passes that an update's windows are divided into.
        optimizer: muon (Muon on the blocks' matrices, AdamW on everything else) or adamw.
        learning_rate: Peak of the learning rate.
        min_learning_rate_ratio: The cosine ends at this share of the peak.
        warmup_ratio: Share of the updates over which the learning rate rises.
        weight_decay: Of matrices; biases, norms and embeddings have none.
        adam_beta1: First moment's decay.
        adam_beta2: Second moment's decay.
        max_grad_norm: The gradient is clipped to this norm.
        mixed_precision: auto, no, bf16 or fp16; auto takes bf16 where it is measured to be faster.
        gradient_checkpointing: Compute each block's activations again in the backward pass instead of keeping them.
        torch_compile: Compile the model with torch.compile. On CPUs it was measured to bring nothing.
        eval_steps: Updates between rollouts on validation tasks; the best model is kept. The last is always evaluated.
        eval_episodes: Episodes of such a rollout.
        eval_repeats: Environments per validation task in it.
        save_steps: Updates between checkpoints, from which training can be resumed; by default eval_steps.
        save_total_limit: So many checkpoints are kept, the newest ones.
        logging_steps: Updates between lines of metrics.jsonl.
        log_with: An Accelerate tracker (tensorboard, wandb, trackio, ...), which an extra of that name installs.
        seed: Of the weights, the windows' order and the regularisation.
    """

    max_steps: int = 1000
    batch_size: int = 64
    gradient_accumulation_steps: int = 1
    optimizer: str = "muon"
    learning_rate: float = 3e-3
    min_learning_rate_ratio: float = 0.0
    warmup_ratio: float = 0.1
    weight_decay: float = 0.01
    adam_beta1: float = 0.9
    adam_beta2: float = 0.99
    max_grad_norm: float = 1.0
    mixed_precision: str = "auto"
    gradient_checkpointing: bool = False
    torch_compile: bool = False
    eval_steps: int = 250
    eval_episodes: int = 50
    eval_repeats: int = 2
    save_steps: int | None = None
    save_total_limit: int = 1
    logging_steps: int = 10
    log_with: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in COUNTS:
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"training.{name} must be at least 1, got {getattr(self, name)}")
        if self.batch_size % self.gradient_accumulation_steps:
            raise ValueError(
                f"training.batch_size ({self.batch_size}) must be a multiple of training.gradient_accumulation_steps "
                f"({self.gradient_accumulation_steps})"
            )
        if self.optimizer not in ("adamw", "muon"):
            raise ValueError(f"training.optimizer must be adamw or muon, got {self.optimizer!r}")
        if self.mixed_precision not in ("auto", "no", "bf16", "fp16"):
            raise ValueError(f"training.mixed_precision must be auto, no, bf16 or fp16, got {self.mixed_precision!r}")
