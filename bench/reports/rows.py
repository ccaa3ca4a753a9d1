"""What a report measured as flat rows, one a case and system, whatever the kind: for comparing, drawing and listing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ...engine.errors import InputError
from ..timing import Spread
from .fields import Node
from .report import Report

__all__ = ["BOUNDS", "MICROSECONDS", "OF_MODELS", "OURS", "Row", "missing_of", "rows_of"]

OURS = "padless"
MICROSECONDS = "µs"

BOUNDS = ("product-alone", "the product alone, cuBLAS", "copy of as many bytes")
"""What is timed beside an op and does less than it: nothing that computes the op can be held against it as a peer."""

OF_MODELS = ("models", "generate", "accelerate")
"""Kinds of report that hold a list of models, each with the same fields."""

_TIMED_PARTS = ("attention", "fused")
"""Of a GPU report: its other parts check, or try tilings."""

_SHORT_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
_LENGTH_IN_NAME = re.compile(r"[ /](\d+)$")
_OF_ONE_LENGTH = ("equal", "window", "bias", "causal")
"""Cases of the GPU report whose name ends in the length of every text; in others the number means something else."""


@dataclass(frozen=True)
class Row:
    """One system at one case.

    Attributes:
        case: what was run; unique within a report together with `label`.
        group: what cases belong together: an op, a model, a part of the GPU report.
        system: the software, without its dtype; `OURS` for the row of the dispatch table that padless takes.
        label: the system as the report itself names it.
        dtype: "float32", "bfloat16" or "float16".
        value: what was measured, in `unit`.
        unit: `MICROSECONDS`, "tokens/s" or "rows/s".
        tokens, flops, bytes: of the case, where the report states them.
        length: tokens of one text, where all have the same; of a model the mean.
        tflops, gbps: what the system reached, where the report states it.
    """

    case: str
    group: str
    system: str
    label: str
    dtype: str
    value: Spread
    unit: str
    tokens: float | None = None
    flops: float | None = None
    bytes: float | None = None
    length: int | None = None
    tflops: float | None = None
    gbps: float | None = None

    @property
    def shown(self) -> str:
        """The system as a picture names it; of padless, where it has several rows, also which."""
        return self.system if self.system != OURS or self.label.startswith(OURS) else f"{OURS} ({self.label})"

    @property
    def ours(self) -> bool:
        """Whether this is padless, in whatever arrangement."""
        return self.system == OURS or self.system.startswith(tuple(OURS + mark for mark in " ,.-"))

    @property
    def peer(self) -> bool:
        """Whether this computes the same and is not padless."""
        return not self.ours and self.system not in BOUNDS

    def speed_over(self, other: Spread) -> float:
        """How many times faster than `other`, a value of the same unit, by the medians."""
        own = self.value.median
        return other.median / own if self.unit == MICROSECONDS else own / other.median


def rows_of(report: Report) -> list[Row]:
    """All rows, in the report's order.

    Raises:
        InputError: a field is missing or of another type, a figure is not above 0, or a row is there twice.
    """
    rows = list(_READERS[report.kind](report.root))
    seen: set[tuple[str, str]] = set()
    for row in rows:
        what = f"{report.where}: {row.case}, {row.label}"
        if (row.case, row.label) in seen:
            raise InputError(f"{what}: found twice, expected once")
        seen.add((row.case, row.label))
        if not 0 < row.value.p20 <= row.value.median <= row.value.p80:
            raise InputError(f"{what}: expected 0 < p20 <= median <= p80, found {row.value}")
    return rows


def missing_of(report: Report) -> dict[tuple[str, str], str]:
    """Why a system has no row, by case and label: it failed its check, or was left out."""
    found: dict[tuple[str, str], str] = {}
    for case, node in _cases(report):
        for name, verb in (("left_out", "left out"), ("failed", "failed"), ("absent", "left out")):
            found |= {(case, label): f"{verb}: {reason}" for label, reason in node.texts(name).items()}
    return found


def _cases(report: Report) -> Iterator[tuple[str, Node]]:
    if report.kind == "kernels":
        yield from ((_kernel_case(node), node) for node in report.root.items("cases"))
    elif report.kind in OF_MODELS:
        yield from ((_model_case(node), node) for node in report.root.items("models"))
    elif report.kind == "jobs":
        yield _job_case(report.root), report.root
    else:
        yield from ((f"{part}: {name}", node) for part, name, node in _gpu_cases(report.root))


def _kernels(root: Node) -> Iterator[Row]:
    for case in root.items("cases"):
        name, dtype = _kernel_case(case), case.text("dtype")
        tokens, flops, size = _numbers(case, "tokens", "flops", "bytes")
        # Systems are rows of the dispatch table and peers; padless is the row that it takes for this case.
        chosen = case.any_text(("chosen",))
        for system in case.items("systems"):
            label = system.text("system")
            tflops, gbps = _numbers(system, "tflops", "gbps")
            yield Row(
                name, case.text("op"), OURS if label == chosen else label, label, dtype, system.spread("us"),
                MICROSECONDS, tokens, flops, size, _length(case), tflops, gbps,
            )  # fmt: skip


def _models(root: Node) -> Iterator[Row]:
    for model in root.items("models"):
        name, workload = _model_case(model), model.node("workload")
        tokens = next((node.number("tokens") for node in (model, workload) if node.has("tokens")), None)
        length = None if tokens is None else round(tokens / max(workload.number("texts"), 1.0))
        for system in model.items("systems"):
            software, dtype = system.text("system"), system.text("dtype")
            yield Row(
                name, model.text("model"), software, f"{software} {dtype}", dtype, system.spread("tokens_per_second"),
                "tokens/s", tokens, length=length,
            )  # fmt: skip


def _jobs(root: Node) -> Iterator[Row]:
    name = _job_case(root)
    for system in root.items("systems"):
        software = system.text("system")
        yield Row(
            name, "jobs", software, software, root.text("dtype"), system.spread("rows_per_second"), "rows/s",
            root.node("workload").number("tokens"),
        )  # fmt: skip


def _gpu(root: Node) -> Iterator[Row]:
    for part, name, case in _gpu_cases(root):
        if not case.has("timed"):
            continue
        # The part `attention` times bf16 alone; a case of `fused` has its dtype at the end of its name.
        short = name.rpartition(", ")[2]
        dtype = _SHORT_DTYPES.get(short, "bfloat16")
        length = _length_in(name) if name.startswith(_OF_ONE_LENGTH) else None
        tokens, flops, size = _numbers(case, "tokens", "flops", "bytes")
        for system, timed in case.nodes("timed").items():
            if timed is not None:
                tflops, gbps = _numbers(timed, "tflops", "gbps")
                yield Row(
                    f"{part}: {name}", part, system, system, dtype, timed.spread("us"), MICROSECONDS,
                    tokens, flops, size, length, tflops, gbps,
                )  # fmt: skip


def _gpu_cases(root: Node) -> Iterator[tuple[str, str, Node]]:
    for part, found in root.nodes("parts").items():
        if part in _TIMED_PARTS and found is not None:
            yield from ((part, name, node) for name, node in found.nodes("cases").items() if node is not None)


_READERS: dict[str, Callable[[Node], Iterator[Row]]] = {
    "kernels": _kernels,
    "models": _models,
    "generate": _models,
    "accelerate": _models,
    "jobs": _jobs,
    "gpu-report": _gpu,
}


def _kernel_case(case: Node) -> str:
    lengths = case.tree.get("lengths")
    batch = f", {lengths}" if isinstance(lengths, str) else ""
    return f"{case.text('op')}: {case.text('case')}{batch}, {case.text('dtype')}"


def _model_case(model: Node) -> str:
    return f"{model.text('model')}, {model.node('workload').text('name')}"


def _job_case(root: Node) -> str:
    workload = root.node("workload")
    return f"{workload.text('name')}, {workload.number('rows'):,.0f} rows, {root.text('dtype')}"


def _numbers(node: Node, *names: str) -> Iterator[float | None]:
    """What the report states of these, in this order."""
    return (node.number(name) if node.has(name) else None for name in names)


def _length(case: Node) -> int | None:
    """Tokens of one text: as stated, or all alike in a list of lengths, or what ends the case's name."""
    if "seqlen" in case.tree:
        return int(case.number("seqlen")) if case.has("seqlen") else None
    lengths = case.tree.get("lengths")
    if isinstance(lengths, list) and lengths and all(isinstance(length, int) for length in lengths):
        return int(lengths[0]) if len(set(lengths)) == 1 else None
    return _length_in(case.text("case")) if case.has("case") else None


def _length_in(name: str) -> int | None:
    found = _LENGTH_IN_NAME.search(name)
    return int(found.group(1)) if found else None
