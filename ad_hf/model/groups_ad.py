"""Groups of spaces: one model with an embedding and a head for each, and a single trunk."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_ad import ADConfig
from .embeddings_ad import StepEmbedding
from .environments_ad import fault_of_spaces
from .heads_ad import make_head

INPUTS = ("observations", "previous_actions", "previous_rewards", "episode_starts", "attention_mask", "labels")


class GroupsMixin:
    """What an [`ADModel`] of several groups of spaces does beside a model of one."""

    config: ADConfig
    embeddings: nn.ModuleDict
    heads: nn.ModuleDict
    _modules: dict[str, Any]

    def _make_groups(self) -> None:
        """An embedding and a head for each pair of spaces, under the name of the first group that has it."""
        self.owners = self.config.owners()
        configs = {name: self.config.of_group(name) for name in dict.fromkeys(self.owners.values())}
        self.embeddings = nn.ModuleDict({name: StepEmbedding(config) for name, config in configs.items()})
        self.heads = nn.ModuleDict({name: make_head(config) for name, config in configs.items()})

    def group(self, name: str) -> Any:
        """
        A model of one of the groups, which shares this model's weights: what rolls out, acts, exports and saves one.

        Args:
            name (`str`):
                A key of `config.groups`.

        Returns:
            [`ADModel`]: of the group's spaces and normalisation. Its parameters are this model's own, so that they
            change together; `save_pretrained` saves it as a model of its own.

        Raises:
            ValueError: for an unknown name.
        """
        config, view = self.config.of_group(name), copy.copy(self)
        trunk = {key: value for key, value in view._modules.items() if key not in ("embeddings", "heads")}
        view.__dict__["_modules"] = {
            "embedding": self._embedding(name),
            **trunk,
            "head": self.heads[self.owners[name]],
        }
        view.config = config
        view.__dict__.pop("forward", None)  # of this model: Accelerate wraps it where it trains in mixed precision
        return view

    def _embedding(self, name: str) -> StepEmbedding:
        embedding: Any = self.embeddings[self.owners[name]]
        return embedding.normalized_as(**(self.config.groups or {})[name])

    def group_of(self, envs: Any, name: str | None = None) -> str:
        """
        Name of the group whose spaces are those of vector environments.

        Raises:
            ValueError: if there is none, or if several are, which normalise their inputs otherwise.
        """
        groups: dict[str, Any] = self.config.groups or {}
        if name is not None:
            return name
        fits = [each for each in groups if fault_of_spaces(self.config.of_group(each), envs) is None]
        if not fits:
            spaces = envs.single_observation_space, envs.single_action_space
            raise ValueError(
                f"the environments' spaces are {spaces[0]} and {spaces[1]}, which no group has: {', '.join(groups)}"
            )
        if any(groups[each] != groups[fits[0]] for each in fits):
            raise ValueError(f"groups {', '.join(fits)} have these spaces: say by group= whose normalisation to use")
        return fits[0]

    def _forward_groups(self, forward: Callable[..., Any], inputs: dict[str, Any], total: Any) -> dict[str, Any]:
        """
        A pass forward over batches of several groups, in a single pass of the trunk.

        Args:
            forward (`Callable`):
                Of tokens and a mask: makes a decoder's output of them.
            inputs (`dict`):
                The arguments of the model by name, each a mapping of groups to tensors.
            total (`torch.Tensor` or `int`, *optional*):
                Number of actions that the loss is a mean over; by default those of these batches.
        """
        for argument, values in inputs.items():
            unknown = values is not None and (not isinstance(values, Mapping) or set(values) - set(self.owners))
            if unknown or (argument in INPUTS[:4] and set(values) != set(inputs["observations"])):
                raise ValueError(
                    f"{argument} must be a mapping of groups, of {', '.join(self.owners)}, to tensors, and have the "
                    "same groups as the others"
                )
        names = list(inputs["observations"])
        batches = {name: {each: (inputs[each] or {}).get(name) for each in INPUTS} for name in names}
        tokens = [self._embedding(name)(*(batch[each] for each in INPUTS[:4])) for name, batch in batches.items()]
        time, sizes = max(part.shape[1] for part in tokens), [len(part) for part in tokens]
        masks = [each["attention_mask"] for each in batches.values()]
        mask = None
        if any(each is not None for each in masks) or any(part.shape[1] < time for part in tokens):
            whole = [part.new_ones(part.shape[:2]) if each is None else each for part, each in zip(tokens, masks)]
            mask = torch.cat([F.pad(each, (0, time - each.shape[1])).long() for each in whole])
        decoded = forward(torch.cat([F.pad(part, (0, 0, 0, time - part.shape[1])) for part in tokens]), mask)
        logits, losses, counts = {}, {}, {}
        for (name, batch), part, states in zip(batches.items(), tokens, decoded[0].split(sizes)):
            head: Any = self.heads[self.owners[name]]
            logits[name] = head(states[:, : part.shape[1]])
            if batch["labels"] is not None:
                ignored = None if batch["attention_mask"] is None else batch["attention_mask"] == 0
                losses[name] = head.loss(logits[name], batch["labels"], ignored, total)
                counts[name] = part.shape[:2].numel() if ignored is None else (~ignored).sum()
        loss = None
        if losses:
            parts = [losses[name] if total is not None else losses[name] * counts[name] for name in losses]
            loss = torch.stack(parts).sum() / (1 if total is not None else sum(counts.values()))
        return {
            **{"loss": loss, "losses": {name: each.detach() for name, each in losses.items()} or None},
            **{"logits": logits, "hidden_states": decoded.get("hidden_states")},
            "attentions": decoded.get("attentions"),
        }


__all__ = ["GroupsMixin"]
