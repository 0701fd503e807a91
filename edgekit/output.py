"""A result directory that appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

from edgekit.errors import EdgekitError, OutputError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_PROBE_BYTES = 1 << 16


class AtomicDirectory:
    """Collects files in a hidden sibling folder, which is renamed into place by :meth:`commit`.

    Leaving the context without a commit removes everything, folders above it that it made
    included.

    Attributes:
        final: the directory that :meth:`commit` makes.
        path: where files go until then.

    Raises:
        OutputError: the final directory exists, its parent cannot be written, or the disk is full.
    """

    def __init__(self, final: Path) -> None:
        self.final = final
        self.path = final  # replaced by the working folder on entry
        self._made: list[Path] = []

    def __enter__(self) -> AtomicDirectory:
        if os.path.lexists(self.final):
            raise OutputError(
                f"the output directory '{self.final}' exists already",
                "choose another one with --out, or remove it first",
            )
        try:
            self._make_parents()
            self.path = Path(tempfile.mkdtemp(prefix=f".{self.final.name}.", dir=self.final.parent))
        except OSError as error:
            self._remove()
            raise _unwritable(self.final, error) from error
        return self

    def _make_parents(self) -> None:
        missing = [parent for parent in self.final.parents if not os.path.lexists(parent)]
        for parent in reversed(missing):
            parent.mkdir(exist_ok=True)
            self._made.append(parent)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.path == self.final:
            return
        failure = self._storage_failure(error)
        self._remove()
        if failure is not None:
            raise failure from error

    def _storage_failure(self, error: BaseException | None) -> OutputError | None:
        """Return what a lack of space explains of ``error``.

        Native writers do not say why they failed, so it is tried whether the disk takes anything.
        """
        if not isinstance(error, Exception) or isinstance(error, EdgekitError):
            return None
        try:
            (self.path / ".probe").write_bytes(bytes(_PROBE_BYTES))
        except OSError as refused:
            return _unwritable(self.final, refused)
        if isinstance(error, OSError) and error.errno in _FULL:
            where = error.filename or tempfile.gettempdir()
            return OutputError(f"'{where}' cannot be written: {error.strerror}", "free space there")
        return None

    def _remove(self) -> None:
        if self.path != self.final:
            shutil.rmtree(self.path, ignore_errors=True)
        for parent in reversed(self._made):
            with contextlib.suppress(OSError):  # somebody else has put a file there: it stays
                parent.rmdir()

    def commit(self) -> None:
        """Give the directory its final name.

        Raises:
            OutputError: another process has made that directory meanwhile.
        """
        self.path.chmod(0o777 & ~_umask())  # mkdtemp makes private folders
        try:
            self.path.rename(self.final)
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
