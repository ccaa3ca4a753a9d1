"""Configurations: what is read, what is kept aside, and one clear line for everything a stranger's file may hold."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from padless.engine.config import ModelConfig, model_type, read_json
from padless.engine.errors import ConfigError, ModelNotFoundError
from padless.engine.hub import resolve_folder

SCALARS = st.sampled_from(
    [None, True, False, 0, 1, -1, 8, 10**30, 0.5, float("inf"), float("nan"), "", "gelu", "a\nb", "\u2028"]
)
JSON = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.sampled_from(["a", "\n"]), SCALARS, max_size=2)


@dataclass(kw_only=True)
class SmallConfig(ModelConfig):
    """Enough kinds of fields to try every rule."""

    aliases: ClassVar[Mapping[str, str]] = {"n_layer": "num_hidden_layers"}

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int = 2
    hidden_act: Literal["gelu", "relu"] = "gelu"
    layer_norm_eps: float = 1e-12
    tie_word_embeddings: bool = True
    classifier_dropout: float | None = None
    layer_types: tuple[str, ...] = ()

    def check(self, source: str) -> None:
        if self.hidden_size % 2:
            raise ConfigError(f"{source}: hidden_size: expected an even number, got {self.hidden_size}")


GOOD = {"vocab_size": 7, "hidden_size": 4}


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    message = str(error.value)
    assert len(message.splitlines()) == 1
    return message


def read(raw: dict[str, Any]) -> SmallConfig:
    return SmallConfig.from_dict(raw, source="config.json")


def test_fields_are_taken_and_others_kept_aside() -> None:
    config = read(
        GOOD | {"layer_types": ["a", "b"], "classifier_dropout": 0.5, "pad_token_id": 3, "label2id": {"x": 0}}
    )
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (7, 4, 2)
    assert config.layer_types == ("a", "b")
    assert config.classifier_dropout == 0.5
    assert config.extra == {"pad_token_id": 3}
    assert config.label2id == {"x": 0}


def test_configurations_are_compared_by_their_fields() -> None:
    assert read(GOOD) == read(GOOD | {"unknown": [1]})
    assert read(GOOD) != read(GOOD | {"hidden_size": 6})


def test_an_older_spelling_is_understood_and_the_newer_one_wins() -> None:
    assert read(GOOD | {"n_layer": 5}).num_hidden_layers == 5
    assert read(GOOD | {"n_layer": 5, "num_hidden_layers": 3}).num_hidden_layers == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": "4"}, 'config.json: hidden_size: expected an integer, got "4"'),
        ({"hidden_size": 4.0}, "config.json: hidden_size: expected an integer, got 4.0"),
        ({"hidden_size": True}, "config.json: hidden_size: expected an integer, got true"),
        ({"hidden_size": None}, "config.json: hidden_size: expected an integer, got null"),
        ({"hidden_size": 0}, "config.json: hidden_size: expected 1 to 65536, got 0"),
        ({"hidden_size": 65_538}, "config.json: hidden_size: expected 1 to 65536, got 65538"),
        ({"hidden_size": 3}, "config.json: hidden_size: expected an even number, got 3"),
        ({"num_hidden_layers": 1001}, "config.json: num_hidden_layers: expected 0 to 1000, got 1001"),
        ({"n_layer": 1001}, "config.json: n_layer: expected 0 to 1000, got 1001"),
        ({"vocab_size": 2**24 + 1}, "config.json: vocab_size: expected 1 to 1.67772e+07, got 16777217"),
        ({"hidden_act": "swish"}, "config.json: hidden_act: expected 'gelu' or 'relu', got \"swish\""),
        ({"layer_norm_eps": float("nan")}, "config.json: layer_norm_eps: expected a finite number, got nan"),
        ({"layer_norm_eps": -1e-12}, "config.json: layer_norm_eps: expected 0 to 1, got -1e-12"),
        ({"classifier_dropout": "0.1"}, 'config.json: classifier_dropout: expected a number or null, got "0.1"'),
        ({"tie_word_embeddings": 1}, "config.json: tie_word_embeddings: expected true or false, got 1"),
        ({"layer_types": ["a", 1]}, 'config.json: layer_types: expected a list of a string, got ["a", 1]'),
        ({"layer_types": "full"}, 'config.json: layer_types: expected a list of a string, got "full"'),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(GOOD | change)
    assert one_line(error) == message


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ConfigError) as error:
        read({"vocab_size": 7})
    assert one_line(error) == "config.json: hidden_size: missing"


@given(st.dictionaries(st.sampled_from([*GOOD, "num_hidden_layers", "hidden_act", "layer_types", "other"]), JSON))
def test_whatever_the_values_it_is_a_configuration_or_one_line(raw: dict[str, Any]) -> None:
    message, config = "", None
    try:
        config = read(GOOD | raw)
    except ConfigError as error:
        message = str(error)
    if config is None:
        assert len(message.splitlines()) == 1
    else:
        assert 1 <= config.hidden_size <= 65_536
        assert all(isinstance(kind, str) for kind in config.layer_types)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not JSON (Expecting value, line 1)"),
        (b'{"a": 1', "not JSON (Expecting ',' delimiter, line 1)"),
        (b'{"a"\n\n: "\xff"}', "not UTF-8 text (byte 9)"),
        (b"[1, 2]", "expected a JSON object, got [1, 2]"),
        (b"null", "expected a JSON object, got null"),
        (b"[" * 100_000, "not JSON that can be read (RecursionError)"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "not JSON that can be read (ValueError)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "not JSON (Expecting value, line 1)"),
    ],
)
def test_junk_in_place_of_a_configuration(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        read_json(path, what="model configuration")
    assert one_line(error) == f"model configuration {path}: {reason}"


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(path, what="model configuration") == {"a": 1}


def test_a_folder_without_a_configuration(tmp_path: Path) -> None:
    for read_folder in (SmallConfig.from_folder, model_type):
        with pytest.raises(ConfigError) as error:
            read_folder(tmp_path)
        assert one_line(error) == f"model configuration {tmp_path / 'config.json'}: no such file"


def test_a_folder_in_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        model_type(tmp_path)


def test_a_file_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(ConfigError, match=r"1,099,511,627,776 bytes, expected at most 6,291,456"):
        model_type(tmp_path)


@pytest.mark.parametrize("found", [None, 3, "", ["bert"]])
def test_a_model_type_that_is_no_name(tmp_path: Path, found: object) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": found}))
    with pytest.raises(ConfigError, match="model_type: expected a name such as 'bert'"):
        model_type(tmp_path)


def test_the_model_type_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "megatron-bert"}')
    assert model_type(tmp_path) == "megatron-bert"


def test_code_beside_the_weights_is_ignored_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GOOD | {"auto_map": {"AutoModel": "modeling_evil.Evil"}}))
    (tmp_path / "modeling_evil.py").write_text("raise SystemExit('this must never run')")
    assert SmallConfig.from_folder(tmp_path).hidden_size == 4
    assert "auto_map" in caplog.text


def test_a_local_folder_is_found(tmp_path: Path) -> None:
    assert resolve_folder(tmp_path) == tmp_path
    assert resolve_folder(str(tmp_path)) == tmp_path


def test_an_id_is_found_under_the_models_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "org" / "name").mkdir(parents=True)
    monkeypatch.setenv("PADLESS_MODELS", str(tmp_path / "models"))
    monkeypatch.chdir(tmp_path)
    assert resolve_folder("org/name") == tmp_path / "models" / "org" / "name"
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert resolve_folder("org/name") == Path("org/name")


def test_a_missing_model_says_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PADLESS_MODELS", "/no/such/place")
    with pytest.raises(ModelNotFoundError) as error:
        resolve_folder("org/name")
    looked = f"{tmp_path}/org/name, /no/such/place/org/name"
    assert one_line(error).startswith(f"model 'org/name': no such folder; looked at {looked}")
    monkeypatch.delenv("PADLESS_MODELS")
    with pytest.raises(ModelNotFoundError, match=r"PADLESS_MODELS is not set"):
        resolve_folder("org/name")


@pytest.mark.parametrize("name", ["../outside", "org/../../outside", "/abs/olute", "a/b/c", "", "a\0b", "org\n/name"])
def test_an_id_cannot_leave_the_models_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("models/org", "outside", "a/deep/place"):
        (tmp_path / folder).mkdir(parents=True)
    # From here none of the names is a local folder, while under the models folder "../outside" would be one.
    monkeypatch.chdir(tmp_path / "a/deep/place")
    monkeypatch.setenv("PADLESS_MODELS", str(tmp_path / "models"))
    with pytest.raises(ModelNotFoundError) as error:
        resolve_folder(name)
    one_line(error)


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")
    with pytest.raises(ModelNotFoundError, match=r"is a file, expected the folder that holds config.json"):
        resolve_folder(path)


def test_a_pipe_is_refused_without_waiting_for_its_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ConfigError, match=r"config\.json: cannot be read \(not a regular file\)"):
        model_type(tmp_path)
