"""The commands, under one name."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Final, TextIO

import click

from tsengine import __version__
from tsengine.cli.aggregate import aggregate
from tsengine.cli.copying import copy, verify
from tsengine.cli.delete import delete
from tsengine.cli.demo import demo
from tsengine.cli.exporting import export_
from tsengine.cli.failures import ExitCode, LogNotes, end, refuse
from tsengine.cli.importing import import_
from tsengine.cli.plot import plot
from tsengine.cli.query import query
from tsengine.cli.rollup import rollup
from tsengine.cli.series import labels, series
from tsengine.cli.stats import stats
from tsengine.cli.upkeep import check, compact, snapshot

COMMANDS: Final[tuple[click.Command, ...]] = (
    aggregate,
    check,
    compact,
    copy,
    delete,
    demo,
    export_,
    import_,
    labels,
    plot,
    query,
    rollup,
    series,
    snapshot,
    stats,
    verify,
)


class App(click.Group):
    """A group that turns what its commands raise into a message and an exit code."""

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; its output is out before this returns."""
        try:
            result: object = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except click.exceptions.Exit:
            raise
        except click.ClickException as error:
            raise click.exceptions.Exit(refuse(error)) from None
        except click.Abort:  # Ctrl-C at a question
            raise end(KeyboardInterrupt()) from None
        except BaseException as error:  # noqa: BLE001  # every one is told of there
            raise end(error) from None


@click.group(
    cls=App,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Exit codes:
  0    done
  1    the answer is no: stores differ, stored bytes are damaged, you said no
  2    what was asked makes no sense, or is not possible so
  3    it could not be done: no such store, in use, disk full
  70   a bug in tsengine
  130  interrupted""",
)
@click.version_option(__version__, "-V", "--version", message="tsengine %(version)s")
def app() -> None:
    """Time series in a store: ask, copy, check, and look after them.

    STORE is a URL such as lmdb:///var/lib/app/metrics, options of the store after a question mark.
    SELECTOR is what Prometheus takes, such as 'cpu_usage{region="eu"}'; without it all series are
    meant. Commands that only read work beside a running writer and never make a store.
    """


for _command in COMMANDS:
    app.add_command(_command)


def _nowhere() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")  # closed with the process


def run() -> int:
    """Run the command line with the arguments of the process; give the exit code."""
    # A shell closes them by `>&-`: what is written then goes nowhere, and above all not into the
    # next file that is opened.
    sys.stdout = sys.stdout or _nowhere()
    sys.stderr = sys.stderr or _nowhere()
    for stream in (sys.stdout, sys.stderr):
        if stream.isatty():  # a terminal may show less than UTF-8
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a TextIOWrapper
        else:  # CSV and JSON are UTF-8
            stream.reconfigure(encoding="utf-8")  # type: ignore[union-attr]  # a TextIOWrapper
    logging.getLogger("tsengine").addHandler(LogNotes(logging.WARNING))
    try:
        code = app.main(prog_name="tsengine", standalone_mode=False)
    except click.ClickException as error:
        return refuse(error)  # of what stands before the command
    except SystemExit:  # click's, where the reader of a help has gone
        return ExitCode.DONE
    return code if isinstance(code, int) else 0
