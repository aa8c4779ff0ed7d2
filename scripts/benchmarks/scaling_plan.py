"""
What collecting and training on very many transitions takes, worked out from what was measured; and what the updates of
a recipe take on an accelerator, by their operations.

    python scripts/benchmarks/scaling_plan.py --transitions 1e9 1e11
    python scripts/benchmarks/scaling_plan.py --transitions 1e10 --collect_rate 270e3 --tokens_rate 400e3 --bytes 1.02
    python scripts/benchmarks/scaling_plan.py --recipe watermaze --peak 989e12 --share 0.4

Rates are those in docs/results, whose commands the table names, unless others are given. Prices are assumptions, as
are the peak of an accelerator and the share of it that is reached.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.flop_counter import FlopCounterMode

from ad_hf.envs.spaces import space_to_json, storage_dtype
from ad_hf.envs.task_family import TaskFamily
from ad_hf.histories.stream import BLOCK_BYTES
from ad_hf.histories.windows import none_action
from ad_hf.model.configuration_ad import ADConfig
from ad_hf.model.modeling_ad import ADModel
from ad_hf.recipe import Recipe, load_recipe

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
# The Hub's recommendations: https://huggingface.co/docs/hub/storage-limits
HUB_FILES_PER_REPOSITORY, HUB_FILES_PER_FOLDER, HUB_GB_PER_FILE = 100_000, 10_000, 50
PROGRESS_BYTES = 42  # a row of metadata.json's progress, of which every job has one for each of its tasks
MAPPED_BYTES, ORDER_BYTES = 8, 4  # of a Dark Room step in a memory-mapped file; of a window in an epoch's order


@dataclass
class Units:
    """
    What a unit of each thing costs.

    Attributes:
        collect_rate (`float`): transitions per second and core.
        tokens_rate (`float`): tokens per second and core, or GPU, in training.
        bytes (`float`): of a transition in parquet.
        seconds_per_job (`float`): of the scheduler.
        transitions_per_job (`int`): of a learner.
        window (`int`): steps of a window.
    """

    collect_rate: float
    tokens_rate: float
    bytes: float
    seconds_per_job: float
    transitions_per_job: int = 100_000
    window: int = 200


def measured_units() -> Units:
    """Units from the files that the benchmarks left."""
    lines = [json.loads(line) for line in (RESULTS / "benchmark.jsonl").read_text().splitlines()]
    collect = next(line for line in lines if line["part"] == "collect")
    train = next(line for line in lines if line["part"] == "train" and line["optimizer"] == "muon")
    simulated = json.loads((RESULTS / "simulate_jobs.json").read_text())
    quickstart = json.loads((RESULTS.parents[1] / "ad_hf" / "recipes" / "measured.json").read_text())["dark_room"]
    return Units(
        collect_rate=collect["transitions_per_second"] / collect["cores"],
        tokens_rate=train["tokens_per_second"] / train["threads"],
        bytes=quickstart["megabytes"] * 1e6 / 8.1e6,
        seconds_per_job=simulated["microseconds_per_job"] / 1e6,
    )


def plan(transitions: float, units: Units, price_per_hour: float) -> dict[str, Any]:
    """What so many transitions take: times in hours of one core (or GPU), sizes in gigabytes."""
    jobs = math.ceil(transitions / units.transitions_per_job)
    gigabytes = transitions * units.bytes / 1e9
    # As few shards as the Hub's folder takes, each a whole number of jobs, and no less than a million transitions.
    jobs_per_shard = max(math.ceil(1e6 / units.transitions_per_job), math.ceil(jobs / (HUB_FILES_PER_FOLDER // 2)))
    shards = math.ceil(jobs / jobs_per_shard)
    collect, train = (transitions / rate / 3600 for rate in (units.collect_rate, units.tokens_rate))
    return {
        "transitions": transitions,
        "jobs": jobs,
        "collect, core hours": collect,
        "collect, price": collect * price_per_hour,
        "scheduler, hours": jobs * units.seconds_per_job / 3600,
        "cores that one scheduler keeps busy": units.transitions_per_job / units.collect_rate / units.seconds_per_job,
        "parquet, GB": gigabytes,
        "transitions per shard": jobs_per_shard * units.transitions_per_job,
        "shards": shards,
        "MB per shard": 1000 * gigabytes / shards,
        "progress in metadata.json, MB": jobs * PROGRESS_BYTES / 1e6,
        "memory-mapped, GB": transitions * MAPPED_BYTES / 1e9,
        "order of an epoch, GB per process": transitions / units.window * ORDER_BYTES / 1e9,
        "requests of a streamed epoch": math.ceil(gigabytes * 1e9 / BLOCK_BYTES) + 2 * shards,
        "one epoch, core hours": train,
        "one epoch, price": train * price_per_hour,
    }


def cost_of_update(recipe: Recipe) -> dict[str, float]:
    """
    What an update of a recipe takes, by a forward and a backward pass that are traced and not computed.

    Returns:
        `dict`: `flops`, `saved_bytes` that the forward pass keeps for the backward pass in bfloat16 (weights
        included), and `observation_bytes` of the batch.
    """
    family = TaskFamily(recipe.family)
    envs = family.make_vec(family.tasks()[:1])
    observations, actions = envs.single_observation_space, envs.single_action_space
    names = {each.name for each in ADConfig.own_settings()}
    settings = {name: value for name, value in asdict(recipe.model).items() if name in names and value is not None}
    config = ADConfig(observation_space=space_to_json(observations), action_space=space_to_json(actions), **settings)
    shape, saved = (recipe.training.batch_size, config.context_length), {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[StorageWeakRef(storage)] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with FakeTensorMode(), torch.autocast("cpu", torch.bfloat16), hooks, FlopCounterMode(display=False) as counter:
        seen, acted = (
            torch.zeros((*shape, *(space.shape or ())), dtype=getattr(torch, dtype.name))
            for space, dtype in ((observations, storage_dtype(observations)), (actions, none_action(actions).dtype))
        )
        ADModel(config)(
            seen, acted, torch.zeros(shape), torch.zeros(shape, dtype=torch.bool), labels=acted
        ).loss.backward()
    return {
        "flops": counter.get_total_flops(),
        "saved_bytes": sum(saved.values()),
        "observation_bytes": seen.nbytes,
    }


def describe_recipe(recipe: Recipe, peak: float, share: float) -> str:
    """What a recipe's updates and its source take, in words."""
    cost, training, window = cost_of_update(recipe), recipe.training, recipe.model.context_length
    seconds = cost["flops"] / peak / share
    tasks = len(TaskFamily(recipe.family).tasks())
    transitions = tasks * recipe.source.total_timesteps
    step = cost["observation_bytes"] / training.batch_size / window
    return "\n".join(
        (
            f"an update of {training.batch_size} windows of {window} steps: {cost['flops'] / 1e12:.2g} TFLOP",
            f"at {share:.0%} of {peak / 1e12:,.0f} TFLOP/s: {1000 * seconds:.2g} ms an update, "
            f"{training.max_steps * seconds:.2g} s for {training.max_steps:,}",
            f"memory: {cost['saved_bytes'] / 1e9:.2g} GB for the backward pass in bfloat16, "
            f"{cost['observation_bytes'] / 1e9:.2g} GB of observations in a batch",
            f"source: {transitions:,} transitions of {tasks:,} tasks, {transitions * step / 1e9:.2g} GB of "
            "observations before they are compressed",
        )
    )


def table(plans: list[dict[str, Any]]) -> str:
    """Plans side by side, as markdown."""
    lines = ["| | " + " | ".join(f"{each['transitions']:.0e}" for each in plans) + " |", "|---|" + "---|" * len(plans)]
    for name in [name for name in plans[0] if name != "transitions"]:
        values = [each[name] for each in plans]
        lines.append(
            f"| {name} | " + " | ".join(f"{value:,.0f}" if value >= 10 else f"{value:.2g}" for value in values) + " |"
        )
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--transitions", type=float, nargs="+", default=[1e9, 1e11], help="how many (default: 1e9 1e11)"
    )
    parser.add_argument("--collect_rate", type=float, help="transitions per second and core")
    parser.add_argument("--tokens_rate", type=float, help="tokens per second and core, or GPU, in training")
    parser.add_argument("--bytes", type=float, help="bytes of a transition in parquet")
    parser.add_argument("--transitions_per_job", type=int, help="transitions of a learner (default: 100,000)")
    parser.add_argument("--price_per_hour", type=float, default=0.04, help="of a core, assumed (default: %(default)s)")
    parser.add_argument("--recipe", help="say what the updates of this recipe take, instead")
    parser.add_argument(
        "--peak", type=float, default=989e12, help="FLOP/s of the accelerator (default: an H200's in dense bfloat16)"
    )
    parser.add_argument("--share", type=float, default=0.4, help="of the peak that is reached (default: %(default)s)")
    return parser


def main() -> None:
    """Print the plan."""
    arguments = make_parser().parse_args()
    if arguments.recipe is not None:
        print(describe_recipe(load_recipe(arguments.recipe), arguments.peak, arguments.share))
        return
    units = measured_units()
    for name in ("collect_rate", "tokens_rate", "bytes", "transitions_per_job"):
        if getattr(arguments, name) is not None:
            setattr(units, name, getattr(arguments, name))
    print(f"{units.collect_rate:,.0f} transitions collected per second and core, {units.bytes:.2f} bytes each;")
    print(f"{units.tokens_rate:,.0f} tokens trained on per second and core; ", end="")
    print(f"{1e6 * units.seconds_per_job:.0f} microseconds of scheduling a job\n")
    print(table([plan(transitions, units, arguments.price_per_hour) for transitions in arguments.transitions]))


if __name__ == "__main__":
    main()
