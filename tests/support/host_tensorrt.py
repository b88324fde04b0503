"""TensorRT's runtime over host memory: engines that are lifted ONNX graphs, executed by ONNX Runtime on the CPU.

For the double of a device in ``host_cuda``. It insists on what the library asks of its caller, and says no where the
library would: shapes and aligned addresses for every tensor, memory for activations where it takes none of its own, a
first run before a capture, one capture per context, and a current CUDA context for all of it.
"""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import onnxruntime as ort
from support import bundles
from support.host_cuda import HostDevice

from nextscale.plan.chain import next_scale_plan
from nextscale.plan.methods.fastvar import FastVAR
from nextscale.plan.types import Model, Plan, Sampling
from nextscale.runtime.backends.onnxruntime import TYPES
from nextscale.runtime.backends.tensorrt.library import Library
from nextscale.runtime.backends.tensorrt.lift import lift_weights
from nextscale.runtime.bundle import Bundle, hash_file
from nextscale.runtime.targets.manifest import FILE_NAME, Engine, Settings, dumps, make_target
from nextscale.runtime.targets.places import beside, folder_name

VERSION = "11.4.0"
DataType = IntEnum("DataType", ["FLOAT", "HALF", "BF16", "INT32", "INT64", "INT8", "UINT8"])
TensorIOMode = IntEnum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
Strategy = IntEnum("Strategy", ["STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"], start=0)
_DTYPES = {"tensor(float)": DataType.FLOAT, "tensor(int32)": DataType.INT32, "tensor(float16)": DataType.HALF}
_NAMES = {kind: name for name, (kind, _) in TYPES.items()}


class Severity(IntEnum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ILogger:
    """What a library's logger derives from."""

    Severity = Severity


class HostTensorRT:
    """The library: ``load`` is given to a backend as its ``load_library``. ``scratch`` are bytes by graph.

    A graph in ``refuses`` is not enqueued, one in ``refuses_capture`` not while something is captured; one in
    ``uncapturable`` cannot be captured, as the RTX flavour may say.
    """

    def __init__(self, device: HostDevice, scratch: dict[str, int] | None = None, version: str = VERSION) -> None:
        self.device, self.scratch, self.version = device, scratch or {}, version
        self.refuses: set[str] = set()
        self.refuses_capture: set[str] = set()
        self.uncapturable: set[str] = set()
        self.contexts: list[Context] = []
        self.deserialized: list[str] = []
        self.batch_sizes: tuple[int, ...] = (1,)
        self.guidance_rows = 1

    def load(self, flavor: str) -> Library:
        module: Any = SimpleNamespace(
            __version__=self.version,
            ILogger=ILogger,
            DataType=DataType,
            ComputeCapability=SimpleNamespace(__members__={"SM75": 75, "SM86": 86, "SM89": 89}),
            TensorIOMode=TensorIOMode,
            ExecutionContextAllocationStrategy=Strategy,
            CudaGraphStrategy=SimpleNamespace(DISABLED="disabled"),
            DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager"),
            Runtime=lambda _: self,
        )
        return Library(flavor, module)

    def deserialize_cuda_engine(self, content: bytes) -> HostEngine | None:
        assert self.device.depth, "no CUDA context is current"
        try:
            model = onnx.load_from_string(content)
        except Exception:  # noqa: BLE001
            return None
        self.deserialized.append(model.graph.name)
        return HostEngine(self, model)


class HostEngine:
    """An ONNX graph whose weights are inputs."""

    def __init__(self, library: HostTensorRT, model: onnx.ModelProto) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.library, self.name = library, model.graph.name
        self.session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self.inputs = {arg.name: arg for arg in self.session.get_inputs()}
        self.tensors = {**self.inputs, **{arg.name: arg for arg in self.session.get_outputs()}}
        self.num_io_tensors, self.num_optimization_profiles = len(self.tensors), len(library.batch_sizes)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return _DTYPES[self.tensors[name].type]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(-1 if isinstance(d, str) else d for d in self.tensors[name].shape)

    def get_device_memory_size_for_profile_v2(self, index: int) -> int:
        return self.library.scratch.get(self.name, 0) * self.library.batch_sizes[index]

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig()

    def create_execution_context(self, how: Any) -> Context:
        assert self.library.device.depth, "no CUDA context is current"
        strategy = how.strategy if isinstance(how, RuntimeConfig) else how
        assert strategy == Strategy.USER_MANAGED, "a context that takes memory of its own"
        if isinstance(how, RuntimeConfig):
            assert (how.cuda_graph_strategy, how.dynamic_shapes_kernel_specialization_strategy) == ("disabled", "eager")
            assert how.cache is not None
            how.cache.content += self.name.encode()
        self.library.contexts.append(Context(self))
        return self.library.contexts[-1]


class RuntimeConfig:
    """What a context of the RTX flavour is made with."""

    strategy: Any = Strategy.STATIC
    cuda_graph_strategy = dynamic_shapes_kernel_specialization_strategy = ""
    cache: RuntimeCache | None = None

    def set_execution_context_allocation_strategy(self, strategy: Strategy) -> None:
        self.strategy = strategy

    def get_execution_context_allocation_strategy(self) -> Strategy:
        return self.strategy  # type: ignore[no-any-return]

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True


class RuntimeCache:
    """Compiled kernels: here the names of the graphs that they were compiled for."""

    content = b""

    def deserialize(self, data: bytes) -> bool:
        if not data.startswith(b"begin"):
            return False
        self.content = data
        return True

    def serialize(self) -> bytes:
        return self.content


class Context:
    """One execution context; ``runs`` counts what was enqueued, ``captures`` the CUDA graphs that hold it."""

    def __init__(self, engine: HostEngine) -> None:
        self.engine, self.device = engine, engine.library.device
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.memory = (0, 0)
        self.profile = 0
        self.runs = self.captures = 0

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return stream in self.device.streams and index < self.engine.num_optimization_profiles

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        declared = self.engine.get_tensor_shape(name)
        self.shapes[name] = shape
        return len(shape) == len(declared) and all(b in (-1, a) for a, b in zip(shape, declared, strict=True))

    def set_device_memory(self, address: int, size: int) -> None:
        self.device.check("device", address, size)
        self.memory = (address, size)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name in self.engine.tensors and address % 256 == 0

    def infer_shapes(self) -> list[str]:
        open_ends = {n for n in self.engine.inputs if -1 in self.engine.get_tensor_shape(n) and n not in self.shapes}
        return sorted(open_ends | (set(self.engine.tensors) - set(self.addresses)))

    def is_stream_capturable(self, stream: int) -> bool:
        return self.engine.name not in self.engine.library.uncapturable

    def execute_async_v3(self, stream: int) -> bool:
        assert self.device.depth, "no CUDA context is current"
        on, library = self.device.streams[stream], self.engine.library
        needed = self.engine.get_device_memory_size_for_profile_v2(self.profile)
        if self.engine.name in library.refuses or self.infer_shapes() or self.memory[1] < needed:
            return False
        if on.recording is not None:
            if self.engine.name in library.refuses_capture:
                return False
            assert self.runs, f"{self.engine.name} is captured before its first run"
            self.captures += 1
            assert self.captures == 1, f"one context of {self.engine.name} is in two CUDA graphs"
        self.runs += 1
        addresses = dict(self.addresses)
        on.ask(("enqueue", self.engine.name), lambda: self.run(addresses))
        return True

    def run(self, addresses: dict[str, int]) -> None:
        """When the stream comes to it, with the addresses that it was enqueued with."""
        binding = self.engine.session.io_binding()
        sizes = self.symbols()
        for name, arg in self.engine.tensors.items():
            shape = self.shapes.get(name) or tuple(sizes.get(d, d) for d in arg.shape)
            dtype, bind = _NAMES[arg.type], binding.bind_input if name in self.engine.inputs else binding.bind_output
            self.device.check("device", addresses[name], 1)
            bind(name, "cpu", 0, TYPES[dtype][1], shape, addresses[name])
        address, size = self.memory
        if size:
            self.device.blocks[address].raw[:size] = 0xCD  # activations go through it
        self.engine.session.run_with_iobinding(binding)

    def symbols(self) -> dict[str, int]:
        """What ``images`` and ``rows`` are."""
        declared = ((self.engine.inputs[name].shape, shape) for name, shape in self.shapes.items())
        found = {d: size for names, sizes in declared for d, size in zip(names, sizes, strict=True) if type(d) is str}
        return {"rows": found["images"] * self.engine.library.guidance_rows, **found}


def write_target(
    bundle: Bundle, library: HostTensorRT, flavor: str = "tensorrt", batch_sizes: tuple[int, ...] = (1,), **changed: Any
) -> Path:
    """A target folder beside the bundle whose engines are lifted graphs; ``changed`` are other settings."""
    library.batch_sizes, library.guidance_rows = batch_sizes, bundle.manifest.guidance_rows
    sm, precision = library.device.sm, bundle.manifest.precision
    folder = beside(bundle) / folder_name(flavor, sm, precision)
    folder.mkdir(parents=True)
    settings = {
        "flavor": flavor,
        "library_version": library.version,
        "parser_version": None,
        "target": sm,
        "precision": precision,
        "batch_sizes": batch_sizes,
        "weights": "inputs",
        "restore": "function",
        "plugin": None,
        "kernel_sha256": None,
        "weights_sha256": None,
        "options": {},
        **changed,
    }
    engines = []
    for graph in bundle.manifest.graphs:
        path = folder / f"{graph.name}.engine"
        source = bundle.path(graph.file)
        model = onnx.load(source) if settings["weights"] == "embedded" else lift_weights(source)
        path.write_bytes(model.SerializeToString())
        sha256 = bundle.manifest.files[graph.file].sha256
        engines.append(Engine(graph.name, path.name, sha256, hash_file(path), path.stat().st_size, 0.1, 3, 0, None))
    (folder / FILE_NAME).write_text(dumps(make_target(Settings(**settings), bundle.manifest.name, tuple(engines), {})))
    return folder


def aligned_plan() -> Plan:
    """The tiny plan, wide enough that a tape's row is the 256 bytes that TensorRT's addresses are multiples of."""
    model = Model("var", 2, 32, 2, 16, 128, 11, 4, classes=3)
    defaults = (("guidance_scale", 1.5), ("top_p", 0.9), ("temperature", 1.0))
    sampling = Sampling(0, smooth=True)
    plan = next_scale_plan("tiny", model, bundles.TOKENIZER, bundles.SCHEDULE, sampling, defaults=defaults)
    return FastVAR({-1: 0.5}, cache_scale=2)(plan)
