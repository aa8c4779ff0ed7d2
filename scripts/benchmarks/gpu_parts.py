"""The parts of gpu.py: what they check and measure, each as lines of figures with a verdict."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from itertools import product, repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scaling_plan import cost_of_update
from soak import RECIPE, Soak, outcome

from ad_hf.envs.sb3 import SB3VecEnv
from ad_hf.envs.task_family import TaskFamily
from ad_hf.histories.dataset import HistoryDataset
from ad_hf.model.configuration_ad import ADConfig
from ad_hf.model.modeling_ad import ADModel
from ad_hf.pipeline import collect_recipe, quickstart
from ad_hf.recipe import Recipe, load_recipe
from ad_hf.sources.learners import make_learner
from ad_hf.training.machine import join_processes
from ad_hf.training.members import Member
from ad_hf.training.trainer import Trainer

EXACT = 1e-4  # largest difference of logits in float32, whose standard deviation is about 1
CLOSE = 0.01  # largest relative difference of losses at the end
ENDING = 0.2  # share of the updates whose mean loss counts as that at the end
MOST_PARTS = 16  # passes that an update is divided into on a GPU too small for all of it
MOST_SECONDS = 15  # of a rollout


class Plan(NamedTuple):
    """What a part is told: where and on what it runs, and how much it does."""

    work: Path  # folder of all parts
    device: str
    is_rehearsal: bool = False
    workers: int | None = None  # of collections: one per core
    contexts: tuple[int, int] = (64, 320)  # environments and steps, of which a context holds fewer
    attention: tuple[str, ...] = ("eager", "default")
    signals: tuple[int, ...] = (signal.SIGTERM, signal.SIGKILL)
    signal_after: int = 100  # updates of soak.py's 300
    changes: Mapping[str, Mapping[str, Any]] = {"training": {"mixed_precision": "auto"}}  # of soak.py's recipe
    updates: int = 300
    environments: tuple[int, ...] = (256, 4096)
    rollout_steps: int = 240
    frame_updates: int = 20
    source_steps: int = 4000
    settings: Mapping[str, tuple[str, ...]] = {}  # of recipes, by name


def passed(verdict: bool) -> dict[str, bool]:
    """The verdict of a check."""
    return {"passed": bool(verdict)}


class Inputs:
    """The inputs of a model's steps in random worlds, (batch, time, ...) each, as a context has seen them."""

    def __init__(self, num_envs: int, device: str) -> None:
        self._rng, self._num_envs, self._device = np.random.default_rng(0), num_envs, device
        self._steps: list[tuple[np.ndarray, ...]] = []
        self._actions = np.full(num_envs, 5)  # before the first

    def act(self, context: Any) -> np.ndarray:
        """Take a step with a context; returns its actions."""
        observations = self._rng.integers(9, size=(self._num_envs, 2))
        rewards, starts = self._rng.random(self._num_envs), self._rng.random(self._num_envs) < 0.05
        first = not self._steps
        seen = (np.zeros_like(rewards), np.ones_like(starts)) if first else (rewards, starts)
        self._steps.append((observations, self._actions, *seen))
        self._actions = context.act(observations, rewards, starts)
        return self._actions

    @torch.no_grad()
    def logits(self, model: ADModel, first: int, loses_one: bool = False) -> torch.Tensor:
        """Logits (num_envs, n) of the last step from those since one, without a cache; or without the step before."""
        steps = self._steps[first:-2] + self._steps[-1:] if loses_one else self._steps[first:]
        inputs = (torch.from_numpy(np.stack(part, axis=1)).to(self._device) for part in zip(*steps))
        observations, actions, rewards, starts = inputs
        return model(observations, actions, rewards.float(), starts).logits[:, -1].float().cpu()


def _logits_of_lives(plan: Plan, model: ADModel) -> Iterator[torch.Tensor]:
    """
    Of every eighth step of a context (steps, num_envs, ...): its logits, those of a forward pass over all steps that
    it holds, the same in float32, the same without one of the steps, and its actions.
    """
    num_envs, steps = plan.contexts
    exact, context = deepcopy(model).float(), model.init_context(num_envs, do_sample=False)
    inputs, rows = Inputs(num_envs, plan.device), []
    for step in range(1, steps + 1):
        actions = torch.from_numpy(inputs.act(context))
        if step % 8 == 0:
            first = 0 if model.config.sliding_window else step - int(context.lengths.max())
            whole, reference = inputs.logits(model, first), inputs.logits(exact, first)
            rows.append((context.logits, whole, reference, inputs.logits(exact, first, loses_one=True), actions))
    return map(torch.stack, zip(*rows))


def check_exactness(plan: Plan) -> Iterator[dict[str, Any]]:
    """
    Logits of contexts, which cache keys and values, against those of whole forward passes over the same steps.

    In float32 both are the same but for the order of sums. Numbers of bfloat16 have 8 bits: after four blocks either
    way is about a hundredth away from float32, by roundings of its own. So the cached way may be at most one and a
    half times as far away as the other.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    steps = plan.contexts[1]
    for window, dtype in product((None, steps // 6), (torch.float32, torch.bfloat16)):
        torch.manual_seed(0)
        config = ADConfig(
            observation_space={"type": "MultiDiscrete", "nvec": [9, 9]},
            action_space={"type": "Discrete", "n": 5},
            context_length=steps * 5 // 8,
            sliding_window=window,
            initializer_range=0.1,
        )
        model = ADModel(config).eval().to(plan.device, dtype)
        cached, whole, exact, one_less, actions = _logits_of_lives(plan, model)
        chosen = whole.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
        same = float((chosen >= whole.amax(-1) - 2 * EXACT).float().mean())  # equal but for rounding
        figures = {
            "cache": "whole context" if window is None else f"sliding window of {window}",
            "dtype": str(dtype).removeprefix("torch."),
            "standard_deviation_of_logits": float(exact.std()),
            "greedy_actions_equal": same,
        }
        if dtype == torch.float32:
            largest, lost = (float((each - whole).abs().max()) for each in (cached, one_less))
            figures |= {"largest_difference": largest, "of_a_cache_that_loses_a_step": lost, "tolerance": EXACT}
            yield figures | passed(largest <= EXACT < lost / 100 and same == 1)
        else:
            error, without = (float((each - exact).square().mean().sqrt()) for each in (cached, whole))
            figures |= {"error_to_float32": error, "error_without_cache": without}
            yield figures | passed(error <= 1.5 * without)


def _run(soak: Soak, plan: Plan, attention: str, number: int | None, name: str) -> dict[str, Any]:
    """What comes out of a training, which may get a signal after some updates and then goes on."""
    folder = plan.work / "resume" / f"{attention}-{name}"
    settings = [] if attention == "default" else [f"--model.attn_implementation={attention}"]
    if number is not None:
        metrics = folder / "metrics.jsonl"
        with soak.start(folder, *settings) as process:
            while process.poll() is None and not (
                metrics.is_file() and metrics.read_text().count("\n") >= plan.signal_after
            ):
                time.sleep(0.01)
            process.send_signal(number)
            said = process.communicate()[1]
        if process.returncode not in (-number, 128 + number):
            raise RuntimeError(f"a training ended with {process.returncode}, not by {name}: {said[-500:]!r}")
        soak.check(folder)
    soak.finish(folder, *settings)
    return outcome(folder)


def check_resume(plan: Plan) -> Iterator[dict[str, Any]]:
    """
    Trainings that a signal ends and that go on, against one that none ends: every bit of what they leave.

    The backward pass of fused attention may add up in another order each time. So if bits differ, a second training
    without a signal tells whether two of them are alike at all; with explicit attention they must be.
    """
    (plan.work / "resume").mkdir()
    recipe = {section: {**settings, **plan.changes.get(section, {})} for section, settings in RECIPE.items()}
    soak, names = Soak("train", plan.work / "resume", 0, recipe), [signal.Signals(each).name for each in plan.signals]
    with ThreadPoolExecutor(len(plan.attention) * (1 + len(names))) as threads:  # all side by side
        runs = [
            [
                threads.submit(_run, soak, plan, attention, *each)
                for each in zip((None, *plan.signals), ("whole", *names))
            ]
            for attention in plan.attention
        ]
    for attention, (first, *others) in zip(plan.attention, runs):
        whole = first.result()
        same, repeatable = all(each.result() == whole for each in others), None
        if not same:
            repeatable = _run(soak, plan, attention, None, "again") == whole
        yield {
            "attention": attention,
            "signals": names,
            "same_bits": same,
            "same_bits_of_two_trainings_without_a_signal": repeatable,
        } | passed(same or (attention == "default" and repeatable is False))


def dark_rooms(plan: Plan) -> tuple[Recipe, Path]:
    """The recipe of Dark Room, and histories of a few of its tasks, collected once for all parts."""
    recipe = load_recipe("dark_room", ["--family.num_train_tasks=16", *plan.settings.get("dark_room", ())])
    return recipe, Path(collect_recipe(recipe, plan.work / "dark_rooms", plan.workers, split="train"))


@dataclass
class Training:
    """Some updates: their losses, the seconds of the first one, and of each once the device has warmed up."""

    trainer: Trainer
    losses: list[float]
    first_seconds: float
    seconds: float

    @property
    def end(self) -> float:
        """The mean loss of the last updates."""
        return statistics.mean(self.losses[-max(1, int(ENDING * len(self.losses))) :])


def train(plan: Plan, recipe: Recipe, histories: Path, updates: int, batch: Any = None, **changes: Any) -> Training:
    """Updates of a recipe's own trainer, on its batches or on one batch again and again."""
    join_processes()
    training = replace(recipe.training, **changes)
    member = Member(HistoryDataset.open(histories), recipe.family, recipe.data, recipe.rollout)
    trainer = Trainer(plan.work / "run", [member], recipe.model, training)
    trainer.model.train()
    losses, marks, warm = [], [time.perf_counter()], max(1, updates // 5)
    with closing(iter(trainer.batches)) as batches:
        for step in range(1, updates + 1):
            losses.append(trainer.update(batches if batch is None else repeat(batch), step))
            if step in (1, warm, updates):
                losses[-1].item()  # waits for the device
                marks.append(time.perf_counter())
    return Training(
        trainer,
        torch.stack(losses).tolist(),
        marks[1] - marks[0],
        (marks[-1] - marks[-2]) / max(1, updates - warm),
    )


def compare_trainings(plan: Plan, one: Training, other: Training) -> dict[str, Any]:
    """Losses of two trainings, which must be close at the end, and far from where they began."""
    difference = abs(other.end / one.end - 1)
    return {
        "updates": len(one.losses),
        "losses_at_the_start": [one.losses[0], other.losses[0]],
        "losses_at_the_end": [one.end, other.end],
        "relative_difference": difference,
        "tolerance": CLOSE,
        "ratio_of_speeds": one.seconds / other.seconds,
    } | passed(difference <= CLOSE and (other.end < 0.9 * other.losses[0] or plan.is_rehearsal))


def check_precision(plan: Plan) -> Iterator[dict[str, Any]]:
    """Training in the precision that `auto` chooses, bfloat16 on every GPU that has its units, against float32."""
    recipe, histories = dark_rooms(plan)
    full, auto = (
        train(plan, recipe, histories, plan.updates, mixed_precision=precision) for precision in ("no", "auto")
    )
    figures = {"auto": auto.trainer.accelerator.mixed_precision, **compare_trainings(plan, full, auto)}
    if plan.device == "cuda" and torch.cuda.get_device_capability() >= (8, 0):
        figures["passed"] &= figures["auto"] == "bf16"
    yield figures


def check_compile(plan: Plan) -> Iterator[dict[str, Any]]:
    """Training of a compiled model against the same without: equal losses, at another speed."""
    recipe, histories = dark_rooms(plan)
    plain, compiled = (train(plan, recipe, histories, plan.updates, torch_compile=flag) for flag in (False, True))
    yield {**compare_trainings(plan, plain, compiled), "seconds_of_the_first_update": compiled.first_seconds}


def _is_over(end: float, _: Any) -> bool:
    """Whether the time of a rollout is over."""
    return time.perf_counter() > end


def _speeds(plan: Plan) -> dict[str, float]:
    """Tokens and environment steps per second in training and rollouts of Dark Room's model."""
    recipe, histories = dark_rooms(plan)
    training = train(plan, recipe, histories, min(plan.updates, 50))
    tokens = recipe.training.batch_size * training.trainer.context_length
    speeds = {"tokens_per_second": tokens / training.seconds}
    family, model = TaskFamily(recipe.family), training.trainer.plain_model
    for number in plan.environments:
        envs = family.make_vec((family.tasks() * number)[:number])
        model.rollout(envs, max_steps=5)  # which warms up
        start = time.perf_counter()
        output = model.rollout(envs, max_steps=plan.rollout_steps, callback=partial(_is_over, start + MOST_SECONDS))
        steps = int(output["num_steps"].sum())
        speeds[f"env_steps_per_second_of_{number}"] = steps / (time.perf_counter() - start)
    return speeds


def _use_cpu() -> None:
    """Have Accelerate train on the CPU in this process."""
    os.environ["ACCELERATE_USE_CPU"] = "true"


def check_speed(plan: Plan) -> Iterator[dict[str, Any]]:
    """Training and rollouts on the device and, in a process of its own, on the CPU."""
    speeds = _speeds(plan)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _use_cpu) as executor:
        of_cpu = executor.submit(_speeds, plan).result()
    yield {
        **speeds,
        **{f"cpu_{name}": value for name, value in of_cpu.items()},
        **{f"ratio_{name}": value / of_cpu[name] for name, value in speeds.items()},
        "cpu_cores": os.cpu_count(),
    } | passed(True)


def _fit(plan: Plan, recipe: Recipe, histories: Path) -> tuple[int, Training]:
    """Updates in as many passes as the device's memory needs, and how many these are."""
    parts = 1
    while True:
        try:
            return parts, train(plan, recipe, histories, plan.frame_updates, gradient_accumulation_steps=parts)
        except (torch.OutOfMemoryError, ValueError):  # of which the latter is the trainer's own estimate
            if parts == MOST_PARTS:
                raise
        parts *= 2


def check_watermaze(plan: Plan) -> Iterator[dict[str, Any]]:
    """
    Updates of the full-size recipe, on frames of its environment under random actions, with the batches that training
    loads and on a single one; and the first steps of its source in one task.
    """
    few = ["--source.hyperparameters.learning_starts=16_000", "--family.num_test_tasks=88"]
    recipe = load_recipe("watermaze", [*few, *plan.settings.get("watermaze", ())])
    whole = load_recipe("watermaze")
    histories = Path(collect_recipe(recipe, plan.work / "watermaze", plan.workers, split="train"))
    parts, training = _fit(plan, recipe, histories)
    windows: Any = training.trainer.batches.windows  # type: ignore[union-attr]
    start = time.perf_counter()
    batch = windows.batch(windows.epoch_order(0)[: recipe.training.batch_size // parts])
    loading = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() / 1e9 if plan.device == "cuda" else None
    again = train(plan, recipe, histories, plan.frame_updates, batch, gradient_accumulation_steps=parts)
    updates = whole.training.max_steps * whole.training.batch_size / recipe.training.batch_size
    yield {
        "windows": recipe.training.batch_size,
        "passes": parts,
        "seconds_of_an_update": training.seconds,
        "seconds_of_an_update_on_one_batch": again.seconds,
        "seconds_to_load_a_batch": parts * loading,
        "teraflops_on_one_batch": cost_of_update(recipe)["flops"] / again.seconds / 1e12,
        "peak_gigabytes": peak,
        "hours_of_the_recipes_updates": updates * training.seconds / 3600,
    } | passed(all(map(math.isfinite, training.losses)))

    family, source, most = TaskFamily(whole.family), whole.source, plan.source_steps
    first = min(most // 2, int(source.hyperparameters["learning_starts"]))
    hyperparameters = {**source.hyperparameters, "device": plan.device, "learning_starts": first}
    envs = SB3VecEnv(family.make_vec(family.tasks()[:1], num_envs=source.n_envs))
    learner: Any = make_learner(source.algorithm, envs, 0, hyperparameters)
    learner.learn(first)
    start = time.perf_counter()
    learner.learn(most - first, reset_num_timesteps=False)
    rate = (most - first) / (time.perf_counter() - start)
    yield {
        "source_steps_per_second": rate,
        "source_steps": most - first,
        "hours_of_the_recipes_source_in_one_process": len(family.tasks()) * source.total_timesteps / rate / 3600,
    } | passed(learner._n_updates > 0)


def check_recipe(name: str, plan: Plan) -> Iterator[dict[str, Any]]:
    """A recipe from nothing to its report: the model learns in its context, by the report's own test."""
    recipe = load_recipe(name, plan.settings.get(name, ()))
    results = quickstart(recipe, plan.work / name, num_workers=plan.workers)
    agent = results["agents"]["AD"]
    yield {
        "seconds": results["seconds"],
        "return": list(agent["at"].values())[-1]["return"],
        "random_return": results["random_return"],
        "optimal_return": agent["optimal_return"],
        "verdict": agent["learns"]["verdict"],
    } | passed(agent["learns"]["verdict"] == "learns" or plan.is_rehearsal)


# Of each the seconds that it may take, 600 in all; what a part leaves is added to the next one's.
PARTS: dict[str, tuple[Callable[[Plan], Iterator[dict[str, Any]]], float]] = {
    "exactness": (check_exactness, 40),
    "resume": (check_resume, 105),
    "precision": (check_precision, 50),
    "compile": (check_compile, 90),
    "speed": (check_speed, 75),
    "watermaze": (check_watermaze, 80),
    "dark_room": (partial(check_recipe, "dark_room"), 90),
    "bandit": (partial(check_recipe, "bandit"), 70),
}
