"""The loop of a run: updates, validations, metrics, checkpoints and their pushes."""

from __future__ import annotations

import math
import signal
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.logging import get_logger

from ad_hf.evaluation.headlines import final_points
from ad_hf.evaluation.rollouts import evaluate
from ad_hf.hub.model_card import write_model_card
from ad_hf.model.modeling_ad import ADModel
from ad_hf.progress import ProgressBar
from ad_hf.storage.files import atomic_folder
from ad_hf.training.checkpoints import load_checkpoint, save_checkpoint
from ad_hf.training.interruption import Interruption, TrainingInterrupted
from ad_hf.training.metrics import CURVE, Metrics
from ad_hf.training.pushing import Publisher
from ad_hf.training.run_folder import prepare_run_folder
from ad_hf.training.trainer import Trainer
from ad_hf.training.validation import mean_loss
from ad_hf.training.verdict import write_verdict

logger = get_logger(__name__)


def run(
    trainer: Trainer,
    recipe: str,
    resume: Path | None = None,
    push_to: str | None = None,
    push_every: int | None = None,
) -> None:
    """
    Train to the end, or until a signal. Every process must call this.

    Arguments and errors are those of [`~ad_hf.train`], but for `recipe`, the text that goes into the run's folder.
    """
    accelerator, config, output_dir = trainer.accelerator, trainer.config, trainer.output_dir
    done = 0 if resume is None else load_checkpoint(trainer, resume)
    publisher = None
    if accelerator.is_main_process:
        prepare_run_folder(output_dir, recipe, _run_json(trainer))
        publisher = None if push_to is None else Publisher(push_to, output_dir)
    if config.log_with is not None:
        settings = {name: value for name, value in vars(config).items() if value is not None}
        trackio = {"name": output_dir.name, "resume": "allow" if done else "never"}
        accelerator.init_trackers("ad_hf", config=settings, init_kwargs={"trackio": trackio})
    start = f"; going on after {done} updates, from {resume}" if done else ""
    processes = f"{accelerator.num_processes}"
    if accelerator.num_processes > 1:
        processes += f" ({accelerator.distributed_type.value})"
    trained = f" ({trainer.num_trained:,} trained)" * (trainer.num_trained < trainer.num_parameters)
    logger.info(f"a model of {trainer.num_parameters:,} parameters{trained}, processes: {processes}{start}")
    try:
        _Loop(trainer, Metrics(output_dir, accelerator, done), publisher, push_every).run(done)
        if accelerator.is_main_process:
            write_model_card(output_dir)
            if publisher is not None:
                publisher.push_end()
        accelerator.wait_for_everyone()
    finally:
        trainer.end()
    if trainer.best is not None and trainer.validates:
        what = "a return" if len(trainer.members) == 1 else "a mean share of the sources' gains over random play"
        logger.info(f"best on the validation tasks: {what} of {trainer.best[0]:.2f}, after {trainer.best[1]} updates")


def _run_json(trainer: Trainer) -> dict[str, Any]:
    """What `run.json` says of the environments and the data."""
    each = {member.name: {**member.family.env_settings, "dataset": member.to_json()} for member in trainer.members}
    origin = {} if trainer.origin is None else {"init_from": trainer.origin}
    return {**each.get("", {"groups": each}), **origin}


class _StoppedError(Exception):
    """A signal came in the middle of a rollout."""


class _Loop:
    def __init__(
        self, trainer: Trainer, metrics: Metrics, publisher: Publisher | None, push_every: int | None
    ) -> None:
        self.trainer, self.config, self.accelerator = trainer, trainer.config, trainer.accelerator
        self.metrics, self.publisher, self.push_every = metrics, publisher, push_every
        self.interruption = Interruption()

    def run(self, done: int) -> None:
        """Train from after so many updates that are done."""
        with self.interruption:
            self._train(done)
            self._judge()

    def _train(self, done: int) -> None:
        trainer, tokens_per_step = self.trainer, self.config.batch_size * self.trainer.context_length
        trainer.model.train()
        with (
            closing(iter(trainer.batches)) as batches,
            ProgressBar(
                "train",
                self.config.max_steps * tokens_per_step,
                "tokens",
                initial=done * tokens_per_step,
                disable=not self.accelerator.is_local_main_process,
            ) as bar,
        ):
            if trainer.unvalidated is not None:
                self._finish_step(done, trainer.unvalidated)
                if self._signal():  # again
                    self._save(done)
            tokens, seconds = 0, 0.0  # of updates alone, since the last line of metrics
            for step in range(done + 1, self.config.max_steps + 1):
                start = time.perf_counter()
                loss = trainer.update(batches, step)
                bar.update(tokens_per_step)
                numbers = self._numbers(step, loss, bar)
                tokens, seconds = tokens + tokens_per_step, seconds + time.perf_counter() - start
                if numbers:
                    numbers["tokens_per_second"], tokens, seconds = round(tokens / seconds, 1), 0, 0.0
                self._finish_step(step, numbers)
                self._save(step)

    def _judge(self) -> None:
        """Say what the training came to; a run that is asked to end meanwhile does so when it goes on."""
        if self.accelerator.is_main_process:
            with suppress(_StoppedError):
                write_verdict(self.trainer, self._stop_if_asked)
        if self._signal():
            self._save(self.config.max_steps)

    def _numbers(self, step: int, loss: torch.Tensor, bar: Any) -> dict[str, float]:
        """The metrics of an update, if it is time for them."""
        if step % self.config.logging_steps and step not in (1, self.config.max_steps):
            return {}
        trainer = self.trainer
        trainer.check_loss()
        mean = float(self.accelerator.reduce(loss, "mean"))
        families = {name: self.accelerator.reduce(own, "sum") for name, own in trainer.losses.items()}
        epochs, best = trainer.batches.epochs, trainer.best and f"{trainer.best[0]:.2f}"
        bar.set_postfix(step=step, epoch=f"{epochs:.2f}", loss=f"{mean:.3f}", validation=best)
        return {
            "loss": mean,
            **{f"loss/{name}": float(total / count) for name, (total, count) in families.items()},
            "epoch": round(epochs, 4),
            "learning_rate": trainer.schedulers[0].get_last_lr()[0],
        }

    def _finish_step(self, step: int, numbers: dict[str, Any]) -> None:
        """Validate, if it is time to, and log; the run that goes on repeats an interrupted validation."""
        self.trainer.unvalidated = None
        if step % self.config.eval_steps == 0 or step == self.config.max_steps:
            validation = self._validate(step)
            if validation is None:
                self.trainer.unvalidated = numbers
                return
            numbers = numbers | validation
        if numbers:
            self.metrics.log(step, numbers)

    def _validate(self, step: int) -> dict[str, Any] | None:
        """Act on the validation tasks, and keep the model if it is the best so far; `None` if a signal came."""
        trainer, weights = self.trainer, self.trainer.gather_weights(step)
        metrics: dict[str, Any] | None = {}
        if self.accelerator.is_main_process:
            score = float(step)  # without validation tasks the newest model counts as the best
            if trainer.validates:
                metrics = self._play(trainer.whole_model(weights))
                score = metrics["validation_return"] if metrics else -math.inf
            if metrics is not None and (trainer.best is None or score > trainer.best[0]):
                trainer.best = (score, step)
                with atomic_folder(trainer.output_dir / "model") as folder:
                    trainer.save_model(folder, weights)
        self.accelerator.wait_for_everyone()
        return metrics

    def _stop_if_asked(self, _: Any) -> None:
        if self.interruption.signal is not None:
            raise _StoppedError

    def _play(self, model: ADModel) -> dict[str, Any] | None:
        """Metrics of the validation tasks: mean returns of the last episodes, of the first, and of each; losses."""
        found: dict[str, dict[str, Any]] = {}
        curves: list[np.ndarray] = []
        for member in self.trainer.members:
            own, windows = member.model(model), self.trainer.validation_windows[member.name]
            metrics = found.setdefault(member.name, {})
            if member.family.tasks("validation"):
                episodes, repeats = member.plays(self.config)
                try:
                    evaluation = evaluate(
                        own,
                        member.family,
                        "validation",
                        num_episodes=episodes,
                        num_seeds=repeats,
                        seed=self.config.seed,
                        callback=self._stop_if_asked,
                    )
                except _StoppedError:
                    return None
                curve = evaluation.returns.mean(axis=(0, 1))
                metrics["validation_return"] = float(evaluation.final_returns.mean())
                metrics["validation_return_first"] = float(curve[0])
                metrics[CURVE] = [round(float(value), 4) for value in curve]
                if member.name:
                    curves.append(member.normalized(evaluation))
            if windows is not None:
                metrics["validation_loss"] = mean_loss(windows.losses(own))
        if "" in found:
            return found[""]
        ends = [curve[final_points(len(curve))].mean() for curve in curves]
        longest = max(map(len, curves))  # a family of one episode a task stays at its return
        mean = np.mean([np.append(curve, np.full(longest - len(curve), curve[-1])) for curve in curves], axis=0)
        return {
            **{"validation_return": float(np.mean(ends)), "validation_return_first": float(mean[0])},
            CURVE: [round(float(value), 4) for value in mean],
            **{f"{metric}/{name}": value for name, own in found.items() for metric, value in own.items()},
        }

    def _signal(self) -> signal.Signals | None:
        """The signal that some process got; all get the same answer, and all must ask."""
        number = int(self.interruption.signal or 0)
        if self.accelerator.num_processes > 1:
            number = int(self.accelerator.gather(torch.tensor([number], device=self.accelerator.device)).max())
        return signal.Signals(number) if number else None

    def _save(self, step: int) -> None:
        """Save and push a checkpoint, if it is time to, or if a signal ends the run."""
        asked = self._signal()
        pushed = bool(self.push_every) and step % (self.push_every or 1) == 0
        due = step % (self.config.save_steps or self.config.eval_steps) == 0 and step < self.config.max_steps
        if not (asked or pushed or due):
            return
        checkpoint = save_checkpoint(self.trainer, step)
        if self.publisher is not None and (asked or pushed):
            self.publisher.push(checkpoint, step, wait=asked is not None)
        if asked:
            raise TrainingInterrupted(asked, step, checkpoint)
