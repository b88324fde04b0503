"""Which packed target a bundle is run on: the one that fits this machine, or none, with a sentence that says so."""

from __future__ import annotations

import logging
from pathlib import Path

from nextscale.runtime.backends.packed.target import (
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

log = logging.getLogger("nextscale.runtime")


def choose(
    bundle: Bundle, machine: Machine, targets: Path | None, wanted: bool, verify: str
) -> tuple[Path, Packed] | None:
    """The folder of the target and its manifest, None for the bundle's own graphs; ``verify`` is ``full`` or ``size``.

    Raises :class:`BackendError` where one is ``wanted`` and none fits, and where the one that fits is damaged.
    """
    folders = find(bundle, machine, targets)
    if not folders:
        command = build_command(bundle.folder, targets)
        if wanted:
            raise BackendError(f"{bundle.folder} has no target {name_for(bundle, machine)}: make it with `{command}`")
        log.info("weights are not packed: steps of few tokens take up to twice as long; `%s` packs them", command)
        return None
    again = build_command(bundle.folder, targets, force=True)
    unfit = []
    for folder in folders:
        if other := misfit(folder, bundle, machine):
            unfit.append(f"{folder} was packed for something else ({other})")
            continue
        packed = read(folder)
        if wrong := damage(folder, packed, verify == "full"):
            raise BackendError(f"{wrong}; `{again}` packs it anew")
        return folder, packed
    said = f"{'; '.join(unfit)}; `{again}` packs it anew"
    if wanted:
        raise BackendError(said)
    log.warning("%s; until then the bundle's own graphs run, which takes longer", said)
    return None
