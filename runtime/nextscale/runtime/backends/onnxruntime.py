"""ONNX Runtime: one session per graph over one mapped weights file, bound to addresses of a slot's buffers.

Weights are external initializers in one file, which ONNX Runtime maps, so all sessions together hold one copy: of the
packed weights where ``nextscale build --flavor onnxruntime-cpu`` made them for this processor, else of the bundle's
``weights.safetensors``, with prepacking off. All sessions take their scratch from one arena of the process.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from importlib.metadata import distributions
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from nextscale.plan.errors import InputError
from nextscale.runtime.backends.base import Backend, Bound, Call, Memory
from nextscale.runtime.backends.host import HostLoaded, doubled
from nextscale.runtime.backends.packed.choice import Chosen, choose, fits
from nextscale.runtime.backends.packed.machine import this_machine
from nextscale.runtime.backends.packed.target import Machine
from nextscale.runtime.bundle import Bundle
from nextscale.runtime.errors import BackendError
from nextscale.runtime.manifest import Graph, Tensor
from nextscale.runtime.memory import give_back
from nextscale.runtime.packages import imported

log = logging.getLogger("nextscale.runtime")

TYPES = {
    "float32": ("tensor(float)", np.float32),
    "float16": ("tensor(float16)", np.float16),
    "bfloat16": ("tensor(bfloat16)", 16),  # onnx.TensorProto.BFLOAT16: numpy has no such type
    "int32": ("tensor(int32)", np.int32),
    "int64": ("tensor(int64)", np.int64),
    "int8": ("tensor(int8)", np.int8),
    "uint8": ("tensor(uint8)", np.uint8),
}
MOST_AT_ONCE = 4  # graphs that are loaded at the same time: each holds its packed weights for a moment
MOST_THREADS = 256  # of one session: every graph has as many of its own
BATCH_SIZES = tuple(range(1, 9))
INSTALL = "pip uninstall -y onnxruntime onnxruntime-gpu; pip install 'nextscale[{extra}]'"
_arena_lock = threading.Lock()
_arena_made = False


class OnnxRuntime(Backend):
    """ONNX Runtime on the CPU.

    ``threads`` are the threads of one pass (None: one per core). ``packed`` says whether to run on the packed target of
    this processor: None where there is one, True only so, False never. ``targets`` is the folder that ``nextscale build
    -o`` was given, None beside the bundle; ``verify`` is ``full`` (hash the target's files) or ``size``. ``prepack``
    makes every session hold a packed copy of its own instead, for as many copies as there are graphs.
    Row counts are symbolic in the graphs, so any batch size runs as it is.
    """

    name = "onnxruntime"
    precisions = ("fp32", "fp16", "int8")  # most of its CPU operators have no bfloat16

    def __init__(
        self,
        device: str = "cpu",
        threads: int | None = None,
        prepack: bool = False,
        packed: bool | None = None,
        targets: str | os.PathLike[str] | None = None,
        verify: str = "full",
    ) -> None:
        if threads is not None and (type(threads) is not int or not 1 <= threads <= MOST_THREADS):
            raise InputError(f"threads is 1 to {MOST_THREADS}, or None for one per core; found {threads!r}")
        if (prepack and packed) or (targets is not None and (prepack or packed is False)):
            raise InputError("prepack gives every session a copy, and a packed target is one copy for all: take one")
        if verify not in ("full", "size"):
            raise InputError(f"verify is 'full' or 'size'; found {verify!r}")
        self._ort = import_onnxruntime()
        _check_device(self._ort, device)
        self.device, self.threads, self.prepack, self.verify = device, threads, prepack, verify
        self.targets = None if targets is None else Path(targets)
        self.packed = True if packed is None and targets is not None else packed

    def open(self, bundle: Bundle, batch_sizes: tuple[int, ...] | None = None) -> Sessions:
        """A session for each graph."""
        graphs, target = bundle.manifest.graphs, self._target(bundle)
        if target is None:
            files = {weight.file for weight in bundle.manifest.weights.values()}
            weights = sum(bundle.manifest.files[name].size for name in files)
            paths = [bundle.path(graph.file) for graph in graphs]
        else:
            weights, paths = target.packed.weights.size, [target.path(graph) for graph in graphs]
        workers = min(self.threads or os.cpu_count() or 1, MOST_AT_ONCE)
        with target.weights_checked() if target else nullcontext(), ThreadPoolExecutor(workers) as pool:
            loaded = list(pool.map(lambda path, graph: self.load(path, graph, target is not None), paths, graphs))
        give_back()  # every session has packed its weights once more before it took the file's
        sessions = {graph.name: session for graph, session in zip(graphs, loaded, strict=True)}
        return Sessions(sessions, weights, batch_sizes or BATCH_SIZES, doubled(bundle.manifest.text_tokens))

    def load(self, path: Path, graph: Graph, packed: bool = False) -> Session:
        """A session; refuses a graph whose inputs and outputs are not the manifest's."""
        _share_scratch(self._ort)
        options = self._ort.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised, once
        options.intra_op_num_threads = self.threads or 0
        options.enable_mem_pattern = False  # one block per graph and shape, which sessions cannot share
        options.enable_mem_reuse = False  # planned at open, for 0.3 s a graph and no less memory than the arena's own
        options.add_session_config_entry("session.use_env_allocators", "1")
        # Every session has threads of its own: those of the step before would spin on the cores that this one needs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if packed:  # optimised when it was packed
            options.graph_optimization_level = self._ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        elif not self.prepack:
            options.add_session_config_entry("session.disable_prepacking", "1")
        try:
            session = self._ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except errors_of(self._ort) as error:
            raise BackendError(
                f"ONNX Runtime {self._ort.__version__} cannot load {path}: {first_line(error)}"
            ) from error
        check_signature(graph.file, "input", graph.inputs, session.get_inputs())
        check_signature(graph.file, "output", graph.outputs, session.get_outputs())
        return Session(self._ort, session, graph.name)

    def reads_weights(self, bundle: Bundle) -> bool:
        """Not where it runs on a packed target."""
        return not self._may_be_packed or not fits(bundle, self._machine(), self.targets)

    def _target(self, bundle: Bundle) -> Chosen | None:
        if not self._may_be_packed:
            return None
        return choose(bundle, self._machine(), self.targets, bool(self.packed), self.verify)

    @property
    def _may_be_packed(self) -> bool:
        return self.packed is not False and not self.prepack

    def _machine(self) -> Machine:
        return this_machine(str(self._ort.__version__))

    def versions(self) -> dict[str, str]:
        """The version of ONNX Runtime."""
        return {"onnxruntime": str(self._ort.__version__)}


class Sessions(HostLoaded):
    """The sessions of a bundle's graphs over one mapped weights file."""

    def __init__(
        self,
        sessions: Mapping[str, Session],
        weights: int,
        batch_sizes: tuple[int, ...],
        text_lengths: tuple[int, ...],
    ) -> None:
        self._sessions, self.batch_sizes, self.text_lengths = sessions, batch_sizes, text_lengths
        self.fixed = {"weights": weights}

    def prepare(self, memory: Memory, graph: str, inputs: Sequence[Bound], outputs: Sequence[Bound]) -> Call:
        """Bind a graph's session."""
        return self._sessions[graph].prepare(inputs, outputs)


class Session:
    """One loaded graph."""

    def __init__(self, ort: ModuleType, session: Any, name: str) -> None:
        self._ort, self._session, self._name = ort, session, name

    def prepare(self, inputs: Sequence[Bound], outputs: Sequence[Bound]) -> Call:
        """Bind addresses; an output that is not named here is not computed for its own sake."""
        binding = self._session.io_binding()
        try:
            for bound in inputs:
                binding.bind_input(bound.name, "cpu", 0, TYPES[bound.dtype][1], bound.shape, bound.address)
            for bound in outputs:
                binding.bind_output(bound.name, "cpu", 0, TYPES[bound.dtype][1], bound.shape, bound.address)
        except errors_of(self._ort) as error:
            raise BackendError(f"ONNX Runtime cannot bind {self._name}: {first_line(error)}") from error
        return SessionCall(self, binding)


class SessionCall:
    """A session with every tensor bound."""

    def __init__(self, owner: Session, binding: Any) -> None:
        self._owner, self._binding = owner, binding

    def execute(self) -> None:
        owner = self._owner
        try:
            owner._session.run_with_iobinding(self._binding)
        except errors_of(owner._ort) as error:
            raise BackendError(f"ONNX Runtime failed in {owner._name}: {first_line(error)}") from error


def import_onnxruntime() -> ModuleType:
    """The module; raises :class:`BackendError` saying how to install it."""
    return imported("onnxruntime", "the backend 'onnxruntime' needs", "pip install 'nextscale[cpu]'", BackendError)


def installed_packages() -> list[str]:
    """Which distributions provide the module ``onnxruntime``; more than one overwrite each other's files."""
    names = {d.metadata["Name"] or "" for d in distributions()}
    return sorted(n for n in names if n.lower().replace("_", "-") in ("onnxruntime", "onnxruntime-gpu"))


def both_installed() -> str | None:
    """One sentence where both packages are installed, else None; `doctor` and this backend say it."""
    found = installed_packages()
    if len(found) < 2:
        return None
    return (
        f"{' and '.join(found)} are both installed and overwrite each other's files: keep one with "
        f"`{INSTALL.format(extra='cpu')}` or `{INSTALL.format(extra='cuda')}`"
    )


def check_provider(ort: ModuleType) -> None:
    """Refuse an ONNX Runtime without CUDA's provider."""
    found = ort.get_available_providers()
    if "CUDAExecutionProvider" not in found:
        advice = both_installed() or f"install the GPU package: `{INSTALL.format(extra='cuda')}`"
        raise BackendError(
            f"device 'cuda' was asked for, and this onnxruntime {ort.__version__} has no CUDAExecutionProvider "
            f"(it has {', '.join(found)}); {advice}"
        )


def _check_device(ort: ModuleType, device: str) -> None:
    if device == "cpu":
        both = both_installed()
        if both:
            log.warning("%s", both)
        return
    if device != "cuda":
        raise InputError(f"the backend 'onnxruntime' has the devices 'cpu' and 'cuda'; found {device!r}")
    check_provider(ort)
    raise InputError("OnnxRuntime runs on the CPU: OnnxRuntimeCuda is the one for device 'cuda'")


def _share_scratch(ort: ModuleType) -> None:
    """One arena of the process for the scratch of all sessions; once, and not before a session is wanted."""
    global _arena_made
    with _arena_lock:
        if _arena_made:
            return
        memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
        ort.create_and_register_allocator(memory, ort.OrtArenaCfg({"arena_extend_strategy": 0}))  # powers of two: reuse
        _arena_made = True


def check_signature(
    file: str, kind: str, wanted: Sequence[Tensor], found: Sequence[Any], sizes: Mapping[str, int] | None = None
) -> None:
    """Names, types and axes of a session against the manifest; symbolic axes may have been fixed to ``sizes``."""
    given = {arg.name: arg for arg in found}
    if set(given) != {t.name for t in wanted}:
        missing, extra = sorted({t.name for t in wanted} - set(given)), sorted(set(given) - {t.name for t in wanted})
        raise BackendError(
            f"{file} is not the graph that the manifest describes: {kind}s missing {missing}, unexpected {extra}"
        )
    for tensor in wanted:
        arg = given[tensor.name]
        shape = [d if isinstance(d, int) else str(d) for d in arg.shape]
        fits = len(shape) == len(tensor.shape) and all(
            (isinstance(a, str) or a == (sizes or {}).get(b)) if isinstance(b, str) else a == b
            for a, b in zip(shape, tensor.shape, strict=True)
        )
        if not fits or arg.type != TYPES[tensor.dtype][0]:
            raise BackendError(
                f"{file} is not the graph that the manifest describes: {kind} {tensor.name!r} is {arg.type} {shape}, "
                f"the manifest says {tensor.dtype} {list(tensor.shape)}"
            )


def errors_of(ort: ModuleType) -> tuple[type[Exception], ...]:
    """Everything that ONNX Runtime raises: its own exceptions share no base class."""
    state = ort.capi.onnxruntime_pybind11_state
    own = [v for v in vars(state).values() if isinstance(v, type) and issubclass(v, Exception)]
    return (*own, RuntimeError, ValueError, TypeError)


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]
