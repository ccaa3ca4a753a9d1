"""Reading a sentencepiece `.model`: a protocol buffer with the pieces of a vocabulary and their scores.

The format is https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto. Only the fields that a
Unigram tokenizer needs are read; the wire format is simple enough that no library is needed for that.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import TokenizerError

__all__ = ["CONTROL", "UNKNOWN", "USER_DEFINED", "SentencePiece", "SentencePieceModel", "read_sentencepiece"]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
KINDS = range(1, 7)
UNIGRAM = 1
ALGORITHMS = {1: "Unigram", 2: "BPE", 3: "word", 4: "character"}

LARGEST_FILE = 16 * 2**20
"""Bytes; the largest known vocabularies have 5 million. Bounds the memory: a piece becomes 100 times its size."""

LONGEST_PIECE = 1024
"""Bytes. Sentencepiece itself stops at 16 characters unless told otherwise."""

VARINT, FIXED_64, BYTES, FIXED_32 = 0, 1, 2, 5

# Fields of ModelProto, SentencePiece, TrainerSpec and NormalizerSpec.
PIECES, TRAINER, NORMALIZER = 1, 2, 3
PIECE, SCORE, KIND = 1, 2, 3
ALGORITHM, BYTE_FALLBACK, UNKNOWN_ID = 3, 35, 40
CHARACTER_MAP = 2


@dataclass(frozen=True)
class SentencePiece:
    """One piece of a vocabulary.

    Attributes:
        text: as it is spelled, with U+2581 for a space.
        score: logarithm of its probability.
        kind: NORMAL, UNKNOWN, CONTROL, USER_DEFINED, unused (5) or a byte (6).
    """

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class SentencePieceModel:
    """A Unigram vocabulary.

    Attributes:
        pieces: in the order of their ids.
        unknown_id: of the piece that stands for what has no piece.
        character_map: how texts are normalised, in sentencepiece's own format; empty for not at all.
    """

    pieces: tuple[SentencePiece, ...]
    unknown_id: int
    character_map: bytes


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read a Unigram model.

    Raises:
        TokenizerError: the file cannot be read, is no such model, or is one of another kind; naming the file and byte.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise TokenizerError(f"{path}: {size:,} bytes, expected at most {LARGEST_FILE:,}")
        data = path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read ({error.strerror or error})") from None
    try:
        return _model(data)
    except ValueError as error:
        raise TokenizerError(f"{path}: not a readable sentencepiece model ({error})") from None


def _model(data: bytes) -> SentencePieceModel:
    pieces: list[SentencePiece] = []
    algorithm, unknown_id, byte_fallback, character_map = UNIGRAM, 0, 0, b""
    for field, value in _fields(data, 0, len(data)):
        if field == PIECES:
            pieces.append(_piece(data, *_span(value, "pieces")))
        elif field == TRAINER:
            for inner, setting in _fields(data, *_span(value, "trainer_spec")):
                algorithm = _number(setting, "model_type") if inner == ALGORITHM else algorithm
                unknown_id = _number(setting, "unk_id") if inner == UNKNOWN_ID else unknown_id
                byte_fallback = _number(setting, "byte_fallback") if inner == BYTE_FALLBACK else byte_fallback
        elif field == NORMALIZER:
            for inner, setting in _fields(data, *_span(value, "normalizer_spec")):
                if inner == CHARACTER_MAP:
                    start, end = _span(setting, "precompiled_charsmap")
                    character_map = data[start:end]
    if algorithm != UNIGRAM:
        raise ValueError(f"model_type: expected Unigram, found {ALGORITHMS.get(algorithm, algorithm)}")
    if byte_fallback:
        raise ValueError("byte_fallback: expected none, found a vocabulary that falls back to bytes")
    texts = {piece.text for piece in pieces}
    if not pieces:
        raise ValueError("no pieces")
    if len(texts) < len(pieces):
        seen: set[str] = set()
        twice = next(piece.text for piece in pieces if piece.text in seen or seen.add(piece.text))
        raise ValueError(f"piece {twice!r:.60} is there twice")
    if not 0 <= unknown_id < len(pieces) or pieces[unknown_id].kind != UNKNOWN:
        raise ValueError(f"unk_id {unknown_id}: expected the id of the unknown piece")
    return SentencePieceModel(tuple(pieces), unknown_id, character_map)


def _piece(data: bytes, start: int, end: int) -> SentencePiece:
    text, score, kind = b"", 0.0, NORMAL
    for field, value in _fields(data, start, end):
        if field == PIECE:
            first, last = _span(value, "piece")
            text = data[first:last]
        elif field == SCORE:
            if not isinstance(value, float):
                raise ValueError(f"score: of the wrong type, before byte {end}")
            score = value
        elif field == KIND:
            kind = _number(value, "type")
    if not 0 < len(text) <= LONGEST_PIECE:
        raise ValueError(f"a piece of {len(text)} bytes before byte {end}, expected 1 to {LONGEST_PIECE}")
    if not math.isfinite(score):
        raise ValueError(f"score {score} before byte {end}, expected a finite number")
    if kind not in KINDS:
        raise ValueError(f"type {kind} before byte {end}, expected {KINDS.start} to {KINDS.stop - 1}")
    try:
        return SentencePiece(text.decode(), score, kind)
    except UnicodeDecodeError:
        raise ValueError(f"a piece before byte {end} is not UTF-8") from None


def _fields(data: bytes, place: int, end: int) -> Iterator[tuple[int, int | float | tuple[int, int]]]:
    """Yield (field number, value) of a message: an int, a float, or the (start, end) of bytes."""
    while place < end:
        key, place = _varint(data, place, end)
        field, wire = key >> 3, key & 7
        if wire == VARINT:
            value, place = _varint(data, place, end)
            yield field, value
        elif wire == BYTES:
            size, place = _varint(data, place, end)
            if size > end - place:
                raise ValueError(f"{size} bytes announced before byte {place}, {end - place} left")
            yield field, (place, place + size)
            place += size
        elif wire in (FIXED_32, FIXED_64):
            size = 4 if wire == FIXED_32 else 8
            if size > end - place:
                raise ValueError(f"cut short at byte {end}")
            if wire == FIXED_32:
                yield field, struct.unpack_from("<f", data, place)[0]
            place += size
        else:
            raise ValueError(f"wire type {wire} before byte {place}")
        if not field:
            raise ValueError(f"field 0 before byte {place}")


def _varint(data: bytes, place: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while place < end:
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError(f"a number of more than 64 bits before byte {place}")
    raise ValueError(f"cut short at byte {end}")


def _span(value: int | float | tuple[int, int], name: str) -> tuple[int, int]:
    if not isinstance(value, tuple):
        raise ValueError(f"{name}: of the wrong type")
    return value


def _number(value: int | float | tuple[int, int], name: str) -> int:
    if not isinstance(value, int):
        raise ValueError(f"{name}: of the wrong type")
    return value
