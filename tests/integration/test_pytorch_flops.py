"""Parameters counted on real model classes, on the meta device: against hand counts and against their configs."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from llenergymeasure.core.model.parameters import count_loaded, count_weights  # noqa: E402

SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
SMALL |= {"vocab_size": 100, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GQA = {"num_key_value_heads": 2}
GPT = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 64}
MOE = {**GQA, "num_experts_per_tok": 2}
LATENT = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 1}
LATENT |= {"first_k_dense_replace": 1, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16}
LATENT |= {"v_head_dim": 16, "num_key_value_heads": 4, "topk_group": 1, "n_group": 1}

FAMILIES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("llama", "qwen2", "phi3", "smollm3", "cohere", "cohere2", "stablelm", "granite"), GQA),
    **dict.fromkeys(("exaone4", "phi", "starcoder2", "nemotron", "arcee"), GQA),
    **{name: {**GQA, "head_dim": 32} for name in ("mistral", "qwen3", "gemma", "gemma2", "gemma3_text", "ministral")},
    **{name: {**GQA, "head_dim": 16} for name in ("glm", "glm4", "helium")},
    **{name: {} for name in ("olmo", "olmo2", "olmo3", "gpt_neox")},
    "gpt2": GPT,
    "gptj": {**GPT, "rotary_dim": 8},
    "codegen": {**GPT, "rotary_dim": 8},
    "gpt_bigcode": GPT,
    "gpt_neo": {"num_layers": 2, "num_hidden_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    "bloom": {"n_layer": 3, "n_head": 4},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 32},
    "falcon": {},
    "mpt": {"d_model": 64, "n_layers": 3, "n_heads": 4, "max_seq_len": 64},
    "mixtral": {**MOE, "num_local_experts": 4},
    "phimoe": {**MOE, "num_local_experts": 4},
    "granitemoe": {**MOE, "num_local_experts": 4},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {**MOE, "num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 48},
    "qwen3_moe": {**MOE, "num_experts": 4, "moe_intermediate_size": 32, "head_dim": 16, "mlp_only_layers": [1]},
    "gpt_oss": {**MOE, "num_local_experts": 4, "head_dim": 16},
    "deepseek_v2": {**LATENT, "q_lora_rank": None},
    "deepseek_v3": {**LATENT, "q_lora_rank": 24},
}


def build(family: str, **settings: Any) -> Any:
    config = transformers.AutoConfig.for_model(family, **{**SMALL, **settings})
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_model_and_config_give_one_count(family: str) -> None:
    model = build(family, **FAMILIES[family])
    counted, worked_out = count_loaded(model), count_weights(model.config.to_dict())
    assert worked_out is not None
    assert not worked_out.assumed
    assert counted.params == worked_out.active
    assert counted.confidence == "high"
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.ndim >= 2 and "bias" not in name)
    assert worked_out.stored == matrices


def test_gpt2s_transposed_layers_count() -> None:
    # 3 layers of (3 + 1 + 4 + 4) x 64², and the tied head of 100 x 64
    assert count_loaded(build("gpt2", **GPT)).params == 3 * 12 * 64 * 64 + 100 * 64


def test_llamas_gate_counts() -> None:
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96
    assert count_loaded(build("llama", **GQA)).params == 3 * layer + 100 * 64


def test_of_fused_experts_the_chosen_share_counts() -> None:
    always = 2 * 64 * 64 + 2 * 64 * 32 + 4 * 64  # attention, and a router of four outputs
    model = build("mixtral", **FAMILIES["mixtral"])
    assert count_loaded(model).params == 3 * (always + 2 * 3 * 64 * 96) + 100 * 64
    assert "2 of 4 experts" in count_loaded(model).note


def test_experts_in_a_list_count_by_their_share_too() -> None:
    class Expert(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = torch.nn.Linear(8, 16, bias=False)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = transformers.PretrainedConfig(num_experts=6, num_experts_per_tok=2)
            self.experts = torch.nn.ModuleList(Expert() for _ in range(6))
            self.shared_experts = Expert()

    assert count_loaded(Model()).params == 2 * 8 * 16 + 8 * 16


def test_a_mixture_that_hides_how_many_experts_it_uses_is_not_counted() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = transformers.PretrainedConfig()
            self.experts = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(6))

    count = count_loaded(Model())
    assert count.params is None
    assert "how many experts" in count.note


def test_a_tied_head_counts_although_its_tensor_is_the_embedding() -> None:
    tied, untied = (build("llama", **GQA, tie_word_embeddings=tie) for tie in (True, False))
    assert count_loaded(tied).params == count_loaded(untied).params
    assert sum(p.numel() for p in untied.parameters()) - sum(p.numel() for p in tied.parameters()) == 100 * 64


def test_quantised_layers_count_by_their_logical_size() -> None:
    config = transformers.AutoConfig.for_model("llama", **{**SMALL, **GQA})
    model = transformers.AutoModelForCausalLM.from_config(config)
    expected = count_loaded(model).params

    class Packed(torch.nn.Module):
        """A 4-bit layer as the quantisation libraries build it: two weights in a byte, the shape only in numbers."""

        def __init__(self, linear: torch.nn.Linear) -> None:
            super().__init__()
            self.in_features, self.out_features = linear.in_features, linear.out_features
            size = linear.in_features * linear.out_features // 2
            self.weight = torch.nn.Parameter(torch.zeros((size, 1), dtype=torch.uint8), requires_grad=False)

    for layer in model.model.layers:
        layer.mlp.gate_proj = Packed(layer.mlp.gate_proj)
        layer.self_attn.q_proj = Packed(layer.self_attn.q_proj)
    assert count_loaded(model).params == expected


def test_experts_packed_beyond_recognition_are_counted_from_the_config() -> None:
    model = build("mixtral", **FAMILIES["mixtral"])
    expected = count_loaded(model).params
    block = model.model.layers[0].mlp.experts
    block.gate_up_proj = torch.nn.Parameter(torch.zeros((4, 8, 3), dtype=torch.uint8), requires_grad=False)
    count = count_loaded(model)
    assert count.params == expected
    assert count.confidence == "medium"


def test_state_space_matrices_that_multiply_nothing_are_left_out() -> None:
    model = build("mamba", state_size=4, num_hidden_layers=2, conv_kernel=4, expand=2, time_step_rank=4)
    count = count_loaded(model)
    inner, width = 96, 64
    # in_proj, convolution, x_proj, dt_proj, out_proj; not A_log
    layer = width * 2 * inner + inner * 4 + inner * (4 + 2 * 4) + 4 * inner + inner * width
    assert count.params == 2 * layer + 100 * 64
    assert count.confidence == "high"


def test_towers_for_images_are_not_part_of_what_a_text_costs() -> None:
    text = {**SMALL, **GQA, "head_dim": 16}
    tower = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.AutoConfig.for_model("gemma3", text_config=text, vision_config={**tower, "image_size": 28})
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    assert any("vision" in name for name, _ in model.named_parameters())
    counted = count_loaded(model)
    assert counted.params == count_loaded(build("gemma3_text", **GQA, head_dim=16)).params
    assert counted.params == count_weights(model.config.to_dict()).active  # type: ignore[union-attr]


def test_a_layer_that_an_adapter_replaces_counts_once() -> None:
    peft = pytest.importorskip("peft")
    config = transformers.AutoConfig.for_model("llama", **{**SMALL, **GQA})
    model = transformers.AutoModelForCausalLM.from_config(config)
    expected = count_loaded(model).params
    lora = peft.LoraConfig(r=1, target_modules=["q_proj"], modules_to_save=["lm_head", "down_proj"])
    adapted = peft.get_peft_model(model, lora).get_base_model()
    assert count_loaded(adapted).params == expected + 3 * (64 + 64)  # rank 1 beside each q_proj
