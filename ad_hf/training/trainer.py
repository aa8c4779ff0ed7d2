"""The trainer: model, optimizers and batches as Accelerate distributes them, and one update of the weights."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import DistributedType, broadcast_object_list, set_seed
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from ad_hf.envs.task_family import FamilyConfig, TaskFamily
from ad_hf.histories.dataset import NO_HISTORY, HistoryDataset
from ad_hf.histories.model_config import config_from_dataset
from ad_hf.histories.selection import DataConfig
from ad_hf.histories.stream import HistoryStream, StreamedBatches
from ad_hf.histories.windows import HistoryWindows, WindowBatches
from ad_hf.model.modeling_ad import ADModel
from ad_hf.model.rollout_ad import RolloutConfig
from ad_hf.training.adapters import is_adapter, merge_adapters
from ad_hf.training.compatibility import check_family
from ad_hf.training.config import ModelConfig, TrainingConfig
from ad_hf.training.divergence import Divergence, TrainingDivergedError
from ad_hf.training.init_from import fit_config, start_from
from ad_hf.training.machine import check_batch_fits, make_accelerator
from ad_hf.training.optimizers import learning_rate, make_optimizers, make_schedulers, named_groups
from ad_hf.training.validation import FixedWindows

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)  # in the main process, however it is sharded

logger = get_logger(__name__)


class Trainer:
    """
    All that a run trains with; [`~ad_hf.training.loop.run`] trains it. Settings are sections of a recipe;
    `base` is the model of `training.init_from`, with its name and revision.

    Raises:
        ValueError: if the dataset is of other tasks than the family, or malformed; if model or batches do not fit in
            memory.
    """

    def __init__(
        self,
        output_dir: Path,
        dataset: HistoryDataset,
        family: FamilyConfig,
        data: DataConfig,
        model: ModelConfig,
        training: TrainingConfig,
        rollout: RolloutConfig,
        streaming: bool = False,
        base: tuple[ADModel, dict[str, Any]] | None = None,
    ) -> None:
        self.config, self.rollout_config, self.output_dir = training, rollout, output_dir
        self.sections: dict[str, Any] = {"family": family, "data": data, "model": model, "training": training}
        self.family = TaskFamily(family)
        check_family(self.family, dataset)
        self.dataset, self.dataset_json = dataset, {**dataset.to_json(), "streaming": streaming}
        self.accelerator = make_accelerator(training, output_dir)
        settings = asdict(model)
        implementation = settings.pop("attn_implementation")
        self.model_config = config_from_dataset(dataset, **settings)
        if implementation is not None:
            self.model_config._attn_implementation = implementation
        self.context_length = self.model_config.context_length
        if base is not None:
            fit_config(self.model_config, base[0].config, base[1]["name"])
        # Every process starts from the same weights; regularisation draws on random numbers of its own in each.
        set_seed(training.seed)
        plain = ADModel(self.model_config)
        check_batch_fits(training, self.model_config, self.accelerator)
        plain.rollout_config = rollout
        self.origin = None if base is None else start_from(plain, *base, training)
        self.adapters = {name: each.shape for name, each in plain.state_dict().items() if is_adapter(name)}
        self.num_parameters, self.num_trained = plain.num_parameters(), plain.num_parameters(only_trainable=True)
        if training.gradient_checkpointing:
            plain.activation_checkpointing_enable()
        set_seed(training.seed, device_specific=True)
        self.batches = self._make_batches(data, streaming)
        self.validation_windows = self._find_validation_windows() if self.accelerator.is_main_process else None
        optimizers = make_optimizers(plain, training)
        self.schedulers = make_schedulers(optimizers, training)
        self.groups = named_groups(optimizers, plain)
        self.with_deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        self.model, *self.optimizers = self._prepare(plain, optimizers)
        self.divergence = Divergence(self.accelerator)
        self.best: tuple[float, int] | None = None  # the best validation so far, and its update
        self.unvalidated: dict[str, float] | None = None  # metrics of an update whose validation was interrupted
        self.checkpoint: Path | None = None  # the newest one of this run

    def _prepare(self, model: ADModel, optimizers: list[torch.optim.Optimizer]) -> Any:
        """Model and optimizers as Accelerate's configuration distributes them."""
        if self.with_deepspeed:
            if len(optimizers) > 1:
                raise ValueError("DeepSpeed takes a single optimizer: set training.optimizer to adamw")
            settings = self.accelerator.state.deepspeed_plugin.deepspeed_config
            parts = self.accelerator.num_processes * self.config.gradient_accumulation_steps
            settings["train_micro_batch_size_per_gpu"] = self.config.batch_size // parts
            settings["gradient_clipping"] = self.config.max_grad_norm
        return self.accelerator.prepare(model, *optimizers)

    def _make_batches(self, data: DataConfig, streaming: bool) -> WindowBatches | StreamedBatches:
        """Batches from memory, from memory-mapped files, or from a stream, for this process."""
        dataset, accelerator = self.dataset, self.accelerator
        batch_size = self.config.batch_size // self.config.gradient_accumulation_steps
        rank, processes = accelerator.process_index, accelerator.num_processes
        order = self.context_length, self.config.seed
        if streaming:
            stream = HistoryStream(dataset, "train", data, *order)
            logger.info(
                f"streaming {stream.num_steps:,} steps, {stream.compressed_bytes / 1e6:.1f} MB, from {dataset}"
            )
            return StreamedBatches(stream, batch_size, rank, processes, data.num_workers)
        histories = dataset.histories("train", data, bool(data.keep_in_memory))
        windows = HistoryWindows(histories, *dataset.metadata.spaces, *order)
        windows.warn_of_short_histories()
        where = "in memory" if data.keep_in_memory else "memory-mapped"
        logger.info(f"{windows.num_histories} histories of {windows.num_steps:,} steps from {dataset}, {where}")
        return WindowBatches(windows, batch_size, rank, processes)

    def fixed_windows(self, split: str) -> FixedWindows:
        """Some windows of a split's histories, to measure a loss on; errors as of [`FixedWindows`]."""
        data, seed = self.sections["data"], self.config.seed
        batch_size = (
            self.config.batch_size // self.config.gradient_accumulation_steps // self.accelerator.num_processes
        )
        order = self.context_length, seed, self.dataset_json["streaming"]
        return FixedWindows(self.dataset, split, data, *order, batch_size)

    def _find_validation_windows(self) -> FixedWindows | None:
        """Windows of the validation tasks' histories, if the dataset has any."""
        reason = "it has no histories of validation tasks"
        if "validation" in self.dataset.splits:
            try:
                return self.fixed_windows("validation")
            except FileNotFoundError as error:  # files that training does not need
                reason = str(error)
            except ValueError as error:
                if NO_HISTORY not in str(error):
                    raise
                reason = "no history of a validation task got better by data.min_improvement"
        logger.info(f"there will be no validation_loss of {self.dataset}: {reason}")
        return None

    def update(self, batches: Any, step: int = 0) -> torch.Tensor:
        """One update of the weights, the `step`-th; returns this process's part of the mean loss of its windows."""
        accelerator, losses, norm = self.accelerator, [], None
        parts = [next(batches) for _ in range(self.config.gradient_accumulation_steps)]
        # The mean is over the steps of all windows, padding apart, however they are divided.
        steps = [
            int(part["attention_mask"].sum()) if "attention_mask" in part else part["labels"].shape[:2].numel()
            for part in parts
        ]
        total = int(accelerator.reduce(torch.tensor(sum(steps), device=accelerator.device)))
        for number, part in zip(steps, parts):
            with accelerator.accumulate(self.model):
                loss = self.model(**{name: value.to(accelerator.device) for name, value in part.items()}).loss
                loss = loss * (number * len(parts) * accelerator.num_processes / total)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
                for optimizer in self.optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
            losses.append(loss.detach())
        for scheduler in self.schedulers:
            scheduler.step()
        loss = torch.stack(losses).mean()
        self.divergence.note(step, loss, norm)
        return loss

    def check_loss(self) -> None:
        """
        Wait for the device, and look whether all losses so far are finite. Every process must call this.

        Raises:
            TrainingDivergedError: in every process, if one is not, or its gradient.
        """
        step = self.divergence.first()
        if step is not None:
            raise self._diverged("the loss or its gradient is", step)

    def _diverged(self, what: str, step: int) -> TrainingDivergedError:
        return TrainingDivergedError(what, step, learning_rate(self.schedulers[0], step - 1), self.checkpoint)

    @property
    def plain_model(self) -> ADModel:
        """The model without what distributes or compiles it; its weights may be sharded."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    @property
    def plain_optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizers without what distributes them."""
        return [optimizer.optimizer for optimizer in self.optimizers]

    def gather_weights(self, step: int) -> dict[str, torch.Tensor]:
        """
        Whole weights by name after so many updates, in the main process; every process must call this.

        Raises:
            TrainingDivergedError: in every process, if a number in them is not finite, or a loss before was not.
        """
        self.check_loss()
        if self.with_deepspeed:
            weights = self.accelerator.get_state_dict(self.model)
        else:
            gathered: Any = get_model_state_dict(self.plain_model, options=WHOLE)
            weights = {name: weight.contiguous() for name, weight in gathered.items()}
        wrong = broadcast_object_list([not_finite(weights or {})])[0]
        if wrong is not None:
            raise self._diverged(f"the weights {wrong} are", step)
        return weights

    def whole_model(self, weights: dict[str, torch.Tensor]) -> ADModel:
        """The model to act with in the main process: where it trains sharded or with adapters, a whole plain copy."""
        is_sharded = self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        if not (is_sharded or self.adapters):
            return self.plain_model
        model = ADModel(self.model_config)
        model.rollout_config = self.rollout_config
        model.load_state_dict(self._merged(weights))
        return model.to(self.accelerator.device)

    def end(self) -> None:
        """
        Leave the other processes; the plain model remains. Every process must call this.

        The reducer of DDP drops its process group without releasing the interpreter's lock. Were it the last to do so,
        it would wait for gloo's thread, which may wait for that lock to drop a tensor, and so for ever.
        """
        self.model = self.plain_model
        self.accelerator.free_memory()
        self.accelerator.end_training()

    def save_model(self, folder: Path, weights: dict[str, torch.Tensor]) -> None:
        """Save whole weights as a model that `from_pretrained` loads, with adapters merged into them."""
        self.plain_model.save_pretrained(folder, state_dict=self._merged(weights))

    def _merged(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return merge_adapters(weights, self.model_config, self.config.lora_rank)


def not_finite(tensors: dict[str, torch.Tensor]) -> str | None:
    """Name of the first tensor with a number that is not finite."""
    names = (name for name, each in tensors.items() if each.is_floating_point() and not each.isfinite().all())
    return next(names, None)
