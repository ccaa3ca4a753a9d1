"""Every class reads what transformers' class of its name writes, and the other way round, without a word of warning."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import padless

BERT = {
    "vocab_size": 61,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 17,
}
SIZES: dict[str, dict[str, Any]] = {
    "Bert": BERT,
    "MegatronBert": BERT,
    "MobileBert": {**BERT, "embedding_size": 10, "intra_bottleneck_size": 8},
    "ModernBert": {
        **BERT,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "cls_token_id": 1,
        "sep_token_id": 2,
    },
    "MT5": {"vocab_size": 61, "d_model": 16, "d_kv": 8, "d_ff": 20, "num_layers": 2, "num_heads": 2},
}
HEADS = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForMultipleChoice")
OLD_HEADS = (*HEADS, "ForQuestionAnswering", "ForPreTraining", "ForNextSentencePrediction")
CLASSES = [
    *(family + head for family in ("Bert", "MegatronBert", "MobileBert") for head in OLD_HEADS),
    *(f"ModernBert{head}" for head in (*HEADS, "ForQuestionAnswering")),
    *("MT5EncoderModel", "MT5ForTokenClassification"),
]


def theirs(name: str, seed: int = 11) -> Any:
    """A random model of transformers."""
    family = next(family for family in SIZES if name.startswith(family))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return getattr(transformers, name)(getattr(transformers, f"{family}Config")(**SIZES[family]))


def assert_same(ours: Any, other: Any) -> None:
    """Every parameter of ours has the values of the parameter of that name."""
    expected = other.state_dict()
    found = ours.state_dict()
    assert found
    for name, values in found.items():
        assert torch.equal(values, expected[name]), name


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("shard_bytes", [10**9, 3_000])
def test_transformers_reads_what_padless_writes(
    name: str, shard_bytes: int, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    theirs(name).save_pretrained(tmp_path / "theirs")
    ours = getattr(padless, name).from_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours", max_shard_size=shard_bytes)
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 1 or shard_bytes == 10**9
    caplog.clear()
    capfd.readouterr()
    loaded: Any = getattr(transformers, name).from_pretrained(tmp_path / "ours", output_loading_info=True)
    read, report = loaded
    assert not any(report.values()), report
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert_same(ours, read)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("form", ["single", "sharded", "pickled"])
def test_padless_reads_what_transformers_writes(
    name: str, form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = theirs(name)
    if form == "pickled":
        model.config.save_pretrained(tmp_path)
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    else:
        model.save_pretrained(tmp_path, max_shard_size=10**9 if form == "single" else 3_000)
    caplog.clear()
    ours = getattr(padless, name).from_pretrained(tmp_path, use_safetensors=False if form == "pickled" else None)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert_same(ours, model)


@pytest.mark.parametrize("name", CLASSES)
def test_a_bare_checkpoint_leaves_only_the_head_to_be_initialised(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The body, and with it a tied word embedding, is the checkpoint's; what is not is named in a warning."""
    family = next(family for family in SIZES if name.startswith(family))
    bare = theirs("MT5EncoderModel" if family == "MT5" else f"{family}Model")
    bare.save_pretrained(tmp_path)
    caplog.clear()
    ours = getattr(padless, name).from_pretrained(tmp_path)
    warned = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert bool(warned) == (name not in (f"{family}Model", "MT5EncoderModel"))
    expected = bare.state_dict()
    found = ours.state_dict()
    prefix = f"{ours.base_model_prefix}."
    body = {key.removeprefix(prefix): values for key, values in found.items()}
    same = [key for key, values in expected.items() if key in body and torch.equal(body[key], values)]
    assert sorted(key for key in expected if key not in same and "pooler" not in key) == []
    assert all(values.isfinite().all() for values in found.values())
