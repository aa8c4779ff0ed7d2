"""The model: files that are copied to the Hub with it and run there on torch, numpy and transformers alone."""

from transformers import AutoConfig, AutoModel

from .configuration_ad import ADConfig
from .modeling_ad import ADModel

AutoConfig.register(ADConfig.model_type, ADConfig)
AutoModel.register(ADConfig, ADModel)
# save_pretrained then copies these files and points to them in `auto_map`.
ADConfig.register_for_auto_class()
ADModel.register_for_auto_class("AutoModel")
