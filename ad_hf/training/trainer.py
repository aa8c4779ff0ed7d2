"""Training: the Accelerate loop."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import gymnasium as gym
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list, parse_flag_from_env, set_seed
from tqdm.auto import tqdm
from transformers import get_scheduler

from ad_hf.envs.spaces import space_to_json
from ad_hf.envs.task_family import TaskFamily
from ad_hf.evaluation.evaluate import evaluate
from ad_hf.files import atomic_folder, write_text
from ad_hf.histories.dataset import HistoryDataset, config_from_dataset
from ad_hf.histories.schema import VERSIONED_PACKAGES, package_versions
from ad_hf.histories.stream import HistoryStream, StreamedBatches
from ad_hf.histories.validation import COLUMNS
from ad_hf.histories.windows import HistoryWindows, WindowBatches
from ad_hf.hub.cards import RESULT_FILES, write_model_card
from ad_hf.model import ADModel
from ad_hf.recipe import Recipe, load_recipe
from ad_hf.training.checkpoints import find_checkpoint, load_checkpoint, save_checkpoint
from ad_hf.training.config import TrainingConfig
from ad_hf.training.memory import keep_freed_memory
from ad_hf.training.precision import choose_precision


def make_optimizers(model: ADModel, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """
    The optimizers of a model's weights: Muon for the matrices of the blocks and AdamW for the rest, or AdamW for all.

    Weight decay is for the matrices of linear maps alone: embeddings, norms and biases have none. Muon's step is
    scaled to the size of AdamW's, so that one learning rate serves both (https://huggingface.co/papers/2502.16982).
    """
    embeddings = {id(table.weight) for table in model.modules() if isinstance(table, torch.nn.Embedding)}
    muon: list[torch.nn.Parameter] = []
    if config.optimizer == "muon":
        decoder: Any = model.blocks if model.blocks is not None else model.backbone
        muon = [weight for weight in decoder.parameters() if weight.ndim == 2 and id(weight) not in embeddings]
    chosen = {id(weight) for weight in muon}
    rest = [weight for weight in model.parameters() if id(weight) not in chosen]
    decayed = [weight for weight in rest if weight.ndim >= 2 and id(weight) not in embeddings]
    chosen |= {id(weight) for weight in decayed}
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": config.weight_decay},
                {"params": [weight for weight in rest if id(weight) not in chosen], "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            fused=True,
        )
    ]
    if muon:
        decay, rate = config.weight_decay, config.learning_rate
        optimizers.append(torch.optim.Muon(muon, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def train_on_cpu() -> bool:
    """
    Whether to tell Accelerate to train on the CPU. Without being told, it takes the processes that torchrun starts on
    a machine without accelerators for so many runs of one process, all writing to one folder.
    """
    return parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()


def check_family(family: TaskFamily, dataset: HistoryDataset) -> None:
    """Refuse a dataset of other tasks, or of another split: a validation or test task would have been trained on."""
    metadata = dataset.metadata
    for name, setting in json.loads(json.dumps(family.env_settings)).items():
        if getattr(metadata, name) != setting:
            raise ValueError(
                f"{dataset} holds histories with {name} = {getattr(metadata, name)!r}, the recipe's family has "
                f"{setting!r}"
            )
    wanted = {task.task_id: json.loads(json.dumps(asdict(task))) for task in family.tasks()}
    for task in metadata.tasks:
        if task != wanted.get(task["task_id"]):
            raise ValueError(
                f"{dataset} holds histories of other tasks or of another split than the recipe's family: "
                f"it has {task}, the recipe {wanted.get(task['task_id'])}"
            )
    try:
        envs = family.make_vec(family.tasks()[:1])
    except gym.error.Error as error:
        if not family.tasks("validation"):
            return  # data of an environment that is not here can be learnt from, just not be acted in
        raise ValueError(
            f"{family.env_id} cannot be made, which the recipe's validation tasks need: {error}; import the package "
            "that registers it, or set family.num_validation_tasks to 0"
        ) from error
    for name in ("observation_space", "action_space"):
        found, made = getattr(metadata, name), space_to_json(getattr(envs, f"single_{name}"))
        if found != made:
            raise ValueError(f"{dataset} has an {name} of {found}, the environments of the recipe one of {made}")
    envs.close()


class Trainer:
    """One run of training: what [`train`] sets up, and its loop."""

    def __init__(
        self, recipe: Recipe, dataset: HistoryDataset, output_dir: Path, say: Callable[[str], None], streaming: bool
    ) -> None:
        self.recipe, self.config, self.output_dir = recipe, recipe.training, output_dir
        self.family = TaskFamily.from_config(recipe.family)
        check_family(self.family, dataset)
        self.dataset, self.dataset_json = dataset, {**dataset.to_json(), "streaming": streaming}
        precision = self.config.mixed_precision
        if precision == "auto":
            # Timed by each process, it could come out differently: the first one's choice is everyone's.
            precision, why = broadcast_object_list([choose_precision(PartialState(cpu=train_on_cpu()).device)])[0]
            say(f"training in {precision if precision != 'no' else 'float32'} ({why})")
        # Accelerate keeps a process's first precision for ever; a second run in it may choose another.
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(
            cpu=train_on_cpu(),
            mixed_precision=precision,
            gradient_accumulation_steps=self.config.gradient_accumulation_steps,
            log_with=self.config.log_with,
            project_dir=str(output_dir),
        )
        # Every process starts from the same weights; regularisation draws on random numbers of its own in each.
        set_seed(self.config.seed)
        settings = asdict(recipe.model)
        implementation = settings.pop("attn_implementation")
        config = config_from_dataset(dataset, **settings)
        if implementation is not None:
            config._attn_implementation = implementation
        model = ADModel(config)
        model.rollout_config = recipe.rollout
        set_seed(self.config.seed, device_specific=True)
        self.context_length = config.context_length
        self.batches = self._make_batches(streaming, say)
        self.model, *self.optimizers = self.accelerator.prepare(model, *make_optimizers(model, self.config))
        # Stepped once per update by every process: not prepared, since Accelerate would step them once per process.
        self.schedulers = [
            get_scheduler(
                "cosine_with_min_lr",
                optimizer.optimizer,
                num_warmup_steps=round(self.config.warmup_ratio * self.config.max_steps),
                num_training_steps=self.config.max_steps,
                scheduler_specific_kwargs={"min_lr_rate": self.config.min_learning_rate_ratio},
            )
            for optimizer in self.optimizers
        ]
        self.best: tuple[float, int] | None = None

    def _make_batches(self, streaming: bool, say: Callable[[str], None]) -> WindowBatches | StreamedBatches:
        """Batches from memory, or from a stream, for this process."""
        data, accelerator = self.recipe.data, self.accelerator
        batch_size = self.config.batch_size // self.config.gradient_accumulation_steps
        rank, processes = accelerator.process_index, accelerator.num_processes
        settings: dict[str, Any] = {
            "context_length": self.context_length,
            "keep_every_episode": data.keep_every_episode,
            "max_episodes": data.max_episodes,
            "last_episodes": data.last_episodes,
            "seed": self.config.seed,
        }
        if streaming:
            stream = HistoryStream(self.dataset, "train", **settings, buffer_megabytes=data.buffer_megabytes)
            say(f"streaming {stream.num_steps:,} steps, {stream.compressed_bytes / 1e6:.1f} MB, from {self.dataset}")
            return StreamedBatches(stream, batch_size, rank, processes, data.num_workers)
        rows = self.dataset.load("train", list(COLUMNS))
        windows = HistoryWindows(rows, *self.dataset.metadata.spaces, **settings, name=f"{self.dataset}, split train")
        windows.warn_of_short_histories()
        say(f"{windows.num_histories} histories of {windows.num_steps:,} steps from {self.dataset}")
        return WindowBatches(windows, batch_size, rank, processes)

    def update(self, batches: Any) -> torch.Tensor:
        """One update of the weights; returns the mean loss of its windows."""
        losses = []
        for _ in range(self.config.gradient_accumulation_steps):
            batch = {name: part.to(self.accelerator.device) for name, part in next(batches).items()}
            with self.accelerator.accumulate(self.model):
                loss = self.model(**batch).loss
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
                for optimizer in self.optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
            losses.append(loss.detach())
        for scheduler in self.schedulers:
            scheduler.step()
        return torch.stack(losses).mean()

    def validate(self, step: int) -> dict[str, float]:
        """Roll out on the validation tasks; keeps the model if it is the best so far."""
        model = self.accelerator.unwrap_model(self.model)
        tasks = self.family.tasks("validation")
        metrics = {}
        if self.accelerator.is_main_process:
            score = float(step)  # without validation tasks the newest model is kept
            if tasks:
                evaluation = evaluate(
                    model,
                    self.family,
                    "validation",
                    num_episodes=self.config.eval_episodes,
                    num_seeds=self.config.eval_repeats,
                    seed=self.config.seed,
                )
                score = float(evaluation.final_returns.mean())
                first = float(evaluation.returns[..., 0].mean())
                metrics = {"validation_return": score, "validation_return_first": first}
            if self.best is None or score > self.best[0]:
                self.best = (score, step)
                with atomic_folder(self.output_dir / "model") as folder:
                    model.save_pretrained(folder)
        self.accelerator.wait_for_everyone()
        return metrics

    def run(self, metrics_file: TextIO, done: int = 0) -> None:
        """Train to the end, from after so many updates that are done."""
        config, accelerator = self.config, self.accelerator
        tokens_per_step = config.batch_size * self.context_length
        self.model.train()
        with (
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
            for step in range(done + 1, config.max_steps + 1):
                loss = self.update(batches)
                bar.update(tokens_per_step)
                metrics = {}
                if step % config.logging_steps == 0 or step in (1, config.max_steps):
                    loss_value = float(accelerator.reduce(loss, "mean"))
                    metrics = {"loss": loss_value, "learning_rate": self.schedulers[0].get_last_lr()[0]}
                    metrics["tokens_per_second"] = bar.format_dict["rate"] or 0.0
                    bar.set_postfix(
                        step=step, loss=f"{loss_value:.3f}", validation=self.best and f"{self.best[0]:.2f}"
                    )
                if step % config.eval_steps == 0 or step == config.max_steps:
                    metrics |= self.validate(step)
                if metrics:
                    accelerator.log(metrics, step=step)
                    metrics_file.write(json.dumps({"step": step, **metrics}) + "\n")
                    metrics_file.flush()
                if step % (config.save_steps or config.eval_steps) == 0 and step < config.max_steps:
                    save_checkpoint(self, step)


def _open_metrics(path: Path, done: int) -> TextIO:
    """The file of the metrics, with the lines of the updates that are done."""
    kept = []
    if done and path.is_file():
        lines = path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= done]
    file = open(path, "w")  # noqa: SIM115  # closed by the caller
    file.writelines(kept)
    return file


def train(
    recipe: Recipe | str | Path,
    dataset: str | Path,
    output_dir: str | Path,
    config_name: str | None = None,
    streaming: bool = False,
    resume: str | Path | None = None,
    say: Callable[[str], None] = tqdm.write,
) -> ADModel:
    r"""
    Train a model on learning histories.

    Writes `recipe.yaml` (complete), `run.json` (which data, at which revision), `metrics.jsonl`, `checkpoint-N/` and
    `model/`, the model that did best on the validation tasks, into `output_dir`. Start it with `accelerate launch
    scripts/train.py` to train on several processes.

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
            `"latest"`, to go on from the newest checkpoint in `output_dir` if there is one, or a checkpoint's folder.
        say (`Callable[[str], None]`, *optional*):
            Prints a line for people.

    Returns:
        [`ADModel`]: the best model.

    Raises:
        FileNotFoundError: for an unknown recipe, dataset or checkpoint.
        ValueError: if the dataset is of other tasks than the recipe's family, or split otherwise, or malformed; if the
            checkpoint is of another dataset or recipe.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    output_dir = Path(output_dir)
    keep_freed_memory()
    say = PartialState(cpu=train_on_cpu()).on_main_process(say)
    opened = HistoryDataset.open(dataset, config_name)
    checkpoint = None if resume is None else find_checkpoint(resume, output_dir)
    trainer = Trainer(recipe, opened, output_dir, say, streaming)
    accelerator = trainer.accelerator
    done = 0 if checkpoint is None else load_checkpoint(trainer, checkpoint)
    output_dir.mkdir(parents=True, exist_ok=True)
    if accelerator.is_main_process:
        for name in RESULT_FILES:  # of the model that was there before
            (output_dir / name).unlink(missing_ok=True)
        write_text(output_dir / "recipe.yaml", recipe.to_yaml())
        run = {
            **trainer.family.env_settings,
            "dataset": trainer.dataset_json,
            "versions": package_versions((*VERSIONED_PACKAGES, "transformers")),
        }
        write_text(output_dir / "run.json", json.dumps(run, indent=2) + "\n")
    if recipe.training.log_with is not None:
        accelerator.init_trackers("ad_hf", config=json.loads(json.dumps(asdict(recipe.training))))
    parameters = sum(weight.numel() for weight in trainer.model.parameters())
    start = f"; going on after {done} updates, from {checkpoint}" if done else ""
    say(f"a model of {parameters:,} parameters, processes: {accelerator.num_processes}{start}")
    # Opened by another process as well, the file could be emptied after its first lines.
    metrics_path = output_dir / "metrics.jsonl" if accelerator.is_main_process else Path(os.devnull)
    with _open_metrics(metrics_path, done) as metrics_file:
        trainer.run(metrics_file, done)
    if accelerator.is_main_process:
        write_model_card(output_dir)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if trainer.best is not None and trainer.family.tasks("validation"):
        say(f"best on the validation tasks: a return of {trainer.best[0]:.2f}, after {trainer.best[1]} updates")
    return ADModel.from_pretrained(output_dir / "model")
