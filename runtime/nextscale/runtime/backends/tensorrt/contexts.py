"""Execution contexts without memory of their own, and the cache of what TensorRT for RTX compiles for a card."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

from nextscale.runtime.backends.checks import accepted
from nextscale.runtime.backends.tensorrt.library import Library
from nextscale.runtime.targets import OpenTarget
from nextscale.runtime.targets.places import user_cache

log = logging.getLogger("nextscale.tensorrt")


class ContextMaker:
    """Makes contexts whose scratch is the caller's.

    TensorRT for RTX compiles kernels for the card when a context is made; all contexts share one cache of them, which
    is kept in the user's cache folder, under a digest of the engines, for the next process.
    """

    def __init__(self, library: Library, opened: OpenTarget) -> None:
        self._trt = library.trt
        self._strategy = library.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._compiles = library.flavor == "tensorrt-rtx"
        self._path = _cache_path(library, opened)
        self._cache: Any = None
        self._kept, self._tried = 0, False

    def make(self, engine: Any, graph: str) -> Any:
        """A context of ``engine``; no device memory for its activations is taken."""
        what = f"make a context of {graph}"
        if not self._compiles:
            return accepted(what, engine.create_execution_context(self._strategy))
        config = accepted(what, engine.create_runtime_config())
        config.set_execution_context_allocation_strategy(self._strategy)
        taken = config.get_execution_context_allocation_strategy() == self._strategy
        accepted(f"let {graph} work in its caller's memory", taken)
        # Graphs are captured by us, so not inside; kernels are compiled now, not exchanged while a captured graph runs.
        strategy = config.cuda_graph_strategy = self._trt.CudaGraphStrategy.DISABLED
        accepted(f"leave capture of {graph} to its caller", config.cuda_graph_strategy == strategy)
        eager = self._trt.DynamicShapesKernelSpecializationStrategy.EAGER
        config.dynamic_shapes_kernel_specialization_strategy = eager
        accepted(f"compile {graph} now", config.dynamic_shapes_kernel_specialization_strategy == eager)
        if self._cache is None:
            self._cache = accepted(what, config.create_runtime_cache())
            self._read()
        accepted(f"share compiled kernels with {graph}", config.set_runtime_cache(self._cache))
        return accepted(what, engine.create_execution_context(config))

    def keep_once(self) -> None:
        """Write what was compiled, the first time that this is called: by then every kernel has run."""
        if not self._tried:
            self.keep()

    def keep(self) -> None:
        """Write what was compiled since the last time; a folder that cannot be written is no error."""
        self._tried = True
        content = self._cache.serialize() if self._cache is not None else None
        data = b"" if content is None else bytes(content)
        if len(data) <= self._kept:
            return
        part = self._path.with_name(f".{self._path.name}.{os.getpid()}.part")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(data)
            part.replace(self._path)
            self._kept = len(data)
        except OSError as error:
            log.info("compiled kernels are not kept for the next start: %s", error)
            part.unlink(missing_ok=True)

    def _read(self) -> None:
        """What an earlier process compiled; the library itself refuses what is not for this card and version."""
        try:
            data = self._path.read_bytes()
        except OSError:
            return
        if self._cache.deserialize(data):
            self._kept = len(data)
        else:
            log.info("%s is not for this machine: kernels are compiled again", self._path)


def _cache_path(library: Library, opened: OpenTarget) -> Path:
    target = opened.target
    parts = "".join(engine.sha256 for engine in target.engines)
    digest = hashlib.sha256(f"{library.version} {parts}".encode()).hexdigest()[:24]
    return user_cache() / target.flavor / f"{digest}.kernels"
