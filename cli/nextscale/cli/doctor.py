"""``nextscale doctor``: what of this machine Nextscale can use. Works with nothing but the base installed."""

from __future__ import annotations

import json as codec
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import typer

from nextscale.cli.options import Json

NEEDED = ("numpy", "PIL", "rich", "safetensors", "typer")
PYTHONS = ((3, 11), (3, 14))  # from, and before


@dataclass(frozen=True)
class Findings:
    """Everything that is told. ``extras`` maps an extra to its packages and their version, None where missing."""

    nextscale: str
    python: str
    platform: str
    cores: int
    memory_bytes: int | None
    free_disk_bytes: int
    extras: dict[str, dict[str, str | None]]
    tensorrt: dict[str, str]
    flavors: dict[str, str]
    providers: list[str]
    gpus: list[str]
    cuda_driver: bool
    problems: list[str]
    warnings: list[str]


def doctor(json: Json = False) -> None:
    """Say what is installed, what this machine has, and what is wrong.

    \b
    nextscale doctor
    nextscale doctor --json

    Exit status 3 where something is broken; what is merely not installed is no fault.
    """
    found = examine()
    if json:
        from nextscale.cli.output import print_json

        print_json(asdict(found))
    else:
        _print(found)
    if found.problems:
        raise typer.Exit(3)


def examine() -> Findings:
    """Looks at the machine; libraries of backends are asked in a process of their own, for broken ones may crash."""
    from nextscale.runtime._version import __version__
    from nextscale.runtime.backends.onnxruntime import both_installed

    providers, failure = _providers()
    problems = [f"the package {name} is missing: pip install nextscale" for name in NEEDED if not find_spec(name)]
    if not PYTHONS[0] <= sys.version_info[:2] < PYTHONS[1]:
        problems.append(f"Python {platform.python_version()} is not supported: use 3.11 to 3.13")
    warnings = []
    if both := both_installed():
        warnings.append(both)
    if failure:
        problems.append(f"onnxruntime is installed and does not load ({failure}): install it again")
    gpus, driver = _gpus(), _cuda_driver()
    if gpus and not driver:
        warnings.append("nvidia-smi finds a GPU, the CUDA driver library is not found: reinstall the driver")
    if gpus and providers and "CUDAExecutionProvider" not in providers:
        warnings.append("there is a GPU, and this onnxruntime has no CUDA: pip install 'nextscale[cuda]' brings it")
    return Findings(
        nextscale=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=_memory(),
        free_disk_bytes=shutil.disk_usage(Path.cwd()).free,
        extras=installed_extras(),
        tensorrt=_tensorrt(),
        flavors=_flavors(),
        providers=providers,
        gpus=gpus,
        cuda_driver=driver,
        problems=problems,
        warnings=warnings,
    )


def installed_extras() -> dict[str, dict[str, str | None]]:
    """Every extra that the installed metadata names, with the version of each package that it asks for."""
    try:
        requirements = metadata.requires("nextscale") or []
    except metadata.PackageNotFoundError:
        return {}  # the source roots are only on the import path
    found: dict[str, dict[str, str | None]] = {}
    included: dict[str, list[str]] = {}
    for line in requirements:
        match = re.fullmatch(r"([\w.-]+)(?:\[([\w,-]+)\])?[^;]*;.*extra\s*==\s*['\"]([\w-]+)['\"].*", line)
        if not match:
            continue
        package, own_extras, extra = match[1], match[2], match[3]
        packages = found.setdefault(extra, {})
        if package == "nextscale":  # an extra that takes in others
            included.setdefault(extra, []).extend((own_extras or "").split(","))
        else:
            packages[package] = _version(package)
    for extra, others in included.items():
        for other in others:
            found[extra] |= found.get(other, {})
    return found


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _tensorrt() -> dict[str, str]:
    """Installed distributions of any TensorRT, by name."""
    named = {d.metadata["Name"]: d.version for d in metadata.distributions() if d.metadata["Name"]}
    return {name: version for name, version in sorted(named.items()) if re.match(r"tensorrt($|[-_])", name)}


def _flavors() -> dict[str, str]:
    """Each flavour of TensorRT: its version and what it builds for, or why it does not load."""
    code = (
        "import sys; from nextscale.runtime.backends.tensorrt.library import load; library = load(sys.argv[1]); "
        "print(library.version, 'builds for', ', '.join(library.targets or ['the GPU of this machine']))"
    )
    return {flavor: _asked(code, flavor) for flavor in ("tensorrt", "tensorrt-rtx")}


def _asked(code: str, flavor: str) -> str:
    try:
        run = subprocess.run(
            [sys.executable, "-P", "-c", code, flavor], capture_output=True, text=True, timeout=60, check=False
        )
    except subprocess.TimeoutExpired as error:
        return type(error).__name__
    lines = (run.stdout if run.returncode == 0 else run.stderr).strip().splitlines()
    return lines[-1].rpartition("Error: ")[2] if lines else f"it ends with status {run.returncode}"


def _providers() -> tuple[list[str], str | None]:
    """ONNX Runtime's providers, and why it does not load where it does not."""
    if not find_spec("onnxruntime"):
        return [], None
    code = "import json, onnxruntime; print(json.dumps(onnxruntime.get_available_providers()))"
    try:
        run = subprocess.run(
            [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=False
        )
        if run.returncode == 0:
            return list(codec.loads(run.stdout.strip().splitlines()[-1])), None
    except (subprocess.TimeoutExpired, ValueError, IndexError) as error:
        return [], type(error).__name__
    lines = run.stderr.strip().splitlines()
    return [], lines[-1][:200] if lines else f"it ends with status {run.returncode}"


def _gpus() -> list[str]:
    """Name, memory, compute capability and driver of each NVIDIA GPU, as the driver's own tool says."""
    tool = shutil.which("nvidia-smi")
    if not tool:
        return []
    query = "--query-gpu=name,memory.total,compute_cap,driver_version"
    try:
        run = subprocess.run([tool, query, "--format=csv,noheader"], capture_output=True, text=True, timeout=30)
    except (subprocess.TimeoutExpired, OSError):
        return []
    return [line.strip() for line in run.stdout.splitlines() if line.strip()] if run.returncode == 0 else []


def _cuda_driver() -> bool:
    import ctypes

    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def _memory() -> int | None:
    """Bytes of memory, or of the container's share of it; None where the system does not tell."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(total, int(text)) if text.isdecimal() else total


def _print(found: Findings) -> None:
    from nextscale.cli.output import print_table, say, size_text

    memory = "unknown" if found.memory_bytes is None else size_text(found.memory_bytes)
    say(f"nextscale  {found.nextscale}")
    say(f"Python     {found.python}, {sys.executable}")
    say(f"platform   {found.platform}")
    say(f"machine    {found.cores} cores, {memory} of memory, {size_text(found.free_disk_bytes)} free on this disk")
    say(f"providers  {', '.join(found.providers) or 'none: ONNX Runtime is not installed'}")
    say(f"TensorRT   {', '.join(f'{n} {v}' for n, v in found.tensorrt.items()) or 'not installed'}")
    for flavor, state in found.flavors.items():
        say(f"{'':10} {flavor}: {state}")
    say(f"CUDA       {'; '.join(found.gpus) or 'no GPU'}, driver {'found' if found.cuda_driver else 'not found'}")
    rows = []
    for extra, packages in found.extras.items():
        missing = [name for name, version in packages.items() if version is None]
        state = "installed" if not missing else "not installed" if len(missing) == len(packages) else "in part"
        rows.append((extra, state, ", ".join(f"{name} {version or '-'}" for name, version in packages.items())))
    if rows:
        print_table(("extra", "", "packages"), rows)
    for sentence in found.warnings:
        say(f"warning: {sentence}")
    for sentence in found.problems:
        say(f"problem: {sentence}")
    if not found.problems:
        say("nothing is broken")
