"""Sources made to harm or cut short, as a user meets them: one typed line, exit code 2, and nothing written."""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron_checkpoints import CONFIG, MEMBER, archive_of, megatron_checkpoint, saved_bytes, training_arguments

from padless.engine.cli.app import run
from padless.engine.convert import convert
from padless.engine.errors import PadlessError, WeightsError
from padless.engine.weights.pickle_tree import read_pickle

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run `padless convert` on a source; the one line that refuses it."""

    def refuse(source: Path, *options: object) -> str:
        before = {path.relative_to(tmp_path) for path in tmp_path.rglob("*")}
        assert run(["convert", str(source), str(tmp_path / "out" / "model"), *map(str, options)]) == 2
        done = capsys.readouterr()
        assert done.out == ""
        assert done.err.startswith("padless: ")
        assert done.err.count("\n") == 1
        assert "\\n" not in done.err
        assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*")} == before, "something is left"
        return done.err.removeprefix("padless: ").rstrip("\n")

    return refuse


def layers(checkpoint: dict[str, Any]) -> dict[str, Any]:
    return checkpoint["model"]["language_model"]["transformer"]


def changed(tmp_path: Path, change: Change | None = None, **fields: Any) -> Path:
    checkpoint = megatron_checkpoint(2.0, arguments=training_arguments(**fields))
    if change is not None:
        change(checkpoint)
    path = tmp_path / "model_optim_rng.pt"
    path.write_bytes(saved_bytes(checkpoint))
    return path


DEEP: tuple[Any, ...] = ()
for _ in range(100):
    DEEP = (DEEP, DEEP)  # written out it would have 2**100 parts

QKV = "layers.1.attention.query_key_value"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: layers(c).pop("layers.1.mlp.dense_h_to_4h.bias"), "missing: layers.1.mlp.dense_h_to_4h.bias"),
        (lambda c: layers(c).pop(f"{QKV}.weight"), f"missing: {QKV}.weight"),
        (lambda c: layers(c).pop("final_layernorm.weight"), "missing: final_layernorm.weight"),
        (lambda c: c["model"]["lm_head"].pop("dense.weight"), "missing: model.lm_head.dense.weight"),
        (lambda c: c["model"]["lm_head"].pop("bias"), "missing: model.lm_head.bias"),
        (lambda c: c["model"].pop("lm_head"), "model.lm_head: expected a table of a BERT, found nothing"),
        (lambda c: c["model"]["binary_head"].pop("weight"), "missing: model.binary_head.weight"),
        (lambda c: c["model"]["language_model"].pop("pooler"), "model.language_model.pooler: expected a table"),
        (lambda c: c["model"]["language_model"].pop("transformer"), "model.language_model.encoder: expected a table"),
        (
            lambda c: layers(c).update({f"{QKV}.weight": torch.ones(71, 24).half()}),
            f"wrong shape: {QKV}.weight (found [71, 24], expected [72, 24]); --config can give its sizes",
        ),
        (lambda c: layers(c).update({f"{QKV}.bias": torch.ones(72, 1).half()}), f"{QKV}.bias (found [72, 1]"),
        (lambda c: layers(c).update({f"{QKV}.bias": torch.ones(72).long()}), f"wrong dtype: {QKV}.bias (found I64)"),
        (lambda c: layers(c).update({f"{QKV}.bias": "none"}), f"missing: {QKV}.bias"),
        (lambda c: layers(c).update({"layers.2.x.weight": torch.ones(2)}), "unexpected: layers.2.x.weight"),
        (
            lambda c: layers(c).update(
                {"layers.0.mlp.dense_4h_to_h.bias": layers(c)["layers.1.mlp.dense_4h_to_h.bias"]}
            ),
            "the same bytes, expected tensors of their own",
        ),
        (
            lambda c: layers(c).update({"final_layernorm.bias": torch.zeros(1).half().expand(24)}),
            "strides [0] for shape [24], expected each value once and no gaps",
        ),
        (lambda c: c.update(checkpoint_version=1.5), "checkpoint_version: expected 0, 1, 2 or 3, got 1.5"),
        (lambda c: c.update(checkpoint_version=4), "checkpoint_version: expected 0, 1, 2 or 3, got 4"),
        (lambda c: c.update(checkpoint_version="2"), "checkpoint_version: expected 0, 1, 2 or 3, got '2'"),
        (lambda c: c.update(args=[1]), "args: expected a namespace, got list"),
        (lambda c: c.update(args=argparse.Namespace(hidden_size=24)), "args: num_layers: missing"),
        (lambda c: c["model"].update(language_model=3), "model.language_model: expected a table of a BERT, found int"),
    ],
)
def test_a_checkpoint_that_is_no_whole_bert(
    tmp_path: Path, refused: Callable[..., str], change: Change, message: str
) -> None:
    assert message in refused(changed(tmp_path, change))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_attention_heads": 5}, "args: hidden_size: expected a multiple of num_attention_heads (5), got 24"),
        ({"num_attention_heads": 0}, "args: num_attention_heads: expected"),
        ({"num_attention_heads": "three"}, "args: num_attention_heads: expected an integer"),
        ({"num_layers": 10**9}, "args: num_hidden_layers: expected"),
        ({"num_layers": 3}, "missing: layers.2.input_layernorm.weight"),
        ({"num_layers": 1}, "unexpected: layers.1.input_layernorm.weight"),
        ({"ffn_hidden_size": None}, "mlp.dense_h_to_4h.weight (found [40, 24], expected [96, 24])"),
        ({"padded_vocab_size": 62}, "word_embeddings.weight (found [61, 24], expected [62, 24])"),
        ({"hidden_size": argparse.Namespace()}, "args: hidden_size: expected an integer"),
        ({"hidden_size": DEEP}, "args: hidden_size: expected an integer"),
        ({"tensor_model_parallel_size": DEEP}, "tensor_model_parallel_size: (("),
        ({"tensor_model_parallel_size": 8}, "tensor_model_parallel_size: 8, expected 1: merge the parts"),
    ],
)
def test_arguments_that_do_not_fit(
    tmp_path: Path, refused: Callable[..., str], fields: dict[str, Any], message: str
) -> None:
    assert message in refused(changed(tmp_path, **fields))


def test_sizes_that_nobody_tells(tmp_path: Path, refused: Callable[..., str]) -> None:
    """Without args the model is taken for the 345M."""
    line = refused(changed(tmp_path, lambda c: c.pop("args")))
    assert "missing: layers.0.input_layernorm" not in line
    assert "word_embeddings.weight (found [61, 24], expected [61, 1024])" in line
    assert line.endswith("--config can give its sizes")


def test_a_head_that_nobody_has(tmp_path: Path, refused: Callable[..., str]) -> None:
    """Nothing then tells how large the vocabulary is."""
    (tmp_path / "given.json").write_text(json.dumps({name: CONFIG[name] for name in CONFIG if name != "vocab_size"}))
    source = changed(tmp_path, lambda c: (c.pop("args"), c["model"]["lm_head"].pop("bias")))
    assert "missing: model.lm_head.bias; wrong shape: " in refused(source, "--config", tmp_path / "given.json")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**CONFIG, "num_attention_heads": 6}, "num_attention_heads: 6, the checkpoint says 3"),
        ({**CONFIG, "vocab_size": 62}, "vocab_size: 62, the checkpoint says 61"),
        ({**CONFIG, "model_type": "bert"}, "model_type: expected 'megatron-bert', got 'bert'"),
        ({**CONFIG, "hidden_size": 10**9}, "hidden_size: expected"),
        ([], "expected a JSON object"),
    ],
)
def test_a_given_configuration_that_does_not_fit(
    tmp_path: Path, refused: Callable[..., str], config: object, message: str
) -> None:
    (tmp_path / "given.json").write_text(json.dumps(config))
    assert message in refused(changed(tmp_path), "--config", tmp_path / "given.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n", "no [MASK] in it"),
        (b"\xff\xfe[PAD]", "expected a vocabulary of BERT"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n" + b"".join(b"w%d\n" % n for n in range(57)), "embeds 61 tokens"),
        (None, "cannot be read"),
    ],
)
def test_a_vocabulary_that_does_not_fit(
    tmp_path: Path, refused: Callable[..., str], content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "vocab.txt").write_bytes(content)
    assert message in refused(changed(tmp_path), "--vocab", tmp_path / "vocab.txt")


# The zip.


def test_a_bomb(tmp_path: Path, refused: Callable[..., str]) -> None:
    """50 MB of zeros in 50 kB; refused by what the archive itself says, before a byte is unpacked."""
    archive = archive_of(tmp_path / "zip", bytes(50 * 10**6))
    assert archive.stat().st_size < 60_000
    assert "would become 50,000,000 bytes of " in refused(archive)


def test_a_bomb_that_says_it_is_small(tmp_path: Path) -> None:
    """The list of members claims a megabyte; what is unpacked is never more than that."""
    archive = archive_of(tmp_path / "zip", bytes(50 * 10**6))
    content = bytearray(archive.read_bytes())
    entry = content.rindex(b"PK\1\2")
    struct.pack_into("<L", content, entry + 24, 2**20)
    archive.write_bytes(content)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * 2**20, limit[1]))
    try:
        with pytest.raises(WeightsError, match="Bad CRC-32"):
            convert(archive, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)
    assert {path.name for path in tmp_path.iterdir()} == {"zip"}


def test_compressed_members_inside_the_checkpoint(tmp_path: Path, refused: Callable[..., str]) -> None:
    plain = changed(tmp_path)
    packed = tmp_path / "packed.pt"
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert "is compressed, expected plain members" in refused(packed)


@pytest.mark.parametrize(
    "member",
    [
        f"../{MEMBER}",
        f"/{MEMBER}",
        "release/mp_rank_00/../mp_rank_00/model_optim_rng.pt",
        "release\\mp_rank_00\\model_optim_rng.pt",
        "release/mp_rank_00/model.pt",
        "release/model_optim_rng.pt",
    ],
)
def test_a_member_of_another_name(tmp_path: Path, refused: Callable[..., str], member: str) -> None:
    archive = archive_of(tmp_path / "zip", saved_bytes(megatron_checkpoint(2.0)), member=member)
    assert f"no member {MEMBER}; it holds latest_checkpointed_iteration.txt" in refused(archive)


def test_parts_of_a_parallel_checkpoint(tmp_path: Path, refused: Callable[..., str]) -> None:
    archive = archive_of(tmp_path / "zip", saved_bytes(megatron_checkpoint(2.0)))
    with zipfile.ZipFile(archive, "a") as more:
        more.writestr(MEMBER.replace("_00", "_01"), b"x")
    line = refused(archive)
    assert "expected one checkpoint, found release/mp_rank_00/" in line
    assert "merge the parts of a model-parallel checkpoint" in line


@pytest.mark.parametrize("legacy", [False, True])
def test_a_member_that_is_no_checkpoint(tmp_path: Path, refused: Callable[..., str], legacy: bool) -> None:
    archive = archive_of(tmp_path / "zip", saved_bytes({"model": {"module": torch.ones(2)}}, legacy=legacy))
    assert "its checkpoint is none of a Megatron BERT" in refused(archive)
    assert "not a file of torch.save" in refused(archive_of(tmp_path / "zip", b"#!/bin/sh\n"))


@pytest.mark.parametrize("kind", ["zip", "archive", "legacy"])
def test_a_file_cut_short_anywhere(tmp_path: Path, kind: str) -> None:
    content = saved_bytes(megatron_checkpoint(2.0, arguments=training_arguments()), legacy=kind == "legacy")
    path = tmp_path / "source.pt"
    if kind == "zip":
        content = archive_of(tmp_path, content).read_bytes()
        (tmp_path / "ngc.zip").unlink()
    for size in (*range(0, 400, 19), *range(400, len(content), 3001), len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(PadlessError) as error:
            convert(path, tmp_path / "out")
        assert str(error.value).startswith(f"{path}: ")
        assert [found.name for found in tmp_path.iterdir()] == ["source.pt"]


def test_a_flipped_bit_in_the_zip(tmp_path: Path, refused: Callable[..., str]) -> None:
    archive = archive_of(tmp_path / "zip", saved_bytes(megatron_checkpoint(2.0, arguments=training_arguments())))
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 16
    archive.write_bytes(content)
    assert "not a readable zip archive" in refused(archive)


# The pickle.


class Evil:
    """Carried out by any unpickler that looks names up."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.makedirs, (str(self.path), 0o777, True)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_megatron_checkpoint_is_not_run(tmp_path: Path, legacy: bool) -> None:
    """Where it stands beside what is needed, the conversion goes on without it."""
    checkpoint = megatron_checkpoint(2.0, arguments=training_arguments(hook=Evil(tmp_path / "ran")))
    checkpoint["lr_scheduler"] = Evil(tmp_path / "ran")
    (tmp_path / "a.pt").write_bytes(saved_bytes(checkpoint, legacy=legacy))
    convert(tmp_path / "a.pt", tmp_path / "out")
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert (tmp_path / "ran").exists(), "the attack is real"


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("where", ["value", "key", "all"])
def test_code_in_a_model_folder_is_refused(
    tmp_path: Path, refused: Callable[..., str], legacy: bool, where: str
) -> None:
    evil = Evil(tmp_path / "ran")
    state: Any = {"value": {"a": torch.ones(1), "b": evil}, "key": {evil: torch.ones(1)}, "all": evil}[where]
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text('{"model_type": "bert"}')
    (source / "pytorch_model.bin").write_bytes(saved_bytes(state, legacy=legacy))
    assert "the pickle asks for 'os makedirs'" in refused(source)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": torch.ones(1).expand(2**40)}, "expected each value once and no gaps"),
        ({"a": torch.ones(9)[::2]}, "expected each value once and no gaps"),
        ({"a": torch.arange(9.0)[:5], "b": None}, "'b': expected a tensor, got NoneType"),
        ({"a": {"b": torch.ones(2)}}, "'a': expected a tensor, got dict"),
        ([torch.ones(2)], "expected a table of tensors, got list"),
    ],
)
def test_what_is_no_table_of_whole_tensors(
    tmp_path: Path, refused: Callable[..., str], tensors: object, message: str
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "pytorch_model.bin").write_bytes(saved_bytes(tensors))
    assert message in refused(tmp_path / "pytorch_model.bin")


def test_pieces_that_overlap(tmp_path: Path, refused: Callable[..., str]) -> None:
    """A small file could otherwise become a large one: every name a little further on in one storage."""
    whole = torch.arange(1000.0)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "pytorch_model.bin").write_bytes(saved_bytes({"a": whole[:900], "b": whole[100:]}))
    assert "tensors 'a' and 'b' overlap in the file" in refused(tmp_path / "pytorch_model.bin")
    (tmp_path / "pytorch_model.bin").write_bytes(saved_bytes({"a": whole, "b": whole.view(10, 100)}))
    assert "the same bytes as 'a', yet another shape" in refused(tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text('{"model_type": "bert", "tie_word_embeddings": false}')
    (tmp_path / "pytorch_model.bin").write_bytes(saved_bytes({str(number): whole for number in range(5)}))
    assert "0, 1, 2, 3, 4: one piece of the file" in refused(tmp_path / "pytorch_model.bin")


def test_a_shape_beyond_its_storage(tmp_path: Path, refused: Callable[..., str]) -> None:
    """Written by hand into the pickle, where 24 becomes 25; in the older format, which has no checksum."""
    content = saved_bytes({"a": torch.ones(24)}, legacy=True)
    assert content.count(b"K\x18\x85") == 1
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "pytorch_model.bin").write_bytes(content.replace(b"K\x18\x85", b"K\x19\x85"))
    assert "tensor 'a': 100 bytes from byte 0 on, its storage has 96" in refused(tmp_path / "pytorch_model.bin")


def test_keys_that_cannot_or_must_not_be_hashed() -> None:
    """A table as a key, and a tuple that holds another one twice, a hundred times over: neither is hashed."""
    deep = b")q\x000" + b"h\x00h\x00\x86q\x000" * 100 + b"h\x00"
    for key in (b"}", deep):
        content = b"\x80\x02}" + key + b"K\x01sX\x01\x00\x00\x00aK\x02s."
        assert read_pickle(BytesIO(content)).root == {"a": 2}


def test_values_beyond_the_dtype_asked_for(tmp_path: Path, refused: Callable[..., str]) -> None:
    def large(checkpoint: dict[str, Any]) -> None:
        layers(checkpoint)["final_layernorm.bias"] = torch.tensor([1e5] * 3 + [1.0] * 21)

    line = refused(changed(tmp_path, large), "--dtype", "float16")
    assert "bert.encoder.ln.bias: 3 values are too large for float16, expected another dtype" in line


# The call.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "Missing argument"),
        ("a.pt", "Missing argument"),
        ("no.zip out", "no.zip: no such file or folder"),
        ("a.pt out --dtype int8", "'--dtype'"),
        ("a.pt full", "full: is a folder that is not empty, expected a new or empty folder for the output"),
        ("a.pt a.pt", "a.pt: is a file, expected a new or empty folder for the output"),
        ("a.pt a.pt/out", "cannot be written"),
        ("text.txt out", "text.txt: not a file of torch.save"),
        ("empty.bin out", "empty.bin: not a file of torch.save"),
        ("folder out", "folder: holds no weights; expected"),
        ("folder out --vocab text.txt", "--vocab: is for a Megatron checkpoint"),
        ("folder out --config text.txt", "--config: is for a Megatron checkpoint"),
        ("a.pt out --config no.json", "no.json: no such file"),
        ("flat.bin out", "config.json: no such file"),
        ("pipe out", "not a regular file"),
    ],
)
def test_a_wrong_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.pt").write_bytes(saved_bytes(megatron_checkpoint(2.0, arguments=training_arguments())))
    Path("flat.bin").write_bytes(saved_bytes({"a": torch.ones(1)}))
    Path("text.txt").write_text("sun\n")
    Path("empty.bin").touch()
    os.mkfifo("pipe")
    for folder in ("folder", "full"):
        Path(folder).mkdir()
    Path("full/notes.md").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert run(["convert", *arguments.split()]) == 2
    done = capsys.readouterr()
    assert done.out == ""
    assert message in done.err
    assert done.err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk_leaves_nothing(tmp_path: Path, refused: Callable[..., str]) -> None:
    """A limit on the size of files stands in for it."""
    source = changed(tmp_path)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
    try:
        assert "cannot be written (File too large)" in refused(source)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)


def test_the_command_says_what_it_wrote_and_how_to_load_it(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "zip", saved_bytes(megatron_checkpoint(1.0, arguments=training_arguments())))
    (tmp_path / "out").mkdir()  # an empty folder may be there
    call = [sys.executable, "-m", "padless", "convert", str(archive), "out"]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    told = convert(archive, tmp_path / "again")
    assert 0 < size - told.nbytes < 10_000
    assert done.stdout == (
        f"out: {told.tensors} tensors of float16, {told.nbytes:,} bytes in 1 file; "
        "load it with padless.MegatronBertForPreTraining.from_pretrained('out')\n"
    )
    assert run(["convert", str(archive), str(tmp_path / "quiet"), "--quiet"]) == 0


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from padless.engine.cli.app import run\n"
        "run(['convert', '--help'])\n"
        "print(sorted({'torch', 'triton', 'numpy', 'tokenizers'} & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "[]\n"
    assert "Usage: padless convert" in done.stdout
