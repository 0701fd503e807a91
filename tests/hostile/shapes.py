"""Files whose sizes and numbers are made to exhaust memory or to crash a reader."""

from __future__ import annotations

import io
import json
import pickle
import struct
from collections.abc import Callable
from typing import Any

import torch

from hostile.case import ZOO, Case, file_case
from hostile.making import config_with, legacy_pickles, program_with, torch_bytes, zip_bytes
from hostile.pickles import checkpoint_with

HUGE = 10**12
DAMAGED = ("load", "unsafe_file", "config")


class Absurd:
    """Stands for a storage of four terabytes."""


def absurd(legacy: bool) -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: object) -> object:
            size = ("storage", torch.FloatStorage, "0", "cpu", HUGE)
            return None if not isinstance(obj, Absurd) else (*size, None) if legacy else size

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump({"w": Absurd()})
    if legacy:
        pickles = legacy_pickles({})
        return b"".join([*pickles[:3], buffer.getvalue(), pickles[4]])
    return zip_bytes({"net/data.pkl": buffer.getvalue(), "net/data/0": bytes(8)})


class Rebuilt:
    """Pickles as a call of one of torch's functions that make a tensor."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def rebuilt(size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    storage = torch.zeros(4).storage()
    arguments = (storage, offset, size, stride, False, {})
    return torch_bytes({"w": Rebuilt(torch._utils._rebuild_tensor_v2, *arguments)})


def safetensors(header: bytes, content: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + content


def tensor_header(shape: list[int], end: int) -> bytes:
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}
    return json.dumps({"a": entry}).encode()


def laughs(depth: int) -> list[object]:
    """A small list that would be very long if anybody wrote it out."""
    value: list[object] = ["ha"] * 10
    for _ in range(depth):
        value = [value] * 10
    return value


def sized(change: Callable[[dict[str, Any]], object]) -> bytes:
    return config_with("weights", lambda table: change(table["layer.weight"]["tensor_meta"]))


def input_size(program: dict[str, Any], size: int) -> None:
    for meta in program["graph_module"]["graph"]["tensor_values"].values():
        meta["sizes"] = [{"as_int": 1}, {"as_int": size}]


def _case(name: str, content: Callable[[], bytes], said: str) -> Case:
    words = ("quantize", "model.pt", "--arch", ZOO)
    return file_case(name, lambda _: content(), said, words=words, codes=DAMAGED)


def _program_case(name: str, content: Callable[[], bytes], said: str) -> Case:
    return file_case(name, lambda _: content(), said, codes=DAMAGED)


SHAPES = (
    _case("storage of terabytes", lambda: absurd(False), "declares tensors of 1,000,000,000,000"),
    _case("storage of terabytes, old", lambda: absurd(True), "declares tensors of 1,000,000,000"),
    _case(
        "tensor beyond its storage", lambda: rebuilt((10, 10), (10, 1)), "cannot be read|does not"
    ),
    _case("tensor before its storage", lambda: rebuilt((2,), (1,), -9), "cannot be read|does not"),
    _case("tensor of terabytes by repetition", lambda: rebuilt((HUGE,), (0,)), "does not fit"),
    _case("lists of lists", lambda: torch_bytes({"w": laughs(12)}), "not a state dict|no tensors"),
    _case(
        "list that holds itself",
        lambda: torch_bytes(_circular()),
        "not a state dict|no tensors|cannot be read",
    ),
    _case(
        "terminal codes in a name",
        lambda: torch_bytes({"a\x1b[2J\x1b]0;owned\x07\nb": torch.zeros(1)}),
        r"a\\x1b\[2J",
    ),
    _case(
        "checkpoint with an absurd input",
        lambda: torch_bytes(
            checkpoint_with("inputs", [{"name": "x", "shape": [1, 3, 10**6, 10**6]}])
        ),
        "states an input 'x' of 3,000,000,000,000 elements",
    ),
    _case(
        "safetensors, absurd header",
        lambda: safetensors(b'{"a": 1}' + bytes(100), length=10**15),
        "header declares 1,000,000,000,000,000 bytes",
    ),
    _case(
        "safetensors, deep header",
        lambda: safetensors(b'{"a":' + b"[" * 200_000),
        "header is not JSON",
    ),
    _case(
        "safetensors, tensor of terabytes",
        lambda: safetensors(tensor_header([HUGE], 4 * HUGE), bytes(4)),
        "cannot be read",
    ),
    _case(
        "safetensors, overflowing shape",
        lambda: safetensors(tensor_header([2**33, 2**33], 16), bytes(16)),
        "cannot be read",
    ),
    _program_case(
        ".pt2, weight of terabytes",
        lambda: sized(lambda meta: meta.update({"sizes": [{"as_int": HUGE}, {"as_int": 4}]})),
        "needs .* elements",
    ),
    _program_case(
        ".pt2, weight of terabytes by repetition",
        lambda: sized(
            lambda meta: meta.update(
                {"sizes": [{"as_int": HUGE}] * 2, "strides": [{"as_int": 0}] * 2}
            )
        ),
        "needs .* elements",
    ),
    _program_case(
        ".pt2, weight before its bytes",
        lambda: sized(lambda meta: meta.update({"storage_offset": {"as_int": -4}})),
        "table of the archive's weights is damaged",
    ),
    _program_case(
        ".pt2, weight of another type",
        lambda: sized(lambda meta: meta.update({"dtype": "os.system"})),
        "table of the archive's weights is damaged",
    ),
    _program_case(
        ".pt2, absurd input",
        lambda: program_with(lambda program: input_size(program, HUGE)),
        "states an input 'image' of 1,000,000,000,000 elements|cannot read this archive",
    ),
    _program_case(
        ".pt2, power of powers",
        lambda: program_with(
            lambda program: program["graph_module"]["graph"]["tensor_values"]["relu"].update(
                {"sizes": [{"as_expr": {"expr_str": "9**9**9**9", "hint": {"as_int": 2}}}] * 2}
            )
        ),
        "does not accept from a file",
    ),
    file_case(
        ".pt2, endless symbols",  # the limits of a symbol that does not exist are left out
        lambda _: program_with(
            lambda program: program.update(
                {"range_constraints": {"u99999999999": {"min_val": 0, "max_val": 1}}}
            )
        ),
        "nowhere",
        words=("quantize", "model.pt", "--targets", "nowhere"),
        codes=("config",),
    ),
    _program_case(
        ".pt2, operator without arguments",  # torch logs a traceback for it
        lambda: program_with(
            lambda program: program["graph_module"]["graph"]["nodes"][0].update({"inputs": []})
        ),
        "cannot read this archive",
    ),
    _program_case(
        ".pt2, deep program",
        lambda: program_with(lambda program: program.update({"graph_module": _deep(900)})),
        "program cannot be read",
    ),
)


def _circular() -> dict[str, object]:
    value: dict[str, object] = {}
    value["w"] = [value]
    return value


def _deep(depth: int) -> dict[str, object]:
    value: dict[str, object] = {}
    for _ in range(depth):
        value = {"graph": value}
    return value
