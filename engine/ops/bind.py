"""From an op and its weights to a plain callable: the one caller of `resolve`.

A block declares its ops once (`BoundOp`), and binds them when its weights are in place: after construction, after
loading, after `.to()` or `.half()`. From then on a call goes straight to the chosen function; nothing is looked up.
"""

from __future__ import annotations

import functools
import itertools
import logging
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from ..contract import Call
from ..dispatch import Resolution, distrust, explain, resolve
from ..errors import BackendError, OptionError
from ..failures import cannot_start

__all__ = ["BoundOp", "Source", "explain_ops", "failed_kernels", "joined", "share_storage"]

log = logging.getLogger("padless")


@dataclass(frozen=True, eq=False)
class Source:
    """Where a weight is kept: looked up at each use, so that a parameter replaced by another is seen.

    Attributes:
        module: the module that owns it.
        name: its attribute there; the value is None for a layer without bias.
    """

    module: nn.Module
    name: str

    @property
    def tensor(self) -> Tensor | None:
        """The weight as it is now."""
        return getattr(self.module, self.name)


Weight = Source | tuple[Source, ...] | None
"""One weight, several whose rows are taken as one, or none where the op can do without."""


class BoundOp:
    """One op of one block, with its weights and the function that serves it.

    Holds two plain functions, without and with gradient. The first takes the weights as its row prepared them (fused,
    prepacked), at the first call that needs no gradient; that copy is dropped when a parameter changes.

    A module that is put in the place of one of the weights' owners is taken at the next call, however it got there.
    """

    def __init__(self, op: str, *weights: Weight, facts: dict[str, Any] | None = None, **options: Any) -> None:
        """Declare the op; it cannot be called before `bind`.

        Args:
            op: a key of the dispatch table.
            weights: passed behind the inputs, in the order of the op's signature.
            facts: what the dispatch table needs to know beside device and dtype; see `Call`.
            options: keyword arguments of every call.
        """
        self.op = op
        self.resolution: Resolution | None = None
        self.options = options
        self._facts = facts or {}
        self._take_weights(*weights)
        self._forward: Callable[..., Any] = _unbound
        self._gradient: Callable[..., Any] = _unbound
        self._backend = "auto"
        self._failed: dict[str, str] = {}
        self._guarded = False
        self._traceable = True
        self._stamps: tuple[_Stamp | None, ...] = ()
        self._children: dict[str, nn.Module | None] = {}
        self._held: tuple[tuple[str, nn.Module], ...] = ()
        self.parts: tuple[BoundOp, ...] = ()
        """Ops that compute the same together. Whoever owns them all calls them where this one is not `fused`."""
        self.refusal: str | None = None
        """Why no row serves, of an op with parts."""
        self.kernel_required = False
        """Whether a kernel that cannot be compiled or started is an error, and no reason to take the next row."""

    @property
    def plain(self) -> bool:
        """Whether the weights alone say what the op computes; False where modules must be called for it."""
        return True

    @property
    def fused(self) -> bool:
        """Whether a row above eager serves."""
        return self.resolution is not None and self.resolution.impl.name != "eager"

    def wants_gradient(self, *inputs: Any) -> bool:
        """Whether a call with these inputs now would be one that autograd follows."""
        return torch.is_grad_enabled() and self._needs_gradient(inputs)

    def watch(self, children: dict[str, nn.Module | None]) -> None:
        """Follow what stands under the names of the weights' modules from now on.

        Args:
            children: `_modules` of the module that declares the op.
        """
        if self._children is not children:
            owners = {id(source.module) for source in self._sources}
            self._children = children
            self._held = tuple((name, child) for name, child in children.items() if child and id(child) in owners)
        self.follow()

    def through(self, *inputs: Any, **options: Any) -> Any:
        """The op by calling the modules; asked for where it is not `plain`."""
        raise NotImplementedError

    def follow(self) -> None:
        """Take the weights of the modules that stand now where the declared ones stood.

        Raises:
            OptionError: one of them computes something else, and the op cannot call it.
        """
        for name, module in self._held:
            found = self._children.get(name)
            if found is not module:
                self._replace(name, module, found)

    def bind(self, device: torch.device, dtype: torch.dtype, *, backend: str, deterministic: bool) -> None:
        """Choose the implementation for where the weights are now.

        Raises:
            BackendError: if `backend` is a name and cannot serve, see `resolve`; not of an op with parts.
        """
        call = Call(
            self.op,
            device=device.type,
            dtype=dtype,
            sm=_compute_capability(device),
            deterministic=deterministic,
            **self._facts,
        )
        self.bind_as(call, backend=backend)

    def bind_as(self, call: Call, *, backend: str) -> None:
        """Choose the implementation for a call on any machine, this one or not.

        Raises:
            BackendError: as `bind`.
        """
        self._backend, self._failed, self.refusal = backend, {}, None
        try:
            self._take(resolve(call, backend))
        except BackendError as error:
            if not self.parts:
                raise
            # Its parts were bound as it was asked to be, or raise themselves.
            self.resolution, self.refusal = None, str(error)

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        self.follow()
        if not self.plain:
            return self.through(*inputs, **options)
        tracing = torch.compiler.is_compiling()
        if tracing and not self._traceable:
            self._leave_to_compiler()
        if (tracing and not self._traceable) or self.wants_gradient(*inputs, *options.values()):
            return self._gradient(*inputs, *map(_value, self._weights), **self.options, **options)
        if self._guarded and not tracing:
            return self._forward_or_next(*inputs, **options)
        return self._forward(*inputs, *self._current_weights(), **self.options, **options)

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: all but the prepared weights, which the copy makes anew from its own."""
        return {**self.__dict__, "_prepared": None, "_stamps": ()}

    def takes(self, old: nn.Module, new: nn.Module | None) -> bool:
        """Whether `new` can stand in the place of `old`: it computes the same, from weights of the same names."""
        return new is not None and type(new).forward is type(old).forward

    def _take(self, resolution: Resolution) -> None:
        self.resolution = resolution
        self._forward, self._gradient = resolution.fn, resolution.gradient
        self._guarded = resolution.impl.just_in_time
        self._traceable = resolution.impl.traceable
        self._prepared = None

    def _leave_to_compiler(self) -> None:
        """Refuse where what a compiler makes of the differentiable row would not be what was asked for."""
        if self.resolution is not None and self.resolution.call.deterministic:
            raise BackendError(f"{self.op}: deterministic=True promises nothing of a compiled model, expected False")

    def _forward_or_next(self, *inputs: Any, **options: Any) -> Any:
        """The chosen row; where its code cannot be compiled or started here, the next, from now on.

        A row whose tiling was measured elsewhere is first tried with its own default.

        Raises:
            BackendError: there is no next one: the row was asked for by name, or a kernel is required.
        """
        resolution = self.resolution
        try:
            return self._forward(*inputs, *self._current_weights(), **self.options, **options)
        except Exception as error:
            if resolution is None or not cannot_start(error) or _is_capturing():
                raise
            name = resolution.impl.name
            failure = f"failed when it was called: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            if not distrust(resolution, failure):
                if self.kernel_required or self._backend == name:
                    wanted = "kernels are required" if self.kernel_required else f"backend={name!r} was asked for"
                    raise BackendError(f"{self.op}: {name} {failure}; {wanted}") from error
                self._failed[name] = failure
            self._take(resolve(resolution.call, self._backend, self._failed))
            if name in self._failed:
                served_by = self.resolution.impl.name if self.resolution else "nothing"
                _warn_once(f"{self.op}: {name} {failure}; {served_by} serves from now on")
        return self(*inputs, **options)

    def _replace(self, name: str, old: nn.Module, new: nn.Module | None) -> None:
        if new is None or not self.takes(old, new):
            expected, found = (type(module).__name__ for module in (old, new))
            raise OptionError(f"{name}: expected a {expected}, whose weights the op {self.op} takes, got a {found}")

        def moved(source: Source) -> Source:
            return Source(new, source.name) if source.module is old else source

        self._take_weights(
            *(
                tuple(map(moved, weight))
                if isinstance(weight, tuple)
                else moved(weight)
                if weight is not None
                else None
                for weight in self._weights
            )
        )
        self._held = tuple((held, new if held == name else module) for held, module in self._held)
        if "eps" in self.options and hasattr(new, "eps"):
            self.options = {**self.options, "eps": new.eps}

    def _take_weights(self, *weights: Weight) -> None:
        self._weights = weights
        self._sources = tuple(itertools.chain.from_iterable(map(_sources, weights)))
        self._prepared: tuple[Any, ...] | None = None

    def _needs_gradient(self, inputs: Iterable[Any]) -> bool:
        tensors = itertools.chain((source.tensor for source in self._sources), inputs)
        return any(isinstance(value, Tensor) and value.requires_grad for value in tensors)

    def _current_weights(self) -> tuple[Any, ...]:
        if torch.compiler.is_compiling():
            return self._weights_as_prepared()  # what is traced must not hold on to weights of the trace
        tensors = tuple(source.tensor for source in self._sources)
        prepared = self._prepared
        if prepared is not None and all(map(_unchanged, self._stamps, tensors)):
            return prepared
        weights = self._weights_as_prepared()
        self._stamps = tuple(None if tensor is None else _Stamp(tensor) for tensor in tensors)
        self._prepared = weights
        return weights

    def _weights_as_prepared(self) -> tuple[Any, ...]:
        with torch.no_grad():
            weights = tuple(map(_value, self._weights))
            resolution = self.resolution
            if resolution is not None and resolution.prepare is not None:
                weights = resolution.prepare(*weights, call=resolution.call)
        return weights


def explain_ops(ops: Iterable[BoundOp]) -> str:
    """What serves each op and why not the rows above, as a table; see `explain`.

    Args:
        ops: bound ones; others are left out.
    """
    known = list(ops)
    bound = [op for op in known if op.resolution is not None]
    wholes = [op for op in known if op.parts]
    composed = {id(part) for op in wholes if not op.fused for part in op.parts}
    idle = {id(part) for op in wholes for part in op.parts} - composed
    resolutions = [op.resolution for op in bound if op.resolution is not None and id(op) not in idle]
    notes = []
    for op in bound:
        op.follow()
    if names := sorted({op.op for op in wholes if op.resolution is not None and not op.fused}):
        notes.append(f"{', '.join(names)} where eager: not called, other ops of the table compute the same together")
    notes += sorted({f"computed by other ops of the table: {op.refusal}" for op in wholes if op.refusal})
    if called := [op for op in bound if not op.plain]:
        notes.append(f"linear layers that were replaced or have hooks, called as they are: in {len(called)} ops")
    if any(resolution.call.op == "attention" and resolution.impl.name != "eager" for resolution in resolutions):
        notes.append("attention whose weights are asked for (output_attentions) or dropped out in training: eager")
    if any(not resolution.impl.differentiable for resolution in resolutions):
        notes.append("where a gradient is needed: eager")
    return "\n".join([explain(resolutions), *(["", *notes] if notes else [])])


def failed_kernels(ops: Iterable[BoundOp]) -> list[str]:
    """What could not be compiled or started since the ops were bound, and how, each once: others serve in its place."""
    return list(dict.fromkeys(f"{op.op}: {name} {failure}" for op in ops for name, failure in op._failed.items()))


def share_storage(parameters: tuple[Tensor, ...]) -> None:
    """Make the parameters consecutive views of one buffer, values kept, so that `joined` need not copy.

    Args:
        parameters: `[rows_i, …]` each, alike in all but rows, dtype and device.
    """
    if _adjacent(parameters):
        return
    buffer = torch.cat([parameter.data for parameter in parameters])
    for parameter, part in zip(parameters, buffer.split([len(p) for p in parameters]), strict=True):
        parameter.data = part


def joined(parts: tuple[Tensor | None, ...]) -> Tensor | None:
    """The parts as one tensor, `[sum of rows, …]`: a view where storage is shared and no gradient is wanted.

    None where the parts are: layers without bias.
    """
    present = tuple(part for part in parts if part is not None)
    if len(present) <= 1:
        return present[0] if present else None
    # A compiler cannot look at addresses; what it makes of the copy is its own affair.
    if not torch.is_grad_enabled() and not torch.compiler.is_compiling() and _adjacent(present):
        rows = sum(len(part) for part in present)
        return present[0].as_strided((rows, *present[0].shape[1:]), present[0].stride())
    return torch.cat(present)


def _is_capturing() -> bool:
    """Whether a CUDA graph is being recorded, where much fails that does not otherwise."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


@functools.cache
def _warn_once(message: str) -> None:
    log.warning(message)


def _sources(weight: Weight) -> tuple[Source, ...]:
    return weight if isinstance(weight, tuple) else () if weight is None else (weight,)


def _value(weight: Weight) -> Tensor | None:
    return weight.tensor if isinstance(weight, Source) else joined(tuple(source.tensor for source in _sources(weight)))


class _Stamp:
    """What a weight was when it was prepared. Keeps neither the weight nor its memory alive.

    Addresses alone would not do: what replaces a weight may be given the memory that the weight has left.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = weakref.ref(tensor)
        self._storage = StorageWeakRef(tensor.untyped_storage())
        self._place = _place(tensor)

    def fits(self, tensor: Tensor) -> bool:
        """True unless the weight was replaced, moved or written to."""
        return (
            self._tensor() is tensor
            and self._storage.cdata == tensor.untyped_storage()._cdata
            and self._place == _place(tensor)
        )


def _unchanged(stamp: _Stamp | None, tensor: Tensor | None) -> bool:
    return stamp is None if tensor is None else stamp is not None and stamp.fits(tensor)


def _place(tensor: Tensor) -> tuple[int, int]:
    # Tensors made in inference mode count no writes.
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


def _adjacent(parameters: tuple[Tensor, ...]) -> bool:
    pairs = itertools.pairwise(parameters)
    return all(
        a.is_contiguous() and b.is_contiguous() and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
        and b.storage_offset() == a.storage_offset() + a.numel()
        for a, b in pairs
    )  # fmt: skip


def _compute_capability(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _unbound(*_: Any, **__: Any) -> Any:
    raise RuntimeError("this op was called before Block.bind()")
