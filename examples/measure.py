"""Measure the built-in model at three batch sizes from Python, and look at the figures.

    python examples/measure.py

Runs anywhere in a minute; as in a notebook, nothing is written to disk unless `output_dir` is set. Short waits keep it
quick. For figures to publish, leave `warmup` and `baseline` out, so that their defaults hold, and take a real model.
"""

import llenergymeasure as llem

base = llem.ExperimentConfig(
    model="builtin/tiny-llama",
    precision="fp32",  # what a CPU is quickest in
    dataset={"synthetic": {"n": 8, "input_len": 64, "output_len": 8}},
    decoder={"preset": "deterministic", "min_new_tokens": 8},
    pytorch={"device": "auto"},
    warmup={"n_warmup": 1, "thermal_floor_seconds": 0},
    baseline={"enabled": False},
)

# %% The same work at three batch sizes; keywords override fields of the config, dotted names reach into sections.
results = {size: llem.run_experiment(base, **{"pytorch.batch_size": size}) for size in (1, 4, 8)}

# %% What it cost. None means that it was not measured, and the warnings say why.
print(f"{'batch':>5}  {'J/token':>9}  {'tok/s':>7}  {'TTFT ms':>8}  measured by")
for size, result in results.items():
    energy = "-" if result.avg_energy_per_token_j is None else f"{result.avg_energy_per_token_j:.4f}"
    ttft = result.latency_stats.ttft_ms.mean if result.latency_stats and result.latency_stats.ttft_ms else float("nan")
    meter = result.energy_breakdown.meter if result.energy_breakdown else "nothing"
    print(f"{size:>5}  {energy:>9}  {result.avg_tokens_per_second:>7.0f}  {ttft:>8.1f}  {meter}")

# %% Whatever is in doubt about a figure comes with it.
for warning in results[8].measurement_warnings:
    print("-", warning)

# %% The whole of a result, as the command line prints it, or saved in a directory of its own.
print()
print(results[8].summary())
# results[8].save("results")
