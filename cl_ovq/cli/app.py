"""The command line. Everything heavy is imported by the command that needs it, so that `--help` answers at once."""

from __future__ import annotations

import errno
import signal
import sys
from typing import NoReturn

import typer
from rich.console import Console

from cl_ovq.cli.bench import bench
from cl_ovq.cli.experiments import commands as experiments
from cl_ovq.cli.grids import commands as grids
from cl_ovq.cli.results import commands as results
from cl_ovq.errors import UnwrittenError, UserError

app = typer.Typer(
    name="cl-ovq",
    help="Continual-learning experiments, including OVQ models with persistent dictionaries.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for commands in (experiments, grids, results):
    app.add_typer(commands)
app.add_typer(bench, name="bench", rich_help_panel="Speed")


def main() -> None:
    """Run the command line.

    A mistake of the user is one line on standard error and exit code 2. So is a file that cannot be written, with exit
    code 1; what would be lost with it goes to standard output.
    """
    # A scheduler's or a container's end of time: leave as after Ctrl-C, so that what is open is closed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        app()
    except UnwrittenError as error:
        if error.content is not None:
            print(error.content)
        _leave(str(error), 1)
    except UserError as error:
        _leave(str(error), 2)
    except OSError as error:
        if error.errno not in FULL:
            raise
        _leave(f"{error.filename or 'a file'} cannot be written: {error.strerror}", 1)


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def _leave(line: str, code: int) -> NoReturn:
    from rich.markup import escape

    Console(stderr=True, highlight=False).print(f"[red]error:[/] {escape(line)}", soft_wrap=True)
    sys.exit(code)
