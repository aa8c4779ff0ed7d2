"""The Algorithm Distillation model: a causal transformer over the steps of a learning history."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .attention_ad import ADAttention, ResidualLinear
from .backbone_cache_ad import BackboneCache, StepCache, library_cache, states_of, takes_rows_of_own_length
from .blocks_ad import ADBlock
from .cache_ad import ADCache, Carry, States
from .configuration_ad import ADConfig
from .dynamics_ad import DynamicsHead, DynamicsLayer
from .embeddings_ad import StepEmbedding, check_inputs
from .heads_ad import make_head
from .linear_attention_ad import LinearAttention
from .loading_ad import check_memory, check_trusted
from .masks_ad import MaskMixin
from .rollout_ad import RolloutMixin
from .rollout_config_ad import RolloutConfig
from .saving_ad import SavingMixin
from .step_ad import StepDecoder, choose_products, is_plain

# Arguments that every model's forward pass takes.
TRANSFORMERS_KWARGS = {*TransformersKwargs.__annotations__, "use_cache"}

# Classes of the blocks beside torch's own.
OWN_LAYERS = {ADBlock, ADAttention, LinearAttention, ResidualLinear}


class ADPreTrainedModel(PreTrainedModel):
    """Flags and initialisation that transformers asks of a model."""

    config: ADConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _no_split_modules = ["ADBlock"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": ADBlock, "attentions": ADAttention}
    main_input_name = "observations"
    accepts_loss_kwargs = True

    def get_input_embeddings(self) -> None:  # type: ignore[override]
        """No single table embeds a step, which tools that look for one (such as Accelerate's FSDP) are to know."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ResidualLinear):
            scale = self.config.initializer_range * (2 * self.config.num_hidden_layers) ** -0.5
            init.normal_(module.weight, std=scale)
        elif isinstance(module, LinearAttention):
            module.start()
        elif isinstance(module, DynamicsLayer):
            module.init_weights()


@dataclass
class ADOutput(ModelOutput):
    """
    Output of [`ADModel`].

    Attributes:
        loss (`torch.Tensor` of shape `()`, *optional*, returned with `labels`):
            Mean negative log-likelihood of the actions, in nats per action; with dynamics heads, plus
            `dynamics_weight` times the sum of their losses.
        losses (`dict[str, torch.Tensor]`, *optional*, returned with `labels`):
            Of a model of several groups, the loss of each. Of one with dynamics heads, `actions`, and `observation`,
            `reward`, `value` and `end`, each a mean over the steps whose next one tells it.
        logits (`torch.Tensor` of shape `(batch, time, n)`):
            Logits of the action at every step; a multi-dimensional action's distributions stand side by side. Of a
            model of several groups, a dict of them.
        past_key_values ([`ADCache`] or [`Carry`], *optional*):
            The cache that was passed in, or the carry after the one that was.
        hidden_states (`tuple[torch.Tensor]`, *optional*, with `output_hidden_states`):
            Of shape (batch, time, width) each: the tokens, and what each block makes of them, the last one normalised.
        attentions (`tuple[torch.Tensor]`, *optional*, with `output_attentions`):
            Of shape (batch, heads, time, time) each: the attention weights of each block.
    """

    loss: torch.Tensor | None = None
    logits: Any = None
    past_key_values: Any = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    losses: dict[str, torch.Tensor] | None = None


class ADModel(SavingMixin, MaskMixin, ADPreTrainedModel, RolloutMixin):
    """
    A causal transformer that continues learning histories, one token per step: embed(observation_t) +
    embed(action_{t-1}) + embed(reward_{t-1}) + embed(episode_start_t) -> decoder -> distribution of action_t.

    Unless `attn_implementation` is given, attention is explicit on CPUs for windows of up to 512 steps and the fused
    `sdpa` elsewhere.

    Args:
        config ([`ADConfig`]):
            The model's configuration.
    """

    def __init__(self, config: ADConfig) -> None:
        if config.groups is None and (config.observation_space is None or config.action_space is None):
            raise ValueError("ADConfig needs observation_space and action_space to make a model of")
        check_trusted(config)
        check_memory(config)
        super().__init__(config)
        if config.groups is None:
            self.embedding = StepEmbedding(config)
        else:
            self._make_groups()
        self.blocks: Any = None
        self.backbone: PreTrainedModel | None = None
        if config.backbone_config is None:
            self.blocks = nn.ModuleList(ADBlock(config, index) for index in range(config.num_hidden_layers))
            self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        else:
            self.backbone = AutoModel.from_config(config.backbone_config)
            parameters = inspect.signature(self.backbone.forward).parameters
            if "inputs_embeds" not in parameters:
                raise ValueError(f"backbone_config of type {self.backbone.config.model_type} takes no inputs_embeds")
            self._cache_argument = "cache_params" if "cache_params" in parameters else "past_key_values"
        if config.groups is None:
            self.head = make_head(config)
        self.dynamics = DynamicsHead(config) if config.dynamics_weight else None
        self.rollout_config = RolloutConfig()
        self.loaded_revision: str | None = None
        self.post_init()

    def set_attn_implementation(self, attn_implementation: str | dict, allow_all_kernels: bool = False) -> None:
        """Use an attention implementation from now on, whatever the device and the window are."""
        super().set_attn_implementation(attn_implementation, allow_all_kernels)
        self.config.automatic_attention = False
        if self.backbone is not None:
            self.backbone.set_attn_implementation(attn_implementation, allow_all_kernels)

    @can_return_tuple
    def forward(
        self,
        observations: torch.Tensor,
        previous_actions: torch.Tensor,
        previous_rewards: torch.Tensor,
        episode_starts: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        past_key_values: Any = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> ADOutput:
        r"""
        Of a model of several groups, each argument is a dict of such tensors by the groups' names: one pass of the
        trunk serves all of them.

        Args:
            observations (`torch.Tensor` of shape `(batch, time, ...)`):
                What was seen at each step.
            previous_actions (`torch.Tensor` of shape `(batch, time, ...)`):
                The action before each step; "none" (Discrete: n, MultiDiscrete: nvec, Box: zeros) at the first step of
                a history.
            previous_rewards (`torch.Tensor` of shape `(batch, time)`):
                The reward before each step; 0 at the first step of a history.
            episode_starts (`torch.Tensor` of shape `(batch, time)`):
                Whether each step is the first of its episode.
            attention_mask (`torch.Tensor` of shape `(batch, time)`, *optional*):
                0 for padding, which stands at the end.
            labels (`torch.Tensor` of shape `(batch, time, ...)`, *optional*):
                The actions that were taken; -100 to ignore one.
            past_key_values ([`ADCache`] or [`Carry`], with a backbone also a `Cache` of transformers, *optional*):
                What layers keep of the steps before these: a cache takes one step, in place, see
                [`~backbone_cache_ad.make_cache`]; after a carry, any number of steps make another, see
                [`~ADModel.init_carry`].
            output_hidden_states, output_attentions (`bool`, *optional*):
                Whether to return them; by default as the configuration says. Attention weights are of the `eager`
                implementation.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*):
                Numbers in the labels of all batches that the loss is the mean of, -100 left out, as a
                [`~transformers.Trainer`] that accumulates gradients counts them; by default the loss is this batch's.

        Raises:
            ValueError: for inputs whose shapes disagree or that are not of the model's spaces (on CPUs).
        """
        if unknown := set(kwargs) - TRANSFORMERS_KWARGS:
            raise TypeError(f"ADModel.forward takes no {', '.join(sorted(unknown))}")
        inputs = {
            **{"observations": observations, "previous_actions": previous_actions},
            **{"previous_rewards": previous_rewards, "episode_starts": episode_starts},
        }
        outputs: dict[str, Any] = {
            "output_hidden_states": output_hidden_states,
            "output_attentions": output_attentions,
        }
        outputs = {name: getattr(self.config, name) if value is None else value for name, value in outputs.items()}
        if self.config.groups is not None:
            arguments = {**inputs, "attention_mask": attention_mask, "labels": labels}
            decode = partial[Any](self._decode_masked, **outputs)
            return ADOutput(**self._forward_groups(decode, arguments, num_items_in_batch))
        try:
            if any(part.shape[:2] != observations.shape[:2] for part in inputs.values()):
                raise ValueError("the inputs' shapes disagree")  # where broadcasting would hide it
            tokens = self.embedding(*inputs.values())
            decoded = self._decode_masked(tokens, attention_mask, past_key_values=past_key_values, **outputs)
            logits = self.head(decoded[0])
            loss = losses = None
            if labels is not None:
                ignored = None if attention_mask is None else attention_mask == 0
                loss = self.head.loss(logits, labels, ignored, num_items_in_batch)
                if self.dynamics is not None:
                    steps: Any = labels.shape[:2].numel() if ignored is None else (~ignored).sum()
                    if num_items_in_batch is not None:
                        steps = num_items_in_batch / labels.shape[2:].numel()
                    found = self.dynamics.losses(decoded[0], inputs, ignored)
                    losses = {"actions": loss.detach(), **found.means()}
                    loss = loss + self.config.dynamics_weight * found.total / steps
        except (IndexError, RuntimeError, ValueError):  # looked into only now, as looking costs time
            check_inputs(self.config, {**inputs, "attention_mask": attention_mask, "labels": labels})
            raise
        if isinstance(past_key_values, Carry):
            past_key_values = past_key_values.after(observations.shape[1])
        return ADOutput(
            loss=loss,
            losses=losses,
            logits=logits,
            past_key_values=past_key_values,
            hidden_states=decoded.get("hidden_states"),
            attentions=decoded.get("attentions"),
        )

    def _decode_masked(self, tokens: torch.Tensor, attention_mask: Any = None, **arguments: Any) -> Any:
        return self._decode(self._mask_inputs(tokens), attention_mask, **arguments)

    def _mask_inputs(self, tokens: torch.Tensor) -> torch.Tensor:
        """Blank some of the tokens (batch, time, width) in training, and cast them as autocast does."""
        if self.training and self.config.input_mask_probability:
            mask = torch.rand(tokens.shape[:2], device=tokens.device) >= self.config.input_mask_probability
            tokens = tokens * mask.unsqueeze(-1)
        if torch.is_autocast_enabled(tokens.device.type):  # a residual stream of half the size
            tokens = tokens.to(torch.get_autocast_dtype(tokens.device.type))
        return tokens

    def decode(self, tokens: torch.Tensor, past_key_values: Any = None) -> torch.Tensor:
        """Hidden states (batch, time, width) of embedded steps of that shape, after those in a cache."""
        if self.backbone is None:  # a step of a rollout, with nothing beside it
            return self._decode_blocks(tokens, past_key_values)
        return self._decode(tokens, past_key_values=past_key_values)[0]

    def step_decoder(self, config: Any, rows: int) -> tuple[Callable[[torch.Tensor, Any], torch.Tensor], torch.dtype]:
        """What decodes steps of so many rows, `decode` or a faster equivalent, and the type of its products."""
        weight = self.embedding.episode_start.weight
        if self.backbone is not None or not is_plain(self.blocks, OWN_LAYERS):
            return self.decode, weight.dtype
        decoder = StepDecoder(self, choose_products(config.mixed_precision, weight, rows))
        return decoder, decoder.dtype

    def encode(self, tokens: torch.Tensor) -> States:
        """
        What a cache stores of embedded steps (batch, time, width): of each layer, keys and values (batch, heads, time,
        size) or states, or else, of a backbone that no [`ADCache`] serves, the steps themselves.
        """
        if self.backbone is None:
            longest = self.config.context_length
            if self.config.is_unbounded and tokens.shape[1] > longest:  # of a memory without a window: piece by piece
                carry = self.init_carry(len(tokens))
                for part in tokens.split(longest, dim=1):
                    self._decode_blocks(part, carry)
                    carry = carry.after(part.shape[1])
                return carry.states
            arguments, states = self._block_arguments(tokens, None), list[tuple[torch.Tensor, ...]]()
            for kind, block in zip(self.config.kinds_of_layers, self.blocks):
                states.append(block.attention.encode(block.attention_norm(tokens), **arguments[kind]))
                if len(states) < len(self.blocks):  # the last one's output is of no use here
                    tokens = block(tokens, **arguments[kind])
            return states
        if not takes_rows_of_own_length(self.backbone):
            return [(tokens,)]
        cache = library_cache(self.backbone, tokens)
        self._decode(tokens, past_key_values=cache)
        return states_of(cache)

    def init_carry(self, batch: int) -> Carry:
        """
        The carry of histories that begin, for windows of so many rows that follow one another:
        `outputs = model(**window, past_key_values=carry)`, then `carry = outputs.past_key_values`.

        Raises:
            ValueError: for a model some layers of which see a whole window at once, `full_attention` and backbones.
        """
        config = self.config
        if not config.is_unbounded:
            raise ValueError(
                "only layers of sliding_attention and linear_attention take along what they saw to the next window"
            )
        weight, states, window = self.norm.weight, list[tuple[torch.Tensor, ...]](), cast(int, config.sliding_window)
        for block in self.blocks:
            if isinstance(block.attention, LinearAttention):
                states.append((block.attention.empty(weight.new_zeros(batch, 1, config.hidden_size)),))
            else:
                heads, head_dim = block.attention.num_heads, block.attention.head_dim
                states.append((weight.new_zeros(batch, heads, window - 1, head_dim),) * 2)
        return Carry(states, torch.zeros(batch, dtype=torch.long))

    def _decode(
        self,
        tokens: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        **outputs: Any,
    ) -> Any:
        """A `ModelOutput` of blocks or backbone that begins with hidden states (batch, time, width)."""
        if isinstance(past_key_values, ADCache | StepCache) and tokens.shape[1] > 1:
            raise ValueError(f"a cache of this package takes one step at a time, got {tokens.shape[1]}")
        if self.backbone is None:
            return self._capture(tokens, past_key_values, return_dict=True, **outputs)
        arguments: dict[str, Any] = {"attention_mask": attention_mask}
        last = None
        if isinstance(past_key_values, StepCache):
            (tokens, arguments["attention_mask"], last), past_key_values = past_key_values.update(tokens), None
        elif isinstance(past_key_values, BackboneCache):
            arguments |= past_key_values.arguments(len(tokens))
        decoded = self.backbone(
            inputs_embeds=tokens,
            use_cache=past_key_values is not None,
            return_dict=True,
            **{name: value for name, value in outputs.items() if value},
            **{self._cache_argument: past_key_values},
            **arguments,
        )
        if isinstance(past_key_values, BackboneCache):
            past_key_values.settle()
        if not torch.is_autocast_enabled(tokens.device.type):  # Mamba's residual stream stays in float32
            decoded.last_hidden_state = decoded[0].to(tokens.dtype)
        if last is not None:
            decoded.last_hidden_state = decoded[0][torch.arange(len(last)), last].unsqueeze(1)
        return decoded

    @capture_outputs
    def _capture(
        self, tokens: torch.Tensor, past_key_values: Any, output_attentions: bool = False, **kwargs: Any
    ) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=self._decode_blocks(tokens, past_key_values, output_attentions))

    def _decode_blocks(
        self, tokens: torch.Tensor, past_key_values: ADCache | Carry | None, output_attentions: bool = False
    ) -> torch.Tensor:
        arguments = self._block_arguments(tokens, past_key_values, output_attentions)
        for kind, block in zip(self.config.kinds_of_layers, self.blocks):
            tokens = block(tokens, **arguments[kind], earlier=past_key_values)
        return self.norm(tokens)


if __package__ == "ad_hf.model":  # a copy beside a model is registered by the Auto class that loads it
    AutoModel.register(ADConfig, ADModel, exist_ok=True)
    ADModel.register_for_auto_class("AutoModel")

__all__ = ["ADModel", "ADOutput", "ADPreTrainedModel"]
