"""
How fast each part is, as one JSON line per part, with ratios against something measured in the same run.

    python scripts/benchmarks/speed.py all
    python scripts/benchmarks/speed.py collect --jobs 24
    python scripts/benchmarks/speed.py train --threads 2
    python scripts/benchmarks/speed.py envs
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from threading import Barrier
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from pyarrow import feather
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

import ad_hf
from ad_hf.collection.collect import collect
from ad_hf.collection.executors import Pool, RunJob, run_jobs
from ad_hf.collection.jobs import Job, Outcome, learn_job, run_job
from ad_hf.collection.processes import ProcessPool, available_cores, prepare_process
from ad_hf.collection.ray_pool import RayPool
from ad_hf.envs.sb3 import SB3VecEnv
from ad_hf.envs.spaces import space_to_json
from ad_hf.envs.task_family import TaskFamily
from ad_hf.histories.dataset import HistoryDataset
from ad_hf.histories.schema import history_features
from ad_hf.histories.windows import HistoryWindows, WindowBatches
from ad_hf.histories.writer import history_table
from ad_hf.model.configuration_ad import ADConfig
from ad_hf.model.modeling_ad import ADModel
from ad_hf.model.step_ad import choose_products
from ad_hf.recipe import load_recipe
from ad_hf.sources.config import SourceConfig
from ad_hf.sources.learners import make_learner
from ad_hf.storage.folders import Folder
from ad_hf.training.config import TrainingConfig
from ad_hf.training.machine import choose_precision, keep_freed_memory, matmul_flops
from ad_hf.training.optimizers import make_optimizers

DISCRETE = {"type": "Discrete", "n": 5}
DARK_ROOM: dict[str, Any] = {
    "observation_space": {"type": "MultiDiscrete", "nvec": [9, 9]},
    "action_space": DISCRETE,
}
BATCH, WINDOW = 64, 200
NO_TOKENS = {"vocab_size": 1, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
BACKBONES: dict[str, dict[str, Any]] = {
    "mamba2": {"state_size": 32, "num_heads": 4, "head_dim": 64, "n_groups": 1, "chunk_size": 32},
    "xlstm": {"num_heads": 4},
    "lfm2": {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 256,
        "layer_types": ["conv", "conv", "full_attention", "conv"],
    },
}
NATIVE_WORLDS: dict[str, tuple[str, dict[str, Any]]] = {
    "AdversarialBandit": ("ad_hf/AdversarialBandit-v0", {}),
    "DarkRoom": ("ad_hf/DarkRoom-v0", {}),
    "DarkRoom, hard": ("ad_hf/DarkRoom-v0", {"size": 17, "sparse_reward": True}),
    "DarkKeyToDoor": ("ad_hf/DarkKeyToDoor-v0", {}),
    "TabularMDP": ("ad_hf/TabularMDP-v0", {}),
    "Watermaze": ("ad_hf/Watermaze-v0", {}),
    "Watermaze, small": ("ad_hf/Watermaze-v0", {"height": 18, "width": 24}),
}


def print_line(part: str, **figures: Any) -> None:
    """One JSON line, numbers rounded to four digits."""
    rounded = {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in figures.items()}
    print(json.dumps({"part": part, **rounded}), flush=True)


def _paired_jobs(family: TaskFamily, source: SourceConfig, jobs: list[Job]) -> list[tuple[float, float]]:
    """Seconds of each job with recording and writing, and of the same learner without, in turn."""
    prepare_process()
    envs = family.make_vec(family.tasks()[:1])
    features = history_features(envs.single_observation_space, envs.single_action_space)
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for number, job in enumerate([jobs[0], *jobs]):  # the first warms up
            start = time.perf_counter()
            table = history_table(learn_job(family, source, job)[0][1], features, 0, 0, 10_000)
            feather.write_feather(table, str(Path(folder) / "part.arrow"), compression="uncompressed")
            recorded = time.perf_counter() - start
            start = time.perf_counter()
            bare = SB3VecEnv(family.make_vec(job.tasks, num_envs=source.n_envs))
            learner = make_learner(source.algorithm, bare, job.learner_seed, source.hyperparameters)
            learner.learn(source.total_timesteps)
            if number:
                seconds.append((recorded, time.perf_counter() - start))
    return seconds


def _public_recipe_rate(family: TaskFamily, timesteps: int = 8000) -> float:
    """Transitions per second of SB3 PPO as in a public AD: single environments, tiny batches."""
    torch.set_num_threads(1)
    goal = family.tasks("train")[0].kwargs["goal"]
    envs = DummyVecEnv([lambda: gym.make("ad_hf/DarkRoom-v0", goal=goal)] * 100)
    learner = PPO("MlpPolicy", envs, n_steps=20, batch_size=50, n_epochs=20, device="cpu", seed=0)
    start = time.perf_counter()
    learner.learn(timesteps)
    return timesteps / (time.perf_counter() - start)


def _seconds_after_start(run: Callable[[list[Job]], Iterator[Outcome]], jobs: list[Job], counted: int) -> float:
    """
    Seconds from the end of the first job, by when processes have started, to that of so many later ones: an even
    number, so that two workers have done as many each, whichever was first, and are both at work all the time.
    """
    ends = [time.perf_counter() for _ in run(jobs)]
    return ends[counted] - ends[0]


def _ignore(transitions: int) -> None:
    """Show no progress."""


def _plain_loop(run: RunJob, jobs: Iterable[Job]) -> Iterator[Outcome]:
    """The same jobs one after the other, in this process."""
    for job in jobs:
        yield run(job, _ignore)


def _pool_loop(make_pool: Callable[..., Pool], run: RunJob, num_workers: int, jobs: list[Job]) -> Iterator[Outcome]:
    """The same jobs on a pool of workers."""
    return run_jobs(make_pool(run, _ignore, num_workers), jobs)


def _loop_beside_another(run: RunJob, jobs: list[Job], started: Barrier) -> float:
    """Seconds of a plain loop over all jobs but the first, in a process of its own, once the other one has started."""
    prepare_process()
    run(jobs[0], _ignore)
    started.wait()
    return _seconds_after_start(partial(_plain_loop, run), jobs, len(jobs) - 1)


def _two_loops(run: RunJob, jobs: list[Job]) -> float:
    """Seconds that two processes take for half of the jobs each, side by side: all that this machine can do."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(2, mp_context=context) as executor:
        started = manager.Barrier(2)
        loops = [executor.submit(_loop_beside_another, run, jobs[part::2], started) for part in range(2)]
        return statistics.mean(loop.result() for loop in loops)


def benchmark_executors(num_jobs: int, repeats: int = 3) -> None:
    """
    The same jobs, which learn and write their histories, in a plain loop, on one and on two worker processes, and on
    Ray; in turn, and without the time that processes take to start. Two plain loops side by side say how much a
    second core of this machine is worth to anyone.
    """
    prepare_process()
    recipe = load_recipe("dark_room")
    family = TaskFamily(recipe.family)
    source, tasks = recipe.source, family.tasks("train")
    envs = family.make_vec(tasks[:1])
    spaces = space_to_json(envs.single_observation_space), space_to_json(envs.single_action_space)
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        run = partial(run_job, family, source, spaces, 10_000, Folder(folder))
        for _ in range(repeats):
            for name, warm, execute in (
                ("plain loop", 1, partial(_plain_loop, run)),
                ("local, 1 worker", 1, partial(_pool_loop, ProcessPool, run, 1)),
                ("local, 2 workers", 2, partial(_pool_loop, ProcessPool, run, 2)),
                ("ray, 1 worker", 1, partial(_pool_loop, RayPool, run, 1)),
            ):
                # After the first one of each worker, as many for all.
                jobs = [Job((task,), 0) for task in tasks[: 2 * num_jobs + warm]]
                seconds.setdefault(name, []).append(_seconds_after_start(execute, jobs, 2 * num_jobs))
            jobs = [Job((task,), 0) for task in tasks[: 2 * num_jobs + 2]]
            seconds.setdefault("two plain loops", []).append(_two_loops(run, jobs))
    loop, one = seconds["plain loop"], seconds["local, 1 worker"]
    print_line(
        "executors",
        jobs=2 * num_jobs,
        seconds_of_a_job=statistics.median(loop) / 2 / num_jobs,
        overhead_of_local_executor=statistics.median(b / a for a, b in zip(loop, one)) - 1,
        overhead_of_ray=statistics.median(b / a for a, b in zip(loop, seconds["ray, 1 worker"])) - 1,
        scaling_from_1_to_2_workers=statistics.median(a / b for a, b in zip(one, seconds["local, 2 workers"])),
        scaling_of_two_plain_loops=statistics.median(a / b for a, b in zip(loop, seconds["two plain loops"])),
        cores=available_cores(),
        repeats=repeats,
    )


def benchmark_collect(num_jobs: int) -> None:
    """Collection with all cores, against the same learner that neither records nor writes."""
    recipe = load_recipe("dark_room")
    family = TaskFamily(recipe.family)
    source, cores = recipe.source, available_cores()
    tasks = family.tasks("train")[:num_jobs]
    parts = [[Job((task,), 0) for task in tasks[start::cores]] for start in range(cores)]
    with ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context("spawn")) as executor:
        results = [executor.submit(_paired_jobs, family, source, jobs) for jobs in parts]
        pairs = [pair for result in results for pair in result.result()]
        public = executor.submit(_public_recipe_rate, family).result()
    few = TaskFamily(family.env_id, [task.kwargs for task in tasks], family.env_kwargs, native_vector=True)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        collect(few, source, output_dir=folder)
        whole = time.perf_counter() - start
    recorded = source.total_timesteps * cores / statistics.median(pair[0] for pair in pairs)
    bare = source.total_timesteps * cores / statistics.median(pair[1] for pair in pairs)
    print_line(
        "collect",
        transitions_per_second=recorded,
        without_recording=bare,
        ratio_to_without_recording=statistics.median(pair[1] / pair[0] for pair in pairs),
        whole_command_transitions_per_second=source.total_timesteps * len(tasks) / whole,
        cores=cores,
        jobs=len(tasks),
        algorithm=source.algorithm,
        public_ppo_recipe_transitions_per_second_and_core=public,
        ratio_per_core_to_public_ppo_recipe=recorded / cores / public,
    )


def _model_flops(model: ADModel, batch: int, window: int) -> float:
    """Floating-point operations of an update: 6 per parameter and token, and attention's two products, three times."""
    config = model.config
    parameters = sum(weight.numel() for weight in model.parameters())
    attention = 3 * 2 * 2 * config.num_hidden_layers * config.hidden_size * window**2 * batch
    return 6.0 * parameters * batch * window + attention


def benchmark_mixture(repeats: int = 8) -> None:
    """Updates on windows of three families at once, against each family's alone, in turn; 60 windows of 200 steps."""
    groups: dict[str, Any] = {
        "room": {"observation_space": {"type": "MultiDiscrete", "nvec": [9, 9]}, "action_space": DISCRETE},
        "cart": {"observation_space": box(4), "action_space": DISCRETE},
        "pull": {"observation_space": box(3), "action_space": box(1)},
    }
    mixed = ADModel(ADConfig(groups=groups)).train()
    models = {"mixture": mixed, **{name: ADModel(mixed.config.of_group(name)).train() for name in groups}}
    batches: dict[str, Any] = {name: synthetic_batch(models[name].config, 60) for name in groups}
    parts = {name: {each: values[:20] for each, values in batch.items()} for name, batch in batches.items()}
    batches["mixture"] = {each: {name: part[each] for name, part in parts.items()} for each in parts["room"]}
    precision, _ = choose_precision(torch.device("cpu"))
    optimizers = {
        name: make_optimizers(model, TrainingConfig(), precision == "bf16") for name, model in models.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for repeat in range(repeats + 2):
        for name, model in models.items():
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = model(**batches[name]).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers[name]:
                optimizer.step()
                optimizer.zero_grad()
            if repeat >= 2:
                seconds[name].append(time.perf_counter() - start)
    rates = {name: 60 * WINDOW / statistics.median(each) for name, each in seconds.items()}
    mean = statistics.mean(rates[name] for name in groups)
    print_line("mixture", tokens_per_second=rates["mixture"], members_mean=mean, ratio=rates["mixture"] / mean)


def box(size: int) -> dict[str, Any]:
    """A Box of numbers from -1 to 1, as JSON."""
    return {"type": "Box", "shape": [size], "low": [-1.0] * size, "high": [1.0] * size, "dtype": "float32"}


def synthetic_batch(config: ADConfig, windows: int) -> dict[str, torch.Tensor]:
    """Windows of random steps, in a model's spaces."""
    rng, shape = torch.Generator().manual_seed(0), (windows, WINDOW)

    def elements(space: dict[str, Any]) -> torch.Tensor:
        if space["type"] == "Box":
            return torch.rand((*shape, *space["shape"]), generator=rng) * 2 - 1
        sizes: Any = space.get("nvec", space.get("n"))
        return torch.randint(0, min(sizes) if isinstance(sizes, list) else sizes, (*shape, *np.shape(sizes)))

    observations, actions = config.observation_space or {}, config.action_space or {}
    return {
        **{"observations": elements(observations), "previous_actions": elements(actions)},
        "previous_rewards": torch.randint(0, 2, shape, generator=rng).float(),
        "episode_starts": (torch.arange(WINDOW) % 20 == 0).expand(shape),
        "labels": elements(actions),
    }


def benchmark_train(repeats: int = 12) -> None:
    """Updates of a 4-layer, 128-wide model on 64 windows of 200 steps, against this machine's matmul peak."""
    keep_freed_memory()
    config = ADConfig(observation_space={"type": "MultiDiscrete", "nvec": [9, 9]}, action_space=DISCRETE)
    model, batch = ADModel(config).train(), synthetic_batch(config, BATCH)
    precision, _ = choose_precision(torch.device("cpu"))
    for optimizer_name in ("adamw", "muon"):
        optimizers = make_optimizers(model, TrainingConfig(optimizer=optimizer_name), precision == "bf16")
        seconds, peaks = [], {torch.float32: 0.0, torch.bfloat16: 0.0}
        for repeat in range(repeats + 2):
            for dtype in peaks:
                peaks[dtype] = max(peaks[dtype], matmul_flops(dtype, size=2048, repeats=2))
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            if repeat >= 2:
                seconds.append(time.perf_counter() - start)
        flops = _model_flops(model, BATCH, WINDOW) / statistics.median(seconds)
        print_line(
            "train",
            optimizer=optimizer_name,
            tokens_per_second=BATCH * WINDOW / statistics.median(seconds),
            model_gflops=flops / 1e9,
            share_of_matmul_peak=flops / max(peaks.values()),
            peak_gflops_float32=peaks[torch.float32] / 1e9,
            peak_gflops_bfloat16=peaks[torch.bfloat16] / 1e9,
            precision=precision,
            threads=torch.get_num_threads(),
        )


def benchmark_loader(batches: int = 200) -> None:
    """Batches without a model, from a really collected dataset, against what training consumes in the same run."""
    recipe = load_recipe("dark_room")
    family = TaskFamily(recipe.family)
    few = TaskFamily(
        family.env_id, [task.kwargs for task in family.tasks("train")[:4]], family.env_kwargs, native_vector=True
    )
    with tempfile.TemporaryDirectory() as folder:
        collect(few, recipe.source, output_dir=folder)
        dataset = HistoryDataset.open(folder)
        start = time.perf_counter()
        windows = HistoryWindows(dataset.histories("train"), *dataset.metadata.spaces, WINDOW)
        loading = time.perf_counter() - start
        model = ADModel(ad_hf.config_from_dataset(folder))
    stream = iter(WindowBatches(windows, BATCH))
    batch = next(stream)
    start = time.perf_counter()
    for _ in range(batches):
        batch = next(stream)
    loader = batches * BATCH * WINDOW / (time.perf_counter() - start)
    consumed = []
    for _ in range(5):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            model(**batch).loss.backward()
        consumed.append(BATCH * WINDOW / (time.perf_counter() - start))
    print_line(
        "loader",
        tokens_per_second=loader,
        ratio_to_training=loader / max(consumed),
        transitions_read_per_second=windows.num_steps / loading,
    )


def memory_bandwidth(megabytes: int = 256, repeats: int = 5) -> float:
    """Bytes per second at which this machine reads memory: the best of some sums over a large array."""
    array, seconds = torch.ones(megabytes << 18), []
    for _ in range(repeats):
        start = time.perf_counter()
        array.sum()
        seconds.append(time.perf_counter() - start)
    return (megabytes << 20) / min(seconds)


def _uncached_rate(model: ADModel, batch: int = 16) -> float:
    """Environment steps per second if each encodes a whole context, at a batch that suits the processor's caches."""
    tokens = torch.zeros(batch, WINDOW, model.config.hidden_size, dtype=next(model.parameters()).dtype)
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        with torch.no_grad():
            model.head(model.decode(tokens)[:, -1])
        seconds.append(time.perf_counter() - start)
    return batch / statistics.median(seconds)


def _step_seconds(times: list[float], dropped: int) -> float:
    """
    Seconds of a step: the median over stretches in which a context is encoded anew once, as one in which the machine
    did something else says nothing.
    """
    marks = times[:: max(dropped, 20)]
    return statistics.median(after - before for before, after in pairwise(marks)) / max(dropped, 20)


def benchmark_rollout(num_envs: int = 256, episodes: int = 200, single_episodes: int = 60) -> None:
    """
    Rollouts of untrained models in Dark Rooms: what a step costs, early and late, against encoding the whole context
    at every step, and against reading the cache once per step, which is the least that attention needs.
    """
    recipe = load_recipe("dark_room")
    family = TaskFamily(recipe.family)
    process, length = psutil.Process(), int(recipe.family.env_kwargs["max_episode_steps"])
    tasks = (family.tasks() * (1 + num_envs // len(family.tasks())))[:num_envs]
    strategies: list[tuple[str, int | None, dict[str, Any]]] = [
        ("a quarter dropped at once", None, {}),
        ("half dropped at once", None, {"context_drop": WINDOW // 2}),
        ("sliding window of 50", 50, {}),
        ("a quarter dropped at once", None, {"mixed_precision": "no"}),
        ("sliding window of 50", 50, {"mixed_precision": "no"}),
    ]
    dropping: dict[str, float] = {}  # environment steps per second, by mixed precision
    for name, window, settings in strategies:
        model = ADModel(ADConfig(**DARK_ROOM, context_length=WINDOW, sliding_window=window)).eval()
        mixed_precision = settings.get("mixed_precision", "auto")
        products = choose_products(mixed_precision, model.norm.weight, num_envs)
        times, memory = [time.perf_counter()], [0]

        def note(_: Any, times: list[float] = times, memory: list[int] = memory) -> None:
            times.append(time.perf_counter())
            memory.append(process.memory_info().rss)

        bandwidth = memory_bandwidth()
        model.rollout(family.make_vec(tasks), num_episodes=episodes, callback=note, **settings)
        dropped = 1 if window is not None else settings.get("context_drop", WINDOW // 4)
        first, middle = 20 * length, (20 + episodes) // 2 * length  # from where contexts are full
        early, late = _step_seconds(times[first:middle], dropped), _step_seconds(times[middle:], dropped)
        held = window or WINDOW - dropped / 2  # steps, on average
        bytes_read = torch.float32.itemsize + products.itemsize  # of a key's number and a value's
        read = model.config.num_hidden_layers * num_envs * held * model.config.hidden_size * bytes_read
        start = time.perf_counter()
        model.rollout(family.make_vec(tasks[:1]), num_episodes=single_episodes, **settings)
        alone = single_episodes * length / (time.perf_counter() - start)
        print_line(
            "rollout",
            strategy=name,
            products=str(products).removeprefix("torch."),
            environments=num_envs,
            env_steps_per_second=num_envs / late,
            env_steps_per_second_of_the_whole_rollout=num_envs * (len(times) - 1) / (times[-1] - times[0]),
            ratio_to_uncached=num_envs / late / _uncached_rate(model),
            ratio_to_a_quarter_dropped=num_envs / late / dropping.setdefault(mixed_precision, num_envs / late),
            share_of_memory_bandwidth_limit=read / bandwidth / late,
            memory_gigabytes_per_second=bandwidth / 1e9,
            cost_of_a_step_late_to_early=late / early,
            resident_memory_late_to_early=memory[-1] / memory[first],
            env_steps_per_second_of_one_environment=alone,
        )


def benchmark_backbones(num_envs: int = 16, steps: int = 400) -> None:
    """Steps of recurrent decoders of transformers, against encoding the whole context at every step."""
    rng = np.random.default_rng(0)
    seen, paid = rng.integers(9, size=(steps + 1, num_envs, 2)), np.zeros(num_envs)
    for kind, sizes in BACKBONES.items():
        backbone = {"model_type": kind, "hidden_size": 128, "num_hidden_layers": 4, **NO_TOKENS, **sizes}
        model = ADModel(ADConfig(**DARK_ROOM, backbone_config=backbone, context_length=WINDOW)).eval()
        context, times = model.init_context(num_envs), []
        for observations in seen:
            context.act(observations, paid)
            times.append(time.perf_counter())
        seconds = _step_seconds(times[WINDOW:], WINDOW // 4)  # from where contexts are full
        print_line(
            "backbones",
            backbone=kind,
            environments=num_envs,
            env_steps_per_second=num_envs / seconds,
            ratio_to_uncached=num_envs / seconds / _uncached_rate(model, num_envs),
        )


def _env_step_seconds(envs: VectorEnv, steps: int) -> float:
    """Seconds of this process for a step of all environments under random actions, resets included."""
    actions = [envs.action_space.sample() for _ in range(steps)]
    start = time.process_time()
    for action in actions:
        envs.step(action)
    return (time.process_time() - start) / steps


def benchmark_envs(repeats: int = 5, sizes: tuple[int, ...] = (1, 16, 256)) -> None:
    """Steps of native vectors under random actions, against gymnasium's SyncVectorEnv of the same, in turn."""
    for world, (env_id, kwargs) in NATIVE_WORLDS.items():
        for num_envs in sizes:
            native = gym.make_vec(env_id, num_envs, "vector_entry_point", **kwargs)
            mode = {"autoreset_mode": AutoresetMode.SAME_STEP}
            single = gym.make_vec(env_id, num_envs, "sync", vector_kwargs=mode, **kwargs)
            steps = max(256 // num_envs, 1) * (gym.spec(env_id).max_episode_steps or 1)  # whole episodes
            for envs in (native, single):
                envs.reset(seed=0)
                _env_step_seconds(envs, steps)
            pairs = [(_env_step_seconds(native, steps), _env_step_seconds(single, steps)) for _ in range(repeats)]
            print_line(
                "envs",
                world=world,
                environments=num_envs,
                env_steps_per_second=num_envs / statistics.median(pair[0] for pair in pairs),
                of_sync_vector_env=num_envs / statistics.median(pair[1] for pair in pairs),
                ratio_to_sync_vector_env=statistics.median(pair[1] / pair[0] for pair in pairs),
            )
            native.close()
            single.close()


def main() -> None:
    """Parse the command line and run the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "part", choices=["all", "collect", "train", "mixture", "loader", "rollout", "backbones", "envs"]
    )
    parser.add_argument("--jobs", type=int, default=16, help="tasks that collect learns (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=available_cores(), help="threads of torch (default: all cores)")
    parser.add_argument("--episodes", type=int, default=200, help="episodes of a rollout (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.part in ("all", "collect"):
        benchmark_collect(arguments.jobs)
        benchmark_executors(arguments.jobs // 2)
    if arguments.part in ("all", "train"):
        benchmark_train()
    if arguments.part in ("all", "mixture"):
        benchmark_mixture()
    if arguments.part in ("all", "loader"):
        benchmark_loader()
    if arguments.part in ("all", "rollout"):
        benchmark_rollout(episodes=arguments.episodes)
    if arguments.part in ("all", "backbones"):
        benchmark_backbones()
    if arguments.part in ("all", "envs"):
        benchmark_envs()


if __name__ == "__main__":
    main()
