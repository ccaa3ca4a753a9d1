"""encode and predict of an accelerated model of sentence-transformers: the library's own code around our batches.

The library turns texts into vectors in one method, batch by batch: `_inference`, and before version 6.2 `encode` and
`predict` themselves. On an accelerated model that method still runs, but on a stand-in for the model whose only batch
holds all texts. Arguments, prompts, devices, precisions and the shapes of results stay the library's affair, in each
version its own.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
import threading
from collections import Counter
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ...errors import OptionError
from ...loading import TOKEN_BUDGET
from ...streaming.prefetch import Workers
from ...streaming.stream import EncodeStats
from .fast_tokenizer import FollowedTokenizer, as_rows
from .forward import Forward
from .sentence_modules import SentenceModules, kind_of
from .sentence_packed import PackedCall, PackedModel

__all__ = ["SentenceLoop", "loop_name", "loop_of"]

ENTRY = {"SentenceTransformer": "encode", "CrossEncoder": "predict"}

USUAL_BATCH = 32
"""`batch_size` of a call that does not say: the token budget alone then makes the batches."""

DEPRECATED = ("sentences", "activation_fct", "num_workers")
"""Arguments that the library still takes by these names."""

logger = logging.getLogger(__name__)


def loop_name(model: Any) -> str:
    """The method of the library that goes through the batches of a model of this kind."""
    return "_inference" if hasattr(type(model), "_inference") else ENTRY[kind_of(model) or ""]


def loop_of(model: Any) -> SentenceLoop | None:
    """The loop of an accelerated model; None of another."""
    found = vars(model).get(loop_name(model))
    return found if isinstance(found, SentenceLoop) else None


class SentenceLoop:
    """What an accelerated model has in the place of that method. A copy or a pickle of the model has one of its own.

    Attributes:
        stats: what our path has computed, all calls together.
        fallbacks: reason -> calls that the library's own loop served for it.
    """

    def __init__(self, model: Any, *, backend: str = "auto", deterministic: bool = False) -> None:
        self._model = model
        self._options = {"backend": backend, "deterministic": deterministic}
        self._start()

    def __getstate__(self) -> dict[str, Any]:
        return {"_model": self._model, "_options": self._options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def _start(self) -> None:
        self.stats = EncodeStats()
        self.fallbacks: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._workers = Workers()
        self._tokenizer = FollowedTokenizer()
        self._packed: PackedModel | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        model = self._model
        own = getattr(type(model), loop_name(model))
        call = _signature(own).bind_partial(model, *args, **kwargs)
        given = call.arguments
        if given.get("pool") is not None or isinstance(given.get("device"), list):
            return own(model, *args, **kwargs)  # the processes that it starts come here themselves
        reason = self._why_not(given)
        if reason is not None:
            self._fall_back(reason)
            return own(*call.args, **call.kwargs)
        asked = given.get("batch_size", USUAL_BATCH)
        stats = EncodeStats()
        with tqdm(unit="text", disable=not _shows_bar(own, given)) as bar:

            def begun(texts: int) -> None:
                bar.reset(texts)

            def done(texts: int, tokens: int) -> None:
                bar.update(texts)

            stand_in = PackedCall(
                model,
                self.current,
                self._tokenizer,
                self._workers,
                batch_size=None if asked == USUAL_BATCH else asked,
                token_embeddings=given.get("output_value") == "token_embeddings",
                stats=stats,
                on_begin=begun,
                on_batch=done,
            )
            given.update(self=stand_in, show_progress_bar=False)
            if asked > 0:  # what is not is the library's to refuse
                given["batch_size"] = sys.maxsize
            result = own(*call.args, **call.kwargs)
        with self._lock:
            self.stats.add(stats)
        return result

    def _why_not(self, given: dict[str, Any]) -> str | None:
        """What keeps a call from our path."""
        try:
            _check_inputs(self._model, given)
            _check_call(self._model, given)
            if self._model.training:
                self._model.eval()  # as the library does, only later
            self.current()
        except OptionError as error:
            return str(error)
        return None

    def current(self) -> PackedModel:
        """Our side of the model as it is now.

        Raises:
            OptionError: what it is now is not computed by padless; says why.
        """
        modules = SentenceModules.of(self._model)
        # The library calls this in inference mode, whose tensors could not be weights of a model that is trained later.
        with torch.inference_mode(False), torch.no_grad():
            forward = vars(modules.hf_model).get("forward")
            if not isinstance(forward, Forward):
                raise OptionError("the transformer inside the model is not accelerated any more")
            ours, why_not = forward.twin.ready()
            if ours is None:
                raise OptionError(why_not)
            with self._lock:
                if self._packed is None or not self._packed.serves(ours, modules):
                    self._packed = PackedModel(ours, modules, **self._options)
                return self._packed

    def _fall_back(self, reason: str) -> None:
        with self._lock:
            self.fallbacks[reason] += 1
            first = self.fallbacks[reason] == 1
        if first:
            logger.warning("accelerate: a call is served batch by batch by sentence-transformers itself: %s", reason)


def _check_inputs(model: Any, given: dict[str, Any]) -> None:
    """An iterable is made a list, in its place.

    Raises:
        OptionError: they are none that padless reads.
    """
    place, name = (given, "inputs") if "inputs" in given else (given.get("kwargs", {}), "sentences")
    if name not in place:
        raise OptionError("inputs: expected texts, got none")
    inputs = place[name]
    if model.is_singular_input(inputs):
        as_rows([inputs.tolist() if isinstance(inputs, np.ndarray) else inputs])
        return
    if not isinstance(inputs, list):
        inputs = place[name] = inputs.tolist() if isinstance(inputs, np.ndarray) else list(inputs)
    as_rows(inputs)


def _check_call(model: Any, given: dict[str, Any]) -> None:
    """
    Raises:
        OptionError: an argument asks for what our path does not do.
    """
    if given.get("output_value", "") is None:
        raise OptionError("output_value: None asks for all features of a batch, padding included")
    transformer = model[0]
    if transformer.tokenizer.padding_side != "right":
        raise OptionError("tokenizer: it pads on the left, where texts are told from their neighbours by their places")
    device = given.get("device")
    target = torch.device(model.device if device is None else device)
    if target.type not in TOKEN_BUDGET:
        raise OptionError(f"device: expected one of {', '.join(TOKEN_BUDGET)}, got {target}")
    if model.dtype == torch.float64:
        raise OptionError("dtype: vectors are computed in float32, the model is in float64")
    others = given.get("kwargs", {})
    for name, value in others.items():
        if name == "task":
            if any(getattr(transformer, limit, None) for limit in ("query_length", "document_length")):
                raise OptionError("task: the model has a length of its own for each task")
        elif name not in DEPRECATED and value is not None:
            raise OptionError(f"{name}: not among the arguments that padless knows")


def _shows_bar(own: Any, given: dict[str, Any]) -> bool:
    """As the library decides."""
    asked = given.get("show_progress_bar")
    level = logging.getLogger(own.__module__).getEffectiveLevel()
    return level in (logging.INFO, logging.DEBUG) if asked is None else bool(asked)


@functools.cache
def _signature(function: Any) -> inspect.Signature:
    return inspect.signature(function)
