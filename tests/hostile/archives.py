"""TorchScript that acts when it is opened, archives that lie about their members, zip bombs."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from hostile.case import ZOO, Case, Command, file_case
from hostile.making import (
    Saving,
    exported,
    exported_with,
    scripted,
    torch_bytes,
    zip_bytes,
)
from hostile.pickles import NOTHING_RUN, open_members

DAMAGED = ("load", "unsafe_file")


def script_with(members: dict[str, bytes]) -> bytes:
    return zip_bytes(scripted(nn.Linear(4, 4)) | members)


def code_of(members: dict[str, bytes]) -> str:
    return next(name for name in members if name.endswith(".py"))


def script_with_line(line: str) -> bytes:
    """The archive of a linear layer with one more line at the start of its forward pass."""
    members = scripted(nn.Linear(4, 4))
    name = code_of(members)
    source = members[name].decode()
    head, body = source.split("-> Tensor:\n", 1)
    members[name] = f"{head}-> Tensor:\n    {line}\n{body}".encode()
    return zip_bytes(members)


def jit_load(path: Path) -> object:
    return torch.jit.load(path)


def jit_run(path: Path) -> object:
    return torch.jit.load(path)(torch.zeros(1, 4))


SCRIPTS = (
    file_case(
        "TorchScript, pickle of the network",
        lambda m: script_with({"archive/data.pkl": pickle.dumps(Command(m), 2)}),
        NOTHING_RUN,
        open_members,
    ),
    file_case(
        "TorchScript, pickle of the constants",
        lambda m: script_with({"archive/constants.pkl": pickle.dumps((Command(m),), 2)}),
        NOTHING_RUN,
        open_members,
    ),
    file_case(
        "TorchScript, pickle behind the constants",
        lambda m: script_with(
            {"archive/constants.pkl": pickle.dumps((), 2) + pickle.dumps(Command(m), 2)}
        ),
        NOTHING_RUN,
    ),
    file_case(
        "TorchScript that writes a file when it is opened",
        lambda m: zip_bytes(scripted(Saving(str(m)))),
        "restores a state of its own when it is opened",
        jit_load,
    ),
    file_case(
        "TorchScript that writes a file when it is called",
        lambda m: script_with_line(f'torch.save(torch.zeros([1]), "{m}")'),
        r"uses torch\.save, which does more",
        jit_run,
        words=("quantize", "model.pt", "--input", "1x4"),
    ),
    file_case(
        "TorchScript that makes a file when it is called",
        lambda m: script_with_line(f'input = torch.add(input, torch.from_file("{m}", True, 4))'),
        r"uses torch\.from_file, which does more",
        jit_run,
        words=("quantize", "model.pt", "--input", "1x4"),
    ),
    file_case(
        "TorchScript that writes a file under another name",
        lambda m: script_with_line(f'f = torch.save\n    f(torch.zeros([1]), "{m}")'),
        r"uses torch\.save, which does more",
        jit_run,
        words=("quantize", "model.pt", "--input", "1x4"),
    ),
    file_case(
        "TorchScript that writes a file through getattr",
        lambda m: script_with_line(f'getattr(torch, "save")(torch.zeros([1]), "{m}")'),
        "has an attribute named 'save'",
        jit_run,
        words=("quantize", "model.pt", "--input", "1x4"),
    ),
    file_case(
        "TorchScript that reads any memory",
        lambda _: script_with_line(
            "w = torch._unsafe_index(input, [None, torch.arange(1000000000, 1000000004)])"
        ),
        r"uses torch\._unsafe_index, which does more",
    ),
    file_case(
        "TorchScript with an operator of another library",
        lambda m: script_with_line('w = ops.inductor.accumulate_grad_("a")'),
        "uses ops.inductor of another library",
    ),
    file_case(
        "TorchScript with an attribute that is code",
        lambda m: script_with_line('w = getattr(self, "a\\"), print(\'b\'), (\\"c")'),
        "has an attribute named",
    ),
    file_case(
        "TorchScript whose code is no code",
        lambda m: script_with({code_of(scripted(nn.Linear(4, 4))): b"class :::"}),
        "TorchScript code .* cannot be read",
        codes=DAMAGED,
    ),
)


def bomb(name: str, size: int = 30_000_000) -> bytes:
    return zip_bytes({name: bytes(size)}, zipfile.ZIP_DEFLATED)


def with_bomb(members: dict[str, bytes], name: str) -> bytes:
    """An archive one member of which is compressed zeros."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for place, content in members.items():
            packed = zipfile.ZIP_DEFLATED if place == name else zipfile.ZIP_STORED
            archive.writestr(place, bytes(100_000_000) if place == name else content, packed)
    return buffer.getvalue()


def patched_sizes(content: bytes, sizes: tuple[int, int]) -> bytes:
    """Overwrite both sizes of the first entry in a zip's table of contents."""
    place = content.index(b"PK\x01\x02") + 20
    return content[:place] + struct.pack("<II", *sizes) + content[place + 8 :]


def overlapping(copies: int) -> bytes:
    """One stored member that the table of contents lists many times under other names."""
    content = zip_bytes({"net/data.pkl": b"a" * 1000})
    start, end = content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")
    central = content[start:end]
    entries = central + b"".join(
        central.replace(b"data.pkl", f"d{index:03}.pkl".encode()) for index in range(1, copies)
    )
    counts = struct.pack("<HHII", copies, copies, len(entries), start)
    return content[:start] + entries + content[end : end + 8] + counts + content[end + 20 :]


def two_of_one_name() -> bytes:
    evil, good = pickle.dumps([1, 2], 2), pickle.dumps({}, 2)
    content = zip_bytes({"net/data.pkl": good, "net/dbta.pkl": evil})
    return content.replace(b"net/dbta.pkl", b"net/DATA.pkl")


def _bad_zip(name: str, content: Callable[[], bytes], said: str) -> Case:
    words = ("quantize", "model.pt", "--arch", ZOO)
    return file_case(name, lambda _: content(), said, words=words, codes=DAMAGED)


LIES = (
    _bad_zip("zip bomb, torch.save", lambda: bomb("net/data.pkl"), "declares 30,000,000 bytes"),
    _bad_zip("zip bomb, unknown archive", lambda: bomb("weights.pkl"), "torch.save did not write"),
    _bad_zip(
        "zip bomb, .pt2",
        lambda: with_bomb(exported(), "archive/models/model.json"),
        "declares 100,00",
    ),
    _bad_zip(
        "zip bomb, TorchScript",
        lambda: with_bomb(scripted(nn.Linear(4, 4)), code_of(scripted(nn.Linear(4, 4)))),
        "declares 100,0",
    ),
    _bad_zip("zip bomb of overlapping members", lambda: overlapping(900), "declares 900,000 bytes"),
    _bad_zip(
        "zip that declares 4 GiB",
        lambda: patched_sizes(torch_bytes({"a": torch.zeros(9)}), (2**32 - 2, 2**32 - 2)),
        "declares 4,29",
    ),
    _bad_zip(
        "path outside, torch.save",
        lambda: zip_bytes({"net/data.pkl": b"", "../../etc/cron.d/x": b""}),
        r"point outside of it: \.\./\.\./etc",
    ),
    _bad_zip(
        "path outside, .pt2",
        lambda: exported_with(**{"archive/../../escaped": b"a"}),
        r"point outside of it",
    ),
    _bad_zip(
        "path outside, TorchScript",
        lambda: script_with({"archive/code/../../../escaped.py": b""}),
        "point outside of it",
    ),
    _bad_zip("absolute path", lambda: zip_bytes({"/etc/passwd": b""}), "point outside of it"),
    _bad_zip("path with backslashes", lambda: zip_bytes({"net\\..\\x": b""}), "point outside"),
    _bad_zip("path with a drive", lambda: zip_bytes({"C:/x": b""}), "point outside of it: C:/x"),
    _bad_zip("two members of one name", two_of_one_name, "two members of the same name"),
    _bad_zip(
        "two networks in one archive",
        lambda: zip_bytes({"a/data.pkl": pickle.dumps({}, 2), "b/data.pkl": pickle.dumps({}, 2)}),
        "one top folder",
    ),
)


def _special(name: str, make: Callable[[Path], None], said: str) -> Case:
    words = ("quantize", "model.pt", "--arch", ZOO)
    return Case(name, lambda folder, _: make(folder / "model.pt"), said, words=words, codes=DAMAGED)


SPECIAL_FILES = (
    _special("pipe", lambda path: os.mkfifo(path), "is not a regular file"),
    _special(
        "link to an endless device",
        lambda path: path.symlink_to("/dev/zero"),
        "is not a regular file",
    ),
    _special("link to itself", lambda path: path.symlink_to(path), "cannot be read"),
)
ARCHIVES = (*SCRIPTS, *LIES, *SPECIAL_FILES)
