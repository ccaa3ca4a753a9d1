"""Right or wrong, before any number: the 2x rule against eager in fp64, on all of a result or on a stated part of it.

max|system - ref64| <= 2 * max|eager in the same dtype - ref64| + eps(dtype) * max|ref64|
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..gpu.attention import CHECKED_QUERIES, checked_heads
from ..gpu.bits import some
from ..gpu.oracle import Verdict, check_attention
from .case import Case, Results, bound, results

__all__ = ["Oracle"]

EVERYTHING = 1e10
"""FLOPs up to which the whole result is held against fp64."""

ROWS = 256
"""Rows of a result that are looked at where the whole is too much: the first and last ones, and some between."""

PAIRS = 1 << 26
"""Pairs of query and key, over all heads, up to which all texts of an attention are looked at."""

TEXTS = 4


@dataclass(frozen=True)
class _Piece:
    """Part of a result, and what belongs there."""

    where: str
    output: int
    at: Any
    eager: Tensor
    reference: Tensor


class Oracle:
    """What a case's result must be; made once, and then asked about every system."""

    def __init__(self, case: Case, memory: int) -> None:
        """Compute the reference.

        Args:
            case: whose result.
            memory: bytes that the reference of an attention may take.
        """
        self._checked = "all"
        self._pieces = self._attention(case, memory) if case.attention is not None else self._rows(case)

    def judge(self, found: Results) -> tuple[dict[str, Any], str | None]:
        """Figures for the report, and the reason why the result is wrong, or None.

        Args:
            found: what a system returned, as the eager op returns it.
        """
        verdict = Verdict()
        for piece in self._pieces:
            if piece.output >= len(found):
                return {}, f"{len(found)} results, expected {piece.output + 1} at least"
            part = found[piece.output][piece.at] if piece.at is not None else found[piece.output]
            if piece.eager.dtype == torch.bool:
                if not torch.equal(part, piece.eager):
                    return {}, f"{piece.where}: other flags than eager's"
            else:
                verdict.add(piece.where, part, piece.eager, piece.reference)
        return {**verdict.figures(), "checked": self._checked}, verdict.broken

    def _attention(self, case: Case, memory: int) -> list[_Piece]:
        inputs = case.attention
        assert inputs is not None
        problem = inputs.problem
        keys = problem.lengths if problem.lengths_k is None else problem.lengths_k
        texts, queries = None, None
        if problem.heads * sum(a * b for a, b in zip(problem.lengths, keys, strict=True)) > PAIRS:
            inputs, texts, queries = checked_heads(inputs), some(problem.lengths, TEXTS), CHECKED_QUERIES
            self._checked = f"{len(texts)} texts, {inputs.problem.heads} heads, the last {queries:,} queries"
        pieces: list[_Piece] = []

        def visit(rows: slice, heads: slice, eager: Tensor, reference: Tensor) -> None:
            where = f"rows {rows.start}..{rows.stop - 1}, heads {heads.start}..{heads.stop - 1}"
            pieces.append(_Piece(where, 0, (rows, heads), eager, reference))

        # What it is handed to judge is thrown away: only the references count here.
        check_attention(inputs, torch.zeros_like(inputs.q), None, memory, texts, queries, visit)
        return pieces

    def _rows(self, case: Case) -> list[_Piece]:
        at = None
        if case.cost.flops > EVERYTHING and case.by_row and case.rows > ROWS:
            at = _some_rows(case.rows).to(case.device)
            case = case.narrowed(at)
            self._checked = f"{ROWS} rows"
        eager, reference = (_eager(each) for each in (case, case.widened()))
        return [
            _Piece(f"output {place}", place, at, same, right)
            for place, (same, right) in enumerate(zip(eager, reference, strict=True))
            if same.dtype != torch.int64  # ids: which of two that are nearly as likely comes first is no error
        ]


def _eager(case: Case) -> Results:
    op = bound(case, "eager")
    assert op.resolution is not None
    return results(op.resolution.fn(*case.inputs, *case.weights, **case.options))


def _some_rows(rows: int) -> Tensor:
    edge = ROWS // 4
    between = random.Random(rows).sample(range(edge, rows - edge), ROWS - 2 * edge)
    return torch.tensor([*range(edge), *sorted(between), *range(rows - edge, rows)])
