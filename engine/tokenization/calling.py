"""Calling a tokenizer: texts in, `input_ids` and their masks out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from tokenizers import Encoding

from ..errors import OptionError
from .collate import pad_encoded
from .decoding import Decoding
from .encoding import BatchEncoding
from .lengths import lengths_of_call, pad_encodings
from .rows import columns_of, rows_of, run

__all__ = ["Calling"]

logger = logging.getLogger(__name__)


class Calling(Decoding):
    """The half of a tokenizer that reads texts.

    Attributes:
        model_input_names: the entries that calls return unless told otherwise.
        model_max_length: tokens that the model takes; 10**30 where it is not known.
        padding_side, truncation_side: "right" or "left".
        split_special_tokens: take special tokens that stand in a text for plain text.
    """

    model_input_names: list[str] = ["input_ids", "attention_mask"]  # noqa: RUF012  users set it on instances
    model_max_length: float
    padding_side: str
    truncation_side: str
    split_special_tokens: bool
    _warned: bool

    def __call__(
        self,
        text: Any = None,
        text_pair: Any = None,
        text_target: Any = None,
        text_pair_target: Any = None,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        split_special_tokens: bool | None = None,
    ) -> BatchEncoding:
        """Tokenise a text, a pair, a list of texts, or a list of pairs.

        Args:
            text: a str, or a list of str or of pairs of str; with `is_split_into_words`, lists of words instead of str.
            text_pair: the second texts: a str where `text` is one, else a list as long.
            text_target: texts whose ids are returned as `labels`, or alone where there is no `text`.
            text_pair_target: their second texts.
            add_special_tokens: put `[CLS]`, `</s>` and the like where the model expects them.
            padding: True or "longest" fills rows up to the longest, "max_length" to `max_length`.
            truncation: True or "longest_first" takes tokens from the longer text of a pair until `max_length` is kept,
                "only_first" and "only_second" from that text only.
            max_length: tokens of a row; by default `model_max_length`, where padding or truncation needs it.
            stride: with `return_overflowing_tokens`, tokens that each piece repeats of the one before.
            is_split_into_words: texts are lists of words.
            pad_to_multiple_of: rows are filled up to a multiple of it.
            padding_side: "right" or "left"; by default the tokenizer's own.
            return_tensors: "pt" for torch tensors, "np" for numpy arrays, None for lists.
            return_token_type_ids, return_attention_mask: by default as in `model_input_names`.
            return_overflowing_tokens: the rest of a text that is too long becomes further rows;
                `overflow_to_sample_mapping` says of which text each row is.
            return_special_tokens_mask: 1 for special tokens and padding.
            return_offsets_mapping: start and end of each token in its text, in characters.
            return_length: tokens of each row, padding included.
            verbose: say in the log, once, that a text is longer than `model_max_length`.
            split_special_tokens: take special tokens that stand in a text for plain text.

        Returns:
            int64 entries `[rows, tokens]`; flat lists for one text without `return_tensors`. A single text with
            `return_tensors` is one row.

        Raises:
            InputError: a row is no text, texts and pairs differ in number, a text cannot be truncated as asked, or rows
                of different lengths make no tensor.
            OptionError: an argument is out of range.
        """
        if text is None and text_target is None:
            raise OptionError(f"{type(self).__name__}: expected text or text_target, got neither")
        answers = [
            self._encode(
                first,
                second,
                add_special_tokens=add_special_tokens,
                padding=padding,
                truncation=truncation,
                max_length=max_length,
                stride=stride,
                is_split_into_words=is_split_into_words,
                pad_to_multiple_of=pad_to_multiple_of,
                padding_side=padding_side,
                return_tensors=return_tensors,
                return_token_type_ids=return_token_type_ids,
                return_attention_mask=return_attention_mask,
                return_overflowing_tokens=return_overflowing_tokens,
                return_special_tokens_mask=return_special_tokens_mask,
                return_offsets_mapping=return_offsets_mapping,
                return_length=return_length,
                verbose=verbose,
                split_special_tokens=split_special_tokens,
            )
            for first, second in ((text, text_pair), (text_target, text_pair_target))
            if first is not None
        ]
        if len(answers) == 2:
            answers[0]["labels"] = answers[1]["input_ids"]
        return answers[0]

    def encode(self, text: Any, text_pair: Any = None, add_special_tokens: bool = True, **options: Any) -> Any:
        """The `input_ids` of a call with the same arguments: a list, or what `return_tensors` asks for."""
        return self(text, text_pair, add_special_tokens=add_special_tokens, **options)["input_ids"]

    def encode_plus(self, text: Any, text_pair: Any = None, **options: Any) -> BatchEncoding:
        """The older name of a call with one text or pair."""
        return self(text, text_pair, **options)

    def batch_encode_plus(self, batch_text_or_text_pairs: Sequence[Any], **options: Any) -> BatchEncoding:
        """The older name of a call with a list."""
        return self(list(batch_text_or_text_pairs), **options)

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **options: Any
    ) -> list[str]:
        """The tokens of a text, or of a pair, as spelled in the vocabulary."""
        return self(text, pair, add_special_tokens=add_special_tokens, **options).tokens()

    def _encode(
        self,
        text: Any,
        text_pair: Any,
        *,
        return_tensors: str | None,
        return_overflowing_tokens: bool,
        add_special_tokens: bool,
        is_split_into_words: bool,
        split_special_tokens: bool | None,
        verbose: bool,
        padding: bool | str,
        truncation: bool | str | None,
        max_length: int | None,
        stride: int,
        pad_to_multiple_of: int | None,
        padding_side: str | None,
        **returned: bool | None,
    ) -> BatchEncoding:
        rows, batched = rows_of(text, text_pair, is_split_into_words)
        backend = self._backend
        lengths = lengths_of_call(
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            stride=stride,
            pad_to_multiple_of=pad_to_multiple_of,
            padding_side=padding_side or self.padding_side,
            truncation_side=self.truncation_side,
            model_max_length=self.model_max_length,
            pad_token=self.pad_token,
            pad_token_id=self.pad_token_id,
        )
        encodings = run(
            backend,
            rows,
            truncation=lengths.truncation,
            split_into_words=is_split_into_words,
            split_special_tokens=self.split_special_tokens if split_special_tokens is None else split_special_tokens,
            add_special_tokens=add_special_tokens,
        )
        if lengths.padding is not None:
            pad_encodings(encodings, lengths.padding)
        wanted = {name.removeprefix("return_"): value for name, value in returned.items()}
        for name in ("token_type_ids", "attention_mask"):
            wanted[name] = name in self.model_input_names if wanted[name] is None else wanted[name]
        columns, pieces = columns_of(encodings, wanted, overflowing=return_overflowing_tokens)
        if verbose and lengths.max_length is None:
            self._warn_of_long_rows(pieces)
        if not batched and return_tensors is None and not return_overflowing_tokens:
            columns = {name: values[0] if isinstance(values[0], list) else values for name, values in columns.items()}
        return BatchEncoding(columns, pieces, tensor_type=return_tensors)

    def pad(
        self,
        encoded_inputs: Any,
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Fill up encodings that were made before, such as the rows that a data loader collects.

        Args:
            encoded_inputs: one encoding, or several as a list of encodings or as one with lists of rows.
            padding, max_length, pad_to_multiple_of, padding_side, return_tensors: as in a call.
            return_attention_mask: add and fill up the mask; by default as in `model_input_names`.
            verbose: has no effect; it is there for calls written for transformers.

        Returns:
            Lists, or what `return_tensors` asks for; by default tensors where tensors came in.

        Raises:
            InputError: there are no `input_ids`, or columns differ in their number of rows.
            OptionError: an argument is out of range.
        """
        lengths = lengths_of_call(
            padding=padding,
            truncation=False,
            max_length=max_length,
            stride=0,
            pad_to_multiple_of=pad_to_multiple_of,
            padding_side=padding_side or self.padding_side,
            truncation_side=self.truncation_side,
            model_max_length=self.model_max_length,
            pad_token=self.pad_token,
            pad_token_id=self.pad_token_id,
        )
        name = self.model_input_names[0]
        mask = "attention_mask" in self.model_input_names if return_attention_mask is None else return_attention_mask
        return pad_encoded(encoded_inputs, name, lengths.padding, mask=mask, tensor_type=return_tensors)

    def _warn_of_long_rows(self, encodings: Sequence[Encoding]) -> None:
        longest = max((len(encoding) for encoding in encodings), default=0)
        if longest > self.model_max_length > 0 and not self._warned:
            self._warned = True
            logger.warning("a text has %d tokens, but the model takes %d", longest, self.model_max_length)
