"""The report: one page that needs no other file, its numbers as JSON, and every picture as a PNG."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from nextscale.compare.collect import Measured
from nextscale.compare.folder import Listing, replaced
from nextscale.compare.judge import Verdict
from nextscale.compare.latency import times
from nextscale.compare.lineup import file_part
from nextscale.compare.page import page
from nextscale.compare.plain import plain
from nextscale.compare.summary import side_summaries, step_summaries

SCHEMA_VERSION = 1
HTML, JSON = "report.html", "report.json"
KEYS = {"held", "verdicts", "options", "machine", "summary", "sides", "parity"}
LISTING = Listing(
    JSON,
    lambda found: found.get("schema_version") == SCHEMA_VERSION and found.keys() >= KEYS,
    re.compile(r"report\.html|pictures/[0-9]{3,}-[A-Za-z0-9._-]+\.png"),
)


def write_report(folder: Path, measured: Measured, verdicts: Sequence[Verdict]) -> Path:
    """Writes ``folder`` and returns the page's path.

    A folder that holds another report is replaced, file by file as its ``report.json`` lists them; any other folder
    that is not empty is refused with an :class:`~nextscale.plan.errors.InputError`.
    """
    pictures = dict(_pictures(measured))
    embedded = {name: _data_uri(content) for name, content in pictures.items()}
    contents = {
        JSON: json.dumps(numbers(measured, verdicts, [HTML, *pictures]), indent=1, allow_nan=False).encode(),
        HTML: page(measured, verdicts, lambda side, i: embedded[picture_name(measured, side, i)]).encode(),
        **pictures,
    }
    with replaced(folder, LISTING) as place:
        for name, content in contents.items():
            (place / name).parent.mkdir(exist_ok=True)
            (place / name).write_bytes(content)
    return folder / HTML


def numbers(measured: Measured, verdicts: Sequence[Verdict], files: Sequence[str]) -> dict[str, Any]:
    """Everything that was collected and judged, as plain data; times in seconds, memory in bytes."""
    data = {
        "schema_version": SCHEMA_VERSION,
        "files": list(files),
        "held": all(verdict.held for verdict in verdicts),
        "verdicts": verdicts,
        "options": measured.options,
        "columns": measured.columns,
        "threads": measured.threads,
        "guidance_scale": measured.asked.guidance_scale,
        "top_p": measured.asked.top_p,
        "temperature": measured.asked.temperature,
        "labels": [measured.label(i) for i in range(measured.options.pictures)],
        "machine": measured.machine,
        "notes": measured.notes,
        "summary": side_summaries(measured),
        "sides": [
            {
                "name": name,
                "bundle": record.spec.bundle is not None,
                "column": record.spec.column,
                "precision": record.spec.precision,
                "reference": record.spec.reference,
                "methods": record.spec.plan.methods,
                "versions": record.versions,
                "memory": record.memory,
                "seconds": {graph: times(values) for graph, values in record.seconds.items()},
                "warm_up": record.warm_up,
                "runs": {"all": record.totals, **record.seconds},
                "likeness": record.likeness,
            }
            for name, record in measured.records.items()
        ],
        "parity": {
            bundle: {"steps": step_summaries(measured, bundle), "pictures": pictures}
            for bundle, pictures in measured.parities.items()
        },
    }
    found: dict[str, Any] = plain(data)
    return found


def picture_name(measured: Measured, side: str, picture: int) -> str:
    """The PNG of a side's picture, within the folder."""
    return f"pictures/{picture:03d}-{file_part(measured.label(picture))}-{file_part(side)}.png"


def _pictures(measured: Measured) -> Iterator[tuple[str, bytes]]:
    batch, settings = measured.options.batch, measured.asked
    for side, record in measured.records.items():
        for i, pixels in enumerate(record.pictures):
            info = PngInfo()
            for key, value in {
                "Software": f"nextscale {measured.machine.versions.get('nextscale', '')}",
                "nextscale.side": side,
                "nextscale.label": str(settings.labels[i]),
                "nextscale.seed": str(settings.seed + i // batch),
                "nextscale.image": str(i % batch),
            }.items():
                info.add_itxt(key, value)
            yield picture_name(measured, side, i), _png(pixels, info)


def _png(pixels: NDArray[np.uint8], info: PngInfo) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="PNG", pnginfo=info)
    return content.getvalue()


def _data_uri(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
