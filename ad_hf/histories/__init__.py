"""Learning histories: the schema of their datasets, transforms, and the windows that a model is trained on."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ad_hf.histories.rollouts import from_rollout, load_prompts

_MODULES = {"from_rollout": "ad_hf.histories.rollouts", "load_prompts": "ad_hf.histories.rollouts"}

__all__ = ["from_rollout", "load_prompts"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'ad_hf.histories' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
