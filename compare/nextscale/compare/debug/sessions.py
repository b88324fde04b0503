"""ONNX Runtime sessions on a bundle's graphs, or on a watched copy of one that never touches the bundle's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nextscale.plan.errors import EnvironmentProblem
from nextscale.runtime.backends.onnxruntime import errors_of, import_onnxruntime

PROVIDERS: dict[str, tuple[str, dict[str, str]]] = {
    "cpu": ("CPUExecutionProvider", {}),
    "cuda": ("CUDAExecutionProvider", {"use_tf32": "0"}),  # float32 is float32
}


def open_session(path: Path, model: bytes | None = None, optimise: bool = True, device: str = "cpu") -> Any:
    """The graph at ``path``, or ``model``, which stands for it and finds its weights in the same folder.

    Raises :class:`~nextscale.plan.errors.EnvironmentProblem` where it does not load, or would fall back to the CPU.
    """
    ort = import_onnxruntime()
    provider, settings = PROVIDERS[device]
    if provider not in ort.get_available_providers():
        raise EnvironmentProblem(f"this onnxruntime has no {provider}: pip install 'nextscale[cuda]'")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(str(path) if model is None else model, options, providers=[(provider, settings)])
    except errors_of(ort) as error:
        raise EnvironmentProblem(
            f"onnxruntime cannot load {path.name}: {str(error).strip().splitlines()[0][:300]}"
        ) from error
    if session.get_providers()[0] != provider:
        raise EnvironmentProblem(f"onnxruntime fell back from {provider} to the CPU: see `nextscale doctor`")
    return session
