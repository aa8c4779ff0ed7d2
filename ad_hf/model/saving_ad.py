"""How a model is saved and loaded: as every model of transformers, with its rollout settings, and with checks."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils import CONFIG_NAME

from .configuration_ad import ADConfig
from .loading_ad import check_files, check_loaded, check_trusted
from .rollout_config_ad import RolloutConfig

# Arguments of from_pretrained that are not settings of the configuration, and those that say where files are.
NOT_OF_CONFIG = ("state_dict", "dtype", "torch_dtype", "quantization_config", "trust_remote_code")
# Arguments with which a user takes over the checks of weights.
LENIENT = ("output_loading_info", "ignore_mismatched_sizes", "state_dict", "gguf_file", "quantization_config")
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


class SavingMixin:
    """`save_pretrained` and `from_pretrained` of a model that has a `rollout_config`."""

    rollout_config: RolloutConfig

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save weights and configuration as every model of transformers, and `rollout_config.json` beside them."""
        main = kwargs.get("is_main_process", True)
        if main:  # first, so that push_to_hub=True takes it along
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            self.rollout_config.save_pretrained(save_directory)
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        if main:  # safetensors makes files for their owner alone; others may read them as the files beside them
            mode = Path(save_directory, CONFIG_NAME).stat().st_mode
            for weights in Path(save_directory).glob("model*.safetensors"):
                weights.chmod(mode)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """
        Load a model as every model of transformers, and its `rollout_config.json` if there is one.

        Weights are read from safetensors. They must be whole, finite and those of the configuration, unless
        `state_dict`, `ignore_mismatched_sizes=True`, `output_loading_info=True` or a quantisation says otherwise.

        Raises:
            ValueError: for weights that are missing, unexpected, of another shape, or not finite; for unknown
                settings; and for a configuration that can run other people's code without `trust_remote_code=True`.
            OSError: for files that are not there, or damaged.
        """
        path = pretrained_model_name_or_path
        check_files(path, kwargs.get("subfolder") or "")
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        kwargs = cls._with_config(path, hub, kwargs)
        check_trusted(kwargs["config"], path)
        wants_info = kwargs.get("output_loading_info", False)
        lenient = any(kwargs.get(name) not in (None, False) for name in LENIENT)
        lenient |= hasattr(kwargs["config"], "quantization_config")
        if path is not None and kwargs.get("gguf_file") is None:
            kwargs.setdefault("use_safetensors", True)  # other files can hold pickles
        kwargs["output_loading_info"] = True
        if not lenient:
            kwargs["ignore_mismatched_sizes"] = True  # so that all of them are told
        loaded: Any = super().from_pretrained(path, *args, **kwargs)  # type: ignore[misc]
        model, info = loaded
        if not lenient:
            check_loaded(path, model, info)
        if path is not None:
            model.rollout_config = RolloutConfig.from_pretrained(path, **hub)
        revision = kwargs.get("revision")
        model.loaded_revision = getattr(revision, "resolved", revision)  # Auto classes resolve it to a commit
        return (model, info) if wants_info else model

    @classmethod
    def _with_config(cls, path: Any, hub: dict[str, Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of `from_pretrained` with the configuration, once it is clear whether that is trusted."""
        config = kwargs.pop("config", None)
        if not isinstance(config, PreTrainedConfig):
            place = path if config is None else config
            others = {name: kwargs.pop(name) for name in (*HUB_ARGUMENTS, *NOT_OF_CONFIG) if name in kwargs}
            try:
                config, kwargs = ADConfig.from_pretrained(place, return_unused_kwargs=True, **hub, **kwargs)
            except ValueError as error:
                raise ValueError(str(error) if str(place) in str(error) else f"{place}: {error}") from error
            kwargs |= others
        config = copy.deepcopy(config)
        if kwargs.get("trust_remote_code") is True:
            config.untrusted = []
        return {**kwargs, "config": config}


__all__ = ["SavingMixin"]
