"""What a parser says, as far as one can be made to say it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from nextscale.runtime.backends.tensorrt import engine
from nextscale.runtime.errors import BackendError


@pytest.mark.parametrize("said", ["", " \n", None])
def test_a_parser_that_gives_no_reason_is_one_sentence_too(said: str | None) -> None:
    errors = [] if said is None else [said]
    parser: Any = SimpleNamespace(num_errors=len(errors), get_error=lambda i: SimpleNamespace(desc=lambda: errors[i]))
    job: Any = SimpleNamespace(source="step_01.onnx")
    with pytest.raises(BackendError, match=r"^the parser refuses step_01\.onnx: no reason given$"):
        engine._check_parsed(job, parser, None, False, [])
