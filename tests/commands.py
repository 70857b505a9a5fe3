"""The command line, run in this process: a process of its own takes seconds to import everything."""

import contextlib
import io
import subprocess

from unavglip_jax import cli


def unavglip(*arguments, expect=0, cwd=".") -> subprocess.CompletedProcess:
    """What `unavglip` with these arguments prints, having exited with `expect`."""
    words, code = [*map(str, arguments)], 0
    run = lambda: cli.app.cli(prog="unavglip", args=words, config=cli.CLI)
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.main(run)
        except SystemExit as left:
            code = left.code or 0
    if isinstance(code, str):  # as Python does at the end of a process
        err.write(code + "\n")
        code = 1
    assert code == expect, out.getvalue() + err.getvalue()
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())
