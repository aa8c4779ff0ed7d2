"""Training: the Accelerate loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import (
    DistributedType,
    broadcast_object_list,
    set_seed,
)
from tqdm.auto import tqdm

from ad_hf.envs.task_family import TaskFamily
from ad_hf.histories.checks import COLUMNS
from ad_hf.histories.dataset import HistoryDataset, config_from_dataset
from ad_hf.histories.labels import StepLabels
from ad_hf.histories.mapped import fits_in_memory, map_histories
from ad_hf.histories.stream import HistoryStream, StreamedBatches
from ad_hf.histories.transforms import NO_HISTORY
from ad_hf.histories.windows import HistoryWindows, WindowBatches
from ad_hf.hub.model_card import write_model_card
from ad_hf.hub.models import load_model
from ad_hf.model.modeling_ad import ADModel
from ad_hf.recipe import Recipe, load_recipe
from ad_hf.storage.files import atomic_folder, local_path
from ad_hf.training.accelerating import make_accelerator, train_on_cpu
from ad_hf.training.checkpoints import find_checkpoint, gather_weights, load_checkpoint, save_checkpoint
from ad_hf.training.compatibility import check_family
from ad_hf.training.divergence import Divergence, TrainingDivergedError
from ad_hf.training.interruption import Interruption, TrainingInterrupted
from ad_hf.training.memory import check_batch_fits, keep_freed_memory
from ad_hf.training.metrics import Metrics
from ad_hf.training.optimizers import make_optimizers, make_schedulers
from ad_hf.training.pushing import Publisher
from ad_hf.training.run_folder import check_run_folder, prepare_run_folder
from ad_hf.training.saved_state import OptimizerLayout, learning_rates
from ad_hf.training.validation import validate

SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)  # no process has all weights of the model that it trains
LONGEST_WAIT = timedelta(hours=6)  # of other processes, for the one that validates


class Trainer:
    """One run of training: what [`train`] sets up, and its loop."""

    def __init__(
        self, recipe: Recipe, dataset: HistoryDataset, output_dir: Path, say: Callable[[str], None], streaming: bool
    ) -> None:
        self.recipe, self.config, self.output_dir = recipe, recipe.training, output_dir
        self.family = TaskFamily(recipe.family)
        check_family(self.family, dataset)
        self.dataset, self.dataset_json = dataset, {**dataset.to_json(), "streaming": streaming}
        self.accelerator = make_accelerator(self.config, output_dir, say)
        settings = asdict(recipe.model)
        implementation = settings.pop("attn_implementation")
        self.model_config = config_from_dataset(dataset, **settings)
        if implementation is not None:
            self.model_config._attn_implementation = implementation
        # Every process starts from the same weights; regularisation draws on random numbers of its own in each.
        set_seed(self.config.seed)
        model = ADModel(self.model_config)
        check_batch_fits(self.config, self.model_config, self.accelerator.num_processes, self.accelerator.device)
        model.rollout_config = recipe.rollout
        self.num_parameters = model.num_parameters()
        if self.config.gradient_checkpointing:
            model.activation_checkpointing_enable()
        set_seed(self.config.seed, device_specific=True)
        self.context_length = self.model_config.context_length
        self.batches = self._make_batches(streaming, say)
        optimizers = make_optimizers(model, self.config)
        self.schedulers = make_schedulers(optimizers, self.config)
        self.layouts = [OptimizerLayout.of(optimizer, model) for optimizer in optimizers]
        self.model, *self.optimizers = self._prepare(model, optimizers)
        self.best: tuple[float, int] | None = None
        self.unvalidated: dict[str, float] | None = None  # metrics of an update whose validation was interrupted
        self.interruption = Interruption()
        self.divergence = Divergence(self.accelerator)
        self.checkpoint: Path | None = None  # the newest one of this run

    def learning_rate(self, step: int) -> float:
        """The learning rate of an update."""
        return learning_rates(self.schedulers[0], step - 1)[0]

    def check_loss(self) -> None:
        """
        Wait for the device, and see whether all losses so far are finite. Every process must call this.

        Raises:
            TrainingDivergedError: in every process, if one is not, or its gradient.
        """
        step = self.divergence.first()
        if step is not None:
            raise TrainingDivergedError("the loss or its gradient is", step, self.learning_rate(step), self.checkpoint)

    def _prepare(self, model: ADModel, optimizers: list[torch.optim.Optimizer]) -> Any:
        """Model and optimizers as Accelerate's configuration distributes them."""
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            if len(optimizers) > 1:
                raise ValueError("DeepSpeed takes a single optimizer: set training.optimizer to adamw")
            settings = self.accelerator.state.deepspeed_plugin.deepspeed_config
            parts = self.accelerator.num_processes * self.config.gradient_accumulation_steps
            settings["train_micro_batch_size_per_gpu"] = self.config.batch_size // parts
            settings["gradient_clipping"] = self.config.max_grad_norm
        return self.accelerator.prepare(model, *optimizers)

    def _make_batches(self, streaming: bool, say: Callable[[str], None]) -> WindowBatches | StreamedBatches:
        """Batches from memory, from memory-mapped files, or from a stream, for this process."""
        data, accelerator = self.recipe.data, self.accelerator
        batch_size = self.config.batch_size // self.config.gradient_accumulation_steps
        rank, processes = accelerator.process_index, accelerator.num_processes
        subsampling: dict[str, Any] = {
            "keep_every_episode": data.keep_every_episode,
            "max_episodes": data.max_episodes,
            "last_episodes": data.last_episodes,
            "min_improvement": data.min_improvement,
            "labels": None if data.labels is None else StepLabels(data.labels, self.dataset.metadata),
        }
        settings: dict[str, Any] = {"context_length": self.context_length, **subsampling, "seed": self.config.seed}
        if streaming:
            stream = HistoryStream(self.dataset, "train", **settings, buffer_megabytes=data.buffer_megabytes)
            say(f"streaming {stream.num_steps:,} steps, {stream.compressed_bytes / 1e6:.1f} MB, from {self.dataset}")
            return StreamedBatches(stream, batch_size, rank, processes, data.num_workers)
        in_memory = data.keep_in_memory
        if in_memory is None:  # how much memory is free changes meanwhile: the first process's choice is everyone's
            fitting = fits_in_memory(self.dataset, "train", data.keep_every_episode, processes)
            in_memory = broadcast_object_list([fitting])[0]
        rows = (
            self.dataset.load("train", list(COLUMNS))
            if in_memory
            else map_histories(self.dataset, "train", **subsampling, say=say)
        )
        windows = HistoryWindows(rows, *self.dataset.metadata.spaces, **settings, name=f"{self.dataset}, split train")
        if not windows.num_histories:
            raise ValueError(f"{self.dataset}: {NO_HISTORY}")
        windows.warn_of_short_histories()
        where = "in memory" if in_memory else "memory-mapped"
        say(f"{windows.num_histories} histories of {windows.num_steps:,} steps from {self.dataset}, {where}")
        return WindowBatches(windows, batch_size, rank, processes)

    def update(self, batches: Any, step: int = 0) -> torch.Tensor:
        """One update of the weights, of a number; returns this process's part of the mean loss of its windows."""
        accelerator, losses, norm = self.accelerator, [], None
        parts = [next(batches) for _ in range(self.config.gradient_accumulation_steps)]
        # The mean is over the steps of all windows, padding apart, however they are divided.
        steps = [
            int(part["attention_mask"].sum()) if "attention_mask" in part else part["labels"][..., :1].numel()
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

    def save_model(self, folder: Path, weights: dict[str, torch.Tensor]) -> None:
        """Save whole weights as a model that `from_pretrained` loads."""
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        model.save_pretrained(folder, state_dict=weights)

    def _whole_model(self, step: int) -> tuple[ADModel | None, dict[str, torch.Tensor]]:
        """In the main process, the model with all of its weights; every process must call this."""
        weights, model = gather_weights(self, step), None
        if self.accelerator.is_main_process:
            model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
            if self.accelerator.distributed_type in SHARDED:
                model = ADModel(self.model_config)
                model.rollout_config = self.recipe.rollout
                model.load_state_dict(weights)
                model.to(self.accelerator.device)
        return model, weights

    def validate(self, step: int) -> dict[str, Any] | None:
        """
        Roll out on the validation tasks, and keep the model if it is the best so far.

        Returns:
            `dict`: the metrics, in the main process; `None` if it was interrupted.
        """
        model, weights = self._whole_model(step)
        metrics: dict[str, Any] | None = {}
        if model is not None:
            score = float(step)  # without validation tasks the newest model is kept
            if self.family.tasks("validation"):
                metrics = validate(model, self.family, self.config, self.interruption)
                score = -math.inf if metrics is None else metrics["validation_return"]
            if metrics is not None and (self.best is None or score > self.best[0]):
                self.best = (score, step)
                with atomic_folder(self.output_dir / "model") as folder:
                    self.save_model(folder, weights)
        self.accelerator.wait_for_everyone()
        return metrics

    def run(self, metrics: Metrics, done: int = 0, publisher: Publisher | None = None, push_every: int = 0) -> None:
        """
        Train to the end, from after so many updates that are done.

        Raises:
            TrainingDivergedError: if a loss or a weight is not finite.
            TrainingInterrupted: after SIGTERM or Ctrl-C, when a checkpoint is saved.
        """
        config, accelerator = self.config, self.accelerator
        tokens_per_step = config.batch_size * self.context_length
        self.model.train()
        with (
            self.interruption,
            closing(iter(self.batches)) as batches,
            tqdm(
                desc="train",
                total=config.max_steps * tokens_per_step,
                initial=done * tokens_per_step,
                unit=" tokens",
                unit_scale=True,
                disable=not accelerator.is_local_main_process,
            ) as bar,
        ):
            if self.unvalidated is not None:
                self._finish_step(done, self.unvalidated, metrics)
            for step in range(done + 1, config.max_steps + 1):
                loss = self.update(batches, step)
                bar.update(tokens_per_step)
                numbers = {}
                if step % config.logging_steps == 0 or step in (1, config.max_steps):
                    self.check_loss()
                    loss_value = float(accelerator.reduce(loss, "mean"))
                    numbers = {"loss": loss_value, "learning_rate": self.schedulers[0].get_last_lr()[0]}
                    numbers["tokens_per_second"] = bar.format_dict["rate"] or 0.0
                    bar.set_postfix(
                        step=step, loss=f"{loss_value:.3f}", validation=self.best and f"{self.best[0]:.2f}"
                    )
                self._finish_step(step, numbers, metrics)
                asked = self.interruption.agreed(accelerator)
                pushed = bool(push_every) and step % push_every == 0
                due = step % (config.save_steps or config.eval_steps) == 0 and step < config.max_steps
                if asked or pushed or due:
                    checkpoint = save_checkpoint(self, step)
                    if publisher is not None and asked:
                        publisher.finish(checkpoint, step)
                    elif publisher is not None and pushed:
                        publisher.push(checkpoint, step)
                    if asked:
                        raise TrainingInterrupted(asked, step, checkpoint)

    def _finish_step(self, step: int, numbers: dict[str, Any], metrics: Metrics) -> None:
        """Validate, if it is time to, and log; a validation that is interrupted is for the run that goes on."""
        self.unvalidated = None
        if step % self.config.eval_steps == 0 or step == self.config.max_steps:
            validation = self.validate(step)
            if validation is None:
                self.unvalidated = numbers
                return
            numbers = numbers | validation
        if numbers:
            metrics.log(step, numbers)


def train(
    recipe: Recipe | str | Path,
    dataset: str | Path,
    output_dir: str | Path,
    config_name: str | None = None,
    streaming: bool = False,
    resume: str | Path | None = None,
    push_to: str | None = None,
    push_every: int | None = None,
    say: Callable[[str], None] = tqdm.write,
) -> ADModel:
    r"""
    Train a model on learning histories.

    Writes `recipe.yaml` (complete), `run.json` (which data, at which revision), `metrics.jsonl`, `training.png`,
    `checkpoint-N/` and `model/`, the model that did best on the validation tasks, into `output_dir`. Start it with
    `accelerate launch scripts/train.py` to train on several processes.

    SIGTERM and Ctrl-C save a checkpoint first; killed at any other moment, a run loses what came after its last one.
    With `resume` it goes on, and ends as it would have, bit for bit on the same machine.

    Args:
        recipe ([`Recipe`], `str` or `Path`):
            Settings: a recipe, its name, or a YAML file.
        dataset (`str` or `Path`):
            Folder of a dataset that [`collect`] wrote, or its id on the Hub, with `@revision` if need be.
        output_dir (`str` or `Path`):
            Folder of the run.
        config_name (`str`, *optional*):
            Configuration of the dataset; may be left out if there is only one, or one called `default`.
        streaming (`bool`, *optional*, defaults to `False`):
            Read the histories as they are needed, in memory that does not grow with the dataset, instead of all.
        resume (`str` or `Path`, *optional*):
            `"latest"`, to go on from the newest checkpoint in `output_dir` if there is one, a checkpoint's folder, or
            a repository that checkpoints were pushed to.
        push_to (`str`, *optional*):
            Repository on the Hub, as `user/name` or `user/name@branch`, for the model, and until it is done for its
            newest checkpoint.
        push_every (`int`, *optional*):
            Updates between such pushes, in the background; without, only an interrupted run's checkpoint and the end.
        say (`Callable[[str], None]`, *optional*):
            Prints a line for people.

    Returns:
        [`ADModel`]: the best model.

    Raises:
        FileNotFoundError: for an unknown recipe, dataset or checkpoint.
        OSError: if a checkpoint cannot be written, with which one is the last good one; if files of others are where
            the model and checkpoints are to be.
        TrainingDivergedError: if a loss, a gradient or a weight is not finite, with the update; a `ValueError`.
        TrainingInterrupted: after SIGTERM or Ctrl-C, when a checkpoint is saved; a `KeyboardInterrupt`.
        ValueError: if the dataset is of other tasks than the recipe's family, or split otherwise, or malformed; if the
            checkpoint is of another dataset or recipe, or damaged; if model or batches do not fit in memory.
    """
    if push_every is not None and (push_to is None or push_every < 1):
        raise ValueError(f"push_every must be at least 1 and needs push_to, got {push_every} and {push_to!r}")
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    output_dir = local_path(output_dir)
    check_run_folder(output_dir, resume is not None)
    keep_freed_memory()
    state = PartialState(cpu=train_on_cpu(), timeout=LONGEST_WAIT)
    say = state.on_main_process(say)
    opened = HistoryDataset.open(dataset, config_name)
    with state.main_process_first():
        checkpoint = None if resume is None else find_checkpoint(resume, output_dir)
    trainer = Trainer(recipe, opened, output_dir, say, streaming)
    accelerator = trainer.accelerator
    done = 0 if checkpoint is None else load_checkpoint(trainer, checkpoint)
    publisher = None
    if accelerator.is_main_process:
        prepare_run_folder(trainer, output_dir)
        publisher = None if push_to is None else Publisher(push_to, output_dir, say)
    if recipe.training.log_with is not None:
        settings = {name: value for name, value in asdict(recipe.training).items() if value is not None}
        accelerator.init_trackers("ad_hf", config=settings)
    start = f"; going on after {done} updates, from {checkpoint}" if done else ""
    kind = "" if accelerator.num_processes == 1 else f" ({accelerator.distributed_type.value})"
    say(f"a model of {trainer.num_parameters:,} parameters, processes: {accelerator.num_processes}{kind}{start}")
    try:
        trainer.run(Metrics(output_dir, accelerator, done), done, publisher, push_every or 0)
        if accelerator.is_main_process:
            write_model_card(output_dir)
            if publisher is not None:
                publisher.push_end()
        accelerator.wait_for_everyone()
    finally:
        accelerator.end_training()
    if trainer.best is not None and trainer.family.tasks("validation"):
        say(f"best on the validation tasks: a return of {trainer.best[0]:.2f}, after {trainer.best[1]} updates")
    return load_model(output_dir / "model")[0]
