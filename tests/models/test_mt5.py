"""mT5's encoder: both classes against transformers on each text alone, long texts, half precision, names and ties."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn import functional as F

import padless
from padless.engine.batch import PackedBatch, TokenizedTexts, pack
from padless.engine.errors import ConfigError, InputError, OptionError, WeightsError

TINY: dict[str, Any] = {
    "vocab_size": 61,
    "d_model": 24,
    "d_kv": 5,
    "d_ff": 28,
    "num_layers": 3,
    "num_heads": 3,
    "relative_attention_num_buckets": 12,
    "relative_attention_max_distance": 20,
    "dropout_rate": 0.0,
}
LENGTHS = (5, 1, 41, 4)
KINDS = ("EncoderModel", "ForTokenClassification")

OPTIONS: dict[str, dict[str, Any]] = {
    "d_model": {"d_model": 33},
    "d_kv": {"d_kv": 16},
    "d_ff": {"d_ff": 19},
    "one layer": {"num_layers": 1},
    "no layers": {"num_layers": 0},
    "one head": {"num_heads": 1},
    "vocabulary": {"vocab_size": 77},
    "four buckets": {"relative_attention_num_buckets": 4},
    "odd number of buckets": {"relative_attention_num_buckets": 11},
    "buckets of mt5": {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128},
    "short distance": {"relative_attention_max_distance": 4},
    "large eps": {"layer_norm_epsilon": 0.3},
    "relu": {"feed_forward_proj": "relu"},
    "gelu": {"feed_forward_proj": "gelu"},
    "gelu_new": {"feed_forward_proj": "gelu_new"},
    "gated-relu": {"feed_forward_proj": "gated-relu"},
    "gated-silu": {"feed_forward_proj": "gated-silu"},
    "gated-gelu_new": {"feed_forward_proj": "gated-gelu_new"},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Most cases here are so small that two threads would spend their time waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def their_model(kind: str, dtype: torch.dtype = torch.float32, **fields: Any) -> Any:
    """transformers' model of random weights; fresh norms and small biases on positions would hide mistakes."""
    with torch.random.fork_rng():
        torch.manual_seed(13)
        model = getattr(transformers, f"MT5{kind}")(transformers.MT5Config(**{**TINY, **fields}))
        model.set_attn_implementation("eager")  # the one that returns attentions
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() == 1 or "relative_attention_bias" in name:
                    parameter.add_(torch.randn_like(parameter) * 0.5)
    return model.to(dtype).eval()


def with_wide_norms(model: Any) -> Any:
    """transformers takes the mean square in fp32 whatever the model is; an oracle for fp64 must not."""

    def scaled(norm: Any, x: Tensor) -> Tensor:
        return norm.weight * (x / torch.sqrt(x.square().mean(dim=-1, keepdim=True) + norm.variance_epsilon))

    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.forward = scaled.__get__(module)
    return model


def our_model(theirs: Any, folder: Path, **options: Any) -> Any:
    """The class of that name, loaded from what transformers saves."""
    theirs.save_pretrained(folder)
    return getattr(padless, type(theirs).__name__).from_pretrained(folder, **options)


def texts(lengths: Sequence[int] = LENGTHS) -> list[Tensor]:
    draw = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(61, (length,), generator=draw) for length in lengths]


def packed(ids: list[Tensor]) -> PackedBatch:
    lengths = np.array([len(text) for text in ids], dtype=np.int32)
    flags = np.zeros(len(ids), dtype=bool)
    flat = torch.cat(ids).numpy().astype(np.int32)
    return pack(TokenizedTexts(flat, lengths, None, flags, flags), np.arange(len(ids)))


def in_rows(parts: Sequence[Tensor], side: str, fill: int = 0) -> Tensor:
    """`[texts, longest + 2]`."""
    width = max(map(len, parts)) + 2
    ends = [(width - len(part), 0) if side == "left" else (0, width - len(part)) for part in parts]
    return torch.stack([F.pad(part, end, value=fill) for part, end in zip(parts, ends, strict=True)])


def padded(ids: list[Tensor], side: str) -> dict[str, Tensor]:
    return {"input_ids": in_rows(ids, side), "attention_mask": in_rows([torch.ones_like(text) for text in ids], side)}


def alone(model: Any, ids: list[Tensor], **options: Any) -> list[Any]:
    """transformers' outputs, one text after the other."""
    return [model(text[None], **options) for text in ids]


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert actual.shape == expected.shape
    bound = tolerance * max(1.0, expected.abs().max().item())
    assert (actual.double() - expected.double()).abs().max().item() <= bound


@pytest.mark.parametrize("form", ["left", "right", "packed"])
@pytest.mark.parametrize("proj", ["gated-gelu", "relu"])
@pytest.mark.parametrize("kind", KINDS)
def test_both_classes_give_what_transformers_gives_each_text_alone(
    kind: str, proj: str, form: str, tmp_path: Path
) -> None:
    theirs = their_model(kind, feed_forward_proj=proj)
    ours = our_model(theirs, tmp_path)
    ids = texts()
    everything = {"output_hidden_states": True, "output_attentions": True}
    call = padded(ids, "right" if form == "packed" else form)
    mask = call["attention_mask"].bool()
    with torch.no_grad():
        expected = alone(theirs, ids, **everything)
        found = ours(packed(ids), **everything) if form == "packed" else ours(**call, **everything)
    assert list(found) == [name for name in expected[0] if name != "cross_attentions"]
    first = "logits" if kind == "ForTokenClassification" else "last_hidden_state"
    for x, parts in [
        (found[first], [e[first] for e in expected]),
        *((found.hidden_states[layer], [e.hidden_states[layer] for e in expected]) for layer in range(4)),
    ]:
        assert_close(x if form == "packed" else x[mask], torch.cat([part[0] for part in parts]))
        assert form == "packed" or not x[~mask].any()
    for layer in range(3):
        for row, one in enumerate(expected):
            kept = slice(0, LENGTHS[row]) if form == "packed" else mask[row]
            assert_close(found.attentions[layer][row][:, kept][:, :, kept], one.attentions[layer][0])
    assert ours.num_parameters() == theirs.num_parameters()


@pytest.mark.parametrize("form", ["left", "right", "packed"])
def test_the_loss_is_that_of_transformers(form: str, tmp_path: Path) -> None:
    theirs = their_model("ForTokenClassification", num_labels=5)
    ours = our_model(theirs, tmp_path)
    ids = texts()
    labels = [text % 5 for text in ids]
    labels[2][7:30] = -100
    with torch.no_grad():
        expected = theirs(**padded(ids, "right"), labels=in_rows(labels, "right", -100)).loss
        if form == "packed":
            found = ours(packed(ids), labels=torch.cat(labels)).loss
        else:
            found = ours(**padded(ids, form), labels=in_rows(labels, form, -100)).loss
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fields", OPTIONS.values(), ids=OPTIONS.keys())
def test_every_option_that_changes_the_maths(fields: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    theirs = their_model("EncoderModel", dtype, **fields)
    ours = our_model(theirs, tmp_path)
    assert ours.dtype == dtype
    if dtype == torch.float64:
        with_wide_norms(theirs)
    ids = texts()
    with torch.no_grad():
        expected = torch.cat([one.last_hidden_state[0] for one in alone(theirs, ids)])
        assert_close(ours(packed(ids)).last_hidden_state, expected, 1e-5 if dtype == torch.float32 else 1e-10)


@pytest.mark.parametrize("backend", ["auto", "cpu", "eager"])
def test_texts_far_longer_than_the_longest_distance(backend: str, tmp_path: Path) -> None:
    theirs = their_model(
        "EncoderModel", relative_attention_num_buckets=32, relative_attention_max_distance=128, num_layers=2
    )
    ours = our_model(theirs, tmp_path, backend=backend)
    assert ours.longest is None
    ids = texts((417, 3, 130, 128))
    with torch.no_grad():
        expected = torch.cat([one.last_hidden_state[0] for one in alone(theirs, ids)])
        assert_close(ours(packed(ids)).last_hidden_state, expected)
        call = padded(ids, "left")
        assert_close(ours(**call).last_hidden_state[call["attention_mask"].bool()], expected)


def test_the_bias_of_the_first_layer_serves_all(tmp_path: Path) -> None:
    theirs = their_model("EncoderModel")
    ours = our_model(theirs, tmp_path)
    assert [name for name in ours.state_dict() if "relative_attention_bias" in name] == [
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    ]
    ids = texts((30,))
    with torch.no_grad():
        before = ours(packed(ids), output_attentions=True).attentions[2]
        for model in (theirs, ours):
            model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.zero_()
        after = ours(packed(ids), output_attentions=True).attentions[2]
        assert (after - before).abs().max().item() > 0.01
        assert_close(after, theirs(ids[0][None], output_attentions=True).attentions[2])


@pytest.mark.parametrize("side", ["left", "right"])
def test_embeddings_of_the_caller(side: str, tmp_path: Path) -> None:
    theirs = their_model("EncoderModel")
    ours = our_model(theirs, tmp_path)
    ids = texts()
    vectors = [torch.randn(len(text), 24, generator=torch.Generator().manual_seed(len(text))) for text in ids]
    mask = padded(ids, side)["attention_mask"]
    rows = torch.zeros(*mask.shape, 24)
    rows[mask.bool()] = torch.cat(vectors)
    with torch.no_grad():
        expected = [theirs(inputs_embeds=vector[None]).last_hidden_state[0] for vector in vectors]
        # The third argument, as in transformers.
        found = ours(None, mask, rows).last_hidden_state
    assert_close(found[mask.bool()], torch.cat(expected))


def test_tokens_that_a_mask_leaves_out_inside_a_text_are_not_there(tmp_path: Path) -> None:
    theirs = their_model("EncoderModel")
    ours = our_model(theirs, tmp_path)
    ids = texts()[2][None]
    mask = torch.ones_like(ids)
    mask[0, [0, 3, 4, 11, 40]] = 0
    with torch.no_grad():
        expected = theirs(ids[mask.bool()][None]).last_hidden_state[0]
        assert_close(ours(ids, mask).last_hidden_state[mask.bool()], expected)


@pytest.mark.parametrize("name", ["token_type_ids", "position_ids", "decoder_input_ids"])
@pytest.mark.parametrize("kind", KINDS)
def test_arguments_that_mean_nothing_here_are_refused(kind: str, name: str) -> None:
    model = getattr(padless, f"MT5{kind}")(padless.MT5Config(**TINY))
    with pytest.raises(OptionError, match=name):
        model(torch.tensor([[3, 4]]), **{name: torch.tensor([[0, 1]])})
    with pytest.raises(InputError, match="input_ids: expected 0 to 60, got 61"):
        model(torch.tensor([[3, 61]]))


@pytest.mark.parametrize("proj", ["gated-gelu", "relu"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_transformers(kind: str, proj: str, tmp_path: Path) -> None:
    theirs = their_model(kind, torch.float64, feed_forward_proj=proj).train()
    ours = our_model(theirs, tmp_path).train()
    with_wide_norms(theirs)
    ids = texts()
    direction = torch.randn(sum(LENGTHS), 24 if kind == "EncoderModel" else 2, dtype=torch.float64)
    (torch.cat([one[0][0] for one in alone(theirs, ids)]) * direction).sum().backward()
    (ours(packed(ids))[0] * direction).sum().backward()
    wanted = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert set(wanted) == {name for name, _ in ours.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert_close(parameter.grad, wanted[name], 1e-10)


# Training.


def test_dropout_acts_in_training_and_only_there(tmp_path: Path) -> None:
    ours = our_model(their_model("EncoderModel", dropout_rate=0.5), tmp_path)
    batch = packed(texts())
    with torch.no_grad():
        calm = ours(batch).last_hidden_state
        assert torch.equal(ours(batch).last_hidden_state, calm)
        assert (ours.train()(batch).last_hidden_state == 0).double().mean().item() == pytest.approx(0.5, abs=0.1)
        assert torch.equal(ours.eval()(batch).last_hidden_state, calm)


@pytest.mark.parametrize("proj", ["gated-gelu", "relu"])
def test_dropout_spreads_the_outputs_as_that_of_transformers_does(proj: str, tmp_path: Path) -> None:
    """A site that is left out, or one too many, changes the spread: of each by more than the estimate is off."""
    theirs = their_model("EncoderModel", num_layers=1, dropout_rate=0.2, feed_forward_proj=proj)
    ours = our_model(theirs, tmp_path).train()
    theirs.train()
    ids = texts((4,)) * 2000
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(7)
        # Before the last norm, whose own dropout would drown the others.
        norms = (theirs.encoder.final_layer_norm, ours.encoder.final_layer_norm)
        seen: list[Tensor] = []
        for norm in norms:
            norm.register_forward_pre_hook(lambda _, given: seen.append(given[0].view(2000, 4, 24)))
        theirs(torch.stack(ids))
        ours(packed(ids))
    expected, found = seen
    spread = expected.std(dim=0)
    # Standard errors: of a mean spread / sqrt(2000), of the mean of 96 spreads about 1 / sqrt(2 * 2000 * 96).
    assert ((found.mean(dim=0) - expected.mean(dim=0)) / spread).abs().max().item() < 5 * (2 / 2000) ** 0.5
    assert (found.std(dim=0) / spread).mean().item() == pytest.approx(1.0, abs=0.01)


def test_the_classifier_has_a_dropout_of_its_own(tmp_path: Path) -> None:
    theirs = their_model("ForTokenClassification", classifier_dropout=0.5)
    ours = our_model(theirs, tmp_path).train()
    batch = packed(texts())
    with torch.no_grad():
        assert (ours(batch).logits - ours(batch).logits).abs().max().item() > 0.1
        quiet = ours.transformer(batch).last_hidden_state
        assert torch.equal(ours.transformer(batch).last_hidden_state, quiet)


def test_fresh_weights_follow_the_rule_of_t5() -> None:
    fields = {**TINY, "d_model": 64, "d_kv": 9, "d_ff": 50, "initializer_factor": 3.0, "num_labels": 40}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = padless.MT5ForTokenClassification(padless.MT5Config(**fields))
    rule = {
        "shared": 1.0,
        "q": (64 * 9) ** -0.5,
        "k": 64**-0.5,
        "v": 64**-0.5,
        "o": 27**-0.5,
        "relative_attention_bias": 64**-0.5,
        "wi_0": 64**-0.5,
        "wi_1": 64**-0.5,
        "wo": 50**-0.5,
        "classifier": 1.0,
    }
    for name, parameter in model.named_parameters():
        layer = name.split(".")[-2]
        if name == "classifier.bias":
            assert not parameter.any()
        elif "norm" in layer:
            assert bool((parameter == 3).all()), name
        else:
            # The estimate of a standard deviation from n values is off by 1 / sqrt(2n) of it.
            close = pytest.approx(3 * rule[layer], rel=5 / (2 * parameter.numel()) ** 0.5)
            assert parameter.std().item() == close, name


# Half precision.


def cosines(a: Tensor, b: Tensor) -> Tensor:
    return F.cosine_similarity(a.double(), b.double(), dim=-1)


@pytest.mark.parametrize("proj", ["gated-gelu", "relu"])
def test_fp16_carries_a_residual_stream_beyond_its_range(proj: str, tmp_path: Path) -> None:
    theirs = their_model("EncoderModel", feed_forward_proj=proj)
    ids = texts()
    planted = theirs.encoder.block[0].layer[1].DenseReluDense
    seen: list[Tensor] = []
    hook = planted.register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.no_grad():
        alone(theirs, ids)
        hook.remove()
        planted.wo.weight.mul_(7e4 / min(out.abs().max() for out in seen))
        full = our_model(theirs, tmp_path)
        half = type(full).from_pretrained(tmp_path, dtype="float16")
        expected = full(packed(ids), output_hidden_states=True)
        found = half(packed(ids), output_hidden_states=True)
    assert expected.hidden_states[1].abs().max().item() > torch.finfo(torch.float16).max
    assert found.last_hidden_state.dtype == torch.float16
    assert {state.dtype for state in found.hidden_states[:-1]} == {torch.float32}
    for ours, wanted in zip(found.hidden_states, expected.hidden_states, strict=True):
        assert bool(torch.isfinite(ours).all())
        assert cosines(ours, wanted).min().item() >= 0.999


def test_the_product_of_the_gate_may_leave_the_range_of_fp16(tmp_path: Path) -> None:
    theirs = their_model("EncoderModel", num_layers=1)
    feed_forward = theirs.encoder.block[0].layer[1].DenseReluDense
    ids = texts()
    seen: list[Tensor] = []
    feed_forward.wo.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        for layer in (feed_forward.wi_0, feed_forward.wi_1):
            layer.weight.mul_(120)
        full = our_model(theirs, tmp_path)
        expected = torch.cat([one.last_hidden_state[0] for one in alone(theirs, ids)])
        found = type(full).from_pretrained(tmp_path, dtype=torch.float16)(packed(ids)).last_hidden_state
    assert max(inner.abs().max().item() for inner in seen) > torch.finfo(torch.float16).max
    assert cosines(found, expected).min().item() >= 0.999


def widths(model: Any) -> dict[torch.dtype, set[str]]:
    found: dict[torch.dtype, set[str]] = {}
    for name, parameter in model.named_parameters():
        found.setdefault(parameter.dtype, set()).add(name.split(".")[-2])
    return found


def test_what_feeds_the_residual_stream_stays_fp32_in_fp16_alone(tmp_path: Path) -> None:
    theirs = their_model("EncoderModel")
    ours = our_model(theirs, tmp_path)
    others = {"shared", "q", "k", "v", "o", "relative_attention_bias", "layer_norm", "wi_0", "wi_1", "final_layer_norm"}
    assert widths(ours.half()) == {torch.float16: others, torch.float32: {"wo"}}
    assert ours.dtype == torch.float16
    wo = ours.encoder.block[1].layer[1].DenseReluDense.wo.weight
    assert torch.equal(wo, theirs.encoder.block[1].layer[1].DenseReluDense.wo.weight)  # not rounded on the way
    assert widths(ours.to(torch.bfloat16)) == {torch.bfloat16: others | {"wo"}}
    assert widths(ours.double()) == {torch.float64: others | {"wo"}}
    assert widths(ours.to(torch.float16)) == {torch.float16: others, torch.float32: {"wo"}}
    with torch.no_grad():
        assert bool(torch.isfinite(ours(packed(texts())).last_hidden_state).all())


def test_a_checkpoint_in_fp16_is_written_and_read_as_transformers_does(tmp_path: Path) -> None:
    theirs = their_model("EncoderModel")
    ours = our_model(theirs, tmp_path / "theirs", dtype="float16")
    ours.save_pretrained(tmp_path / "ours")
    read = type(theirs).from_pretrained(tmp_path / "ours")
    again = type(ours).from_pretrained(tmp_path / "ours")
    assert read.dtype == again.dtype == torch.float16
    assert widths(read) == widths(again) == widths(ours)
    for name, expected in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], expected), name
        assert torch.equal(read.state_dict()[name], expected), name
    with torch.no_grad():
        found = ours(packed(texts())).last_hidden_state
        assert torch.equal(again(packed(texts())).last_hidden_state, found)
        expected = torch.cat([one.last_hidden_state[0] for one in alone(theirs, texts())])
        assert cosines(found, expected).min().item() >= 0.999


def test_bf16_is_as_near_to_fp32_as_that_of_transformers(tmp_path: Path) -> None:
    theirs = their_model("EncoderModel").to(torch.bfloat16)
    ids = texts()
    with torch.no_grad():
        ours = our_model(theirs, tmp_path)
        assert ours.dtype == torch.bfloat16
        found = ours(packed(ids)).last_hidden_state
        low = torch.cat([one.last_hidden_state[0] for one in alone(theirs, ids)])
        exact = torch.cat([one.last_hidden_state[0] for one in alone(theirs.float(), ids)])
    assert found.dtype == torch.bfloat16
    assert cosines(found, exact).min().item() >= min(0.999, 1 - 2 * (1 - cosines(low, exact).min().item()))


# Checkpoints.


@pytest.mark.parametrize("shard", [5_000_000_000, 9_000])
@pytest.mark.parametrize("proj", ["gated-gelu", "relu"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_we_save_is_what_transformers_saves(kind: str, proj: str, shard: int, tmp_path: Path) -> None:
    theirs = their_model(kind, feed_forward_proj=proj)
    ours = our_model(theirs, tmp_path / "theirs")
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.save_pretrained(tmp_path / "ours", max_shard_size=shard)
    if shard > 9_000:
        with safe_open(tmp_path / "ours" / "model.safetensors", "pt") as file:
            names = set(file.keys())
        with safe_open(tmp_path / "theirs" / "model.safetensors", "pt") as file:
            assert names == set(file.keys())
    read, report = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    again = type(ours).from_pretrained(tmp_path / "ours")
    for name, expected in theirs.state_dict().items():
        assert torch.equal(read.state_dict()[name], expected), name
        assert torch.equal(again.state_dict()[name], expected), name
    for name in (*TINY, "layer_norm_epsilon", "feed_forward_proj", "dense_act_fn", "is_gated_act", "id2label"):
        assert getattr(read.config, name) == getattr(theirs.config, name), name


def whole_model(folder: Path) -> Any:
    """A checkpoint of encoder, decoder and an output layer of its own, as google/mt5-small is."""
    theirs = their_model("ForConditionalGeneration", num_decoder_layers=2)
    theirs.save_pretrained(folder)
    stored = load_file(folder / "model.safetensors")
    output = torch.randn(61, 24, generator=torch.Generator().manual_seed(2))
    save_file({**stored, "lm_head.weight": output}, folder / "model.safetensors")
    return theirs


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_whole_model_the_encoder_is_taken(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs = whole_model(tmp_path)
    with caplog.at_level(logging.INFO):
        ours = getattr(padless, f"MT5{kind}").from_pretrained(tmp_path)
    dropped = [r.getMessage() for r in caplog.records if "this model does not have" in r.getMessage()]
    assert len(dropped) == 1
    assert "decoder." in dropped[0]
    assert "lm_head" in dropped[0] or "more" in dropped[0]
    assert any("initialised at random" in r.getMessage() for r in caplog.records) == (kind == "ForTokenClassification")
    ids = texts()
    with torch.no_grad():
        expected = torch.cat([one.last_hidden_state[0] for one in alone(theirs.get_encoder(), ids)])
        assert_close(ours.base_model(packed(ids)).last_hidden_state, expected)


NAMES = {
    "shared": ["shared.weight"],
    "encoder": ["encoder.embed_tokens.weight"],
    "encoder and decoder": ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"],
    "all of them": ["shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"],
    "decoder": ["decoder.embed_tokens.weight"],
}


@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES.keys())
def test_the_word_embeddings_under_each_of_their_names(
    names: list[str], kind: str, prefix: str, tmp_path: Path
) -> None:
    whole_model(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    table = stored.pop("shared.weight")
    stored |= {name: table.clone() for name in names}
    save_file({prefix + name: value for name, value in stored.items()}, tmp_path / "model.safetensors")
    base = getattr(padless, f"MT5{kind}").from_pretrained(tmp_path).base_model
    assert torch.equal(base.shared.weight, table)
    assert base.encoder.embed_tokens.weight is base.shared.weight
    assert base.get_input_embeddings() is base.shared


@pytest.mark.parametrize("names", [NAMES["encoder and decoder"], NAMES["all of them"]], ids=len)
def test_word_embeddings_that_differ_are_ambiguous(names: list[str], tmp_path: Path) -> None:
    whole_model(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    table = stored.pop("shared.weight")
    stored |= {name: table.clone() for name in names}
    stored[names[-1]][60, 23] += 1e-3
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="their values differ") as error:
        padless.MT5EncoderModel.from_pretrained(tmp_path)
    assert names[-1] in str(error.value)


@pytest.mark.parametrize("tied", [True, False])
def test_an_output_layer_is_never_taken_for_the_word_embeddings(tied: bool, tmp_path: Path) -> None:
    whole_model(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    del stored["shared.weight"]
    assert "lm_head.weight" in stored
    save_file(stored, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": tied}))
    with pytest.raises(WeightsError, match=r"missing: .*shared\.weight"):
        padless.MT5EncoderModel.from_pretrained(tmp_path)


def test_a_copy_keeps_its_ties_and_its_joined_weights(tmp_path: Path) -> None:
    ours = our_model(their_model("EncoderModel"), tmp_path).requires_grad_(False)
    for model in (ours, copy.deepcopy(ours), copy.deepcopy(ours).to(torch.float64), copy.deepcopy(ours).half()):
        assert model.encoder.embed_tokens.weight is model.shared.weight
        attention = model.encoder.block[1].layer[0].SelfAttention
        feed_forward = model.encoder.block[1].layer[1].DenseReluDense
        for layers in ((attention.q, attention.k, attention.v), (feed_forward.wi_0, feed_forward.wi_1)):
            buffers = {layer.weight.untyped_storage().data_ptr() for layer in layers}
            assert len(buffers) == 1
    other = copy.deepcopy(ours)
    batch = packed(texts())
    before = ours(batch).last_hidden_state
    with torch.no_grad():
        other.shared.weight.mul_(2)
    assert torch.equal(ours(batch).last_hidden_state, before)
    assert (other(batch).last_hidden_state - before).abs().max().item() > 0.1


# Configurations.


def test_the_configuration_has_the_defaults_of_transformers() -> None:
    ours, theirs = padless.MT5Config(), transformers.MT5Config()
    for name, value in ours.to_dict().items():
        if name != "layer_norm_eps":
            assert getattr(theirs, name) == value, name
    assert set(transformers.MT5Config.__annotations__) - {"model_type"} <= set(ours.to_dict())


def test_fields_read_and_are_set_under_their_other_names(tmp_path: Path) -> None:
    others: dict[str, Any] = {"num_attention_heads": 2, "num_hidden_layers": 1, "layer_norm_epsilon": 0.5}
    config = padless.MT5Config(d_model=20, **others)
    assert (config.hidden_size, config.num_heads, config.num_layers, config.layer_norm_eps) == (20, 2, 1, 0.5)
    config.hidden_size = 30
    assert config.d_model == 30
    config.save_pretrained(tmp_path)
    assert transformers.MT5Config.from_pretrained(tmp_path).layer_norm_epsilon == 0.5
    assert padless.MT5Config.from_pretrained(tmp_path) == config
    assert padless.MT5Config.from_pretrained(tmp_path, layer_norm_epsilon=0.25).layer_norm_eps == 0.25
    assert padless.MT5Config.from_pretrained(tmp_path, hidden_size=40).d_model == 40
    assert padless.MT5Config.from_dict({"layer_norm_epsilon": 0.1, "num_heads": 7}, source="x").layer_norm_eps == 0.1


@pytest.mark.parametrize(
    ("proj", "activation", "gated"),
    [("gated-gelu", "gelu_new", True), ("relu", "relu", False), ("gelu", "gelu", False), ("gated-silu", "silu", True)],
)
def test_the_feed_forward_is_parsed_as_transformers_does(proj: str, activation: str, gated: bool) -> None:
    for config in (padless.MT5Config(feed_forward_proj=proj), transformers.MT5Config(feed_forward_proj=proj)):
        assert (config.dense_act_fn, config.is_gated_act) == (activation, gated)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("feed_forward_proj", "gated"),
        ("feed_forward_proj", "gated-foo"),
        ("feed_forward_proj", "foo-gelu"),
        ("feed_forward_proj", "gated-gated-gelu"),
        ("dense_act_fn", "relu"),
        ("is_gated_act", False),
        ("relative_attention_num_buckets", 3),
        ("relative_attention_max_distance", 3),
        ("num_heads", 0),
        ("d_model", "24"),
        ("dropout_rate", 1.5),
        ("layer_norm_epsilon", -1.0),
    ],
)
def test_a_configuration_that_cannot_be_run_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field) as error:
        padless.MT5Config.from_dict({**TINY, field: value}, source="here.json")
    assert str(error.value).startswith("here.json: ")


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_is_a_configuration_that_is_not_built_yet(kind: str) -> None:
    with pytest.raises(ConfigError, match="is_decoder: the decoder is not built yet"):
        getattr(padless, f"MT5{kind}")(padless.MT5Config(**TINY, is_decoder=True))


# From a folder.


def write_tokenizer(folder: Path) -> int:
    pieces = [
        "<pad>",
        "</s>",
        "<unk>",
        "▁",
        *(f"▁{word}" for word in ("the", "sun", "moon", "and")),
        *"abcdefghiklmnorstu",
    ]
    tokenizer = Tokenizer(models.Unigram([(piece, -float(row)) for row, piece in enumerate(pieces)], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 0}))
    return len(pieces)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_load_embeds_texts_of_any_length_with_the_mean_of_their_tokens(dtype: str, tmp_path: Path) -> None:
    whole_model(tmp_path)
    write_tokenizer(tmp_path)
    theirs = transformers.MT5EncoderModel.from_pretrained(tmp_path).eval()
    encoder = padless.load(tmp_path, task="embedding", device="cpu", dtype=dtype)
    assert encoder.max_seq_length is None
    lines = ["the sun and the moon", "a", "the moon " * 90, ""]
    found = torch.from_numpy(encoder.encode(lines))
    assert found.shape == (4, 24)
    with torch.no_grad():
        for line, vector in zip(lines, found, strict=True):
            ids = torch.from_numpy(encoder.tokenizer.encode([line]).input_ids).long()[None]
            expected = theirs(ids).last_hidden_state[0].mean(dim=0)
            if dtype == "float32":
                assert_close(vector, expected)
            else:
                assert cosines(vector, expected).item() >= 0.999


def test_auto_classes_choose_this_family(tmp_path: Path) -> None:
    whole_model(tmp_path)
    assert type(padless.AutoConfig.from_pretrained(tmp_path)) is padless.MT5Config
    assert type(padless.AutoModel.from_pretrained(tmp_path)) is padless.MT5Model
    head = padless.AutoModelForTokenClassification.from_pretrained(tmp_path, num_labels=4)
    assert type(head) is padless.MT5ForTokenClassification
    assert isinstance(head.classifier, nn.Linear)
    assert head.classifier.weight.shape == (4, 24)
    with pytest.raises(ConfigError, match="ForMaskedLM"):
        padless.AutoModelForMaskedLM.from_pretrained(tmp_path)
