"""
Linear attention: layers whose memory is one matrix per head, however many steps it has seen.

They follow the gated delta rule (https://huggingface.co/papers/2412.06464). With unit vectors as keys k, each head
keeps a state S that maps keys to values, forgets by a decay a in (0, 1), and is corrected towards a value v with a
strength b in (0, 1):

    u_t = b_t (v_t - a_t S_{t-1} k_t),    S_t = a_t S_{t-1} + u_t k_t^T,    o_t = S_t q_t

Steps of a rollout compute exactly that. Whole windows are computed by chunks: within one, all u solve a triangular
system at once, and the state goes from chunk to chunk.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from .attention_ad import ResidualLinear
from .cache_ad import ADCache, Carry
from .configuration_ad import ADConfig

# Steps of a chunk: longer ones cost more in their triangular systems than they save in states, but for a few long
# rows, where the many small products of states cost most. With 64, the powers of a chunk are numbers of float32.
CHUNK, LONGEST_CHUNK, MANY_CHUNKS = 25, 64, 80
# Slowest and fastest decay per step of the heads before training, beside the least one of `linear_memory_length`. None
# is faster than 1 / e per step.
SLOWEST, FASTEST = 1e-3, 0.3


class UnitTriangularInverse(torch.autograd.Function):
    """
    The inverse of I + A for strictly lower triangular matrices A (..., n, n). Its gradient is two products, where that
    of `solve_triangular` solves a second time.
    """

    @staticmethod
    def forward(ctx: Any, system: torch.Tensor) -> torch.Tensor:
        identity = torch.eye(system.shape[-1], dtype=system.dtype, device=system.device).expand_as(system)
        inverse = torch.linalg.solve_triangular(system, identity, upper=False, unitriangular=True)
        ctx.save_for_backward(inverse)
        return inverse

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (inverse,) = ctx.saved_tensors
        return -(inverse.mT @ gradient @ inverse.mT)


def gated_delta_rule(
    units: torch.Tensor, value: torch.Tensor, log_decay: torch.Tensor, strength: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The outputs o_t of all steps at once.

    Args:
        units (`torch.Tensor` of shape `(batch, heads, 2, time, head_dim)`):
            q and k, unit vectors.
        value (`torch.Tensor` of shape `(batch, heads, time, head_dim)`):
            v.
        log_decay, strength (`torch.Tensor` of shape `(batch, heads, time)`, float32):
            Logarithms of a, in [-1, 0], and b.
        state (`torch.Tensor` of shape `(batch, heads, head_dim, head_dim)`, float32):
            S before these steps.

    Returns:
        Outputs (batch, heads, time, head_dim) and the state after the steps.
    """
    query, key = units.unbind(2)
    time, head_dim, dtype = value.shape[2], value.shape[3], value.dtype
    number = -(-time // min(LONGEST_CHUNK, max(CHUNK, time // MANY_CHUNKS)))
    size = -(-time // number)
    if padding := number * size - time:  # steps that write and forget nothing
        query, key, value = (F.pad(part, (0, 0, 0, padding)) for part in (query, key, value))
        log_decay, strength = (F.pad(part, (0, padding)) for part in (log_decay, strength))
    query, key, value = (part.unflatten(2, (number, size)) for part in (query, key, value))
    log_decay, strength = (part.unflatten(2, (number, size)).unsqueeze(-1) for part in (log_decay, strength))
    log_decay = log_decay.cumsum(-2)
    decay = log_decay.exp()
    # A chunk's decay from step j to step i is decay_i / decay_j: each side takes its own part along.
    query, read = query * decay.to(dtype), key * (strength * decay).to(dtype)
    written = key * log_decay.neg().exp().to(dtype)
    seen, system = (torch.cat([query, read], dim=-2) @ written.mT).split(size, dim=-2)
    solution = UnitTriangularInverse.apply(system.float().tril(-1)).to(dtype)
    updates, read = (solution @ torch.cat([value * strength.to(dtype), read], dim=-1)).split(head_dim, dim=-1)
    outputs, parts = [], (updates, read, query, seen.tril(), written, decay[..., -1:, :])
    for update, old, asks, sees, writes, end in zip(*(part.unbind(2) for part in parts)):
        before = state.mT.to(dtype)
        update = update - old @ before
        outputs.append(asks @ before + sees @ update)
        state = (state + update.mT @ writes) * end
    return torch.stack(outputs, dim=2).flatten(2, 3)[:, :, :time], state


def delta_step(
    units: torch.Tensor, value: torch.Tensor, log_decay: torch.Tensor, strength: torch.Tensor, state: torch.Tensor
) -> torch.Tensor:
    """As [`gated_delta_rule`], of a single step, with the state updated in place; returns the outputs."""
    units, decay, strength = units.squeeze(3).float(), log_decay.exp().unsqueeze(-1), strength.unsqueeze(-1)
    query, key = units.split(1, dim=2)
    found = state @ units.mT  # (batch, heads, head_dim, 2), before the decay: one pass over the state serves both
    answer, recalled = found.mT.split(1, dim=2)
    update = torch.addcmul(value * strength, recalled, -strength * decay)  # (batch, heads, 1, head_dim)
    state.mul_(decay).addcmul_(update.mT, key)
    return torch.addcmul(update * (query * key).sum(-1, keepdim=True), answer, decay).to(value.dtype)


class LinearAttention(nn.Module):
    """
    A layer of gated linear attention, without positions: it knows the order of steps by its decay alone.

    The short convolution over the last steps that such layers have elsewhere is left out on purpose: with one, models
    imitate their source as well, and learn less when they act.
    """

    def __init__(self, config: ADConfig, layer_idx: int) -> None:
        super().__init__()
        width, self.layer_idx, self.num_heads = config.hidden_size, layer_idx, config.linear_num_heads
        self.head_dim, self.epsilon = width // self.num_heads, config.layer_norm_eps
        memory: Any = config.linear_memory_length
        self.least_decay = 0.0 if memory is None else 1 / memory
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.gates = nn.Linear(width, 2 * self.num_heads)
        self.output = ResidualLinear(width, width, bias=False)

    @torch.no_grad()
    def start(self) -> None:
        """Let heads differ in their decay before training."""
        decays = torch.logspace(math.log10(SLOWEST), math.log10(FASTEST), self.num_heads)
        init.copy_(self.gates.bias, torch.cat([torch.zeros(self.num_heads), decays.logit()]))

    def arguments(self, qkv: torch.Tensor, gates: torch.Tensor) -> dict[str, torch.Tensor]:
        """The arguments of the gated delta rule, but for the state, of projections (batch, time, ...) of steps."""
        parts = qkv.unflatten(-1, (3, self.num_heads, self.head_dim))
        units, value = parts.permute(0, 3, 2, 1, 4).split([2, 1], dim=2)
        scale = qkv.new_full((self.head_dim,), self.head_dim**-0.5)
        units = F.layer_norm(units, (self.head_dim,), scale, None, self.epsilon)
        strength, decay = gates.float().sigmoid().transpose(1, 2).split(self.num_heads, dim=1)
        log_decay = -self.least_decay - (1 - self.least_decay) * decay
        return {"units": units, "value": value.squeeze(2), "log_decay": log_decay, "strength": strength}

    def empty(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The state before a history, for hidden states (batch, time, width)."""
        shape = (hidden_states.shape[0], self.num_heads, self.head_dim, self.head_dim)
        return hidden_states.new_zeros(shape, dtype=torch.float32)

    def run(self, hidden_states: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs (batch, heads, time, head_dim) of hidden states (batch, time, width), and the state after them."""
        return gated_delta_rule(**self.arguments(self.qkv(hidden_states), self.gates(hidden_states)), state=state)

    def step(self, qkv: torch.Tensor, gates: torch.Tensor, cache: ADCache) -> torch.Tensor:
        """Outputs (batch, heads, 1, head_dim) of a step's projections, after the steps in a cache."""
        (state,) = cache.states[self.layer_idx]
        arguments = self.arguments(qkv, gates)
        if cache.active is not None:  # the others write and forget nothing
            active = cache.active.to(state.device).view(-1, 1, 1)
            arguments |= {name: arguments[name] * active for name in ("log_decay", "strength")}
        return delta_step(**arguments, state=state)

    def encode(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, ...]:
        """What a cache holds after hidden states (batch, time, width): the state."""
        return (self.run(hidden_states, self.empty(hidden_states))[1],)

    def forward(
        self, hidden_states: torch.Tensor, earlier: ADCache | Carry | None = None, **_: Any
    ) -> tuple[torch.Tensor, None]:
        if isinstance(earlier, ADCache):
            outputs = self.step(self.qkv(hidden_states), self.gates(hidden_states), earlier)
        elif earlier is None:
            outputs = self.run(hidden_states, self.empty(hidden_states))[0]
        else:
            outputs, after = self.run(hidden_states, *earlier.states[self.layer_idx])
            earlier.carry(self.layer_idx, (after,))
        return self.output(outputs.to(hidden_states.dtype).transpose(1, 2).flatten(2)), None


__all__ = ["LinearAttention", "delta_step", "gated_delta_rule"]
