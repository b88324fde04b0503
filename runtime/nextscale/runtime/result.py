"""What a call gives back: pictures with everything needed to make them again, and where the time went."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextscale.plan.errors import EnvironmentProblem, InputError
from nextscale.plan.types import Grid


@dataclass(frozen=True)
class Timing:
    """Wall time in seconds of one graph in one pass; ``inputs`` is what filling noise and settings took before it."""

    graph: str
    first_image: int
    images: int
    inputs: float
    seconds: float


@dataclass(frozen=True)
class StepResult:
    """A finished step of one pass; what it holds is its own, and stays.

    ``index`` is the step's order, ``scale`` its scale in the schedule, ``first_image`` and ``images`` which pictures of
    the call it made, ``tokens`` (images, tokens) int32, ``code_sum`` (images, channels, height, width) float32,
    ``elapsed`` seconds since the call, ``timing`` this step's own; ``last`` marks a pass's last step, whose preview is
    the finished picture.
    """

    index: int
    scale: int
    grid: Grid
    first_image: int
    images: int
    tokens: NDArray[np.int32]
    code_sum: NDArray[np.float32]
    elapsed: float
    timing: Timing
    last: bool
    _decode: Callable[[NDArray[np.float32]], NDArray[np.float32]] = field(repr=False)
    _read: Callable[[str, bool], Any] = field(repr=False)

    def preview(self) -> NDArray[np.uint8]:
        """What the pictures look like so far: (images, height, width, 3) uint8, decoded now."""
        return to_uint8(self._decode(self.code_sum))

    def logits(self) -> NDArray[np.float32]:
        """A copy of (images, tokens, vocabulary), after guidance, before temperature and filters.

        Only until the next step; raises :class:`~nextscale.plan.errors.InputError` afterwards.
        """
        logits: NDArray[np.float32] = self._read("logits", True)
        return logits

    def array(self, name: str) -> Any:
        """``logits``, ``tokens`` or ``code_sum`` where it lies, without a copy, until the next step.

        On the host a numpy array; on a device an array that torch, CuPy and others take as it is (DLPack,
        ``__cuda_array_interface__``). It is the slot's own memory: reading it later shows what the next steps make of
        it. Raises :class:`~nextscale.plan.errors.InputError` where the next step has been asked for already.
        """
        return self._read(name, False)


@dataclass(frozen=True)
class Provenance:
    """What a picture's file says about where it comes from."""

    bundle: str
    bundle_sha256: str
    recipe: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Result:
    """The pictures of one call, in the order of its subjects.

    ``subjects`` are class numbers (the null class is the number behind the last) or prompts ('' where features were
    given), ``negatives`` what the pictures should not show, None for nothing. ``tokens`` are the codes by step, each
    (pictures, tokens of the step) int32, with an axis of bits behind where the model is bitwise. ``subjects[i]``,
    ``negatives[i]``, ``seed`` and ``image_numbers[i]`` with the settings make picture ``i`` again;
    ``guidance_scale[i]`` has a number for every scale. ``seconds`` is the whole call.
    """

    subjects: tuple[int | str, ...]
    negatives: tuple[str | None, ...]
    seed: int
    image_numbers: tuple[int, ...]
    guidance_scale: tuple[tuple[float, ...], ...]
    top_p: tuple[float, ...]
    temperature: tuple[float, ...]
    tokens: tuple[NDArray[np.int32], ...]
    timings: tuple[Timing, ...]
    seconds: float
    provenance: Provenance
    _floats: NDArray[np.float32] | None = field(repr=False)

    def __len__(self) -> int:
        return len(self.subjects)

    @property
    def floats(self) -> NDArray[np.float32]:
        """The pictures as (pictures, height, width, 3) float32, RGB in [0, 1].

        Raises :class:`~nextscale.plan.errors.InputError` where the caller had them written to an array of its own.
        """
        if self._floats is None:
            raise InputError("the pictures are in the array that the call was given as out: take them there")
        return self._floats

    @property
    def images(self) -> NDArray[np.uint8]:
        """The pictures as (pictures, height, width, 3) uint8, RGB."""
        return to_uint8(self.floats)

    @property
    def step_seconds(self) -> dict[str, float]:
        """Seconds by graph, over all passes of the call."""
        total: dict[str, float] = {}
        for timing in self.timings:
            total[timing.graph] = total.get(timing.graph, 0.0) + timing.seconds
        return total

    def metadata(self, index: int) -> dict[str, str]:
        """What the PNG of picture ``index`` carries: enough to make it again."""
        made, subject, negative = self.provenance, self.subjects[index], self.negatives[index]
        return {
            "Software": f"nextscale {made.versions.get('nextscale', 'unknown')}",
            "nextscale.prompt" if isinstance(subject, str) else "nextscale.label": str(subject),
            **({} if negative is None else {"nextscale.negative": negative}),
            "nextscale.seed": str(self.seed),
            "nextscale.image": str(self.image_numbers[index]),
            "nextscale.guidance_scale": _one_or_all(self.guidance_scale[index]),
            "nextscale.top_p": repr(self.top_p[index]),
            "nextscale.temperature": repr(self.temperature[index]),
            "nextscale.recipe": made.recipe,
            "nextscale.bundle": made.bundle,
            "nextscale.bundle_sha256": made.bundle_sha256,
            "nextscale.versions": ", ".join(f"{name} {version}" for name, version in made.versions.items()),
        }

    def _file_name(self, index: int) -> str:
        """By seed and number; a class's number goes with it, a prompt is in the metadata alone."""
        subject = self.subjects[index]
        tail = "" if isinstance(subject, str) else f"-class{subject}"
        return f"seed{self.seed}-{self.image_numbers[index]:05d}{tail}.png"

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write one PNG for each picture, named by seed, number and class (if any), and return the paths.

        The folder is made where it is not there. A file of the same name is replaced by the whole picture or not at
        all. Raises :class:`~nextscale.plan.errors.EnvironmentProblem` where it cannot be written.
        """
        from PIL import Image
        from PIL.PngImagePlugin import PngInfo

        paths, pictures = [], self.images
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            for i, pixels in enumerate(pictures):
                info = PngInfo()
                for key, text in self.metadata(i).items():
                    info.add_itxt(key, text)
                path = Path(folder) / self._file_name(i)
                part = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
                try:
                    Image.fromarray(pixels).save(part, format="PNG", pnginfo=info)
                    part.replace(path)
                finally:
                    part.unlink(missing_ok=True)
                paths.append(path)
        except OSError as error:
            raise EnvironmentProblem(f"pictures cannot be written to {folder}: {error.strerror or error}") from error
        return paths


def _one_or_all(by_scale: tuple[float, ...]) -> str:
    """One number where every scale has the same, else all of them."""
    return ", ".join(map(repr, by_scale[:1] if len(set(by_scale)) == 1 else by_scale))


def to_uint8(floats: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[0, 1] to the nearest of 0 ... 255."""
    return (np.clip(floats, 0.0, 1.0) * np.float32(255) + np.float32(0.5)).astype(np.uint8)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """What :meth:`Result.save` wrote about a picture; empty for a PNG of another origin."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            image.load()
            found: dict[str, Any] = dict(getattr(image, "text", {}))
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(f"{path} is not a picture that can be read: {error}") from error
    return {key: str(text) for key, text in found.items() if key == "Software" or key.startswith("nextscale.")}
