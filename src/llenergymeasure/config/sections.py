"""The parts of an experiment that all backends share (decoding, warm-up, window, …), and all its fields."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from llenergymeasure.config.backend_configs import (
    DEFAULT_SECTIONS,
    OtherEngineConfig,
    PyTorchConfig,
    TensorRTConfig,
    VLLMConfig,
)
from llenergymeasure.config.base import (
    BackendConfig,
    CheckedConfig,
    ConfigModel,
    NonBlankStr,
    PathStr,
    Problem,
    try_values,
)
from llenergymeasure.config.engines import BackendName
from llenergymeasure.config.meters import MeterName
from llenergymeasure.config.ssot import DECODER_PRESETS


class DecoderConfig(ConfigModel):
    """How the next token is chosen.

    A preset fills the fields the user left out; what it filled is part of the config like anything else, so a dump
    read back is the same config.
    """

    temperature: float = Field(default=1.0, ge=0.0, le=2.0)
    """Softmax temperature; 0 is greedy decoding."""
    do_sample: bool = True
    """Sample from the distribution; false is greedy decoding."""
    top_k: int = Field(default=50, ge=0)
    """Sample among the k most probable tokens; 0 switches it off."""
    top_p: float = Field(default=1.0, ge=0.0, le=1.0)
    """Sample among the most probable tokens that make up this probability."""
    repetition_penalty: float = Field(default=1.0, ge=0.1, le=10.0)
    """Factor against tokens already in the text; 1 switches it off."""
    min_p: float | None = Field(default=None, ge=0.0, le=1.0)
    """Drop tokens less probable than this share of the most probable one."""
    min_new_tokens: int | None = Field(default=None, ge=1)
    """EOS is ignored until this many tokens exist; forces equal output lengths."""
    preset: Literal["deterministic", "standard", "creative", "factual"] | None = None
    """Named set of decoder values; explicit fields win over it."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, data: Any) -> Any:
        preset = data.get("preset") if isinstance(data, dict) else None
        return {**DECODER_PRESETS.get(preset, {}), **data} if isinstance(preset, str) else data

    @property
    def is_deterministic(self) -> bool:
        """Whether the same prompt gives the same tokens: temperature 0, or no sampling."""
        return self.temperature == 0.0 or not self.do_sample


class WarmupConfig(CheckedConfig):
    """What runs before the measurement window and stays out of it."""

    switched_off: ClassVar[str] = "enabled: false"
    enabled: bool = True
    """Warm up and exclude it; false measures from the first token on."""
    n_warmup: int = Field(default=5, ge=1)
    """Full-length prompts with short outputs to run first."""
    thermal_floor_seconds: float = Field(default=60.0, ge=0.0, json_schema_extra=try_values(0.0, 30.0, 60.0))
    """Seconds to wait after warm-up: 0, or 30 and more. 0 skips the wait and leaves a warning."""
    convergence_detection: bool = False
    """After n_warmup prompts, go on until latency has settled."""
    cv_threshold: float = Field(default=0.05, ge=0.01, le=0.5)
    """Coefficient of variation at which latency counts as settled."""
    max_prompts: int = Field(default=20, ge=5)
    """Most prompts to spend on convergence."""
    window_size: int = Field(default=5, ge=3)
    """Latencies in the sliding window of the convergence test."""
    min_prompts: int = Field(default=5, ge=1)
    """Fewest prompts before convergence may be declared."""

    def problems(self) -> Iterator[Problem]:
        """A floor that is too short, and bounds above `max_prompts`."""
        if 0.0 < self.thermal_floor_seconds < 30.0:
            yield Problem(
                "thermal_floor_seconds",
                f"warmup.thermal_floor_seconds: {self.thermal_floor_seconds:g} is too short to settle a GPU. "
                "Use 30 or more, or 0 to skip the wait (the result then carries a warning).",
            )
        bounded = {"window_size": self.window_size, "min_prompts": self.min_prompts}
        if self.convergence_detection:  # without it, a fixed number is run
            bounded["n_warmup"] = self.n_warmup
        for name, value in bounded.items():
            if value > self.max_prompts:
                yield Problem(
                    name,
                    f"warmup.{name}: {value} exceeds warmup.max_prompts={self.max_prompts}. "
                    "Lower it or raise max_prompts.",
                )


class BaselineConfig(ConfigModel):
    """Idle power before the model is loaded, subtracted to give adjusted energy."""

    switched_off: ClassVar[str] = "enabled: false"
    enabled: bool = True
    """Measure idle power first; false leaves adjusted energy unknown."""
    duration_seconds: float = Field(default=30.0, ge=5.0, le=120.0)
    """Seconds of idling to average over."""


class MeasurementConfig(ConfigModel):
    """What counts as the measurement window, and what is kept of it."""

    min_duration_seconds: float | None = Field(default=None, ge=0.0)
    """Go through the prompts again until the window is at least this long."""
    skip_first_seconds: float | None = Field(default=None, ge=0.0)
    """Leave out the first seconds of generation; methodology becomes windowed."""
    skip_last_seconds: float | None = Field(default=None, ge=0.0)
    """Leave out the last seconds of generation; methodology becomes windowed."""
    full_batch_only: bool = False
    """Count only the time in which a continuous batch is full; methodology becomes windowed."""
    save_trace: bool = False
    """Keep the raw power samples at full rate."""
    save_outputs: bool = False
    """Keep prompts, generated texts and token counts as JSON lines beside the result."""


class EnergyConfig(ConfigModel):
    """What measures the joules."""

    switched_off: ClassVar[str] = "backend: null"
    backend: MeterName | None = "auto"
    """Energy backend, also one that an installed package registers; auto takes the best of this package's, null
    measures no energy at all."""


class SyntheticDatasetConfig(ConfigModel):
    """Generated prompts of exact token lengths; the same seed gives the same prompts."""

    n: int = Field(ge=1)
    """Prompts in the pool."""
    input_len: int = Field(default=512, ge=1)
    """Tokens in each prompt; sets max_input_tokens."""
    output_len: int = Field(default=128, ge=1)
    """Tokens to generate per prompt; sets max_output_tokens."""
    seed: int = Field(default=42, ge=0)
    """Seed of the prompt generator."""


class LoRAConfig(CheckedConfig):
    """A low-rank adapter on top of the model's weights."""

    adapter_id: NonBlankStr | None = None
    """Hub id of the adapter."""
    adapter_path: PathStr | None = None
    """Local directory of the adapter."""
    merge_weights: bool = False
    """Merge the adapter into the weights before measuring, so that it costs nothing."""

    def problems(self) -> Iterator[Problem]:
        """No adapter, or two."""
        if self.adapter_id is None and self.adapter_path is None:
            yield Problem("adapter_id", "lora: needs adapter_id (on the Hub) or adapter_path (on disk); add one.")
        if self.adapter_id is not None and self.adapter_path is not None:
            yield Problem(
                "adapter_path",
                f"lora: adapter_id={self.adapter_id!r} and adapter_path={self.adapter_path!r} are both given; "
                "remove one.",
            )


def _dataset_kind(value: Any) -> str:
    return "synthetic" if isinstance(value, (dict, SyntheticDatasetConfig)) else "name"


Dataset = Annotated[
    Annotated[PathStr, Tag("name")] | Annotated[SyntheticDatasetConfig, Tag("synthetic")],
    Discriminator(_dataset_kind),
]
"""A data set's name, or how to make one; told apart by shape, so that an error speaks of the form that was used."""


class ExperimentFields(CheckedConfig):
    """Everything that is said of an experiment; `models.ExperimentConfig` adds what must hold between the fields."""

    model: PathStr
    """Hub model id, local directory, or builtin/<name>."""
    backend: BackendName = "pytorch"
    """Inference engine; also one that an installed package registers."""
    n: int = Field(default=100, ge=1, json_schema_extra=try_values(10, 100, 500))
    """Prompts taken from the data set."""
    dataset: Dataset = "aienergyscore"
    """Bundled set, path of a .jsonl file, hf:<id> on the Hub, or synthetic prompts of exact lengths."""
    precision: Literal["fp32", "fp16", "bf16"] = "bf16"
    """Number format of weights and activations."""
    random_seed: int = Field(default=42, ge=0, le=2**32 - 1)
    """Seed of every random number generator the run touches."""
    max_input_tokens: int = Field(default=512, ge=1, json_schema_extra=try_values(64, 128, 256))
    """Longer prompts are cut at the end to this many tokens."""
    max_output_tokens: int = Field(default=128, ge=1, json_schema_extra=try_values(32, 128, 256))
    """Most tokens to generate per prompt."""
    decoder: DecoderConfig = Field(default_factory=DecoderConfig)
    """How the next token is chosen."""
    warmup: WarmupConfig = Field(default_factory=WarmupConfig)
    """What runs before the window."""
    baseline: BaselineConfig = Field(default_factory=BaselineConfig)
    """Idle power before loading."""
    energy: EnergyConfig = Field(default_factory=EnergyConfig)
    """What measures the joules."""
    measurement: MeasurementConfig = Field(default_factory=MeasurementConfig)
    """What counts as the window, and what is kept of it."""
    revision: NonBlankStr | None = None
    """Branch, tag or commit of model and tokenizer on the Hub."""
    trust_remote_code: bool = False
    """Run model code that comes from the Hub."""
    pytorch: PyTorchConfig | None = None
    """Settings of the pytorch backend."""
    vllm: VLLMConfig | None = None
    """Settings of the vllm backend."""
    tensorrt: TensorRTConfig | None = None
    """Settings of the tensorrt backend."""
    lora: LoRAConfig | None = None
    """Low-rank adapter."""
    passthrough_kwargs: dict[str, Any] | None = None
    """Keyword arguments handed to the engine's constructor untouched."""
    output_dir: PathStr | None = None
    """Directory this experiment's result goes to."""

    @model_validator(mode="before")
    @classmethod
    def _follow_synthetic_dataset(cls, data: Any) -> Any:
        return _with_dataset_limits(data) if isinstance(data, dict) else data

    @property
    def backend_config(self) -> BackendConfig:
        """The section of this experiment's backend; one of defaults where it is left out."""
        if self.backend not in DEFAULT_SECTIONS:
            return OtherEngineConfig()
        section: BackendConfig | None = getattr(self, self.backend)
        return DEFAULT_SECTIONS[self.backend] if section is None else section


def _with_dataset_limits(data: dict[str, Any]) -> dict[str, Any]:
    """Unwrap `dataset: {synthetic: …}` and let a synthetic data set fill the limits that were left out."""
    dataset = data.get("dataset")
    if isinstance(dataset, dict) and set(dataset) == {"synthetic"} and isinstance(dataset["synthetic"], dict):
        dataset = dataset["synthetic"]
        data = {**data, "dataset": dataset}
    if isinstance(dataset, SyntheticDatasetConfig):
        dataset = dataset.model_dump()
    if not isinstance(dataset, dict):
        return data
    fields = SyntheticDatasetConfig.model_fields
    implied = {
        "n": dataset.get("n"),
        "max_input_tokens": dataset.get("input_len", fields["input_len"].default),
        "max_output_tokens": dataset.get("output_len", fields["output_len"].default),
    }
    return {**{name: value for name, value in implied.items() if type(value) is int and value >= 1}, **data}
