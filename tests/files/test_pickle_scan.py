from __future__ import annotations

import collections
import contextlib
import io
import os
import pickle
import pickletools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.files.pickle_scan import (
    MalformedPickleError,
    PickleScan,
    foreign_imports,
    scan_pickle,
)

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


class Calls:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


class Anything(dict[Any, Any]):
    """Takes every construction and every state that a pickle may give it."""

    def __new__(cls, *_args: object) -> Anything:
        return super().__new__(cls)

    def __init__(self, *_args: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None: ...

    def __call__(self, *_args: object) -> Anything:
        return self


def scan(content: bytes) -> PickleScan:
    return scan_pickle(io.BytesIO(content))


def imported_by_unpickling(content: bytes) -> set[str]:
    """The reference: Python's own unpickler, asked for its imports and given harmless objects."""

    class Recorder(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            names.add(f"{module}.{name}")
            return Anything

    names: set[str] = set()
    Recorder(io.BytesIO(content)).load()
    return names


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "value",
    [
        [1, "a", {"b": (None, True, 2.5)}, b"bytes", 2**70, -1],
        {"nested": [Calls(os.system, "true"), {"deep": Calls(os.system, "true")}]},
        [Calls(os.system, "a"), Calls(os.getenv, "b"), Calls(os.system, "c")],
        collections.OrderedDict(a=np.float64(1.5), b=np.arange(3)),
        {"set": {1, 2}, "frozen": frozenset("ab"), "complex": 1j, "type": int},
        [pickle.PickleBuffer, collections.Counter("aab")],
    ],
    ids=["plain", "nested", "repeated", "numpy", "builtins", "classes"],
)
def test_imports_agree_with_the_unpickler(protocol: int, value: object) -> None:
    content = pickle.dumps(value, protocol)
    assert scan(content).imports == imported_by_unpickling(content)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_imports_survive_the_optimizer(protocol: int) -> None:
    # It removes unused memo entries, so the numbering of what MEMOIZE stores changes.
    content = pickletools.optimize(pickle.dumps([Calls(os.system, "a")] * 3, protocol))
    assert scan(content).imports == {"posix.system"}


def test_name_that_comes_from_the_memo() -> None:
    # Strings first stored, then fetched: what a scanner that only looks one string back misses.
    content = (
        b"\x80\x04\x8c\x05posix\x940\x8c\x06system\x940\x8c\x05innoc\x8c\x04uous00h\x00h\x01\x93."
    )
    assert imported_by_unpickling(content) == {"posix.system"}
    assert scan(content).imports == {"posix.system"}


def test_name_that_is_made_at_run_time_is_not_overlooked() -> None:
    made = b"\x80\x04" + b"\x8c\x05posix" + b"\x8c\x08builtins\x8c\x03str\x93(t\x52" + b"\x93."
    assert "a name made at run time" in scan(made).imports


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"cposix\nsystem\n.", "posix.system"),
        (b"(S'true'\niposix\nsystem\n.", "posix.system"),
        (b"\x80\x02\x82\x07.", "copyreg extension 7"),
    ],
    ids=["GLOBAL", "INST", "EXT1"],
)
def test_old_instructions(content: bytes, expected: str) -> None:
    assert scan(content).imports == {expected}


def test_stream_is_left_behind_the_pickle() -> None:
    stream = io.BytesIO(pickle.dumps(1) + pickle.dumps([Calls(os.system, "a")]))
    assert scan_pickle(stream).imports == frozenset()
    assert scan_pickle(stream).imports == {"posix.system"}
    assert stream.read() == b""


def test_storages_are_counted_once() -> None:
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return ("storage", int, obj[1], "cpu", obj[2]) if isinstance(obj, tuple) else None

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump([("s", "0", 100), ("s", "1", 23), ("s", "0", 100)])
    assert scan(buffer.getvalue()).storage_elements == 123


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x02",
        pickle.dumps(list(range(1000)))[:-1],
        b"\xff\xfe",
        b"t.",  # a tuple without its mark
        b"0.",  # takes from an empty stack
        b"h\x07.",  # fetches what was never stored
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.",  # a string of 2**63 - 1 bytes
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\xff.",  # bytes of 2**64 - 1 bytes
        b"I12x\n.",
    ],
)
def test_malformed(content: bytes) -> None:
    with pytest.raises(MalformedPickleError):
        scan(content)


def test_imports_in_front_of_the_damage_are_kept() -> None:
    # A real unpickler would have run them before it noticed.
    content = pickle.dumps(Calls(os.system, "true"), 2)[:-1] + b"\xff"
    with pytest.raises(MalformedPickleError) as caught:
        scan(content)
    assert caught.value.imports == {"posix.system"}


@given(st.binary(max_size=60))
def test_arbitrary_bytes_raise_nothing_else(content: bytes) -> None:
    with contextlib.suppress(MalformedPickleError):
        scan(b"\x80\x04" + content)


@pytest.mark.parametrize(
    ("name", "foreign"),
    [
        ("collections.OrderedDict", False),
        ("torch._utils._rebuild_tensor_v2", False),
        ("torch.FloatStorage", False),
        ("torch.cuda.HalfStorage", False),
        ("torch.float8_e4m3fn", False),
        ("torch.bfloat16", False),
        ("torch.bool", False),
        ("torch.float_power", True),
        ("torch.load", True),
        ("torch.storage._load_from_bytes", True),
        ("torch.nn.modules.linear.Linear", True),
        ("torch.os.FloatStorage", True),
        ("builtins.eval", True),
        ("collections.OrderedDict.fromkeys", True),
    ],
)
def test_what_weights_need(name: str, foreign: bool) -> None:
    assert (foreign_imports([name]) == (name,)) is foreign


def test_imports_outside_of_torch_come_first() -> None:
    names = ["torch.load", "posix.system", "torch.FloatStorage", "builtins.eval"]
    assert foreign_imports(names) == ("builtins.eval", "posix.system", "torch.load")
