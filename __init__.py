"""padless: an encoder engine that never computes a padding token.

    import padless
    encoder = padless.load("path/to/model")
    vectors = encoder.encode(["a text", "another one"])    # float32 numpy, [texts, dimension]

The names below are imported at their first use (PEP 562), so `import padless` costs milliseconds and loads neither
torch nor triton. Everything that is not listed here may change between versions.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine.encoder import Encoder
    from .engine.errors import (
        BackendError,
        ConfigError,
        InputError,
        JobError,
        ModelNotFoundError,
        OptionError,
        PadlessError,
        TokenizerError,
        WeightsError,
    )
    from .engine.loading import load

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "ConfigError",
    "Encoder",
    "InputError",
    "JobError",
    "ModelNotFoundError",
    "OptionError",
    "PadlessError",
    "TokenizerError",
    "WeightsError",
    "__version__",
    "load",
]

_MODULE_OF = {
    "BackendError": ".engine.errors",
    "ConfigError": ".engine.errors",
    "Encoder": ".engine.encoder",
    "InputError": ".engine.errors",
    "JobError": ".engine.errors",
    "ModelNotFoundError": ".engine.errors",
    "OptionError": ".engine.errors",
    "PadlessError": ".engine.errors",
    "TokenizerError": ".engine.errors",
    "WeightsError": ".engine.errors",
    "load": ".engine.loading",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
