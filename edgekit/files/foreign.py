"""Refuse a file for what opening it would import."""

from __future__ import annotations

import re
from collections.abc import Iterable

from edgekit.errors import UnsafeFileError
from edgekit.files.pickle_scan import foreign_imports
from edgekit.files.wording import listing

# Modules through which a pickle runs commands or arbitrary code; no trained network needs them.
_RUNS_CODE = re.compile(
    r"(asyncio|bdb|code|codeop|commands|ctypes|functools|imp|importlib|_?io|linecache|marshal"
    r"|multiprocessing|nt|_?operator|os|pdb|_?pickle|pip|pkgutil|platform|posix|profile|pty|runpy"
    r"|setuptools|shutil|signal|socket|subprocess|sys|tempfile|threading|timeit|types|webbrowser"
    r"|zipimport)\..*"
    r"|(builtins|__builtin__)\.(?!set$|frozenset$|slice$|complex$|bytearray$|range$|list$|dict$).*"
)
_TRUST = "if you know and trust who made it, add --trust-pickle, which runs what it contains; "


def refuse_imports(imports: Iterable[str], what: str, where: str, advice: str = "") -> None:
    """Raise if ``imports`` has names that plain weights do not need.

    Args:
        imports: dotted names that a pickle would import.
        what: what would import them, such as ``"holds a whole pickled network, which"``.
        where: the file's name.
        advice: the way on for an honest file.

    Raises:
        UnsafeFileError: there are such names; the message lists them.
    """
    foreign = foreign_imports(imports)
    if not foreign:
        return
    message = f"{where}: {what} would import {listing(foreign, 8)}; nothing was run"
    if any(_RUNS_CODE.fullmatch(name) for name in foreign):
        raise UnsafeFileError(
            message,
            "no network needs that: do not open this file, also not with other tools, unless you "
            "know who made it",
        )
    raise UnsafeFileError(message, _TRUST + (advice or "do not open it with other tools otherwise"))


def refuse_pickled(imports: Iterable[str], where: str) -> None:
    """Raise if a torch.save file asks for more than weights need.

    Raises:
        UnsafeFileError: it does; the hint says how to save the weights alone.
    """
    imports = tuple(imports)
    network = any(name.startswith("torch.nn.modules.") for name in foreign_imports(imports))
    what = "holds a whole pickled network, which" if network else "holds more than tensors, which"
    source = "torch.load(FILE, weights_only=False)" if network else "network"
    advice = (
        "or save its weights alone where it was made: "
        f"torch.save({source}.state_dict(), 'weights.pt'), and pass weights.pt with --arch"
    )
    refuse_imports(imports, what, where, advice)
