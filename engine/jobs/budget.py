"""How many tokens a batch of a job may have: found from the free memory at the first run, then kept in the manifest.

On a GPU, by a measurement: a batch of as many tokens as the task runs at all, up to `PROBE_TOKENS`, gives the bytes
that a token needs at its peak beyond the weights; half of what is free then divides into the budget. The other half is
for longer texts, whose attention may need more a token, and for what others allocate.

On a CPU the task's own budget is a matter of the cache; it is only lowered where the memory is smaller than the bound
`CPU_BYTES_PER_TOKEN` for every batch that runs at once asks for.
"""

from __future__ import annotations

from .inputs.rows import Row
from .task import JobTask

__all__ = ["token_budget"]

LEAST = 512
"""No budget is lower; whatever does not fit then is split when it runs out of memory."""

PROBE_TOKENS = 8192
CPU_BYTES_PER_TOKEN = 256 << 10
"""Above what a BERT-large needs in float32, attention scores of 512 tokens included."""


def token_budget(task: JobTask, workers: int = 1) -> int:
    """The task's own budget, or less where the free memory is small; on a CPU `workers` processes share that."""
    if task.device.startswith("cuda"):
        return _on_gpu(task)
    import torch

    free = _free_host_bytes()
    if free is None:
        return task.token_budget
    return bounded(task.token_budget, free, CPU_BYTES_PER_TOKEN * torch.get_num_threads() * workers)


def bounded(most: int, free_bytes: int, bytes_per_token: float) -> int:
    """`most`, or what half of the free memory holds; never below `LEAST`, unless `most` is."""
    fitting = int(free_bytes // 2 // max(bytes_per_token, 1))
    return min(most, max(fitting, LEAST))


def _on_gpu(task: JobTask) -> int:
    import torch

    from ..streaming.stream import EncodeStats

    device = torch.device(task.device)
    most = task.token_budget
    task.token_budget = min(most, PROBE_TOKENS)
    try:
        begin, stats = torch.cuda.memory_allocated(device), EncodeStats()
        torch.cuda.reset_peak_memory_stats(device)
        # One text after the other, all alike: a batch holds as many as the budget allows.
        texts = task.token_budget // 128
        task.run([Row(i, "", i, None, "a " * 120) for i in range(max(texts, 1))], stats, _ignore)
        peak = torch.cuda.max_memory_allocated(device) - begin
    finally:
        task.token_budget = most
    free, _ = torch.cuda.mem_get_info(device)
    # What torch holds back from earlier batches is free as well.
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if not stats.tokens:  # a task that these texts are no input of
        return most
    return bounded(most, free, peak / max(min(stats.tokens, PROBE_TOKENS), 1))


def _ignore(texts: int, tokens: int) -> None:
    """Nobody watches the measurement."""


def _free_host_bytes() -> int | None:
    """What the machine could still give to a process, or None where it does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None
