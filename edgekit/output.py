"""A result directory that appears whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

from edgekit.errors import OutputError


class AtomicDirectory:
    """Collects files in a hidden sibling folder, which is renamed into place by :meth:`commit`.

    Leaving the context without a commit removes everything.

    Raises:
        OutputError: the final directory exists, or its parent cannot be written.
    """

    def __init__(self, final: Path) -> None:
        self.final = final
        self.path = final  # replaced by the working folder on entry

    def __enter__(self) -> AtomicDirectory:
        if self.final.exists() or self.final.is_symlink():
            raise OutputError(
                f"the output directory '{self.final}' exists already",
                "choose another one with --out, or remove it first",
            )
        try:
            self.final.parent.mkdir(parents=True, exist_ok=True)
            made = tempfile.mkdtemp(prefix=f".{self.final.name}.", dir=self.final.parent)
        except OSError as error:
            raise _unwritable(self.final, error) from error
        self.path = Path(made)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.path != self.final:
            shutil.rmtree(self.path, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise _unwritable(self.final, error) from error

    def commit(self) -> None:
        """Give the directory its final name."""
        self.path.chmod(0o777 & ~_umask())  # mkdtemp makes private folders
        try:
            os.rename(self.path, self.final)
        except OSError as error:
            raise _unwritable(self.final, error) from error
        self.path = self.final


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"the output directory '{path}' cannot be written: {error.strerror or error}",
        "free space there, or choose another place with --out",
    )
