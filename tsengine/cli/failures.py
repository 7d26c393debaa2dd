"""Failures: from what is raised to a message on stderr and an exit code, in one place."""

from __future__ import annotations

import enum
import io
import logging
import os
import sys
import traceback
from typing import Final

import click

from tsengine.cli.texts import printable, timestamp_text, without_secrets
from tsengine.errors import (
    CancelledError,
    ConfigurationError,
    CopyError,
    CorruptionError,
    DifferenceError,
    FormatError,
    InvalidDataError,
    InvalidQueryError,
    LifecycleError,
    RollupError,
    StoreInUseError,
    TsEngineError,
)


class ExitCode(enum.IntEnum):
    """How a command ended; the numbers are a contract with scripts and never change."""

    DONE = 0
    """It did what was asked; also where the reader of its output wanted no more of it."""
    NO = 1
    """The answer is no: stores differ, stored bytes are damaged, points were rejected, or whoever
    was asked said so."""
    USAGE = 2
    """What was asked makes no sense, or is not possible as it was asked; nothing was done."""
    FAILED = 3
    """It could not be done, or not to its end: no such store, in use, disk full, no permission."""
    BUG = 70
    """Nobody thought of this: a traceback is printed, for a report. (EX_SOFTWARE of BSD.)"""
    INTERRUPTED = 130
    """Ctrl-C, as shells count it: 128 and the number of the signal."""


USAGE: Final = (
    ConfigurationError,
    FormatError,
    InvalidDataError,
    InvalidQueryError,
    LifecycleError,
)

HINTS: Final[tuple[tuple[type[TsEngineError], str], ...]] = (
    (CopyError, "with --producer the same command, run again, goes on from there"),
    (RollupError, "the same command, run again, goes on"),
    (StoreInUseError, "commands that only read work beside a writer; this one writes"),
)
"""What helps at an error, besides its message."""


def exit_code(error: BaseException) -> ExitCode:
    """Say how a command ends that raised this."""
    if isinstance(error, (KeyboardInterrupt, CancelledError)):
        return ExitCode.INTERRUPTED
    if isinstance(error, BrokenPipeError):
        return ExitCode.DONE
    if isinstance(error, (DifferenceError, CorruptionError)):
        return ExitCode.NO
    if isinstance(error, USAGE):
        return ExitCode.USAGE
    if isinstance(error, (TsEngineError, OSError, MemoryError)):
        return ExitCode.FAILED
    return ExitCode.BUG


def message(error: BaseException) -> str:
    """Give what is said of an error, without "error:"; empty where nothing is."""
    if isinstance(error, BrokenPipeError):
        return ""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, MemoryError):
        return "out of memory"
    if isinstance(error, OSError) and not isinstance(error, TsEngineError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    text = str(error)
    if isinstance(error, DifferenceError) and error.difference.timestamp is not None:
        text = f"{text} ({timestamp_text(error.difference.timestamp)})"
    for kind, hint in HINTS:
        if isinstance(error, kind):
            return f"{text}\nhint: {hint}"
    return text


def end(error: BaseException) -> click.exceptions.Exit:
    """Say on stderr what was raised, and give the exit that click is to make of it.

    A reader that has gone is not told anything, and what is left of the output goes nowhere.
    """
    code = exit_code(error)
    if isinstance(error, BrokenPipeError):
        _forget_output()
    elif code is ExitCode.BUG:
        told = "".join(traceback.format_exception(error))
        click.echo(without_secrets(told), err=True, nl=False)
        click.echo("This is a bug in tsengine; please report it with the lines above.", err=True)
    else:
        complain(message(error))
    return click.exceptions.Exit(code)


def refuse(error: click.ClickException) -> int:
    """Say what click found wrong with the arguments; give the exit code."""
    told = io.StringIO()
    error.show(told)
    click.echo(without_secrets(told.getvalue()), err=True, nl=False)  # it may quote a URL
    return error.exit_code


def complain(text: str) -> None:
    """Write a message to stderr; what it quotes cannot steer the terminal."""
    lines = [printable(line) for line in without_secrets(text).splitlines()]
    try:
        click.echo("\n".join([f"tsengine: {lines[0] if lines else 'error'}", *lines[1:]]), err=True)
    except BrokenPipeError:  # nobody listens
        _forget_output()


class LogNotes(logging.Handler):
    """Tells what the package logs, a line each, as other notes: without the traceback of a log."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record to stderr."""
        complain(record.getMessage())


def note(text: str) -> None:
    """Write what was done to stderr, so that stdout holds nothing but what was asked for."""
    click.echo(printable(text), err=True)


def _forget_output() -> None:
    """Let what Python flushes when it exits go nowhere; a pipe without a reader would raise."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
