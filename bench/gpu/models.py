"""Part `models` of the GPU report: whole models end to end, from token ids on the host to vectors on the host.

Five families at their published shapes with seeded weights (`model_shapes.py`), on several workloads (`model_work.py`),
by padless and by transformers (`model_systems.py`) in turns. Before a system is timed its vectors are held against
padless' eager form in fp32 (`model_check.py`); what fails has no figure. A case is one model on one workload, and has
everything that is compared with each other; torch.compile, which takes long and might hang, has cases of its own, and
so has sentence-transformers, which starts from texts (`model_texts.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...engine.batch import TokenizedTexts
from ...engine.errors import BackendError
from ...engine.loading import TOKEN_BUDGET
from ..timing import ratio, spread
from . import model_texts
from .bits import some
from .case import Case, Context, Figures, first_line
from .ceilings import run_ceilings
from .model_check import compare, tells_apart
from .model_shapes import SHAPES, build, fill, flops
from .model_systems import Padless, System, Transformers, peer_model
from .model_work import WORKLOADS, Work, Workload
from .peers import Absent
from .rounds import peak_bytes, time_rounds

__all__ = ["cases", "warm_cases"]

OURS = "padless"
OURS_TRITON = "padless, triton"
OURS_GRAPHS = "padless, CUDA graphs"
OURS_EAGER = "padless, eager"
THEIRS = "transformers, "
COMPILED = ("default", "reduce-overhead")

FAMILIES = ("ModernBERT-base", "BERT-base", "MobileBERT", "mT5-small encoder", "MegatronBERT-345m")
DRY = {"variable 512": FAMILIES, "one text, 128 tokens": ("BERT-base",)}
SECONDS = 1.5
"""What the rounds of a case should take."""

_COMPILED = (
    ("BERT-base", "fixed 128"),
    ("ModernBERT-base", "fixed 512"),
    ("BERT-base", "one text, 128 tokens"),
    ("MobileBERT", "one text, 128 tokens"),
)


@dataclass
class _Model:
    """A model that is on the device already, for all cases of this process."""

    name: str
    context: Context

    def __post_init__(self) -> None:
        self._systems: dict[str, System] = {}
        self._before: dict[str, int] = {}
        self._held: dict[str, int] = {}

    @functools.cached_property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.context.dry else torch.bfloat16

    @functools.cached_property
    def filled(self) -> Any:
        """The model that has the weights; the others share them or copy them."""
        return self._built("auto", None)

    @functools.cached_property
    def reference(self) -> Padless:
        """In fp32, by eager."""
        device, dry = self.context.device, self.context.dry
        model = build(SHAPES[self.name], device, torch.float32, dry=dry, backend="eager")
        model.load_state_dict(self.filled.state_dict())
        return Padless(model, device, backend="eager")

    def system(self, name: str) -> System:
        """The system of this name.

        Raises:
            Absent, BackendError: it cannot take part.
        """
        if name not in self._systems:
            self._before[name] = self._allocated()
            self._systems[name] = self._made(name)
        return self._systems[name]

    def forget(self, name: str) -> None:
        """Its memory is free for others."""
        self._systems.pop(name, None)

    def weights(self, name: str) -> int:
        """Bytes of the weights that it computes with, its own or shared; to be asked first behind its first call,
        which makes what else it keeps.
        """
        shared = sum(p.numel() * p.element_size() for p in self.filled.parameters())
        held = self._held.setdefault(name, self._allocated() - self._before[name])
        return max(held, shared)

    def _made(self, name: str) -> System:
        # What is made in inference mode could not be written to or compiled outside of it.
        with torch.inference_mode(False), torch.no_grad():
            if name in (OURS, OURS_GRAPHS):
                return Padless(self.filled, self.context.device, graphs=name == OURS_GRAPHS)
            if name.startswith("padless"):
                backend = "eager" if name == OURS_EAGER else "triton"
                return Padless(self._built(backend, self.filled), self.context.device, backend=backend)
            attention, _, mode = name.removeprefix(THEIRS).partition(", compiled: ")
            model = peer_model(
                SHAPES[self.name], self.filled, self.context.device,
                attention=attention, dry=self.context.dry, compiled=mode or None,
            )  # fmt: skip
            return Transformers(model, self.context.device)

    def _built(self, backend: str, weights: Any) -> Any:
        with torch.inference_mode(False), torch.no_grad():
            model = build(SHAPES[self.name], self.context.device, self.dtype, dry=self.context.dry, backend=backend)
            if weights is None:
                fill(model)
            else:
                model.load_state_dict(weights.state_dict())
        return model

    def _allocated(self) -> int:
        return torch.cuda.memory_allocated(self.context.device) if self.context.device.type == "cuda" else 0


_loaded = functools.cache(_Model)


def cases(context: Context) -> list[Case]:
    """In the order of their weight: what is cut off when time runs out stands last."""
    found = [Case("ceilings", run_ceilings)]
    for name, workload in WORKLOADS.items():
        for family in DRY.get(name, ()) if context.dry else FAMILIES:
            if workload.longest <= 512 or family == "ModernBERT-base":
                found.append(Case(f"{family}/{name}", _bind(family, name, _systems(workload, context))))
    found += model_texts.cases(context)
    return found if context.dry else [*found, *_compiled_cases(context)]


def warm_cases(context: Context) -> list[Case]:
    """What compiles something, the slowest first: torch.compile, then each model on each workload."""
    if context.dry:
        return []
    slow = _compiled_cases(context)
    others = [case for case in cases(context) if case.name != "ceilings"]
    return [*slow, *(case for case in others if case.name not in {case.name for case in slow})]


def _compiled_cases(context: Context) -> list[Case]:
    return [
        Case(f"{family}/{workload}, compiled", _bind(family, workload, _compiled(workload)))
        for family, workload in _COMPILED
    ]


def _bind(family: str, workload: str, names: tuple[str, ...]) -> Callable[[Context], Figures]:
    def run(context: Context) -> Figures:
        if not any("compiled" in name for name in names):
            return _run(family, workload, names, context)
        # torch.compile knows tensors of inference mode less well.
        with torch.inference_mode(False), torch.no_grad():
            return _run(family, workload, names, context)

    return run


def _systems(workload: Workload, context: Context) -> tuple[str, ...]:
    ours = (OURS, OURS_TRITON)
    if workload.latency and not context.dry:
        ours = (*ours, OURS_GRAPHS)
    if workload.eager:
        ours = (*ours, OURS_EAGER)
    theirs = tuple(THEIRS + attention for attention in ("sdpa", "eager", "flash_attention_2"))
    return ours + theirs


def _compiled(workload: str) -> tuple[str, ...]:
    mode = COMPILED[WORKLOADS[workload].latency]
    ours = (OURS, OURS_GRAPHS) if WORKLOADS[workload].latency else (OURS,)
    return (*ours, f"{THEIRS}sdpa", f"{THEIRS}sdpa, compiled: {mode}")


def _run(family: str, workload_name: str, names: tuple[str, ...], context: Context) -> Figures:
    loaded, workload = _loaded(family, context), WORKLOADS[workload_name]
    config = loaded.filled.config
    work = workload.make(SHAPES[family].tokens, config.vocab_size, _budget(context), dry=context.dry)
    if context.warm:
        return _warm(loaded, work, workload, names)
    reference, rows, blind = _reference(loaded, work, workload)
    if blind is not None:
        return {"status": "failed", "reason": blind}
    calls: dict[str, Callable[[], Tensor]] = {}
    rowwise: dict[str, Figures] = {}
    absent: dict[str, str] = {}
    for name in names:
        try:
            system = loaded.system(name)
            call = _call(system, work, workload)
            if name == OURS_GRAPHS:
                call()  # the first text is seen, the second recorded, the others replayed
            like = compare(call()[rows], reference)
            wrong = like.wrong(SHAPES[family].cosine) or system.problem()
            peak = peak_bytes(call, context.device) + loaded.weights(name)
        except (Absent, BackendError) as error:
            absent[name] = first_line(error)
        except torch.OutOfMemoryError as error:
            absent[name] = f"out of memory: {first_line(error)}"
            loaded.forget(name)
            torch.cuda.empty_cache()
        except Exception as error:
            absent[name] = f"{type(error).__name__}: {first_line(error)}"
            loaded.forget(name)
            if context.device.type == "cuda":
                # A fault that the device keeps would fail every case after this one; it ends this process instead.
                torch.cuda.synchronize()
        else:
            rowwise[name] = {"cosine": round(like.cosine, 6), "apart": round(like.apart, 5)}
            rowwise[name] |= {"padding": round(system.padding(work), 3)} if not workload.latency else {}
            if wrong is None:
                calls[name] = call
                rowwise[name] |= {"peak_gib": round(peak / 2**30, 3)} if not context.dry else {}
            else:
                absent[name] = wrong
    return _figures(loaded, work, workload, calls, rowwise, absent)


def _figures(
    loaded: _Model,
    work: Work,
    workload: Workload,
    calls: Mapping[str, Callable[[], Tensor]],
    rows: Mapping[str, Figures],
    absent: Mapping[str, str],
) -> Figures:
    """Time what was found sound. Ours must all be there, but for kernels asked for by name that refuse."""
    operations = flops(loaded.filled, work.lengths.tolist())
    figures: Figures = {
        "status": "ok", "tokens": work.tokens, "texts": len(work.lengths), "flops": operations,
        "latency": workload.latency, "absent": dict(absent), "least_cosine": SHAPES[loaded.name].cosine,
    }  # fmt: skip
    ours = {name: why for name, why in absent.items() if name.startswith(OURS)}
    if ours:
        reason = "; ".join(f"{name}: {why}" for name, why in ours.items())
        figures |= {"status": "failed", "reason": reason}
    if OURS not in calls:
        return figures
    padless = loaded.system(OURS)
    assert isinstance(padless, Padless)
    figures["explain"] = padless.explain()
    wanted, most = (2 * SECONDS, 200) if workload.latency else (SECONDS, 20)
    seconds = time_rounds(calls, loaded.context, seconds=wanted, most=most)
    if seconds is None:
        return figures | {"timed": dict.fromkeys(calls), "checked": dict(rows)}
    share = len(work.lengths) if workload.latency else 1
    timed: dict[str, Figures] = {}
    for name, found in seconds.items():
        times = spread([1e3 * value / share for value in found])
        timed[name] = {
            "ms": {"median": round(times.median, 3), "p20": round(times.p20, 3), "p80": round(times.p80, 3)},
            "tokens_per_second": round(work.tokens / share / times.median * 1e3),
            "tflops": round(operations / share / times.median / 1e9, 1),
            "ratio": round(ratio(seconds, OURS, name).median, 3),
            **rows[name],
        }
    peers = [name for name in timed if not name.startswith(OURS)]
    if peers:
        best = min(peers, key=lambda name: timed[name]["ms"]["median"])
        figures |= {"best_peer": best, "ratio": timed[best]["ratio"]}
    return figures | {"rounds": len(seconds[OURS]), "timed": timed}


def _warm(loaded: _Model, work: Work, workload: Workload, names: tuple[str, ...]) -> Figures:
    """Each system that compiles something, once."""
    for name in names:
        if name in (OURS, OURS_TRITON) or "compiled" in name:
            try:
                _call(loaded.system(name), work, workload)()
            except Absent as reason:
                return {"status": "left out", "reason": str(reason)}
    return {"status": "ok"}


def _reference(loaded: _Model, work: Work, workload: Workload) -> tuple[Tensor, list[int], str | None]:
    """Vectors of some texts, which texts, and why they would be of no use."""
    rows = some(work.lengths.tolist(), workload.checked)
    with torch.inference_mode(False), torch.no_grad():
        vectors = loaded.reference.vectors(_taken(work, np.array(rows)))
    return vectors, rows, tells_apart(vectors)


def _call(system: System, work: Work, workload: Workload) -> Callable[[], Tensor]:
    if not workload.latency:
        return lambda: system.vectors(work)
    singles = [_taken(work, np.array([row])) for row in range(len(work.lengths))]
    return lambda: torch.cat([system.vectors(single) for single in singles])


def _taken(work: Work, rows: np.ndarray) -> Work:
    """Some of the texts."""
    texts = work.texts
    edges: Iterator[tuple[int, int]] = ((int(texts.offsets[row]), int(texts.lengths[row])) for row in rows)
    ids = np.concatenate([texts.input_ids[start : start + length] for start, length in edges])
    kept = TokenizedTexts(ids, texts.lengths[rows], None, texts.truncated[rows], texts.repaired[rows])
    return Work(kept, work.budget)


def _budget(context: Context) -> int:
    return 24 if context.dry else TOKEN_BUDGET["cuda"]
