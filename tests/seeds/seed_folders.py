"""Model folders in place of the hub models that the seed pages name: tiny random weights, files of the real formats.

A folder holds what the real one holds: a config.json with the keys of its time, weights in safetensors, and the files
of a real tokenizer (vocab.txt; a byte-level BPE in tokenizer.json; Unigram in tokenizer.json or spiece.model) whose
vocabulary is made of the words in the examples.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from seed_pages import blocks
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE, Unigram

SEED = 20261121
# Left out of the vocabularies, so that it takes several tokens there as in the real ones: the spans of the
# question-answering examples (14 to 15) end beyond the text where it is one token.
SPLIT_WORD = "henson"


@dataclass(frozen=True)
class HubModel:
    """What stands behind a hub name: the class whose checkpoint is published, its config.json, its tokenizer."""

    published: str
    config: dict[str, object]
    write_tokenizer: Callable[[Path], int]


def words() -> list[str]:
    """Words and punctuation of all strings in the examples, as written there, sorted, each once."""
    found = {word for block in blocks() for text in block.strings for word in re.findall(r"\w+|[^\w\s]", text)}
    return sorted(word for word in found if word.lower() != SPLIT_WORD)


def write_wordpiece(folder: Path, *, lower_case: bool) -> int:
    """vocab.txt as the first BERTs have it, and with `lower_case=False` the settings to read it; -> its size."""
    whole = sorted({word.lower() if lower_case else word for word in words()})
    letters = sorted({letter for word in (*whole, SPLIT_WORD, "H") for letter in word})
    specials = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = list(dict.fromkeys((*specials, *whole, *letters, *(f"##{letter}" for letter in letters))))
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    if not lower_case:
        write_json(folder / "tokenizer_config.json", {"do_lower_case": False, "model_max_length": 512})
    return len(pieces)


def write_byte_bpe(folder: Path) -> int:
    """tokenizer.json and its companions as ModernBERT has them; -> size of the vocabulary."""
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=5000, min_frequency=1, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([f"{word} {word}" for word in words()], trainer)
    specials = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    mask = AddedToken("[MASK]", lstrip=True, special=True)
    tokenizer.add_special_tokens([*(AddedToken(token, special=True) for token in specials), mask])
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=ends
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "cls", "sep", "pad", "mask")}
    settings = {
        "clean_up_tokenization_spaces": True,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 8192,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    write_json(folder / "tokenizer_config.json", {**settings, **names})
    write_json(folder / "special_tokens_map.json", names)
    return tokenizer.get_vocab_size()


def unigram_pieces() -> list[tuple[str, float]]:
    """(piece, log probability) in the order of their ids: control pieces, letters, whole words after a space."""
    whole = [f"\N{LOWER ONE EIGHTH BLOCK}{word}" for word in words()]
    letters = sorted({letter for piece in (*whole, SPLIT_WORD, "H") for letter in piece})
    controls = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return [*controls, *((letter, -9.0) for letter in letters), *((piece, -5.0) for piece in whole if len(piece) > 1)]


def write_unigram(folder: Path) -> int:
    """tokenizer.json and its settings as mT5's converted tokenizers have them; -> size of the vocabulary."""
    pieces = unigram_pieces()
    tokenizer = Tokenizer(Unigram(pieces, unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    sentinels = [f"<extra_id_{i}>" for i in range(3)]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<pad>", "</s>", "<unk>", *sentinels)])
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_t5_settings(folder, sentinels)
    return tokenizer.get_vocab_size()


def write_sentencepiece(folder: Path) -> int:
    """spiece.model and its settings as google/mt5-small has them: the pieces of `write_unigram`; -> their number."""
    pieces = unigram_pieces()
    normal, unknown, control, user_defined = 1, 2, 3, 4
    types = [control, control, unknown] + [normal] * (len(pieces) - 3) + [user_defined] * 3
    pieces += [(f"<extra_id_{i}>", 0.0) for i in range(3)]
    encoded = b""
    for (piece, score), type_ in zip(pieces, types, strict=True):
        body = _field(1, piece.encode()) + _key(2, 5) + struct.pack("<f", score) + _key(3, 0) + _varint(type_)
        encoded += _field(1, body)
    unigram, minus_one = 1, (1 << 64) - 1
    trainer = b"".join(
        _key(number, 0) + _varint(value)
        for number, value in ((3, unigram), (4, len(pieces)), (40, 2), (41, minus_one), (42, 1), (43, 0))
    )
    dummy_prefix, spaces_once, spaces_escaped = (_key(number, 0) + _varint(1) for number in (3, 4, 5))
    normalizer = _field(1, b"identity") + _field(2, b"") + dummy_prefix + spaces_once + spaces_escaped
    (folder / "spiece.model").write_bytes(encoded + _field(2, trainer) + _field(3, normalizer))
    _write_t5_settings(folder, [])
    return len(pieces)


def _write_t5_settings(folder: Path, sentinels: Sequence[str]) -> None:
    names = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    extra = {"additional_special_tokens": list(sentinels)} if sentinels else {}
    write_json(folder / "special_tokens_map.json", {**names, **extra})
    write_json(folder / "tokenizer_config.json", {**names, **extra, "extra_ids": 0, "tokenizer_class": "T5Tokenizer"})


def _varint(value: int) -> bytes:
    encoded = b""
    while value > 127:
        encoded += bytes([value & 127 | 128])
        value >>= 7
    return encoded + bytes([value])


def _key(number: int, wire_type: int) -> bytes:
    return _varint(number << 3 | wire_type)


def _field(number: int, payload: bytes) -> bytes:
    return _key(number, 2) + _varint(len(payload)) + payload


MOBILEBERT = {
    "attention_probs_dropout_prob": 0.1,
    "classifier_activation": False,
    "embedding_size": 12,
    "hidden_act": "relu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 24,
    "initializer_range": 0.02,
    "intermediate_size": 28,
    "intra_bottleneck_size": 16,
    "key_query_shared_bottleneck": True,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 64,
    "model_type": "mobilebert",
    "normalization_type": "no_norm",
    "num_attention_heads": 4,
    "num_feedforward_networks": 3,
    "num_hidden_layers": 3,
    "pad_token_id": 0,
    "trigram_input": True,
    "true_hidden_size": 16,
    "type_vocab_size": 2,
    "use_bottleneck": True,
    "use_bottleneck_attention": False,
}
MODERNBERT = {
    "architectures": ["ModernBertForMaskedLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "classifier_activation": "gelu",
    "classifier_bias": False,
    "classifier_dropout": 0.0,
    "classifier_pooling": "mean",
    "decoder_bias": True,
    "deterministic_flash_attn": False,
    "embedding_dropout": 0.0,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "gradient_checkpointing": False,
    "hidden_activation": "gelu",
    "hidden_size": 24,
    "initializer_cutoff_factor": 2.0,
    "initializer_range": 0.02,
    "intermediate_size": 20,
    "layer_norm_eps": 1e-05,
    "local_attention": 8,
    "local_rope_theta": 10000.0,
    "max_position_embeddings": 64,
    "mlp_bias": False,
    "mlp_dropout": 0.0,
    "model_type": "modernbert",
    "norm_bias": False,
    "norm_eps": 1e-05,
    "num_attention_heads": 3,
    "num_hidden_layers": 4,
    "position_embedding_type": "absolute",
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "transformers_version": "4.47.0.dev0",
}
MEGATRON_BERT = {
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 24,
    "initializer_range": 0.02,
    "intermediate_size": 40,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 64,
    "model_type": "megatron-bert",
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "type_vocab_size": 2,
}
MT5 = {
    "architectures": ["MT5ForConditionalGeneration"],
    "d_ff": 28,
    "d_kv": 8,
    "d_model": 20,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu",
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "mt5",
    "num_decoder_layers": 2,
    "num_heads": 3,
    "num_layers": 2,
    "pad_token_id": 0,
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False,
    "tokenizer_class": "T5Tokenizer",
    "transformers_version": "4.10.0.dev0",
    "use_cache": True,
}


def _uncased(folder: Path) -> int:
    return write_wordpiece(folder, lower_case=True)


def _cased(folder: Path) -> int:
    return write_wordpiece(folder, lower_case=False)


HUB_MODELS = {
    "google/mobilebert-uncased": HubModel("MobileBertForPreTraining", MOBILEBERT, _uncased),
    "answerdotai/ModernBERT-base": HubModel("ModernBertForMaskedLM", MODERNBERT, write_byte_bpe),
    "nvidia/megatron-bert-uncased-345m": HubModel("MegatronBertForPreTraining", MEGATRON_BERT, _uncased),
    "nvidia/megatron-bert-cased-345m": HubModel("MegatronBertForPreTraining", MEGATRON_BERT, _cased),
    "google/mt5-small": HubModel("MT5ForConditionalGeneration", MT5, write_unigram),
    "csebuetnlp/mT5_multilingual_XLSum": HubModel("MT5ForConditionalGeneration", MT5, write_unigram),
}


def write_model(root: Path, hub_name: str, class_name: str | None = None) -> Path:
    """Write `<root>/<hub_name>`: the checkpoint of transformers' `class_name`, else of the class that is published."""
    hub_model = HUB_MODELS[hub_name]
    folder = root / hub_name
    folder.mkdir(parents=True)
    config = {**hub_model.config, "vocab_size": hub_model.write_tokenizer(folder)}
    if hub_model.write_tokenizer is write_byte_bpe:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        names = {"bos": "[CLS]", "cls": "[CLS]", "eos": "[SEP]", "sep": "[SEP]", "pad": "[PAD]"}
        config |= {f"{name}_token_id": tokenizer.token_to_id(token) for name, token in names.items()}
    write_json(folder / "config.json", config)
    parsed = transformers.AutoConfig.from_pretrained(folder)
    published = getattr(transformers, class_name or hub_model.published)
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model = published.from_config(parsed) if hasattr(published, "from_config") else published(parsed)
        randomise(model)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    write_json(folder / "config.json", config)  # transformers wrote its own of today
    return folder


def randomise(model: transformers.PreTrainedModel) -> None:
    """Draw all weights anew, so large that no two logits are close, and let the second text never follow the first.

    MobileBERT's norms do not normalise: with weights as large its logits would reach thousands, and its losses 0.
    The vector of the padding token stays zero, as transformers draws it: MobileBERT takes each token's neighbours in,
    and transformers the padding behind the last one too.
    """
    deviation = 0.15 if model.config.model_type == "mobilebert" else 0.3
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and name.endswith("weight"):
                parameter.normal_(1.0, 0.1)
            else:
                sharp = ".query." in name or ".key." in name  # attention far from uniform
                parameter.normal_(0.0, max(deviation, 0.8) if sharp else deviation)
            if name.endswith("seq_relationship.bias"):
                parameter.copy_(torch.tensor([-3.0, 3.0]))
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx] = 0.0


def write_json(file: Path, content: object) -> None:
    """JSON, indented as the hub has it."""
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
