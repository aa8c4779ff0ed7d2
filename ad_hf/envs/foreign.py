"""
Environments of somebody else's description: names in a dataset, a model or a run are data.

A name must stand, letter by letter, in the table below, and an environment must be in gymnasium's registry already;
these checks import nothing. Anything else needs `trust_remote_code`, which only the user can give.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import gymnasium as gym

from ad_hf.settings import excerpt

_WORLDS = {
    "adversarial_bandit": ("optimal_return", "random_return"),
    "dark_key_to_door": ("optimal_return", "path_length"),
    "dark_room": ("goal_distance", "optimal_return"),
    "tabular_mdp": ("optimal_return", "random_return"),
    "watermaze": ("optimal_return", "platform_distance"),
}
TASK_FUNCTIONS = frozenset(
    {f"ad_hf.envs.{module}.{name}" for module, names in _WORLDS.items() for name in names}
    | {"gymnasium.envs.toy_text.frozen_lake.generate_random_map"}
)
# Those of gymnasium's that neither write files nor take functions or modules.
WRAPPERS = frozenset(
    f"gymnasium.wrappers.{name}"
    for name in (
        *("ClipAction", "ClipReward", "DelayObservation", "DiscretizeAction", "DiscretizeObservation"),
        *("DtypeObservation", "FilterObservation", "FlattenObservation", "FrameStackObservation"),
        *("GrayscaleObservation", "MaxAndSkipObservation", "NormalizeObservation", "NormalizeReward"),
        *("RescaleAction", "RescaleObservation", "ReshapeObservation", "ResizeObservation", "StickyAction"),
        *("TimeAwareObservation", "TimeLimit"),
    )
) | {"ad_hf.envs.making.ChannelsLast", "ad_hf.envs.renaming.Renamed"}
# Environments that import and call a function that their keyword arguments name.
COMPATIBILITY = re.compile(r"GymV\d+Environment")
# Keyword arguments that may name files, such as MuJoCo's `xml_file`.
FILES = re.compile(r"(^|_)(file|files|filename|path|paths|dir|folder|url|uri|rom|roms)($|_)|xml", re.IGNORECASE)


def _refuse(origin: str, what: str) -> None:
    raise ValueError(
        f"{origin} comes with {what}: name a recipe of your own (--recipe) or, if you trust where it is from, allow "
        "it with trust_remote_code=True (--trust_remote_code)"
    )


def check_env_id(env_id: Any, origin: str) -> None:
    """Refuse a foreign id that is not registered yet, or that could import something."""
    if not isinstance(env_id, str):
        raise ValueError(f"{origin}: family.env_id must be text, got {excerpt(env_id)}")
    if ":" in env_id or env_id not in gym.registry:
        _refuse(origin, f"the environment {excerpt(env_id)}, which is not registered before its package is imported")
    if COMPATIBILITY.match(env_id.rpartition("/")[2]):
        _refuse(origin, f"the environment {env_id}, which imports what its keyword arguments name")


def check_kwargs(kwargs: Any, origin: str, where: str) -> None:
    """Refuse keyword arguments of environments and wrappers, called `where`, that may name files."""
    for index, value in enumerate(_of_type(kwargs, list)):
        check_kwargs(value, origin, f"{where}[{index}]")
    for name, value in kwargs.items() if isinstance(kwargs, Mapping) else ():
        if FILES.search(str(name)):
            _refuse(origin, f"{where}.{name} = {excerpt(value)}, which may name a file")
        check_kwargs(value, origin, f"{where}.{name}")


def _check_name(name: Any, table: frozenset[str], origin: str, where: str) -> None:
    if name is not None and not (isinstance(name, str) and name in table):
        _refuse(origin, f"{where} = {excerpt(name)}, which is not one of the known names")


def check_family_section(family: Mapping[str, Any], origin: str) -> None:
    """
    Refuse the section `family` of a foreign recipe if it could do more than make known environments.

    Errors name its origin (a dataset, model or run), the setting and the way out.
    """
    check_env_id(family.get("env_id"), origin)
    for setting in ("stratify_by", "optimal_return", "random_return"):
        _check_name(family.get(setting), TASK_FUNCTIONS, origin, f"family.{setting}")
    for index, wrapper in enumerate(_of_type(family.get("wrappers"), list)):
        where = f"family.wrappers[{index}]"
        entry = wrapper if isinstance(wrapper, Mapping) else {"name": wrapper}
        _check_name(entry.get("name"), WRAPPERS, origin, where)
        check_kwargs(entry.get("kwargs"), origin, where)
    for name in _of_type(family.get("attributes"), list):
        if not str(name).isidentifier() or str(name).startswith("_"):
            _refuse(origin, f"the attribute {excerpt(name)} of environments, which is not a public one")
    check_kwargs(family.get("env_kwargs"), origin, "family.env_kwargs")
    splits = _of_type(family.get("splits"), dict)
    for where, way in {"family": family, **{f"family.splits.{split}": way for split, way in splits.items()}}.items():
        way = _of_type({"tasks": way} if isinstance(way, list) else way, dict)
        check_kwargs(way.get("tasks"), origin, f"{where}.tasks")
        check_kwargs(way.get("grid"), origin, f"{where}.grid")
        values = _of_type(_of_type(way.get("random"), dict).get("values"), dict)
        check_kwargs(values, origin, f"{where}.random.values")
        for name, value in values.items():
            function = _of_type(value, dict).get("function")
            _check_name(function, TASK_FUNCTIONS, origin, f"{where}.random.values.{name}.function")


def _of_type(value: Any, kind: type) -> Any:
    """The value, or an empty one instead of another type, which the family's config refuses."""
    return value if isinstance(value, kind) else kind()
