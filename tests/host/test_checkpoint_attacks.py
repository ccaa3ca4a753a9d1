"""Folders made to harm: each is refused with one typed line, promptly, and without the memory it asks for.

Every case is loaded in a process of its own, forked from one that has loaded a good checkpoint, so that a hang, a crash
and the peak of its memory are its own too.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import save_file

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

# Of processor time, which neighbours on the machine do not lengthen; a case that waits is ended by an alarm instead.
MOST_SECONDS = 1.0
MOST_GROWTH_BYTES = 100 * 10**6

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"

MEASURE = """
import ctypes, json, os, signal, sys, time
from pathlib import Path
import torch
from torch import nn
from padless.engine.models.bert import BertConfig
from padless.engine.weights import NameRules, load_weights

def kilobytes(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field))

def load(folder):
    if (folder / "config.json").exists():
        BertConfig.from_folder(folder)
    load_weights(nn.Linear(5, 3), folder, NameRules(), pickled=(folder / "pickled").exists())

def harm(folder):
    if folder.name == "memory":
        bytearray(b"x") * 200_000_000
    else:
        ctypes.string_at(0)

def attack(folder, load):
    before, start = kilobytes("VmRSS"), time.process_time()
    try:
        load(folder)
        name, message = "", "loaded"
    except BaseException as error:
        name, message = type(error).__name__, str(error)
    return [name, message, time.process_time() - start, 1024 * (kilobytes("VmHWM") - before)]

torch.set_num_threads(1)
for good in sys.argv[3:]:
    load(Path(good))
attacks, controls = (sorted(Path(argument).iterdir()) for argument in sys.argv[1:3])
for folder in [*attacks, *controls]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os.write(writing, json.dumps(attack(folder, harm if folder in controls else load)).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        told = stream.read()
    _, status = os.waitpid(child, 0)
    print(json.dumps([folder.name, json.loads(told) if told else ["ended", f"status {status}", 0, 0]]))
"""


class Attack(NamedTuple):
    """What builds the folder, and a part of the line that must refuse it."""

    build: Callable[[Path], object]
    message: str
    error: str = "WeightsError"


class Outcome(NamedTuple):
    """What loading a folder came to."""

    error: str
    message: str
    seconds: float
    growth: int


# Building blocks.


def good_tensors() -> dict[str, torch.Tensor]:
    return {"weight": torch.ones(3, 5), "bias": torch.ones(3)}


def entry(begin: int, end: int, shape: object, dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def raw(text: bytes | object, *, length: int | None = None, data: int = 0) -> Callable[[Path], object]:
    """A file with this header, and `data` zero bytes behind it, which take no disk."""
    header = text if isinstance(text, bytes) else json.dumps(text).encode()

    def build(folder: Path) -> None:
        with (folder / WEIGHTS).open("wb") as stream:
            stream.write(struct.pack("<Q", len(header) if length is None else length) + header)
            stream.truncate(stream.tell() + data)

    return build


def index(weight_map: object, name: str = INDEX) -> Callable[[Path], object]:
    return text_file(json.dumps({"weight_map": weight_map}), name)


def text_file(text: str | bytes, name: str) -> Callable[[Path], object]:
    content = text.encode() if isinstance(text, str) else text
    return lambda folder: (folder / name).write_bytes(content)


def link(name: str, target: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).symlink_to(target)


def fifo(name: str) -> Callable[[Path], object]:
    return lambda folder: os.mkfifo(folder / name)


def good_file(name: str) -> Callable[[Path], object]:
    return lambda folder: save_file(good_tensors(), folder / name)


def everything(*builders: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: [build(folder) for build in builders]


def repeated(text: str, size: int) -> str:
    return text * (size // len(text))


# Pickles: put together by hand, since pickle itself cannot write most of these.

OPEN, CLOSE, TENSOR, FLOATS = b"\x80\x02}(", b"u.", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n"
NO_HOOKS = b"ccollections\nOrderedDict\n)R"


def word(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    content = value.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(
    key: bytes, size: tuple[int, ...], stride: tuple[int, ...], *, numel: int, offset: int = 0, kind: bytes = FLOATS
) -> bytes:
    storage = b"(" + word("storage") + kind + key + word("cpu") + number(numel) + b"tQ"
    return TENSOR + b"(" + storage + number(offset) + numbers(size) + numbers(stride) + b"\x89" + NO_HOOKS + b"tR"


WEIGHT = word("weight") + tensor(word("0"), (3, 5), (5, 1), numel=15)
BIAS = word("bias") + tensor(word("1"), (3,), (1,), numel=3)


def archive(
    pickle: bytes,
    *,
    compressed: tuple[str, ...] = (),
    members: dict[str, bytes] | None = None,
    name: str = PICKLED,
    comment: bytes = b"",
) -> Callable[[Path], object]:
    """What torch.save writes, with this pickle; zeros for the storages of WEIGHT and BIAS."""
    held = {"data.pkl": pickle, "byteorder": b"little", "data/0": bytes(60), "data/1": bytes(12), "version": b"3\n"}

    def build(folder: Path) -> None:
        (folder / "pickled").touch()
        with zipfile.ZipFile(folder / name, "w") as file:
            for member, content in {**held, **(members or {})}.items():
                method = zipfile.ZIP_DEFLATED if member in compressed else zipfile.ZIP_STORED
                file.writestr(f"model/{member}", content, compress_type=method)
            file.comment = comment

    return build


def saved(value: Any, name: str = PICKLED, **options: Any) -> Callable[[Path], object]:
    def build(folder: Path) -> None:
        (folder / "pickled").touch()
        torch.save(value, folder / name, **options)

    return build


class Evil:
    """Unpickling it makes a file beside this one's folder."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, ...]]:
        return os.system, ("touch evil-was-here",)


def expanded() -> dict[str, torch.Tensor]:
    return {"weight": torch.ones(1).expand(2**40), "bias": torch.ones(3)}


def overlapping() -> dict[str, torch.Tensor]:
    base = torch.ones(20)
    return {"weight": base[:15].view(3, 5), "bias": base[14:17]}


def many_links(folder: Path) -> None:
    """An index whose shards are one file, so that a small folder would be read ten thousand times."""
    good_file("x.safetensors")(folder)
    names = [f"{number}.safetensors" for number in range(10_000)]
    for name in names[:50]:
        (folder / name).symlink_to("x.safetensors")
    for name in names[50:]:
        os.link(folder / "x.safetensors", folder / name)
    index({name: name for name in names})(folder)


def limits(folder: Path) -> None:
    """As many names as are parsed, in as many bytes; one wide character makes the parser's text four times as large."""
    names = [f"{number}" for number in range(149_996)]
    entries = ",".join(f'"{name}":"{"x" * 24}"' for name in names)
    text = f'{{"weight_map":{{"😀":"",{entries}}}}}'
    (folder / INDEX).write_text(text + " " * (6 * 2**20 - len(text.encode())))


def many_members(folder: Path) -> None:
    (folder / "pickled").touch()
    with zipfile.ZipFile(folder / PICKLED, "w") as file:
        for member in range(60_000):
            file.writestr(f"m/{member:060}", b"")


DEEP = 20_000
NOT_READABLE = "not a readable safetensors file"
NOT_A_NAME = "expected the name of a .safetensors file in the same folder"

ATTACKS: dict[str, Attack] = {
    # Files that lie about themselves.
    "empty file": Attack(text_file("", WEIGHTS), NOT_READABLE),
    "header of 2^63 bytes": Attack(raw({}, length=2**63), NOT_READABLE),
    "header of 1 TiB in a file that large": Attack(raw({}, length=2**40, data=2**40), NOT_READABLE),
    "header of 50 MB of blanks": Attack(raw(b"{" + b" " * 50_000_000 + b"}"), NOT_READABLE),
    "header of 6 MB of empty lists": Attack(raw(b'{"a":[' + b"[]," * 2_000_000 + b"[]]}"), NOT_READABLE),
    "header of the most lists that are parsed": Attack(raw(b'{"a":[' + b"[]," * 149_990 + b"[]]}"), NOT_READABLE),
    "header of wide characters": Attack(raw(('{"' + "😀" * 1_500_000 + '":1}').encode()), NOT_READABLE),
    "header not JSON": Attack(raw(b"{" + b"x" * 1000), NOT_READABLE),
    "header nested deeply": Attack(raw(b'{"a":' * DEEP + b"1" + b"}" * DEEP), NOT_READABLE),
    "header with a number of a million digits": Attack(raw(b'{"a":' + b"9" * 1_000_000 + b"}"), NOT_READABLE),
    "header with NaN": Attack(raw(b'{"a":NaN}'), NOT_READABLE),
    "header with half a character": Attack(raw(b'{"\\ud800":1}'), "is not Unicode text"),
    "duplicate key": Attack(
        raw(b'{"a":%b,"a":%b}' % ((json.dumps(entry(0, 4, [1])).encode(),) * 2), data=4), "'a' is given twice"
    ),
    "100,000 duplicate keys": Attack(raw(b"{" + b'"a":1,' * 100_000 + b'"a":1}'), "'a' is given twice"),
    "overlap": Attack(raw({"weight": entry(0, 60, [3, 5]), "bias": entry(0, 12, [3])}, data=60), "'weight': begins at"),
    "hole": Attack(raw({"weight": entry(0, 60, [3, 5]), "bias": entry(64, 76, [3])}, data=76), "begins at byte 64"),
    "offset past the end": Attack(raw({"bias": entry(0, 12, [3])}, data=8), "8 bytes of data, expected 12"),
    "offsets of 2^70": Attack(raw({"bias": entry(2**70, 2**70 + 12, [3])}, data=12), "data_offsets"),
    "negative shape": Attack(raw({"bias": entry(0, 12, [-3])}, data=12), "shape [-3]"),
    "shape of truth values": Attack(raw({"bias": entry(0, 4, [True])}, data=4), "shape [True]"),
    "shape product overflows": Attack(raw({"bias": entry(0, 4, [2**32, 2**32, 2])}, data=4), "do not hold"),
    "shape of 100,000 sizes": Attack(raw({"bias": entry(0, 12, [2**62] * 100_000)}, data=12), "at most 64 sizes"),
    "unknown dtype": Attack(raw({"bias": entry(0, 12, [3], "F31")}, data=12), "unknown dtype 'F31'"),
    "dtype that is a list": Attack(raw({"bias": entry(0, 12, [3], ["F32"])}, data=12), "unknown dtype"),
    "wrong dtype": Attack(
        raw({"bias": entry(0, 24, [3], "I64"), "weight": entry(24, 84, [3, 5])}, data=84), "found I64, expected one of"
    ),
    "tensor of 1 TiB": Attack(
        raw({"weight": entry(0, 2**40, [2**38]), "bias": entry(2**40, 2**40 + 12, [3])}, data=2**40 + 12),
        "found [274877906944], expected [3, 5]",
    ),
    "name of a million characters": Attack(raw({"a" * 10**6: entry(0, 4, [1])}, data=4), "more than 1,000 characters"),
    "Git LFS pointer": Attack(text_file("version https://git-lfs.github.com/spec/v1\n", WEIGHTS), "git lfs pull"),
    # Things that are not files, or not of this folder.
    "directory in place of the file": Attack(lambda folder: (folder / WEIGHTS).mkdir(), "cannot be read"),
    "pipe in place of the file": Attack(fifo(WEIGHTS), "not a regular file"),
    "pipe in place of the index": Attack(fifo(INDEX), "not a regular file"),
    "pipe in place of a shard": Attack(
        everything(fifo("x.safetensors"), index({"weight": "x.safetensors"})), "not a regular file"
    ),
    "link to an endless device": Attack(link(WEIGHTS, "/dev/zero"), "leads out of the model folder"),
    "link out of the folder": Attack(link(WEIGHTS, "../../outside.safetensors"), "leads out of the model folder"),
    "link of a shard out of the folder": Attack(
        everything(link("x.safetensors", "../../outside.safetensors"), index({"weight": "x.safetensors"})),
        "leads out of the model folder",
    ),
    "index that is a link out of the folder": Attack(link(INDEX, "/etc/passwd"), "leads out of the model folder"),
    "link to itself": Attack(link(WEIGHTS, WEIGHTS), "no such file"),
    "links in a loop": Attack(
        everything(
            link("a.safetensors", "b.safetensors"),
            link("b.safetensors", "a.safetensors"),
            index({"weight": "a.safetensors"}),
        ),
        "no such file",
    ),
    # Indexes.
    "shard by traversal": Attack(index({"weight": "../../outside.safetensors"}), NOT_A_NAME),
    "shard by absolute path": Attack(index({"weight": "/etc/outside.safetensors"}), NOT_A_NAME),
    "shard in a subfolder": Attack(index({"weight": "sub/x.safetensors"}), NOT_A_NAME),
    "shard that is the index": Attack(index({"weight": INDEX}), NOT_A_NAME),
    "shard that links to the index": Attack(
        everything(link("x.safetensors", INDEX), index({"weight": "x.safetensors"})), NOT_READABLE
    ),
    "shard that is a million characters": Attack(index({"weight": "x" * 10**6}), NOT_A_NAME),
    "10,000 shards that are one file": Attack(many_links, "are the same file"),
    "index of a million entries": Attack(index({f"t{number}": "x.safetensors" for number in range(10**6)}), "at most"),
    "index at all limits": Attack(limits, "149,997 tensors, expected at most"),
    "index of 200,000 entries": Attack(index({f"t{number}": "x.safetensors" for number in range(200_000)}), "at most"),
    "index of 1 TiB": Attack(
        everything(text_file("{", INDEX), lambda folder: os.truncate(folder / INDEX, 2**40)), "at most 6,291,456"
    ),
    "index nested deeply": Attack(text_file('{"weight_map":' * DEEP, INDEX), "nested too deep"),
    "index of lists": Attack(text_file("[" * DEEP, INDEX), "weight index"),
    "index without an end": Attack(text_file('{"weight_map": {"a', INDEX), "not JSON"),
    "index in UTF-16": Attack(text_file('{"weight_map": {}}'.encode("utf-16"), INDEX), "not UTF-8"),
    "index that promises what its shard lacks": Attack(
        everything(good_file("x.safetensors"), index({"weight": "x.safetensors", "other": "x.safetensors"})),
        "does not hold: other",
    ),
    # Pickles.
    "pickle that was not asked for": Attack(
        everything(saved({"a": Evil()}), lambda folder: (folder / "pickled").unlink()), "can run code when it is read"
    ),
    "pickle under the name of safetensors": Attack(saved({"a": Evil()}, WEIGHTS), NOT_READABLE),
    "pickle that runs a command": Attack(saved({"a": Evil()}), "the pickle asks for"),
    "pickle that runs a command, before torch 1.6": Attack(
        saved({"a": Evil()}, _use_new_zipfile_serialization=False), "not a zip archive"
    ),
    "pickle that asks for builtins": Attack(
        archive(b"\x80\x02cbuiltins\neval\n" + word("1") + b"\x85R."), "asks for 'builtins eval'"
    ),
    "pickle that asks by the stack": Attack(
        archive(b"\x80\x04" + word("os") + word("system") + b"\x93."), "STACK_GLOBAL"
    ),
    "pickle that makes objects": Attack(archive(b"\x80\x02ctorch._utils\n_rebuild_parameter\n)\x81."), "NEWOBJ"),
    "compressed storage": Attack(
        archive(OPEN + WEIGHT + BIAS + CLOSE, compressed=("data/0",), members={"data/0": bytes(256 * 2**20)}),
        "is compressed",
    ),
    "compressed pickle": Attack(
        archive(OPEN + WEIGHT + BIAS + CLOSE + bytes(256 * 2**20), compressed=("data.pkl",)), "is compressed"
    ),
    "pickle of 20 MB": Attack(archive(b"\x80\x02" + b")" * 20_000_000), "expected at most 1,048,576"),
    "pickle of a million operations": Attack(archive(b"\x80\x02" + b")" * 1_000_000), "more than 200,000 operations"),
    "pickle of nested tuples as a name": Attack(
        archive(OPEN + b")" + b"\x85" * 150_000 + b"N" + CLOSE), "nests tuples"
    ),
    "pickle of a tuple that holds itself twice, sixty times": Attack(
        archive(OPEN + b")" + b"".join(b"q%ch%c\x86" % (place, place) for place in range(60)) + b"N" + CLOSE),
        "uses one tuple twice",
    ),
    "pickle without a mark": Attack(archive(b"\x80\x02)t."), "broken pickle"),
    "pickle that ends early": Attack(archive(OPEN), "not a readable file of torch.save"),
    "pickle of a list": Attack(archive(b"\x80\x02)."), "expected a table of tensors"),
    "pickle of other things than tensors": Attack(archive(OPEN + word("a") + b"N" + CLOSE), "expected a tensor"),
    "tensor of one value, 2^40 times": Attack(saved(expanded()), "expected its values one after the other"),
    "tensor larger than its storage": Attack(
        archive(OPEN + word("weight") + tensor(word("0"), (2**40,), (1,), numel=15) + CLOSE), "not a readable file"
    ),
    "storage larger than the file": Attack(
        archive(OPEN + word("weight") + tensor(word("0"), (2**40,), (1,), numel=2**40) + CLOSE), "not a readable file"
    ),
    "storage of negative size": Attack(
        archive(OPEN + word("weight") + tensor(word("0"), (3, 5), (5, 1), numel=-(2**40)) + CLOSE),
        "not a readable file",
    ),
    "tensor before its storage": Attack(
        archive(OPEN + word("weight") + tensor(word("0"), (3, 5), (5, 1), numel=15, offset=-9) + CLOSE),
        "not a readable file",
    ),
    "storage that is not there": Attack(
        archive(OPEN + word("weight") + tensor(word("../../9"), (3, 5), (5, 1), numel=15) + CLOSE),
        "not a readable file",
    ),
    "tensors that overlap": Attack(saved(overlapping()), "overlap in the file"),
    "storage that reaches into the next": Attack(
        archive(OPEN + word("weight") + tensor(word("0"), (45,), (1,), numel=45) + BIAS + CLOSE),
        "overlap in the file",
    ),
    "archive with a comment": Attack(archive(OPEN + WEIGHT + BIAS + CLOSE, comment=b"PK"), "not a zip archive"),
    "archive of the other byte order": Attack(
        archive(OPEN + WEIGHT + BIAS + CLOSE, members={"byteorder": b"big"}), "byte order"
    ),
    "archive of 60,000 members": Attack(many_members, "a list of members of"),
    "pipe in place of a pickle": Attack(everything(fifo(PICKLED), text_file("", "pickled")), "not a regular file"),
    "pickled shard by traversal": Attack(
        everything(index({"weight": "../../outside.bin"}, PICKLED_INDEX), text_file("", "pickled")),
        "expected the name of a .bin file",
    ),
    "pickled shard that is Python": Attack(
        everything(index({"weight": "x.py"}, PICKLED_INDEX), text_file("", "pickled")),
        "expected the name of a .bin file",
    ),
    # Configurations.
    "configuration of 2^60 channels": Attack(
        text_file(json.dumps({"model_type": "bert", "hidden_size": 2**60}), "config.json"), "hidden_size", "ConfigError"
    ),
    "configuration of a million layers": Attack(
        text_file(json.dumps({"model_type": "bert", "num_hidden_layers": 10**6}), "config.json"),
        "num_hidden_layers",
        "ConfigError",
    ),
    "configuration of 10^400 words": Attack(
        text_file(json.dumps({"model_type": "bert", "vocab_size": 10**400}), "config.json"), "vocab_size", "ConfigError"
    ),
    "configuration nested deeply": Attack(text_file('{"a":' * DEEP, "config.json"), "config.json", "ConfigError"),
}


CONTROLS = ("crash", "memory")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Every attack, tried, and the two controls."""
    base = tmp_path_factory.mktemp("attacks")
    save_file(good_tensors(), base / "outside.safetensors")
    for name, attack in ATTACKS.items():
        folder = base / "folders" / name.replace("/", " ")
        folder.mkdir(parents=True)
        attack.build(folder)
    for name in CONTROLS:
        (base / "controls" / name).mkdir(parents=True)
    goods = [base / "good", base / "good pickled"]
    for good in goods:
        good.mkdir()
    save_file(good_tensors(), goods[0] / WEIGHTS)
    archive(OPEN + WEIGHT + BIAS + CLOSE)(goods[1])
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path))
    command = [sys.executable, "-c", MEASURE, base / "folders", base / "controls", *goods]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment, cwd=base)
    assert done.returncode == 0, done.stderr
    assert not list(base.rglob("evil-was-here"))
    return {name: Outcome(*told) for name, told in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused(name: str, outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes[name]
    print(f"{name}: {outcome.seconds:.3f} s, peak memory +{outcome.growth / 1e6:.1f} MB: {outcome.message}")
    assert outcome.error == ATTACKS[name].error
    assert ATTACKS[name].message in outcome.message
    assert len(outcome.message.splitlines()) == 1
    assert len(outcome.message) < 1_000
    assert outcome.seconds <= MOST_SECONDS
    assert outcome.growth <= MOST_GROWTH_BYTES


def test_the_measure_sees_a_crash_a_wait_and_memory(outcomes: dict[str, Outcome]) -> None:
    """A control: in the same process a loader that does what an attack wants is not taken for a refusal."""
    assert outcomes["crash"].error == "ended"
    assert outcomes["memory"].growth > MOST_GROWTH_BYTES
