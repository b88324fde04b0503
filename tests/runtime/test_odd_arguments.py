"""Odd arguments: whatever a caller hands over, what comes back derives from the one base class, in one sentence."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nextscale.plan.errors import InputError
from nextscale.runtime import Pipeline
from nextscale.runtime.backends.host import HostMemory
from nextscale.runtime.bundle import open_bundle
from nextscale.runtime.errors import BackendError, BundleError, PipelineTimeout
from nextscale.runtime.manifest import FILE_NAME, WEIGHTS_FILE

NAN = float("nan")
CALL: list[tuple[dict[str, Any], str]] = [
    ({"subjects": np.array(1)}, r"labels are 0 to 2, or None for no class; found array\(1\)"),
    ({"subjects": b"01"}, "found b'01'"),
    ({"subjects": {0, 1}}, r"found \{0, 1\}"),
    ({"subjects": [[0], [1]]}, r"found \[0\]"),
    ({"top_p": np.array(0.5)}, r"top_p is a number above 0 and up to 1; found array\(0\.5\)"),
    ({"guidance_scale": np.array("4")}, "guidance_scale is a number"),
    ({"tokens": 3}, "tokens: one entry .* for each of 4 steps; found int"),
    ({"tokens": np.array(3)}, "found ndarray"),
    ({"tokens": iter(())}, "found tuple_iterator"),
    ({"tokens": [[[1], [1, 2]], None, None, None]}, "tokens of step 0 are no array of shape .*inhomogeneous"),
    ({"tokens": [{}, None, None, None]}, "tokens of step 0 are whole numbers"),
    ({"timeout": "1"}, "timeout is a number of seconds, 1e9 at most; found '1'"),
    ({"timeout": NAN}, "timeout is a number of seconds, 1e9 at most; found nan"),
    ({"timeout": True}, "timeout is a number of seconds"),
    ({"timeout": 10**400}, "timeout is a number of seconds"),
    ({"cancel": True}, r"cancel is a threading\.Event, or a function that returns True to stop; found True"),
]
OPEN: list[tuple[dict[str, Any], str]] = [
    ({"wait": None}, "wait is a number of seconds, 1e9 at most; found None"),
    ({"wait": NAN}, "wait is a number of seconds"),
    ({"batch_sizes": 4}, "batch_sizes are whole numbers from 1 to 1024, at least one of them; found 4"),
    ({"batch_sizes": (b for b in (1, 2))}, "batch_sizes are whole numbers"),
    ({"batch_sizes": np.array(1)}, "batch_sizes are whole numbers"),
    ({"batch_sizes": np.array([0.5])}, "batch_sizes are whole numbers"),
    ({"batch_sizes": np.array([])}, "batch_sizes are whole numbers"),
    ({"batch_sizes": [10**15]}, r"found \[1000000000000000\]"),
    ({"slots": 10**9}, "slots is a whole number from 1 to 1024; found 1000000000"),
    ({"expect_sha256": b"0" * 64}, "expect_sha256 is 64 hex digits; found b'0"),
    ({"backend": ["onnxruntime"]}, r"backend \['onnxruntime'\] is none of"),
]


@pytest.mark.parametrize("odd, message", CALL, ids=[str(c[0])[:40] for c in CALL])
def test_a_call_is_refused_in_words(pipeline: Pipeline, odd: dict[str, Any], message: str) -> None:
    for call in (pipeline.generate, pipeline.stream):
        with pytest.raises(InputError, match=message):
            call(**{"subjects": [0, 1], **odd})


@pytest.mark.parametrize("odd, message", OPEN, ids=[str(c[0])[:40] for c in OPEN])
def test_opening_is_refused_in_words(bundle: Path, odd: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Pipeline.open(bundle, **odd)


def test_what_is_no_function_cannot_see_steps(pipeline: Pipeline) -> None:
    with pytest.raises(InputError, match="on_step is a function"):
        pipeline.generate([0], on_step="print")  # type: ignore[arg-type]


def test_arrays_are_good_batch_sizes_and_a_time_that_is_over_is_a_timeout(bundle: Path) -> None:
    with Pipeline.open(bundle, threads=1, batch_sizes=np.array([2, 1, 2])) as pipeline:  # type: ignore[arg-type]
        assert pipeline.batch_sizes == (1, 2)
        with pytest.raises(PipelineTimeout):
            pipeline.generate([0], timeout=-1)


@pytest.mark.parametrize("size", [2**62, 2**63, 2**70])
def test_buffers_that_no_array_can_hold(size: int) -> None:
    with pytest.raises(BackendError, match=r"no memory for buffers of [\d,]+ bytes: use fewer slots"):
        HostMemory(size)


@pytest.mark.parametrize(
    "path, error, message",
    [
        (None, InputError, "opened by the path of its folder; found None"),
        (3, InputError, "found 3"),
        ("x" * 5000, BundleError, "cannot be read: File name too long"),
        ("a\0b", BundleError, "is not a bundle: there is no such folder"),
    ],
)
def test_paths_that_are_none(path: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        open_bundle(path)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="modes are POSIX's")
@pytest.mark.parametrize("name", [WEIGHTS_FILE, "begin.onnx", FILE_NAME, "."])
def test_files_that_may_not_be_read(bundle: Path, name: str) -> None:
    with tempfile.TemporaryDirectory() as outer:  # not in tmp_path, which is this user's alone
        Path(outer).chmod(0o755)
        folder = Path(shutil.copytree(bundle, Path(outer) / "tiny"))
        folder.chmod(0o755)
        (folder / name).chmod(0)
        try:
            with as_no_one(), pytest.raises(BundleError, match="cannot be read: Permission denied"):
                open_bundle(folder)
        finally:
            folder.chmod(0o755)


@contextmanager
def as_no_one() -> Iterator[None]:
    """Without the rights of root, which may read everything."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
