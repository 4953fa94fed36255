"""Programs in processes that are forked from one that has imported it all: a new one takes seconds for that."""

import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

SERVER = get_context("forkserver")
SERVER.set_forkserver_preload(["pyro_vae.commands", "sklearn.datasets"])
# With a closing table of few draws, and figures that are not rendered.
COMMAND = """
import sys
from matplotlib.figure import Figure
from pyro_vae import report
from pyro_vae.__main__ import main
from pyro_vae.report import proposals
report.table.__defaults__ = (20, 50, 0, False)
proposals.OF_TABLE = 0
Figure.savefig = lambda *_, **__: None
sys.exit(main(WORDS))
"""


class Done(NamedTuple):
    """How a program ended, and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


def _run(code, folder, out, err, environment):
    os.chdir(folder)
    sys.path.insert(0, "")  # as ``python -c`` has it
    os.environ.update(environment)
    with open(out, "w") as stdout, open(err, "w") as stderr, redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            exec(code, {"__name__": "__main__"})
        except SystemExit as ended:
            if isinstance(ended.code, str):  # as Python does
                print(ended.code, file=stderr)
                ended.code = 1
            raise


def start(code, folder=None, out=os.devnull, err=os.devnull, **environment):
    """Start a program in a folder, with files for what it writes; return the process."""
    process = SERVER.Process(target=_run, args=(code, folder or Path.cwd(), out, err, environment))
    process.start()
    return process


def run(code, folder):
    """Run a program in a folder, as ``subprocess.run`` of ``python -c`` would."""
    out, err = folder / "stdout", folder / "stderr"
    process = start(code, folder, out, err)
    process.join(300)
    return Done(process.exitcode, out.read_text(), err.read_text())


def command(*words):
    """Return the program of a command of pyro-vae."""
    return COMMAND.replace("WORDS", repr([*words]))
