"""What an exception says of its cause: a kernel that could not start, or memory that was short."""

from __future__ import annotations

import torch

__all__ = ["cannot_start", "is_out_of_memory"]

_MESSAGES = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""How allocators complain that raise no type of their own."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was short, on a GPU or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _MESSAGES)


def cannot_start(error: Exception) -> bool:
    """Whether a kernel could not be compiled or started, as far as its error tells; not what was wrong with the call.

    Triton's own errors come from its compiler; missing compilers and drivers are import, system and bare runtime
    errors. A fault of the GPU comes from whatever ran before, and no row could go on after it. Memory that is short is
    short for the batch at hand, and says nothing of the next one.
    """
    if is_out_of_memory(error):
        return False
    if isinstance(error, ImportError | OSError) or type(error).__module__.partition(".")[0] == "triton":
        return True
    return type(error) is RuntimeError and "CUDA error" not in str(error)
