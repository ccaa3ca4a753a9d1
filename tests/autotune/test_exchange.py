"""`configs.json`: what a GPU report found is filed entry by entry, and nothing else ever is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mutations import mutated, with_checksum
from tuned import H100, H200, attention_call, entry, linear_call, tiling

from padless.autotune.entries import candidates_of, is_candidate, tiling_of
from padless.autotune.exchange import file_records, read_exchange, record_tree, write_exchange
from padless.autotune.lookup import Lookup
from padless.autotune.record import Entry, RecordError, Tiling, decode, encode, read_record
from padless.autotune.store import Store
from padless.engine.errors import InputError
from padless.kernels import attention

LINEAR = tiling_of(candidates_of("linear")[3])


def tree_of(found: Entry, op: str = "attention", target: str = "nvidia-h200") -> dict[str, Any]:
    return record_tree(target, op, found)


def written(folder: Path, *trees: Any) -> Path:
    path = folder / "configs.json"
    path.write_text(write_exchange(list(trees), "by a test"))
    return path


def three() -> list[dict[str, Any]]:
    return [
        tree_of(entry()),
        tree_of(entry(attention_call(128), tiling(keys=32))),
        tree_of(entry(linear_call(), LINEAR), op="linear"),
    ]


def test_what_was_measured_is_filed_and_served(tmp_path: Path) -> None:
    """From a report to the lookup that kernels ask, and `git` sees one line an entry."""
    records, refused = read_exchange(written(tmp_path, *three()), is_candidate)
    assert (len(records), refused) == (3, [])
    filed = file_records(records, tmp_path / "configs")
    folder = tmp_path / "configs" / "nvidia-h200"
    assert filed.written == {folder / "attention.json": 2, folder / "linear.json": 1}
    assert filed.refused == ()
    assert (folder / "attention.json").read_text().count('\n{"key"') == 2
    lookup = Lookup(Store(None), tmp_path / "configs")
    call = attention_call(128)
    answer = lookup.find(
        call, H200, attention.CANDIDATES, attention.default_config(call), triton="9.9.9", kernel_hash=lambda: None
    )
    assert (answer.source, tiling_of(answer.config)) == ("shipped nvidia-h200", tiling(keys=32))
    assert sorted(path.name for path in folder.iterdir()) == ["attention.json", "linear.json"]


def test_a_later_report_takes_the_place_of_an_older_one_whatever_made_it(tmp_path: Path) -> None:
    """Two answers to one call would be a doubt, and serve nobody: versions are no reason to miss a shipped file."""
    old = [entry(), entry(attention_call(128), tiling(keys=32)), entry(device=H100)]
    new = entry(config=tiling(keys=16), triton="3.9.0", kernel_hash="f" * 16, torch="2.13.0")
    folder = tmp_path / "configs"
    for found in ([tree_of(old[0]), tree_of(old[1]), tree_of(old[2], target=H100.slug)], [tree_of(new)]):
        records, _ = read_exchange(written(tmp_path, *found), is_candidate)
        file_records(records, folder)
    there = read_record(folder / "nvidia-h200" / "attention.json", "nvidia-h200", "attention")
    assert there is not None
    assert set(there.entries) == {new, old[1]}
    other = read_record(folder / H100.slug / "attention.json", H100.slug, "attention")
    assert other is not None
    assert other.entries == (old[2],)


def test_filing_the_same_again_changes_no_byte(tmp_path: Path) -> None:
    records, _ = read_exchange(written(tmp_path, *three()), is_candidate)
    file_records(records, tmp_path / "configs")
    before = {path: path.read_bytes() for path in (tmp_path / "configs").rglob("*.json")}
    file_records(list(reversed(records)), tmp_path / "configs")
    assert before == {path: path.read_bytes() for path in (tmp_path / "configs").rglob("*.json")}


def poisoned() -> dict[str, tuple[Any, str]]:
    """A tree that is no sound record, and a word of why."""
    good = tree_of(entry())

    def changed(change: Any) -> Any:
        tree = json.loads(json.dumps(good))
        change(tree)
        return json.loads(with_checksum(tree))

    def put(*path: Any, value: Any) -> Any:
        def change(tree: Any) -> None:
            for name in path[:-1]:
                tree = tree[name]
            tree[path[-1]] = value

        return changed(change)

    first = ("entries", 0)
    return {
        "a checksum of something else": (good | {"checksum": "0" * 64}, "checksum"),
        "no candidate": (put(*first, "config", "blocks", "BLOCK_M", value=96), "none of the kernel's candidates"),
        "another op's candidate": (tree_of(entry(config=LINEAR)), "none of the kernel's candidates"),
        "an unknown op": (put("op", value="fly"), "expected a key of no op of ours"),
        "a path for an op": (put("op", value="../../attention"), "op"),
        "a path for a target": (put("target", value="../../etc"), "target"),
        "another GPU's": (put("target", value="nvidia-b200"), "expected those of nvidia-b200"),
        "a key of other facts": (put(*first, "key", "hidden", value=768), "expected a key of"),
        "a batch in its key": (put(*first, "key", "batch", value=8), "expected facts of"),
        "no time": (put(*first, "provenance", "us", value=None), "expected gpu"),
        "a negative time": (put(*first, "provenance", "us", value=-1.0), "microseconds"),
        "nothing measured": (tree_of(entry(gpu=None, multiprocessors=None, us=None, default_us=None), target="sm_90"),
                             "measured on a GPU"),
        "no entry": (put("entries", value=[]), "found none"),
        "a number": (3, "expected a JSON object"),
        "nothing": (None, "expected a JSON object"),
        "not a number": (json.loads('{"schema": NaN}'), "expected finite numbers"),
    }  # fmt: skip


@pytest.mark.parametrize("kind", poisoned())
def test_a_poisoned_record_is_refused_in_one_line_and_its_neighbours_are_filed(tmp_path: Path, kind: str) -> None:
    tree, reason = poisoned()[kind]
    path = written(tmp_path, three()[0], tree, three()[2])
    records, refused = read_exchange(path, is_candidate)
    assert [record.op for record in records] == ["attention", "linear"]
    (line,) = refused
    assert line.startswith(f"{path}: record 2: ")
    assert reason in line
    assert "\n" not in line
    file_records(records, tmp_path / "configs")
    assert {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*.json")} == {
        "configs.json", "configs/nvidia-h200/attention.json", "configs/nvidia-h200/linear.json",
    }  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b"\xff\xfe", b'{"kind": "tuned configurations"}', b"[" * 100_000,
     b'{"kind": "tuned configurations", "schema": 2, "records": []}',
     b'{"kind": "tuned configurations", "schema": 1, "records": 3}',
     b'{"kind": "tuned configurations", "schema": 1, "schema": 1, "records": []}',
     b'{"kind": "tuned configurations", "schema": true, "records": []}',
     b'{"kind": "gpu-report", "schema": 1, "records": []}'],
)  # fmt: skip
def test_what_is_no_such_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "configs.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as raised:
        read_exchange(path, is_candidate)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("block", range(8))
def test_whatever_happens_to_the_file_only_what_was_measured_is_read(tmp_path: Path, block: int) -> None:
    """Bytes changed, cut off or moved; values of any type anywhere, half of them with their checksums made right."""
    path = written(tmp_path, *three())
    whole = path.read_bytes()
    for number in range(60 * block, 60 * (block + 1)):
        tree = json.loads(whole)
        if number % 2:
            path.write_bytes(mutated(whole, number))
        else:
            part = mutated(encode(decode(json.dumps(tree["records"][number % 3]).encode())), number)
            try:
                tree["records"][number % 3] = json.loads(part)
            except (ValueError, RecursionError):
                continue
            path.write_text(json.dumps(tree))
        try:
            records, refused = read_exchange(path, is_candidate)
        except InputError:
            continue
        for record in records:
            for found in record.entries:
                assert is_candidate(record.op, found.tiling)
                assert found.provenance.us is not None
        assert all("\n" not in line for line in refused)


def test_a_file_that_is_no_record_is_left_as_it_is(tmp_path: Path) -> None:
    there = tmp_path / "configs" / "nvidia-h200" / "attention.json"
    there.parent.mkdir(parents=True)
    there.write_text("notes of mine")
    records, _ = read_exchange(written(tmp_path, *three()), is_candidate)
    filed = file_records(records, tmp_path / "configs")
    assert there.read_text() == "notes of mine"
    (line,) = filed.refused
    assert "not JSON" in line
    assert "2 entries not filed" in line
    assert list(filed.written) == [there.parent / "linear.json"]


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "configs").write_text("a file")
    records, _ = read_exchange(written(tmp_path, *three()), is_candidate)
    with pytest.raises(InputError, match=r"attention\.json: cannot be (written|read)"):
        file_records(records, tmp_path / "configs")


def test_every_candidate_can_be_written_and_is_known_again() -> None:
    for op in ("attention", "linear", "norm", "mlm_head", "mobilebert_in", "decode_attention", "pool"):
        for config in candidates_of(op):
            assert is_candidate(op, tiling_of(config))
    assert not is_candidate("attention", Tiling((("BLOCK_M", 96),), 4, 2))
    assert not is_candidate("fly", tiling())
    with pytest.raises(RecordError):
        Tiling((("BLOCK_M", -1),), 4, 2)
