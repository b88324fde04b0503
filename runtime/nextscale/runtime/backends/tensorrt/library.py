"""TensorRT as an imported library: the one module that imports ``tensorrt`` or ``tensorrt_rtx``.

Both flavours have one API but for the module's name, targets, plugins and caches; here those differences end. A
:class:`Library` gives what it makes out as it is, so callers hold on to it for as long as they use any of that.
"""

from __future__ import annotations

import importlib
import logging
import re
from functools import cache
from types import ModuleType
from typing import Any

from nextscale.plan.errors import InputError
from nextscale.runtime.errors import BackendError
from nextscale.runtime.targets.manifest import FLAVORS

log = logging.getLogger("nextscale.tensorrt")

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
EXTRAS = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}
OLDEST = {"tensorrt": (10, 13), "tensorrt-rtx": (1, 4)}
NEWEST = {"tensorrt": (11,), "tensorrt-rtx": (1,)}  # of the major version

PRECISIONS = ("fp32", "fp16", "bf16")  # of bundles; the products of int8 are an operator of ONNX Runtime's
# TensorRT's name of a manifest's dtype; where it has none, its parser refuses the graph.
DTYPES = {
    "float32": "FLOAT",
    "float16": "HALF",
    "bfloat16": "BF16",
    "int32": "INT32",
    "int64": "INT64",
    "int8": "INT8",
    "uint8": "UINT8",
}
# What TensorRT-RTX lists and cannot build all graphs for, and why.
LACKING = {"sm75": "it compiles no float32 product for sm75, and every step has some"}

# Of every function body that is inlined more than once; it says nothing of the engine.
_CHATTER = ("already exists, the output tensors of this new instance will not be queryable",)


class Library:
    """One flavour of TensorRT. ``trt`` is the module, ``version`` its own, ``logger`` hands lines to ``logging``."""

    def __init__(self, flavor: str, module: ModuleType) -> None:
        self.flavor, self.trt = flavor, module
        self.version = str(module.__version__)
        self.logger: Any = _make_logger(module)

    @property
    def parser_version(self) -> str | None:
        """The ONNX parser's version, where the library tells it."""
        found = getattr(self.trt, "get_nv_onnx_parser_version", None)
        return None if found is None else str(found())

    @property
    def targets(self) -> tuple[str, ...] | None:
        """Every target that a bundle can be built for on any machine; None: only for the GPU of this machine."""
        if self.flavor == "tensorrt":
            return None
        names = (re.fullmatch(r"SM(\d+)", name) for name in self.trt.ComputeCapability.__members__)
        numbers = sorted(int(match[1]) for match in names if match)
        return tuple(f"sm{number}" for number in numbers if f"sm{number}" not in LACKING)

    @property
    def takes_plugins(self) -> bool:
        """Whether plugins that are written in Python can go into an engine."""
        return self.flavor == "tensorrt"

    @property
    def has_timing_cache(self) -> bool:
        """Whether a builder times kernels on the GPU and can remember how long they took."""
        return self.flavor == "tensorrt"

    def network(self, builder: Any) -> Any:
        """A new network whose tensors have the types that the graph says: strongly typed."""
        # Since TensorRT 11, and in TensorRT-RTX, every network is; the flag stays allowed while it has a name.
        flag = getattr(self.trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = builder.create_network(0 if flag is None else 1 << int(flag))
        if network is None or (flag is not None and not network.get_flag(flag)):
            raise BackendError(
                f"{self.flavor} {self.version} makes no strongly typed network: precision would be its choice, "
                f"not the graph's; install a newer one"
            )
        return network

    def set_target(self, config: Any, target: str) -> None:
        """Have engines built for a target; the flavour ``tensorrt`` builds for this machine's GPU by itself."""
        if self.targets is None:
            return
        config.num_compute_capabilities = 1
        capability = getattr(self.trt.ComputeCapability, target.upper())
        if not config.set_compute_capability(capability, 0):
            raise BackendError(f"{self.flavor} {self.version} refuses the target {target}")

    def set_timing_cache(self, config: Any, content: bytes) -> None:
        """Start from what earlier builds measured (empty: from nothing). What does not fit this library is ignored."""
        if self.has_timing_cache:
            cache = config.create_timing_cache(content)
            if not config.set_timing_cache(cache, False):
                config.set_timing_cache(config.create_timing_cache(b""), False)

    def timing_cache(self, config: Any) -> bytes:
        """What is known after a build, to be kept."""
        return bytes(config.get_timing_cache().serialize()) if self.has_timing_cache else b""

    def plugin_layers(self, network: Any) -> int:
        """How many layers of a network are plugins, of any generation."""
        kinds = {kind for name, kind in self.trt.LayerType.__members__.items() if name.startswith("PLUGIN")}
        return sum(network.get_layer(i).type in kinds for i in range(network.num_layers))

    def deserialize(self, runtime: Any, content: bytes | memoryview, name: str) -> Any:
        """An engine; needs a GPU. ``runtime`` is ``library.trt.Runtime(library.logger)``."""
        engine = runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise BackendError(f"{self.flavor} {self.version} does not accept the engine {name} (-v shows its reason)")
        return engine

    def scratch(self, engine: Any) -> list[int]:
        """Bytes of device memory that a context needs, for each profile."""
        return [engine.get_device_memory_size_for_profile_v2(i) for i in range(engine.num_optimization_profiles)]


@cache
def load(flavor: str) -> Library:
    """Import a flavour; raises :class:`BackendError` saying how to install it or what is wrong with it."""
    if flavor not in FLAVORS:
        raise InputError(f"flavor {flavor!r} is none of {', '.join(FLAVORS)}")
    name, install = MODULES[flavor], f"pip install 'nextscale[{EXTRAS[flavor]}]'"
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in (name, f"{name}_bindings", f"{name}_libs"):
            raise
        on = ", on a machine with an NVIDIA GPU" if flavor == "tensorrt" else ""
        raise BackendError(
            f"the flavour {flavor} needs the package {name}, which is not installed here: {install}{on}"
        ) from error
    except (ImportError, OSError) as error:  # its native libraries
        raise BackendError(
            f"{name} is installed and does not load ({_line(error)}): install it again ({install})"
        ) from (error)
    library = Library(flavor, module)
    _check_version(library, install)
    return library


def _check_version(library: Library, install: str) -> None:
    numbers = tuple(int(part) for part in re.findall(r"\d+", library.version)[:2])
    oldest, newest = OLDEST[library.flavor], NEWEST[library.flavor]
    if numbers < oldest or numbers[:1] > newest:
        raise BackendError(
            f"{library.flavor} {library.version} is installed, and Nextscale works with {'.'.join(map(str, oldest))} "
            f"to {newest[0]}.x: {install}"
        )


def _make_logger(module: ModuleType) -> Any:
    severity = module.ILogger.Severity
    levels = {
        severity.INTERNAL_ERROR: logging.ERROR,
        severity.ERROR: logging.ERROR,
        severity.WARNING: logging.WARNING,
        severity.INFO: logging.INFO,
        severity.VERBOSE: logging.DEBUG,
    }

    class Forwarding(module.ILogger):  # type: ignore[name-defined, misc]
        """TensorRT's lines as log records."""

        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            level = logging.DEBUG if any(part in text for part in _CHATTER) else levels.get(severity, logging.ERROR)
            if log.isEnabledFor(level):
                log.log(level, "%s", text)

    return Forwarding()


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0][:200]
