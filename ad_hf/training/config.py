"""Settings of training, and of the model to train."""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from pathlib import PurePath
from typing import Any, Literal

from ad_hf.model.configuration_ad import ADConfig
from ad_hf.settings import check_settings, setting

_OwnSettings: Any = make_dataclass(
    "_OwnSettings",
    [
        (
            each.name,
            float if each.type == float | int else each.type,
            field(default=each.default, default_factory=each.default_factory, metadata=each.metadata),
        )
        for each in ADConfig.own_settings()
    ],
    namespace={"__doc__": ADConfig.__doc__},
)


@dataclass
class ModelConfig(_OwnSettings):
    """The `model` section: the settings of [`ADConfig`] but for those that come from the dataset.

    Args:
        reward_scale: Rewards are divided by it; by default by the mean magnitude of those that are not zero.
        normalize_observations: Normalise observations that are vectors, by their mean and deviation in the data.
        attn_implementation: eager, sdpa, ...; by default the choice depends on device and window.
    """

    reward_scale: float | None = setting(None, above=0)
    normalize_observations: bool = True
    attn_implementation: str | None = None

    def __post_init__(self) -> None:
        check_settings(self, "model")


@dataclass
class MixtureConfig:
    """The `mixture` section of a recipe: several families that one model learns, each a group of it.

    Args:
        recipes: Names or files of the recipes of the families. Tasks, sources, data and rollouts are theirs.
        weights: Share of a family in the windows of an update, by the name of its recipe; 1 where it is left out.
    """

    recipes: list[str] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_settings(self, "mixture")
        if len(self.recipes) == 1 or len(self.names) < len(self.recipes):
            raise ValueError(f"mixture.recipes must be two or more of different names, got {self.recipes}")
        for name, weight in self.weights.items():
            if name not in self.names or not weight > 0:
                raise ValueError(f"mixture.weights must be above 0, of {', '.join(self.names)}, got {name}: {weight}")

    @property
    def names(self) -> dict[str, str]:
        """Recipes by the names of their families."""
        return {PurePath(recipe).stem: recipe for recipe in self.recipes}


@dataclass
class TrainingConfig:
    """The `training` section of a recipe.

    Args:
        init_from: Model whose weights to start from where they fit: its folder, that of its run, or its Hub id.
        trainable: With init_from, the weights to train: all; new, those of embeddings and heads that are not taken; or
            lora, these and LoRA adapters of the decoder, which are merged into the model's weights.
        lora_rank: Rank of the adapters; what they add is scaled by 2.
        max_steps: Updates of the weights.
        batch_size: Windows of an update, over all processes and accumulation steps.
        gradient_accumulation_steps: Forward and backward passes that an update's windows are divided into.
        truncated_bptt: Let each window follow on one of the last update, and layers of linear_attention and
            sliding_attention take along what they saw, without its gradient.
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
        eval_steps: Updates between validations, rollouts that choose the best model. One follows the last update.
        eval_episodes: Episodes of a validation.
        eval_repeats: Environments per validation task.
        save_steps: Updates between checkpoints, from which training can be resumed; by default eval_steps.
        save_total_limit: Checkpoints to keep, the newest ones.
        logging_steps: Updates between lines of metrics.jsonl.
        log_with: An Accelerate tracker (tensorboard, wandb, trackio, ...), which an extra of that name installs.
        seed: Of the weights, the windows' order and the regularisation.
    """

    init_from: str | None = None
    trainable: Literal["all", "new", "lora"] = "all"
    lora_rank: int = setting(8, least=1)
    max_steps: int = setting(1000, least=1)
    batch_size: int = setting(64, least=1)
    gradient_accumulation_steps: int = setting(1, least=1)
    truncated_bptt: bool = False
    optimizer: Literal["adamw", "muon"] = "muon"
    learning_rate: float = setting(3e-3, above=0)
    min_learning_rate_ratio: float = setting(0.0, least=0, most=1)
    warmup_ratio: float = setting(0.1, least=0, most=1)
    weight_decay: float = setting(0.01, least=0)
    adam_beta1: float = setting(0.9, least=0, below=1)
    adam_beta2: float = setting(0.99, least=0, below=1)
    max_grad_norm: float = setting(1.0, above=0)
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    gradient_checkpointing: bool = False
    torch_compile: bool = False
    eval_steps: int = setting(250, least=1)
    eval_episodes: int = setting(50, least=1)
    eval_repeats: int = setting(2, least=1)
    save_steps: int | None = setting(None, least=1)
    save_total_limit: int = setting(1, least=1)
    logging_steps: int = setting(10, least=1)
    log_with: str | None = None
    seed: int = setting(0, least=0, below=2**32)

    def __post_init__(self) -> None:
        check_settings(self, "training")
        if self.trainable != "all" and self.init_from is None:
            raise ValueError(f"training.trainable {self.trainable} needs the model to start from, training.init_from")
        if self.batch_size % self.gradient_accumulation_steps:
            raise ValueError(
                f"training.batch_size ({self.batch_size}) must be a multiple of training.gradient_accumulation_steps "
                f"({self.gradient_accumulation_steps})"
            )
