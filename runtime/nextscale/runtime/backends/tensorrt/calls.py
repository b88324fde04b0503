"""An engine as a call: with a context of its own and its addresses for good, or with a caller's for each run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nextscale.runtime.backends import cuda
from nextscale.runtime.backends.checks import accepted
from nextscale.runtime.errors import BackendError


class EngineCall:
    """A context, ready to be enqueued. ``captured`` says that a CUDA graph was made of it, or tried."""

    def __init__(self, device: cuda.Device, graph: str, stream: int, make: Callable[[], Any]) -> None:
        self.graph, self.captured = graph, False
        self._device, self._stream = device, stream
        self._make: Callable[[], Any] | None = make
        self._context = make()

    def execute(self) -> None:
        """Enqueue it; a refusal raises, or a captured graph would replay what is stale."""
        enqueue(self._device, self.graph, self._context, self._stream)

    def uncaptured(self) -> EngineCall:
        """This call, or one like it with a context of its own where this one's is part of a CUDA graph already."""
        if not self.captured or self._make is None:
            return self
        return EngineCall(self._device, self.graph, self._stream, self._make)

    def capturable(self) -> bool:
        """What TensorRT says; only TensorRT for RTX knows."""
        ask = getattr(self._context, "is_stream_capturable", None)
        with self._device.current():
            return ask is None or bool(ask(self._stream))

    def drop(self) -> None:
        """Let the context go."""
        self._context = self._make = None


class LentCall:
    """A context that others use too, with addresses of a caller's own: set before each run, and never captured."""

    def __init__(
        self, device: cuda.Device, graph: str, stream: int, context: Any, addresses: Mapping[str, int]
    ) -> None:
        self.graph, self._addresses = graph, dict(addresses)
        self._device, self._stream, self._context = device, stream, context

    def execute(self) -> None:
        """Set the addresses and enqueue it."""
        if self._context is not None:
            for name, address in self._addresses.items():
                accepted(f"take an address for {name} of {self.graph}", self._context.set_tensor_address(name, address))
        enqueue(self._device, self.graph, self._context, self._stream)

    def drop(self) -> None:
        """Let the context go."""
        self._context = None


def enqueue(device: cuda.Device, graph: str, context: Any, stream: int) -> None:
    """Ask for a run. Raises :class:`~nextscale.runtime.errors.BackendError` where it is refused."""
    if context is None:
        raise BackendError(f"{graph} of a closed pipeline was asked for")
    with device.current():
        accepted(f"run {graph}", context.execute_async_v3(stream))
