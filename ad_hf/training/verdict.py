"""
What a training came to, in one line: whether the best model learns in its context and, if it does not, why.

A verdict rests on two measurements. Rollouts on validation tasks, and on as many training tasks, tell learning in
context from memory, by the test that evaluations make. The loss on histories, beside that of the best guess that is
the same at every step, tells whether there is anything to roll out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from accelerate.logging import get_logger
from scipy.stats import ttest_ind

from ad_hf.diagnosis.inspection import inspect_dataset
from ad_hf.evaluation.headlines import LEARNS, evidence_words, final_points, learning_of
from ad_hf.evaluation.rollouts import evaluate, play_at_random
from ad_hf.model.modeling_ad import ADModel
from ad_hf.storage.files import write_text
from ad_hf.training.members import Member
from ad_hf.training.run_folder import VERDICT_FILE
from ad_hf.training.trainer import Trainer
from ad_hf.training.validation import mean_loss

MEMORISES, NO_IMITATION = "memorises tasks", "does not imitate"
NO_IMPROVEMENT, UNKNOWN = "imitates and does not improve", "cannot tell"
GUIDE = "docs/guides/troubleshooting.md"
FEWEST_TASKS = 3  # of one or two, a bootstrap says next to nothing of other tasks
# Nats per action by which a model has to be better than the best constant guess. Untrained models are worse, one that
# was trained on random actions is 0.003 better, and models that learn in their context are 0.4 to 1 better.
LEAST_GAIN = 0.05
LOOKED_AT = {MEMORISES: ["tasks"], NO_IMITATION: ["actions"], NO_IMPROVEMENT: ["returns", "windows"]}  # of the data
AT_THE_END = 0.9  # of the histories' rise: a model that begins there has little left to learn


def write_verdict(trainer: Trainer, callback: Callable[[Any], None]) -> None:
    """
    Measure the best model of a run, say what the training came to, and keep both in `verdict.json`: of a mixture, the
    verdict on each family.

    Only the main process calls this; the callback is called at every step of the rollouts.
    """
    folder = trainer.output_dir
    model = ADModel.from_pretrained(folder / "model", config=trainer.model_config).to(trainer.accelerator.device)
    found = {member.name: _judge_member(trainer, member, member.model(model), callback) for member in trainer.members}
    write_text(folder / VERDICT_FILE, json.dumps(found.get("", {"groups": found}), indent=2) + "\n")


def _judge_member(trainer: Trainer, member: Member, model: ADModel, callback: Callable[[Any], None]) -> dict[str, Any]:
    """The verdict on one family, and what it rests on."""
    learning, losses = _play(trainer, member, model, callback), _losses(trainer, member, model)
    statistics = member.dataset.metadata.statistics.get("train", {})
    histories = {name: statistics.get(f"return_{name}") for name in ("first", "last")}
    verdict = judge(learning, losses)
    line = f"{verdict}: {'; '.join(_reasons(trainer, member, verdict, learning, losses, histories))}"
    if verdict != LEARNS:
        line += f" (see {GUIDE})"
    get_logger(__name__).info(f"{member.name}: {line}" if member.name else line)
    return {"verdict": verdict, "line": line, "learning": learning, "losses": losses, "histories": histories}


def _play(
    trainer: Trainer, member: Member, model: ADModel, callback: Callable[[Any], None]
) -> dict[str, dict[str, Any]]:
    """The test of learning on validation tasks and on training tasks; empty if there are too few to test."""
    family, config = member.family, trainer.config
    held_out, seen = family.tasks("validation"), family.tasks("train")
    count = len(held_out)
    if count < FEWEST_TASKS:
        return {}
    picks = np.linspace(0, len(seen) - 1, min(len(seen), count)).round().astype(int)
    tasks = [*held_out, *(seen[pick] for pick in picks)]
    # Not the rollouts that chose the model, which show it at its luckiest.
    episodes, repeats = member.plays(config)
    settings = repeats, (config.seed + count * repeats) % 2**32
    played = evaluate(model, family, tasks, episodes, *settings, progress=True, callback=callback)
    values, of = played.returns, "episodes"
    if played.step_rewards is not None:
        random = play_at_random(family, tasks, 1, *settings)
        if random is not None and random.step_rewards is not None:
            values, of = played.step_rewards - random.step_rewards, "steps"
    learning = {}
    for split, part in {"validation": slice(0, count), "train": slice(count, None)}.items():
        returns = played.returns[:, part]
        learning[split] = {
            "num_tasks": returns.shape[1],
            "return_first": float(returns[..., 0].mean()),
            "return_last": float(returns[..., final_points(returns.shape[2])].mean()),
            **learning_of([values[None, :, part]], of),
        }
    ends = values[..., final_points(values.shape[2], of)].mean(axis=(0, 2))
    lead = ttest_ind(ends[count:], ends[:count]).confidence_interval()
    learning["train"]["lead"] = [float(lead.low), float(lead.high)]
    return learning


def _losses(trainer: Trainer, member: Member, model: ADModel) -> dict[str, dict[str, float]]:
    """The loss on windows of histories, and that of the best constant guess, by split."""
    windows = {
        "train": member.fixed_windows("train", *trainer.window_order),
        "validation": trainer.validation_windows[member.name],
    }
    return {
        split: {"loss": mean_loss(each.losses(model)), "constant": each.constant_loss(model.head)}
        for split, each in windows.items()
        if each is not None
    }


def judge(learning: Mapping[str, Mapping[str, Any]], losses: Mapping[str, Mapping[str, float]]) -> str:
    """
    The verdict that follows from measurements.

    Args:
        learning (`Mapping`):
            By split, `validation` and `train`, the entries of [`~ad_hf.evaluation.headlines.learning_of`], and of
            `train` the interval of its `lead` over validation tasks at the end; empty where nothing was played.
        losses (`Mapping`):
            By split, the `loss` and that of a `constant` guess; of `validation` only where there are such histories.
    """
    gains = {split: each["constant"] - each["loss"] for split, each in losses.items()}
    test = learning.get("validation", {}).get("verdict")
    # By chance returns may rise where there is nothing that could raise them.
    if test == LEARNS and max(gains.values()) > 0:
        return LEARNS
    if max(gains.values()) < LEAST_GAIN:
        return NO_IMITATION
    if test is None:
        return UNKNOWN
    if learning["train"]["verdict"] == LEARNS:
        # A good first episode hides a rise: only a model that ends lower on validation tasks has not learnt them.
        return MEMORISES if learning["train"]["lead"][0] > 0 else UNKNOWN
    return MEMORISES if gains.get("validation", LEAST_GAIN) < LEAST_GAIN else NO_IMPROVEMENT


def _reasons(
    trainer: Trainer,
    member: Member,
    verdict: str,
    learning: Mapping[str, Mapping[str, Any]],
    losses: Mapping[str, Mapping[str, float]],
    histories: Mapping[str, Any],
) -> list[str]:
    """What a verdict rests on, and what may be the reason."""
    names = {"validation": "validation", "train": "training"}
    reasons = [
        f"on {test['num_tasks']} {names[split]} tasks, a return of {test['return_first']:.3g} at first and of "
        f"{test['return_last']:.3g} at last, {evidence_words(test)}"
        for split, test in learning.items()
        if test["difference"] is not None
    ]
    if not reasons:
        count = len(member.family.tasks("validation"))
        tasks = f"{count or 'no'} validation task{'s' * (count != 1)}"
        reasons.append(f"{tasks}, and a test of learning takes {FEWEST_TASKS}")
    measured = " and ".join(f"{each['loss']:.3f} on {names[split]} histories" for split, each in losses.items())
    constant = " and ".join(f"{each['constant']:.3f}" for each in losses.values())
    reasons.append(f"loss {measured}, where the best guess that is always the same has {constant}")
    if verdict == UNKNOWN and learning:
        reasons.append("more of training.eval_repeats or family.num_validation_tasks would tell")
    if verdict == NO_IMPROVEMENT and _begins_at_the_end(learning["validation"], histories):
        return [*reasons, f"it begins where histories end, at a return of {histories['last']:.3g}"]
    return reasons + _findings(trainer, member, verdict)


def _begins_at_the_end(test: Mapping[str, Any], histories: Mapping[str, Any]) -> bool:
    """Whether a model's first episode is as good as the last ones of its source."""
    first, last = histories["first"], histories["last"]
    return first is not None and last > first and test["return_first"] >= first + AT_THE_END * (last - first)


def _findings(trainer: Trainer, member: Member, verdict: str) -> list[str]:
    """The reason for a verdict that the data themselves give, if there is one."""
    if verdict not in LOOKED_AT:
        return []
    try:
        inspection = inspect_dataset(member.dataset, member.data, trainer.context_length)
    except ValueError:  # a dataset that cannot be streamed
        return []
    found = sorted(inspection.findings, key=lambda finding: finding.of not in LOOKED_AT[verdict])
    return [f"`ad-hf inspect` finds {found[0].fault if found else 'nothing in the data that speaks against training'}"]
