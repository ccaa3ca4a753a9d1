"""`padless tune`: the fastest configuration of each kernel for a model on this GPU, kept for every later run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .choices import Dtype

__all__ = ["tune"]

SECONDS_A_CALL = 60.0


def tune(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL|OP",
            help="Model folder, or org/name under $PADLESS_MODELS; or an op: the calls the five families make.",
        ),
    ] = None,
    budget: Annotated[
        float | None, typer.Option(min=1.0, help="Seconds for all calls together; 60 for each if left out.")
    ] = None,
    device: Annotated[str, typer.Option(help="Which GPU: cuda, cuda:1, ...")] = "cuda",
    dtype: Dtype = "auto",
    import_file: Annotated[
        Path | None,
        typer.Option("--import", metavar="FILE", help="File the entries of a GPU report's configs.json; needs no GPU."),
    ] = None,
    into: Annotated[
        Path | None, typer.Option(help="With --import: another folder than the checkout's autotune/configs.")
    ] = None,
) -> None:
    """Find the fastest configuration of each kernel on this GPU.

    For each kind of call that MODEL makes (or that OP has in the five families) every candidate is held against the
    oracle, then timed; what is found goes to the user's cache and serves from then on. Ctrl-C keeps what was found.
    Nothing is ever searched while a model runs.

    \b
        padless tune path/to/model --budget 300
        padless tune attention
        padless tune --import out/gpu-report/configs.json
    """
    from ..errors import OptionError

    if import_file is not None:
        if what is not None:
            raise OptionError("--import: expected no MODEL or OP beside it, got one")
        _import(import_file, into)
        return
    if into is not None:
        raise OptionError("--into: expected --import beside it, got none")
    if what is None:
        raise OptionError("expected a MODEL, an OP or --import, got none of them")
    _search(what, budget, device, dtype)


def _import(path: Path, into: Path | None) -> None:
    from ...autotune.exchange import file_records, read_exchange
    from ...autotune.lookup import SHIPPED
    from ..errors import InputError, OptionError

    if into is None and not (SHIPPED.parent.parent / "pyproject.toml").is_file():
        raise OptionError(f"--import: {SHIPPED.parent.parent} is no checkout: name a folder by --into")
    try:
        records, refused = read_exchange(path, _is_candidate)
    except ImportError as error:
        raise OptionError(f"--import: needs triton, whose kernels say what a configuration may be: {error}") from error
    filed = file_records(records, SHIPPED if into is None else into)
    for file, count in filed.written.items():
        print(f"{file}: {count} {'entry' if count == 1 else 'entries'}")
    lines = [*refused, *filed.refused]
    if not records and not lines:
        print(f"{path}: holds no entries")
    for line in lines[:-1]:
        print(f"padless: {line}", file=sys.stderr)
    if lines:
        raise InputError(lines[-1])


def _is_candidate(op: str, tiling: Any) -> bool:
    from ...autotune.entries import is_candidate  # all kernels, and triton: only where there is something to ask

    return is_candidate(op, tiling)


def _search(what: str, budget: float | None, device: str, dtype: str) -> None:
    import torch

    from ..errors import OptionError
    from ..precision import resolve_device, resolve_dtype

    if not device.startswith("cuda"):
        raise OptionError(f"--device: expected cuda or cuda:N, got {device!r}: configurations are those of GPU kernels")
    if not torch.cuda.is_available():
        raise OptionError(
            f"tune: needs a GPU of compute capability 8.0 or newer and torch with CUDA; torch {torch.__version__} sees "
            "no GPU here"
        )
    target = resolve_device(device)
    precision = resolve_dtype(dtype, target)
    from ...autotune.device import identify
    from ...autotune.store import Store
    from ...autotune.user_cache import cache_folder

    try:
        from ...bench.gpu.tuning import calls_for, on_gpu, tune_calls
    except ImportError as error:
        raise OptionError(f"tune: needs triton, which compiles the kernels: {error}") from error

    known, store = identify(target), Store(cache_folder())
    search_one = on_gpu(target)
    calls = calls_for(what, target, precision)
    seconds = budget or SECONDS_A_CALL * len(calls)
    with torch.cuda.device(target), torch.inference_mode():
        tune_calls(calls, search_one, known, store, seconds=seconds, progress=sys.stderr.isatty())
    if store.folder is not None:
        print(f"kept in {store.folder / known.slug}")
