"""Pictures from a bundle's manifest alone, with ONNX Runtime and numpy: nothing of Nextscale is imported.

    python examples/chain_from_manifest.py engines/NAME --labels 207,88 --seed 0 --out out/

The whole contract of docs/manifest.md in some hundred lines, to be read before the same is written in another
language: check the files, allocate the buffers, and for each graph put what the caller owes, bind addresses, run. With
the same seed it makes the pictures of ``nextscale generate``. bfloat16 bundles need a GPU backend.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import struct
import zlib
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

Array = np.ndarray[Any, Any]


def read_manifest(bundle: Path) -> Any:
    """The manifest of a bundle whose other files are what it lists."""
    if not (bundle / "manifest.json").is_file():
        raise SystemExit(f"{bundle} is no bundle: it has no manifest.json")
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    if manifest["schema_version"] != 1:
        raise SystemExit(f"{bundle} has manifest version {manifest['schema_version']}, this program reads 1")
    for name, file in manifest["files"].items():
        path = bundle / name
        if Path(name).name != name or path.is_symlink() or not path.is_file():
            raise SystemExit(f"{path} is not a plain file of this bundle")
        if hashlib.sha256(path.read_bytes()).hexdigest() != file["sha256"]:
            raise SystemExit(f"{path} is not the file that the manifest lists")
    return manifest


class Chain:
    """A bundle's sessions over one set of buffers, for passes of ``images`` pictures."""

    def __init__(self, bundle: Path, images: int, threads: int = 0) -> None:
        manifest = read_manifest(bundle)
        self.plan, self.graphs, self.images = manifest["plan"], manifest["graphs"], images
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads  # 0: one per core
        options.log_severity_level = 3  # errors
        options.add_session_config_entry("session.disable_prepacking", "1")  # one copy of the weights for all graphs
        files = [str(bundle / graph["file"]) for graph in self.graphs]
        self.sessions = [ort.InferenceSession(file, options, providers=["CPUExecutionProvider"]) for file in files]
        sizes: dict[str, int] = {}  # a buffer ends where the furthest tensor on it does
        for tensor in (t for graph in self.graphs for t in graph["inputs"] + graph["outputs"]):
            start, shape, dtype = self.place(tensor)
            sizes[tensor["buffer"]] = max(sizes.get(tensor["buffer"], 0), start + prod(shape) * dtype.itemsize)
        self.buffers = {name: np.zeros(size, np.uint8) for name, size in sizes.items()}

    def place(self, tensor: Any) -> tuple[int, list[int], np.dtype[Any]]:
        """First byte in its buffer, shape and dtype of a tensor."""
        symbols = {"images": self.images, "rows": self.images * len(self.plan["guidance"]["rows"])}
        shape, dtype = [symbols.get(d, d) for d in tensor["shape"]], np.dtype(tensor["dtype"])
        return tensor["offset"] * prod(shape[1:]) * dtype.itemsize, shape, dtype

    def view(self, tensor: Any) -> Array:
        """A tensor as an array: the bytes of its buffer themselves, so a step's new rows lie behind its past."""
        start, shape, dtype = self.place(tensor)
        return self.buffers[tensor["buffer"]][start : start + prod(shape) * dtype.itemsize].view(dtype).reshape(shape)

    def run(self, labels: list[int], seed: int, **given: float) -> tuple[list[Array], Array]:
        """Tokens (images, n) of every step, and the pictures (images, 3, height, width) in [0, 1]."""
        null = self.plan["models"][0][1]["classes"]  # the class behind the last: none
        if not all(0 <= label <= null for label in labels) or not 0 <= seed < 2**63:
            raise SystemExit(f"labels are 0 to {null}, a seed is 0 to 2**63 - 1; found {labels} and {seed}")
        settings, tokens = {**dict(self.plan["defaults"]), **given}, []
        for graph, session in zip(self.graphs, self.sessions, strict=True):
            step = None if graph["step"] is None else self.plan["steps"][graph["step"]]
            binding = session.io_binding()
            for tensor in graph["inputs"]:
                array = self.view(tensor)
                if tensor["source"]:
                    self.put(array, tensor["source"], step, labels, seed, settings)
                binding.bind_input(tensor["name"], "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
            for tensor in graph["outputs"]:
                array = self.view(tensor)
                binding.bind_output(tensor["name"], "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
            session.run_with_iobinding(binding)
            found = {tensor["name"]: self.view(tensor) for tensor in graph["outputs"]}
            if step and not np.isfinite(found["logits.out"]).all():
                raise SystemExit(f"{graph['name']}: NaN or infinity in the logits; the weights are broken")
            tokens += [found["tokens.out"].copy()] if step else []
        return tokens, found["image.out"]

    def put(
        self, array: Array, source: str, step: Any, labels: list[int], seed: int, settings: dict[str, float]
    ) -> None:
        """What the caller owes a graph before it runs."""
        if source == "labels":
            array[...] = labels
        elif source.startswith("uniforms."):
            for image, noise in enumerate(array):
                noise[...] = uniforms(seed, image, step["order"], int(source[-1]), noise.size).reshape(noise.shape)
        elif source == "guidance":  # one weight for each guidance row; Python's floats are float64
            scale = settings["guidance_scale"]
            array[...] = [
                constant + slope * scale for constant, slope in self.plan["guidance"]["weights"][step["scale"]]
            ]
        else:  # -1: sample this token
            array[...] = -1 if source == "tokens" else settings[source]


def uniforms(seed: int, image: int, step: int, stream: int, count: int) -> Array:
    """The noise rule: Philox4x64-10, low half of each word first, exact in float32. numpy counts up before a block."""
    counter = ((step << 64) + (stream << 128) - 1) % 2**256
    words = np.random.Philox(counter=counter, key=seed + (image << 64)).random_raw((count + 1) // 2)
    halves = words.astype("<u8").view("<u4")[:count] >> 9
    return (halves + np.float32(0.5)).astype(np.float32) * np.float32(2.0**-23)


def png(picture: Array) -> bytes:
    """A PNG file of (3, height, width) in [0, 1]."""
    pixels = (picture.transpose(1, 2, 0).clip(0, 1) * 255 + np.float32(0.5)).astype(np.uint8)
    height, width, _ = pixels.shape
    lines = np.insert(pixels.reshape(height, -1), 0, 0, axis=1).tobytes()  # each line begins with its filter: none
    parts = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(lines)))
    chunks = ((kind + data, len(data)) for kind, data in (*parts, (b"IEND", b"")))
    body = b"".join(struct.pack(">I", length) + c + struct.pack(">I", zlib.crc32(c)) for c, length in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def numbers(text: str) -> list[int]:
    """``207,88`` to 207 and 88; the parser turns a ValueError into its sentence."""
    return [int(part) for part in text.split(",")]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Pictures from a bundle's manifest alone.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--labels", type=numbers, default=[0], help="class numbers, such as 207,88")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out"))
    asked = parser.parse_args(arguments)
    _, pictures = Chain(asked.bundle, len(asked.labels)).run(asked.labels, asked.seed)
    asked.out.mkdir(parents=True, exist_ok=True)
    for image, picture in enumerate(pictures):
        path = asked.out / f"seed{asked.seed}-{image:05d}-class{asked.labels[image]}.png"
        path.write_bytes(png(picture))
        print(path)


if __name__ == "__main__":
    main()
