"""Messages: read back as they were, read by safetensors itself, refused when malformed."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load, save

from pfi.errors import FederationError
from pfi.federate.message import _KINDS, Message

ARRAYS = hnp.arrays(
    st.sampled_from([np.dtype(kind) for kind in _KINDS]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)
VALUES = st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False), st.text())


@given(st.dictionaries(st.text(min_size=1, max_size=5), ARRAYS, max_size=4),
       st.dictionaries(st.text(max_size=5), VALUES, max_size=4))  # fmt: skip
def test_a_message_is_read_back_and_safetensors_reads_it(
    arrays: dict[str, Any], values: dict[str, Any]
) -> None:
    arrays = {name: array for name, array in arrays.items() if name != "__metadata__"}
    message = Message(arrays, values)
    data = message.encode()
    assert message.size == len(data)
    back = Message.decode(data)
    assert back.values == values
    for found in (back.arrays, load(data)):
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype and found[name].shape == array.shape
            assert found[name].tobytes() == array.tobytes()
    assert back.encode() == data  # so both ends take the same digest


@pytest.mark.parametrize("data", [
    b"",
    b"nothing",
    b"\xff" * 40,
    (1 << 40).to_bytes(8, "little") + b"{}",
    save({"a": np.zeros(2)}),
    save({"a": np.zeros(2)}, metadata={"values": "[1]"}),
    save({"a": np.zeros(2)}, metadata={"values": json.dumps({"x": [1]})}),
    save({"a": np.zeros(2)}, metadata={"values": "[" * 100_000}),
    Message({"a": np.zeros(9)}).encode()[:-1],
    Message({"a": np.zeros(9)}).encode() + b"more",
])  # fmt: skip
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(FederationError, match="malformed"):
        Message.decode(data)


def test_what_a_message_lacks_is_named() -> None:
    message = Message({"a": np.zeros((2, 3), np.float32)}, {"n": 1, "flag": True, "far": 1e400})
    assert message.array("a", np.float32, (2, 3)).shape == (2, 3)
    assert message.number("n") == 1
    for wrong in (("b", np.float32, None), ("a", np.int8, None), ("a", np.float32, (3, 2))):
        with pytest.raises(FederationError, match=wrong[0]):
            message.array(*wrong)
    for name in ("flag", "none", "far"):
        with pytest.raises(FederationError, match=name):
            message.number(name)
