"""A run of a command in a terminal, as a picture: `python docs/pictures/record.py OUT.svg COMMAND...`.

The command gets a terminal of its own, so that it shows what it shows people. The picture has the last state of each
line: a progress bar as it stood half-way, then what follows it. Needs rich, which typer brings.
"""

from __future__ import annotations

import os
import pty
import re
import shlex
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

COLUMNS = 118
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def record(command: list[str]) -> str:
    """All that the command writes to its terminal."""
    written = bytearray()

    def read(descriptor: int) -> bytes:
        data = os.read(descriptor, 1 << 16)
        written.extend(data)
        return data

    # A terminal without a size has no room for a bar.
    status = pty.spawn(["sh", "-c", f"stty cols {COLUMNS} rows 40; exec {shlex.join(command)}"], read)
    if status:
        raise SystemExit(f"the command ended with status {status}")
    return _ESCAPES.sub("", written.decode("utf-8", "replace"))


def lines_of(written: str) -> list[str]:
    """The lines, of those that were written over the state in the middle and the last one."""
    found: list[str] = []
    for line in written.replace("\r\n", "\n").split("\n"):
        states = [state.rstrip() for state in line.split("\r") if state.strip()]
        if len(states) > 2:
            found += [states[len(states) // 2], states[-1]]
        else:
            found += states[-1:]
    return found


def main(arguments: list[str]) -> None:
    """Run, record, write."""
    picture, shown, *command = arguments
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(Text(f"$ {shown}", style="bold"))
    for line in lines_of(record(command)):
        console.print(Text(line), soft_wrap=True)
    Path(picture).write_text(console.export_svg(title="padless"), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
