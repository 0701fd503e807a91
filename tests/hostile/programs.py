"""torch.export archives: a pickle or a command in every member and every text of the program."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hostile.case import Case, Command, file_case
from hostile.making import (
    PROGRAM,
    config_with,
    exported,
    exported_with,
    old_exported_with,
    program_with,
    torch_bytes,
    zip_bytes,
)

Change = Callable[[dict[str, Any]], object]
PICKLED = r"would import .*system.*; nothing was run"
REFUSED = r"which edgekit does not accept from a file; nothing was run"
OBJECTS = r"pickled objects|would import"


def export_load(path: Path) -> object:
    return torch.export.load(io.BytesIO(path.read_bytes()))


def export_run(path: Path) -> object:
    """Load and call the program, which is what anybody does with it."""
    program = torch.export.load(io.BytesIO(path.read_bytes()))
    return program.module()(torch.zeros(2, 4))


def shell(marker: Path) -> str:
    return f"__import__('os').system('echo run > {marker}')"


def entry(path: str) -> dict[str, Any]:
    size = {"as_int": 4}
    return {
        "path_name": path,
        "is_param": False,
        "use_pickle": True,
        "tensor_meta": {
            "dtype": 7,
            "sizes": [size],
            "strides": [{"as_int": 1}],
            "storage_offset": {"as_int": 0},
            "requires_grad": False,
            "device": {"type": "cpu", "index": None},
            "layout": 7,
        },
    }


def graph(program: dict[str, Any]) -> dict[str, Any]:
    inner: dict[str, Any] = program["graph_module"]["graph"]
    return inner


def rename(program: dict[str, Any], old: str, new: str) -> None:
    """Replace a name wherever it stands, as a key or as a value."""
    changed = json.loads(json.dumps(program).replace(json.dumps(old), json.dumps(new)))
    program.clear()
    program.update(changed)


def call(program: dict[str, Any], target: str, text: str, kind: int = 1) -> None:
    """Put a call of ``target`` with one text in front of the first node."""
    nodes = graph(program)["nodes"]
    argument = {"name": "command", "arg": {"as_string": text}, "kind": kind}
    nodes.insert(
        0,
        {
            "target": target,
            "inputs": [argument],
            "outputs": [{"as_int": 0}],
            "metadata": {},
            "is_hop_single_tensor_return": None,
            "name": "called",
        },
    )


def make_file(program: dict[str, Any], marker: Path) -> None:
    """Let the program call an operator that creates the file it is told to map."""
    call(program, "torch.ops.aten.from_file.default", str(marker))
    node = graph(program)["nodes"][0]
    node["inputs"][0]["name"] = "filename"
    node["inputs"] += [
        {"name": "shared", "arg": {"as_bool": True}, "kind": 1},
        {"name": "size", "arg": {"as_int": 4}, "kind": 1},
    ]
    node["outputs"] = [{"as_tensor": {"name": "called"}}]
    graph(program)["tensor_values"]["called"] = entry("")["tensor_meta"]


def far_index(program: dict[str, Any]) -> None:
    """Let the program read far beyond its input, by the operator that trusts its indices."""
    nodes = graph(program)["nodes"]
    call(program, "torch.ops.aten.arange.start", "")
    far = nodes[0]
    far["inputs"] = [
        {"name": name, "arg": {"as_int": number}, "kind": 1}
        for name, number in (("start", 10**9), ("end", 10**9 + 4))
    ]
    far["outputs"] = [{"as_tensor": {"name": "far"}}]
    indices = [{"as_none": True}, {"as_tensor": {"name": "far"}}]
    reading = {
        "target": "torch.ops.aten._unsafe_index.Tensor",
        "inputs": [
            {"name": "self", "arg": {"as_tensor": {"name": "image"}}, "kind": 1},
            {"name": "indices", "arg": {"as_optional_tensors": indices}, "kind": 1},
        ],
        "outputs": [{"as_tensor": {"name": "read"}}],
        "metadata": {},
        "is_hop_single_tensor_return": None,
        "name": "read",
    }
    nodes.insert(1, reading)
    values = graph(program)["tensor_values"]
    values["far"] = entry("")["tensor_meta"] | {"dtype": 5}
    values["read"] = values["image"]
    for node in nodes[2:]:
        for argument in node["inputs"]:
            if argument["arg"] == {"as_tensor": {"name": "image"}}:
                argument["arg"] = {"as_tensor": {"name": "read"}}


def symbol(program: dict[str, Any], text: str) -> None:
    for meta in graph(program)["tensor_values"].values():
        for size in meta["sizes"]:
            if "as_expr" in size:
                size["as_expr"]["expr_str"] = text


def convention(program: dict[str, Any], key: str, context: str) -> None:
    signature = program["graph_module"]["module_call_graph"][0]["signature"]
    leaf = {"type": None, "context": None, "children_spec": []}
    spec = {"type": "builtins.dict", "context": context, "children_spec": [leaf]}
    signature[key] = json.dumps([1, spec])


def named_code(marker: Path) -> bytes:
    """An archive with a parameter whose name breaks out of the source that torch writes."""
    path = list(str(marker).encode())  # numbers: a dot in the name would split it into modules
    name = f'training"), exec("open(bytes({path}), \'w\')"), ("w'
    table = "archive/data/weights/model_weights_config.json"
    program, config = json.loads(exported()[PROGRAM]), json.loads(exported()[table])
    rename(program, "layer.weight", name)
    rename(config, "layer.weight", name)
    members = {PROGRAM: json.dumps(program).encode(), table: json.dumps(config).encode()}
    return exported_with(**members)


def pt2(
    name: str,
    content: Callable[[Path], bytes],
    said: str = PICKLED,
    proof: Callable[[Path], object] | None = export_load,
) -> Case:
    return file_case(f".pt2, {name}", content, said, proof)


def program_case(
    name: str,
    change: Callable[[dict[str, Any], Path], object],
    said: str = REFUSED,
    proof: Callable[[Path], object] | None = export_load,
) -> Case:
    return pt2(name, lambda m: program_with(lambda p: change(p, m)), said, proof)


_DATA = "archive/data"
_PICKLED_MEMBERS = (
    pt2(
        "sample inputs",
        lambda m: exported_with(**{f"{_DATA}/sample_inputs/model.pt": torch_bytes((Command(m),))}),
    ),
    pt2(
        "sample inputs in the old format",
        lambda m: exported_with(
            **{f"{_DATA}/sample_inputs/model.pt": torch_bytes((Command(m),), legacy=True)}
        ),
    ),
    pt2(
        "pickled state dict",
        lambda m: exported_with(**{f"{_DATA}/weights/model.pt": torch_bytes({"a": Command(m)})}),
    ),
    pt2(
        "pickled constants",
        lambda m: exported_with(**{f"{_DATA}/constants/model.pt": torch_bytes({"a": Command(m)})}),
    ),
    pt2(
        "one pickled weight",
        lambda m: config_with(
            "weights",
            lambda table: table.update({"layer.bias": entry("weight_9")}),
            **{f"{_DATA}/weights/weight_9": torch_bytes(Command(m))},
        ),
        OBJECTS,
    ),
    pt2(
        "one pickled constant",
        lambda m: config_with(
            "constants",
            lambda table: table.update({"c": entry("tensor_0")}),
            **{f"{_DATA}/constants/tensor_0": torch_bytes(Command(m))},
        ),
        OBJECTS,
    ),
    pt2(
        "opaque object",
        lambda m: config_with(
            "constants",
            lambda table: table.update({"c": entry("opaque_obj_0") | {"tensor_meta": None}}),
            **{f"{_DATA}/constants/opaque_obj_0": pickle.dumps(Command(m))},
        ),
        OBJECTS,
    ),
    pt2(
        "custom object",
        lambda m: config_with(
            "constants",
            lambda table: table.update({"c": entry("custom_obj_0") | {"tensor_meta": None}}),
            **{f"{_DATA}/constants/custom_obj_0": torch_bytes(Command(m))},
        ),
        OBJECTS,
        None,
    ),
    pt2(
        "extra file",
        lambda m: exported_with(**{"archive/extra/notes.pkl": pickle.dumps(Command(m))}),
        proof=None,
    ),
    *(
        pt2(
            f"before 2.8, {name.removeprefix('serialized_').removesuffix('.pt')}",
            lambda m, name=name: old_exported_with(**{name: torch_bytes({"a": Command(m)})}),
        )
        for name in (
            "serialized_state_dict.pt",
            "serialized_constants.pt",
            "serialized_example_inputs.pt",
        )
    ),
)
_TEXTS = (
    program_case("size that is code", lambda p, m: symbol(p, shell(m))),
    program_case(
        "size that is code inside a function",
        lambda p, m: symbol(p, f"Max(Integer(2), {shell(m)})"),
    ),
    program_case(
        "call of os.system",
        lambda p, m: call(p, "torch.os.system", f"echo run > '{m}'"),
        proof=None,
    ),
    program_case("call of torch.load", lambda p, m: call(p, "torch.load", str(m)), proof=None),
    program_case(
        "call of a library loader",
        lambda p, m: call(p, "torch.ops.load_library", str(m)),
        proof=None,
    ),
    program_case("operator that makes a file", make_file, proof=export_run),
    program_case(
        "operator of another library",
        lambda p, m: call(p, "torch.ops.inductor.resize_storage_bytes_.default", "a"),
        proof=None,
    ),
    program_case(
        "keyword that is code",
        lambda p, m: graph(p)["nodes"].insert(
            0,
            {
                "target": "torch.ops.higher_order.cond",
                "inputs": [{"name": f"a={shell(m)}, b", "arg": {"as_bool": True}, "kind": 2}],
                "outputs": [],
                "metadata": {},
                "name": "called",
            },
        ),
        proof=None,
    ),
    program_case(
        "input that is code",
        lambda p, m: rename(p, "image", f"x={shell(m)}"),
    ),
    pt2("parameter that is code", named_code, REFUSED, export_run),
    program_case(
        "custom class",
        lambda p, m: graph(p)["inputs"].append(
            {"as_custom_obj": {"name": "o", "class_fqn": "__torch__.torch.classes.a.B"}}
        ),
        proof=None,
    ),
)


def _write_enum(folder: Path, marker: Path) -> None:
    source = f"import enum\nopen({str(marker)!r}, 'w')\nclass E(enum.Enum):\n    A = 1\n"
    (folder / "evil_enum.py").write_text(source)
    context = json.dumps([{"__enum__": True, "fqn": "evil_enum:E", "name": "A"}])
    (folder / "model.pt").write_bytes(program_with(lambda p: convention(p, "out_spec", context)))


def _load_beside(path: Path) -> object:
    import sys

    sys.path.insert(0, str(path.parent))
    try:
        return export_load(path)
    finally:
        sys.path.remove(str(path.parent))


# Texts that edgekit has no use for are left out, and the rest of the archive is opened: the
# command ends for another reason, and nothing may have run.
_LEFT_OUT = (
    Case(
        ".pt2, calling convention that imports a module",
        _write_enum,
        "",
        _load_beside,
        words=("quantize", "model.pt", "--targets", "nowhere"),
        codes=("config",),
    ),
    file_case(
        ".pt2, guard that is code",
        lambda m: program_with(
            lambda p: p.update({"guards_code": [f"L['image'].size()[0] == {shell(m)}"]})
        ),
        "",
        export_run,
        words=("quantize", "model.pt", "--targets", "nowhere"),
        codes=("config",),
    ),
)
_UNCHECKED = (
    file_case(  # the operator is replaced by its twin, which finds the index
        ".pt2, index that reads any memory",
        lambda _: program_with(far_index),
        "index .* is out of bounds",
        words=("quantize", "model.pt", "--targets", "onnxruntime"),
        codes=("capture",),
    ),
)
_COMPILED = (
    file_case(
        ".pt2, compiled library",
        lambda _: zip_bytes(
            {
                "archive/archive_format": b"pt2",
                "archive/archive_version": b"0",
                "archive/data/aotinductor/model/net.so": b"\x7fELF",
            }
        ),
        "compiled machine code .*nothing was run",
    ),
)
PROGRAMS = (*_PICKLED_MEMBERS, *_TEXTS, *_LEFT_OUT, *_UNCHECKED, *_COMPILED)
