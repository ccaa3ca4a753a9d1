"""Runs the source of a warp-specialised Gluon kernel in Python: its partitions as threads, one at a time, random order.

Triton's interpreter does not know Gluon. Here the kernel's own functions run with stand-ins for the language: tensors
are torch tensors, shared memory starts as NaN, and every barrier, copy and product is a place where any other partition
may go on. What a GPU does in its own time happens at a random time: a copy leaves NaN in its tile until it lands,
copies land in any order, and a product reads its tiles at any time until it is waited for: they must not change before.
Wrong are: partitions that all wait (a deadlock), a tile that changes under a product, more arrivals than a barrier
takes, a result used before it was waited for, addresses outside of a tensor, and what is still in flight at the end.

Not modelled: layouts and registers, and the order in which other warps of a partition see what one of them did.
"""

from __future__ import annotations

import contextvars
import math
import random
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

__all__ = ["GluonKernel"]


class GluonKernel:
    """A kernel of a file, ready to be launched on CPU tensors.

    Args:
        file: holds the kernel; imports nothing of ours.
        name: of the kernel.
        changes: texts of the file and what to replace them by, for kernels that must fail.
    """

    def __init__(self, file: Path, name: str, changes: Iterable[tuple[str, str]] = ()) -> None:
        source = file.read_text(encoding="utf-8")
        for old, new in changes:
            assert old in source, f"{file.name} has no {old!r}"
            source = source.replace(old, new)
        self._namespace: dict[str, Any] = {"__name__": file.stem}
        exec(compile(source.replace("@gluon.jit\n", ""), str(file), "exec"), self._namespace)
        # Constants; what they are made of is the language's own.
        constants = {key: it.value for key, it in self._namespace.items() if type(it).__name__ == "constexpr"}
        self._namespace |= constants
        self._namespace.update(
            gl=_language(), mbarrier=_BARRIERS, copy_tile=_copy, warpgroup_mma=_multiply, warpgroup_mma_wait=_multiplied
        )
        self._kernel = self._namespace[name]

    def launch(self, programs: int, arguments: dict[str, Any], constants: dict[str, Any], seed: int = 0) -> None:
        """Run all programs, one after the other, each with its partitions in an order drawn from `seed`."""
        arguments = {name: _argument(value) for name, value in arguments.items()}
        for program in range(programs):
            machine = _Machine(random.Random(f"{seed} {program}"), program)
            token = _MACHINE.set(machine)
            try:
                self._kernel(**arguments, **constants)
            finally:
                _MACHINE.reset(token)
            assert not machine.copies, "a copy is still in flight when the program ends"


_MACHINE: contextvars.ContextVar[_Machine] = contextvars.ContextVar("machine")
_AGENT: contextvars.ContextVar[_Agent] = contextvars.ContextVar("agent")


class _Stopped(BaseException):
    """Ends a partition of a program that has already failed."""


@dataclass
class _Agent:
    """A partition: a thread that runs when it is told to, up to the next place where another might."""

    run: Callable[[], None]
    ready: Callable[[], bool] = lambda: True
    waits_for: str = "its start"
    go: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None
    done: bool = False
    stopped: bool = False
    products: list[_Product] = field(default_factory=list)


class _Machine:
    """One program: its partitions, and the copies that have not landed yet."""

    def __init__(self, order: random.Random, program: int) -> None:
        self.order, self.program = order, program
        self.copies: list[Callable[[], None]] = []
        self._back = threading.Event()

    def run(self, partitions: Sequence[Callable[[], None]]) -> None:
        agents = [_Agent(partition) for partition in partitions]
        threads = [threading.Thread(target=self._body, args=(agent,), daemon=True) for agent in agents]
        for thread in threads:
            thread.start()
        try:
            # Some partition is favoured for a while: evenly mixed steps would hardly let one run far ahead.
            favourite = self.order.choice(agents)
            while not all(agent.done for agent in agents):
                able: list[Any] = [agent for agent in agents if not agent.done and agent.ready()]
                choices = able + self.copies
                if not choices:
                    waiting = ", ".join(agent.waits_for for agent in agents if not agent.done)
                    raise AssertionError(f"deadlock: all wait, for {waiting}")
                if self.order.random() < 0.1:
                    favourite = self.order.choice([*agents, None])
                chosen: Any = (
                    favourite if favourite in able and self.order.random() < 0.7 else self.order.choice(choices)
                )
                if isinstance(chosen, _Agent):
                    self._step(chosen)
                else:
                    self.copies.remove(chosen)
                    chosen()
        finally:
            for agent in agents:
                agent.stopped = True
                agent.go.set()
            for thread in threads:
                thread.join()

    def _step(self, agent: _Agent) -> None:
        self._back.clear()
        agent.go.set()
        self._back.wait()
        if agent.error is not None:
            raise agent.error

    def _body(self, agent: _Agent) -> None:
        _MACHINE.set(self)
        _AGENT.set(agent)
        agent.go.wait()
        agent.go.clear()
        try:
            if not agent.stopped:
                agent.run()
                assert not agent.products, "a product is still under way when its partition ends"
        except _Stopped:
            pass
        except BaseException as error:
            agent.error = error
        agent.done = True
        self._back.set()

    def pause(self, what: str, ready: Callable[[], bool] = lambda: True) -> None:
        """Let others run; go on when `ready`."""
        agent = _AGENT.get(None)
        if agent is None:
            assert ready(), f"waits for {what} before there is anyone to bring it about"
            return
        agent.ready, agent.waits_for = ready, what
        self._back.set()
        agent.go.wait()
        agent.go.clear()
        if agent.stopped:
            raise _Stopped


@dataclass
class _Barrier:
    """`phase`: how many phases have ended; `missing`: arrivals that the current one still takes; `bytes` likewise."""

    count: int = 0
    missing: int = 0
    bytes: int = 0
    phase: int = 0

    def settle(self) -> None:
        assert self.count > 0, "a barrier is used before it is set up"
        assert self.missing >= 0, "more arrivals at a barrier than it takes"
        if self.missing == 0 and self.bytes == 0:
            self.missing, self.phase = self.count, self.phase + 1


def _set_up(barrier: _Barriers, count: int) -> None:
    one = barrier.only
    one.count = one.missing = count


def _arrive(barrier: _Barriers, size: int = 0) -> None:
    """An arrival; with a `size`, one that names the bytes still to come."""
    _MACHINE.get().pause("its turn")
    one = barrier.only
    one.bytes += size
    one.missing -= 1
    one.settle()


def _wait(barrier: _Barriers, parity: Any) -> None:
    one, parity = barrier.only, int(parity)
    assert parity in (0, 1), f"a parity is 0 or 1, got {parity}"
    _MACHINE.get().pause(f"parity {parity} of {one}", lambda: (one.phase - 1) % 2 == parity)


def _copy(rows: _Rows, coordinates: Sequence[Any], ready: _Barriers, tile: _Shared) -> None:
    machine, one = _MACHINE.get(), ready.only
    machine.pause("its turn")
    found = rows.read([int(c) for c in coordinates])
    tile.memory.fill_(math.nan)

    def land() -> None:
        tile.memory.copy_(found)
        one.bytes -= rows.block_type.nbytes
        one.settle()

    machine.copies.append(land)


@dataclass
class _Product:
    """A product under way: what it read when it began, and what it will give."""

    tiles: list[tuple[Tensor, Tensor]]
    result: Tensor
    done: bool = False


def _multiply(a: Any, b: _Shared, acc: Tensor, *, use_acc: bool = True, is_async: bool = False) -> _Product:
    _MACHINE.get().pause("its turn")
    assert is_async
    assert isinstance(acc, Tensor)
    tiles = [(x.memory, x.memory.clone()) for x in (a, b) if isinstance(x, _Shared)]
    left = a.memory if isinstance(a, _Shared) else a
    assert left.shape[0] == acc.shape[0]
    assert b.memory.shape == (left.shape[1], acc.shape[1])
    assert left.dtype == b.memory.dtype
    result = left.float() @ b.memory.float()
    product = _Product(tiles, acc + result if use_acc else result)
    _AGENT.get().products.append(product)
    return product


def _multiplied(outstanding: int, deps: Sequence[Any]) -> Any:
    _MACHINE.get().pause("its turn")
    products = _AGENT.get().products
    while len(products) > outstanding:
        product = products.pop(0)
        for now, then in product.tiles:
            assert torch.equal(now.view(torch.int16), then.view(torch.int16)), "a tile changed under a product"
        product.done = True
    values = []
    for value in deps:
        assert isinstance(value, Tensor) or value.done, "a product is used before it was waited for"
        values.append(value if isinstance(value, Tensor) else value.result)
    return values[0] if len(values) == 1 else tuple(values)


class _Shared:
    """Tiles in shared memory, or a view of some."""

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory

    @property
    def dtype(self) -> torch.dtype:
        return self.memory.dtype

    def index(self, place: Any) -> _Shared:
        assert 0 <= int(place) < len(self.memory), f"place {int(place)} of {len(self.memory)}"
        return _Shared(self.memory[int(place)])

    def reshape(self, shape: Sequence[int]) -> _Shared:
        return _Shared(self.memory.view(*shape))

    def permute(self, order: Sequence[int]) -> _Shared:
        return _Shared(self.memory.permute(*order))


class _Barriers:
    """Barriers in shared memory: one, or a ring of them."""

    def __init__(self, barriers: list[_Barrier]) -> None:
        self._barriers = barriers

    @property
    def only(self) -> _Barrier:
        (one,) = self._barriers
        return one

    def index(self, place: Any) -> _Barriers:
        assert 0 <= int(place) < len(self._barriers)
        return _Barriers([self._barriers[int(place)]])


class _Rows:
    """A tensor descriptor: what the hardware does with coordinates, addresses of 64 bits that wrap around included."""

    def __init__(self, descriptor: Any) -> None:
        self._base, self._shape, self._strides = descriptor.base, descriptor.shape, descriptor.strides
        shape = list(descriptor.block_shape)
        size = self._base.element_size()
        self.dtype, self.layout = self._base.dtype, None
        self.block_type = SimpleNamespace(shape=shape, nbytes=math.prod(shape) * size)
        steps = [stride * size for stride in self._strides[:-1]]
        assert all(0 < step < 1 << 40 and step % 16 == 0 for step in steps), f"the hardware takes no steps of {steps}"
        assert all(0 < extent < 1 << 31 for extent in self._shape)
        assert all(extent <= 256 for extent in shape)

    def read(self, corner: Sequence[int]) -> Tensor:
        size = self._base.element_size()
        inside = torch.ones(self.block_type.shape, dtype=torch.bool)
        # Modulo 2^64, as int64 wraps around by itself.
        bytes_ = torch.zeros(self.block_type.shape, dtype=torch.int64)
        for axis, (start, extent) in enumerate(zip(corner, self.block_type.shape, strict=True)):
            assert -(1 << 31) <= start < 1 << 31, f"coordinate {start} needs more than 32 bits"
            place = (start + torch.arange(extent)).view([-1 if axis == i else 1 for i in range(len(corner))])
            inside &= (place >= 0) & (place < self._shape[axis])
            bytes_ += place * (self._strides[axis] * size)
        found = torch.zeros(self.block_type.shape, dtype=self.dtype)
        places = bytes_[inside] // size
        last = sum((n - 1) * s for n, s in zip(self._base.shape, self._base.stride(), strict=True))
        assert places.numel() == 0 or (places.min() >= 0 and places.max() <= last), "a copy from outside of the tensor"
        found[inside] = self._base.as_strided((last + 1,), (1,))[places]
        return found


class _Pointer:
    """Addresses in a tensor, all of them checked."""

    def __init__(self, tensor: Tensor, offset: Any = 0) -> None:
        self._tensor, self._offset = tensor, torch.as_tensor(offset, dtype=torch.int64)

    def __add__(self, offset: Any) -> _Pointer:
        return _Pointer(self._tensor, self._offset + offset)

    def load(self) -> Tensor:
        assert 0 <= int(self._offset) < self._tensor.numel()
        return self._tensor.view(-1)[self._offset]

    def store(self, value: Tensor, mask: Tensor) -> None:
        offset, value, mask = torch.broadcast_tensors(self._offset, value, mask)
        assert self._tensor.dtype == value.dtype
        assert not mask.any() or (offset[mask].min() >= 0 and offset[mask].max() < self._tensor.numel())
        self._tensor.view(-1)[offset[mask]] = value[mask]


def _argument(value: Any) -> Any:
    if hasattr(value, "block_shape"):
        return _Rows(value)
    return _Pointer(value) if isinstance(value, Tensor) else value


def _allocate(dtype: torch.dtype, shape: Sequence[int], _layout: Any) -> _Shared | _Barriers:
    if dtype == torch.int64:
        return _Barriers([_Barrier() for _ in range(math.prod(shape))])
    return _Shared(torch.full(tuple(shape), math.nan, dtype=dtype))


def _specialize(partitions: Sequence[tuple[Any, tuple[Any, ...]]], warps: list[int], registers: list[int]) -> None:
    assert len(warps) == len(registers) == len(partitions) - 1
    calls: list[Callable[[], None]] = [lambda f=function, a=given: f(*a) for function, given in partitions]
    _MACHINE.get().run(calls)


def _holds(condition: Any) -> None:
    assert condition, "an assertion of the kernel fails"


def _nothing(*_arguments: Any) -> None:
    """Layouts have no meaning here."""


def _language() -> SimpleNamespace:
    """What `triton.experimental.gluon.language` is to a kernel."""
    return SimpleNamespace(
        float32=torch.float32,
        int64=torch.int64,
        NVMMADistributedLayout=_nothing,
        DotOperandLayout=_nothing,
        SliceLayout=_nothing,
        allocate_shared_memory=_allocate,
        warp_specialize=_specialize,
        static_assert=_holds,
        assume=_holds,
        static_range=range,
        program_id=lambda _axis: torch.tensor(_MACHINE.get().program, dtype=torch.int32),
        load=_Pointer.load,
        store=_Pointer.store,
        arange=lambda start, end, _layout: torch.arange(start, end, dtype=torch.int32),
        zeros=lambda shape, dtype, _layout: torch.zeros(shape, dtype=dtype),
        full=lambda shape, value, dtype, _layout: torch.full(shape, value, dtype=dtype),
        convert_layout=lambda value, _layout: value,
        where=lambda condition, a, b: torch.where(condition, torch.as_tensor(a).float(), torch.as_tensor(b).float()),
        max=torch.amax,
        sum=torch.sum,
        maximum=torch.maximum,
        exp2=torch.exp2,
        log2=torch.log2,
        fma=lambda a, b, c: (a.double() * torch.as_tensor(b, dtype=torch.float32).double() + c.double()).float(),
    )


_BARRIERS = SimpleNamespace(init=_set_up, expect=_arrive, arrive=_arrive, wait=_wait, MBarrierLayout=_nothing)
