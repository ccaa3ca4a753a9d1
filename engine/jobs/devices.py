"""Which devices a job is spread over: `--devices` as a list of them, and the threads of each."""

from __future__ import annotations

import os

from ..errors import OptionError

__all__ = ["find_devices", "threads_of_each"]

CORES_PER_WORKER = 8
"""Of "all" without a GPU: one process uses its threads well, and every process holds the weights once more."""

ALWAYS_ALLOWED = 8
"""CPU workers, however few cores there are: slow, but no mistake."""


def find_devices(text: str) -> tuple[str, ...]:
    """The device of each worker process, all of one kind.

    Args:
        text: "all": every visible GPU, or where there is none a CPU worker for every eight cores; "cuda:0,cuda:1":
            these; "cpu:3": three workers on the CPU.

    Raises:
        OptionError: it is none of these, or a GPU that this machine does not have.
    """
    import torch

    if text.strip() == "all":
        count = torch.cuda.device_count()
        if count:
            return tuple(f"cuda:{index}" for index in range(count))
        return ("cpu",) * max(torch.get_num_threads() // CORES_PER_WORKER, 1)
    names = [name.strip() for name in text.split(",")]
    if len(names) == 1 and names[0].partition(":")[0] == "cpu":
        return ("cpu",) * _cpu_workers(names[0])
    found: list[str] = []
    for name in names:
        kind, _, number = name.partition(":")
        if kind != "cuda" or (number and not (number.isascii() and number.isdigit())) or name.endswith(":"):
            raise OptionError(f"devices: expected 'all', 'cuda:0,cuda:1' or 'cpu:N', got {text!r}")
        device = f"cuda:{int(number or 0)}"
        if int(number or 0) >= torch.cuda.device_count():
            count = torch.cuda.device_count()
            raise OptionError(f"devices: {device} was asked for, this machine has {count} CUDA devices")
        if device in found:
            raise OptionError(f"devices: {device} is named twice, expected each GPU once")
        found.append(device)
    return tuple(found)


def _cpu_workers(name: str) -> int:
    _, colon, number = name.partition(":")
    count = int(number) if number.isascii() and number.isdigit() else int(not colon)
    if count < 1:
        raise OptionError(f"devices: expected cpu:N with N workers, at least 1, got {name!r}")
    most = max(os.cpu_count() or 1, ALWAYS_ALLOWED)
    if count > most:
        raise OptionError(f"devices: {name} was asked for, this machine has {os.cpu_count()} cores")
    return count


def threads_of_each(workers: int) -> int:
    """Torch's threads of one worker: those of this process, split."""
    import torch

    return max(torch.get_num_threads() // workers, 1)
