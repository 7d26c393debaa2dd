"""What goes wrong is a message and an exit code: no traceback, no secret, no store by mistake."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import tsengine
import tsengine.errors
from tests.cli.program import PROGRAM, environment, invoke, run
from tsengine.cli.app import COMMANDS
from tsengine.cli.failures import ExitCode, exit_code
from tsengine.errors import TsEngineError

SECRET = "s3cret"

ERRORS = [
    error
    for error in vars(tsengine.errors).values()
    if inspect.isclass(error) and issubclass(error, TsEngineError)
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: str(error.__name__))
def test_no_error_of_ours_is_a_bug(error: type[TsEngineError]) -> None:
    """Whatever tsengine raises on purpose ends in one of the exit codes that the help names."""
    assert exit_code(error.__new__(error)) in set(ExitCode) - {ExitCode.BUG, ExitCode.DONE}


def test_what_nobody_thought_of_is_a_bug() -> None:
    """Any other exception is told of as a bug, with its traceback, by a code of its own."""
    assert exit_code(ZeroDivisionError()) is ExitCode.BUG
    script = (
        "import sys; from tsengine.cli import query; from tsengine.cli.app import run\n"
        f"def broken(*_): raise ZeroDivisionError('pg://me:{SECRET}@host')\n"
        "query.open_for_reading = broken\n"
        "sys.exit(run())"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, "query", "lmdb://x"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 70
    assert "Traceback" in ended.stderr
    assert "report" in ended.stderr
    assert SECRET not in ended.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["query", "{url}"],
        ["query", "lmdb://x", "a", "{url}"],
        ["query", "lmdb://x", "--start", "{url}"],
        ["aggregate", "{url}", "-F", "mean"],
        ["copy", "{url}", "{url}"],
        ["stats", "{url}"],
        ["delete", "{url}", "a", "--yes"],
        ["{url}"],
    ],
)
@pytest.mark.parametrize(
    "url",
    [f"nowhere://me:{SECRET}@host/db", f"nowhere://host/db?password={SECRET}&x=1"],
    ids=["user", "option"],
)
def test_no_secret_of_a_url_is_printed(
    arguments: list[str], url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is wrong with a command, what may be a password in its URLs is not told."""
    monkeypatch.chdir(tmp_path)
    ended = invoke(*(argument.replace("{url}", url) for argument in arguments))
    assert ended.exit_code in (2, 3)
    assert SECRET not in ended.output
    assert "Traceback" not in ended.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["query", "{store}", "cpu{"],
        ["query", "{store}", "--start", "yesterday"],
        ["query", "{store}", "--start", "2026-01-02", "--end", "2026-01-01"],
        ["query", "{store}", "--format", "xml"],
        ["query", "{store}?colour=red"],
        ["query", "metrics"],
        ["aggregate", "{store}", "-F", "average"],
        ["aggregate", "{store}", "-F", "quantile(2)"],
        ["aggregate", "{store}", "-F", "mean", "--every", "0s"],
        ["aggregate", "{store}", "-F", "mean", "--every", "1h", "--fill", "nothing"],
        ["aggregate", "{store}", "-F", "mean", "--merge", "--by", "host"],
        ["aggregate", "{store}", "door", "-F", "min"],
        ["plot", "{store}", "door"],
        ["labels", "{store}", ""],
        ["copy", "{store}", "{store}"],
        ["copy", "{store}", "lmdb://new", "--producer", ""],
        ["copy", "{store}", "lmdb://new", "--wait", "-1"],
        ["explode"],
    ],
)
def test_a_mistake_of_the_user_is_code_2(
    arguments: list[str], stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said in words, on stderr alone, without a traceback."""
    monkeypatch.chdir(tmp_path)
    store = f"lmdb://{stores}/metrics"
    ended = invoke(*(argument.replace("{store}", store) for argument in arguments))
    assert ended.exit_code == 2, ended.stderr
    assert ended.stdout == ""
    assert ended.stderr
    assert "Traceback" not in ended.stderr


MAKES_A_STORE = ("copy", "demo", "import")
NEEDS_A_STORE = [str(one.name) for one in COMMANDS if one.name not in MAKES_A_STORE]


@pytest.mark.parametrize("name", NEEDS_A_STORE)
def test_no_command_makes_a_store_by_mistake(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that is not there is an error with a hint, whatever was to be done with it."""
    more = {
        "aggregate": ["-F", "mean"],
        "delete": ["a", "--yes"],
        "export": ["points.csv"],
        "snapshot": ["copy"],
        "rollup": ["lmdb://target", "--every", "1h", "-F", "mean"],
        "verify": ["lmdb://none"],
    }
    monkeypatch.chdir(tmp_path)
    ended = invoke(name, "lmdb://none", *more.get(name, []))
    assert ended.exit_code == 3
    assert "there is no store at none\nhint: " in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_copy_of_nothing_makes_nothing(tmp_path: Path) -> None:
    """Where the source is missing the target is not made either."""
    ended = invoke("copy", f"lmdb://{tmp_path}/none", f"lmdb://{tmp_path}/target")
    assert ended.exit_code == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", ["click", "rich", "uniplot"])
def test_without_the_extra_the_program_says_how_to_get_it(module: str) -> None:
    """The console script answers with the line that brings what is missing."""
    script = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from tsengine.cli.__main__ import main; main()"
    )
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, "--help"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr == (
        f"tsengine: the command line needs {module}: pip install 'tsengine[cli]'\n"
    )


@pytest.mark.parametrize("form", ["csv", "line", "parquet"])
def test_without_pyarrow_an_import_names_its_extra_and_makes_no_store(
    tmp_path: Path, form: str
) -> None:
    """A format that pyarrow reads is answered by the line that brings it, before all else."""
    hidden = (
        "import sys\n"
        "class Hide:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'pyarrow': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Hide())\n"
        "from tsengine.cli.__main__ import main; main()"
    )
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", hidden, "import", "lmdb://a", "--format", form],
        env=environment(),
        cwd=tmp_path,
        input="PAR1" if form == "parquet" else "time,v\n1,1\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert "is read through pyarrow: pip install 'tsengine[arrow]'" in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_plot_in_a_file_names_its_extra(stores: Path) -> None:
    """Without matplotlib, a plot in a file is answered by the line that brings it."""
    script = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from tsengine.cli.__main__ import main; main()"
    )
    ended = subprocess.run(
        [
            sys.executable,
            "-c",
            script,
            "plot",
            f"lmdb://{stores}/metrics",
            "cpu_usage",
            "-o",
            "x.png",
        ],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert "pip install 'tsengine[plot]'" in ended.stderr


def test_ctrl_c_is_130(tmp_path: Path) -> None:
    """A command that is interrupted while it prints says so, without a traceback."""
    with tsengine.open(f"lmdb://{tmp_path}/store") as engine:
        engine.write_series(tsengine.Labels("m"), range(1, 200_001), [0.5] * 200_000)
    with subprocess.Popen(
        [*PROGRAM, "query", f"lmdb://{tmp_path}/store"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()  # the pipe is full soon, and it waits
        os.kill(process.pid, signal.SIGINT)
        process.stdout.read()
        assert process.stderr.read() == b"tsengine: interrupted\n"
        assert process.wait(60) == 130


@pytest.mark.parametrize("form", ["table", "csv", "json", "jsonl"])
def test_output_is_utf_8_whatever_the_locale(form: str, tmp_path: Path) -> None:
    """Text beyond ASCII comes out whole in a pipe under the locale C."""
    with tsengine.open(f"lmdb://{tmp_path}/store") as engine:
        engine.write([(tsengine.Labels("m", city="Zürich"), 1, 0.5)])
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ended = run("query", f"lmdb://{tmp_path}/store", "--format", form, more=locale)
    assert ended.returncode == 0, ended.stderr
    assert "Zürich" in ended.stdout


def test_a_full_disk_is_told(stores: Path) -> None:
    """Output that cannot be written is code 3 and the reason."""
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [*PROGRAM, "query", f"lmdb://{stores}/metrics"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            timeout=60,
            check=False,
        )
    assert ended.returncode == 3
    assert "No space left" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_completion_is_offered() -> None:
    """`_TSENGINE_COMPLETE=bash_source tsengine` prints what bash sources."""
    ended = run(more={"_TSENGINE_COMPLETE": "bash_source"})
    assert ended.returncode == 0
    assert "complete" in ended.stdout
    completed = run(
        more={
            "_TSENGINE_COMPLETE": "bash_complete",
            "COMP_WORDS": "tsengine ver",
            "COMP_CWORD": "1",
        }
    )
    assert completed.stdout == "plain,verify\n"


def test_the_version_is_told() -> None:
    """`tsengine --version` names the version of the package."""
    assert invoke("--version").stdout == f"tsengine {tsengine.__version__}\n"
