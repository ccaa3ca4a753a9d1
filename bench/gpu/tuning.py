"""What `padless tune` does on a GPU: call after call, kept in the user's cache as soon as it is found."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ...autotune.cost import label
from ...autotune.device import Device, identify
from ...autotune.entries import KERNELS, entry_of
from ...autotune.key import key_of
from ...autotune.lookup import process_lookup
from ...autotune.search import Found, Progress, SearchError
from ...autotune.store import Store
from ...engine.contract import Call
from ...engine.errors import InputError, OptionError
from .case import Context
from .machine import driver_version
from .standard import calls_of, name_of, standard_calls
from .tune import find

__all__ = ["Find", "calls_for", "on_gpu", "tune_calls"]

Find = Callable[[Call, float, Progress], Found[Any]]
"""Searches one call for so many seconds."""

HEAD = ("op", "key", "default µs", "tuned µs", "ratio", "configuration")

LEAST_SM = 80


def on_gpu(device: torch.device) -> Find:
    """The search on a GPU.

    Raises:
        OptionError: it is older than any that the kernels run on.
    """
    sm = identify(device).sm
    if sm is not None and sm < LEAST_SM:
        raise OptionError(f"tune: needs a GPU of sm_{LEAST_SM} or newer, got sm_{sm}")
    here = Context(device, False, torch.cuda.get_device_properties(device).total_memory // 2)
    return lambda call, seconds, progress: find(call, here, seconds=seconds, progress=progress)


def calls_for(what: str, device: torch.device, dtype: torch.dtype) -> list[Call]:
    """The calls that a name stands for, one of each key.

    Args:
        what: an op with candidates, or else a model's folder or name.
        device: the GPU.
        dtype: of the activations.

    Raises:
        OptionError: the model has no op that a kernel serves here; or whatever `padless.load` says of it.
    """
    if what in KERNELS and not Path(what).exists():
        calls = [call for call in standard_calls(dtype, identify(device).sm) if call.op == what]
        if not calls:
            raise OptionError(f"{what}: none of the families has such a call in {_short(dtype)}")
        return calls
    from ...engine.loading import load

    calls = calls_of(load(what, device=device, dtype=dtype).bound_ops())
    if not calls:
        raise OptionError(f"{what}: no op of it is served by a Triton kernel here; see padless explain")
    return calls


def tune_calls(
    calls: Sequence[Call], search_one: Find, device: Device, store: Store, *, seconds: float, progress: bool = False
) -> None:
    """Search each call, keep what is found at once, and print a table in the end, however it comes about.

    Args:
        calls: what to search.
        search_one: the search.
        device: what it runs on.
        store: where entries are kept.
        seconds: for all together; what one call leaves unused, the others share.
        progress: show a bar on stderr.

    Raises:
        InputError: the device was lost, or a call could not be tuned.
    """
    driver, rows, failed = driver_version(), [], []
    end = time.monotonic() + seconds
    try:
        with tqdm(calls, unit=" calls", disable=not progress, dynamic_ncols=True) as bar:
            for place, call in enumerate(bar):
                bar.set_description_str(name_of(call))
                share = max((end - time.monotonic()) / (len(calls) - place), 0.0)
                try:
                    found = search_one(call, share, _shown(bar))
                except (SearchError, torch.OutOfMemoryError) as error:
                    failed.append(f"{name_of(call)}: {_first_line(error)}")
                    continue
                except RuntimeError as error:
                    reason = f"{name_of(call)}: the GPU failed ({_first_line(error)})"
                    raise InputError(f"{reason}; what was found before is kept") from error
                entry = entry_of(found, device, None if driver == "unknown" else driver)
                if entry is not None:
                    store.keep(device.slug, call.op, [entry])
                rows.append(_row(found))
    finally:
        if rows:
            print("\n".join(_table(rows)), flush=True)
        process_lookup().forget()
    if failed:
        raise InputError(f"{len(failed)} of {len(calls)} calls not tuned: {'; '.join(failed)}")


def _shown(bar: Any) -> Progress:
    return lambda done, total, gain: bar.set_postfix_str(f"{done}/{total} tried, {gain:.2f} times as fast")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [HEAD, *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEAD) - 1)]
    return ["  ".join([*map(str.ljust, row, widths), row[-1]]) for row in cells]


def _row(found: Found[Any]) -> Sequence[str]:
    key = " ".join(f"{name}={value}" for name, value in key_of(found.call))
    chosen = f"default stays: {label(found.best)}" if found.kept else label(found.best)
    if found.us is None or found.default_us is None:
        return found.call.op, key, "not measured", "not measured", "not measured", chosen
    return found.call.op, key, f"{found.default_us:,.1f}", f"{found.us:,.1f}", f"{found.gain:.3f}", chosen


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
