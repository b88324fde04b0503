"""The two sides of a look inside a graph, as Polygraphy's runners: what executes it, every tensor of it an output."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextscale.compare.debug.sessions import open_cuda_session, open_session
from nextscale.compare.sides import same_numbers
from nextscale.plan.errors import EnvironmentProblem, InputError
from nextscale.plugins.signature import DOMAIN, NAME
from nextscale.plugins.tensorrt_plugin import register
from nextscale.runtime.backends.cuda import open_device
from nextscale.runtime.backends.nvrtc import compile_ptx
from nextscale.runtime.backends.onnxruntime_graphs import cuda_graph
from nextscale.runtime.backends.tensorrt.attention import NAME as ATTENTION
from nextscale.runtime.backends.tensorrt.attention import attention_nodes, expand_attention
from nextscale.runtime.backends.tensorrt.library import load
from nextscale.runtime.backends.tensorrt.lift import read_graph
from nextscale.runtime.bundle import Bundle
from nextscale.runtime.manifest import IMAGES, ROWS, Graph
from nextscale.runtime.targets.command import default_restore

if TYPE_CHECKING:
    import onnx

EAGER = "eager"
SESSIONS = {"onnxruntime": True, "onnxruntime-unoptimized": False}  # on the CPU; whether optimised
CUDA = "onnxruntime-cuda"
FLAVORS = ("tensorrt", "tensorrt-rtx")
NAMES = (*SESSIONS, CUDA, EAGER, *FLAVORS)


@dataclass(frozen=True)
class Task:
    """One side: a graph of a bundle on a backend; ``checkpoint`` (model, tokenizer) is what ``eager`` runs."""

    backend: str
    bundle: Bundle
    graph: Graph
    checkpoint: tuple[Path, Path] | None = None

    @property
    def path(self) -> Path:
        """The graph's file."""
        return self.bundle.path(self.graph.file)


def check(tasks: tuple[Task, Task]) -> None:
    """Raises a :class:`~nextscale.plan.errors.NextscaleError` for what cannot be run, before anything is.

    To be called before Polygraphy is imported: that is when it decides which flavour of TensorRT it takes.
    """
    for task in tasks:
        if task.backend not in NAMES:
            raise InputError(f"backend {task.backend!r} is none of {', '.join(NAMES)}")
        if task.backend == EAGER and task.checkpoint is None:
            raise InputError("eager needs the checkpoint that the bundle was made of: give --model and --vae")
    if {task.backend for task in tasks} >= set(FLAVORS):
        raise InputError("one process has one flavour of TensorRT: compare each with onnxruntime")
    for flavor in {task.backend for task in tasks} & {*FLAVORS}:
        load(flavor)
        open_device()
        if flavor == "tensorrt-rtx":
            os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1"
    one, other = (task.bundle.manifest for task in tasks)
    if one.precision != other.precision or not same_numbers(one.plan, other.plan):
        raise InputError(f"{one.name} and {other.name} have another plan or precision than each other")


def make_runner(task: Task, watched: Sequence[str], feed: Mapping[str, Any]) -> Any:
    """A runner whose outputs are the graph's own and ``watched``. Raises a ``NextscaleError`` when it is activated."""
    if task.backend == EAGER:
        from nextscale.compare.debug.eager_runner import make_eager_runner

        return make_eager_runner(task)
    if task.backend in FLAVORS:
        return _tensorrt(task, watched, feed)
    runner = import_module("polygraphy.backend.onnxrt").OnnxrtRunner
    return runner(lambda: _session(task, watched, feed), name=task.backend)


def _session(task: Task, watched: Sequence[str], feed: Mapping[str, Any]) -> Any:
    """The graph that the runtime would run there, with ``watched`` as outputs.

    What computes lengths may run on the CPU once its result is an output, so then no node is refused for that.
    """
    if task.backend != CUDA:
        return open_session(task.path, with_outputs(task.path, watched).SerializeToString(), SESSIONS[task.backend])
    model = watching(cuda_graph(task.path), watched).SerializeToString()
    axes = [axis for tensor in task.graph.inputs for axis in zip(tensor.shape, feed[tensor.name].shape, strict=True)]
    sizes = {symbol: size for symbol, size in axes if isinstance(symbol, str)}
    sizes[ROWS] = sizes[IMAGES] * task.bundle.manifest.guidance_rows
    return open_cuda_session(task.bundle, task.graph.name, model, sizes, strict=not watched)


def with_outputs(path: Path, names: Sequence[str]) -> onnx.ModelProto:
    """The graph with those tensors as outputs too; its weights stay where they are."""
    return watching(read_graph(path), names)


def watching(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """The model itself, those of the tensors that its nodes make being outputs too."""
    import onnx

    there = {output.name for output in model.graph.output}
    made = {name for node in model.graph.node for name in node.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name in made - there)
    return model


def _tensorrt(task: Task, watched: Sequence[str], feed: Mapping[str, Any]) -> Any:
    """An engine for this GPU, one profile of the recorded shapes; unlike a target's, it has its weights inside."""
    backend = import_module("polygraphy.backend.trt")
    engine = backend.EngineFromBytes(lambda: build_watched(task, watched, feed))
    return backend.TrtRunner(engine, name=task.backend)


def build_watched(task: Task, watched: Sequence[str], feed: Mapping[str, Any], target: str | None = None) -> bytes:
    """The serialised engine; ``target`` is another GPU's than this machine's, where the flavour builds for one.

    ScatterRestore is what `nextscale build` makes of it where nothing is said, the plugin or the function's body.
    The parser takes no output without a type, so tensors become outputs behind it.
    """
    library = load(task.backend)
    builder = library.trt.Builder(library.logger)
    network = library.network(builder)
    plugin = default_restore(task.backend, target or open_device().sm) == "plugin"
    if plugin:
        register(library.trt, compile_ptx)
    parser = library.trt.OnnxParser(network, library.logger)
    model = with_outputs(task.path, ())
    if attention_nodes(model) and not parser.supports_operator(ATTENTION):
        expand_attention(model)
    if not parser.parse(model.SerializeToString(), str(task.path)) or not network.num_layers:
        reason = parser.get_error(0).desc() if parser.num_errors else "no reason given"
        raise EnvironmentProblem(f"{task.backend} does not parse {task.graph.name}: {reason[:300]}")
    restores = sum((node.domain, node.op_type) == (DOMAIN, NAME) for node in model.graph.node)
    if (found := library.plugin_layers(network)) != (restores if plugin else 0):
        raise EnvironmentProblem(
            f"{task.backend} takes the plugin for {found} of the {restores} restores of {task.graph.name}, unlike "
            "`nextscale build`"
        )
    for tensor in (t for i in range(network.num_layers) for t in outputs_of(network.get_layer(i))):
        if tensor.name in watched and not tensor.is_network_output:
            network.mark_output(tensor)
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    if target is not None:
        library.set_target(config, target)
    for tensor in task.graph.inputs:
        if any(isinstance(d, str) for d in tensor.shape):
            profile.set_shape(tensor.name, *[feed[tensor.name].shape] * 3)
    config.add_optimization_profile(profile)
    config.clear_flag(library.trt.BuilderFlag.TF32)  # float32 is float32, as in `nextscale build`
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise EnvironmentProblem(
            f"{task.backend} {library.version} cannot build {task.graph.name} with all its outputs"
        )
    return bytes(engine)


def outputs_of(layer: Any) -> list[Any]:
    """A network layer's tensors."""
    return [layer.get_output(i) for i in range(layer.num_outputs)]
