"""Vocabularies that grow and shrink, ours and transformers' with the same result."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import padless
from padless.engine.errors import InputError, OptionError

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 36,
    "max_position_embeddings": 23,
    "initializer_range": 0.3,
}
MOBILE = {**SIZES, "embedding_size": 12, "intra_bottleneck_size": 12, "normalization_type": "layer_norm"}
FIELDS: dict[str, dict[str, Any]] = {
    "Bert": SIZES,
    "MegatronBert": SIZES,
    "MobileBert": MOBILE,
    "ModernBert": {**SIZES, "pad_token_id": 0, "local_attention": 4},
    "MT5": {"vocab_size": 61, "d_model": 24, "d_kv": 8, "d_ff": 36, "num_layers": 2, "num_heads": 3},
}
BERT_LIKE = [
    "Model",
    "ForPreTraining",
    "ForMaskedLM",
    "ForNextSentencePrediction",
    "ForSequenceClassification",
    "ForMultipleChoice",
    "ForTokenClassification",
    "ForQuestionAnswering",
]
MODERN = [tag for tag in BERT_LIKE if tag not in ("ForPreTraining", "ForNextSentencePrediction")]
CLASSES = [
    *((family, tag) for family in ("Bert", "MegatronBert", "MobileBert") for tag in BERT_LIKE),
    *(("ModernBert", tag) for tag in MODERN),
    ("MT5", "EncoderModel"),
    ("MT5", "ForTokenClassification"),
]
HEADS = [(family, tag) for family, tag in CLASSES if tag in ("ForMaskedLM", "ForPreTraining")]
IDS = torch.tensor([[5, 17, 40, 9, 31], [7, 8, 0, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The models are so small that two threads would spend their time waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(11)
        yield
    torch.set_num_threads(threads)


def pair(folder: Path, family: str, tag: str, **fields: Any) -> tuple[Any, Any]:
    """transformers' model and ours, of the same weights; biases are not zero."""
    config = getattr(transformers, f"{family}Config")(**{**FIELDS[family], **fields})
    fresh = getattr(transformers, family + tag)(config)
    with torch.no_grad():
        for name, parameter in fresh.named_parameters():
            if "bias" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    fresh.save_pretrained(folder)
    theirs = getattr(transformers, family + tag).from_pretrained(folder, attn_implementation="eager")
    return theirs.eval(), getattr(padless, family + tag).from_pretrained(folder)


def run(model: Any, ids: Tensor = IDS) -> Tensor:
    mask = MASK.bool()
    if "MultipleChoice" in type(model).__name__:
        return model(input_ids=ids[None], attention_mask=MASK[None])[0]
    output = model(input_ids=ids, attention_mask=MASK)[0]
    return output[mask] if output.shape[:2] == mask.shape else output


def assert_same(ours: Tensor, theirs: Tensor, tolerance: float = 2e-5) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max().clamp(min=1.0)


def copy_new_values(ours: Any, theirs: Any) -> None:
    """transformers' new rows are as random as ours: theirs become ours."""
    values = dict(ours.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, parameter in theirs.named_parameters(remove_duplicate=False):
            assert parameter.shape == values[name].shape, name
            parameter.copy_(values[name])


@pytest.mark.parametrize(("family", "tag"), CLASSES)
@pytest.mark.parametrize("size", [67, 45])
def test_every_class_computes_what_transformers_does_after_resizing(
    tmp_path: Path, family: str, tag: str, size: int
) -> None:
    theirs, ours = pair(tmp_path / "before", family, tag)
    run(ours)  # the ops have prepared their weights
    before = {name: value.detach().clone() for name, value in ours.named_parameters(remove_duplicate=False)}
    for model in (theirs, ours):
        assert model.resize_token_embeddings(size) is model.get_input_embeddings()
        assert model.get_input_embeddings().num_embeddings == model.config.vocab_size == size
    for name, value in ours.named_parameters(remove_duplicate=False):
        kept = tuple(slice(min(old, new)) for old, new in zip(before[name].shape, value.shape, strict=True))
        assert torch.equal(value[kept], before[name][kept])
        assert value.isfinite().all()
    copy_new_values(ours, theirs)
    ids = IDS.clone()
    ids[0, 2] = size - 1
    assert_same(run(ours, ids), run(theirs, ids))
    for model in (ours, theirs):
        run(model, ids).square().mean().backward()
    expected = dict(theirs.named_parameters())
    for name, value in ours.named_parameters():
        wanted = expected[name].grad
        assert (value.grad is None) == (wanted is None), name
        if wanted is not None:
            assert_same(value.grad, wanted, 2e-4)
    ours.save_pretrained(tmp_path / "after")
    for package in (padless, transformers):
        again = getattr(package, family + tag).from_pretrained(tmp_path / "after").eval()
        assert again.config.vocab_size == size
        assert_same(run(again, ids), run(ours, ids))
    with pytest.raises(InputError, match=rf"^input_ids: expected 0 to {size - 1}, got {size}$"):
        run(ours, torch.full_like(IDS, size))


@pytest.mark.parametrize(("family", "tag"), HEADS)
@pytest.mark.parametrize("tied", [True, False])
def test_what_was_tied_stays_tied_and_what_was_not_does_not(tmp_path: Path, family: str, tag: str, tied: bool) -> None:
    theirs, ours = pair(tmp_path / "before", family, tag, tie_word_embeddings=tied)
    for model in (theirs, ours):
        model.resize_token_embeddings(70)
        words, decoder = model.get_input_embeddings(), model.get_output_embeddings()
        assert (words.weight is decoder.weight) == tied
        assert decoder.out_features == 70
    if family != "ModernBert":
        assert (ours.cls.predictions.bias is ours.get_output_embeddings().bias) == tied
        assert ours.cls.predictions.bias.shape == (70,)
    copy_new_values(ours, theirs)
    assert run(ours).shape[-1] == 70
    assert_same(run(ours), run(theirs))
    assert "hidden=70" in repr(ours.get_output_embeddings().op.resolution.call)
    ours.save_pretrained(tmp_path / "after")
    assert_same(run(type(ours).from_pretrained(tmp_path / "after")), run(ours))


def test_mobilebert_also_has_the_vocabulary_on_the_input_side_of_a_layer(tmp_path: Path) -> None:
    _, ours = pair(tmp_path, "MobileBert", "ForMaskedLM")
    dense = ours.cls["predictions"].dense
    before = dense.weight.detach().clone()
    ours.resize_token_embeddings(66)
    assert dense.weight.shape == (12, 66)
    assert (dense.in_features, dense.out_features) == (66, 12)
    assert torch.equal(dense.weight[:, :61], before)
    assert_same(dense.weight[:, 61:], before.mean(dim=1, keepdim=True).expand(-1, 5), 1e-4)


def test_the_two_names_of_mt5s_table_stay_one_parameter(tmp_path: Path) -> None:
    _, ours = pair(tmp_path, "MT5", "ForTokenClassification")
    ours.resize_token_embeddings(80)
    base = ours.transformer
    assert base.shared.weight is base.encoder.embed_tokens.weight
    assert base.shared is not base.encoder.embed_tokens
    assert base.encoder.embed_tokens.num_embeddings == 80


def test_a_decoder_without_bias_is_resized(tmp_path: Path) -> None:
    theirs, ours = pair(tmp_path, "ModernBert", "ForMaskedLM", decoder_bias=False)
    for model in (theirs, ours):
        model.resize_token_embeddings(63)
    copy_new_values(ours, theirs)
    assert_same(run(ours), run(theirs))


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_are_the_mean_of_the_old_ones_or_random(tmp_path: Path, tied: bool) -> None:
    theirs, ours = pair(tmp_path, "Bert", "ForMaskedLM", tie_word_embeddings=tied)
    for model in (theirs, ours):
        old = model.get_input_embeddings().weight.detach().clone()
        bias = model.get_output_embeddings().bias.detach().clone()
        model.resize_token_embeddings(64)
        assert_same(model.get_input_embeddings().weight[61:], old.mean(dim=0).expand(3, -1), 1e-3)
        assert_same(model.get_output_embeddings().bias[61:], bias.mean().expand(3) * (not tied), 1e-3)
    ours.resize_token_embeddings(64 + 4000, mean_resizing=False)
    assert abs(float(ours.get_input_embeddings().weight[64:].detach().std()) - 0.3) < 0.01
    assert not ours.get_output_embeddings().bias[64:].any()


@pytest.mark.parametrize(
    ("size", "multiple", "expected"), [(None, None, 61), (None, 8, 64), (65, 8, 72), (64, 8, 64), (61, None, 61)]
)
def test_sizes_are_rounded_up_as_transformers_rounds(
    tmp_path: Path, size: int | None, multiple: int | None, expected: int
) -> None:
    for model in pair(tmp_path, "Bert", "ForMaskedLM"):
        model.resize_token_embeddings(size, pad_to_multiple_of=multiple)
        assert model.get_input_embeddings().num_embeddings == model.config.vocab_size == expected
        assert model.get_output_embeddings().weight.shape[0] == expected


def test_nothing_changes_where_the_size_does_not(tmp_path: Path) -> None:
    _, ours = pair(tmp_path, "Bert", "ForMaskedLM")
    before = [id(parameter) for parameter in ours.parameters()]
    for size in (None, 61):
        ours.resize_token_embeddings(size)
    assert [id(parameter) for parameter in ours.parameters()] == before


@pytest.mark.parametrize("size", [0, -1, 61.0, "64", True, 2**24 + 1])
def test_sizes_that_are_none_are_refused(tmp_path: Path, size: Any) -> None:
    _, ours = pair(tmp_path, "Bert", "Model")
    with pytest.raises(OptionError, match=r"^resize_token_embeddings: .*expected .*, got "):
        ours.resize_token_embeddings(size)
    with pytest.raises(OptionError, match=r"^resize_token_embeddings: .*expected .*, got "):
        ours.resize_token_embeddings(61, pad_to_multiple_of=size)
    assert ours.config.vocab_size == 61


def test_a_layer_without_weight_is_refused_before_anything_changes(tmp_path: Path) -> None:
    _, ours = pair(tmp_path, "Bert", "ForMaskedLM", tie_word_embeddings=False)
    ours.cls["predictions"].decoder = nn.Sequential(ours.cls["predictions"].decoder)
    with pytest.raises(
        OptionError,
        match=r"^resize_token_embeddings: cls.predictions.decoder: expected a layer with a weight, got a Sequential$",
    ):
        ours.resize_token_embeddings(70)
    assert ours.get_input_embeddings().weight.shape == (61, 24)


def test_dtype_and_frozen_parameters_stay_as_they_are(tmp_path: Path) -> None:
    _, ours = pair(tmp_path, "Bert", "ForMaskedLM")
    ours.bfloat16().get_input_embeddings().requires_grad_(False)
    ours.resize_token_embeddings(70)
    words = ours.get_input_embeddings().weight
    assert words.dtype == torch.bfloat16
    assert not words.requires_grad
    assert ours.get_output_embeddings().bias.requires_grad


@pytest.mark.parametrize(("family", "tag"), [("Bert", "ForMaskedLM"), ("ModernBert", "Model"), ("MT5", "EncoderModel")])
def test_other_word_embeddings_can_be_set(tmp_path: Path, family: str, tag: str) -> None:
    theirs, ours = pair(tmp_path, family, tag)
    run(ours)
    table = nn.Embedding(90, 24)
    for model in (theirs, ours):
        mine = copy.deepcopy(table)
        model.set_input_embeddings(mine)
        assert model.get_input_embeddings() is mine
    ids = IDS.clone()
    ids[0, 0] = 89
    assert_same(run(ours, ids), run(theirs, ids))
    assert_same(run(copy.deepcopy(ours), ids), run(theirs, ids))
    run(ours, ids).sum().backward()
    assert ours.get_input_embeddings().weight.grad[89].any()
    with pytest.raises(OptionError, match=r"^set_input_embeddings: expected an nn.Embedding, got Linear$"):
        ours.set_input_embeddings(nn.Linear(2, 3))


@pytest.mark.parametrize(("family", "tag"), HEADS)
def test_another_decoder_can_be_set(tmp_path: Path, family: str, tag: str) -> None:
    theirs, ours = pair(tmp_path, family, tag)
    run(ours)
    old = ours.get_output_embeddings()
    layer = nn.Linear(old.in_features, old.out_features)
    for model in (theirs, ours):
        mine = copy.deepcopy(layer)
        model.set_output_embeddings(mine)
        assert model.get_output_embeddings() is mine
    assert_same(run(ours), run(theirs))


def test_classes_without_a_decoder_say_so(tmp_path: Path) -> None:
    for theirs, ours in (
        pair(tmp_path / "a", "Bert", "ForNextSentencePrediction"), pair(tmp_path / "b", "MT5", "EncoderModel")
    ):  # fmt: skip
        assert ours.get_output_embeddings() is theirs.get_output_embeddings() is None
        with pytest.raises(OptionError, match=r"^set_output_embeddings: \w+ has no output embeddings$"):
            ours.set_output_embeddings(nn.Linear(2, 3))
