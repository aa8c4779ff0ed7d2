"""The loss on a few windows of histories, which are the same each time: how well a model continues them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch

from ad_hf.histories.dataset import NO_HISTORY, HistoryDataset
from ad_hf.histories.selection import DataConfig
from ad_hf.histories.stream import HistoryStream
from ad_hf.histories.windows import HistoryWindows
from ad_hf.model.modeling_ad import ADModel

NUM_WINDOWS = 128  # at most: the passes forward of a few updates


class FixedWindows:
    """
    Up to 128 windows of a split's histories, from all over them, as training takes them; a pure function of the seed.

    Of a stream they are from the first part that a reader would take into memory, and stay there. For truncated
    backpropagation through time they follow on each other: as many as go through whole histories.

    Args:
        dataset ([`~ad_hf.histories.dataset.HistoryDataset`]), split (`str`):
            The histories.
        data ([`~ad_hf.histories.selection.DataConfig`]), streaming (`bool`), context_length (`int`), seed (`int`):
            As of the training.
        batch_size (`int`):
            Windows that fit into memory at a time.
        walks (`bool`, *optional*, defaults to `False`):
            Whether they follow on each other.

    Raises:
        FileNotFoundError: if files of the split are missing.
        ValueError: if there is no such split, or no history with enough improvement; for malformed histories.
    """

    def __init__(
        self,
        dataset: HistoryDataset,
        split: str,
        data: DataConfig,
        streaming: bool,
        context_length: int,
        seed: int,
        batch_size: int,
        walks: bool = False,
    ) -> None:
        if streaming:
            stream = HistoryStream(dataset, split, data, context_length, seed)
            self._windows = stream.read(stream.groups(0, 0, 1)[0])
        else:
            histories = dataset.histories(split, data)
            self._windows = HistoryWindows(histories, *dataset.metadata.spaces, context_length, seed)
        if not self._windows.num_histories:
            raise ValueError(f"{dataset}: {NO_HISTORY}")
        chosen = self._windows.tiling(0).windows(self._windows.epoch_numbers(0)[:NUM_WINDOWS])
        self._parts = [chosen[start : start + batch_size] for start in range(0, len(chosen), batch_size)]
        self._begins: list[np.ndarray] | None = None
        if walks:
            longest = int(np.diff(self._windows.offsets).max())
            number = max(-(-longest // context_length), -(-NUM_WINDOWS // batch_size))
            walk = islice(self._windows.walk(batch_size, whole=True), number)
            self._parts, self._begins = map(list, zip(*walk))

    def batches(self) -> Iterator[dict[str, torch.Tensor]]:
        """The model's arguments, a few windows at a time."""
        return map(self._windows.batch, self._parts)

    @torch.no_grad()
    def losses(self, model: ADModel) -> np.ndarray:
        """
        The loss of each window, and its steps without padding, (num_windows, 2).

        The loss is what training minimises, label smoothing included, but without dropout and masked inputs.
        """
        training, values = model.training, []
        carry = None if self._begins is None else model.init_carry(len(self._parts[0]))
        model.eval()
        try:
            for begins, batch in zip(self._begins or self._parts, self.batches()):
                batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
                labels = batch.pop("labels")
                real = batch.get("attention_mask", torch.ones(labels.shape[:2], device=model.device)) != 0
                if carry is not None:
                    carry = carry.reset(torch.from_numpy(begins))
                output = model(**batch, past_key_values=carry)
                logits, carry = output.logits, output.past_key_values
                values += [
                    [float(model.head.loss(*(each[row : row + 1] for each in (logits, labels, ~real)))), int(number)]
                    for row, number in enumerate(real.sum(dim=1))
                ]
        finally:
            model.train(training)
        return np.array(values)

    def labels(self) -> torch.Tensor:
        """The actions to learn (num_steps, ...), without padding."""
        masked = [(batch["labels"], batch.get("attention_mask")) for batch in self.batches()]
        return torch.cat([labels.flatten(0, 1) if mask is None else labels[mask != 0] for labels, mask in masked])

    def constant_loss(self, head: Any) -> float:
        """The loss of the best logits that are the same at every step: of categories, the entropy of their shares."""
        actions = self.labels().to(head.linear.weight.device)[None]
        logits = torch.zeros(head.linear.out_features, device=actions.device, requires_grad=True)
        optimizer = torch.optim.LBFGS([logits], max_iter=100, line_search_fn="strong_wolfe")

        def loss() -> torch.Tensor:
            optimizer.zero_grad()
            value = head.loss(logits.expand(*actions.shape[:2], -1), actions, None)
            value.backward()
            return value

        optimizer.step(loss)
        return float(loss().detach())


def mean_loss(losses: np.ndarray) -> float:
    """The mean over all steps of [`~FixedWindows.losses`]."""
    return float(np.average(losses[:, 0], weights=losses[:, 1]))
