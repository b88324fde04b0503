"""The one list of settings that invalidate an engine: what a builder builds again.

Opening a target refuses by what a run depends on: flavour, library version and GPU, precision, the graphs, embedded
weights, and the engines' files themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nextscale.runtime.targets.manifest import Engine, Settings, Target


def _every(engine: Engine) -> bool:
    return True


def _with_plugin(engine: Engine) -> bool:
    return engine.plugin_layers > 0


# Field of Settings -> the engines that another value of it invalidates. Besides these only the graph itself counts.
INVALIDATES: Mapping[str, Callable[[Engine], bool]] = {
    "flavor": _every,
    "library_version": _every,
    "parser_version": _every,
    "target": _every,
    "precision": _every,
    "batch_sizes": _every,
    "weights": _every,
    "weights_sha256": _every,  # None unless the weights are inside
    "restore": _every,
    "plugin": _with_plugin,
    "kernel_sha256": _with_plugin,
    "options": _every,
}
GRAPH = "graph_sha256"

# What follows from another field is not told beside it.
FOLLOWS = {"weights_sha256": "weights", "plugin": "restore", "kernel_sha256": "restore"}


@dataclass(frozen=True)
class Difference:
    """A setting that an engine was built with, and what is wanted of it."""

    field: str
    built: Any
    wanted: Any

    def __str__(self) -> str:
        return f"{self.field} was {_show(self.built)} and is {_show(self.wanted)}"


def differences(built: Settings, wanted: Settings) -> Iterator[Difference]:
    """Every setting that differs, options one by one."""
    for field in INVALIDATES:
        was, now = getattr(built, field), getattr(wanted, field)
        if field == "options":
            for name in sorted({*was, *now}):
                if was.get(name) != now.get(name):
                    yield Difference(f"options.{name}", was.get(name), now.get(name))
        elif was != now and (field not in FOLLOWS or _equal(built, wanted, FOLLOWS[field])):
            yield Difference(field, was, now)


def _equal(built: Settings, wanted: Settings, field: str) -> bool:
    return bool(getattr(built, field) == getattr(wanted, field))


def stale(target: Target, engine: Engine, wanted: Settings, graph_sha256: str) -> list[Difference]:
    """Why an engine of ``target`` is not the one that is wanted; empty where it is."""
    found = [d for d in differences(target, wanted) if INVALIDATES[d.field.partition(".")[0]](engine)]
    if engine.graph_sha256 != graph_sha256:
        found.append(Difference(GRAPH, engine.graph_sha256, graph_sha256))
    return found


def _show(value: Any) -> str:
    match value:
        case None:
            return "absent"
        case str() if len(value) == 64:
            return f"{value[:12]}..."
        case tuple():
            return ",".join(map(str, value))
    return str(value)
