"""Reranking: how well documents answer a query, by a model that sees both together; the conventions are those of
sentence-transformers' CrossEncoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..batch import PackedBatch
from ..embedding.pooling import ACTIVATIONS
from ..errors import InputError, NotFiniteError, OptionError
from ..folders.cross_encoder import CrossEncoderFolder, read_cross_encoder_folder
from .long_texts import LONG_TEXTS, aggregated, tokenise_texts
from .options import at_least, one_of, read_options
from .pieces import Pieces
from .scores import sigmoid
from .task import Task
from .text_inputs import read_grouped, read_pairs

__all__ = ["PredictOptions", "Ranking", "Rerank", "RerankOptions"]


@dataclass(frozen=True)
class Ranking:
    """A query and the documents to rank."""

    query: str
    documents: tuple[str, ...]


@dataclass(frozen=True)
class PredictOptions:
    """Of `predict`.

    Attributes:
        activation_fn: what the logits go through: "sigmoid", "identity", "tanh", … or a function of tensors; None is
            the folder's, or else sigmoid for one label and identity for several.
        apply_softmax: whether scores of several labels are then made to add up to 1.
        prompt_name: of the folder's prompts, put before the query; None is the folder's default.
        prompt: the prompt itself; wins over `prompt_name`.
        long_texts: "truncate" the longer of query and document, "error", or "chunk": the document is seen whole, in
            pieces that each stand beside the whole query.
        overlap: of "chunk", tokens that a piece repeats of the one before.
        aggregate: of "chunk", what becomes of the scores of a document's pieces: "max", since a document answers a
            query where any part of it does, or "mean".
    """

    activation_fn: str | Callable[[Tensor], Tensor] | None = None
    apply_softmax: bool = False
    prompt_name: str | None = None
    prompt: str | None = None
    long_texts: str = "truncate"
    overlap: int = 0
    aggregate: str = "max"

    def __post_init__(self) -> None:
        if isinstance(self.activation_fn, str):
            one_of("activation_fn", self.activation_fn, tuple(ACTIVATIONS))
        elif self.activation_fn is not None and not callable(self.activation_fn):
            raise OptionError(f"activation_fn: expected a name or a function, got {self.activation_fn!r:.60}")
        one_of("apply_softmax", self.apply_softmax, (True, False))
        one_of("long_texts", self.long_texts, LONG_TEXTS)
        at_least("overlap", self.overlap, 0)
        one_of("aggregate", self.aggregate, ("max", "mean"))


@dataclass(frozen=True)
class RerankOptions(PredictOptions):
    """Of a call and of `rank`.

    Attributes:
        top_k: documents of each answer; None is all of them.
        return_documents: whether each has its "text".
    """

    top_k: int | None = None
    return_documents: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k is not None:
            at_least("top_k", self.top_k, 1)
        one_of("return_documents", self.return_documents, (True, False))
        if self.apply_softmax:
            raise OptionError("apply_softmax: documents are ranked by a single score; predict(pairs) has this option")


@dataclass
class Rerank(Task[Ranking, PredictOptions]):
    """`[{"corpus_id", "score"}, …]` for each query, best documents first; with `return_documents` also "text".

    A query is `query=…, documents=[…]` by name, or `{"query", "documents"}`, one or a list of them.

    Attributes:
        cross_encoder: what the folder says beyond the model.
    """

    cross_encoder: CrossEncoderFolder = field(init=False, repr=False, compare=False)

    name: ClassVar[str] = "rerank"
    kind: ClassVar[str] = "ForSequenceClassification"
    options_class: ClassVar[type] = RerankOptions
    input_names: ClassVar[tuple[str, ...]] = ("query", "documents")
    window_items: ClassVar[int] = 32

    def __post_init__(self) -> None:
        self.cross_encoder = read_cross_encoder_folder(self.loaded.folder)

    def rank(self, query: str, documents: Sequence[str], **options: Any) -> list[dict[str, Any]]:
        """Documents of one query, best first; options as of a call, in the spelling of CrossEncoder."""
        return self(query=query, documents=documents, **options)

    def predict(
        self,
        inputs: Any,
        *,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        **options: Any,
    ) -> Any:
        """Score pairs.

        Args:
            inputs: a pair of str, or a list of them.
            batch_size: most pairs in a batch; None leaves that to the token budget, which always holds.
            show_progress_bar: accepted; there is no bar.
            convert_to_numpy: false returns a list of tensors.
            convert_to_tensor: true returns one tensor.
            options: of `PredictOptions`.

        Returns:
            float32 `[pairs]`, or `[pairs, labels]` where the model has several; without the first axis for one pair.

        Raises:
            InputError: an input is no pair, or has no finite scores; names the row.
            OptionError: an option is unknown or out of range.
        """
        known = {item.name for item in fields(PredictOptions)}
        defaults = {name: value for name, value in self.defaults.items() if name in known}
        found = read_options(PredictOptions, self.name, defaults, options)
        single = isinstance(inputs, list | tuple) and len(inputs) > 0 and isinstance(inputs[0], str)
        pairs, _ = read_pairs([inputs] if single else inputs)
        rows = []
        answers = self.answers((Ranking(first, (second,)) for first, second in pairs), found, batch_size=batch_size)
        for row, answer in enumerate(answers):
            if isinstance(answer, InputError):
                raise InputError(f"row {row}: {answer}")
            rows.append(answer[0])
        labels = self.loaded.config.num_labels
        scores = np.stack(rows) if rows else np.empty((0, labels), dtype=np.float32)
        scores = scores[:, 0] if labels == 1 else scores
        if convert_to_tensor:
            result: Any = torch.from_numpy(scores)
        else:
            result = scores if convert_to_numpy else list(torch.from_numpy(scores))
        return result[0] if single else result

    def read(self, inputs: Any, others: Mapping[str, Any]) -> tuple[list[Ranking], bool]:
        """Queries with their documents.

        Raises:
            OptionError: the model has several labels, so there is no one score to rank by.
        """
        if self.loaded.config.num_labels != 1:
            labels = self.loaded.config.num_labels
            raise OptionError(f"rerank: expected a model of one label, got {labels}; predict(pairs) gives all of them")
        found, single = read_grouped(inputs, others, "query", "documents")
        return [Ranking(query, documents) for query, documents in found], single

    def tokenise(self, items: Sequence[Ranking], options: PredictOptions) -> tuple[Pieces, dict[int, InputError]]:
        """A piece of each document, the query before it, or several where documents are chunked."""
        prompt = self._prompt(options)
        pairs = [(prompt + item.query, document) for item in items for document in item.documents]
        owners = np.repeat(np.arange(len(items)), [len(item.documents) for item in items])
        return tokenise_texts(self.loaded, pairs, options.long_texts, options.overlap, owners=owners)

    def score(self, batch: PackedBatch, options: PredictOptions) -> Sequence[np.ndarray]:
        """float32 `[labels]` of each piece."""
        logits: Tensor = self.loaded.model(batch).logits.float()
        scores = self._activation(options)(logits)
        if options.apply_softmax and scores.shape[1] > 1:
            scores = torch.softmax(scores, dim=1)
        return list(scores.float().cpu().numpy())

    def answer(
        self, item: Ranking, place: int, pieces: Pieces, scores: Sequence[np.ndarray], options: PredictOptions
    ) -> Any:
        """The ranking, or for `predict` float32 `[documents, labels]`."""
        whole = np.stack(scores) if scores else np.empty((0, self.loaded.config.num_labels), dtype=np.float32)
        firsts = pieces.firsts(place)
        bad = np.flatnonzero(~np.isfinite(whole).all(axis=1))
        if len(bad):
            document = int(np.searchsorted(firsts, bad[0], side="right")) - 1
            raise NotFiniteError(f"document {document}: the model gave NaN or infinity; expected finite scores")
        whole = aggregated(whole, firsts, options.aggregate)
        if not isinstance(options, RerankOptions):
            return whole
        numbers = whole[:, 0].tolist()
        order = sorted(range(len(numbers)), key=numbers.__getitem__, reverse=True)[: options.top_k]
        found = [{"corpus_id": row, "score": numbers[row]} for row in order]
        if options.return_documents:
            return [{**ranked, "text": item.documents[row]} for ranked, row in zip(found, order, strict=True)]
        return found

    def _activation(self, options: PredictOptions) -> Callable[[Tensor], Tensor]:
        chosen = options.activation_fn
        if chosen is None:
            default = "sigmoid" if self.loaded.config.num_labels == 1 else "identity"
            chosen = self.cross_encoder.activation or default
        if chosen == "sigmoid":
            return sigmoid
        return ACTIVATIONS[chosen] if isinstance(chosen, str) else chosen

    def _prompt(self, options: PredictOptions) -> str:
        if options.prompt is not None:
            return options.prompt
        prompts = self.cross_encoder.prompts
        name = self.cross_encoder.default_prompt_name if options.prompt_name is None else options.prompt_name
        if name is None:
            return ""
        if name not in prompts:
            known = ", ".join(map(repr, prompts))
            raise OptionError(f"prompt_name: expected one of the model's prompts ({known}), got {name!r}")
        return prompts[name]
