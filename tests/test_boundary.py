"""Whatever ends a command becomes an exit code and one message."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable

import pytest
import typer

from edgekit import boundary as boundary_module
from edgekit.boundary import Boundary, write_json
from edgekit.errors import ConfigError, VerificationError
from edgekit.types import no_progress

Capture = pytest.CaptureFixture[str]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def ended_by(command: Callable[[Boundary], object], *, as_json: bool = False) -> int:
    boundary = Boundary(as_json=as_json)
    with boundary:
        command(boundary)
    return boundary.exit_code


def raiser(error: BaseException) -> Callable[[Boundary], object]:
    def command(_boundary: Boundary) -> None:
        raise error

    return command


def interrupt(number: int = signal.SIGINT) -> None:
    """Return only where the signal has no effect."""
    # To this thread: a signal to the process may reach another thread first, and Python's handler
    # then runs later, perhaps behind the boundary.
    signal.raise_signal(number)
    time.sleep(0.001)  # Python runs handlers between two of its own steps


def test_success_says_nothing(capsys: Capture) -> None:
    assert ended_by(lambda _: None) == 0
    assert capsys.readouterr() == ("", "")


def test_exit_is_not_an_error(capsys: Capture) -> None:
    assert ended_by(raiser(typer.Exit(0))) == 0
    assert ended_by(raiser(typer.Exit(7))) == 7
    assert capsys.readouterr() == ("", "")


CASES = {
    "check": (VerificationError("bad", "look"), 1, "verification", "bad", "look"),
    "user": (ConfigError("wrong", "try this"), 2, "config", "wrong", "try this"),
    "usage": (typer.BadParameter("odd"), 2, "usage", "Invalid value: odd", "see: edgekit --help"),
    "bug": (
        ZeroDivisionError("by zero"),
        3,
        "bug",
        "ZeroDivisionError: by zero",
        "this is a bug of edgekit: please report the traceback",
    ),
    "system exit": (
        SystemExit("gone"),
        3,
        "bug",
        "SystemExit: gone",
        "this is a bug of edgekit: please report the traceback",
    ),
    "interrupt": (KeyboardInterrupt(), 130, "interrupted", "interrupted", "nothing was written"),
}


@pytest.mark.parametrize("case", CASES)
def test_errors(case: str, capsys: Capture) -> None:
    error, exit_code, code, message, hint = CASES[case]
    assert ended_by(raiser(error)) == exit_code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.endswith(f"error: {message}\nhint: {hint}\n")
    assert printed.err.startswith("Traceback") == (code == "bug")
    assert ("Traceback" in printed.err) == (code == "bug")

    assert ended_by(raiser(error), as_json=True) == exit_code
    printed = capsys.readouterr()
    expected = {"error": {"code": code, "message": message, "hint": hint}}
    assert json.loads(printed.out) == expected
    assert (printed.err == "") == (code != "bug")


def test_message_takes_one_line(capsys: Capture) -> None:
    ended_by(raiser(ConfigError("first\n  second", "one\ntwo")))
    assert capsys.readouterr().err == "error: first second\nhint: one two\n"
    ended_by(raiser(ConfigError("no hint")))
    assert capsys.readouterr().err == "error: no hint\n"


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_signals_interrupt(number: signal.Signals, capsys: Capture) -> None:
    assert ended_by(lambda _: interrupt(number)) == 130
    assert capsys.readouterr().err == "error: interrupted\nhint: nothing was written\n"


def test_error_after_an_interrupt_is_the_interrupt(capsys: Capture) -> None:
    # A child that got Ctrl-C, too, or a native module whose import was cut short.
    def command(_boundary: Boundary) -> None:
        with pytest.raises(KeyboardInterrupt):
            interrupt()
        raise ImportError("initialization failed")

    assert ended_by(command) == 130
    assert "ImportError" not in capsys.readouterr().err


def test_second_interrupt_does_not_cut_the_clean_up_short() -> None:
    cleaned = []

    def command(_boundary: Boundary) -> None:
        try:
            interrupt()
        finally:
            interrupt()
            interrupt(signal.SIGTERM)
            cleaned.append(True)

    assert ended_by(command) == 130
    assert cleaned == [True]


def test_clean_up_that_hangs_can_be_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boundary_module, "_IMPATIENCE_S", 0.01)

    def command(_boundary: Boundary) -> None:
        try:
            interrupt()
        finally:
            time.sleep(0.02)
            interrupt()
            pytest.fail("went on")

    assert ended_by(command) == 130


def test_nothing_interrupts_a_command_whose_result_is_in_place(capsys: Capture) -> None:
    def command(boundary: Boundary) -> None:
        progress = boundary.settling(no_progress)
        progress("verify", 0.9)
        progress("done", 1.0)
        interrupt()
        raise VerificationError("a check failed")

    assert ended_by(command) == 1
    assert capsys.readouterr().err == "error: a check failed\n"


def test_stages_before_the_last_can_be_interrupted() -> None:
    seen = []

    def command(boundary: Boundary) -> None:
        boundary.settling(lambda *stage: seen.append(stage))("verify", 0.9)
        interrupt()

    assert ended_by(command) == 130
    assert seen == [("verify", 0.9)]


def test_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    ended_by(raiser(ValueError()))
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert ended_by(lambda _: interrupt(signal.SIGHUP)) == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_documents_are_plain_json(capsys: Capture) -> None:
    write_json({"path": "ü\udce4", "none": None})
    text = capsys.readouterr().out
    assert text.isascii()
    assert json.loads(text) == {"path": "ü\udce4", "none": None}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json({"value": float("nan")})
    assert capsys.readouterr().out == ""
