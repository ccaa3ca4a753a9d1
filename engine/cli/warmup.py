"""`padless warmup`: compile what a model needs before a job needs it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from .choices import Backend, Device, Dtype

if TYPE_CHECKING:
    from ..embedding.encoder import Encoder
    from ..warmup import Step, Warmup

__all__ = ["warmup"]


def warmup(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model folder, or org/name under $PADLESS_MODELS.")],
    dtype: Dtype = "auto",
    device: Device = "auto",
    backend: Backend = "auto",
    token_budget: Annotated[
        int | None, typer.Option(min=1, help="Most tokens in one batch; as the job's, whose kernels depend on it.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No line for each step and no summary.")] = False,
) -> None:
    """Compile what a model needs, so that no batch has to wait for it.

    Batches of every kind that MODEL may meet are computed and dropped: one token, one text, texts of one length and
    of many, the longest text, a full token budget. The kernels they ask for lie in Triton's cache from then on, and
    jobs with the same model, dtype, backend and GPU read them from there.

    On a CPU nothing is compiled and nothing is left behind.

    \b
        padless warmup path/to/model && padless embed texts.parquet out/ --model path/to/model
    """
    from ..loading import load
    from ..warmup import warm_up

    encoder = load(model, device=device, dtype=dtype, backend=backend)
    if token_budget is not None:
        encoder.token_budget = token_budget
    done = warm_up(encoder, progress=_show if not quiet and sys.stderr.isatty() else None)
    if not quiet:
        print(_summary(encoder, done))


def _show(step: Step) -> None:
    texts, tokens = _counted(len(step.lengths), "text"), _counted(sum(step.lengths), "token")
    found = f"{_counted(step.kernels, 'kernel')}, {step.seconds:.1f} s"
    print(f"{step.number}/{step.batches}: {texts}, {tokens}, longest {max(step.lengths):,}: {found}", file=sys.stderr)


def _counted(number: int, name: str) -> str:
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def _summary(encoder: Encoder, done: Warmup) -> str:
    dtype = str(encoder.dtype).removeprefix("torch.")
    lines = [
        f"{done.batches} batches of up to {encoder.token_budget:,} tokens on {encoder.device} in {dtype}, "
        f"{done.seconds:.1f} s"
    ]
    if encoder.device.type != "cuda":
        lines.append(f"nothing to compile on {encoder.device}: nothing is kept for a later process")
    elif not done.kernels:
        lines.append("nothing to compile: Triton serves no op of this model here (see padless explain)")
    else:
        from ..compilations import cache_folder

        lines.append(f"{_counted(done.compiled, 'kernel')} compiled, {done.cached} read from Triton's cache")
        lines.append(f"cache: {cache_folder()} (TRITON_CACHE_DIR)")
    return "\n".join(lines)
