"""Every error padless raises on purpose: one hierarchy, one line each.

A message names the file, field or row, says what was found and what was expected, and fits on one line,
so that the command line can print it as it is and a log can be searched for it.
"""

from __future__ import annotations

__all__ = [
    "BackendError",
    "ConfigError",
    "InputError",
    "JobError",
    "MemoryLimitError",
    "ModelNotFoundError",
    "NotFiniteError",
    "OptionError",
    "PadlessError",
    "TokenizerError",
    "WeightsError",
]


class PadlessError(Exception):
    """Base of all errors that padless raises on purpose; the command line turns it into one line and exit code 2."""


class ModelNotFoundError(PadlessError):
    """The model folder (or a file it must hold) does not exist."""


class ConfigError(PadlessError):
    """A configuration file is unreadable, or a field of it is missing, unknown or out of range."""


class WeightsError(PadlessError):
    """A checkpoint is truncated, or its tensors are missing, unexpected or misshapen."""


class TokenizerError(PadlessError):
    """A tokenizer file is missing or unreadable, or does not fit the model."""


class BackendError(PadlessError):
    """A backend that was asked for by name cannot serve; the message lists each reason."""


class InputError(PadlessError):
    """The data handed in cannot be read, or has no result: file, column or row."""

    def of_row(self, row: int) -> InputError:
        """The same error, of this kind, that names the row."""
        return type(self)(f"row {row}: {self}")


class NotFiniteError(InputError):
    """The model gave NaN or infinity for an input; in fp32 the same input may have a result."""


class OptionError(PadlessError):
    """An argument of a public call or a flag of the command line is out of range."""


class JobError(PadlessError):
    """A job cannot start or go on: its output folder is unusable or belongs to another job."""


class MemoryLimitError(InputError):
    """A text does not fit in the device's memory, not even in a batch of its own.

    Attributes:
        row: which of the texts handed in; None where the row is told beside the error.
    """

    def __init__(self, row: int | None, tokens: int, reason: str) -> None:
        super().__init__(row, tokens, reason)
        self.row, self.tokens, self.reason = row, tokens, reason

    def of_row(self, row: int | None) -> MemoryLimitError:
        """The same error of this row."""
        return MemoryLimitError(row, self.tokens, self.reason)

    def __str__(self) -> str:
        where = "" if self.row is None else f"row {self.row}: "
        return f"{where}out of memory with its {self.tokens:,} tokens alone ({self.reason})"
