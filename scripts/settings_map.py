"""Everything a user can set, where it acts, and the test that shows it: the data behind docs/settings.md.

A module is a path below `src/llenergymeasure`, a test is the test itself: one that is renamed fails the import of this
table. What can be set is not listed here but taken from the models and the command line; `settings_reference.problems`
compares the two.
"""

# ruff: noqa: E402 (the tests have to be on the path before they are imported)

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path += [str(_TESTS / name) for name in ("", "unit", "integration", "vllm_engine", "tensorrt_engine")]

import test_config_models as config_models
import test_gaps as gaps
import test_grid as grid
import test_grid_cycles as grid_cycles
import test_job_directory as job_directory
import test_manifest as manifest
import test_parallel_processes as parallel_processes
import test_pytorch_generation as pytorch_generation
import test_pytorch_hub as pytorch_hub
import test_pytorch_loading as pytorch_loading
import test_pytorch_settings as pytorch
import test_registry as registry
import test_settings_effects_engine as engine
import test_settings_effects_experiment as experiment
import test_settings_effects_flags as flags
import test_settings_effects_machine as machine
import test_settings_effects_run as run
import test_settings_effects_terminal as terminal
import test_settings_effects_user as user
import test_study_faults as study_faults
import test_study_runner as study_runner
import test_tensorrt_settings as tensorrt
import test_vllm_settings as vllm


@dataclass(frozen=True, slots=True)
class Effect:
    """What a setting does.

    Args:
        acts_in: Module in which it acts.
        shown_by: Test that fails when it does not.
        note: What else there is to know about it.
    """

    acts_in: str
    shown_by: Callable[..., object]
    note: str = ""


_LOADING: Final = "core/backends/pytorch/loading.py"
_GENERATION: Final = "core/backends/pytorch/generation.py"
_REGISTRY: Final = "core/backends/registry.py"
_SAMPLING: Final = Effect(_LOADING, pytorch.test_sampling_parameters_are_those_asked_for)
_GENERATE: Final = Effect(_LOADING, pytorch.test_generation_fields_reach_the_generation_config)
_ASSISTANT: Final = Effect(_LOADING, pytorch.test_the_assistant_drafts_with_its_settings)
_COMPILE: Final = Effect(_LOADING, pytorch.test_compiling_goes_through_torch_compile_and_gives_the_same_text)
_QUANTISER: Final = Effect(_LOADING, pytorch.test_quantisation_details_reach_the_quantiser)
_VLLM: Final = Effect(
    "core/backends/vllm/engine.py",
    vllm.test_every_field_arrives_in_the_engines_own_config,
    "tested on vLLM's CPU build",
)
_VLLM_QUANTISATION: Final = Effect("core/backends/vllm/engine.py", vllm.test_weights_are_quantised_while_loading)
_VLLM_EXPERTS: Final = Effect("core/backends/vllm/engine.py", vllm.test_expert_parallelism_arrives_and_needs_experts)
_VLLM_DRAFTER: Final = Effect("core/backends/vllm/engine.py", vllm.test_a_draft_model_arrives_with_its_settings)
_SYNTHETIC: Final = Effect(
    "datasets/loader.py", experiment.test_synthetic_prompts_have_the_number_and_the_lengths_asked_for
)
_TENSORRT_MODULE: Final = "core/backends/tensorrt/engine.py"
_NOT_ON_A_GPU: Final = "shown on a stand-in for TensorRT-LLM; it has not run on a GPU yet"
_TENSORRT: Final = Effect(
    _TENSORRT_MODULE, tensorrt.test_settings_of_the_pytorch_based_engine_arrive, note=_NOT_ON_A_GPU
)
_TENSORRT_BUILT: Final = Effect(
    _TENSORRT_MODULE, tensorrt.test_settings_of_an_engine_that_is_built_arrive, note=_NOT_ON_A_GPU
)
_TENSORRT_DRAFTER: Final = Effect(
    _TENSORRT_MODULE, tensorrt.test_a_drafter_goes_by_the_name_that_its_version_has, note=_NOT_ON_A_GPU
)
_TENSORRT_ENGINE: Final = Effect(
    "core/backends/tensorrt/backend.py", tensorrt.test_an_engine_that_is_named_is_the_one_that_runs, note=_NOT_ON_A_GPU
)

EXPERIMENT: Final[Mapping[str, Effect]] = {
    "model": Effect(
        "core/model/source.py",
        pytorch_hub.test_a_cached_model_runs_offline_at_its_commit_and_an_uncached_one_says_why_not,
    ),
    "backend": Effect(_REGISTRY, registry.test_an_installed_engine_is_made),
    "n": Effect("datasets/loader.py", experiment.test_n_is_the_number_of_prompts_in_the_window),
    "dataset": Effect("datasets/loader.py", experiment.test_dataset_is_where_the_prompts_come_from),
    "dataset.n": _SYNTHETIC,
    "dataset.input_len": _SYNTHETIC,
    "dataset.output_len": _SYNTHETIC,
    "dataset.seed": _SYNTHETIC,
    "precision": Effect(_LOADING, pytorch.test_precision_is_the_type_of_every_weight),
    "random_seed": Effect(
        "core/backends/shared.py",
        pytorch_generation.test_sampling_follows_the_seed_and_nothing_that_ran_before,
    ),
    "max_input_tokens": Effect(
        "datasets/loader.py", experiment.test_max_input_tokens_cuts_prompts_and_counts_the_cut_ones
    ),
    "max_output_tokens": Effect("core/harness.py", experiment.test_max_output_tokens_bounds_every_request),
    "decoder.temperature": _SAMPLING,
    "decoder.do_sample": Effect(_LOADING, pytorch.test_greedy_decoding_has_no_sampling_parameters),
    "decoder.top_k": _SAMPLING,
    "decoder.top_p": _SAMPLING,
    "decoder.repetition_penalty": _SAMPLING,
    "decoder.min_p": _SAMPLING,
    "decoder.min_new_tokens": Effect(
        _GENERATION, pytorch_generation.test_forced_length_holds_for_a_model_that_wants_to_stop_at_once
    ),
    "decoder.preset": Effect("config/sections.py", config_models.test_a_preset_fills_what_was_left_out),
    "warmup.enabled": Effect(
        "core/warmup.py", experiment.test_warmup_enabled_runs_prompts_before_the_window_and_names_the_methodology
    ),
    "warmup.n_warmup": Effect("core/warmup.py", experiment.test_n_warmup_is_the_number_of_iterations),
    "warmup.thermal_floor_seconds": Effect(
        "core/warmup.py", experiment.test_thermal_floor_seconds_are_waited_before_the_window
    ),
    "warmup.convergence_detection": Effect(
        "core/warmup.py", experiment.test_convergence_detection_goes_on_until_latency_has_settled
    ),
    "warmup.cv_threshold": Effect(
        "core/warmup.py",
        experiment.test_cv_threshold_decides_what_counts_as_settled,
        "with `warmup.convergence_detection`",
    ),
    "warmup.max_prompts": Effect(
        "core/warmup.py",
        experiment.test_max_prompts_is_the_most_and_giving_up_is_told,
        "with `warmup.convergence_detection`",
    ),
    "warmup.window_size": Effect(
        "core/warmup.py",
        experiment.test_window_size_is_how_many_latencies_must_agree,
        "with `warmup.convergence_detection`",
    ),
    "warmup.min_prompts": Effect(
        "core/warmup.py", experiment.test_min_prompts_is_the_least, "with `warmup.convergence_detection`"
    ),
    "baseline.enabled": Effect("core/baseline.py", experiment.test_baseline_enabled_gives_energy_above_idle),
    "baseline.duration_seconds": Effect(
        "core/baseline.py", experiment.test_baseline_duration_seconds_are_spent_idling, "with `baseline.enabled`"
    ),
    "energy.backend": Effect("core/energy/select.py", run.test_energy_backend_null_measures_no_energy_at_all),
    "measurement.min_duration_seconds": Effect(
        "core/window.py", experiment.test_min_duration_seconds_goes_through_the_prompts_again
    ),
    "measurement.skip_first_seconds": Effect(
        "core/window.py", experiment.test_skip_first_seconds_leaves_out_the_beginning
    ),
    "measurement.skip_last_seconds": Effect("core/window.py", experiment.test_skip_last_seconds_leaves_out_the_end),
    "measurement.full_batch_only": Effect(
        "core/window.py",
        experiment.test_full_batch_only_counts_while_the_batch_is_full,
        "refused on engines that run fixed batches",
    ),
    "measurement.save_trace": Effect(
        "core/timeseries.py",
        experiment.test_save_trace_keeps_every_power_sample,
        "a meter that takes no samples leaves a warning instead",
    ),
    "measurement.save_outputs": Effect("core/timeseries.py", experiment.test_save_outputs_keeps_prompts_and_texts),
    "revision": Effect("core/model/source.py", pytorch_hub.test_what_the_hub_refuses_is_told_with_its_fix),
    "trust_remote_code": Effect(_LOADING, engine.test_trust_remote_code_decides_whose_code_builds_the_model),
    "lora.adapter_id": Effect(_LOADING, engine.test_lora_adapter_id_is_looked_for_in_the_hubs_cache_of_the_settings),
    "lora.adapter_path": Effect(
        _LOADING,
        pytorch_loading.test_an_adapter_changes_the_text_and_merging_it_does_not_change_it_again,
    ),
    "lora.merge_weights": Effect(
        _LOADING,
        pytorch_loading.test_an_adapter_changes_the_text_and_merging_it_does_not_change_it_again,
    ),
    "passthrough_kwargs": Effect(_LOADING, pytorch.test_passthrough_arguments_reach_the_model),
    "output_dir": Effect(
        "results/persistence.py",
        run.test_output_dir_of_the_experiment_is_the_only_reason_for_the_library_to_write,
    ),
    "pytorch.batch_size": Effect(_GENERATION, pytorch.test_batch_size_is_what_the_engine_asks_for),
    "pytorch.device": Effect("core/backends/pytorch/preflight.py", pytorch.test_device_says_where_the_model_goes),
    "pytorch.num_processes": Effect(
        "runners/local.py", parallel_processes.test_two_processes_share_the_prompts_and_make_one_result
    ),
    "pytorch.device_map": Effect("core/backends/pytorch/preflight.py", pytorch.test_device_says_where_the_model_goes),
    "pytorch.attn_implementation": Effect(_LOADING, pytorch.test_attention_kernel_reaches_the_model),
    "pytorch.torch_compile": _COMPILE,
    "pytorch.torch_compile_mode": Effect(_LOADING, pytorch.test_a_compiler_mode_reaches_the_compiler),
    "pytorch.torch_compile_backend": _COMPILE,
    "pytorch.torch_compile_dynamic": _COMPILE,
    "pytorch.use_cache": Effect(_GENERATION, pytorch.test_without_a_cache_every_step_sees_the_whole_text),
    "pytorch.cache_implementation": Effect(_GENERATION, pytorch.test_a_static_cache_has_one_size_for_every_batch),
    "pytorch.num_beams": _GENERATE,
    "pytorch.prompt_lookup_num_tokens": _GENERATE,
    "pytorch.max_matching_ngram_size": Effect(_LOADING, pytorch.test_ngram_size_reaches_the_generation_config),
    "pytorch.assistant_model": _ASSISTANT,
    "pytorch.num_assistant_tokens": _ASSISTANT,
    "pytorch.num_assistant_tokens_schedule": _ASSISTANT,
    "pytorch.load_in_8bit": Effect(_LOADING, pytorch.test_quantised_weights_are_in_memory_and_generate),
    "pytorch.load_in_4bit": _QUANTISER,
    "pytorch.bnb_4bit_compute_dtype": _QUANTISER,
    "pytorch.bnb_4bit_quant_type": _QUANTISER,
    "pytorch.bnb_4bit_use_double_quant": _QUANTISER,
    "pytorch.allow_tf32": Effect(_LOADING, pytorch.test_tf32_is_set_while_loaded_and_put_back),
    **{f"vllm.{name}": _VLLM for name in vllm.VALUES if name != "speculative_config"},
    **{f"vllm.speculative_config.{name}": _VLLM for name in vllm.VALUES["speculative_config"]},
    "vllm.speculative_config.model": _VLLM_DRAFTER,
    "vllm.speculative_config.draft_tensor_parallel_size": _VLLM_DRAFTER,
    "vllm.quantization": _VLLM_QUANTISATION,
    "vllm.enable_expert_parallel": _VLLM_EXPERTS,
    **{f"tensorrt.{name}": _TENSORRT for name in tensorrt.PYTORCH_BASED if not name.endswith("_config")},
    **{f"tensorrt.kv_cache_config.{name}": _TENSORRT for name in tensorrt.PYTORCH_BASED["kv_cache_config"]},
    **{f"tensorrt.speculative_config.{name}": _TENSORRT for name in tensorrt.PYTORCH_BASED["speculative_config"]},
    **{f"tensorrt.{name}": _TENSORRT_BUILT for name in ("max_input_len", "quantization", "batching_type")},
    "tensorrt.engine_path": _TENSORRT_ENGINE,
    "tensorrt.speculative_config.speculative_model": _TENSORRT_DRAFTER,
}
"""Fields of an experiment."""

STUDY: Final[Mapping[str, Effect]] = {
    "name": Effect("study/manifest.py", manifest.test_study_directory_carries_name_and_date),
    "base": Effect("config/grid.py", grid.test_a_base_experiment_lies_under_the_fixed_part),
    "sweep": Effect(
        "config/grid.py", grid.test_a_grid_is_the_product_in_the_order_of_the_file_with_the_last_key_fastest
    ),
    "experiments": Effect(
        "config/grid.py", grid.test_only_explicit_experiments_gives_exactly_those_over_the_fixed_part
    ),
    "execution.n_cycles": Effect("study/plan.py", study_runner.test_every_experiment_runs_in_every_cycle_in_order),
    "execution.cycle_order": Effect("study/plan.py", manifest.test_runs_are_planned_in_the_order_asked_for),
    "execution.config_gap_seconds": Effect(
        "study/gaps.py", gaps.test_gaps_really_pass_and_there_is_none_after_the_last_run
    ),
    "execution.cycle_gap_seconds": Effect(
        "study/gaps.py", gaps.test_gaps_really_pass_and_there_is_none_after_the_last_run
    ),
    "execution.shuffle_seed": Effect("config/grid.py", grid_cycles.test_a_seed_replaces_the_design_hash),
    "execution.experiment_timeout_seconds": Effect(
        "study/plan.py", study_faults.test_fault_of_one_experiment_costs_that_experiment_alone
    ),
    "execution.silence_timeout_seconds": Effect(
        "study/plan.py", study_faults.test_an_engine_that_goes_silent_is_stopped_and_one_that_talks_is_not
    ),
    "execution.max_consecutive_failures": Effect(
        "study/runner.py",
        study_runner.test_study_gives_up_after_failures_in_a_row_and_names_the_common_reason,
    ),
}
"""Keys of a study file that are not fields of an experiment."""


_RUNNER: Final = Effect(
    "runners/launchers.py",
    user.test_the_runner_variable_beats_the_file,
    "`singularity:` is refused in this release",
)

USER: Final[Mapping[str, Effect]] = {
    "output.results_dir": Effect(
        "results/persistence.py", run.test_results_dir_of_the_settings_takes_a_run_of_the_command_line
    ),
    "output.model_cache_dir": Effect(
        "core/model/source.py",
        engine.test_lora_adapter_id_is_looked_for_in_the_hubs_cache_of_the_settings,
        "models and adapters; data sets of the Hub follow `HF_HOME`",
    ),
    "output.webhook_url": Effect("study/execute.py", user.test_webhook_url_gets_the_summary_when_a_study_ends),
    "runners.pytorch": _RUNNER,
    "runners.vllm": _RUNNER,
    "runners.tensorrt": _RUNNER,
    "measurement.energy_backend": Effect(
        "core/energy/select.py", machine.test_energy_backend_of_the_machine_is_the_meter_of_the_record
    ),
    "measurement.carbon_intensity_gco2_kwh": Effect("domain/energy.py", user.test_carbon_intensity_gives_co2),
    "measurement.datacenter_pue": Effect(
        "domain/energy.py", user.test_datacenter_pue_multiplies_co2_and_cost_and_leaves_energy_alone
    ),
    "measurement.electricity_price_kwh": Effect(
        "domain/energy.py", user.test_electricity_price_gives_the_cost_in_the_currency
    ),
    "measurement.currency": Effect(
        "domain/energy.py",
        user.test_electricity_price_gives_the_cost_in_the_currency,
        "with `measurement.electricity_price_kwh`",
    ),
    "ui.verbosity": Effect("cli/run.py", user.test_verbosity_of_the_settings_is_that_of_the_flags),
    "ui.prompt": Effect("cli/study.py", terminal.test_prompt_switched_off_asks_nothing_and_begins_anew),
    "cluster.address": Effect("study/execute.py", user.test_cluster_address_is_where_a_study_goes_that_names_no_other),
    "cluster.hardware": Effect("runners/cluster.py", user.test_cluster_hardware_keeps_a_study_on_one_kind_of_gpu),
    "cluster.max_wait_seconds": Effect(
        "study/spread.py", user.test_max_wait_is_how_long_a_study_waits_for_nodes_that_are_gone
    ),
    "advanced.nvml_poll_interval_ms": Effect(
        "core/energy/sampler.py", machine.test_nvml_poll_interval_is_the_time_between_power_samples
    ),
    "advanced.power_gain_uncertainty_pct": Effect(
        "core/energy/uncertainty.py",
        machine.test_power_gain_uncertainty_is_the_least_that_an_absolute_figure_can_be_trusted,
    ),
    "execution.config_gap_seconds": Effect(
        "study/gaps.py", user.test_gaps_of_the_machine_are_waited_where_the_study_names_none
    ),
    "execution.cycle_gap_seconds": Effect(
        "study/gaps.py", user.test_gaps_of_the_machine_are_waited_where_the_study_names_none
    ),
}
"""The user's settings."""


FLAGS: Final[Mapping[str, Effect]] = {
    "llem run CONFIG": Effect("config/loader.py", flags.test_flags_beat_the_file),
    "llem run --model": Effect("config/loader.py", flags.test_model_names_what_is_run),
    "llem run --backend": Effect("config/loader.py", flags.test_backend_chooses_the_engine),
    "llem run --device": Effect("config/loader.py", flags.test_device_says_where),
    "llem run --dataset": Effect("config/loader.py", flags.test_dataset_and_n_choose_the_prompts),
    "llem run -n": Effect("config/loader.py", flags.test_dataset_and_n_choose_the_prompts),
    "llem run --batch-size": Effect("config/loader.py", flags.test_batch_size_is_the_batch_setting_of_the_backend),
    "llem run --precision": Effect("config/loader.py", flags.test_precision_is_the_number_format),
    "llem run --output": Effect("results/persistence.py", run.test_output_flag_beats_the_settings_and_the_default),
    "llem run --dry-run": Effect("cli/dry_run.py", flags.test_dry_run_runs_nothing_and_writes_nothing),
    "llem run --quiet": Effect("cli/run.py", flags.test_quiet_leaves_the_progress_out),
    "llem run --verbose": Effect("cli/terminal.py", run.test_verbose_tells_the_log_beside_the_progress),
    "llem run --json": Effect("cli/terminal.py", run.test_json_puts_the_result_on_stdout_and_nothing_else),
    "llem run --export-csv": Effect("results/export.py", run.test_export_csv_lies_beside_the_result),
    "llem run --cycles": Effect("cli/study.py", flags.test_cycles_repeat_a_study),
    "llem run --order": Effect("cli/study.py", flags.test_order_arranges_the_cycles),
    "llem run --no-gaps": Effect("cli/study.py", flags.test_no_gaps_leaves_the_gaps_out),
    "llem run --cluster": Effect("study/execute.py", flags.test_cluster_beats_the_address_of_the_settings),
    "llem run --resume": Effect("study/resume.py", flags.test_resume_of_a_finished_study_shows_it_and_runs_nothing),
    "llem config --verbose": Effect("cli/config.py", flags.test_config_verbose_tells_where_every_setting_comes_from),
    "llem --version": Effect("cli/__init__.py", flags.test_version_is_told),
}
"""Flags and arguments of the command line."""

_RUNNER_VARIABLE: Final = Effect("config/user_config.py", user.test_the_runner_variable_beats_the_file)
_FACTOR_VARIABLE: Final = Effect("config/user_config.py", user.test_the_variables_of_carbon_and_pue_beat_the_file)

VARIABLES: Final[Mapping[str, Effect]] = {
    "LLEM_RUNNER_PYTORCH": _RUNNER_VARIABLE,
    "LLEM_RUNNER_VLLM": _RUNNER_VARIABLE,
    "LLEM_RUNNER_TENSORRT": _RUNNER_VARIABLE,
    "LLEM_CARBON_INTENSITY": _FACTOR_VARIABLE,
    "LLEM_DATACENTER_PUE": _FACTOR_VARIABLE,
    "LLEM_JOB_DIR": Effect("runners/child.py", job_directory.test_the_directory_may_come_by_a_variable),
    "LLEM_NO_PROMPT": Effect("cli/study.py", terminal.test_prompt_switched_off_asks_nothing_and_begins_anew),
}
"""This package's own environment variables."""

MAPS: Final[Mapping[str, Mapping[str, Effect]]] = {
    "experiment": EXPERIMENT,
    "study": STUDY,
    "user": USER,
    "flags": FLAGS,
    "variables": VARIABLES,
}
"""All of it, by the part of the page."""
