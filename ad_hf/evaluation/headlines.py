"""
The headlines of an evaluation: whether a model learns in its context, and in how many steps.

Learning is a test: the last ten episodes against the first, with an interval over tasks and rollouts. Steps are
counted to shares of the *source*'s gain over random play, at the same levels for the model and for the source.
Summaries, pictures, tables and cards say nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ad_hf.evaluation.curves import FINAL_EPISODES, Curve, bootstrap_means, interval, mean_of, steps_to_level
from ad_hf.evaluation.returns import SOURCE
from ad_hf.histories.schema import is_synthetic

LEARNS, STAYS, WORSENS = "learns", "does not learn", "gets worse"
SHARES = (0.5, 0.9)  # steps are counted to these shares of the source's gain
FEWEST_RUNS = 4  # of a test: all of fewer runs are above zero by chance too often
OF_RETURN, OF_GAIN = "return", "gain over random play"


def final_points(count: int, of: str = "episodes") -> slice:
    """The last points of a curve: ten episodes, or, of the steps of a single episode, a tenth."""
    return slice(max(0, count - (FINAL_EPISODES if of == "episodes" else max(1, count // 10))), count)


def learning_of(blocks: Sequence[np.ndarray], of: str = "episodes") -> dict[str, Any]:
    """
    Whether returns get better within a context.

    Args:
        blocks (`Sequence[np.ndarray]` of shapes `(num_models, num_rollouts, num_tasks, num_points)`):
            Return of each episode, or reward of each step, as [`~ad_hf.evaluation.curves.bootstrap_means`] takes them.
        of (`str`, *optional*, defaults to `"episodes"`):
            `"episodes"`, or `"steps"` of a single episode.

    Returns:
        `dict`: `difference` of the `last` points from the `first` (an episode, or a tenth of the steps) with its 95%
        `interval`, and the `verdict`: `"learns"` if the interval is above zero, `"gets worse"` if it is below, else
        `"does not learn"`; `None` for fewer than four runs, or a single point.
    """
    first, last = _ends(blocks[0].shape[3], of)
    if first == last:
        return untested(of)
    gains = [block[..., last].mean(axis=3) - block[..., first].mean(axis=3) for block in blocks]
    runs = sum(gain.size for gain in gains)
    # Where all returns are equal, the difference of their means is rounding.
    exact = 1e-9 * max(float(np.abs(block).max()) for block in blocks)
    bounds = None if runs < 2 else interval(bootstrap_means(gains))
    return _tested(of, (first, last), float(mean_of(gains)), bounds, runs, exact)


def learning_of_curve(curve: Curve, runs: int) -> dict[str, Any]:
    """
    The test of [`learning_of`] from a curve and its band alone. Its interval is too wide, hence `conservative`: it
    reaches from the lower bound of the last points less the upper bound of the first to the opposite.
    """
    first, last = _ends(len(curve.mean), "episodes")
    if first == last:
        return untested("episodes")
    low, difference, high = (
        float(end[last].mean() - start[first].mean())
        for end, start in ((curve.low, curve.high), (curve.mean, curve.mean), (curve.high, curve.low))
    )
    return {**_tested("episodes", (first, last), difference, (low, high), runs), "conservative": True}


def untested(of: str) -> dict[str, Any]:
    """The entries of a test where nothing can be compared."""
    return {**dict.fromkeys(("verdict", "difference", "interval")), "of": of, "first": None, "last": None}


def _ends(count: int, of: str) -> tuple[slice, slice]:
    """The first points and the last, which do not overlap; the same for a single point."""
    width = 1 if of == "episodes" else max(1, count // 10)
    return slice(0, width), slice(max(width, final_points(count, of).start) if count > 1 else 0, count)


def _tested(
    of: str,
    points: tuple[slice, slice],
    difference: float,
    bounds: tuple[Any, Any] | None,
    runs: int,
    exact: float = 0.0,
) -> dict[str, Any]:
    """The entries of a test; differences up to `exact` are none."""
    test = {**untested(of), "difference": difference}
    test["first"], test["last"] = ([each.start + 1, each.stop] for each in points)
    if bounds is not None:
        low, high = test["interval"] = [float(bound) for bound in bounds]
        if runs >= FEWEST_RUNS:
            test["verdict"] = LEARNS if low > exact else WORSENS if high < -exact else STAYS
    return test


@dataclass
class Gain:
    """
    The gain over random play, to whose shares steps are counted.

    Attributes:
        of (`str`, *optional*):
            `"source"` or `"optimum"`; `None` where neither is known.
        random, end (`float`, *optional*):
            Return of random play and of the source or the optimum, or rewards of steps; `None` where there is no gain.
    """

    of: str | None = None
    random: float | None = None
    end: float | None = None

    @classmethod
    def of_source(cls, blocks: Sequence[np.ndarray], random: Sequence[np.ndarray]) -> Gain:
        """
        The gain of a source from random play (num_tasks,) to its end (num_models, num_streams, num_tasks), of each
        split; none unless its interval is above zero.
        """
        low, _ = interval(bootstrap_means([block - own for block, own in zip(blocks, random)]))
        if low <= 0:
            return cls(SOURCE)
        return cls(SOURCE, float(np.concatenate(random).mean()), float(mean_of(blocks)))

    @classmethod
    def of_optimum(cls, optimal: np.ndarray | None, random: np.ndarray | None) -> Gain:
        """The gain of the best policy, if its return and that of random play are known."""
        if optimal is None or random is None or optimal.mean() <= random.mean():
            return cls()
        return cls("optimum", float(random.mean()), float(optimal.mean()))

    def level(self, share: float) -> float | None:
        """The return at a share of the gain."""
        return None if self.random is None or self.end is None else self.random + share * (self.end - self.random)


def is_comparable(source: Mapping[str, Any]) -> bool:
    """
    Whether steps of a source can be compared with a model's.

    The pace of a synthetic source is a setting; and without knowing whether streams learn from each other, nobody
    knows how many steps the source took.
    """
    counted = source.get("independent_streams") is not None or source.get("n_envs", 1) == 1
    return counted and not is_synthetic(source["algorithm"])


def steps_to_shares(
    agent: str, curves: Mapping[str, Curve], gain: Gain, verdict: str | None, comparable: bool
) -> dict[str, dict[str, Any]]:
    """
    Environment steps of an agent to 50% and 90% of a gain.

    Args:
        agent (`str`):
            Name of the agent.
        curves (`Mapping[str, Curve]`):
            By the names of all agents, among them the source if it is known.
        gain ([`Gain`]):
            The gain.
        verdict (`str`, *optional*):
            Whether the agent learns: otherwise there is no ratio.
        comparable (`bool`):
            See [`is_comparable`].

    Returns:
        `dict`: by share the `level`, of whose gain it is (`gain_of`), the `env_steps` of the agent and, except for the
        source itself, those of the `source`, `None` where the level is not reached, whether the agent is there
        `at_start`, in its first episode, and the `ratio` of the source's steps to the agent's. There is no ratio where
        either begins at 50% of the gain or above: it did not learn this in the steps that are counted.
    """
    own, source = curves[agent], None if agent == SOURCE else curves.get(SOURCE)
    lowest = gain.level(min(SHARES))
    starts = [curve.mean[0] for curve in (own, source) if curve is not None]
    has_ratio = comparable and verdict == LEARNS and lowest is not None and max(starts) < lowest
    entries: dict[str, dict[str, Any]] = {}
    for share in SHARES:
        level = gain.level(share)
        steps, of_source = (
            None if curve is None or level is None else steps_to_level(curve, level) for curve in (own, source)
        )
        entries[f"{share:.0%}"] = {
            "level": level,
            "gain_of": gain.of,
            "env_steps": steps,
            **({} if agent == SOURCE else {"source": of_source}),
            "at_start": level is not None and bool(own.mean[0] >= level),
            "ratio": of_source / steps if has_ratio and steps and of_source else None,
        }
    return entries


def share_of_optimum(value: float, optimal: float | None, random: float | None, negative: bool) -> dict[str, float]:
    """
    `of_optimal`, a return as a share of the best possible return; of that gain over random play where returns can be
    negative, which makes a share of them meaningless. Empty where neither is known.
    """
    floor = random if negative else 0.0
    if optimal is None or floor is None or optimal <= floor:
        return {}
    return {"of_optimal": (value - floor) / (optimal - floor)}


def shares_of(last: Mapping[str, Any], negative: bool) -> str | None:
    """The words for the whole of which an agent's entry holds shares, if it does."""
    return None if "of_optimal" not in last else OF_GAIN if negative else OF_RETURN


# The same in words.


def number(value: float | None, digits: int = 3) -> str:
    """A number with some significant digits."""
    return "-" if value is None else f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:,.0f}"


def learns_cell(learns: Mapping[str, Any]) -> str:
    """The test of learning in a table: yes or no, and the difference."""
    if learns["difference"] is None:
        return "-"
    words = {LEARNS: "yes", STAYS: "no", WORSENS: WORSENS}.get(learns["verdict"], "not tested")
    bounds = learns["interval"]
    interval = "" if bounds is None else f" ({number(bounds[0])} to {number(bounds[1])})"
    return f"{words}: {number(learns['difference'])}{interval}"


def steps_cell(steps: Mapping[str, Any] | None) -> str:
    """Steps to a share of a gain in a table: of a model, of its source, and how many times more the source took."""
    if steps is None or steps["level"] is None:
        return "-"
    own = "from its first episode" if steps["at_start"] else _steps(steps["env_steps"])
    if "source" not in steps or steps["gain_of"] != SOURCE:
        return own
    ratio = ""
    if steps["ratio"] is not None:
        ratio = f" ({'slower: ' if steps['ratio'] < 1 else ''}{number(steps['ratio'], 2)} times)"
    return f"{own} / {_steps(steps['source'])}{ratio}"


def _steps(count: int | None) -> str:
    return "not reached" if count is None else f"{count:,}"


def verdict_words(learns: Mapping[str, Any]) -> str:
    """Whether a model learns."""
    where = "within its episode" if learns["of"] == "steps" else "in its context"
    if learns["verdict"] not in (LEARNS, STAYS, WORSENS):
        return f"too little was played to tell whether it learns {where}"
    return f"{learns['verdict']} {where}"


def evidence_words(learns: Mapping[str, Any]) -> str | None:
    """The difference on which a verdict rests."""
    if learns["difference"] is None:
        return None
    (start, stop), (begin, end) = learns["first"], learns["last"]
    one = "step" if learns["of"] == "steps" else "episode"
    last = f"{one}s {begin:d} to {end:d}" if end > begin else f"{one} {end:d}"
    first = "the first" if start == stop else f"{start:d} to {stop:d}"
    words = f"reward of {last} minus {first}, beyond random play: " if one == "step" else f"{last} minus {first}: "
    words += f"{learns['difference']:+.3g}"
    if learns["interval"] is not None:
        low, high = learns["interval"]
        interval_words = "interval of at least 95%:" if learns.get("conservative") else "95% interval"
        words += f" ({interval_words} {low:.3g} to {high:.3g})"
    return words


def ratio_words(ratio: float) -> str:
    """How many times more or fewer steps than its source a model takes."""
    if 0.95 < ratio < 1.05:
        return "as many steps as its source"
    times = max(ratio, 1 / ratio)
    return f"{times:{'.0f' if times >= 10 else '.1f'}} times {'fewer' if ratio > 1 else 'more'} steps than its source"


def _whose(steps: Mapping[str, Any]) -> str:
    if steps["gain_of"] == "optimum":
        return "the optimum's gain"
    return "its source's gain" if "source" in steps else "its own gain"


def _when(steps: Mapping[str, Any]) -> str:
    if steps["at_start"]:
        return "from its first episode on"
    return "not reached" if steps["env_steps"] is None else f"after {steps['env_steps']:,} steps"


def pace_lines(steps: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """When a model reaches the shares of a gain, in a line each; a line if its source gains nothing."""
    if all(entry["gain_of"] == SOURCE and entry["level"] is None for entry in steps.values()):
        return ["no steps are counted: the source's end is not above random play"]
    return [
        f"{share} of {_whose(entry)} over random play {_when(entry)}"
        + ("" if entry["ratio"] is None else f", {ratio_words(entry['ratio'])} ({entry['source']:,})")
        for share, entry in steps.items()
        if entry["level"] is not None
    ]


def headline(learns: Mapping[str, Any], steps: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for a title: whether a model learns, and how fast to the highest share that it reaches."""
    if all(entry["level"] is None for entry in steps.values()):
        return verdict_words(learns)
    begins = [share for share, entry in steps.items() if entry["at_start"]]
    missed = [share for share, entry in steps.items() if entry["env_steps"] is None and share not in begins]
    reached = [share for share in steps if share not in missed]
    first, *others = dict.fromkeys([*begins[-1:], *reached[-1:], *missed] if reached else missed[:1])
    when = {
        share: _when(entry) if entry["ratio"] is None else f"in {ratio_words(entry['ratio'])}"
        for share, entry in steps.items()
    }
    words = [f"{first} of {_whose(steps[first])} {when[first]}", *(f"{share} {when[share]}" for share in others)]
    return f"{verdict_words(learns)}; {', '.join(words)}"


def streams_words(source: Mapping[str, Any] | None) -> str:
    """The streams of a source whose steps are counted."""
    if source is None:
        return "of each environment"
    independent, count = source.get("independent_streams"), source.get("n_envs", 1)
    streams = f"all {count} streams" if count > 1 else "all streams"
    if independent is None and count > 1:
        return f"{streams} counted: whether they learn together is not known"
    return "each stream counted by itself" if independent else f"{streams} that learn together counted"
