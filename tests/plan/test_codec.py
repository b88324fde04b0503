"""The JSON form: nothing is lost on the way, nothing unknown gets in, errors name their place."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextscale.plan.codec import from_json, to_json
from nextscale.plan.errors import PlanError
from nextscale.plan.types import (
    Cache,
    Diffusion,
    Guidance,
    Layer,
    Model,
    NextInput,
    Plan,
    RowGather,
    Sampling,
    Segment,
    Step,
    SubLayer,
    Tape,
    TapeWrite,
    Text,
    Tokenizer,
)

counts, names = st.integers(0, 1 << 40), st.text(max_size=8)
numbers = st.floats(allow_nan=False, allow_infinity=False)
grids = st.tuples(counts, counts)


def tuples(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(strategy, max_size=3).map(tuple)


sub_layers = st.builds(SubLayer, names, st.none() | counts, st.none() | names)
segments = st.builds(Segment, names, counts, counts, st.none() | names)
writes = st.builds(TapeWrite, names, counts, counts, names)
layers = st.builds(Layer, counts, tuples(sub_layers), tuples(segments), tuples(writes))
samplings = st.builds(Sampling, counts, tuples(names), st.booleans(), numbers)
next_inputs = st.builds(NextInput, names, st.none() | grids, names, names, st.none() | counts)
steps = st.builds(
    Step,
    *(counts, counts, grids, counts, counts, tuples(layers), st.none() | samplings, next_inputs, names, names),
    diffusion=st.booleans(),
)
flags = dict.fromkeys(("qk_norm", "adaln", "shared_adaln", "gated_ffn", "level_mlp"), st.booleans())
models = st.builds(
    Model,
    names,
    *[counts] * 8,
    sub_layers=tuples(names),
    rope=names,
    rope_grid=st.none() | grids,
    bits=counts,
    text=st.none() | st.builds(Text, counts, counts, names, st.booleans()),
    diffusion=st.none() | st.builds(Diffusion, counts, counts, counts),
    **flags,
)
tokenizers = st.builds(Tokenizer, counts, tuples(counts), *[counts] * 7, st.booleans(), st.booleans())
guidances = st.builds(Guidance, tuples(names), tuples(tuples(tuples(numbers))), tuples(names))
plans = st.builds(
    Plan,
    names,
    tuples(st.tuples(names, models)),
    tokenizers,
    tuples(grids),
    guidances,
    tuples(steps),
    tuples(st.builds(Tape, names, names, counts, counts, counts, st.booleans())),
    tuples(st.builds(Cache, names, names, counts, names, grids)),
    tuples(st.builds(RowGather, counts, counts, counts)),
    tuples(names),
    tuples(st.tuples(names, numbers)),
)


@given(plan=plans)
def test_round_trip_through_text(plan: Plan) -> None:
    assert from_json(json.loads(json.dumps(to_json(plan)))) == plan


def small() -> dict[str, Any]:
    """A plan's JSON with one of everything that the error tests below break."""
    layer = Layer(0, (SubLayer("attn"),), (Segment("var.00", 0, 1),))
    step = Step(0, 1, (2, 2), 4, 4, (layer,), Sampling(9), NextInput("code_sum", None))
    return to_json(
        Plan(
            name="small",
            models=(("var", Model("var", 1, 8, 1, 8, 32, 16, 4)),),
            tokenizer=Tokenizer(8, (1, 1), 1, 4, 16, 2),
            schedule=((1, 1), (2, 2)),
            guidance=Guidance(("conditional",), (((1.0, 0.0),), ((1.0, 0.0),))),
            steps=(step,),
            tapes=(Tape("var.00", "var", 0, 1),),
        )
    )


def test_whole_numbers_are_floats_where_floats_belong() -> None:
    data = small()
    data["guidance"]["weights"][0][0] = [1, 0]
    assert from_json(data).guidance.weights[0][0] == (1.0, 0.0)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (
            ["steps", 0, "layers", 0, "kpet"],
            3,
            r"plan.steps\[0\].layers\[0\] has the unknown key 'kpet'; known are index",
        ),
        (["steps", 0, "grid"], [2], r"plan.steps\[0\].grid must be an array of 2; found \[2\]"),
        (["steps", 0, "layers"], None, r"plan.steps\[0\].layers must be an array; found None"),
        (["steps", 0, "scale"], True, r"plan.steps\[0\].scale must be an integer; found True"),
        (["steps", 0, "scale"], 1.0, r"plan.steps\[0\].scale must be an integer; found 1.0"),
        (["steps", 0, "sampling", "smooth"], 1, r"plan.steps\[0\].sampling.smooth must be true or false; found 1"),
        (["name"], 7, "plan.name must be a string; found 7"),
        (["tokenizer"], [], r"plan.tokenizer must be an object; found \[\]"),
        (
            ["guidance", "weights", 0, 0, 1],
            float("nan"),
            r"plan.guidance.weights\[0\]\[0\]\[1\] must be a finite number",
        ),
        (["schema_version"], 1, "schema version 1, this Nextscale reads 2: export the bundle again"),
    ],
)
def test_what_is_wrong_is_named(place: list[Any], value: Any, message: str) -> None:
    data = small()
    *way, last = place
    target: Any = data
    for key in way:
        target = target[key]
    target[last] = value
    with pytest.raises(PlanError, match=message):
        from_json(data)


def test_what_is_missing_is_named() -> None:
    data = small()
    del data["steps"][0]["next_input"]["phi"]
    with pytest.raises(PlanError, match=r"plan.steps\[0\].next_input lacks the key 'phi'"):
        from_json(data)


@pytest.mark.parametrize("data", [None, [], "plan", {}])
def test_what_is_no_plan_is_refused(data: Any) -> None:
    with pytest.raises(PlanError, match="schema version None"):
        from_json(data)
