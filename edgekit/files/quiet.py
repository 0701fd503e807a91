"""Keep what torch says about a file away from the terminal, and remember why it gave up."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


class LastError(logging.Handler):
    """Holds the last exception that was logged instead of raised, as ``error``."""

    def __init__(self) -> None:
        super().__init__()
        self.error: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record; only its exception is of interest."""
        if record.exc_info and isinstance(record.exc_info[1], BaseException):
            self.error = record.exc_info[1]


@contextlib.contextmanager
def quiet_torch() -> Iterator[LastError]:
    """Take over torch's log, warnings and standard error while a file is opened or converted."""
    last = LastError()
    names = [name for name in logging.root.manager.loggerDict if name.startswith("torch.")]
    # torch gives many of its loggers a handler of their own.
    loggers = [logging.getLogger(name) for name in ("torch", *names)]
    before = [(logger, logger.handlers[:], logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers[:], logger.propagate = [last], False
    try:
        # torch.export prints the graph that it cannot follow, besides raising an error.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield last
    finally:
        for logger, handlers, propagate in before:
            logger.handlers[:], logger.propagate = handlers, propagate
