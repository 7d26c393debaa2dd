"""Template: a warmed process that forks a child for each piece of work.

A kill then costs milliseconds, and not an interpreter with all its imports.

    python template.py VICTIM

VICTIM is a module beside this one with a dict `WORKS` of functions. Requests and answers are
lines of JSON on standard input and output:

    {"work": name, "arguments": {...}}    the child calls WORKS[name](arguments, ready)
    {"ready": pid}                        it called ready() and waits for the next line, "go"
    {"result": ...}, {"error": text}      it returned or raised
    {"status": n}                         it is gone: 0, or minus the signal that killed it

A child ends without closing anything, and dies with the template. Since the template opens no
store and starts no thread, every child begins from the same state.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import socket
import sys
import traceback
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_PR_SET_PTRACER = 0x59616D61  # lets a process trace this one that is not its ancestor


def main() -> None:
    """Serve requests until standard input ends."""
    # Makes `tests.reliability` importable and nothing else: tsengine is the one installed.
    package = types.ModuleType("tests")
    package.__path__ = [str(Path(__file__).parents[1])]
    sys.modules["tests"] = package
    victim = importlib.import_module(f"tests.reliability.{Path(sys.argv[1]).stem}")
    libc = ctypes.CDLL(None)
    while line := sys.stdin.readline():
        request = json.loads(line)
        _serve(victim.WORKS[request["work"]], request["arguments"], libc)


def _serve(work: Callable[..., object], arguments: Mapping[str, Any], libc: ctypes.CDLL) -> None:
    # A socket, and `send`: to tell is no call that changes files, and is not killed for one.
    ours, childs = socket.socketpair()
    go_out, go_in = os.pipe()  # both ends stay open here, so that a child may die before it reads
    child = os.fork()
    if not child:
        ours.close()
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        libc.prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1))

        def ready() -> None:
            childs.sendall(json.dumps({"ready": os.getpid()}).encode() + b"\n")
            os.read(go_out, 1)

        try:
            answer = {"result": work(arguments, ready)}
        except BaseException:  # noqa: BLE001  # whatever it is, the harness tells it
            answer = {"error": traceback.format_exc()}
        childs.sendall(json.dumps(answer).encode() + b"\n")
        os._exit(0)
    childs.close()
    with ours, ours.makefile() as answers:
        while answer_line := answers.readline():
            sys.stdout.write(answer_line)
            sys.stdout.flush()
            if answer_line.startswith('{"ready"'):
                sys.stdin.readline()
                os.write(go_in, b"g")
    os.close(go_out)
    os.close(go_in)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    sys.stdout.write(json.dumps({"status": status}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
