"""The zip in which a Megatron-LM checkpoint is published: one member of it is the checkpoint, and it alone is unpacked.

Members are never written under their own names, and a member that claims to be many times what it takes is refused
before the first byte is unpacked.
"""

from __future__ import annotations

import re
import shutil
import zipfile
import zlib
from pathlib import Path

from ..errors import WeightsError
from ..weights.archive import check_directory
from ..weights.files import listed, one_line, open_file

__all__ = ["is_archive_of_checkpoint", "unpack_checkpoint"]

MEMBER = re.compile(r"(release|iter_\d{1,12})/mp_rank_(\d\d)(_\d{3})?/model_optim_rng\.pt", re.ASCII)

MOST_EXPANSION = 20
"""How many times what it takes a member may be. Trained weights hardly shrink; a bomb of zeros is a thousand times."""

SMALL_BYTES = 2**20
"""Added to that, for members that are all names."""

PIECE_BYTES = 2**20


def is_archive_of_checkpoint(path: Path) -> bool:
    """Whether a file is a zip archive, but not one of torch.save itself.

    Raises:
        WeightsError: it begins as an archive does, but cannot be read as one.
    """
    with open_file(path) as stream:
        if stream.read(2) != b"PK":
            return False
        try:
            check_directory(stream)
            with zipfile.ZipFile(stream) as archive:
                return not any(name.endswith("/data.pkl") for name in archive.namelist())
        except (ValueError, OSError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile) as error:
            raise WeightsError(f"{path}: not a readable zip archive ({one_line(error)})") from None


def unpack_checkpoint(path: Path, scratch: Path) -> Path:
    """Unpack the one checkpoint of a zip archive into `scratch`.

    Raises:
        WeightsError: there is none, there are several or only parts of one, or it cannot be unpacked.
    """
    target = scratch / "model_optim_rng.pt"
    with open_file(path) as stream:
        try:
            with zipfile.ZipFile(stream) as archive:
                member = _checkpoint_of(path, archive, shutil.disk_usage(scratch).free)
                with archive.open(member) as source, target.open("xb") as unpacked:
                    shutil.copyfileobj(source, unpacked, PIECE_BYTES)
        except (ValueError, OSError, EOFError, NotImplementedError, RuntimeError) as error:
            raise WeightsError(f"{path}: cannot be unpacked ({one_line(error)})") from None
        except (zipfile.BadZipFile, zlib.error) as error:
            raise WeightsError(f"{path}: not a readable zip archive ({one_line(error)})") from None
    return target


def _checkpoint_of(path: Path, archive: zipfile.ZipFile, free: int) -> zipfile.ZipInfo:
    found = [member for member in archive.infolist() if MEMBER.fullmatch(member.filename)]
    names = sorted(member.filename for member in found)
    if not found:
        held = listed(archive.namelist()[:5]) or "nothing"
        raise WeightsError(f"{path}: no member release/mp_rank_00/model_optim_rng.pt; it holds {held}")
    if len(found) > 1:
        why = "merge the parts of a model-parallel checkpoint with Megatron-LM first"
        raise WeightsError(f"{path}: expected one checkpoint, found {listed(names)}; {why}")
    member = found[0]
    if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise WeightsError(f"{path}: {names[0]} is encrypted or packed in an unknown way, expected stored or deflated")
    if member.file_size > MOST_EXPANSION * member.compress_size + SMALL_BYTES:
        raise WeightsError(
            f"{path}: {names[0]} would become {member.file_size:,} bytes of {member.compress_size:,}, "
            f"expected at most {MOST_EXPANSION} times as many: weights do not shrink so far"
        )
    if member.file_size > free:
        raise WeightsError(f"{path}: unpacked it takes {member.file_size:,} bytes, {free:,} are free for it")
    return member
