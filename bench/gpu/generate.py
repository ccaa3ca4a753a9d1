"""Part `generate` of the GPU report: mT5-small writing, by padless and by transformers, in turns.

Texts of mixed lengths are read, and each is written 64 tokens about, greedily; nobody may end early. padless runs with
its steps as usual and with their recordings (`engine/models/step_graphs.py`), transformers with the cache that grows
and with the static one, for which it compiles its step and records it by itself. All share one set of seeded weights
and are called with the same padded tensors on the device.

Before anything is timed, in fp32 every token must be transformers'. In bf16, where near ties are anybody's, the logits
of given tokens are held against those of transformers in fp32: their error may be twice transformers' own in bf16. They
are computed step by step, in the memory that recordings are made of.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...engine.generate.decoder import Decoder
from ...engine.models.mt5 import MT5Config, MT5ForConditionalGeneration
from ...engine.models.pretrained import parameters_left_empty
from ...engine.models.static_steps import Rooms, StaticSteps
from ...engine.models.step_graphs import StepGraphs
from ...engine.models.steps import Steps
from ..timing import ratio, spread
from .case import Case, Context, Figures, first_line
from .model_shapes import SHAPES, fill
from .oracle import relative_error
from .peers import Absent
from .rounds import time_rounds

__all__ = ["cases", "warm_cases"]

OURS = "padless"
OURS_GRAPHS = "padless, CUDA graphs"
GROWING = "transformers, growing cache"
STATIC = "transformers, static cache, compiled"

CHECKED = 12
"""Tokens of each text whose logits are looked at."""
SECONDS = 3.0
"""What the rounds of a case should take."""

_SEED = 20261121
_SPECIAL = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "tie_word_embeddings": False}


@dataclass(frozen=True)
class Writing:
    """What is read, and how much is written.

    Attributes:
        lengths: tokens of the texts.
        tiny: those of a dry run.
        tokens: written about each text; 7 in a dry run.
    """

    lengths: tuple[int, ...]
    tiny: tuple[int, ...]
    tokens: int = 64

    def inputs(self, vocabulary: int, context: Context) -> dict[str, Tensor]:
        """Padded ids and their mask, on the device."""
        lengths = torch.tensor(self.tiny if context.dry else self.lengths)
        generator = torch.Generator().manual_seed(_SEED)
        shape = (len(lengths), int(lengths.max()))
        ids = torch.randint(5, vocabulary, shape, generator=generator)
        mask = torch.arange(shape[1]) < lengths[:, None]
        return {
            "input_ids": (ids * mask).to(context.device),
            "attention_mask": mask.long().to(context.device),
        }

    def count(self, context: Context) -> int:
        """Tokens written about each text."""
        return 7 if context.dry else self.tokens


WRITINGS = {
    "16 texts": Writing(tuple(np.rint(np.linspace(16, 512, 16)).astype(int).tolist()), (9, 3, 14)),
    "one text": Writing((128,), (9,)),
}


@dataclass
class _Models:
    """One set of weights in the dtype that is timed and in fp32, for all cases of this process."""

    context: Context

    @functools.cached_property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.context.dry else torch.bfloat16

    @functools.cached_property
    def ours(self) -> MT5ForConditionalGeneration:
        return self._filled(self.dtype)

    @functools.cached_property
    def ours_wide(self) -> MT5ForConditionalGeneration:
        return self._filled(torch.float32)

    @functools.cached_property
    def theirs(self) -> Any:
        return self._peer(self.ours)

    @functools.cached_property
    def theirs_wide(self) -> Any:
        return self._peer(self.ours_wide)

    def _fields(self) -> dict[str, Any]:
        shape = SHAPES["mT5-small encoder"]
        return {**(shape.tiny if self.context.dry else shape.real), **_SPECIAL}

    def _filled(self, dtype: torch.dtype) -> MT5ForConditionalGeneration:
        with torch.inference_mode(False), torch.no_grad():
            with parameters_left_empty():
                model = MT5ForConditionalGeneration(MT5Config(**self._fields()))
            model.to(self.context.device, dtype).eval().requires_grad_(False)
            fill(model.base_model)
            generator = torch.Generator(self.context.device).manual_seed(_SEED)
            head = model.lm_head.weight
            drawn = torch.randn(head.shape, generator=generator, device=head.device)
            head.copy_((drawn * head.shape[1] ** -0.5).to(torch.bfloat16))
            return model.bind()

    def _peer(self, ours: MT5ForConditionalGeneration) -> Any:
        if importlib.util.find_spec("transformers") is None:
            raise Absent("transformers is not installed")
        import transformers

        with torch.inference_mode(False), torch.no_grad():
            config = transformers.MT5Config(**self._fields())
            with torch.device("meta"):
                model = transformers.MT5ForConditionalGeneration(config)
            model.load_state_dict(ours.state_dict(), assign=True, strict=False)
            return model.eval().requires_grad_(False)


_loaded = functools.cache(_Models)


def cases(context: Context) -> list[Case]:
    """In the order of their weight: what is cut off when time runs out stands last."""
    graphs = () if context.dry else (OURS_GRAPHS,)
    found = [_case("16 texts", (OURS, *graphs, GROWING))]
    if not context.dry:
        found.append(_case("16 texts", (OURS_GRAPHS, STATIC), ", compiled"))
    return [*found, _case("one text", (OURS, *graphs, GROWING))]


def warm_cases(context: Context) -> list[Case]:
    """What compiles something."""
    return [] if context.dry else cases(context)[:2]


def _case(name: str, systems: tuple[str, ...], suffix: str = "") -> Case:
    def run(context: Context) -> Figures:
        # torch.compile knows tensors of inference mode less well.
        with torch.inference_mode(False), torch.no_grad():
            return _run(_loaded(context), WRITINGS[name], systems)

    return Case(f"mT5-small/{name}{suffix}", run)


def _run(models: _Models, writing: Writing, names: tuple[str, ...]) -> Figures:
    context = models.context
    given = writing.inputs(models.ours.config.vocab_size, context)
    count = writing.count(context)
    if context.warm:
        for name in names:
            _call(models, name, given, count)()
        return {"status": "ok"}
    right = _written(models.theirs_wide, given, count)
    figures: Figures = {"status": "ok", "tokens": right.numel() - len(right), "texts": len(right)}
    wrong = _blind(right) or _wide_tokens(models, given, right) or _narrow_logits(models, given, right, figures)
    if wrong is not None:
        return figures | {"status": "failed", "reason": wrong}
    calls: dict[str, Callable[[], Tensor]] = {}
    absent: dict[str, str] = {}
    for name in names:
        try:
            call = _call(models, name, given, count)
            # Code is compiled; then a step is recorded; then it is replayed. A dry run does none of these.
            shapes = {tuple(call().shape) for _ in range(1 if context.dry else 3)}
            problem = _problem(models, name) if shapes == {tuple(right.shape)} else f"wrote tokens of shape {shapes}"
            if problem is None:
                calls[name] = call
            else:
                absent[name] = problem
        except Absent as error:
            absent[name] = first_line(error)
        except Exception as error:
            absent[name] = f"{type(error).__name__}: {first_line(error)}"
            if context.device.type == "cuda":
                # A fault that the device keeps would fail every case after this one; it ends this process instead.
                torch.cuda.synchronize()
    return _timed(context, calls, absent, figures)


def _timed(
    context: Context, calls: Mapping[str, Callable[[], Tensor]], absent: Mapping[str, str], figures: Figures
) -> Figures:
    """Time what was found sound. Ours must all be there."""
    figures |= {"absent": dict(absent)}
    ours = [f"{name}: {why}" for name, why in absent.items() if name.startswith(OURS)]
    if ours:
        figures |= {"status": "failed", "reason": "; ".join(ours)}
    seconds = time_rounds(calls, context, seconds=SECONDS, least=3) if calls else None
    if seconds is None:
        return figures | {"timed": dict.fromkeys(calls)}
    timed: dict[str, Figures] = {}
    first = next((name for name in (OURS_GRAPHS, OURS) if name in seconds), None)
    for name, found in seconds.items():
        times = spread([1e3 * value for value in found])
        timed[name] = {
            "ms": {"median": round(times.median, 2), "p20": round(times.p20, 2), "p80": round(times.p80, 2)},
            "tokens_per_second": round(figures["tokens"] / times.median * 1e3),
            "ratio": None if first is None else round(ratio(seconds, first, name).median, 3),
        }
    return figures | {"rounds": len(next(iter(seconds.values()))), "timed": timed, "compared": first}


def _call(models: _Models, name: str, given: Mapping[str, Tensor], count: int) -> Callable[[], Tensor]:
    if name in (OURS, OURS_GRAPHS):

        def ours() -> Tensor:
            models.ours.cuda_graphs = name == OURS_GRAPHS
            return _written(models.ours, given, count)

        return ours
    model, options = models.theirs, {"cache_implementation": "static"} if name == STATIC else {}
    return lambda: _written(model, given, count, **options)


def _written(model: Any, given: Mapping[str, Tensor], count: int, **options: Any) -> Tensor:
    """int64 `[texts, 1 + count]`, the start token in front."""
    return model.generate(**given, max_new_tokens=count, min_new_tokens=count, do_sample=False, num_beams=1, **options)


def _problem(models: _Models, name: str) -> str | None:
    """What makes a system's figures another's than its name says."""
    graphs = models.ours._step_graphs
    if name != OURS_GRAPHS or (graphs is not None and graphs.replayed and not graphs.refused):
        return None
    return f"{0 if graphs is None else graphs.refused} recordings refused, see log.txt"


def _blind(right: Tensor) -> str | None:
    """Why equal tokens would prove nothing."""
    rows = {tuple(row) for row in right.tolist()}
    if len(rows) < len(right):
        return f"blind check: {len(right)} texts, {len(rows)} different answers"
    few = min(len(set(row)) for row in rows)
    return None if few > 3 else f"blind check: an answer of {few} different tokens"


def _wide_tokens(models: _Models, given: Mapping[str, Tensor], right: Tensor) -> str | None:
    """Where a token of ours in fp32 is not transformers'."""
    model = models.ours_wide
    for graphs in (False, True) if models.context.device.type == "cuda" else (False,):
        model.cuda_graphs = graphs
        for _ in range(1 + 2 * graphs):  # as usual, recorded, replayed
            tokens = _written(model, given, right.shape[1] - 1)
            if not torch.equal(tokens, right):
                equal = int((tokens == right).all(dim=1).sum()) if tokens.shape == right.shape else 0
                return f"wrong tokens in fp32, CUDA graphs {graphs}: {equal} of {len(right)} texts are written alike"
    return None


def _narrow_logits(models: _Models, given: Mapping[str, Tensor], right: Tensor, figures: Figures) -> str | None:
    """Whether our logits behind given tokens are as near to fp32 as transformers' in the dtype that is timed."""
    tokens = right[:, :CHECKED]
    reference = models.theirs_wide(**given, decoder_input_ids=tokens).logits.float()
    theirs = relative_error(models.theirs(**given, decoder_input_ids=tokens).logits.float(), reference)
    texts = models.ours.base_model.read_texts(given["input_ids"], given["attention_mask"], None, None)
    steps = Steps(models.ours.base_model, models.ours.language_model_head, texts)
    if models.context.device.type == "cuda":
        with StepGraphs().lent(models.ours, steps) as decoder:
            logits = _forced(decoder, tokens)
    else:
        logits = _forced(StaticSteps(steps, Rooms()), tokens)
    ours = relative_error(logits, reference)
    figures |= {"error": float(f"{ours:.3e}"), "peer_error": float(f"{theirs:.3e}")}
    # In fp32, as in a dry run, transformers' own error is none.
    allowed = 2.0 * theirs + max(torch.finfo(models.dtype).eps, 1e-5)
    return None if ours <= allowed else f"wrong logits: error {ours:.3e}, allowed {allowed:.3e}"


def _forced(decoder: Decoder, tokens: Tensor) -> Tensor:
    """fp32 `[texts, tokens, vocab]`: the logits behind each of the given tokens, step by step."""
    found = [decoder.start(list(tokens[:, :1]), steps=tokens.shape[1] - 1, sequences=len(tokens)).clone()]
    found += [decoder.step(column.contiguous()).clone() for column in tokens[:, 1:].unbind(1)]
    return torch.stack(found, dim=1)
