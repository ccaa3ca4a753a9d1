"""`make gpu-report`: are the kernels right on this GPU, and how fast are they; one command, under nine minutes.

    python -m padless.bench.gpu.report --out DIR [--parts correctness,models] [--minutes 8.5] [--dry]

Needs a GPU, torch, triton and padless. Leaves report.json, report.md, log.txt and, of part tune, configs.json, written
after every case, and up to four PNG where matplotlib is installed; a second run on the same folder does only what is
missing. Each part runs in processes of its own. `--dry` takes the same path with tiny sizes on a CPU, under
TRITON_INTERPRET=1, and measures nothing. How the 8.5 minutes are shared out: `PARTS`.

Exit codes: 0 all cases sound; 1 some failed; 2 it cannot run here.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch

from ...autotune.kernel_hash import kernel_hashes
from ...engine.errors import InputError, OptionError, PadlessError
from .case import BAD, Figures, first_line
from .machine import describe_gpu
from .pool import Pool
from .sanitizer import sanitizer
from .store import Store

__all__ = ["main", "run"]

MOST_PICTURES = 4

DEFAULT_PARTS = ("correctness", "attention", "fused", "models", "generate", "tune")


@dataclass(frozen=True)
class Part:
    """How one part is run.

    Attributes:
        share: of the time, against the shares of the other parts.
        workers: processes that check at the same time; what is timed runs alone.
        warm: share of its own time for compiling beforehand, in many processes; 0 is not at all.
        limit: seconds a case may take.
    """

    share: float
    workers: int
    warm: float
    limit: float


PARTS = {
    # Shares are seconds of 510 on an H200 beside 16 CPU cores, of which 12 compile. A kernel takes 0.1 to 1.0 s of one
    # core to compile (the gate, sm_90, this project's CPU) and about 0.5 s more for its launcher; a process needs 10 s
    # until it can compute. What each part is expected to take, none of it measured on a GPU yet:
    #   correctness  10 to start + 135 cases x 2 kernels x 1 s / 12 = 23 + 135 x 250 repeats x 1 ms = 34
    #                + 7 long texts x 4 s, one at a time = 28
    #   attention    10 + 25 to compile flex_attention, 12 at a time + 29 cases x 1.2 s = 35 + 4 x 5 to trace flex
    #   fused        10 + 58 cases x 2 s / 12 = 10 to compile + 58 x 0.4 s = 23 to check + 20 x 1 s to time
    #   models       10 + 45 to compile (torch.compile, most of it) + 32 cases x 2.5 s = 80
    #                + 5 that trace for torch.compile or start from texts x 8 s = 40
    #   generate     10 + 5 to compile our kernels + 3 models at 1 s to check and 3 s to time + 20 to trace and compile
    #                transformers' step
    #   tune         10 + 50 to compile + 30 to time, and as long as there is time: it is last, and has what the parts
    #                before it leave
    #   sanitizer    10 to start and 15 to compile under the tool, at once for three groups of kernels, for each tool
    # A part that is early leaves the rest to those after it; cases that time does not suffice for are named.
    "correctness": Part(share=100.0, workers=12, warm=0.0, limit=120.0),
    "attention": Part(share=90.0, workers=1, warm=0.5, limit=60.0),
    "fused": Part(share=65.0, workers=1, warm=0.4, limit=90.0),
    "models": Part(share=165.0, workers=1, warm=0.35, limit=75.0),
    "generate": Part(share=45.0, workers=1, warm=0.0, limit=60.0),
    "tune": Part(share=45.0, workers=1, warm=0.6, limit=90.0),
    "sanitizer": Part(share=45.0, workers=4, warm=0.0, limit=100.0),
    "profile": Part(share=30.0, workers=1, warm=0.0, limit=120.0),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run; what cannot run becomes one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="gpu_report", description="Correctness and speed of the kernels on this GPU.")
    parser.add_argument("--out", type=Path, required=True, help="folder for report.json, report.md and log.txt")
    parser.add_argument(
        "--parts",
        help=_parts_help(),
    )
    parser.add_argument("--minutes", type=float, default=8.5, help="time for all parts together; default %(default)s")
    parser.add_argument("--commit", help="of this code, where it lies outside of its checkout")
    parser.add_argument("--dry", action="store_true", help="tiny sizes through the interpreter; nothing is measured")
    given = parser.parse_args(arguments)
    try:
        named = given.parts if given.parts is not None else ",".join(_default_parts(given.dry))
        parts = [part.strip() for part in named.split(",") if part.strip()]
        return run(given.out, parts, given.minutes, given.dry, given.commit)
    except PadlessError as error:
        print("gpu_report:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"gpu_report: interrupted; what was found is in {given.out}", file=sys.stderr)
        return 130


def run(out: Path, parts: Sequence[str], minutes: float = 8.5, dry: bool = False, commit: str | None = None) -> int:
    """Run what is missing of `parts` and write the report.

    Args:
        out: the report's folder; made if it is not there.
        parts: keys of `PARTS`, in the order they run.
        minutes: for all parts together.
        dry: tiny sizes on the CPU.
        commit: what to call the code, if it cannot tell itself.

    Returns:
        0 if every case that has a result is sound, else 1.

    Raises:
        OptionError: an argument is out of range, or TRITON_INTERPRET is not as this run needs it.
        InputError: no GPU is there, or the folder holds another report.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        raise OptionError(f"parts: expected some of {', '.join(PARTS)}, got {', '.join(unknown) or 'none'}")
    if not minutes > 0:
        raise OptionError(f"minutes: expected more than 0, got {minutes}")
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if dry and not interpreted:
        raise OptionError("a dry run interprets the kernels: set TRITON_INTERPRET=1")
    if not dry and interpreted:
        raise OptionError("TRITON_INTERPRET=1 is for a dry run: unset it, or pass --dry")
    if not dry and not torch.cuda.is_available():
        raise InputError(f"torch {torch.__version__} sees no GPU; to try the path without one: make gpu-report DRY=1")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: expected a folder, {error.strerror or error}") from error
    end = time.monotonic() + minutes * 60
    store = Store(out, describe_gpu(dry, commit), kernel_hashes(), dry)
    with _opened(out / "log.txt") as log:
        for place, name in enumerate(parts):
            # What a part leaves unused, the parts after it share.
            left = end - time.monotonic()
            share = PARTS[name].share / sum(PARTS[part].share for part in parts[place:])
            _run_part(store, name, time.monotonic() + left * share, dry, log)
        _draw(store, log)
    return _summary(store, parts)


def _parts_help() -> str:
    usual = ", ".join(DEFAULT_PARTS)
    return f"of {', '.join(PARTS)}; if left out {usual} and, where compute-sanitizer is found, sanitizer"


def _default_parts(dry: bool) -> tuple[str, ...]:
    return DEFAULT_PARTS if dry or sanitizer() is None else (*DEFAULT_PARTS, "sanitizer")


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("ab", buffering=0)
    except OSError as error:
        raise InputError(f"{path}: expected a file to write to, {error.strerror or error}") from error


def _say(log: IO[bytes], line: str, printed: bool = True) -> None:
    # A full disk, or a reader that has gone, must not cost what is still to come.
    with contextlib.suppress(OSError):
        log.write(f"{time.strftime('%H:%M:%S')} {line}\n".encode())
    if printed:
        with contextlib.suppress(OSError):
            print(line, flush=True)


def _draw(store: Store, log: IO[bytes]) -> None:
    """Pictures of what was measured, where they can be drawn; at most `MOST_PICTURES`."""
    if store.report["dry"]:
        return
    try:
        from ..plots.figures import draw  # pyright: ignore[reportMissingImports]

        drawn = draw(store.report, store.folder)
    except Exception as error:  # a picture is worth no report
        _say(log, f"no pictures: {type(error).__name__}: {first_line(error)}")
        return
    for picture in drawn[MOST_PICTURES:]:
        with contextlib.suppress(OSError):
            Path(picture).unlink()
    _say(log, f"pictures: {', '.join(Path(picture).name for picture in drawn[:MOST_PICTURES]) or 'none'}")


def _run_part(store: Store, name: str, deadline: float, dry: bool, log: IO[bytes]) -> None:
    part, kept = PARTS[name], store.part(name)
    start = time.monotonic()
    flags = ["--dry"] if dry else []

    def say(line: str) -> None:
        _say(log, line)

    def keep(case: str, figures: Figures) -> None:
        store.add(name, case, figures)
        say(_line(name, case, figures))

    def warmed(case: str, figures: Figures) -> None:
        _say(log, _line(f"{name}: compiling", case, figures), printed=False)

    if kept["complete"]:
        say(f"{name}: its results are there already")
        return
    finished = set(kept["cases"])
    kept["failure"] = None
    try:
        if part.warm and not dry:
            say(f"{name}: compiling")
            until = start + (deadline - start) * part.warm
            try:
                left = Pool(name, [*flags, "--warm"], _processes(), part.limit, log).run((), until, warmed)
                say(f"{name}: compiled in {time.monotonic() - start:.0f} s, {len(left)} left for later")
            except RuntimeError as error:
                say(f"{name}: compiling beforehand: {error}")
        workers = 1 if dry else min(part.workers, _processes())
        kept["not_run"] = Pool(name, flags, workers, part.limit, log).run(finished, deadline, keep)
        kept["complete"] = not kept["not_run"]
        if kept["not_run"] and time.monotonic() < deadline:
            kept["failure"] = "its processes did not come up again: see log.txt"
            say(f"{name}: {kept['failure']}")
    except RuntimeError as error:
        kept["failure"] = str(error)
        say(f"{name}: {error}")
    kept["seconds"] = round(kept["seconds"] + time.monotonic() - start, 1)
    store.save()


def _line(part: str, case: str, figures: Figures) -> str:
    told = (part, case, figures["status"], f"{figures.get('seconds', 0):.1f} s", figures.get("reason"))
    return " | ".join(piece for piece in told if piece)


def _processes() -> int:
    """How many processes this machine's CPUs keep busy compiling."""
    return max(min((os.cpu_count() or 1) - 2, 12), 1)


def _summary(store: Store, parts: Sequence[str]) -> int:
    wrong = 0
    for name in parts:
        part = store.part(name)
        states = [figures["status"] for figures in part["cases"].values()]
        bad = sum(state in BAD for state in states)
        wrong += bad + (part["failure"] is not None)
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "no case"
        rest = f", {len(part['not_run'])} not run for want of time" if part["not_run"] else ""
        print(f"{name}: {counts}{rest}, {part['seconds']:.0f} s")
    store.save()
    unsaved = "" if store.unsaved is None else f": not written, {store.unsaved}"
    print(f"{store.folder / 'report.md'}{unsaved}")
    return 1 if wrong or store.unsaved else 0


if __name__ == "__main__":
    sys.exit(main())
