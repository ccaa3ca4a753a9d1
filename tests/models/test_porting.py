"""What code that was written for transformers' models does to them, done to ours and to theirs with the same result."""

from __future__ import annotations

import copy
import gc
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_unflatten

import padless
from padless.engine.errors import ConfigError, InputError, OptionError

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 36,
    "max_position_embeddings": 23,
    "initializer_range": 0.3,
}
FIELDS: dict[str, dict[str, Any]] = {
    "Bert": SIZES,
    "MegatronBert": SIZES,
    "MobileBert": {**SIZES, "embedding_size": 12, "intra_bottleneck_size": 12, "normalization_type": "layer_norm"},
    "ModernBert": {**SIZES, "pad_token_id": 0, "local_attention": 4},
    "MT5": {"vocab_size": 61, "d_model": 24, "d_kv": 8, "d_ff": 36, "num_layers": 2, "num_heads": 3},
}
INPUTS = {
    "input_ids": torch.tensor([[5, 17, 60, 9, 31], [7, 8, 0, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]),
}
REPLACED = {
    ("Bert", "bert.encoder.layer.0.attention.self.query"),
    ("Bert", "bert.encoder.layer.1.attention.self.value"),
    ("Bert", "bert.encoder.layer.0.attention.output.dense"),
    ("Bert", "bert.encoder.layer.1.intermediate.dense"),
    ("Bert", "bert.encoder.layer.0.output.dense"),
    ("Bert", "classifier"),
    ("MegatronBert", "bert.encoder.layer.1.attention.self.key"),
    ("MobileBert", "mobilebert.encoder.layer.0.attention.self.query"),
    ("MobileBert", "mobilebert.encoder.layer.0.output.dense"),
    ("ModernBert", "model.layers.1.attn.Wqkv"),
    ("ModernBert", "model.layers.1.mlp.Wi"),
    ("ModernBert", "model.layers.1.mlp.Wo"),
    ("ModernBert", "head.dense"),
    ("MT5", "transformer.encoder.block.0.layer.0.SelfAttention.q"),
    ("MT5", "transformer.encoder.block.1.layer.1.DenseReluDense.wi_0"),
    ("MT5", "transformer.encoder.block.0.layer.1.DenseReluDense.wo"),
}
"""Family and layer; together every op with a linear layer, fused, gated and with a residual."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The models are so small that two threads would spend their time waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pair(folder: Path, family: str, task: str = "ForTokenClassification", **fields: Any) -> tuple[Any, Any]:
    """transformers' model and ours, of the same weights; the biases and norms are not those of a fresh model."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        config = getattr(transformers, f"{family}Config")(**{**FIELDS[family], **fields})
        fresh = getattr(transformers, family + task)(config)
        with torch.no_grad():
            for name, parameter in fresh.named_parameters():
                if "bias" in name or "norm" in name.lower():
                    parameter.add_(torch.randn_like(parameter) * 0.3)
    fresh.save_pretrained(folder)
    theirs = getattr(transformers, family + task).from_pretrained(folder, attn_implementation="eager")
    return theirs.eval(), getattr(padless, family + task).from_pretrained(folder)


def kept(model: Any, output: Tensor) -> Tensor:
    """The output where there are tokens, or of every text."""
    mask = INPUTS["attention_mask"].bool()
    return output[mask] if output.shape[:2] == mask.shape else output


def answers(model: Any) -> Tensor:
    return kept(model, model(**INPUTS)[0])


def assert_same(ours: Tensor, theirs: Tensor, tolerance: float = 2e-5) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max().clamp(min=1.0)


class Adapter(nn.Module):
    """LoRA (Hu et al. 2021, section 4.1) as libraries put it around a layer; its `weight` is not its own."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.down = nn.Linear(base.in_features, 2, bias=False)
            self.up = nn.Linear(2, base.out_features, bias=False)

    @property
    def weight(self) -> Tensor:
        """transformers' mT5 asks for it, and not as a parameter."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def put(model: nn.Module, path: str, module: nn.Module) -> None:
    owner, _, name = path.rpartition(".")
    setattr(model.get_submodule(owner), name, module)


@pytest.mark.parametrize(("family", "path"), sorted(REPLACED))
def test_an_adapter_around_a_layer_is_computed_and_trained(tmp_path: Path, family: str, path: str) -> None:
    task = "ForTokenClassification" if family == "MT5" else "ForSequenceClassification"
    theirs, ours = pair(tmp_path, family, task)
    before = answers(ours).detach()
    for model in (theirs, ours):
        model.requires_grad_(False)
        put(model, path, Adapter(model.get_submodule(path)))
    assert_same(answers(ours), answers(theirs))
    assert (answers(ours) - before).abs().max() > 1e-3
    for model in (theirs, ours):
        answers(model).square().sum().backward()
    gradients = [dict(model.named_parameters()) for model in (ours, theirs)]
    for name in (f"{path}.down.weight", f"{path}.up.weight"):
        found, expected = (parameters[name].grad for parameters in gradients)
        assert_same(found, expected, 1e-4)
    assert all(
        parameter.grad is None
        for name, parameter in ours.named_parameters()
        if ".down" not in name and ".up" not in name
    )
    assert path in dict(ours.named_modules())
    assert_same(answers(copy.deepcopy(ours)), answers(theirs))
    assert_same(answers(pickle.loads(pickle.dumps(ours))), answers(theirs))
    assert_same(answers(ours.double()).float(), answers(theirs))


@pytest.mark.parametrize("family", sorted({*FIELDS} - {"MT5"}))
def test_norms_may_stay_in_float32_where_the_rest_is_bfloat16(tmp_path: Path, family: str) -> None:
    # As training code for adapters on a frozen half-precision model has it.
    theirs, ours = pair(tmp_path, family)
    expected = answers(theirs)
    for model in (theirs, ours):
        model.bfloat16()
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.float()
    found = answers(ours)
    assert found.dtype == answers(theirs).dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(found.flatten().float(), expected.flatten(), 0) > 0.98


def test_explain_says_which_layers_are_called(tmp_path: Path) -> None:
    _, ours = pair(tmp_path, "Bert")
    assert "replaced" not in ours.explain()
    put(ours, "bert.encoder.layer.0.output.dense", Adapter(ours.bert.encoder.layer[0].output.dense))
    assert "linear layers that were replaced or have hooks, called as they are: in 1 ops" in ours.explain()


def test_an_embedding_table_and_a_norm_that_replace_ours_are_used(tmp_path: Path) -> None:
    theirs, ours = pair(tmp_path, "Bert")
    answers(ours)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        table, norm = nn.Embedding(61, 24), nn.LayerNorm(24, eps=0.5)
        nn.init.normal_(norm.weight)
    for model in (theirs, ours):
        put(model, "bert.embeddings.word_embeddings", copy.deepcopy(table))
        put(model, "bert.encoder.layer.1.output.LayerNorm", copy.deepcopy(norm))
    assert_same(answers(ours), answers(theirs))
    assert ours.get_input_embeddings() is ours.bert.embeddings.word_embeddings


def test_a_norm_that_computes_something_else_is_refused_in_one_line(tmp_path: Path) -> None:
    _, ours = pair(tmp_path, "Bert")
    put(ours, "bert.encoder.layer.1.output.LayerNorm", nn.RMSNorm(24))
    with pytest.raises(
        OptionError, match=r"^LayerNorm: expected a LayerNorm, whose weights the op norm takes, got a RMS"
    ):
        ours(**INPUTS)


def test_a_layer_that_is_swapped_behind_the_modules_back_is_used(tmp_path: Path) -> None:
    # torch.ao.quantization writes into `_modules`.
    theirs, ours = pair(tmp_path, "Bert")
    replacement = nn.Linear(24, 24)
    for model in (theirs, ours):
        model.bert.encoder.layer[0].attention.output._modules["dense"] = copy.deepcopy(replacement)
    assert_same(answers(ours), answers(theirs))


def test_hooks_on_linear_layers_fire_and_what_they_return_counts(tmp_path: Path) -> None:
    theirs, ours = pair(tmp_path, "Bert")
    before = answers(ours)
    seen: list[list[Tensor]] = []
    handles = []
    for model in (theirs, ours):
        outputs: list[Tensor] = []
        seen.append(outputs)

        def hook(
            module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, outputs: list[Tensor] = outputs
        ) -> Tensor:
            outputs.append(output.detach().reshape(-1, output.shape[-1]))
            return output * 1.5

        for name in ("bert.encoder.layer.0.attention.self.key", "bert.encoder.layer.1.intermediate.dense"):
            handles.append(model.get_submodule(name).register_forward_hook(hook))
    assert_same(answers(ours), answers(theirs))
    assert [len(outputs) for outputs in seen] == [2, 2]
    there = INPUTS["attention_mask"].bool().flatten()
    for found, expected in zip(seen[1], seen[0], strict=True):
        assert_same(found, expected[there])
    for handle in handles:
        handle.remove()
    assert torch.equal(answers(ours), before)


def test_pruned_weights_are_those_of_every_step(tmp_path: Path) -> None:
    # torch.nn.utils.prune computes the weight in a hook before each call.
    from torch.nn.utils import prune

    theirs, ours = pair(tmp_path, "Bert")
    for model in (theirs, ours):
        layer = model.bert.encoder.layer[0].output.dense
        prune.l1_unstructured(layer, "weight", amount=0.5)
        with torch.no_grad():
            layer.weight_orig.mul_(2.0)
    assert_same(answers(ours), answers(theirs))


def test_outputs_can_be_assigned_by_name(tmp_path: Path) -> None:
    _, ours = pair(tmp_path, "Bert")
    output = ours(**INPUTS)
    output["logits"] = output.logits * 2
    assert_same(output.logits, ours(**INPUTS).logits * 2)
    with pytest.raises(KeyError, match="logit"):
        output["logit"] = output.logits


def test_torchs_tree_utilities_see_the_tensors_of_an_output(tmp_path: Path) -> None:
    theirs, ours = pair(tmp_path, "Bert")
    for model in (theirs, ours):
        output = model(**INPUTS, output_hidden_states=True)
        leaves, spec = tree_flatten(output)
        assert [leaf.shape for leaf in leaves] == [(2, 5, 2), *[(2, 5, 24)] * 3]
        again = tree_unflatten([leaf.double() for leaf in leaves], spec)
        assert type(again) is type(output)
        assert again.loss is None
        assert again.logits.dtype == again.hidden_states[2].dtype == torch.float64


def test_labels_that_are_no_whole_numbers_are_refused(tmp_path: Path) -> None:
    _, ours = pair(tmp_path / "words", "Bert")
    with pytest.raises(InputError, match=r"^labels: expected whole numbers, got float32$"):
        ours(**INPUTS, labels=torch.full((2, 5), 0.7))
    _, ours = pair(tmp_path / "spans", "Bert", "ForQuestionAnswering")
    with pytest.raises(InputError, match=r"^start_positions, end_positions: expected whole numbers, got float64$"):
        ours(**INPUTS, start_positions=torch.ones(2).double(), end_positions=torch.ones(2).double())


def test_trainer_is_told_that_losses_take_no_count() -> None:
    assert padless.BertForMaskedLM.accepts_loss_kwargs is False
    assert padless.MT5ForTokenClassification.accepts_loss_kwargs is False


@pytest.mark.parametrize("family", sorted(FIELDS))
def test_labels_and_notes_assigned_to_a_configuration_are_kept(tmp_path: Path, family: str) -> None:
    names = {0: "person", 1: "place", 2: "none"}
    saved = {}
    for package in (transformers, padless):
        config = getattr(package, f"{family}Config")()
        config.id2label = dict(names)
        config.label2id = {name: index for index, name in names.items()}
        config.task_note = {"seed": 3}
        assert config.num_labels == 3
        assert config.task_note == {"seed": 3}
        config.task_note = {"seed": 4}
        config.save_pretrained(tmp_path / package.__name__)
        saved[package] = getattr(transformers, f"{family}Config").from_pretrained(tmp_path / package.__name__)
    for read in (*saved.values(), getattr(padless, f"{family}Config").from_pretrained(tmp_path / "padless")):
        assert read.id2label == names
        assert read.num_labels == 3
        assert read.label2id == {"person": 0, "place": 1, "none": 2}
        assert read.task_note == {"seed": 4}


def test_names_assigned_to_labels_alone_bring_their_number_and_inverse() -> None:
    config = padless.BertConfig(num_labels=4)
    config.id2label = {"0": "yes", "1": "no"}
    assert (config.num_labels, config.id2label, config.label2id) == (2, {0: "yes", 1: "no"}, {"yes": 0, "no": 1})
    config.num_labels = 3
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}


def test_arguments_of_a_class_can_be_given_to_from_pretrained(tmp_path: Path) -> None:
    theirs, _ = pair(tmp_path, "Bert", "Model")
    for model in (padless.BertModel, padless.AutoModel, transformers.BertModel):
        assert model.from_pretrained(tmp_path, add_pooling_layer=False).pooler is None
    assert padless.BertModel.from_pretrained(tmp_path).pooler is not None
    assert_same(answers(padless.AutoModel.from_pretrained(tmp_path, add_pooling_layer=False)), answers(theirs))


def test_no_dtype_is_the_checkpoints_own(tmp_path: Path) -> None:
    theirs, _ = pair(tmp_path / "first", "Bert", "Model")
    theirs.half().save_pretrained(tmp_path / "half")
    for package in (transformers, padless):
        assert package.BertModel.from_pretrained(tmp_path / "half").dtype == torch.float16
        assert package.BertModel.from_pretrained(tmp_path / "half", dtype=None).dtype == torch.float16


def test_a_configuration_of_transformers_is_refused_by_its_full_name() -> None:
    expected = "^BertModel: expected a BertConfig, got BertConfig of transformers$"
    with pytest.raises(OptionError, match=expected):
        padless.BertModel(transformers.BertConfig())  # type: ignore[arg-type]


def test_saving_takes_the_arguments_of_transformers(tmp_path: Path) -> None:
    theirs, ours = pair(tmp_path / "first", "Bert")
    for folder, size in (("text", "10KB"), ("number", 10_000)):
        ours.save_pretrained(tmp_path / folder, max_shard_size=size, safe_serialization=True)
    shards = [sorted(path.name for path in (tmp_path / folder).iterdir()) for folder in ("text", "number")]
    assert shards[0] == shards[1]
    assert len(shards[0]) > 4
    assert_same(answers(type(theirs).from_pretrained(tmp_path / "text")), answers(theirs))
    ours.save_pretrained(tmp_path / "not here", is_main_process=False)
    assert not (tmp_path / "not here").exists()
    with pytest.raises(OptionError, match=r"^safe_serialization: expected True, padless writes no pickles$"):
        ours.save_pretrained(tmp_path / "not here", safe_serialization=False)
    for size in ("much", "5", 5.0):
        with pytest.raises(OptionError, match=r"^max_shard_size: expected bytes or a text such as '5GB', got "):
            ours.save_pretrained(tmp_path / "not here", max_shard_size=size)


@pytest.mark.parametrize("family", ["Bert", "MT5"])
def test_a_functional_call_leaves_the_model_as_it_was(tmp_path: Path, family: str) -> None:
    theirs, ours = pair(tmp_path, family)
    before = answers(ours)
    results = []
    for model in (theirs, ours):
        weights = {name: parameter.detach() * 1.25 for name, parameter in model.named_parameters()}
        results.append(kept(model, functional_call(model, weights, (), dict(INPUTS))[0]))
    assert_same(results[1], results[0], 1e-4)
    assert torch.equal(answers(ours), before)


def test_a_compiled_model_says_nothing_it_should_not(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    theirs, ours = pair(tmp_path, "Bert")
    compiled = torch.compile(ours, backend="eager")
    with torch.no_grad():
        assert_same(answers(compiled), answers(theirs))
    del compiled
    gc.collect()
    assert "Exception ignored" not in capfd.readouterr().err


def test_a_dtype_assigned_to_a_configuration_is_saved_by_its_name(tmp_path: Path) -> None:
    config = padless.BertConfig()
    config.torch_dtype = torch.bfloat16
    config.save_pretrained(tmp_path)
    assert transformers.BertConfig.from_pretrained(tmp_path).dtype == torch.bfloat16
    config.judge = object()
    with pytest.raises(ConfigError, match=r"^config.json: expected values that JSON has, got a object$"):
        config.save_pretrained(tmp_path / "never")
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("package", [transformers, padless])
def test_arguments_about_downloads_that_ask_for_nothing_are_accepted(tmp_path: Path, package: Any) -> None:
    pair(tmp_path, "Bert")
    nothing = {"cache_dir": None, "token": None, "force_download": False, "proxies": None, "subfolder": ""}
    for name in ("BertForTokenClassification", "AutoModelForTokenClassification"):
        model = getattr(package, name).from_pretrained(
            tmp_path, **nothing, low_cpu_mem_usage=True, trust_remote_code=True, output_attentions=False, variant=None
        )
        assert model(**INPUTS).logits.shape == (2, 5, 2)


def test_an_argument_that_asks_for_something_is_refused_by_name(tmp_path: Path) -> None:
    pair(tmp_path, "Bert")
    with pytest.raises(OptionError, match=r"^token: "):
        padless.BertModel.from_pretrained(tmp_path, token="a secret")


@pytest.mark.parametrize("tag", ["ForSequenceClassification", "ForTokenClassification"])
def test_a_head_of_another_size_is_replaced_where_that_is_asked_for(
    tag: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = getattr(transformers, f"Bert{tag}")(transformers.BertConfig(**{**SIZES, "num_labels": 3})).eval()
    theirs.save_pretrained(tmp_path)
    ours = getattr(padless, f"Bert{tag}")
    with pytest.raises(padless.WeightsError, match=r"wrong shape: classifier\."):
        ours.from_pretrained(tmp_path, num_labels=5)
    with caplog.at_level("WARNING"):
        model = ours.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    assert "classifier" in caplog.text
    assert model.classifier.weight.shape == (5, SIZES["hidden_size"])
    assert model.classifier.weight.isfinite().all()
    assert (model.classifier.bias == 0).all()
    for name, value in theirs.bert.state_dict().items():
        assert torch.equal(model.bert.state_dict()[name], value)
    with pytest.raises(padless.WeightsError, match="wrong shape: bert"):
        ours.from_pretrained(tmp_path, type_vocab_size=5, ignore_mismatched_sizes=True)


def saved_values(model: Any, **inputs: Any) -> tuple[Any, int]:
    """The model's output, and how many values its backward pass holds on to."""
    held: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(**inputs)
    return output, sum(held.values())


@pytest.mark.parametrize("family", sorted(FIELDS))
@pytest.mark.parametrize("options", [None, {"use_reentrant": False}, {"use_reentrant": True}])
def test_layers_computed_twice_give_the_same_losses_and_gradients(
    tmp_path: Path, family: str, options: dict[str, Any] | None
) -> None:
    theirs, ours = pair(tmp_path, family)
    labels = torch.tensor([[0, 1, 1, 0, 1], [1, 0, -100, -100, -100]])
    inputs = {**INPUTS, "labels": labels, "output_hidden_states": True, "output_attentions": True}

    def step(model: Any) -> tuple[Any, dict[str, Tensor], int]:
        model.zero_grad()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            output, held = saved_values(model, **inputs)
            output.loss.backward()
        gradients = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
        return output, gradients, held

    ours.train()
    expected, wanted, most = step(ours)
    assert not ours.is_gradient_checkpointing
    ours.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    assert ours.is_gradient_checkpointing
    found, gradients, least = step(ours)
    assert least < most / 2
    assert torch.equal(found.loss, expected.loss)
    assert torch.equal(found.logits, expected.logits)
    for name in ("hidden_states", "attentions"):
        assert len(found[name]) == len(expected[name])
        for one, other in zip(found[name], expected[name], strict=True):
            assert torch.equal(one, other)
    assert gradients.keys() == wanted.keys()
    for name, value in gradients.items():
        assert_same(value, wanted[name], 1e-6)
    ours.gradient_checkpointing_disable()
    assert not ours.is_gradient_checkpointing
    assert step(ours)[2] == most
    # Without dropout, beside transformers.
    for model in (ours, theirs):
        model.activation_checkpointing_enable()
        assert model.is_activation_checkpointing
        model.train()
        for module in model.modules():
            for name, value in vars(module).items():
                if "drop" in name and isinstance(value, float):
                    setattr(module, name, 0.0)
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    ours.config.classifier_dropout = ours.config.hidden_dropout_prob = 0.0
    (output, found_gradients, _), (reference, reference_gradients, _) = step(ours), step(theirs)
    assert_same(output.loss, reference.loss)
    for name, value in found_gradients.items():
        assert_same(value, reference_gradients[name], 1e-4)


def test_layers_are_computed_twice_in_training_only_and_no_more_of_them_than_asked_for(tmp_path: Path) -> None:
    _, ours = pair(tmp_path, "Bert", num_hidden_layers=4)
    calls: list[int] = []
    for index, layer in enumerate(ours.bert.encoder.layer):
        layer.attention["self"].register_forward_pre_hook(lambda module, inputs, index=index: calls.append(index))
    ours.gradient_checkpointing_enable(every_n_layers=2)
    answers(ours.train()).sum().backward()
    assert sorted(calls) == [0, 0, 1, 2, 2, 3]
    calls.clear()
    answers(ours.eval()).sum().backward()
    assert calls == [0, 1, 2, 3]
    calls.clear()
    copy.deepcopy(ours).train()
    with torch.no_grad():
        answers(ours.train())
    assert calls == [0, 1, 2, 3]
    inside = copy.deepcopy(ours).bert
    assert inside.is_gradient_checkpointing


def test_what_checkpointing_does_not_know_is_refused(tmp_path: Path) -> None:
    _, ours = pair(tmp_path, "Bert")
    with pytest.raises(OptionError, match=r"^gradient_checkpointing_kwargs: reentrant: expected one of context_fn, "):
        ours.gradient_checkpointing_enable({"reentrant": False})
    with pytest.raises(OptionError, match=r"^every_n_layers: expected a whole number from 1, got 0$"):
        ours.activation_checkpointing_enable(every_n_layers=0)
    with pytest.raises(OptionError, match=r"^offload: expected False"):
        ours.activation_checkpointing_enable(offload=True)
    assert not ours.is_gradient_checkpointing


def test_the_last_layer_of_mt5s_feed_forward_may_be_hooked_and_be_an_adapter_in_half_precision(tmp_path: Path) -> None:
    path = "transformer.encoder.block.1.layer.1.DenseReluDense.wo"
    theirs, ours = pair(tmp_path, "MT5")
    for model in (theirs, ours):
        model.get_submodule(path).register_forward_hook(lambda module, inputs, output: output * 1.5)
    assert_same(answers(ours), answers(theirs))
    _, ours = pair(tmp_path, "MT5")
    put(ours, path, Adapter(ours.get_submodule(path)))
    expected = answers(ours).detach()
    put(ours.half(), path, ours.get_submodule(path).float())
    assert ours.get_submodule(path).base.weight.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(answers(ours).flatten().float(), expected.flatten(), 0) > 0.999


LAYERS = {
    "Bert": ("bert.encoder", "layer"),
    "MegatronBert": ("bert.encoder", "layer"),
    "MobileBert": ("mobilebert.encoder", "layer"),
    "ModernBert": ("model", "layers"),
    "MT5": ("transformer.encoder", "block"),
}


@pytest.mark.parametrize("family", sorted(LAYERS))
@pytest.mark.parametrize("kept_layers", [slice(None, 2), slice(None, None, 2)], ids=["the first", "every other"])
def test_layers_may_be_dropped(tmp_path: Path, family: str, kept_layers: slice) -> None:
    count: dict[str, Any] = {"num_layers" if family == "MT5" else "num_hidden_layers": 5}
    theirs, ours = pair(tmp_path, family, **count)
    before = answers(ours).detach()
    owner, name = LAYERS[family]
    for model in (theirs, ours):
        part = model.get_submodule(owner)
        setattr(part, name, getattr(part, name)[kept_layers])
    ours.gradient_checkpointing_enable()
    assert_same(answers(ours), answers(theirs))
    assert (answers(ours) - before).abs().max() > 1e-3


def test_the_kind_of_a_modernbert_layer_goes_with_it(tmp_path: Path) -> None:
    theirs, ours = pair(tmp_path, "ModernBert", num_hidden_layers=4)
    kinds = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    for model in (theirs, ours):
        assert [layer.attention_type for layer in model.model.layers] == kinds
        model.model.layers = nn.ModuleList([model.model.layers[0], model.model.layers[3]])
    ids = torch.arange(1, 21)[None]
    assert_same(ours(ids).logits, theirs(ids).logits)


@pytest.mark.parametrize("packed", [False, True])
def test_positions_are_taken_as_a_list_and_refused_where_there_is_no_token(tmp_path: Path, packed: bool) -> None:
    _, ours = pair(tmp_path, "Bert", "ForMaskedLM")
    inputs = {"input_ids": torch.tensor([[5, 17, 60, 9, 31]])} if packed else INPUTS
    logits = kept(ours, ours(**INPUTS).logits)
    asked: list[Any] = [3, 0, 4]
    for positions in (asked, tuple(asked), torch.tensor(asked)):
        assert_same(ours(**inputs, positions=positions).logits, logits[[3, 0, 4]])
    assert ours(**inputs, positions=[]).logits.shape == (0, 61)
    tokens = 5 if packed else 7
    for found in (tokens, 99, -1):
        with pytest.raises(InputError, match=rf"^positions: expected 0 to {tokens - 1}, got {found}$"):
            ours(**inputs, positions=torch.tensor([0, found]))
    mask = torch.zeros(inputs["input_ids"].shape, dtype=torch.bool)
    mask[0, 2] = True
    assert_same(ours(**inputs, positions=mask.tolist()).logits, logits[[2]])
    for wrong in ([[1], [2, 3]], 3, "ab", [[0, 1]], [0.5]):
        with pytest.raises(InputError, match=r"^positions: expected "):
            ours(**inputs, positions=wrong)


@pytest.mark.parametrize("family", sorted(FIELDS))
def test_a_configuration_is_read_from_and_written_to_dictionaries_and_text(tmp_path: Path, family: str) -> None:
    kind = getattr(padless, f"{family}Config")
    config = kind(**FIELDS[family], num_labels=3)
    config.note = "kept"
    for again in (kind.from_dict(config.to_dict()), kind.from_dict(json.loads(config.to_json_string()))):
        assert again == config
        assert again.note == "kept"
    config.to_json_file(tmp_path / "here.json")
    config.save_pretrained(tmp_path)
    assert (tmp_path / "here.json").read_bytes() == (tmp_path / "config.json").read_bytes()
    theirs = getattr(transformers, f"{family}Config").from_json_file(tmp_path / "here.json")
    assert (theirs.num_labels, theirs.note, theirs.vocab_size) == (3, "kept", 61)
    other = kind()
    other.update(config.to_dict())
    assert other == config
    assert other.note == "kept"
    assert kind.from_dict(config.to_dict(), num_labels=5, trust_remote_code=True).num_labels == 5
    with pytest.raises(ConfigError, match=rf"^{family}Config: vocab_size: expected an integer, got \"many\"$"):
        kind.from_dict({"vocab_size": "many"})
    with pytest.raises(OptionError, match=rf"^colour: no field of {family}Config$"):
        kind.from_dict({}, colour="red")


def test_a_configuration_is_updated_as_a_whole_or_not_at_all() -> None:
    ours, theirs = padless.BertConfig(), transformers.BertConfig()
    for config in (ours, theirs):
        config.update({"hidden_size": 36, "id2label": {0: "a", 1: "b", 2: "c"}, "my_note": [1]})
        assert (config.hidden_size, config.num_labels, config.my_note) == (36, 3, [1])
    with pytest.raises(ConfigError, match=r"^BertConfig: hidden_act: expected a string, got 4$"):
        ours.update({"vocab_size": 7, "hidden_act": 4})
    assert ours.vocab_size == 30522
    mt5 = padless.MT5Config()
    mt5.update({"hidden_size": 96})
    assert mt5.d_model == 96


def test_configurations_take_arguments_of_loading_that_ask_for_nothing(tmp_path: Path) -> None:
    pair(tmp_path, "Bert")
    nothing = {"trust_remote_code": True, "cache_dir": None, "token": None, "force_download": False, "proxies": None}
    for package in (transformers, padless):
        for name in ("AutoConfig", "BertConfig"):
            config = getattr(package, name).from_pretrained(tmp_path, **nothing, num_labels=4)
            assert (config.num_labels, config.hidden_size) == (4, 24)
    with pytest.raises(OptionError, match=r"^token: no field of BertConfig$"):
        padless.AutoConfig.from_pretrained(tmp_path, token="a secret")


TASKS = [
    *(
        (family, task)
        for family in ("Bert", "ModernBert", "MobileBert")
        for task in ("ForMaskedLM", "ForMultipleChoice")
    ),
    *((family, "ForSequenceClassification") for family in ("Bert", "MegatronBert", "MobileBert", "ModernBert")),
    ("Bert", "ForPreTraining"),
    ("Bert", "ForQuestionAnswering"),
    ("MT5", "ForTokenClassification"),
]


@pytest.mark.parametrize(("family", "task"), TASKS)
def test_hooks_on_the_bare_model_inside_fire_and_what_they_return_counts(
    tmp_path: Path, family: str, task: str
) -> None:
    theirs, ours = pair(tmp_path, family, task)
    inputs = {"input_ids": INPUTS["input_ids"][:1], "attention_mask": INPUTS["attention_mask"][:1]}
    if task == "ForMultipleChoice":
        inputs = {name: value[None] for name, value in inputs.items()}
    before = ours(**inputs, output_hidden_states=True)
    seen: list[Any] = []
    for model in (theirs, ours):
        model.base_model.register_forward_hook(lambda module, arguments, output: seen.append(output))
    after = ours(**inputs, output_hidden_states=True, output_attentions=True)
    theirs(**inputs, output_hidden_states=True)
    found, expected = seen
    assert found.last_hidden_state.shape == expected.last_hidden_state.shape
    assert_same(found.last_hidden_state, expected.last_hidden_state)
    if expected.get("pooler_output") is not None:
        assert_same(found.pooler_output, expected.pooler_output)
    assert torch.equal(after[0], before[0])
    assert len(after.attentions) == 2
    for one, other in zip(after.hidden_states, before.hidden_states, strict=True):
        assert torch.equal(one, other)

    def louder(module: nn.Module, arguments: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state * 1.5
        if getattr(output, "pooler_output", None) is not None:
            output.pooler_output = output.pooler_output * 0.5
        return output

    handles = [model.base_model.register_forward_hook(louder) for model in (theirs, ours)]
    assert_same(ours(**inputs)[0], theirs(**inputs)[0])
    assert not torch.equal(ours(**inputs)[0], before[0])
    ours(**inputs)[0].square().sum().backward()
    assert ours.get_input_embeddings().weight.grad.any()
    handles[1].remove()
    assert torch.equal(ours(**inputs)[0], before[0])


def test_a_hook_on_the_bare_model_sees_the_callers_layout(tmp_path: Path) -> None:
    _, ours = pair(tmp_path, "Bert")
    expected = ours(**INPUTS).logits
    shapes: list[Any] = []
    ours.bert.register_forward_pre_hook(lambda module, arguments: shapes.append(arguments[0].shape))
    ours.bert.register_forward_hook(lambda module, arguments, output: (output[0] * 2,))
    ours.bert.register_forward_hook(lambda module, arguments, output: shapes.append(output[0].shape))
    ours.bert.register_forward_hook(lambda module, arguments, output: (output[0] / 2,))
    assert torch.equal(ours(**INPUTS).logits, expected)
    assert shapes == [(2, 5), (2, 5, 24)]
    with pytest.raises(InputError, match=r"^input_ids: expected 0 to 60, got 61$"):
        ours(torch.tensor([[61]]))
