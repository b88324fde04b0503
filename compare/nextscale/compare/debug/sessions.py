"""ONNX Runtime sessions on a bundle's graphs, or on a watched copy of one that never touches the bundle's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nextscale.plan.errors import EnvironmentProblem
from nextscale.runtime.backends.arena import find_weights
from nextscale.runtime.backends.onnxruntime import errors_of, import_onnxruntime
from nextscale.runtime.backends.onnxruntime_cuda import preload
from nextscale.runtime.backends.onnxruntime_slot import PROVIDER, check_nodes, provider_options, why_not
from nextscale.runtime.bundle import Bundle


def open_session(path: Path, model: bytes | None = None, optimise: bool = True) -> Any:
    """On the CPU, the graph at ``path``, or ``model``, which stands for it and finds its weights in the same folder.

    Raises :class:`~nextscale.plan.errors.EnvironmentProblem` where it does not load.
    """
    ort = import_onnxruntime()
    options = _options(ort)
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return _load(ort, path.name, str(path) if model is None else model, options, "CPUExecutionProvider", {})


def open_cuda_session(bundle: Bundle, name: str, model: bytes, sizes: Mapping[str, int], strict: bool) -> Any:
    """On the GPU, a graph as the runtime loads it: weights are inputs, lengths are fixed; it takes and gives arrays.

    ``strict`` refuses, as the runtime does, nodes that would run on the CPU. Raises
    :class:`~nextscale.plan.errors.EnvironmentProblem`.
    """
    ort = import_onnxruntime()
    if PROVIDER not in ort.get_available_providers():
        raise EnvironmentProblem(f"this onnxruntime has no {PROVIDER}: pip install 'nextscale[cuda]'")
    preload(ort)
    options = _options(ort)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    for symbol, size in sizes.items():
        options.add_free_dimension_override_by_name(symbol, size)
    settings = {key: value for key, value in provider_options(0, 0, False).items() if key != "user_compute_stream"}
    session = _load(ort, name, model, options, PROVIDER, settings)
    if session.get_providers()[0] != PROVIDER:
        raise EnvironmentProblem(f"onnxruntime's {PROVIDER} does not load ({why_not(ort)}): see `nextscale doctor`")
    if strict:
        check_nodes(name, session)
    return Weighted(session, bundle)


class Weighted:
    """A session whose weights are inputs; to its caller, one that has them."""

    def __init__(self, session: Any, bundle: Bundle) -> None:
        self._session = session
        names = [arg.name for arg in session.get_inputs() if arg.name in bundle.manifest.weights]
        self._weights = {
            name: np.memmap(stored.path, stored.dtype, "r", stored.start, stored.shape)
            for name, stored in find_weights(bundle, names).items()
        }

    def get_inputs(self) -> list[Any]:
        """The graph's own."""
        return [arg for arg in self._session.get_inputs() if arg.name not in self._weights]

    def get_outputs(self) -> list[Any]:
        """All of them."""
        found: list[Any] = self._session.get_outputs()
        return found

    def run(self, names: Sequence[str] | None, feed: Mapping[str, Any]) -> Any:
        """As a session does."""
        return self._session.run(names, {**self._weights, **feed})


def _options(ort: Any) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return options


def _load(ort: Any, name: str, model: str | bytes, options: Any, provider: str, settings: dict[str, str]) -> Any:
    try:
        return ort.InferenceSession(model, options, providers=[(provider, settings)], enable_fallback=0)
    except errors_of(ort) as error:
        said = str(error).strip().splitlines()[0][:300]
        raise EnvironmentProblem(f"onnxruntime cannot load {name}: {said}") from error
