"""The classes of mT5 (Xue et al. 2021): T5 1.1 with a vocabulary for 101 languages."""

from __future__ import annotations

from .mt5_config import MT5Config
from .mt5_encoder import MT5EncoderModel, MT5ForTokenClassification
from .mt5_seq2seq import (
    MT5ForConditionalGeneration,
    MT5ForQuestionAnswering,
    MT5ForSequenceClassification,
    MT5Model,
)

__all__ = [
    "MT5Config",
    "MT5EncoderModel",
    "MT5ForConditionalGeneration",
    "MT5ForQuestionAnswering",
    "MT5ForSequenceClassification",
    "MT5ForTokenClassification",
    "MT5Model",
]
