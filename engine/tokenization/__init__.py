"""The tokenizer classes that users call, equal to transformers' fast ones, over the `tokenizers` library."""

from __future__ import annotations

from .auto import AutoTokenizer
from .base import PreTrainedTokenizerFast
from .bert import BertTokenizer
from .encoding import BatchEncoding, CharSpan, TokenSpan
from .t5 import T5Tokenizer

__all__ = [
    "AutoTokenizer",
    "BatchEncoding",
    "BertTokenizer",
    "BertTokenizerFast",
    "CharSpan",
    "MT5Tokenizer",
    "MT5TokenizerFast",
    "MobileBertTokenizer",
    "MobileBertTokenizerFast",
    "PreTrainedTokenizerFast",
    "T5Tokenizer",
    "T5TokenizerFast",
    "TokenSpan",
]

# One class under all its names, as in transformers 5.
BertTokenizerFast = MobileBertTokenizer = MobileBertTokenizerFast = BertTokenizer
MT5Tokenizer = T5TokenizerFast = MT5TokenizerFast = T5Tokenizer
