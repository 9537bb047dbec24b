"""Everything a user can set, where it acts, and the test that shows it: the data behind docs/settings.md.

A module is a path below `src/llenergymeasure`, a test is `file::function`. What can be set is not listed here but taken
from the models and the command line; `settings_reference.problems` compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Effect:
    """What a setting does.

    Args:
        acts_in: Module in which it acts.
        shown_by: Test that fails when it does not.
        note: What else there is to know about it.
    """

    acts_in: str
    shown_by: str
    note: str = ""


EXPERIMENT_TEST: Final = "test_settings_effects_experiment.py"
USER_TEST: Final = "test_settings_effects_user.py"
FLAGS_TEST: Final = "test_settings_effects_flags.py"
RUN_TEST: Final = "test_settings_effects_run.py"
MACHINE_TEST: Final = "test_settings_effects_machine.py"
TERMINAL_TEST: Final = "test_settings_effects_terminal.py"
ENGINE_TEST: Final = "test_settings_effects_engine.py"
PYTORCH_TEST: Final = "test_pytorch_settings.py"

_LOADING: Final = "core/backends/pytorch/loading.py"
_GENERATION: Final = "core/backends/pytorch/generation.py"
_NOT_BUILT: Final = "core/backends/registry.py"
_SAMPLING: Final = Effect(_LOADING, f"{PYTORCH_TEST}::test_sampling_parameters_are_those_asked_for")
_GENERATE: Final = Effect(_LOADING, f"{PYTORCH_TEST}::test_generation_fields_reach_the_generation_config")
_ASSISTANT: Final = Effect(_LOADING, f"{PYTORCH_TEST}::test_the_assistant_drafts_with_its_settings")
_COMPILE: Final = Effect(_LOADING, f"{PYTORCH_TEST}::test_compiling_goes_through_torch_compile_and_gives_the_same_text")
_QUANTISER: Final = Effect(_LOADING, f"{PYTORCH_TEST}::test_quantisation_details_reach_the_quantiser")
_SYNTHETIC: Final = Effect(
    "datasets/synthetic.py", f"{EXPERIMENT_TEST}::test_synthetic_prompts_have_the_number_and_the_lengths_asked_for"
)
_REFUSED: Final = Effect(
    _NOT_BUILT,
    "test_registry.py::test_engines_this_release_lacks_are_refused_plainly",
    note="checked when the file is read; an experiment on this engine is then refused, not run without it",
)


def _experiment_effect(module: str, test: str, note: str = "") -> Effect:
    return Effect(module, f"{EXPERIMENT_TEST}::{test}", note)


EXPERIMENT: Final[Mapping[str, Effect]] = {
    "model": Effect(
        "core/model/source.py",
        "test_pytorch_hub.py::test_a_cached_model_runs_offline_at_its_commit_and_an_uncached_one_says_why_not",
    ),
    "backend": Effect(_NOT_BUILT, "test_registry.py::test_an_installed_engine_is_made"),
    "n": _experiment_effect("datasets/loader.py", "test_n_is_the_number_of_prompts_in_the_window"),
    "dataset": _experiment_effect("datasets/loader.py", "test_dataset_is_where_the_prompts_come_from"),
    "dataset.n": _SYNTHETIC,
    "dataset.input_len": _SYNTHETIC,
    "dataset.output_len": _SYNTHETIC,
    "dataset.seed": _SYNTHETIC,
    "precision": Effect(_LOADING, f"{PYTORCH_TEST}::test_precision_is_the_type_of_every_weight"),
    "random_seed": Effect(
        "core/backends/seeding.py",
        "test_pytorch_generation.py::test_sampling_follows_the_seed_and_nothing_that_ran_before",
    ),
    "max_input_tokens": _experiment_effect(
        "datasets/loader.py", "test_max_input_tokens_cuts_prompts_and_counts_the_cut_ones"
    ),
    "max_output_tokens": _experiment_effect("core/harness.py", "test_max_output_tokens_bounds_every_request"),
    "decoder.temperature": _SAMPLING,
    "decoder.do_sample": Effect(_LOADING, f"{PYTORCH_TEST}::test_greedy_decoding_has_no_sampling_parameters"),
    "decoder.top_k": _SAMPLING,
    "decoder.top_p": _SAMPLING,
    "decoder.repetition_penalty": _SAMPLING,
    "decoder.min_p": _SAMPLING,
    "decoder.min_new_tokens": Effect(
        _GENERATION, "test_pytorch_generation.py::test_forced_length_holds_for_a_model_that_wants_to_stop_at_once"
    ),
    "decoder.preset": Effect("config/sections.py", "test_config_models.py::test_a_preset_fills_what_was_left_out"),
    "warmup.enabled": _experiment_effect(
        "core/warmup.py", "test_warmup_enabled_runs_prompts_before_the_window_and_names_the_methodology"
    ),
    "warmup.n_warmup": _experiment_effect("core/warmup.py", "test_n_warmup_is_the_number_of_iterations"),
    "warmup.thermal_floor_seconds": _experiment_effect(
        "core/warmup.py", "test_thermal_floor_seconds_are_waited_before_the_window"
    ),
    "warmup.convergence_detection": _experiment_effect(
        "core/warmup.py", "test_convergence_detection_goes_on_until_latency_has_settled"
    ),
    "warmup.cv_threshold": _experiment_effect(
        "core/warmup.py", "test_cv_threshold_decides_what_counts_as_settled", "with `warmup.convergence_detection`"
    ),
    "warmup.max_prompts": _experiment_effect(
        "core/warmup.py",
        "test_max_prompts_is_the_most_and_giving_up_is_told",
        "with `warmup.convergence_detection`",
    ),
    "warmup.window_size": _experiment_effect(
        "core/warmup.py", "test_window_size_is_how_many_latencies_must_agree", "with `warmup.convergence_detection`"
    ),
    "warmup.min_prompts": _experiment_effect(
        "core/warmup.py", "test_min_prompts_is_the_least", "with `warmup.convergence_detection`"
    ),
    "baseline.enabled": _experiment_effect("core/baseline.py", "test_baseline_enabled_gives_energy_above_idle"),
    "baseline.duration_seconds": _experiment_effect(
        "core/baseline.py", "test_baseline_duration_seconds_are_spent_idling", "with `baseline.enabled`"
    ),
    "energy.backend": Effect(
        "core/energy/select.py", f"{RUN_TEST}::test_energy_backend_null_measures_no_energy_at_all"
    ),
    "measurement.min_duration_seconds": _experiment_effect(
        "core/window.py", "test_min_duration_seconds_goes_through_the_prompts_again"
    ),
    "measurement.skip_first_seconds": _experiment_effect(
        "core/observations.py", "test_skip_first_seconds_leaves_out_the_beginning"
    ),
    "measurement.skip_last_seconds": _experiment_effect(
        "core/observations.py", "test_skip_last_seconds_leaves_out_the_end"
    ),
    "measurement.full_batch_only": _experiment_effect(
        "core/observations.py",
        "test_full_batch_only_counts_while_the_batch_is_full",
        "refused on engines that run fixed batches",
    ),
    "measurement.save_trace": _experiment_effect(
        "core/artefacts.py",
        "test_save_trace_keeps_every_power_sample",
        "a meter that takes no samples leaves a warning instead",
    ),
    "measurement.save_outputs": _experiment_effect("core/artefacts.py", "test_save_outputs_keeps_prompts_and_texts"),
    "revision": Effect("core/model/source.py", "test_pytorch_hub.py::test_what_the_hub_refuses_is_told_with_its_fix"),
    "trust_remote_code": Effect(_LOADING, f"{ENGINE_TEST}::test_trust_remote_code_decides_whose_code_builds_the_model"),
    "lora.adapter_id": Effect(
        _LOADING, f"{ENGINE_TEST}::test_lora_adapter_id_is_looked_for_in_the_hubs_cache_of_the_settings"
    ),
    "lora.adapter_path": Effect(
        _LOADING,
        "test_pytorch_loading.py::test_an_adapter_changes_the_text_and_merging_it_does_not_change_it_again",
    ),
    "lora.merge_weights": Effect(
        _LOADING,
        "test_pytorch_loading.py::test_an_adapter_changes_the_text_and_merging_it_does_not_change_it_again",
    ),
    "passthrough_kwargs": Effect(_LOADING, f"{PYTORCH_TEST}::test_passthrough_arguments_reach_the_model"),
    "output_dir": Effect(
        "results/repository.py",
        f"{RUN_TEST}::test_output_dir_of_the_experiment_is_the_only_reason_for_the_library_to_write",
    ),
    "pytorch.batch_size": Effect(_GENERATION, f"{PYTORCH_TEST}::test_batch_size_is_what_the_engine_asks_for"),
    "pytorch.device": Effect(
        "core/backends/pytorch/placement.py", f"{PYTORCH_TEST}::test_device_says_where_the_model_goes"
    ),
    "pytorch.num_processes": Effect(
        "runners/parallel.py", "test_parallel_processes.py::test_two_processes_share_the_prompts_and_make_one_result"
    ),
    "pytorch.device_map": Effect(
        "core/backends/pytorch/placement.py", f"{PYTORCH_TEST}::test_device_says_where_the_model_goes"
    ),
    "pytorch.attn_implementation": Effect(_LOADING, f"{PYTORCH_TEST}::test_attention_kernel_reaches_the_model"),
    "pytorch.torch_compile": _COMPILE,
    "pytorch.torch_compile_mode": Effect(_LOADING, f"{PYTORCH_TEST}::test_a_compiler_mode_reaches_the_compiler"),
    "pytorch.torch_compile_backend": _COMPILE,
    "pytorch.torch_compile_dynamic": _COMPILE,
    "pytorch.use_cache": Effect(_GENERATION, f"{PYTORCH_TEST}::test_without_a_cache_every_step_sees_the_whole_text"),
    "pytorch.cache_implementation": Effect(
        _GENERATION, f"{PYTORCH_TEST}::test_a_static_cache_has_one_size_for_every_batch"
    ),
    "pytorch.num_beams": _GENERATE,
    "pytorch.prompt_lookup_num_tokens": _GENERATE,
    "pytorch.max_matching_ngram_size": Effect(
        _LOADING, f"{PYTORCH_TEST}::test_ngram_size_reaches_the_generation_config"
    ),
    "pytorch.assistant_model": _ASSISTANT,
    "pytorch.num_assistant_tokens": _ASSISTANT,
    "pytorch.num_assistant_tokens_schedule": _ASSISTANT,
    "pytorch.load_in_8bit": Effect(_LOADING, f"{PYTORCH_TEST}::test_quantised_weights_are_in_memory_and_generate"),
    "pytorch.load_in_4bit": _QUANTISER,
    "pytorch.bnb_4bit_compute_dtype": _QUANTISER,
    "pytorch.bnb_4bit_quant_type": _QUANTISER,
    "pytorch.bnb_4bit_use_double_quant": _QUANTISER,
    "pytorch.allow_tf32": Effect(_LOADING, f"{PYTORCH_TEST}::test_tf32_is_set_while_loaded_and_put_back"),
    "vllm.*": _REFUSED,
    "tensorrt.*": _REFUSED,
}
"""Fields of an experiment. `name.*` stands for the whole section of an engine that this release does not run."""

STUDY: Final[Mapping[str, Effect]] = {
    "name": Effect("study/manifest.py", "test_manifest.py::test_study_directory_carries_name_and_date"),
    "base": Effect("config/grid.py", "test_grid.py::test_a_base_experiment_lies_under_the_fixed_part"),
    "sweep": Effect(
        "config/grid.py", "test_grid.py::test_a_grid_is_the_product_in_the_order_of_the_file_with_the_last_key_fastest"
    ),
    "experiments": Effect(
        "config/grid.py", "test_grid.py::test_only_explicit_experiments_gives_exactly_those_over_the_fixed_part"
    ),
    "execution.n_cycles": Effect(
        "study/sequence.py", "test_study_runner.py::test_every_experiment_runs_in_every_cycle_in_order"
    ),
    "execution.cycle_order": Effect(
        "study/sequence.py", "test_manifest.py::test_runs_are_planned_in_the_order_asked_for"
    ),
    "execution.config_gap_seconds": Effect(
        "study/gaps.py", "test_gaps.py::test_gaps_really_pass_and_there_is_none_after_the_last_run"
    ),
    "execution.cycle_gap_seconds": Effect(
        "study/gaps.py", "test_gaps.py::test_gaps_really_pass_and_there_is_none_after_the_last_run"
    ),
    "execution.shuffle_seed": Effect("config/grid.py", "test_grid_cycles.py::test_a_seed_replaces_the_design_hash"),
    "execution.experiment_timeout_seconds": Effect(
        "study/sequence.py", "test_study_faults.py::test_fault_of_one_experiment_costs_that_experiment_alone"
    ),
    "execution.max_consecutive_failures": Effect(
        "study/runner.py",
        "test_study_runner.py::test_study_gives_up_after_failures_in_a_row_and_names_the_common_reason",
    ),
}
"""Keys of a study file that are not fields of an experiment."""


def _user_effect(module: str, test: str, note: str = "") -> Effect:
    return Effect(module, f"{USER_TEST}::{test}", note)


_RUNNER: Final = _user_effect(
    "core/preflight.py",
    "test_a_docker_runner_is_refused_plainly_for_its_own_backend_alone",
    "`docker:` is refused in this release",
)
_NOT_USED: Final = _user_effect(
    "study/execute.py",
    "test_cluster_settings_are_shown_as_not_used_yet_and_a_study_says_so",
    "not used by this release; `llem config` and every study say so",
)

USER: Final[Mapping[str, Effect]] = {
    "output.results_dir": Effect(
        "results/repository.py", f"{RUN_TEST}::test_results_dir_of_the_settings_takes_a_run_of_the_command_line"
    ),
    "output.model_cache_dir": Effect(
        "core/model/source.py",
        f"{ENGINE_TEST}::test_lora_adapter_id_is_looked_for_in_the_hubs_cache_of_the_settings",
        "models and adapters; data sets of the Hub follow `HF_HOME`",
    ),
    "output.webhook_url": _user_effect("study/execute.py", "test_webhook_url_gets_the_summary_when_a_study_ends"),
    "runners.pytorch": _RUNNER,
    "runners.vllm": _RUNNER,
    "runners.tensorrt": _RUNNER,
    "measurement.energy_backend": Effect(
        "core/energy/select.py", f"{MACHINE_TEST}::test_energy_backend_of_the_machine_is_the_meter_of_the_record"
    ),
    "measurement.carbon_intensity_gco2_kwh": _user_effect("domain/emissions.py", "test_carbon_intensity_gives_co2"),
    "measurement.datacenter_pue": _user_effect(
        "domain/emissions.py", "test_datacenter_pue_multiplies_co2_and_cost_and_leaves_energy_alone"
    ),
    "measurement.electricity_price_kwh": _user_effect(
        "domain/emissions.py", "test_electricity_price_gives_the_cost_in_the_currency"
    ),
    "measurement.currency": _user_effect(
        "domain/emissions.py",
        "test_electricity_price_gives_the_cost_in_the_currency",
        "with `measurement.electricity_price_kwh`",
    ),
    "ui.verbosity": _user_effect("cli/run.py", "test_verbosity_of_the_settings_is_that_of_the_flags"),
    "ui.prompt": Effect("cli/study.py", f"{TERMINAL_TEST}::test_prompt_switched_off_asks_nothing_and_begins_anew"),
    "cluster.address": _NOT_USED,
    "cluster.hardware": _NOT_USED,
    "advanced.nvml_poll_interval_ms": Effect(
        "core/energy/sampler.py", f"{MACHINE_TEST}::test_nvml_poll_interval_is_the_time_between_power_samples"
    ),
    "advanced.power_gain_uncertainty_pct": Effect(
        "core/energy/uncertainty.py",
        f"{MACHINE_TEST}::test_power_gain_uncertainty_is_the_least_that_an_absolute_figure_can_be_trusted",
    ),
    "execution.config_gap_seconds": _user_effect(
        "study/gaps.py", "test_gaps_of_the_machine_are_waited_where_the_study_names_none"
    ),
    "execution.cycle_gap_seconds": _user_effect(
        "study/gaps.py", "test_gaps_of_the_machine_are_waited_where_the_study_names_none"
    ),
}
"""The user's settings."""


def _flag_effect(module: str, test: str) -> Effect:
    return Effect(module, f"{FLAGS_TEST}::{test}")


FLAGS: Final[Mapping[str, Effect]] = {
    "llem run CONFIG": _flag_effect("config/loader.py", "test_flags_beat_the_file"),
    "llem run --model": _flag_effect("config/loader.py", "test_model_names_what_is_run"),
    "llem run --backend": _flag_effect("config/loader.py", "test_backend_chooses_the_engine"),
    "llem run --device": _flag_effect("config/loader.py", "test_device_says_where"),
    "llem run --dataset": _flag_effect("config/loader.py", "test_dataset_and_n_choose_the_prompts"),
    "llem run -n": _flag_effect("config/loader.py", "test_dataset_and_n_choose_the_prompts"),
    "llem run --batch-size": _flag_effect("config/loader.py", "test_batch_size_is_the_batch_setting_of_the_backend"),
    "llem run --precision": _flag_effect("config/loader.py", "test_precision_is_the_number_format"),
    "llem run --output": Effect(
        "results/repository.py", f"{RUN_TEST}::test_output_flag_beats_the_settings_and_the_default"
    ),
    "llem run --dry-run": _flag_effect("cli/dry_run.py", "test_dry_run_runs_nothing_and_writes_nothing"),
    "llem run --quiet": Effect("cli/run.py", f"{FLAGS_TEST}::test_quiet_leaves_the_progress_out"),
    "llem run --verbose": Effect("cli/logs.py", f"{RUN_TEST}::test_verbose_tells_the_log_beside_the_progress"),
    "llem run --json": Effect("cli/output.py", f"{RUN_TEST}::test_json_puts_the_result_on_stdout_and_nothing_else"),
    "llem run --export-csv": Effect("results/export.py", f"{RUN_TEST}::test_export_csv_lies_beside_the_result"),
    "llem run --cycles": _flag_effect("cli/study.py", "test_cycles_repeat_a_study"),
    "llem run --order": _flag_effect("cli/study.py", "test_order_arranges_the_cycles"),
    "llem run --no-gaps": _flag_effect("cli/study.py", "test_no_gaps_leaves_the_gaps_out"),
    "llem run --resume": _flag_effect("study/resume.py", "test_resume_of_a_finished_study_shows_it_and_runs_nothing"),
    "llem config --verbose": _flag_effect(
        "cli/display_config.py", "test_config_verbose_tells_where_every_setting_comes_from"
    ),
    "llem --version": _flag_effect("cli/__init__.py", "test_version_is_told"),
}
"""Flags and arguments of the command line."""

_RUNNER_VARIABLE: Final = _user_effect("config/user_config.py", "test_the_runner_variable_beats_the_file")
_FACTOR_VARIABLE: Final = _user_effect("config/user_config.py", "test_the_variables_of_carbon_and_pue_beat_the_file")

VARIABLES: Final[Mapping[str, Effect]] = {
    "LLEM_RUNNER_PYTORCH": _RUNNER_VARIABLE,
    "LLEM_RUNNER_VLLM": _RUNNER_VARIABLE,
    "LLEM_RUNNER_TENSORRT": _RUNNER_VARIABLE,
    "LLEM_CARBON_INTENSITY": _FACTOR_VARIABLE,
    "LLEM_DATACENTER_PUE": _FACTOR_VARIABLE,
    "LLEM_NO_PROMPT": Effect("cli/study.py", f"{TERMINAL_TEST}::test_prompt_switched_off_asks_nothing_and_begins_anew"),
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
