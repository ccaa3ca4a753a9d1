"""Zip archives from strangers: the list of members, checked before Python's reader takes it apart."""

from __future__ import annotations

import os
import struct
import zipfile
from io import FileIO

from .files import shown

__all__ = ["check_directory", "check_members"]

MOST_DIRECTORY_BYTES = 4 * 2**20
"""Of the archive's list of members, about 100 bytes each."""

DIRECTORY_END = struct.Struct("<4s4H2LH")
DIRECTORY_END_64 = struct.Struct("<4sQ2H2L4Q")
LOCATOR_64 = struct.Struct("<4sLQL")


def check_directory(stream: FileIO) -> None:
    """ValueError where the list of members is large or not at the end, so that readers could find different ones."""
    size = stream.seek(0, os.SEEK_END)
    tail_size = min(size, DIRECTORY_END.size + LOCATOR_64.size)
    stream.seek(size - tail_size)
    tail = stream.read(tail_size)
    stream.seek(0)
    if size < DIRECTORY_END.size or tail[-DIRECTORY_END.size :][:4] != b"PK\5\6":
        raise ValueError("not a zip archive; files of torch before 1.6 are not read")
    *_, directory, _, comment = DIRECTORY_END.unpack(tail[-DIRECTORY_END.size :])
    if comment:
        raise ValueError("an archive with a comment")
    if tail[:4] == b"PK\6\7" and tail_size > DIRECTORY_END.size:
        _, _, where, _ = LOCATOR_64.unpack(tail[: LOCATOR_64.size])
        if where + DIRECTORY_END_64.size + tail_size != size:
            raise ValueError("a list of members that is not at the end")
        stream.seek(where)
        mark, *_, directory, _ = DIRECTORY_END_64.unpack(stream.read(DIRECTORY_END_64.size))
        stream.seek(0)
        if mark != b"PK\6\6":
            raise ValueError("a list of members without its end")
    if directory > MOST_DIRECTORY_BYTES:
        raise ValueError(f"a list of members of {directory:,} bytes, expected at most {MOST_DIRECTORY_BYTES:,}")


def check_members(archive: zipfile.ZipFile) -> str:
    """The one folder of an archive of `torch.save`; ValueError where a member is not plain, or is there twice."""
    members = archive.infolist()
    packed = [member for member in members if member.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise ValueError(f"member {shown(packed[0].filename)} is compressed, expected plain members")
    if any(member.file_size != member.compress_size or member.flag_bits & 1 for member in members):
        raise ValueError("a member whose size is not the size it takes")
    names = [member.filename for member in members]
    if len(set(names)) < len(names) or len({name.partition("/")[0] for name in names}) != 1:
        raise ValueError("members of one name, or outside one folder")
    folder = names[0].partition("/")[0]
    if f"{folder}/data.pkl" not in names:
        raise ValueError("no member data.pkl")
    if f"{folder}/byteorder" in names:
        with archive.open(f"{folder}/byteorder") as order:
            if order.read(10) != b"little":
                raise ValueError("a byte order other than little-endian")
    return folder
