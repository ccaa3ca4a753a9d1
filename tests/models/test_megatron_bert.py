"""MegatronBERT: every class against transformers on each text alone, and what is this family's own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

import padless
from padless.engine.batch import PackedBatch, TokenizedTexts, pack
from padless.engine.errors import ConfigError, OptionError, WeightsError

TINY: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 36,
    "max_position_embeddings": 23,
    "initializer_range": 0.2,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
LENGTHS = (5, 1, 23, 4)
HEADS = (
    "ForPreTraining",
    "ForMaskedLM",
    "ForNextSentencePrediction",
    "ForSequenceClassification",
    "ForMultipleChoice",
    "ForTokenClassification",
    "ForQuestionAnswering",
)
OF_TOKENS = {"ForPreTraining", "ForMaskedLM", "ForTokenClassification"}

OPTIONS: dict[str, dict[str, Any]] = {
    "odd sizes": {"hidden_size": 33, "num_attention_heads": 11, "intermediate_size": 37, "vocab_size": 67},
    "one head": {"num_attention_heads": 1},
    "gelu_new": {"hidden_act": "gelu_new"},
    "relu": {"hidden_act": "relu"},
    "silu": {"hidden_act": "silu"},
    "tanh": {"hidden_act": "tanh"},
    "large eps": {"layer_norm_eps": 0.1},
    "one type": {"type_vocab_size": 1},
    "five layers": {"num_hidden_layers": 5},
    "no layers": {"num_hidden_layers": 0},
    "decoder apart from the embeddings": {"tie_word_embeddings": False},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Most cases here are so small that two threads would spend their time waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def their_model(kind: str, dtype: torch.dtype = torch.float32, **fields: Any) -> Any:
    """transformers' model of random weights; fresh biases and norms would hide mistakes, so these are random too."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model = getattr(transformers, f"MegatronBert{kind}")(transformers.MegatronBertConfig(**{**TINY, **fields}))
        model.set_attn_implementation("eager")  # the one that returns attentions
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.to(dtype).eval()


def our_model(theirs: Any, folder: Path) -> Any:
    """The class of that name, loaded from what transformers saves."""
    theirs.save_pretrained(folder)
    return getattr(padless, type(theirs).__name__).from_pretrained(folder)


def texts(lengths: Sequence[int] = LENGTHS, vocabulary: int = 61, types: int = 2) -> tuple[list[Tensor], list[Tensor]]:
    """Random ids and types; [PAD], id 0, is left out, since transformers gives it no gradient."""
    draw = torch.Generator().manual_seed(sum(lengths))
    ids = [torch.randint(1, vocabulary, (length,), generator=draw) for length in lengths]
    return ids, [torch.randint(types, (length,), generator=draw) for length in lengths]


def packed(ids: list[Tensor], kinds: list[Tensor]) -> PackedBatch:
    lengths = np.array([len(text) for text in ids], dtype=np.int32)
    flags = np.zeros(len(ids), dtype=bool)
    flat, flat_kinds = (torch.cat(parts).numpy().astype(np.int32) for parts in (ids, kinds))
    return pack(TokenizedTexts(flat, lengths, flat_kinds, flags, flags), np.arange(len(ids)))


def in_rows(parts: Sequence[Tensor], side: str, fill: int = 0) -> Tensor:
    """`[texts, longest]`."""
    width = max(map(len, parts))
    ends = [(width - len(part), 0) if side == "left" else (0, width - len(part)) for part in parts]
    return torch.stack([F.pad(part, end, value=fill) for part, end in zip(parts, ends, strict=True)])


def padded(ids: list[Tensor], kinds: list[Tensor], side: str) -> dict[str, Tensor]:
    mask = in_rows([torch.ones_like(text) for text in ids], side)
    return {"input_ids": in_rows(ids, side), "attention_mask": mask, "token_type_ids": in_rows(kinds, side)}


def alone(model: Any, ids: list[Tensor], kinds: list[Tensor], *, choices: bool = False, **options: Any) -> list[Any]:
    """transformers' outputs, one text after the other."""
    calls = [{"input_ids": i[None], "token_type_ids": t[None]} for i, t in zip(ids, kinds, strict=True)]
    return [model(**{k: v[None] if choices else v for k, v in call.items()}, **options) for call in calls]


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert actual.shape == expected.shape
    bound = tolerance * max(1.0, expected.abs().max().item())
    assert (actual.double() - expected.double()).abs().max().item() <= bound


def assert_same_outputs(found: Any, expected: list[Any], mask: Tensor | None) -> None:
    """Each output of padded or packed texts is that of each text alone."""
    lengths = [e.hidden_states[0].shape[1] for e in expected]
    for name in (name for name in expected[0] if name != "cross_attentions"):
        layers = found[name] if isinstance(found[name], tuple) else (found[name],)
        for index, layer in enumerate(layers):
            parts = [e[name][index] if isinstance(e[name], tuple) else e[name] for e in expected]
            for row, part in enumerate(parts):
                if name == "attentions":
                    kept = slice(0, lengths[row]) if mask is None else mask[row].bool()
                    assert_close(layer[row][:, kept][:, :, kept], part[0])
                elif name not in ("pooler_output", "seq_relationship_logits") and part.shape[:2] == (1, lengths[row]):
                    tokens = layer.split(lengths)[row] if mask is None else layer[row][mask[row].bool()]
                    assert_close(tokens, part[0])
                else:
                    assert_close(layer[row], part[0])


@pytest.mark.parametrize("form", ["left", "right", "packed"])
@pytest.mark.parametrize("kind", ["Model", *(head for head in HEADS if head != "ForMultipleChoice")])
def test_every_class_gives_what_transformers_gives_each_text_alone(kind: str, form: str, tmp_path: Path) -> None:
    theirs = their_model(kind)
    ours = our_model(theirs, tmp_path)
    ids, kinds = texts(LENGTHS)
    everything = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        expected = alone(theirs, ids, kinds, **everything)
        if form == "packed":
            assert_same_outputs(ours(packed(ids, kinds), **everything), expected, None)
        else:
            call = padded(ids, kinds, form)
            assert_same_outputs(ours(**call, **everything), expected, call["attention_mask"])


@pytest.mark.parametrize("side", ["left", "right"])
def test_choices_are_scored_as_each_alone(side: str, tmp_path: Path) -> None:
    theirs = their_model("ForMultipleChoice")
    ours = our_model(theirs, tmp_path)
    ids, kinds = texts()
    call = {name: value.unflatten(0, (2, 2)) for name, value in padded(ids, kinds, side).items()}
    with torch.no_grad():
        expected = torch.cat([one.logits for one in alone(theirs, ids, kinds, choices=True)]).view(2, 2)
        found = ours(**call, labels=torch.tensor([0, 1]))
        assert_close(found.logits, expected)
        assert_close(ours(packed(ids, kinds), labels=torch.tensor([0, 1])).logits, expected)
    assert found.loss.item() == pytest.approx(F.cross_entropy(expected, torch.tensor([0, 1])).item(), rel=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", [kind for kind in HEADS if kind not in ("ForMultipleChoice", "ForQuestionAnswering")])
def test_losses_are_those_of_transformers(kind: str, side: str, tmp_path: Path) -> None:
    theirs = their_model(kind)
    ours = our_model(theirs, tmp_path)
    ids, kinds = texts()
    draw = torch.Generator().manual_seed(3)
    classes = 61 if kind in ("ForPreTraining", "ForMaskedLM") else 2
    of_texts = torch.randint(2, (len(ids),), generator=draw)
    of_tokens = [torch.randint(classes, (len(text),), generator=draw) for text in ids]
    of_tokens[2][4:9] = -100

    def labels(where: str) -> dict[str, Tensor]:
        more = {"next_sentence_label": of_texts} if kind == "ForPreTraining" else {}
        return {"labels": in_rows(of_tokens, where, -100) if kind in OF_TOKENS else of_texts, **more}

    with torch.no_grad():
        expected = theirs(**padded(ids, kinds, "right"), **labels("right")).loss
        found = ours(**padded(ids, kinds, side), **labels(side)).loss
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_loss_of_question_answering_is_the_mean_of_each_text_alone(side: str, tmp_path: Path) -> None:
    theirs = their_model("ForQuestionAnswering")
    ours = our_model(theirs, tmp_path)
    ids, kinds = texts()
    first, last = torch.tensor([1, 0, 20, 2]), torch.tensor([4, 0, 22, 2])
    call = padded(ids, kinds, side)
    shift = call["input_ids"].shape[1] - torch.tensor(LENGTHS) if side == "left" else 0
    with torch.no_grad():
        losses = [
            theirs(
                i[None], token_type_ids=t[None], start_positions=first[r : r + 1], end_positions=last[r : r + 1]
            ).loss
            for r, (i, t) in enumerate(zip(ids, kinds, strict=True))
        ]
        found = ours(**call, start_positions=first + shift, end_positions=last + shift).loss
    assert found.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-6)


@pytest.mark.parametrize(
    ("problem", "labels"),
    [
        ("regression", torch.tensor([0.5, -1.0, 2.0, 0.0])),
        ("multi_label_classification", torch.tensor([[0.0, 1.0, 1.0]] * 4)),
        ("single_label_classification", torch.tensor([2, 0, 1, 1])),
    ],
)
def test_the_three_losses_of_sequence_classification(problem: str, labels: Tensor, tmp_path: Path) -> None:
    count = 1 if problem == "regression" else 3
    theirs = their_model("ForSequenceClassification", num_labels=count, problem_type=problem)
    ours = our_model(theirs, tmp_path)
    assert ours.config.problem_type == problem
    call = padded(*texts(), "right")
    with torch.no_grad():
        found, expected = ours(**call, labels=labels), theirs(**call, labels=labels)
    assert found.loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fields", OPTIONS.values(), ids=OPTIONS.keys())
def test_every_option_that_changes_the_maths(fields: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    theirs = their_model("ForPreTraining", dtype, **fields)
    if not theirs.config.tie_word_embeddings:
        with torch.no_grad():
            theirs.cls.predictions.decoder.bias.uniform_(-1, 1)
    ours = our_model(theirs, tmp_path)
    assert ours.dtype == dtype
    ids, kinds = texts(types=theirs.config.type_vocab_size)
    with torch.no_grad():
        expected = alone(theirs, ids, kinds)
        found = ours(packed(ids, kinds))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    assert_close(found.prediction_logits, torch.cat([e.prediction_logits[0] for e in expected]), tolerance)
    assert_close(found.seq_relationship_logits, torch.cat([e.seq_relationship_logits for e in expected]), tolerance)


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_and_embeddings_of_the_caller(side: str, tmp_path: Path) -> None:
    theirs = their_model("Model")
    ours = our_model(theirs, tmp_path)
    ids, kinds = texts()
    places = [torch.arange(len(text)).flip(0) for text in ids]
    vectors = [torch.randn(len(text), 24, generator=torch.Generator().manual_seed(len(text))) for text in ids]
    call = padded(ids, kinds, side)
    rows = torch.zeros(*call["input_ids"].shape, 24)
    rows[call["attention_mask"].bool()] = torch.cat(vectors)
    with torch.no_grad():
        expected = [
            theirs(inputs_embeds=v[None], token_type_ids=t[None], position_ids=p[None]).last_hidden_state[0]
            for v, t, p in zip(vectors, kinds, places, strict=True)
        ]
        more = {"inputs_embeds": rows, "position_ids": in_rows(places, side), "token_type_ids": call["token_type_ids"]}
        found = ours(attention_mask=call["attention_mask"], **more).last_hidden_state
    assert_close(found[call["attention_mask"].bool()], torch.cat(expected))
    assert not found[call["attention_mask"] == 0].any()


def test_tokens_that_a_mask_leaves_out_inside_a_text_are_not_there(tmp_path: Path) -> None:
    theirs = their_model("Model")
    ours = our_model(theirs, tmp_path)
    ids = texts()[0][2][None]
    mask = torch.ones_like(ids)
    mask[0, [0, 3, 4, 11, 22]] = 0
    with torch.no_grad():
        expected = theirs(ids[mask.bool()][None]).last_hidden_state[0]
        assert_close(ours(ids, mask).last_hidden_state[mask.bool()], expected)


@pytest.mark.parametrize("kind", ["ForPreTraining", "ForTokenClassification"])
def test_gradients_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    theirs = their_model(kind, torch.float64).train()
    ours = our_model(theirs, tmp_path).train()
    ids, kinds = texts()
    labels: dict[str, Tensor] = {"labels": in_rows([text % 2 for text in ids], "right", -100)}
    if kind == "ForPreTraining":
        labels["next_sentence_label"] = torch.tensor([0, 1, 1, 0])
    for model in (theirs, ours):
        model(**padded(ids, kinds, "right"), **labels).loss.backward()
    wanted = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert set(wanted) == {name for name, _ in ours.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert_close(parameter.grad, wanted[name], 1e-10)


@pytest.mark.parametrize("field", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_dropout_acts_in_training_and_only_there(field: str, tmp_path: Path) -> None:
    half: dict[str, Any] = {field: 0.5}
    ours = our_model(their_model("ForTokenClassification", **half), tmp_path)
    batch = packed(*texts())
    with torch.no_grad():
        calm = ours(batch).logits
        assert torch.equal(ours(batch).logits, calm)
        ours.train()
        assert (ours(batch).logits - ours(batch).logits).abs().max().item() > 0.01
        ours.eval()
        assert torch.equal(ours(batch).logits, calm)


def test_a_classifier_dropout_of_another_family_does_not_count(tmp_path: Path) -> None:
    theirs = their_model("ForTokenClassification", num_hidden_layers=0)
    theirs.config.classifier_dropout = 0.9
    ours = our_model(theirs, tmp_path).train()
    call = padded(*texts(), "right")
    with torch.no_grad():
        assert torch.equal(ours(**call).logits, ours(**call).logits)


@pytest.mark.parametrize("shard", [5_000_000_000, 9_000])
@pytest.mark.parametrize("kind", ["Model", *HEADS])
def test_what_we_save_is_what_transformers_saves(kind: str, shard: int, tmp_path: Path) -> None:
    theirs = their_model(kind)
    ours = our_model(theirs, tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours", max_shard_size=shard)
    assert (tmp_path / "ours" / "model.safetensors").exists() == (shard > 9_000)
    read, report = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    again = type(ours).from_pretrained(tmp_path / "ours")
    for name, expected in theirs.state_dict().items():
        assert torch.equal(read.state_dict()[name], expected), name
        assert torch.equal(again.state_dict()[name], expected), name
    assert read.config.to_dict() == {**theirs.config.to_dict(), "_name_or_path": str(tmp_path / "ours")}


@pytest.mark.parametrize("prefixed", [True, False])
def test_names_of_older_checkpoints(prefixed: bool, tmp_path: Path) -> None:
    theirs = their_model("Model")
    ours = our_model(theirs, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    renamed = {"bert." * prefixed + _old(name): value for name, value in stored.items()}
    renamed["bert." * prefixed + "embeddings.position_ids"] = torch.arange(23)[None]
    assert any(name.endswith("encoder.ln.gamma") for name in renamed)
    save_file(renamed, tmp_path / "model.safetensors")
    again = padless.MegatronBertModel.from_pretrained(tmp_path)
    for name, expected in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], expected), name


def _old(name: str) -> str:
    if name.split(".")[-2] in ("ln", "LayerNorm"):
        return name.replace(".weight", ".gamma").replace(".bias", ".beta")
    return name


def test_a_checkpoint_of_pretraining_serves_every_class(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs = their_model("ForPreTraining")
    theirs.save_pretrained(tmp_path)
    ids, kinds = texts()
    with torch.no_grad():
        expected = torch.cat([one.hidden_states[-1][0] for one in alone(theirs, ids, kinds, output_hidden_states=True)])
        for kind in ("Model", *HEADS):
            caplog.clear()
            ours = getattr(padless, f"MegatronBert{kind}").from_pretrained(tmp_path)
            new = [r.getMessage() for r in caplog.records if "initialised at random" in r.getMessage()]
            assert bool(new) == (kind not in ("Model", "ForPreTraining", "ForMaskedLM", "ForNextSentencePrediction"))
            assert_close(ours.base_model.run(packed(ids, kinds)), expected)


def test_embeddings_with_a_norm_are_berts_and_are_refused(tmp_path: Path) -> None:
    our_model(their_model("Model"), tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    save_file({**stored, "embeddings.LayerNorm.weight": torch.ones(24)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"unexpected: embeddings\.LayerNorm\.weight"):
        padless.MegatronBertModel.from_pretrained(tmp_path)


def test_the_configuration_has_the_defaults_of_transformers() -> None:
    ours, theirs = padless.MegatronBertConfig(), transformers.MegatronBertConfig()
    for name, value in ours.to_dict().items():
        assert getattr(theirs, name) == value, name
    assert set(transformers.MegatronBertConfig.__annotations__) - {"model_type"} <= set(ours.to_dict()) | {"model_type"}


@pytest.mark.parametrize("name", ["encoder_hidden_states", "encoder_attention_mask"])
@pytest.mark.parametrize("kind", ["Model", "ForMaskedLM"])
def test_arguments_of_a_decoder_are_refused(kind: str, name: str) -> None:
    model = getattr(padless, f"MegatronBert{kind}")(padless.MegatronBertConfig(**TINY))
    with pytest.raises(OptionError, match=name):
        model(torch.tensor([[3, 4]]), **{name: torch.ones(1, 2, 24)})


def test_a_cache_is_refused_and_the_wish_for_one_is_not() -> None:
    model = padless.MegatronBertModel(padless.MegatronBertConfig(**TINY)).eval()
    with pytest.raises(OptionError, match="past_key_values"):
        model(torch.tensor([[3, 4]]), past_key_values=object())
    output = model(torch.tensor([[3, 4]]), use_cache=True)
    assert output.past_key_values is None
    assert output.cross_attentions is None
    assert list(output.keys()) == ["last_hidden_state", "pooler_output"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("hidden_size", 25), ("hidden_act", "erf"), ("type_vocab_size", 0), ("layer_norm_eps", 2.0), ("is_decoder", 1)],
)
def test_a_configuration_that_cannot_be_run_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        padless.MegatronBertConfig.from_dict({**TINY, field: value}, source="here.json")


def test_fresh_weights_follow_the_configuration() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = padless.MegatronBertForPreTraining(padless.MegatronBertConfig(**TINY))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif ".ln." in name or "LayerNorm" in name:
            assert bool((parameter == 1).all()), name
        else:
            # Normal: the estimate of a standard deviation from n values is off by 1 / sqrt(2n) of it.
            assert parameter.std().item() == pytest.approx(0.2, rel=5 / (2 * parameter.numel()) ** 0.5), name
    assert model.cls["predictions"].decoder.weight is model.bert.embeddings.word_embeddings.weight


def test_load_embeds_with_the_mean_of_its_tokens(tiny_folder: Path, tmp_path: Path) -> None:
    words = (tiny_folder / "vocab.txt").read_text()
    theirs = their_model("ForPreTraining", vocab_size=len(words.split()))
    theirs.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text(words)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    lines = ["the sun stood still", "moon", "the river and the stone and the bread and the night", ""]
    encoder = padless.load(tmp_path, device="cpu", dtype="float32")
    assert encoder.max_seq_length == 23
    found = encoder.encode(lines)
    with torch.no_grad():
        for line, vector in zip(lines, found, strict=True):
            ids = torch.from_numpy(encoder.tokenizer.encode([line]).input_ids).long()[None]
            assert_close(torch.from_numpy(vector), theirs.bert(ids).last_hidden_state[0].mean(dim=0))


def test_auto_classes_choose_this_family(tmp_path: Path) -> None:
    our_model(their_model("ForPreTraining"), tmp_path)
    assert type(padless.AutoConfig.from_pretrained(tmp_path)) is padless.MegatronBertConfig
    assert type(padless.AutoModel.from_pretrained(tmp_path)) is padless.MegatronBertModel
    for kind in HEADS:
        found = getattr(padless, f"AutoModel{kind}").from_pretrained(tmp_path)
        assert type(found) is getattr(padless, f"MegatronBert{kind}")
