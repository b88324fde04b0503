"""``nextscale build --flavor onnxruntime-cpu``: a bundle's weights packed for this processor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nextscale.cli.build import Interrupted, tell
from nextscale.cli.errors import needing

if TYPE_CHECKING:
    from nextscale.runtime.bundle import Bundle


def pack(bundle: Bundle, out: Path | None, force: bool, json: bool) -> None:
    """Make the target, or say that it is up to date."""
    from nextscale.cli.output import print_json, say, size_text
    from nextscale.cli.progress import Progress
    from nextscale.runtime import strict
    from nextscale.runtime.targets.places import writable_place

    with needing("cpu"):
        from nextscale.runtime.backends.packed.build import build_packed

        place = (out if out is not None else writable_place(bundle)).resolve()
        try:
            with Progress() as progress:
                report = build_packed(bundle, place, progress, force, tell)
        except KeyboardInterrupt as error:
            raise Interrupted("interrupted; nothing was kept, and a target that was there stands") from error
    packed = report.packed
    if json:
        data = {"folder": str(report.folder), "seconds": report.seconds, "bytes": packed.size, "why": report.why}
        print_json({"bundle": str(bundle.folder), **data, "target": strict.write(packed)})
        return
    size = size_text(packed.size)
    if report.why is None:
        say(f"{report.folder}: up to date, {len(packed.graphs)} graphs, {size}; nothing was packed")
        return
    say(f"{report.folder}: {len(packed.graphs)} graphs ({report.why}), {size}, {report.seconds:.0f} s")
