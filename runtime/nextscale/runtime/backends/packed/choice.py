"""Which packed target a bundle is run on: the one that fits this machine, or none, with a sentence that says so."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nextscale.runtime.backends.packed.target import (
    PRECISIONS,
    WEIGHTS,
    Machine,
    Packed,
    build_command,
    damage,
    find,
    misfit,
    name_for,
    read,
)
from nextscale.runtime.bundle import Bundle
from nextscale.runtime.errors import BackendError
from nextscale.runtime.manifest import Graph

log = logging.getLogger("nextscale.runtime")


@dataclass(frozen=True)
class Chosen:
    """A target that fits. ``hashed`` says whether files are hashed, ``again`` is the command that packs it anew."""

    folder: Path
    packed: Packed
    hashed: bool
    again: str

    def path(self, graph: Graph) -> Path:
        """The file of a graph."""
        return self.packed.path(self.folder, graph)

    def check(self, *files: str) -> None:
        """Hash those files; raises :class:`BackendError` where one was changed, or any file has another length."""
        if wrong := damage(self.folder, self.packed, files if self.hashed else ()):
            raise BackendError(f"{wrong}; `{self.again}` packs it anew")

    @contextmanager
    def weights_checked(self) -> Iterator[None]:
        """Hash the weights beside what is done in it; that they were changed is the reason of whatever fails there."""
        with ThreadPoolExecutor(1) as beside:
            checked = beside.submit(self.check, WEIGHTS)
            try:
                yield
            finally:
                checked.result()


def fits(bundle: Bundle, machine: Machine, targets: Path | None) -> bool:
    """Whether there is a target to run on."""
    return any(misfit(folder, bundle, machine) is None for folder in find(bundle, machine, targets))


def choose(bundle: Bundle, machine: Machine, targets: Path | None, wanted: bool, verify: str) -> Chosen | None:
    """The target to run on, None for the bundle's own graphs; ``verify`` is ``full`` or ``size``.

    ``full`` hashes its graphs here, and leaves its weights to :meth:`Chosen.weights_checked`. Raises
    :class:`BackendError` where one is ``wanted`` and none fits, and where the one that fits is damaged.
    """
    folders = find(bundle, machine, targets)
    if not folders:
        command = build_command(bundle.folder, targets)
        if wanted:
            raise BackendError(f"{bundle.folder} has no target {name_for(bundle, machine)}: make it with `{command}`")
        if bundle.manifest.precision in PRECISIONS:
            log.info("weights are not packed: steps of few tokens take up to twice as long; `%s` packs them", command)
        return None
    again = build_command(bundle.folder, targets, force=True)
    unfit = []
    for folder in folders:
        if other := misfit(folder, bundle, machine):
            unfit.append(f"{folder} was packed for something else ({other})")
            continue
        chosen = Chosen(folder, read(folder), verify == "full", again)
        chosen.check(*(graph.file for graph in chosen.packed.graphs))
        return chosen
    said = f"{'; '.join(unfit)}; `{again}` packs it anew"
    if wanted:
        raise BackendError(said)
    log.warning("%s; until then the bundle's own graphs run, which takes longer", said)
    return None
