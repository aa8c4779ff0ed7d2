"""The trainer: model, optimizers and batches as Accelerate distributes them, and one update of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import DistributedType, broadcast_object_list, send_to_device, set_seed
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from ad_hf.histories.model_config import config_from_dataset
from ad_hf.model.modeling_ad import ADModel
from ad_hf.model.rollout_ad import RolloutConfig
from ad_hf.training.adapters import is_adapter, merge_adapters
from ad_hf.training.carries import Carries
from ad_hf.training.config import ModelConfig, TrainingConfig
from ad_hf.training.divergence import Divergence, TrainingDivergedError
from ad_hf.training.init_from import fit_config, start_from
from ad_hf.training.machine import check_batch_fits, make_accelerator
from ad_hf.training.members import Member, make_batches
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
        members: Sequence[Member],
        model: ModelConfig,
        training: TrainingConfig,
        base: tuple[ADModel, dict[str, Any]] | None = None,
    ) -> None:
        self.config, self.output_dir, self.members = training, output_dir, list(members)
        self.rollout_config = members[0].rollout if len(members) == 1 else RolloutConfig()
        self.sections: dict[str, Any] = {"model": model, "training": training}
        for member in members:
            place = f"{member.name}." if member.name else ""
            self.sections |= {f"{place}family": member.family_config, f"{place}data": member.data}
        self.accelerator = make_accelerator(training, output_dir)
        settings = asdict(model)
        implementation = settings.pop("attn_implementation")
        datasets = {member.name: member.dataset for member in members}
        self.model_config = config_from_dataset(datasets if len(members) > 1 else members[0].dataset, **settings)
        if implementation is not None:
            self.model_config._attn_implementation = implementation
        self.context_length = self.model_config.context_length
        if base is not None:
            fit_config(self.model_config, base[0].config, base[1]["name"])
        # Every process starts from the same weights; regularisation draws on random numbers of its own in each.
        set_seed(training.seed)
        plain = ADModel(self.model_config)
        check_batch_fits(training, self.model_config, self.accelerator)
        plain.rollout_config = self.rollout_config
        self.origin = None if base is None else start_from(plain, *base, training)
        self.adapters = {name: each.shape for name, each in plain.state_dict().items() if is_adapter(name)}
        self.num_parameters, self.num_trained = plain.num_parameters(), plain.num_parameters(only_trainable=True)
        if training.gradient_checkpointing:
            plain.activation_checkpointing_enable()
        set_seed(training.seed, device_specific=True)
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        windows = training.batch_size // (training.gradient_accumulation_steps * processes)
        self.carries = None
        if training.truncated_bptt:
            self.carries = Carries(plain, self.members, training, windows, self.accelerator.device)
        self.batches = make_batches(self.members, self.context_length, training, rank, processes)
        self.window_order = self.context_length, training.seed, windows, training.truncated_bptt  # of a FixedWindows
        self.validation_windows: dict[str, FixedWindows | None] = {}
        if self.accelerator.is_main_process:
            self.validation_windows = {
                member.name: member.find_validation_windows(*self.window_order) for member in self.members
            }
        bfloat16 = self.accelerator.device.type != "cpu" or self.accelerator.mixed_precision == "bf16"
        optimizers = make_optimizers(plain, training, bfloat16)
        self.schedulers = make_schedulers(optimizers, training)
        self.groups = named_groups(optimizers, plain)
        self.with_deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        self.model, *self.optimizers = self._prepare(plain, optimizers)
        self.divergence = Divergence(self.accelerator)
        self.losses: dict[str, torch.Tensor] = {}  # of each family of a mixture, see `update`
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

    @property
    def dataset_json(self) -> dict[str, Any]:
        """What a run says of its histories: of a single dataset, or of each by the name of its family."""
        if len(self.members) == 1:
            return self.members[0].to_json()
        return {
            member.name: {**member.to_json(), "weight": member.weight, "plays": list(member.plays(self.config))}
            for member in self.members
        }

    @property
    def validates(self) -> bool:
        """Whether there are validation tasks to choose the best model on."""
        return any(member.family.tasks("validation") for member in self.members)

    def update(self, batches: Any, step: int = 0) -> torch.Tensor:
        """
        One update of the weights, the `step`-th; returns this process's part of the mean loss of its windows. Those of
        the families of a mixture, or of dynamics heads, are then in `losses`: the sum over this process's steps, and
        their number (2,).
        """
        accelerator, losses, norm = self.accelerator, [], None
        self.losses = {}
        parts = [next(batches) for _ in range(self.config.gradient_accumulation_steps)]
        # The mean is over the steps of all windows, padding apart, however they are divided.
        steps = [_num_steps(part) for part in parts]
        total = int(accelerator.reduce(torch.tensor(sum(steps), device=accelerator.device)))
        for index, (number, part) in enumerate(zip(steps, parts)):
            with accelerator.accumulate(self.model):
                if self.carries is None:
                    output = self.model(**send_to_device(part, accelerator.device))
                else:
                    output = self.carries.run(self.model, part, index)
                loss = output.loss * (number * len(parts) * accelerator.num_processes / total)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
                for optimizer in self.optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
            losses.append(loss.detach())
            for name, own in (output.get("losses") or {}).items():
                count = own.new_tensor(_num_steps(_of_group(part, name)) if self.members[0].name else number)
                self.losses[name] = torch.stack([own * count, count]) + self.losses.get(name, 0)
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


def _num_steps(batch: dict[str, Any]) -> int:
    """Steps of a batch, of a family or of several, without padding."""
    if isinstance(batch["labels"], torch.Tensor):
        mask = batch.get("attention_mask")
        return batch["labels"].shape[:2].numel() if mask is None else int(mask.sum())
    return sum(_num_steps(_of_group(batch, group)) for group in batch["labels"])


def _of_group(batch: dict[str, Any], group: str) -> dict[str, Any]:
    return {name: values[group] for name, values in batch.items() if group in values}


def not_finite(tensors: dict[str, torch.Tensor]) -> str | None:
    """Name of the first tensor with a number that is not finite."""
    names = (name for name, each in tensors.items() if each.is_floating_point() and not each.isfinite().all())
    return next(names, None)
