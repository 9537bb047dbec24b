"""The inference engines this release can run: registered by name, imported only when asked for.

A provider is a function that imports its engine and returns the backend class; the decorator says what has to be
installed first, so that a missing or outdated package is told with the command that mends it.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Final

from llenergymeasure.config.ssot import BACKENDS
from llenergymeasure.core.backends.protocol import InferenceBackend
from llenergymeasure.core.clock import Clock, SystemClock
from llenergymeasure.exceptions import BackendError

BackendFactory = Callable[[Clock, "Path | None"], InferenceBackend]
"""Makes a backend from the measurement clock and the directory for downloaded models (`None`: the library's own)."""

ProviderFunction = Callable[[], BackendFactory]
"""Imports an engine and returns what makes a backend of it."""

DEFAULT_BACKEND: Final = "pytorch"
"""Taken when several engines are installed and nobody named one."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """A package that must be installed, and the versions of it that work.

    Args:
        package: Name of the distribution, which is also the name it is imported by.
        bounds: Pairs of comparison and version, all of which must hold.
    """

    package: str
    bounds: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return self.package + ",".join(comparison + version for comparison, version in self.bounds)

    def accepts(self, version: str) -> bool:
        """Whether `version` is within all bounds."""
        return all(_COMPARISONS[comparison](*_aligned(version, bound)) for comparison, bound in self.bounds)


@dataclass(frozen=True, slots=True)
class Provider:
    """A registered engine.

    Args:
        name: The name a config uses.
        extra: The extra of this package that installs it.
        needs: What must be installed.
        load: Imports the engine and returns what makes a backend.
    """

    name: str
    extra: str
    needs: tuple[Requirement, ...]
    load: ProviderFunction


class Registry:
    """Engines by name.

    Args:
        version_of: Tells the version of an installed package, or `None`.
        is_present: Whether a package could be imported, told without importing it.
    """

    def __init__(
        self,
        version_of: Callable[[str], str | None] | None = None,
        is_present: Callable[[str], bool] | None = None,
    ) -> None:
        self._version_of = version_of or _installed_version
        self._is_present = is_present or _can_be_found
        self._providers: dict[str, Provider] = {}

    def register(self, name: str, *, extra: str, needs: str) -> Callable[[ProviderFunction], ProviderFunction]:
        """Register the decorated provider function as the engine `name`.

        Args:
            name: The name a config uses.
            extra: The extra of this package that installs the engine.
            needs: Requirements separated by spaces, e.g. `"torch>=2.4 transformers>=4.56,<6"`.

        Raises:
            ValueError: A requirement does not parse.
        """
        requirements = tuple(parse_requirement(text) for text in needs.split())

        def decorate(load: ProviderFunction) -> ProviderFunction:
            self._providers[name] = Provider(name, extra, requirements, load)
            return load

        return decorate

    def get_backend(
        self, name: str, *, clock: Clock | None = None, model_cache_dir: Path | None = None
    ) -> InferenceBackend:
        """A fresh backend for one experiment.

        Args:
            name: The name a config uses.
            clock: The measurement clock that tokens are stamped with; the machine's own unless given.
            model_cache_dir: Where downloaded models are kept (`HF_HOME`); `None` leaves that to the Hub's client.

        Raises:
            BackendError: The engine is unknown, not installed, or installed in a version that does not work.
        """
        provider = self._provider(name)
        self.package_versions(name)
        try:
            factory = provider.load()
        except ImportError as error:
            raise BackendError(
                f"the {name} backend is installed but cannot be imported ({error}). "
                f'Reinstall it with: pip install --force-reinstall "llenergymeasure[{provider.extra}]"'
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
            version = self._version_of(need.package)
            if version is None or not need.accepts(version):
                raise BackendError(
                    f"the {provider.name} backend needs {need} ({version or 'none'} installed). "
                    f'Install it with: pip install "llenergymeasure[{provider.extra}]", '
                    f"or run it in Docker: LLEM_RUNNER_{provider.name.upper()}=docker:<image>"
                )
            versions[need.package] = version
        return versions

    def detect_default_backend(self) -> str:
        """The engine to use when nobody named one: pytorch among several, else the only one there. Imports none.

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
            if all(self._is_present(need.package) for need in provider.needs)
        )

    def names(self) -> tuple[str, ...]:
        """Names of all engines this release has, installed or not, in order of registration."""
        return tuple(self._providers)

    def _provider(self, name: str) -> Provider:
        if name in self._providers:
            return self._providers[name]
        here = ", ".join(self._providers)
        if name in BACKENDS:
            raise BackendError(
                f"the {name} backend cannot run locally in this release yet; it has an engine for: {here}. "
                f"Set backend: {DEFAULT_BACKEND}."
            )
        raise BackendError(f"unknown backend {name!r}. Use one of: {here}.")


def parse_requirement(text: str) -> Requirement:
    """Read a requirement such as `vllm>=0.30,<0.34`.

    Raises:
        ValueError: It is not of that form.
    """
    match = _REQUIREMENT.fullmatch(text)
    if match is None:
        raise ValueError(f"not a requirement: {text!r} (expected e.g. 'vllm>=0.30,<0.34')")
    return Requirement(match["package"], tuple(_BOUND.findall(match["bounds"])))


_BOUND: Final = re.compile(r"(>=|<=|==|!=|>|<)(\d+(?:\.\d+)*)")
_REQUIREMENT: Final = re.compile(
    r"(?P<package>[A-Za-z0-9][A-Za-z0-9._-]*?)(?P<bounds>(?:(?:>=|<=|==|!=|>|<)\d+(?:\.\d+)*,?)*)"
)
_COMPARISONS: Final[dict[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}


def _installed_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _can_be_found(package: str) -> bool:
    """Whether `package` could be imported; a stray folder of that name has no origin and does not count."""
    spec = util.find_spec(package.replace("-", "_"))
    return spec is not None and spec.origin is not None


def _aligned(version: str, bound: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Release numbers of both, padded to one length; suffixes (`rc1`, `+cpu`) do not count."""
    left, right = _release(version), _release(bound)
    width = max(len(left), len(right))
    return left + (0,) * (width - len(left)), right + (0,) * (width - len(right))


def _release(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


registry: Final = Registry()
"""The engines of this package; a third party may register its own."""

register = registry.register
get_backend = registry.get_backend
package_versions = registry.package_versions
detect_default_backend = registry.detect_default_backend
installed_backends = registry.installed_backends


@register("pytorch", extra="pytorch", needs="torch>=2.4 transformers>=5.0 accelerate>=1.0 peft>=0.13")
def pytorch_backend() -> BackendFactory:
    """Hugging Face transformers on PyTorch."""
    from llenergymeasure.core.backends.pytorch.backend import PyTorchBackend  # the heavy import happens only here

    return PyTorchBackend
