"""Every setting of the tensorrt section, read back from the engine's own arguments, or refused with its reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llenergymeasure.config.backend_configs import TensorRTConfig
from tensorrt_bench import TensorRTBench

PYTORCH_BASED: dict[str, Any] = {
    "max_batch_size": 3,
    "max_num_tokens": 256,
    "max_seq_len": 128,
    "tp_size": 2,
    "pp_size": 2,
    "moe_expert_parallel_size": 2,
    "kv_cache_config": {
        "free_gpu_memory_fraction": 0.5,
        "max_tokens": 4096,
        "tokens_per_block": 64,
        "dtype": "fp8",
        "enable_block_reuse": True,
        "enable_partial_reuse": False,
        "host_cache_size": 1000,
    },
    "enable_chunked_prefill": True,
    "capacity_scheduler_policy": "MAX_UTILIZATION",
    "attn_backend": "FLASHINFER",
    "cuda_graph": True,
    "cuda_graph_max_batch_size": 8,
    "cuda_graph_enable_padding": True,
    "torch_compile": True,
    "disable_overlap_scheduler": True,
    "speculative_config": {"decoding_type": "NGram", "max_draft_len": 4, "max_matching_ngram_size": 3},
}
BUILT: dict[str, Any] = {
    **{name: PYTORCH_BASED[name] for name in ("max_batch_size", "max_num_tokens", "max_seq_len", "tp_size")},
    "max_input_len": 64,
    "quantization": "fp8",
    "batching_type": "STATIC",
}

READ = """
engine = get_backend("tensorrt")
config = experiment(tensorrt={section})
problems = list(engine.preflight(config))
engine.load(config)
settings = dict(engine.describe().settings)
engine.unload()
tell([problems, settings])
"""


def read(bench: TensorRTBench, section: dict[str, Any]) -> dict[str, Any]:
    """Settings of the loaded engine, below `tensorrt`."""
    problems, settings = replace(bench, boards=4).told(READ.format(section=section))
    assert problems == []
    return {name.removeprefix("tensorrt."): value for name, value in settings.items()}


def test_every_field_reaches_one_engine_or_the_other() -> None:
    assert set(PYTORCH_BASED) | set(BUILT) | {"engine_path"} == set(TensorRTConfig.model_fields)


def test_settings_of_the_pytorch_based_engine_arrive(either: TensorRTBench) -> None:
    found = read(either, PYTORCH_BASED)
    drafting = {**PYTORCH_BASED["speculative_config"], "speculative_model": None}
    assert found["engine"] == "PyTorch-based"
    assert {name: found[name] for name in PYTORCH_BASED} == {**PYTORCH_BASED, "speculative_config": drafting}


def test_settings_of_an_engine_that_is_built_arrive(builder: TensorRTBench) -> None:
    found = read(builder, BUILT)
    assert found["engine"] == "built ahead"
    assert {name: found[name] for name in BUILT} == BUILT


def test_a_drafter_goes_by_the_name_that_its_version_has(either: TensorRTBench) -> None:
    drafting = {"decoding_type": "Eagle3", "max_draft_len": 2, "speculative_model": str(either.model)}
    assert read(either, {"speculative_config": drafting})["speculative_config"] == {
        **drafting,
        "max_matching_ngram_size": None,
    }


def test_an_engine_that_is_named_is_the_one_that_runs(builder: TensorRTBench) -> None:
    found, missing, samplers = builder.told(
        """
engine, place = get_backend("tensorrt"), Path.home() / "engine"
missing = list(engine.preflight(experiment(tensorrt={"engine_path": str(place)})))
from tensorrt_llm._tensorrt_engine import LLM
LLM(model=sys.argv[1], dtype="bfloat16").save(str(place))
engine.load(experiment(tensorrt={"engine_path": str(place)}))
found = [engine.llm.args.model == str(place), engine.generate(requests(3)).requests[0].output_tokens]
engine.unload()
from llenergymeasure.core.backends.tensorrt.engine import run_arguments
samplers = [
    run_arguments(experiment(decoder={"temperature": heat}), Path()).get("sampler_type") for heat in (0.0, 0.5)
]
tell([found, missing, samplers])
"""
    )
    assert samplers == [None, "TRTLLMSampler"]  # of its two, the one that follows seeds
    assert found == [True, 3]
    (message,) = missing
    assert message.endswith("holds no built engine (config.json). Name the directory of one.")


REFUSED = """
engine = get_backend("tensorrt")
tell([refusal(engine.load, experiment(**fields)) for fields in {refused}])
"""


def test_what_a_version_cannot_do_is_refused_with_the_one_that_can(newest: TensorRTBench) -> None:
    settings = {"max_input_len": 64, "quantization": "fp8", "engine_path": "/engine", "batching_type": "STATIC"}
    refused = [{"tensorrt": {name: value}} for name, value in settings.items()]
    for name, message in zip(settings, newest.told(REFUSED.format(refused=refused)), strict=True):
        assert message == (
            f"tensorrt.{name}: needs an engine that is built ahead, and TensorRT-LLM 1.4.0rc1 builds none. "
            "Remove it, or use TensorRT-LLM 1.2 or earlier."
        )


def test_settings_of_both_engines_at_once_and_foreign_arguments_are_refused(builder: TensorRTBench) -> None:
    mixed, unknown, owned, parallel, doubled = builder.told(
        REFUSED.format(
            refused=[
                {"tensorrt": {"quantization": "fp8", "torch_compile": True}},
                {"passthrough_kwargs": {"no_such_thing": 1}},
                {"passthrough_kwargs": {"tokenizer": "other"}},
                {"passthrough_kwargs": {"tensor_parallel_size": 4}},  # nobody would measure three of them
                {
                    "passthrough_kwargs": {"scheduler_config": {}},
                    "tensorrt": {"capacity_scheduler_policy": "MAX_UTILIZATION"},
                },
            ]
        )
    )
    assert mixed.startswith("tensorrt.quantization: needs an engine that is built ahead, and torch_compile the PyTorch")
    assert unknown.startswith("passthrough_kwargs.no_such_thing: TensorRT-LLM 1.2.1 has no such argument")
    assert owned == "passthrough_kwargs.tokenizer: set by model. Remove it."
    assert parallel == "passthrough_kwargs.tensor_parallel_size: set by tensorrt.tp_size. Remove it."
    assert doubled.startswith("passthrough_kwargs.scheduler_config: would replace {'capacity_scheduler_policy': 'MAX_U")


def test_an_older_version_reuses_no_blocks_without_salts_and_says_which_fields_it_lacks(newest: TensorRTBench) -> None:
    """Blocks of warm-up would be found again in the window."""
    arguments, problems, lacking = newest.told(
        """
import tensorrt_llm

class Older(tensorrt_llm.LLM):
    def generate_async(self, inputs, sampling_params=None, streaming=False):
        return self._generate_async(inputs, sampling_params, streaming)

tensorrt_llm.LLM = Older
from llenergymeasure.core.backends.tensorrt.engine import run_arguments
engine = get_backend("tensorrt")
engine.load(experiment())
engine.generate(requests(2))
engine.unload()
wanted = experiment(tensorrt={"kv_cache_config": {"enable_block_reuse": True}})
passed = experiment(passthrough_kwargs={"kv_cache_config": {"free_gpu_memory_fraction": 0.5}})
problems = [*engine.preflight(wanted), *engine.preflight(passed)]
class Lesser:
    model_fields = ("enable_block_reuse",)
tensorrt_llm.llmapi.KvCacheConfig = Lesser
lacking = list(engine.preflight(experiment(tensorrt={"kv_cache_config": {"tokens_per_block": 64}})))
tell([run_arguments(experiment(), Path())["kv_cache_config"], problems, lacking])
"""
    )
    assert arguments == {"enable_block_reuse": False}
    assert lacking == [
        "tensorrt: TensorRT-LLM 1.4.0rc1 does not take kv_cache_config.tokens_per_block. Remove what sets it, or use "
        "another version."
    ]
    problem, replaced = problems
    assert replaced.startswith("passthrough_kwargs.kv_cache_config: would replace {'enable_block_reuse': False}")
    assert problem.startswith("tensorrt.kv_cache_config.enable_block_reuse: TensorRT-LLM 1.4.0rc1 reuses the blocks of")


def test_preflight_tells_all_at_once(newest: TensorRTBench) -> None:
    problems = replace(newest, boards=0).told(
        """
config = experiment(tensorrt={"max_seq_len": 32, "quantization": "fp8"})
tell(list(get_backend("tensorrt").preflight(config)))
"""
    )
    assert [problem.split(":")[0].split(" is ")[0] for problem in problems] == [
        "no CUDA GPU",
        "tensorrt.quantization",
        "tensorrt.max_seq_len",
    ]


def test_sampling_has_a_seed_for_each_request_and_greedy_decoding_none(newest: TensorRTBench) -> None:
    greedy, sampled, sampler = newest.told(
        """
from dataclasses import asdict
from llenergymeasure.config.models import DecoderConfig
from llenergymeasure.core.backends.tensorrt.engine import run_arguments
from llenergymeasure.core.backends.tensorrt.sampling import sampling_parameters
decoder = DecoderConfig(temperature=0.5, top_k=7, top_p=0.9, min_p=0.1)
def asked(decoder):
    return [{k: v for k, v in asdict(sampling_parameters(it, decoder, (1,), 42)).items()} for it in requests(4, 4)]
config = experiment(decoder={"temperature": 0.5})
tell([asked(DecoderConfig(temperature=0)), asked(decoder), run_arguments(config, Path()).get("sampler_type")])
"""
    )
    assert [(it["top_k"], it["temperature"], it["seed"]) for it in greedy] == [(1, None, None)] * 2
    assert [(it["temperature"], it["top_k"], it["top_p"], it["min_p"]) for it in sampled] == [(0.5, 7, 0.9, 0.1)] * 2
    assert sampled[0]["seed"] != sampled[1]["seed"]
    assert sampler is None  # this version has one, which follows seeds


def test_a_drafter_that_only_passes_through_is_told_by_its_class(newest: TensorRTBench) -> None:
    found = newest.told(
        """
from types import SimpleNamespace
from llenergymeasure.core.backends.tensorrt.engine import READ_BACK
class UserProvidedDecodingConfig: max_draft_len = 3
tell(READ_BACK["speculative_config"](SimpleNamespace(speculative_config=UserProvidedDecodingConfig())))
"""
    )
    assert (found["decoding_type"], found["max_draft_len"]) == ("UserProvidedDecodingConfig", 3)
