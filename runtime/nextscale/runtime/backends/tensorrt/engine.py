"""From one graph of a bundle to one serialised engine: parse, check what was parsed, build.

Runs in the builder's own process; :mod:`nextscale.runtime.backends.tensorrt.build` decides what is built.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nextscale.plugins.signature import DOMAIN, NAME
from nextscale.runtime.backends.tensorrt.attention import NAME as ATTENTION
from nextscale.runtime.backends.tensorrt.attention import attention_nodes, expand_attention
from nextscale.runtime.backends.tensorrt.library import DTYPES, Library, log
from nextscale.runtime.backends.tensorrt.lift import external_weights, fix_lengths, lift_weights, read_graph
from nextscale.runtime.backends.tensorrt.progress import Tell, make_monitor
from nextscale.runtime.errors import BackendError
from nextscale.runtime.manifest import Graph, Tensor
from nextscale.runtime.targets.manifest import Settings


@dataclass(frozen=True)
class Job:
    """One engine to build: of ``graph``, whose file is ``source``, into the file ``out``. ``rows`` are per picture.

    The graph is for texts of one length.
    """

    graph: Graph
    rows: int
    source: str
    out: str
    timing_cache: str | None


@dataclass(frozen=True)
class Built:
    """What became of a job. ``scratch`` is by batch size."""

    seconds: float
    layers: int
    plugin_layers: int
    scratch: Mapping[str, int] | None


class Stopped(Exception):
    """The build was told to stop, and did."""


def build_engine(library: Library, settings: Settings, job: Job, tell: Tell, stopped: Callable[[], bool]) -> Built:
    """Writes ``job.out``. Raises :class:`BackendError`, :class:`Stopped`, or OSError where the disk is full."""
    start = time.monotonic()
    trt, source = library.trt, Path(job.source)
    builder = trt.Builder(library.logger)
    network = library.network(builder)
    parser = trt.OnnxParser(network, library.logger)
    embedded = settings.weights == "embedded"
    model = read_graph(source) if embedded else lift_weights(source)
    fix_lengths(model, (*job.graph.inputs, *job.graph.outputs))  # of a text: attention is refused along a symbol
    weights = {} if embedded else dict.fromkeys(external_weights(read_graph(source)))
    if attention_nodes(model) and not parser.supports_operator(ATTENTION):
        log.info("%s: this parser has no %s, it gets the plain form", job.graph.name, ATTENTION)
        expand_attention(model)
    wanted_plugins = sum((node.domain, node.op_type) == (DOMAIN, NAME) for node in model.graph.node)
    parsed = parser.parse(model.SerializeToString(), str(source))
    _check_parsed(job, parser, network, parsed, [*weights])
    del model
    plugins = library.plugin_layers(network)
    _check_plugins(job, plugins, wanted_plugins if settings.restore == "plugin" else 0)
    config = _configured(library, settings, job, builder, network)
    monitor = make_monitor(library, tell, stopped)
    config.progress_monitor = monitor
    layers = network.num_layers
    engine = builder.build_serialized_network(network, config)
    if stopped():
        raise Stopped
    if engine is None:
        raise BackendError(f"{library.flavor} {library.version} cannot build {job.graph.name} for {settings.target}")
    Path(job.out).write_bytes(engine)
    if job.timing_cache:
        _keep(Path(job.timing_cache), library.timing_cache(config))
    scratch = _scratch(library, settings, engine, job.graph.name)
    return Built(round(time.monotonic() - start, 3), layers, plugins, scratch)


def _configured(library: Library, settings: Settings, job: Job, builder: Any, network: Any) -> Any:
    """Options, target, timing cache, and one profile per batch size at which every length is fixed."""
    trt, config = library.trt, builder.create_builder_config()
    config.builder_optimization_level = int(settings.options["optimization_level"])
    (config.set_flag if settings.options["tf32"] == "on" else config.clear_flag)(trt.BuilderFlag.TF32)
    if settings.options.get("user_allocation") == "required":
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    library.set_target(config, settings.target)
    if job.timing_cache:
        path = Path(job.timing_cache)
        library.set_timing_cache(config, path.read_bytes() if path.is_file() else b"")
    for images in settings.batch_sizes:
        profile = builder.create_optimization_profile()
        for tensor in job.graph.inputs:
            if any(isinstance(d, str) for d in tensor.shape):
                shape = tensor.concrete(images, job.rows)
                profile.set_shape(tensor.name, shape, shape, shape)
        if config.add_optimization_profile(profile) < 0:
            raise BackendError(f"{library.flavor} {library.version} refuses the profile of batch {images}")
    return config


def _check_parsed(job: Job, parser: Any, network: Any, parsed: bool, weights: list[str]) -> None:
    """A parser may return success for garbage: require layers, and the manifest's names, types and lengths."""
    if parser.num_errors or not parsed:
        said = parser.get_error(0).desc().strip().partition("\n")[0][:300] if parser.num_errors else ""
        raise BackendError(f"the parser refuses {Path(job.source).name}: {said or 'no reason given'}")
    inputs = {t.name: t for t in map(network.get_input, range(network.num_inputs))}
    outputs = {t.name: t for t in map(network.get_output, range(network.num_outputs))}
    odd = {*weights} - {*inputs}
    for wanted, found in ((job.graph.inputs, {*inputs} - {*weights}), (job.graph.outputs, {*outputs})):
        odd |= {tensor.name for tensor in wanted} ^ found
    given = [(tensor, inputs.get(tensor.name)) for tensor in job.graph.inputs]
    given += [(tensor, outputs.get(tensor.name)) for tensor in job.graph.outputs]
    odd |= {tensor.name for tensor, found in given if found is not None and not _alike(tensor, found)}
    if odd or not network.num_layers:
        raise BackendError(
            f"{Path(job.source).name} was parsed to {network.num_layers} layers that are not the manifest's graph: "
            f"{', '.join(sorted(odd))[:200] or 'no layers'}"
        )


def _alike(tensor: Tensor, found: Any) -> bool:
    """The same type, and no axis of another length; what is symbolic in the manifest may be known to the parser."""
    shape = tuple(found.shape)  # -1 is not known yet
    fixed = zip(tensor.shape, shape, strict=False)
    lengths = all(isinstance(d, str) or n in (d, -1) for d, n in fixed)
    return bool(found.dtype.name == DTYPES[tensor.dtype] and len(shape) == len(tensor.shape) and lengths)


def _check_plugins(job: Job, found: int, wanted: int) -> None:
    if found != wanted:
        raise BackendError(
            f"{job.graph.name} was parsed with {found} plugin layers and should have {wanted}: "
            f"{'the plugin is not found by the parser' if found < wanted else 'a plugin was taken unasked'}"
        )


def _scratch(library: Library, settings: Settings, engine: Any, name: str) -> Mapping[str, int] | None:
    """What a context needs, where the GPU that was built for is here to tell."""
    if library.targets is not None:
        return None
    runtime = library.trt.Runtime(library.logger)
    sizes = library.scratch(library.deserialize(runtime, engine, name))
    return {str(images): size for images, size in zip(settings.batch_sizes, sizes, strict=True)}


def _keep(path: Path, content: bytes) -> None:
    """Replaces the timing cache whole; it is a help and no result, so a full disk does not fail the build."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        log.info("the timing cache %s is not kept: %s", path, error.strerror)
