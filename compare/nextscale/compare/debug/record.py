"""What a graph reads while a real picture is made: the chain up to it, run by ONNX Runtime on plain arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextscale.compare.debug.sessions import open_session
from nextscale.plan.errors import InputError
from nextscale.runtime.buffers import for_text
from nextscale.runtime.bundle import Bundle
from nextscale.runtime.manifest import Graph, Manifest, Tensor
from nextscale.runtime.noise import fill
from nextscale.runtime.request import Request

Arrays = dict[str, NDArray[Any]]


def find_graph(manifest: Manifest, name: str) -> Graph:
    """The graph of that name; raises :class:`~nextscale.plan.errors.InputError` naming those that there are."""
    names = [graph.name for graph in manifest.graphs]
    if name not in names:
        raise InputError(f"{manifest.name} has no graph {name!r}; it has {', '.join(names)}")
    return manifest.graph(name)


def record(bundle: Bundle, graph: Graph, request: Request) -> Arrays:
    """The inputs of ``graph`` by name.

    Its own tokens are forced to those that it samples here: so one tied draw cannot hide what comes after it, and both
    sides of a comparison read the same. Raises :class:`InputError` for a precision that no CPU computes.
    """
    if bundle.manifest.precision == "bf16":
        raise InputError("inputs are recorded on the CPU, which does not compute bf16: debug the float32 export of it")
    return _Recorder(bundle, request).inputs(graph)


class _Recorder:
    """A bundle's buffers as arrays, for one pass."""

    def __init__(self, bundle: Bundle, request: Request) -> None:
        self._bundle, self._request, self._manifest = bundle, request, bundle.manifest
        self._rows, self._buffers = bundle.manifest.guidance_rows, dict[str, NDArray[np.uint8]]()
        self._graphs = {g.name: g for g in for_text(bundle.manifest.graphs, bundle.manifest.text_tokens)}
        for tensor in (t for g in self._graphs.values() for t in (*g.inputs, *g.outputs)):
            end = sum(tensor.span(len(request), self._rows))
            if end > len(self._buffers.get(tensor.buffer, ())):
                self._buffers[tensor.buffer] = np.zeros(end, np.uint8)

    def inputs(self, wanted: Graph) -> Arrays:
        """Runs what comes before, then the graph itself for its tokens."""
        for graph in (self._graphs[name] for name in ("begin", *(g.name for g in self._manifest.steps), "decode")):
            values = {tensor.name: self._input(tensor, graph) for tensor in graph.inputs}
            if graph.name == wanted.name and "tokens.in" not in values:
                return values
            session = open_session(self._bundle.path(graph.file))
            made = session.run([tensor.name for tensor in graph.outputs], values)
            if graph.name == wanted.name:
                return values | {"tokens.in": made[[t.name for t in graph.outputs].index("tokens.out")]}
            for tensor, array in zip(graph.outputs, made, strict=True):
                self._view(tensor)[...] = array
        raise InputError(f"{wanted.name} is not part of the chain")

    def _view(self, tensor: Tensor) -> NDArray[Any]:
        start, size = tensor.span(len(self._request), self._rows)
        shape = tensor.concrete(len(self._request), self._rows)
        part = self._buffers[tensor.buffer][start : start + size]
        return part.view(tensor.dtype).reshape(shape)

    def _input(self, tensor: Tensor, graph: Graph) -> NDArray[Any]:
        """A copy of what lies in the buffer, or what the caller owes."""
        request, array = self._request, self._view(tensor).copy()
        kind, _, stream = (tensor.source or "").partition(".")
        order = graph.step or 0
        if kind == "uniforms":
            return fill(array, [(request.seed, image) for image in request.images], order, int(stream))
        if kind:
            settings = request.subjects.given | {"top_p": request.top_p, "temperature": request.temperature}
            array[...] = settings.get(kind, -1)  # -1: sample this token
        if kind == "guidance":
            array[...] = request.guidance(self._manifest.plan, self._manifest.plan.steps[order])
        return array
