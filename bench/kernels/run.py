"""`padless bench kernels`: every op of the dispatch table beside its peers.

Correctness comes first: a system is held against the eager op in fp64, and one that fails gets a reason and no number.
What passed is timed in one interleaved run a case.
"""

from __future__ import annotations

import functools
import gc
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ...autotune.kernel_hash import kernel_hashes
from ...engine.errors import InputError, OptionError
from ..gpu.machine import describe_gpu
from ..lengths import DISTRIBUTIONS, Lengths, draw_lengths
from ..machine import describe
from ..reports.files import check_folders, frame, write_json
from ..timing import only_new_garbage
from .case import Case
from .ceilings import measure_ceilings
from .csv_file import write_csv
from .families import FAMILIES, Family
from .measure import measure_case
from .peers import choose_peers
from .shapes import BY_LENGTHS, shapes
from .systems import BASELINE
from .table import case_block, summary

__all__ = ["DEFAULTS", "Defaults", "batches", "run"]

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Defaults:
    """What is measured where nothing is asked for, by device.

    Attributes:
        seqlens: of the distributions of lengths that are given one.
        lengths: names of distributions.
        dtypes: of the activations and weights.
        tokens: of a batch.
        repeats: rounds.
    """

    seqlens: tuple[int, ...]
    lengths: tuple[str, ...]
    dtypes: tuple[str, ...]
    tokens: int
    repeats: int


DEFAULTS = {
    "cpu": Defaults((128, 512), ("fixed", "news", "single"), ("float32", "bfloat16"), 2048, 5),
    "cuda": Defaults((128, 512, 8192), tuple(DISTRIBUTIONS), ("bfloat16",), 32768, 40),
}


def run(
    ops: Sequence[str] | None = None,
    device: str | None = None,
    seqlens: Sequence[int] | None = None,
    lengths: Sequence[str] | None = None,
    dtypes: Sequence[str] | None = None,
    tokens: int | None = None,
    repeats: int | None = None,
    peers: Sequence[str] | None = None,
    csv_path: Path | None = None,
    json_path: Path | None = None,
    plot_folder: Path | None = None,
    families: Mapping[str, Family] = FAMILIES,
) -> dict[str, Any]:
    """Check, time and print every case; returns the report.

    Arguments that are None take `DEFAULTS` of the device.

    Args:
        ops: keys of the dispatch table; None is all.
        device: "cpu", "cuda" or "cuda:1"; None is a GPU where there is one.
        seqlens: for the distributions that are given a length.
        lengths: keys of `lengths.DISTRIBUTIONS`.
        dtypes: of `DTYPES`.
        tokens: of a batch, 1 at least.
        repeats: rounds of the interleaved run, 1 at least.
        peers: names of `peers.PEERS`, or "all" or "none".
        csv_path: also write a line for every figure here.
        json_path: also write the report here.
        plot_folder: also draw it into this folder.
        families: the sizes that are measured.

    Raises:
        OptionError: an argument is out of range, or there is no such device.
        InputError: a file cannot be written, or what plots need is not installed.
    """
    place = _device(device)
    defaults = DEFAULTS[place.type]
    kinds = _known("lengths", lengths, defaults.lengths, tuple(DISTRIBUTIONS))
    names = _known("dtype", dtypes, defaults.dtypes, DTYPES)
    rounds, size = _positive("repeats", repeats, defaults.repeats), _positive("tokens", tokens, defaults.tokens)
    chosen = choose_peers(peers)
    check_folders(csv_path, json_path)
    draw = None if plot_folder is None else _plotting()
    found = [
        functools.partial(shape.make, batch)
        for shape in shapes(None if ops is None else list(ops), families)
        for batch in batches(shape.op, kinds, defaults.seqlens if seqlens is None else seqlens, size)
    ]
    report = frame(
        "kernels",
        _machine(place),
        kernel_hashes=kernel_hashes(),
        baseline=BASELINE,
        repeats=rounds,
        ceilings={},
        cases=[],
    )
    count = len(found) * len(names)
    print(f"{count} cases on {place}, {rounds} interleaved rounds each; the ceilings first", flush=True)
    types = [getattr(torch, name) for name in names]
    with only_new_garbage(), torch.no_grad():
        ceilings = measure_ceilings(place, types)
        report["ceilings"] = asdict(ceilings)
        measure = functools.partial(measure_case, peers=chosen, rounds=rounds, ceilings=ceilings)
        for make in found:
            for dtype in types:
                case = _one(make, dtype, place, measure)
                report["cases"].append(case)
                print(case_block(case, len(report["cases"]), count), flush=True)
    print(summary(report))
    if json_path is not None:
        write_json(report, json_path)
    if csv_path is not None:
        write_csv(report, csv_path)
    if draw is not None and plot_folder is not None:
        for path in draw(report, plot_folder):
            print(f"wrote {path}")
    return report


def batches(op: str, kinds: Sequence[str], seqlens: Sequence[int], tokens: int) -> list[Lengths]:
    """The batches that an op is measured on.

    An op whose work depends on lengths sees every distribution at every length; any other sees as many tokens once, and
    the shortest single text, where one is asked for.

    Args:
        op: a key of the dispatch table.
        kinds: names of distributions.
        seqlens: for those that are given a length.
        tokens: of a batch, but for single texts and where one text is longer.
    """
    if not seqlens:
        raise OptionError("seqlens: expected at least one length")
    ordered = sorted(set(seqlens))
    drawn = [
        draw_lengths(kind, tokens, seqlen)
        for kind in dict.fromkeys(kinds)
        for seqlen in (ordered if DISTRIBUTIONS[kind].by_seqlen else ordered[:1])
    ]
    if op in BY_LENGTHS:
        return drawn
    several = [batch for batch in drawn if batch.kind != "single"]
    return several[:1] + [batch for batch in drawn if batch.kind == "single"][:1]


def _one(
    make: Callable[[torch.dtype, torch.device], Case],
    dtype: torch.dtype,
    device: torch.device,
    measure: Callable[[Case], dict[str, Any]],
) -> dict[str, Any]:
    """Draw a case, measure it and give its memory back."""
    try:
        return measure(make(dtype, device))
    finally:
        gc.collect(1)
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _device(name: str | None) -> torch.device:
    if name in (None, "auto"):
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OptionError(f"device {name!r}: expected cpu, cuda or cuda:N") from error
    if device.type not in DEFAULTS:
        raise OptionError(f"device {name!r}: kernels are measured on cpu and cuda")
    if device.type == "cpu":
        return device
    index, count = device.index or 0, torch.cuda.device_count()
    if index >= count:
        raise OptionError(f"device {name!r}: found {count} GPUs")
    # Clocks and events are those of the current device.
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _machine(device: torch.device) -> dict[str, Any]:
    facts = describe(torch.get_num_threads()) | {"torch": torch.__version__}
    return facts if device.type == "cpu" else facts | describe_gpu(dry=False)


def _known(what: str, asked: Sequence[str] | None, default: Sequence[str], known: Sequence[str]) -> list[str]:
    names = list(default if asked is None else dict.fromkeys(asked))
    if not names:
        raise OptionError(f"{what}: expected at least one of {', '.join(known)}")
    for name in names:
        if name not in known:
            raise OptionError(f"{what} {name!r}: unknown, expected one of {', '.join(known)}")
    return names


def _positive(what: str, asked: int | None, default: int) -> int:
    if asked is not None and asked < 1:
        raise OptionError(f"{what}: expected at least 1, got {asked}")
    return default if asked is None else asked


def _plotting() -> Callable[[dict[str, Any], Path], list[Path]]:
    """The function that draws a report; asked for before anything is measured."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("--plot: package matplotlib: not installed; pip install matplotlib")
    try:
        from ..plots.figures import draw
    except ModuleNotFoundError as error:
        raise InputError(f"--plot: package {error.name}: not installed; pip install {error.name}") from error
    return draw
