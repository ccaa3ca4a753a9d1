"""padless: an encoder engine that never computes a padding token.

    import padless
    encoder = padless.load("path/to/model")
    vectors = encoder.encode(["a text", "another one"])    # float32 numpy, [texts, dimension]

The names below are imported at their first use (PEP 562), so `import padless` costs milliseconds and loads neither
torch nor triton. Everything that is not listed here may change between versions.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine.auto import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
        AutoModelForMultipleChoice,
        AutoModelForNextSentencePrediction,
        AutoModelForPreTraining,
        AutoModelForQuestionAnswering,
        AutoModelForSeq2SeqLM,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
    )
    from .engine.embedding.encoder import Encoder
    from .engine.embedding.quantisation import quantize_embeddings
    from .engine.errors import (
        BackendError,
        ConfigError,
        InputError,
        JobError,
        MemoryLimitError,
        ModelNotFoundError,
        NotFiniteError,
        OptionError,
        PadlessError,
        TokenizerError,
        WeightsError,
    )
    from .engine.integrations.accelerate.accelerate import accelerate, restore
    from .engine.integrations.attention_interface import register_attention
    from .engine.loading import load
    from .engine.models.bert import (
        BertConfig,
        BertForMaskedLM,
        BertForMultipleChoice,
        BertForNextSentencePrediction,
        BertForPreTraining,
        BertForQuestionAnswering,
        BertForSequenceClassification,
        BertForTokenClassification,
        BertModel,
    )
    from .engine.models.megatron_bert import (
        MegatronBertConfig,
        MegatronBertForCausalLM,
        MegatronBertForMaskedLM,
        MegatronBertForMultipleChoice,
        MegatronBertForNextSentencePrediction,
        MegatronBertForPreTraining,
        MegatronBertForQuestionAnswering,
        MegatronBertForSequenceClassification,
        MegatronBertForTokenClassification,
        MegatronBertModel,
    )
    from .engine.models.mobilebert import (
        MobileBertConfig,
        MobileBertForMaskedLM,
        MobileBertForMultipleChoice,
        MobileBertForNextSentencePrediction,
        MobileBertForPreTraining,
        MobileBertForQuestionAnswering,
        MobileBertForSequenceClassification,
        MobileBertForTokenClassification,
        MobileBertModel,
    )
    from .engine.models.modernbert import (
        ModernBertConfig,
        ModernBertForMaskedLM,
        ModernBertForMultipleChoice,
        ModernBertForQuestionAnswering,
        ModernBertForSequenceClassification,
        ModernBertForTokenClassification,
        ModernBertModel,
    )
    from .engine.models.mt5 import (
        MT5Config,
        MT5EncoderModel,
        MT5ForConditionalGeneration,
        MT5ForQuestionAnswering,
        MT5ForSequenceClassification,
        MT5ForTokenClassification,
        MT5Model,
    )
    from .engine.pipelines import pipeline
    from .engine.tokenization import (
        AutoTokenizer,
        BatchEncoding,
        BertTokenizer,
        BertTokenizerFast,
        CharSpan,
        MobileBertTokenizer,
        MobileBertTokenizerFast,
        MT5Tokenizer,
        MT5TokenizerFast,
        PreTrainedTokenizerFast,
        T5Tokenizer,
        T5TokenizerFast,
        TokenSpan,
    )

__version__ = "0.1.0"

__all__ = [
    "AutoConfig",
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForMaskedLM",
    "AutoModelForMultipleChoice",
    "AutoModelForNextSentencePrediction",
    "AutoModelForPreTraining",
    "AutoModelForQuestionAnswering",
    "AutoModelForSeq2SeqLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoTokenizer",
    "BackendError",
    "BatchEncoding",
    "BertConfig",
    "BertForMaskedLM",
    "BertForMultipleChoice",
    "BertForNextSentencePrediction",
    "BertForPreTraining",
    "BertForQuestionAnswering",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertModel",
    "BertTokenizer",
    "BertTokenizerFast",
    "CharSpan",
    "ConfigError",
    "Encoder",
    "InputError",
    "JobError",
    "MT5Config",
    "MT5EncoderModel",
    "MT5ForConditionalGeneration",
    "MT5ForQuestionAnswering",
    "MT5ForSequenceClassification",
    "MT5ForTokenClassification",
    "MT5Model",
    "MT5Tokenizer",
    "MT5TokenizerFast",
    "MegatronBertConfig",
    "MegatronBertForCausalLM",
    "MegatronBertForMaskedLM",
    "MegatronBertForMultipleChoice",
    "MegatronBertForNextSentencePrediction",
    "MegatronBertForPreTraining",
    "MegatronBertForQuestionAnswering",
    "MegatronBertForSequenceClassification",
    "MegatronBertForTokenClassification",
    "MegatronBertModel",
    "MemoryLimitError",
    "MobileBertConfig",
    "MobileBertForMaskedLM",
    "MobileBertForMultipleChoice",
    "MobileBertForNextSentencePrediction",
    "MobileBertForPreTraining",
    "MobileBertForQuestionAnswering",
    "MobileBertForSequenceClassification",
    "MobileBertForTokenClassification",
    "MobileBertModel",
    "MobileBertTokenizer",
    "MobileBertTokenizerFast",
    "ModelNotFoundError",
    "ModernBertConfig",
    "ModernBertForMaskedLM",
    "ModernBertForMultipleChoice",
    "ModernBertForQuestionAnswering",
    "ModernBertForSequenceClassification",
    "ModernBertForTokenClassification",
    "ModernBertModel",
    "NotFiniteError",
    "OptionError",
    "PadlessError",
    "PreTrainedTokenizerFast",
    "T5Tokenizer",
    "T5TokenizerFast",
    "TokenSpan",
    "TokenizerError",
    "WeightsError",
    "__version__",
    "accelerate",
    "load",
    "pipeline",
    "quantize_embeddings",
    "register_attention",
    "restore",
]

_NAMES_OF = {
    ".engine.auto": (
        "AutoConfig",
        "AutoModel",
        "AutoModelForCausalLM",
        "AutoModelForMaskedLM",
        "AutoModelForMultipleChoice",
        "AutoModelForNextSentencePrediction",
        "AutoModelForPreTraining",
        "AutoModelForQuestionAnswering",
        "AutoModelForSeq2SeqLM",
        "AutoModelForSequenceClassification",
        "AutoModelForTokenClassification",
    ),
    ".engine.embedding.encoder": ("Encoder",),
    ".engine.embedding.quantisation": ("quantize_embeddings",),
    ".engine.errors": (
        "BackendError",
        "ConfigError",
        "InputError",
        "JobError",
        "MemoryLimitError",
        "ModelNotFoundError",
        "NotFiniteError",
        "OptionError",
        "PadlessError",
        "TokenizerError",
        "WeightsError",
    ),
    ".engine.integrations.accelerate.accelerate": ("accelerate", "restore"),
    ".engine.integrations.attention_interface": ("register_attention",),
    ".engine.loading": ("load",),
    ".engine.models.bert": (
        "BertConfig",
        "BertForMaskedLM",
        "BertForMultipleChoice",
        "BertForNextSentencePrediction",
        "BertForPreTraining",
        "BertForQuestionAnswering",
        "BertForSequenceClassification",
        "BertForTokenClassification",
        "BertModel",
    ),
    ".engine.models.megatron_bert": (
        "MegatronBertConfig",
        "MegatronBertForCausalLM",
        "MegatronBertForMaskedLM",
        "MegatronBertForMultipleChoice",
        "MegatronBertForNextSentencePrediction",
        "MegatronBertForPreTraining",
        "MegatronBertForQuestionAnswering",
        "MegatronBertForSequenceClassification",
        "MegatronBertForTokenClassification",
        "MegatronBertModel",
    ),
    ".engine.models.mobilebert": (
        "MobileBertConfig",
        "MobileBertForMaskedLM",
        "MobileBertForMultipleChoice",
        "MobileBertForNextSentencePrediction",
        "MobileBertForPreTraining",
        "MobileBertForQuestionAnswering",
        "MobileBertForSequenceClassification",
        "MobileBertForTokenClassification",
        "MobileBertModel",
    ),
    ".engine.models.modernbert": (
        "ModernBertConfig",
        "ModernBertForMaskedLM",
        "ModernBertForMultipleChoice",
        "ModernBertForQuestionAnswering",
        "ModernBertForSequenceClassification",
        "ModernBertForTokenClassification",
        "ModernBertModel",
    ),
    ".engine.models.mt5": (
        "MT5Config",
        "MT5EncoderModel",
        "MT5ForConditionalGeneration",
        "MT5ForQuestionAnswering",
        "MT5ForSequenceClassification",
        "MT5ForTokenClassification",
        "MT5Model",
    ),
    ".engine.pipelines": ("pipeline",),
    ".engine.tokenization": (
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
    ),
}
_MODULE_OF = {name: module for module, names in _NAMES_OF.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
