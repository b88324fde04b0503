"""The README's support table, from what was committed as run: a cell says nothing that no result says.

    python benchmarks/support_table.py            # prints it
    python benchmarks/support_table.py --write    # and sets it into the README

Results are those of `nextscale gpu-check` (results/checks/*.json, one file for each machine and day) and of
`bench_build.py` (results/build.json), which compiles for GPUs that are not there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
README = HERE.parent / "README.md"
BEGIN, END = "<!-- support table: begin -->", "<!-- support table: end -->"
HEAD = ("backend", "precision", "exported", "verified on a CPU", "compiled for", "executed on")
BACKENDS = (("onnxruntime", "cpu"), ("onnxruntime", "cuda"), ("tensorrt", "cuda"), ("tensorrt-rtx", "cuda"))
PRECISIONS = ("fp32", "fp16", "bf16")
NOTHING, NO_ENGINE = "not run", "nothing yet"


def checks(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The committed checks, oldest first."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in (folder / "checks").glob("*.json")]
    return sorted(found, key=lambda check: str(check["machine"]["date"]))


def builds(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """What was compiled without a GPU."""
    path = folder / "build.json"
    return list(json.loads(path.read_text(encoding="utf-8"))["builds"]) if path.exists() else []


def table(checks: Sequence[dict[str, Any]], builds: Sequence[dict[str, Any]]) -> str:
    """The table in Markdown."""
    lines: list[Sequence[str]] = [HEAD]
    for backend, device in BACKENDS:
        name = f"`{backend}`, {'CPU' if device == 'cpu' else 'CUDA'}" if backend == "onnxruntime" else f"`{backend}`"
        for precision in PRECISIONS:
            compiled = compiled_for(checks, builds, backend, precision)
            done = executed_on(checks, backend, device, precision)
            lines.append((name, precision, exported(checks, precision), verified(checks, precision), compiled, done))
    head, *rows = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, "|---" * len(HEAD) + "|", *rows])


def exported(checks: Iterable[dict[str, Any]], precision: str) -> str:
    """Whether bundles of that precision have been made; they serve every backend."""
    return "yes" if any(_found(check, "export", precision=precision) for check in checks) else NOTHING


def verified(checks: Iterable[dict[str, Any]], precision: str) -> str:
    """How the newest export of that precision was held against eager PyTorch."""
    told = NOTHING
    for check in checks:
        for finding in _found(check, "export", precision=precision):
            how = " ".join(finding["data"]["how"])
            if how.startswith("float32 twin on"):  # no CPU computes the graphs themselves
                told = "its float32 twin against eager PyTorch, and every node against that"
            elif how.startswith("float32 twin"):
                told = "every graph against eager PyTorch, and every node against its float32 twin"
            else:
                told = "every graph against eager PyTorch"
    return told


def compiled_for(
    checks: Iterable[dict[str, Any]], builds: Iterable[dict[str, Any]], backend: str, precision: str
) -> str:
    """The targets that engines were built for."""
    if backend == "onnxruntime":
        return "nothing to compile"
    targets = [
        b["target"] for b in builds if backend == b.get("flavor", "tensorrt-rtx") and b["precision"] == precision
    ]
    for check in checks:
        targets += [f["data"]["target"] for f in _found(check, "build", backend=backend, precision=precision)]
    return ", ".join(sorted(set(targets), key=lambda target: int(target[2:]))) or NO_ENGINE


def executed_on(checks: Iterable[dict[str, Any]], backend: str, device: str, precision: str) -> str:
    """Where pictures were made and held against eager PyTorch, newest first, and what came of it.

    What failed in another way to build the same is told too.
    """
    told: dict[str, str] = {}
    for check in checks:
        asked = {"backend": backend, "device": device, "precision": precision}
        found = [f for f in check["findings"] if f["section"] == "parity" and asked.items() <= f["subject"].items()]
        ran = [f for f in found if f["state"] != "not run"]
        where = check["gpu"]["name"] if check["gpu"] else "CPU"
        if ran:
            told.pop(where, None)
            wrong = _failures(ran, check["findings"], backend, precision)
            told[where] = f"{where}, {check['machine']['date'][:10]}" + (f": **{', '.join(wrong)}**" if wrong else "")
        elif found and where not in told and "does not compute" in found[0]["reason"]:
            told[where] = f"no: it does not compute {precision} there"
    return "; ".join(reversed(told.values())) or NOTHING


def _failures(
    ran: Iterable[dict[str, Any]], findings: Iterable[dict[str, Any]], backend: str, precision: str
) -> list[str]:
    """What went wrong with a backend in a precision, in words: as it is usually built, and in other ways."""
    failed = [f for f in ran if f["state"] == "failed"]
    words = ["numbers differ" if "error" in failed[0]["data"] else "fails"] if failed else []
    others = dict[str, str]()
    for f in findings:
        name, _, variant = f["subject"].get("backend", "").partition(", ")
        if variant and name == backend and f["subject"].get("precision") == precision and f["state"] == "failed":
            others.setdefault(variant, "numbers differ" if "error" in f["data"] else "fails")
    return [*words, *(f"{what} with {variant}" for variant, what in others.items())]


def in_readme(text: str) -> str:
    """The table that stands in a README."""
    return text.partition(BEGIN)[2].partition(END)[0].strip()


def _found(check: dict[str, Any], section: str, **subject: str) -> list[dict[str, Any]]:
    """What passed."""
    return [
        finding
        for finding in check["findings"]
        if finding["section"] == section
        and finding["state"] == "passed"
        and subject.items() <= finding["subject"].items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="The README's support table, from committed results.")
    parser.add_argument("--write", action="store_true", help="set it into the README")
    made = table(checks(), builds())
    print(made)
    if parser.parse_args().write:
        text = README.read_text(encoding="utf-8")
        before, _, rest = text.partition(BEGIN)
        README.write_text(f"{before}{BEGIN}\n\n{made}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
