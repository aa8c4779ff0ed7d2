"""Learning histories: the schema of their datasets, and the windows that a model is trained on."""

from __future__ import annotations

from typing import Any

__all__ = ["from_rollout", "load_prompts"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'ad_hf.histories' has no attribute {name!r}")
    from ad_hf.histories import rollouts  # which imports more than workers of a collection need

    return getattr(rollouts, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
