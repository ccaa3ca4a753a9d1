"""`attn_implementation="padless"` beside transformers' own eager attention, in models of many families."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import padless
from padless.engine.errors import OptionError
from padless.engine.ops.bind import BoundOp

SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 36,
    "max_position_embeddings": 40,
    "initializer_range": 0.3,
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", {**SMALL, **NO_DROPOUT}),
    "roberta": ("Roberta", {**SMALL, **NO_DROPOUT}),
    "electra": ("Electra", {**SMALL, **NO_DROPOUT, "embedding_size": 12}),
    "distilbert": (
        "DistilBert",
        {"vocab_size": 61, "dim": 24, "n_layers": 3, "n_heads": 3, "hidden_dim": 36, "max_position_embeddings": 40}
        | {"dropout": 0.0, "attention_dropout": 0.0, "initializer_range": 0.3},
    ),
    "modernbert": (
        "ModernBert",
        {**SMALL, "pad_token_id": 0, "local_attention": 6, "global_attn_every_n_layers": 3},
    ),
    "mobilebert": (
        "MobileBert",
        {**SMALL, **NO_DROPOUT, "embedding_size": 12, "intra_bottleneck_size": 12, "normalization_type": "layer_norm"},
    ),
    "albert": ("Albert", {**SMALL, **NO_DROPOUT, "embedding_size": 12}),
    "llama": ("Llama", {**SMALL, "num_key_value_heads": 1, "use_cache": False}),
    "mistral": ("Mistral", {**SMALL, "num_key_value_heads": 3, "sliding_window": 4, "use_cache": False}),
}
BY_ITSELF = {
    "megatron_bert": ("MegatronBert", {**SMALL, **NO_DROPOUT}),
    "deberta_v2": ("DebertaV2", {**SMALL, **NO_DROPOUT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
}
"""Families that compute their attention themselves."""

LENGTHS = (13, 1, 7, 16)


@pytest.fixture(autouse=True)
def registered() -> None:
    padless.register_attention()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The rows that served an attention op, one entry a call."""
    calls: list[str] = []
    run = BoundOp.__call__

    def counted(op: BoundOp, *inputs: Any, **options: Any) -> Any:
        assert op.resolution is not None
        calls.append(op.resolution.impl.name)
        return run(op, *inputs, **options)

    monkeypatch.setattr(BoundOp, "__call__", counted)
    return calls


def pair(family: str, fields: dict[str, Any], kind: str = "Model") -> tuple[Any, Any]:
    """The same model twice, with eager attention and with ours."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        eager, ours = (
            getattr(transformers, family + kind)
            ._from_config(getattr(transformers, f"{family}Config")(**fields), attn_implementation=name)
            .eval()
            for name in ("eager", "padless")
        )
    ours.load_state_dict(eager.state_dict())
    assert eager.config._attn_implementation == "eager"
    assert ours.config._attn_implementation == "padless"
    return eager, ours


def inputs(lengths: tuple[int, ...] = LENGTHS, side: str = "right") -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        ids = torch.randint(3, 60, (len(lengths), max(lengths)))
    places = torch.arange(max(lengths))
    places = places if side == "right" else places.flip(0)
    mask = (places[None, :] < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def assert_same(ours: Tensor, theirs: Tensor, there: Tensor | None = None) -> None:
    assert ours.shape == theirs.shape
    if there is not None:
        ours, theirs = ours[there.bool()], theirs[there.bool()]
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max().clamp(min=1.0)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", sorted(MODELS))
def test_outputs_are_those_of_eager(family: str, side: str, served: list[str]) -> None:
    eager, ours = pair(*MODELS[family])
    given = inputs(side=side)
    with torch.no_grad():
        assert_same(ours(**given)[0], eager(**given)[0], given["attention_mask"])
    layers = ours.config.num_hidden_layers
    assert served == ["cpu"] * layers


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # older DeBERTa calls it
@pytest.mark.parametrize("family", sorted(BY_ITSELF))
def test_models_that_do_not_ask_the_interface_compute_what_they_always_do(family: str, served: list[str]) -> None:
    eager, ours = pair(*BY_ITSELF[family])
    for given in (inputs(), inputs((6, 6, 2, 4, 5, 1))):  # as many texts as tokens: a wrong mask would have the shape
        with torch.no_grad():
            assert_same(ours(**given)[0], eager(**given)[0], given["attention_mask"])
    assert served == []


def test_a_causal_model_that_does_not_ask_the_interface_gets_its_mask_in_full(served: list[str]) -> None:
    eager, ours = pair("MegatronBert", {**SMALL, **NO_DROPOUT, "is_decoder": True, "use_cache": False})
    given = inputs((6, 6, 2, 4, 5, 1))
    with torch.no_grad():
        assert_same(ours(**given)[0], eager(**given)[0], given["attention_mask"])
    assert served == []


@pytest.mark.parametrize("family", ["bert", "modernbert", "mistral"])
def test_without_a_mask_and_with_a_text_that_is_all_padding(family: str, served: list[str]) -> None:
    eager, ours = pair(*MODELS[family])
    whole = inputs()["input_ids"] + 1
    some = inputs((5, 0, 9))
    with torch.no_grad():
        assert_same(ours(whole)[0], eager(whole)[0])
        found = ours(**some)[0]
        assert_same(found, eager(**some)[0], some["attention_mask"])
    assert found.isfinite().all()
    assert len(served) == 2 * ours.config.num_hidden_layers


@pytest.mark.parametrize("family", ["bert", "modernbert", "mistral"])
def test_gradients_are_those_of_eager(family: str, served: list[str]) -> None:
    eager, ours = pair(*MODELS[family])
    given = inputs()
    for backend in ("auto", "eager"):
        padless.register_attention(backend=backend)
        gradients = []
        for model in (ours, eager):
            model.train().zero_grad()
            output = model(**given)[0]
            (output * given["attention_mask"][..., None]).square().sum().backward()
            gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        assert gradients[0].keys() == gradients[1].keys()
        largest = max(float(g.abs().max()) for g in gradients[1].values())
        for name, expected in gradients[1].items():
            assert (gradients[0][name] - expected).abs().max() <= 1e-5 * largest, name
    assert served == ["eager"] * ours.config.num_hidden_layers  # under auto transformers' sdpa has the gradient
    padless.register_attention()


def test_what_follows_from_a_mask_is_made_once_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    from padless.engine.integrations import attention_mask
    from padless.engine.ops.cpu import attention as cpu

    made: list[str] = []
    for module, name in ((attention_mask, "_packed"), (cpu, "_equal_runs")):
        original = getattr(module, name)

        def counted(*given: Any, original: Any = original, name: str = name) -> Any:
            made.append(name)
            return original(*given)

        monkeypatch.setattr(module, name, counted)
    _, ours = pair(*MODELS["bert"])
    with torch.no_grad():
        ours(**inputs())
    assert sorted(made) == ["_equal_runs", "_packed"]


def test_attention_weights_come_from_eager() -> None:
    eager, ours = pair(*MODELS["bert"])
    given = inputs()
    with torch.no_grad():
        found, expected = (model(**given, output_attentions=True) for model in (ours, eager))
    assert len(found.attentions) == 3
    for ours_weights, weights in zip(found.attentions, expected.attentions, strict=True):
        assert_same(ours_weights, weights)


def test_dropout_is_that_of_sdpa() -> None:
    fields = {**SMALL, "attention_probs_dropout_prob": 0.5, "hidden_dropout_prob": 0.0}
    _, ours = pair("Bert", fields)
    config = transformers.BertConfig(**fields)
    sdpa = transformers.BertModel._from_config(config, attn_implementation="sdpa")
    sdpa.load_state_dict(ours.state_dict())
    found = []
    for model in (ours.train(), sdpa.train()):
        torch.manual_seed(3)
        with torch.no_grad():
            found.append(model(**inputs())[0])
    assert_same(found[0], found[1])
    with torch.no_grad():
        assert (found[0] - ours.eval()(**inputs())[0]).abs().max() > 0.1


def test_a_mask_between_pairs_of_tokens_is_respected(served: list[str]) -> None:
    eager, ours = pair(*MODELS["bert"])
    ids = inputs()["input_ids"]
    blocks = torch.arange(16) // 5
    mask = torch.zeros(4, 1, 16, 16).masked_fill(blocks[:, None] != blocks, torch.finfo(torch.float32).min)
    with torch.no_grad():
        assert_same(ours(ids, attention_mask=mask)[0], eager(ids, attention_mask=mask)[0])
    assert served == []


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_generation_with_a_cache_writes_the_same(family: str) -> None:
    name, fields = MODELS[family]
    eager, ours = pair(name, {**fields, "use_cache": True}, "ForCausalLM")
    given = inputs(side="left")
    for options in ({"num_beams": 1}, {"num_beams": 3}):
        written = [
            model.generate(**given, max_new_tokens=9, do_sample=False, pad_token_id=0, eos_token_id=60, **options)
            for model in (ours, eager)
        ]
        assert torch.equal(*written)


def test_queries_of_other_tokens_than_the_keys_are_never_taken_for_padding() -> None:
    # As many queries as keys: a mask alone does not tell whose padding it shows.
    fields = {**SMALL, **NO_DROPOUT, "is_decoder": True, "add_cross_attention": True, "use_cache": False}
    eager, ours = pair("Bert", fields)
    given = inputs()
    with torch.random.fork_rng():
        torch.manual_seed(9)
        for length in (16, 5):
            seen = torch.randn(4, length, 24)
            seen_mask = inputs((length, 2, 1, 3))["attention_mask"]
            with torch.no_grad():
                outputs = [
                    model(**given, encoder_hidden_states=seen, encoder_attention_mask=seen_mask)[0]
                    for model in (ours, eager)
                ]
            assert_same(outputs[0], outputs[1], given["attention_mask"])


def test_packed_sequences_of_a_decoder_do_not_see_each_other() -> None:
    eager, ours = pair(*MODELS["llama"])
    ids = inputs((12,))["input_ids"]
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 0, 1, 2, 3, 4]])
    with torch.no_grad():
        assert_same(ours(ids, position_ids=positions)[0], eager(ids, position_ids=positions)[0])


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_flattened_inputs_are_texts_of_their_own(family: str, served: list[str]) -> None:
    eager, ours = pair(*MODELS[family])
    ids = inputs((12,))["input_ids"]
    starts = torch.tensor([0, 5, 7, 12], dtype=torch.int32)
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 0, 1, 2, 3, 4]])
    flat = {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": 5, "max_length_k": 5}
    expected = torch.cat([eager(ids[:, a:b])[0] for a, b in ((0, 5), (5, 7), (7, 12))], dim=1)
    for without_gradient in (True, False):  # ours, and transformers' sdpa with a mask of ours
        with torch.set_grad_enabled(not without_gradient):
            assert_same(ours(ids, position_ids=positions, **flat)[0], expected)
    assert len(served) == ours.config.num_hidden_layers


def test_images_and_a_position_bias() -> None:
    image = {"image_size": 8, "patch_size": 2, "num_channels": 3, "hidden_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 3, "intermediate_size": 36, "initializer_range": 0.3}
    eager, ours = pair("ViT", {**image, **heads, **NO_DROPOUT})
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(2)
        pixels = torch.randn(2, 3, 8, 8)
        assert_same(ours(pixels)[0], eager(pixels)[0])
        t5 = {"vocab_size": 61, "d_model": 24, "d_kv": 8, "d_ff": 36, "num_layers": 2, "num_heads": 3}
        eager, ours = pair("T5", t5 | {"dropout_rate": 0.0}, "EncoderModel")
        given = inputs()
        assert_same(ours(**given)[0], eager(**given)[0], given["attention_mask"])


def test_from_pretrained_takes_the_name(tmp_path: Any, served: list[str]) -> None:
    eager, _ = pair(*MODELS["roberta"])
    eager.save_pretrained(tmp_path)
    ours = transformers.AutoModel.from_pretrained(tmp_path, attn_implementation="padless").eval()
    given = inputs()
    with torch.no_grad():
        assert_same(ours(**given)[0], eager(**given)[0], given["attention_mask"])
        assert len(served) == 3
        ours.set_attn_implementation("sdpa")
        assert_same(ours(**given)[0], eager(**given)[0], given["attention_mask"])
    assert len(served) == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype, served: list[str]) -> None:
    eager, ours = pair(*MODELS["bert"])
    given = inputs()
    with torch.no_grad():
        expected = eager.double()(**given)[0]
        found = ours.to(dtype)(**given)[0]
    tolerance = 1e-9 if dtype == torch.float64 else 0.1
    there = given["attention_mask"].bool()
    assert (found.double() - expected)[there].abs().max() <= tolerance * expected.abs().max()
    assert served == (["cpu"] * 3 if dtype == torch.bfloat16 else [])  # no row beats sdpa in fp64


def test_a_decoder_that_is_used_both_ways_sees_both_ways(served: list[str]) -> None:
    name, fields = MODELS["llama"]
    eager, ours = pair(name, {**fields, "is_causal": False})
    given = inputs()
    for mask in ({"attention_mask": given["attention_mask"]}, {}):
        there = mask.get("attention_mask")
        expected = eager(given["input_ids"], **mask)[0]
        with torch.no_grad():
            assert_same(ours(given["input_ids"], **mask)[0], expected, there)
        assert_same(ours(given["input_ids"], **mask)[0], expected, there)
    assert served == ["cpu"] * 6


def test_a_traced_model_has_no_graph_break() -> None:
    eager, ours = pair(*MODELS["bert"])
    given = inputs()
    with torch.no_grad():
        found = torch.compile(ours, backend="eager", fullgraph=True)(**given)[0]
        assert_same(found, eager(**given)[0], given["attention_mask"])


@pytest.mark.parametrize("name", ["sdpa", "flash_padless", "paged|padless", ""])
def test_names_that_mean_something_to_transformers_are_refused(name: str) -> None:
    before = transformers.AttentionInterface().get("sdpa")
    with pytest.raises(OptionError, match=r"^name: "):
        padless.register_attention(name)
    assert transformers.AttentionInterface().get("sdpa") is before


def test_a_backend_that_cannot_serve_says_so() -> None:
    padless.register_attention("padless_triton", backend="triton")
    config = transformers.BertConfig(**SMALL)
    model = transformers.BertModel._from_config(config, attn_implementation="padless_triton").eval()
    with torch.no_grad(), pytest.raises(padless.BackendError, match="needs device cuda"):
        model(**inputs())
