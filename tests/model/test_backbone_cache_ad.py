"""transformers' recurrent decoders: at every step, logits are those of the model on the steps that it should hold."""

import pytest
from context_reference import GROUPED, LFM2, MAMBA, NO_TOKENS, assert_agrees

from ad_hf.model.backbone_cache_ad import BackboneCache, StepCache

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "initializer_range": 0.3, **NO_TOKENS}
MIXED = {**GROUPED, "head_dim": 8, "layer_types": ["linear_attention", "full_attention"]}
MIXED |= {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 4, "linear_value_head_dim": 4}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
BAMBA = {**GROUPED, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_n_groups": 1}
BAMBA |= {"mamba_chunk_size": 4}
JAMBA = {**GROUPED, "mamba_d_state": 4, "mamba_dt_rank": 2, "attn_layer_period": 2, "attn_layer_offset": 1}
JAMBA |= {"use_mamba_kernels": False}
LATENT = {**GROUPED, "num_key_value_heads": 2, "layer_types": MIXED["layer_types"], "kv_lora_rank": 8, **EXPERTS}
LATENT |= {"q_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "first_k_dense_replace": 1}
NEMOTRON = {**GROUPED, "layers_block_type": ["mamba", "attention"], "mamba_num_heads": 4, "mamba_head_dim": 8}
NEMOTRON |= {"ssm_state_size": 4, "n_groups": 1, "chunk_size": 4}
ZAMBA2 = {**GROUPED, "layers_block_type": ["mamba", "hybrid"], "hybrid_layer_ids": [1], "mamba_d_state": 4}
ZAMBA2 |= {"n_mamba_heads": 4, "mamba_ngroups": 1, "mamba_headdim": 8, "chunk_size": 4, "num_mem_blocks": 1}

CACHED = {
    "mamba2": {**SMALL, "state_size": 4, "num_heads": 4, "head_dim": 8, "n_groups": 2, "chunk_size": 4},
    "xlstm": {**SMALL, "hidden_size": 64, "num_heads": 2, "qk_dim_factor": 1.0},
    "lfm2": LFM2,
    "qwen3_next": {**MIXED, **EXPERTS, "shared_expert_intermediate_size": 8},
}
MORE_CACHED = {
    "mamba": MAMBA,
    "falcon_h1": {**BAMBA, "mamba_d_ssm": 32},
    "falcon_mamba": {**SMALL, "state_size": 4, "time_step_rank": 2},
    "lfm3": LFM2,
    "qwen3_5_text": MIXED,
    "olmo_hybrid": MIXED,
    "bamba": {**BAMBA, "attn_layer_indices": [1]},
    "granitemoehybrid": {**BAMBA, "layer_types": MIXED["layer_types"], "position_embedding_type": "rope"},
    "jamba": {**JAMBA, "num_experts": 2, "num_experts_per_tok": 1},
    "zamba": {**JAMBA, "num_hidden_layers": 6, "attn_layer_period": 3, "attn_layer_offset": 2, "n_mamba_heads": 2},
    "kimi_linear": {**LATENT, "linear_num_heads": 2, "linear_head_dim": 8, "num_experts_per_token": 2},
    "bailing_hybrid": {**LATENT, "n_group": 1, "topk_group": 1},
    "zaya": {**GROUPED, "head_dim": 8},
}
ENCODED_ANEW = {
    "recurrent_gemma": {**GROUPED, "block_types": ["recurrent", "attention"], "attention_window_size": 5},
    "minimax": {**GROUPED, "layer_types": MIXED["layer_types"], "num_local_experts": 2, "block_size": 4},
    "nemotron_h": NEMOTRON,
    "zamba2": {**ZAMBA2, "use_shared_attention_adapter": False, "adapter_rank": 2},
    "inkling_text": {**GROUPED, "layer_types": ["hybrid"] * 2},
    "rwkv": {**SMALL, "attention_hidden_size": 16, "intermediate_size": 32},
    "mamba2": {**CACHED["mamba2"], "time_step_limit": [0.001, 0.1]},
    "lfm2": {**LFM2, "layer_types": ["conv"] * 2},
    "xlstm": {**SMALL, "num_heads": 2},
}
ALL = [
    *(pytest.param(kind, config, BackboneCache) for kind, config in CACHED.items()),
    *(pytest.param(kind, config, BackboneCache, marks=pytest.mark.slow) for kind, config in MORE_CACHED.items()),
    *(pytest.param(kind, config, StepCache, marks=pytest.mark.slow) for kind, config in ENCODED_ANEW.items()),
]


@pytest.mark.parametrize(("kind", "config", "cache"), ALL, ids=lambda value: value if isinstance(value, str) else "")
def test_steps_of_a_recurrent_decoder_are_the_model_on_the_steps_that_are_held(make_model, kind, config, cache):
    model = make_model(backbone_config={**config, "model_type": kind}, context_length=8)

    for num_envs in (1, 4):
        run = assert_agrees(model, num_envs, 30, 0, 0.7, reset_probability=0.05, with_prompts=True)
    assert_agrees(model, 2, 20, context_length=5, context_drop=2)

    assert isinstance(run.context._cache, cache)


@pytest.mark.parametrize("kind", ["mamba2", "lfm2"])
def test_a_recurrent_decoder_sees_a_step_once_until_the_context_is_full(make_model, kind):
    model = make_model(backbone_config={**CACHED[kind], "model_type": kind}, context_length=8)
    context, seen = model.init_context(3), []
    hook = model.backbone.register_forward_pre_hook(
        lambda _, __, arguments: seen.append(arguments["inputs_embeds"].shape[:2]), with_kwargs=True
    )
    for _ in range(9):
        context.act([1, 2, 3])
    hook.remove()
    assert seen == [(3, 1)] * 8 + [(3, 6), (3, 1)]
