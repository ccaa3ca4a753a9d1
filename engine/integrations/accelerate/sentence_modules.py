"""Which modules a model of sentence-transformers is made of, and whether padless computes what they compute.

Classes are recognised by their name and place, so that nothing is imported here. One that somebody derived counts as
unknown: its `forward` may be another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn

from ...errors import OptionError
from ...folders.sentence_transformer import PoolingSpec
from .fast_tokenizer import backend_of
from .refusals import foreign_hooks

__all__ = ["KINDS", "SentenceModules", "kind_of"]

LIBRARY = "sentence_transformers."

KINDS = ("SentenceTransformer", "CrossEncoder")

AFTER_POOLING = ("Dense", "Normalize", "LayerNorm", "Dropout")
"""Modules that take a vector a text: called as they are."""

GIVES = {
    "token_embeddings": ("feature-extraction", "last_hidden_state"),
    "scores": ("sequence-classification", "logits"),
}
"""What a Transformer gives -> its `transformer_task`, and the field of the output of its model."""

OWN_METHODS = ("_inference", "encode", "predict", "preprocess", "tokenize", "forward", "__call__")
"""Between a text and its vector: where these are not the library's own, the model is another than it seems."""

INSTEAD = "padless.accelerate(model[0].model) makes its transformer faster and leaves the rest as it is"

Place: TypeAlias = tuple[str, nn.Module]
"""A module and the name under which the model holds it."""


def kind_of(model: Any) -> str | None:
    """Of `KINDS` which one a model is, or a class derived from it; None where it is neither."""
    bases = [base.__name__ for base in type(model).__mro__ if base.__module__.startswith(LIBRARY)]
    return next((kind for kind in KINDS if kind in bases), None)


@dataclass(frozen=True)
class SentenceModules:
    """The modules of a model, in their order.

    Attributes:
        transformer: the library's module around a model of transformers.
        pooling: None where the model of transformers gives scores itself.
        rest: what is done with the vectors.
        output: name of what comes out, "sentence_embedding" or "scores".
    """

    transformer: Any
    pooling: Any | None
    rest: tuple[nn.Module, ...]
    output: str

    @classmethod
    def of(cls, model: Any) -> SentenceModules:
        """The modules as they are now.

        Raises:
            OptionError: a module is one that padless does not compute, or something is set on one that would be passed
                by; names it, and says what to do.
        """
        kind = kind_of(model)
        _check_methods(model)
        first, *others = model.named_children()
        _check_kind(first, "Transformer")
        transformer: Any = first[1]
        gives = getattr(transformer, "module_output_name", "token_embeddings")
        if gives not in GIVES or (gives == "scores" and others):
            behind = ", ".join(type(module).__name__ for _, module in others) or "nothing"
            raise _refused(first, f"gives {gives!r} and has {behind} behind it")
        _check_transformer(first, *GIVES[gives])
        output = "scores" if kind == "CrossEncoder" else "sentence_embedding"
        if gives == output:
            return cls(transformer, None, (), output)
        if not others:
            raise _refused(first, "has no Pooling behind it")
        pooling, *rest = others
        _check_kind(pooling, "Pooling")
        _check_calls(pooling)
        known = {"sentence_embedding"}
        for place in rest:
            _check_kind(place, *AFTER_POOLING)
            _check_features(place, known)
        if output not in known:
            raise _refused(others[-1], f"is the last one, and none gives {output!r}")
        return cls(transformer, pooling[1], tuple(module for _, module in rest), output)

    @property
    def hf_model(self) -> Any:
        """The model of transformers."""
        return self.transformer.model

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of transformers."""
        return self.transformer.tokenizer

    def pooling_spec(self) -> PoolingSpec:
        """What the pooling says of itself now."""
        assert self.pooling is not None
        modes = self.pooling.pooling_mode
        return PoolingSpec((modes,) if isinstance(modes, str) else tuple(modes), bool(self.pooling.include_prompt))

    def after_pooling(self, vectors: Tensor) -> Tensor:
        """`[texts, width]` to what comes out, by the modules themselves."""
        features = {"sentence_embedding": vectors}
        for module in self.rest:
            features = module(features)
        return features[self.output]


def _check_methods(model: Any) -> None:
    for name in OWN_METHODS:
        method = getattr(type(model), name, None)
        module = getattr(method, "__module__", None) or ""
        if method is not None and not module.startswith((LIBRARY, "torch.")):
            raise OptionError(f"{type(model).__name__}: defines {name} itself; {INSTEAD}")
    if hidden := {"forward", "preprocess", "tokenize"} & vars(model).keys():
        raise OptionError(f"{type(model).__name__}: its {hidden.pop()} was replaced; {INSTEAD}")
    _check_calls((type(model).__name__, model))


def _check_kind(place: Place, *kinds: str) -> None:
    found = type(place[1])
    if not found.__module__.startswith(LIBRARY) or found.__name__ not in kinds:
        raise _refused(place, f"is where padless knows {' or '.join(kinds)}")


def _check_transformer(place: Place, task: str, field: str) -> None:
    transformer: Any = place[1]
    if not hasattr(transformer, "modality_config"):
        raise _refused(place, "is of sentence-transformers before version 6")
    if transformer.transformer_task != task:
        raise _refused(place, f"is made for {transformer.transformer_task!r}, expected {task!r}")
    if transformer.backend != "torch":
        raise _refused(place, f"runs on {transformer.backend!r}, expected 'torch'")
    text = transformer.modality_config.get("text")
    output = None if text is None else text["method_output_name"]
    if text is None or text["method"] != "forward" or output not in (field, (field,), [field]):
        raise _refused(place, f"takes {field!r} from elsewhere than the model's forward")
    if "message" in transformer.modality_config:
        raise _refused(place, "puts texts into a chat template")
    for name in ("processing_kwargs", "query_expansion"):
        if getattr(transformer, name, None):
            raise _refused(place, f"has {name}, which are not supported")
    backend_of(transformer.tokenizer)
    _check_calls(place)
    model = transformer.model
    if foreign_hooks(model) or model._compiled_call_impl is not None:
        raise _refused(place, "has a model inside that was compiled or has hooks, which would not be called")


def _check_features(place: Place, known: set[str]) -> None:
    """What the module takes must be there; `known` gains what it gives."""
    takes = getattr(place[1], "module_input_name", "sentence_embedding")
    if takes not in known:
        raise _refused(place, f"takes {takes!r}, which no module gives")
    known.add(getattr(place[1], "module_output_name", takes))


def _check_calls(place: Place) -> None:
    """Nothing may be set on a module that is not called."""
    module = place[1]
    if module._forward_hooks or module._forward_pre_hooks:
        raise _refused(place, "has hooks, which would not be called: remove them")
    if "forward" in vars(module):
        raise _refused(place, "had its forward replaced")
    if module._compiled_call_impl is not None:
        raise _refused(place, "was compiled: call accelerate on a model that is not")


def _refused(place: Place, why: str) -> OptionError:
    name, module = place
    return OptionError(f"module {name} ({type(module).__name__}) {why}; {INSTEAD}")
