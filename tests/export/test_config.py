"""The ``config.json`` beside a checkpoint: every entry that is there is right, or refused in a sentence."""

from __future__ import annotations

from typing import Any

import pytest
from support.checkpoints import Files

from nextscale.plan.errors import InputError


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "NaN", '"patch_nums"', b"\xff\xfe\x00"])
def test_a_config_json_that_is_no_object(text: str | bytes, files: Files) -> None:
    files.write("var")
    (files.folder / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=r"config\.json (is not JSON|does not hold a JSON object).*mend it"):
        files.load()


WRONG: dict[str, list[Any]] = {
    "patch_nums": ["1234", 3, [], [1.5, 2], [[1], [2]], [[1, 2, 3]], [0, 2], [-1, 2], ["1"], [True, 2]],
    "heads": ["x", 0, -2, 1.5, True],
    "vae": [3, [], "x", *({"norm_groups": groups} for groups in ("x", 0, -1, 2.0))],
    "class_names": [3, "abc", [1], {"0": "a"}],
    "licence": [3, ["MIT"]],
}
ENTRIES = [(name, value) for name, values in WRONG.items() for value in values]


@pytest.mark.parametrize(("name", "value"), ENTRIES)
def test_an_entry_of_config_json_that_is_wrong(name: str, value: Any, files: Files) -> None:
    files.config(**{name: value})
    with pytest.raises(InputError, match=r"config\.json has (norm_groups|" + name + ") .* it should be "):
        files.load()


def test_entries_that_do_not_fit_the_tensors(files: Files) -> None:
    files.config(class_names=["a", "b"])
    with pytest.raises(InputError, match=r"config\.json names 2 classes and .*var\.pth has 10"):
        files.load()
    files.config(vae={"norm_groups": 5})
    with pytest.raises(InputError, match="has 32 channels, which cannot be normed in 5 groups"):
        files.load()
    for key in [k for k in files.states["var"] if k.endswith("scale_mul_1H11")]:
        del files.states["var"][key]
    files.config(heads=3)
    with pytest.raises(InputError, match="is 64 wide, which 3 heads cannot share"):
        files.load()
