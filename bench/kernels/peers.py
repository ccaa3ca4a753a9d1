"""What others offer for the same op, each behind a small adapter: why it is missing, or the call that is timed.

What a peer needs beyond the inputs (another layout, a mask, a compilation) is made before, outside of its time.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.nn import functional as F

from ...engine.dispatch import TABLE
from ...engine.errors import OptionError
from ..gpu.peers import Absent
from . import attention_peers
from .case import Case, Ready, Results, bound, results
from .cost import linear as linear_cost

__all__ = ["PEERS", "Peer", "choose_peers"]


@dataclass(frozen=True)
class Peer:
    """One system of others.

    Attributes:
        name: as in `--peers` and in the report.
        ops: keys of the dispatch table that it is a peer for.
        missing: why it cannot serve a case, without trying; None where nothing is known against it.
        build: the system, ready for a case; raises `Absent` where it cannot serve after all.
        costly: why it is left out unless it is asked for by name, by the device types where it is.
    """

    name: str
    ops: tuple[str, ...]
    missing: Callable[[Case], str | None]
    build: Callable[[Case], Ready]
    costly: Mapping[str, str] = field(default_factory=dict)


def choose_peers(names: Sequence[str] | None) -> dict[str, Peer]:
    """The peers of these names; None is all of them, where those that are costly on a device only say so.

    Raises:
        OptionError: no such peer.
    """
    if names is None:
        return {name: _unasked(peer) for name, peer in PEERS.items()}
    if list(names) == ["all"]:
        return dict(PEERS)
    if list(names) == ["none"]:
        return {}
    for name in names:
        if name not in PEERS:
            raise OptionError(f"peer {name!r}: unknown, expected all, none or some of {', '.join(PEERS)}")
    return {name: peer for name, peer in PEERS.items() if name in names}


def _unasked(peer: Peer) -> Peer:
    def missing(case: Case) -> str | None:
        known, reason = peer.missing(case), peer.costly.get(case.device.type)
        if known is not None or reason is None:
            return known
        return f"{reason}: asked for by name only (--peers {peer.name})"

    return replace(peer, missing=missing)


def _compile_missing(case: Case) -> str | None:
    if case.op in ("attention", "decode_attention"):
        return "eager loops over texts whose lengths it learns while it runs"
    return None


def _compiled(case: Case) -> Ready:
    """torch.compile of the eager op."""
    op = bound(case, "eager")
    assert op.resolution is not None
    # It would give up after eight shapes of one function.
    torch._dynamo.reset()
    fn = torch.compile(op.resolution.fn, dynamic=False)
    inputs, weights, options = case.inputs, case.weights, dict(case.options)
    return Ready(lambda: fn(*inputs, *weights, **options), results)


def _product_alone(case: Case) -> Ready:
    """The op's matrix product and nothing else, by torch: cuBLAS on a GPU, MKL or oneDNN on a CPU."""
    x, weight = case.inputs[0], case.weights[4 if case.op == "mlm_head" else 2 if case.op == "norm_linear" else 0]
    assert weight is not None
    facts = {"hidden": weight.shape[0], "inner": weight.shape[1], "epilogue": "none"}
    cost = linear_cost(len(x), weight.shape[1], weight.shape[0], x.element_size())
    plain = replace(
        case, op="linear", facts=facts, weights=(weight, None), options={}, cost=cost, by_row=frozenset({0})
    )
    return Ready(lambda: F.linear(x, weight), results, against=plain)


def _product_missing(case: Case) -> str | None:
    if case.op == "mlm_head" and len(case.weights) > 6:
        return "this decoder is two products"
    return None


def _liger(module: str, function: str) -> Any:
    try:
        return getattr(importlib.import_module(f"liger_kernel.ops.{module}"), function)
    except (ImportError, AttributeError) as error:
        raise Absent(f"liger-kernel: {_first_line(error)}") from error


def _liger_missing(case: Case) -> str | None:
    if case.device.type != "cuda":
        return "needs a GPU"
    if case.op == "norm" and (case.weights[1] is None or "residual" in case.options):
        return "its layer norm has a bias and no residual"
    if case.op == "linear" and not (case.options["gated"] and case.options["epilogue"] == "gelu_tanh"):
        return "of what follows a product it has the gate of gelu_tanh"
    return None


def _liger_ready(case: Case) -> Ready:
    """Liger's kernels: layer norm, RMS norm with and without a residual, and the gate behind a product by torch."""
    x, eps, residual = case.inputs[0], case.options.get("eps"), case.options.get("residual")
    if case.op == "norm":
        apply, (weight, bias) = _liger("layer_norm", "LigerLayerNormFunction").apply, case.weights
        return Ready(lambda: apply(x, weight, bias, eps), results)
    if case.op == "linear":
        gate, (weight, bias) = _liger("geglu", "LigerGELUMulFunction").apply, case.weights
        assert weight is not None
        return Ready(lambda: gate(*F.linear(x, weight, bias).chunk(2, dim=-1)), results)
    (weight,) = case.weights
    if residual is None:
        apply = _liger("rms_norm", "LigerRMSNormFunction").apply
        return Ready(lambda: apply(x, weight, eps), results)
    added = _liger("fused_add_rms_norm", "LigerFusedAddRMSNormFunction").apply
    return Ready(lambda: added(x, residual, weight, eps), _pair)


def _pair(returned: Any) -> Results:
    return tuple(returned[:2])


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


_COMPILES: dict[str, str] = dict.fromkeys(("cpu", "cuda"), "compiled for each case, for many seconds")
_PRODUCTS = ("linear", "norm_linear", "mlm_head")


def _attends(name: str, costly: Mapping[str, str] | None = None) -> Peer:
    missing = functools.partial(attention_peers.missing, name)
    return Peer(name, ("attention",), missing, attention_peers.BUILD[name], costly or {})


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("compile", tuple(TABLE), _compile_missing, _compiled, _COMPILES),
        _attends("sdpa-padded"),
        _attends("sdpa-nested", {"cpu": "takes seconds a call"}),
        _attends("sdpa-flash"),
        _attends("sdpa-cudnn"),
        _attends("flex", _COMPILES),
        _attends("torch-varlen"),
        _attends("flash-attn-2"),
        _attends("flash-attn-3"),
        _attends("flash-attn-4"),
        _attends("xformers"),
        Peer("liger", ("norm", "rms_norm", "linear"), _liger_missing, _liger_ready),
        Peer("product-alone", _PRODUCTS, _product_missing, _product_alone),
    )
}
