"""What ``torch.compile`` needs beside PyTorch."""

from __future__ import annotations

import pytest

from nextscale.compare import columns


@pytest.mark.parametrize(
    ("named", "there", "sentence"),
    [
        (None, ("clang",), None),
        (None, (), "there is none: install gcc or clang"),
        ("mycc", ("mycc",), None),
        ("mycc", ("gcc",), "CC names 'mycc', which is not there"),
    ],
)
def test_a_gpu_needs_a_c_compiler_too(
    monkeypatch: pytest.MonkeyPatch, named: str | None, there: tuple[str, ...], sentence: str | None
) -> None:
    monkeypatch.setattr(columns, "lacking_cuda", lambda: None)
    monkeypatch.setattr(columns, "find_spec", lambda name: object())
    monkeypatch.setattr(columns, "which", lambda name: name if name in there else None)
    monkeypatch.delenv("CC", raising=False)
    if named:
        monkeypatch.setenv("CC", named)
    why = columns.lacking_compiler("cuda")
    assert why is None if sentence is None else sentence in str(why)
