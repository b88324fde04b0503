"""Pictures from a bundle's manifest alone, with ONNX Runtime and numpy: nothing of Nextscale is imported.

    python examples/chain_from_manifest.py engines/NAME --labels 207,88 --seed 0 --out out/
    python examples/chain_from_manifest.py engines/NAME --features cat.npy --features castle.npy:12

The whole contract of docs/manifest.md in some hundred lines, to be read before the same is written in another
language: check the files, allocate the buffers, and for each graph put what the caller owes, bind addresses, run. With
the same seed it makes the pictures of ``nextscale generate``. What is left out is a text encoder's graph, whose token
ids need a tokenizer: a text comes as its features, as ``Pipeline.encode`` makes them. bfloat16 bundles need a GPU
backend.
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
WANTED = "texts: give a text's features, --features FILE.npy (rows, width), for each"


def read_manifest(bundle: Path) -> Any:
    """The manifest of a bundle whose other files are what it lists."""
    if not (bundle / "manifest.json").is_file():
        raise SystemExit(f"{bundle} is no bundle: it has no manifest.json")
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    if manifest["schema_version"] != 3:
        raise SystemExit(f"{bundle} has manifest version {manifest['schema_version']}, this program reads 3")
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
        self.plan, self.images = manifest["plan"], images
        self.graphs = [graph for graph in manifest["graphs"] if graph["name"] != "text"]
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
        text = self.plan["models"][0][1]["text"]  # every text is padded to the longest that there may be
        symbols = {"images": self.images, "rows": self.images * len(self.plan["guidance"]["rows"])}
        symbols |= {"text": text["tokens"]} if text else {}
        shape, dtype = [symbols.get(d, d) for d in tensor["shape"]], np.dtype(tensor["dtype"])
        return tensor["offset"] * prod(shape[1:]) * dtype.itemsize, shape, dtype

    def view(self, tensor: Any) -> Array:
        """A tensor as an array: the bytes of its buffer themselves, so a step's new rows lie behind its past."""
        start, shape, dtype = self.place(tensor)
        return self.buffers[tensor["buffer"]][start : start + prod(shape) * dtype.itemsize].view(dtype).reshape(shape)

    def run(self, subjects: list[Any], seed: int, **given: float) -> tuple[list[Array], Array]:
        """Tokens (images, n) or (images, n, bits) of every step, and the pictures (images, 3, height, width) in [0, 1].

        A subject is a label; of a bundle that is conditioned on text, features with the number of rows that count.
        """
        if not 0 <= seed < 2**63:
            raise SystemExit(f"a seed is 0 to 2**63 - 1; found {seed}")
        settings: dict[str, Any] = {**dict(self.plan["defaults"]), **given, **self.given(subjects)}
        tokens = []
        for graph, session in zip(self.graphs, self.sessions, strict=True):
            step = None if graph["step"] is None else self.plan["steps"][graph["step"]]
            binding = session.io_binding()
            for tensor in graph["inputs"]:
                array = self.view(tensor)
                if tensor["source"]:
                    self.put(array, tensor["source"], step, seed, settings)
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

    def given(self, subjects: list[Any]) -> dict[str, Array]:
        """What the pictures are of, by source; there is no negative text."""
        model = self.plan["models"][0][1]
        text, null = model["text"], model["classes"]  # the class behind the last: none
        if isinstance(subjects[0], int) != (text is None):
            raise SystemExit(f"this bundle makes pictures of {'classes: give --labels' if text is None else WANTED}")
        if text is None:
            if not all(0 <= label <= null for label in subjects):
                raise SystemExit(f"labels are 0 to {null}; found {subjects}")
            return {"labels": np.array(subjects, np.int32)}
        padded = np.zeros((self.images, text["tokens"], text["width"]), np.float32)
        lengths = np.zeros(self.images, np.int32)
        least = text["tokens"] if text["use"] == "prefix" else 1  # a prefix is read with its padding
        for image, (rows, length) in enumerate(subjects):
            fits = rows.ndim == 2 and rows.shape[1] == text["width"] and least <= len(rows) <= text["tokens"]
            if not fits or not np.isfinite(rows).all() or not 1 <= length <= len(rows):
                raise SystemExit(
                    f"features are ({least} to {text['tokens']}, {text['width']}) finite numbers, of which 1 to all "
                    f"rows count; found the shape {rows.shape}, of which {length} count"
                )
            padded[image, : len(rows)], lengths[image] = rows, length
        none = {"negative": np.zeros_like(padded), "negative_length": np.zeros_like(lengths)}
        return {"text": padded, "text_length": lengths, **none}

    def put(self, array: Array, source: str, step: Any, seed: int, settings: dict[str, Any]) -> None:
        """What the caller owes a graph before it runs."""
        if source.startswith("uniforms."):
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


def features(text: str) -> tuple[Array, int]:
    """``cat.npy``, or ``cat.npy:12`` where 12 of its rows count: the array, and how many do."""
    path, _, length = text.rpartition(":") if text.rpartition(":")[2].isdecimal() else (text, "", "")
    try:
        array = np.load(path, allow_pickle=False)
    except OSError as error:
        raise ValueError(str(error)) from error
    if array.dtype.kind != "f" or array.ndim != 2:
        raise ValueError(f"{path} holds no features")
    return array, int(length) if length else len(array)


def numbers(text: str) -> list[int]:
    """``207,88`` to 207 and 88; the parser turns a ValueError into its sentence."""
    return [int(part) for part in text.split(",")]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Pictures from a bundle's manifest alone.")
    parser.add_argument("bundle", type=Path)
    of = parser.add_mutually_exclusive_group()
    of.add_argument("--labels", type=numbers, default=[0], help="class numbers, such as 207,88")
    help_ = "a text's features, (rows, width) in a .npy file, or FILE.npy:LENGTH; once for each picture"
    of.add_argument("--features", type=features, action="append", metavar="FILE.npy", help=help_)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out"))
    asked = parser.parse_args(arguments)
    subjects = asked.features or asked.labels
    _, pictures = Chain(asked.bundle, len(subjects)).run(subjects, asked.seed)
    asked.out.mkdir(parents=True, exist_ok=True)
    for image, picture in enumerate(pictures):
        tail = f"-class{subjects[image]}" if asked.features is None else ""
        path = asked.out / f"seed{asked.seed}-{image:05d}{tail}.png"
        path.write_bytes(png(picture))
        print(path)


if __name__ == "__main__":
    main()
