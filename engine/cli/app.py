"""The `padless` command: its commands, and the one place where an error becomes a line and an exit code.

Exit codes: 0 done; 2 a wrong flag, file or model, after one line on stderr; 130 interrupted; 141 the reader of the
output has gone. Anything else is a fault of padless and shows its traceback.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

import typer

from ..errors import PadlessError
from . import bench, classify, convert, embed, explain, info, tune, warmup
from . import run as run_task

__all__ = ["app", "main", "run"]

app = typer.Typer(
    name="padless",
    help="Encoder engine: embeddings, labels, spans and written text from BERT-like models, no padding token computed.",
    epilog="Begin with: padless embed texts.parquet out/ --model path/to/model (every command has a --help of its own)",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("embed")(embed.embed)
app.command("classify")(classify.classify)
app.command("run")(run_task.run)
app.command("convert")(convert.convert)
app.command("explain")(explain.explain)
app.command("info")(info.info)
app.command("tune")(tune.tune)
app.command("warmup")(warmup.warmup)
app.add_typer(bench.app, name="bench")


def main() -> None:
    """Run the command line and end the process with its exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    arguments = list(arguments) or ["--help"]
    try:
        command = typer.main.get_command(app)
        with command.make_context("padless", arguments) as context:
            command.invoke(context)
        sys.stdout.flush()
        return 0
    except typer.Exit as exit_request:
        return exit_request.exit_code
    except PadlessError as error:
        return _complain(str(error), 2)
    except _usage_error() as error:
        return _complain(_with_hint(error), 2)
    except KeyboardInterrupt:
        return _complain("interrupted", 128 + signal.SIGINT)
    except BrokenPipeError:
        # `padless ... | head`: the reader has what it wanted. Without this, Python would complain while it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13


def _usage_error() -> type[Exception]:
    """The base of typer's errors about arguments: its own copy of click has one, older versions use click's."""
    return typer.BadParameter.__mro__[2]


def _with_hint(error: Exception) -> str:
    message = getattr(error, "format_message", error.__str__)().replace(": Value error, ", ": ")
    if message.startswith("Missing argument 'IN'"):
        # Of IN... OUT the last path is OUT, so that a single one leaves nothing to read.
        message = "Missing argument: expected inputs IN and then OUT, a folder or - for standard output"
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "padless"
    return f"{message.removesuffix('.')} (see {path} --help)"


def _complain(message: str, code: int) -> int:
    print("padless:", " ".join(message.split()), file=sys.stderr)
    return code
