"""ONNX Runtime's CUDA provider over host memory: sessions of its CPU provider that run when a stream comes to them.

For the double of a device in ``host_cuda``. What the machine cannot show is whether the CUDA provider takes every
node, and what its kernels compute; this shows what the backend asks of it.
"""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import onnxruntime as real
from support.host_cuda import HostDevice

PROVIDER = "CUDAExecutionProvider"


class HostOnnxRuntime:
    """In the place of the module. A graph in ``fails`` cannot be run, one in ``uncapturable`` cannot be captured;
    ``fallen`` are nodes that CUDA has no kernel for, by graph; without ``loads`` the provider's libraries are missing.
    """

    def __init__(self, device: HostDevice) -> None:
        self.device, self.__version__, self.__file__ = device, real.__version__, real.__file__
        self.capi, self.SessionOptions = real.capi, real.SessionOptions
        self.fails: set[str] = set()
        self.uncapturable: set[str] = set()
        self.fallen: dict[str, tuple[str, ...]] = {}
        self.loads = True
        self.sessions: list[HostSession] = []

    def get_available_providers(self) -> list[str]:
        return [PROVIDER, "CPUExecutionProvider"]

    def preload_dlls(self) -> None:
        print("libcudnn.so.9 is not there")  # noqa: T201

    def InferenceSession(self, *given: Any, **named: Any) -> HostSession:
        self.sessions.append(HostSession(self, *given, **named))
        return self.sessions[-1]

    class RunOptions(dict[str, str]):
        """Entries of a run."""

        def add_run_config_entry(self, name: str, value: str) -> None:
            self[name] = value


class HostSession:
    """One session; ``captured`` are the annotations of its CUDA graphs."""

    def __init__(
        self, library: HostOnnxRuntime, model: bytes, options: Any, providers: list[Any], enable_fallback: int
    ) -> None:
        ((name, settings),) = providers
        assert (name, enable_fallback, settings["arena_extend_strategy"]) == (PROVIDER, 0, "kSameAsRequested")
        self.library, self.settings = library, settings
        assert options.intra_op_num_threads == 1
        self.stream = library.device.streams[int(settings["user_compute_stream"])]
        self.session = real.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.name = self.session.get_modelmeta().graph_name
        if settings["enable_cuda_graph"] == "1" and library.fallen.get(self.name):
            raise real.capi.onnxruntime_pybind11_state.Fail(
                "This session cannot use the graph capture feature as requested by the user as all compute graph nodes "
                "have not been partitioned to the CUDAExecutionProvider"
            )
        self.thread, self.captured = threading.get_ident(), set[str]()
        self.get_inputs, self.get_outputs = self.session.get_inputs, self.session.get_outputs

    def get_providers(self) -> list[str]:
        return [PROVIDER, "CPUExecutionProvider"] if self.library.loads else ["CPUExecutionProvider"]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        nodes = [SimpleNamespace(op_type=kind, name=f"{kind}_1") for kind in self.library.fallen.get(self.name, ())]
        parts = [SimpleNamespace(ep_name=PROVIDER, get_nodes=lambda: [SimpleNamespace(op_type="Gemm", name="g")])]
        return parts + ([SimpleNamespace(ep_name="CPUExecutionProvider", get_nodes=lambda: nodes)] if nodes else [])

    def io_binding(self) -> HostBinding:
        return HostBinding(self)

    def run_with_iobinding(self, binding: HostBinding, options: dict[str, str]) -> None:
        assert threading.get_ident() == self.thread, "handles and captured graphs belong to another thread"
        assert options["disable_synchronize_execution_providers"] == "1"
        capture = options["gpu_graph_id"]
        state = real.capi.onnxruntime_pybind11_state
        if self.name in self.library.fails:
            raise state.Fail(f"{self.name} fails")
        kind = "session"
        if self.settings["enable_cuda_graph"] == "1" and int(capture) >= 0:
            if self.name in self.library.uncapturable:
                raise state.Fail("This session cannot use the graph capture feature")
            kind = "replay" if capture in self.captured else "warm-up"
            self.captured.add(capture)
        self.stream.ask((kind, self.name), lambda: self.session.run_with_iobinding(binding.binding))


class HostBinding:
    """Addresses of the device, checked."""

    def __init__(self, session: HostSession) -> None:
        self.device, self.binding = session.library.device, session.session.io_binding()

    def bind_input(self, name: str, place: str, ordinal: int, kind: Any, shape: Any, address: int) -> None:
        self._check(place, ordinal, address)
        self.binding.bind_input(name, "cpu", 0, kind, shape, address)

    def bind_output(self, name: str, place: str, ordinal: int, kind: Any, shape: Any, address: int) -> None:
        self._check(place, ordinal, address)
        self.binding.bind_output(name, "cpu", 0, kind, shape, address)

    def _check(self, place: str, ordinal: int, address: int) -> None:
        assert (place, ordinal) == ("cuda", self.device.ordinal)
        self.device.check("device", address, 1)
