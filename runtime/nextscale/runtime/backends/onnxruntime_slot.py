"""The sessions of one slot for ONNX Runtime's CUDA provider: on its stream, in a thread of their own, each captured."""

from __future__ import annotations

import ctypes
import logging
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

from nextscale.plan.conditioning import TEXT
from nextscale.runtime.backends.base import Bound, Call
from nextscale.runtime.backends.device import DeviceMemory
from nextscale.runtime.backends.onnxruntime import TYPES, check_signature, errors_of, first_line
from nextscale.runtime.errors import BackendError
from nextscale.runtime.manifest import IMAGES, ROWS, Graph

log = logging.getLogger("nextscale.runtime")

PROVIDER = "CUDAExecutionProvider"
_UNCAPTURED = "-1"  # of gpu_graph_id: neither capture this run nor replay one


class Fixed:
    """A lifted graph for one number of pictures; its texts are ``text`` tokens long."""

    def __init__(self, graph: Graph, model: bytes, weights: tuple[str, ...], images: int, rows: int, text: int) -> None:
        self.graph, self.model, self.weights, self.images = graph, model, weights, images
        self.sizes = {IMAGES: images, ROWS: images * rows, TEXT: text}

    @property
    def key(self) -> tuple[str, int]:
        """What tells sessions of a slot apart."""
        return self.graph.name, self.images


class SlotSessions:
    """The sessions of one slot, all on its stream and in one thread. It does not keep the slot's memory."""

    def __init__(self, ort: ModuleType, memory: DeviceMemory, cpu_nodes: bool) -> None:
        self._ort, self._cpu_nodes = ort, cpu_nodes
        self._stream, self._ordinal = memory.stream, memory.device.ordinal
        self._sessions: dict[tuple[str, int], Any] = {}
        self._captures: dict[tuple[str, int], int] = {}  # CUDA graphs of a session; none where it refused
        self._calls: weakref.WeakSet[SessionCall] = weakref.WeakSet()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="nextscale-onnxruntime")

    def bind(self, fixed: Fixed, inputs: Sequence[Bound], outputs: Sequence[Bound], *, captured: bool) -> SessionCall:
        """A call with those addresses, captured where the provider lets it; those of a caller's own cannot be."""
        return self._thread.submit(self._bind, fixed, inputs, outputs, captured).result()

    def chain(self, calls: Sequence[Call]) -> Call:
        """Calls as one, in one turn of the thread."""
        return Turn(self._thread, tuple(calls))

    def close(self) -> None:
        """End the sessions in the thread that made them, whoever still has calls of them."""
        self._thread.submit(self._end).result()
        self._thread.shutdown()

    def _end(self) -> None:
        for call in tuple(self._calls):
            call.drop()
        self._sessions.clear()

    def _bind(self, fixed: Fixed, inputs: Sequence[Bound], outputs: Sequence[Bound], captured: bool) -> SessionCall:
        if fixed.key not in self._sessions:
            try:
                self._sessions[fixed.key], self._captures[fixed.key] = self._session(fixed, captured=True), 0
            except BackendError as error:
                self._start_plain(fixed, error)
        if not captured or self._captures[fixed.key] < 0:
            return self._call(fixed, inputs, outputs, _UNCAPTURED)
        try:
            self._captures[fixed.key] += 1
            call = self._call(fixed, inputs, outputs, str(self._captures[fixed.key]))
            call.run()  # warms up, and captures
        except BackendError as error:
            self._stream.abandon_capture()
            self._start_plain(fixed, error)
            call = self._call(fixed, inputs, outputs, _UNCAPTURED)
            call.run()
        return call

    def _start_plain(self, fixed: Fixed, error: BackendError) -> None:
        """A session that does not capture itself, since one that does failed; what fails here, too, raises."""
        self._sessions[fixed.key], self._captures[fixed.key] = self._session(fixed, captured=False), -1
        log.warning("%s runs without a CUDA graph of its own: %s", fixed.graph.name, error)

    def _call(self, fixed: Fixed, inputs: Sequence[Bound], outputs: Sequence[Bound], capture: str) -> SessionCall:
        ort, session, ordinal = self._ort, self._sessions[fixed.key], self._ordinal
        binding, options = session.io_binding(), ort.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        options.add_run_config_entry("gpu_graph_id", capture)
        try:
            for bound in inputs:
                kind = TYPES[bound.dtype][1]
                binding.bind_input(bound.name, "cuda", ordinal, kind, bound.shape, bound.address)
            for bound in outputs:
                kind = TYPES[bound.dtype][1]
                binding.bind_output(bound.name, "cuda", ordinal, kind, bound.shape, bound.address)
        except errors_of(ort) as error:
            raise BackendError(f"ONNX Runtime cannot bind {fixed.graph.name}: {first_line(error)}") from error
        call = SessionCall(ort, self._thread, session, binding, options, fixed.graph.name)
        self._calls.add(call)
        return call

    def _session(self, fixed: Fixed, captured: bool) -> Any:
        """A session on the slot's stream, which runs nothing on the CPU."""
        ort, graph = self._ort, fixed.graph
        options = ort.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised, once
        options.intra_op_num_threads = 1  # or every session keeps a pool of threads that have nothing to do
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        for symbol, size in fixed.sizes.items():
            options.add_free_dimension_override_by_name(symbol, size)
        settings = provider_options(self._ordinal, self._stream.handle, captured)
        try:
            session = ort.InferenceSession(fixed.model, options, providers=[(PROVIDER, settings)], enable_fallback=0)
        except errors_of(ort) as error:
            raise BackendError(
                f"ONNX Runtime {ort.__version__} cannot load {graph.file}: {first_line(error)}"
            ) from error
        if PROVIDER not in session.get_providers():
            raise BackendError(
                f"ONNX Runtime {ort.__version__} has the {PROVIDER}, and it does not load ({why_not(ort)}): it needs "
                "CUDA 13 and cuDNN 9, which pip install 'nextscale[cuda]' brings"
            )
        if not self._cpu_nodes:
            check_nodes(graph.name, session)
        lifted = {"input": session.get_inputs(), "output": session.get_outputs()}
        given = [arg for arg in lifted["input"] if arg.name not in fixed.weights]
        check_signature(graph.file, "input", graph.inputs, given, fixed.sizes)
        check_signature(graph.file, "output", graph.outputs, lifted["output"], fixed.sizes)
        return session


class SessionCall:
    """A session with every tensor bound, run in its slot's thread."""

    def __init__(
        self, ort: ModuleType, thread: ThreadPoolExecutor, session: Any, binding: Any, options: Any, name: str
    ) -> None:
        self._ort, self._thread, self._name = ort, thread, name
        self._session, self._binding, self._options = session, binding, options

    def execute(self) -> None:
        """Ask for it; returns before the device is done."""
        self._thread.submit(self.run).result()

    def run(self) -> None:
        """The same, in this thread."""
        if self._session is None:
            raise BackendError(f"{self._name} of a closed pipeline was asked for")
        try:
            self._session.run_with_iobinding(self._binding, self._options)
        except errors_of(self._ort) as error:
            raise BackendError(f"ONNX Runtime failed in {self._name}: {first_line(error)}") from error

    def drop(self) -> None:
        """Let the session go; what it was bound to goes first."""
        self._binding = None
        self._session = None


class Turn:
    """Calls as one turn of a slot's thread."""

    def __init__(self, thread: ThreadPoolExecutor, calls: Sequence[Call]) -> None:
        self._thread, self._calls = thread, calls

    def execute(self) -> None:
        """Ask for all of them."""
        self._thread.submit(self._run).result()

    def _run(self) -> None:
        for call in self._calls:
            call.run() if isinstance(call, SessionCall) else call.execute()


def provider_options(ordinal: int, stream: int, captured: bool) -> dict[str, str]:
    """What the provider is told: our stream, a CUDA graph of the session or none, memory in the sizes asked for."""
    return {
        "device_id": str(ordinal),
        "user_compute_stream": str(stream),
        "do_copy_in_default_stream": "1",
        "enable_cuda_graph": "1" if captured else "0",
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",  # the default tries them all, with scratch for each
        "use_tf32": "0",  # precision is in the graph
    }


def why_not(ort: ModuleType) -> str:
    """What the system's loader says of the provider's library: the first that it misses."""
    for library in Path(ort.__file__ or "").parent.glob("capi/*onnxruntime_providers_cuda.*"):
        try:
            ctypes.CDLL(str(library))
        except OSError as error:
            return str(error)
    return "no reason is known"


def check_nodes(graph: str, session: Any) -> None:
    """Refuse a session some of whose nodes fell back to the CPU."""
    fallen = [
        f"{node.op_type} ({node.name})"
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != PROVIDER
        for node in part.get_nodes()
    ]
    if fallen:
        raise BackendError(
            f"device 'cuda' was asked for, and ONNX Runtime would run {len(fallen)} nodes of {graph} on the CPU: "
            f"{', '.join(fallen[:5])}; OnnxRuntimeCuda(cpu_nodes=True) lets it"
        )
