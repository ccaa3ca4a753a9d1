"""The systems that are measured against each other, each behind the same few names.

Everybody is given the same folder of weights, the same list of texts, the same number of threads and one process.
Tokenisation is inside everybody's time. Each runs in the arrangement that is best for it, but for the first:

    transformers-unsorted  AutoModel, batches of 32 in the order of the texts: padding as it happens to be
    sentence-transformers  sorted by length, batches of 32: its own defaults
    transformers           AutoModel, sorted by tokens, batches of 32, mean pooling, normalised
    onnxruntime            the torch model exported, pooling in the graph, sorted, batches of 32; also dynamic int8
    openvino               the torch model converted, pooling in the graph, sorted; the fastest of three arrangements
    padless                texts as they come; its own plan
    padless-deterministic  the same with deterministic=True

Where a workload is cut to few texts, sorted batches are smaller than 32 in the same proportion: 32 of 60 texts would be
padded as no user's are (`Workload.batch_size`).

All run in one process, in turns, so that a slow minute hits everybody. Their thread pools (OpenMP, TBB, rayon) live
side by side, and only one system is called at a time. What idle pools cost the others has not been measured apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ...engine.errors import OptionError
from .onnx_system import OnnxRuntime
from .openvino_system import OpenVino
from .system import System
from .torch_systems import Padless, PadlessDeterministic, SentenceTransformers, Transformers, TransformersUnsorted

__all__ = ["BASELINE", "DTYPES", "SYSTEMS", "make_system", "make_systems"]

SYSTEMS: dict[str, type[System]] = {
    system.name: system
    for system in (
        TransformersUnsorted,
        SentenceTransformers,
        Transformers,
        OnnxRuntime,
        OpenVino,
        Padless,
        PadlessDeterministic,
    )
}
DTYPES = ("float32", "bfloat16", "int8")

BASELINE = "sentence-transformers float32"
"""Whose vectors are right by definition, and whose speed is 1."""


def make_system(name: str, dtype: str) -> System:
    """The system `name` computing in `dtype`, not yet prepared.

    Raises:
        OptionError: no system or dtype of that name, or the system does not compute in it.
    """
    _check((name,), (dtype,))
    if dtype not in SYSTEMS[name].dtypes:
        raise OptionError(f"system {name!r}: dtype: expected one of {', '.join(SYSTEMS[name].dtypes)}, got {dtype!r}")
    return SYSTEMS[name](dtype)


def make_systems(names: Iterable[str] | None, dtypes: Sequence[str]) -> list[System]:
    """The systems of these names in those of the dtypes that they have, in the table's order.

    The baseline and padless are always among them; `names` None is all.

    Raises:
        OptionError: no system or dtype of that name, or no dtype at all.
    """
    wanted = set(SYSTEMS if names is None else names)
    if not dtypes:
        raise OptionError("dtypes: expected at least one")
    _check(sorted(wanted), dtypes)
    baseline = SentenceTransformers("float32")
    chosen = [system(dtype) for system in SYSTEMS.values() for dtype in dict.fromkeys(dtypes) if dtype in system.dtypes]
    chosen = [system for system in chosen if system.name in {*wanted, Padless.name} and system.label != BASELINE]
    place = next((at for at, system in enumerate(chosen) if system.name != TransformersUnsorted.name), len(chosen))
    return [*chosen[:place], baseline, *chosen[place:]]


def _check(names: Iterable[str], dtypes: Iterable[str]) -> None:
    for name in names:
        if name not in SYSTEMS:
            raise OptionError(f"system {name!r}: unknown, expected one of {', '.join(SYSTEMS)}")
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise OptionError(f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
