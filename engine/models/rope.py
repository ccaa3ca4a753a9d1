"""The angles of rotary position embeddings: every `rope_type` that transformers' ModernBERT computes.

A text alone is the reference, also where frequencies depend on its length (`dynamic`, `longrope`): every text of a
packed batch is turned by the frequencies of its own length, whatever its neighbours.

Sources: RoFormer (Su et al. 2021) for the plain form; "Extending Context Window of Large Language Models via
Positional Interpolation" (Chen et al. 2023) for `linear`; YaRN (Peng et al. 2023) for `yarn` and, in its section 2, the
NTK-aware scaling of `dynamic`; LongRoPE (Ding et al. 2024); "The Llama 3 Herd of Models" (2024) for `llama3`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from ..batch import PackedBatch
from ..errors import ConfigError

__all__ = ["ROPE_TYPES", "Rope", "RotaryTables"]

logger = logging.getLogger(__name__)

_LENGTH = "original_max_position_embeddings"

_USED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor", _LENGTH, "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    "longrope": ("short_factor", "long_factor", "factor", _LENGTH, "attention_factor"),
    "llama3": ("factor", _LENGTH, "low_freq_factor", "high_freq_factor"),
    "proportional": ("factor", "partial_rotary_factor"),
}
"""What each type reads beside `rope_theta`."""

ROPE_TYPES = tuple(_USED)
"""The types that can be computed."""

_REQUIRED: dict[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "longrope": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}

_LIMITS: dict[str, tuple[float, float]] = {
    "rope_theta": (1, 1e12),
    "factor": (1e-6, 1e6),
    "partial_rotary_factor": (0, 1),
    "attention_factor": (0, 1e4),
    "beta_fast": (1e-6, 1e6),
    "beta_slow": (1e-6, 1e6),
    "mscale": (0, 1e4),
    "mscale_all_dim": (0, 1e4),
    "low_freq_factor": (1e-6, 1e6),
    "high_freq_factor": (1e-6, 1e6),
    _LENGTH: (2, 2**24),
}
"""Smallest and largest value, both allowed: no overflow, no division by zero, no empty logarithm."""


@dataclass(frozen=True)
class Rope:
    """The rotation of one kind of layer, checked.

    Attributes:
        rope_type: one of `ROPE_TYPES`.
        head_dim: channels of an attention head; even.
        max_positions: `max_position_embeddings` of the model, in tokens.
        rope_theta: base of the wavelengths.
        values: the parameters that the type reads, under their names in `rope_parameters`; absent where not given.
    """

    rope_type: str
    head_dim: int
    max_positions: int
    rope_theta: float
    values: Mapping[str, Any]

    @classmethod
    def from_parameters(cls, raw: Mapping[str, Any], *, head_dim: int, max_positions: int, source: str) -> Self:
        """Check the entry of one kind of layer in `rope_parameters`.

        Args:
            raw: the entry; null counts as absent. `type` is the older spelling of `rope_type`.
            head_dim: channels of an attention head.
            max_positions: `max_position_embeddings`; stands in for `original_max_position_embeddings`.
            source: file and field, for messages.

        Raises:
            ConfigError: naming the parameter.
        """
        if head_dim % 2:
            raise ConfigError(f"{source}: rotary embeddings need an even number of channels a head, got {head_dim}")
        given = {name: value for name, value in raw.items() if value is not None}
        older = given.pop("type", "default")
        rope_type = given.pop("rope_type", older)
        if not isinstance(rope_type, str) or rope_type not in _USED:
            raise ConfigError(f"{source}: rope_type: expected one of {', '.join(_USED)}, got {rope_type!r}")
        if _LENGTH in _USED[rope_type]:
            given.setdefault(_LENGTH, max_positions)
        for name, value in given.items():
            _check_value(name, value, head_dim // 2, f"{source}: {name}")
        if "rope_theta" not in given:
            raise ConfigError(f"{source}: rope_theta: missing")
        theta = given.pop("rope_theta")
        values = {name: value for name, value in given.items() if name in _USED[rope_type]}
        _check_together(rope_type, head_dim, theta, values, given, source)
        return cls(rope_type, head_dim, max_positions, theta, values)

    @property
    def scaling(self) -> float:
        """Factor on cosine and sine alike; its square is the factor on the attention scores."""
        if "attention_factor" in self.values:
            return self.values["attention_factor"]
        if self.rope_type == "yarn":
            mscale, all_dim = self.values.get("mscale"), self.values.get("mscale_all_dim")
            if mscale and all_dim:
                return _magnitude(self._stretch, mscale) / _magnitude(self._stretch, all_dim)
            return _magnitude(self._stretch)
        if self.rope_type == "longrope" and self._stretch > 1:
            return math.sqrt(1 + math.log(self._stretch) / math.log(self.values[_LENGTH]))
        return 1.0

    def regime(self, length: int) -> int:
        """What decides the frequencies of a text: texts of one regime share them; 0 is the usual one.

        Args:
            length: tokens from the text's first position to its last.
        """
        if self.rope_type == "dynamic" and length > self.max_positions:
            return length
        if self.rope_type == "longrope" and length > self.values[_LENGTH]:
            return 1
        return 0

    @property
    def usual_length(self) -> float:
        """The longest text of regime 0, in tokens; infinite where the length does not matter."""
        return {"dynamic": self.max_positions, "longrope": self.values.get(_LENGTH)}.get(self.rope_type) or math.inf

    def frequencies(self, regime: int = 0) -> Tensor:
        """Angle per position of every pair of channels, fp32 `[head_dim / 2]`, on the host.

        Rounded to fp32 step by step as transformers does: at position 8,192 the last bit of a frequency is a
        thousandth of a radian.
        """
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim
        return _FREQUENCIES[self.rope_type](self, exponents, regime)

    @property
    def _stretch(self) -> float:
        """Longest text after scaling over longest before."""
        return self.values.get("factor") or self.max_positions / self.values[_LENGTH]

    def _default(self, exponents: Tensor, regime: int) -> Tensor:
        return 1.0 / self.rope_theta**exponents

    def _linear(self, exponents: Tensor, regime: int) -> Tensor:
        return self._default(exponents, regime) / self.values["factor"]

    def _proportional(self, exponents: Tensor, regime: int) -> Tensor:
        turned = int(self.values.get("partial_rotary_factor", 1.0) * self.head_dim // 2)
        frequencies = self._default(exponents, regime)
        frequencies[turned:] = 0.0
        return frequencies / self.values.get("factor", 1.0)

    def _dynamic(self, exponents: Tensor, regime: int) -> Tensor:
        factor, power = self.values["factor"], self.head_dim / (self.head_dim - 2)
        # A text within reach is computed with a Python float, a longer one with an fp32 tensor: transformers does.
        length = torch.tensor(regime) if regime else self.max_positions
        theta = self.rope_theta * ((factor * length / self.max_positions) - (factor - 1)) ** power
        return 1.0 / theta**exponents

    def _yarn(self, exponents: Tensor, regime: int) -> Tensor:
        wavelengths = self.rope_theta**exponents
        low, high = (
            self.head_dim * math.log(self.values[_LENGTH] / (turns * 2 * math.pi)) / (2 * math.log(self.rope_theta))
            for turns in (self.values.get("beta_fast", 32), self.values.get("beta_slow", 1))
        )
        low, high = max(math.floor(low), 0), min(math.ceil(high), self.head_dim - 1)
        width = (high - low) or 0.001
        kept = 1 - ((torch.arange(self.head_dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
        return 1.0 / (self._stretch * wavelengths) * (1 - kept) + 1.0 / wavelengths * kept

    def _longrope(self, exponents: Tensor, regime: int) -> Tensor:
        factors = torch.tensor(self.values["long_factor" if regime else "short_factor"], dtype=torch.float32)
        return 1.0 / (factors * self.rope_theta**exponents)

    def _llama3(self, exponents: Tensor, regime: int) -> Tensor:
        factor, length = self.values["factor"], self.values[_LENGTH]
        low, high = self.values["low_freq_factor"], self.values["high_freq_factor"]
        plain = self._default(exponents, regime)
        wavelengths = 2 * math.pi / plain
        share = (length / wavelengths - low) / (high - low)
        between = (1 - share) * plain / factor + share * plain
        scaled = torch.where(wavelengths > length / low, plain / factor, between)
        return torch.where(wavelengths < length / high, plain, scaled)


_FREQUENCIES: dict[str, Callable[[Rope, Tensor, int], Tensor]] = {
    name: getattr(Rope, f"_{name}") for name in ROPE_TYPES
}


class RotaryTables:
    """Cosine and sine of every position, computed once: the tables grow with the longest text seen."""

    smallest = 512
    """Rows of a new table."""

    def __init__(self, rope: Rope) -> None:
        self.rope = rope
        self._scaling = rope.scaling
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._outgrown: list[tuple[Tensor, Tensor]] = []

    def lookup(self, batch: PackedBatch) -> tuple[Tensor, Tensor, Tensor]:
        """The last three arguments of the `rope` op.

        Where positions count the tokens, and no text is so long that its frequencies change, they are rows of a kept
        table; otherwise the angles of these tokens are computed now.

        Returns:
            rows int64 `[tokens]`, cos and sin fp32 `[table rows, head_dim / 2]`.
        """
        if torch.compiler.is_compiling() and self.rope.usual_length == math.inf:
            # A table that grows with the longest text would tie the graph to it; a compiler fuses this with what reads.
            positions = batch.position_ids
            turns = self._turns(positions, self.rope.frequencies().to(positions.device))
            return torch.arange(batch.tokens, device=positions.device), *turns
        # What is made in inference mode could not be used in training later.
        with torch.inference_mode(False), torch.no_grad():
            if batch.spans is None and batch.max_seqlen <= self.rope.usual_length:
                return batch.position_ids, *self._table(batch.max_seqlen, batch.position_ids.device)
            return torch.arange(batch.tokens, device=batch.position_ids.device), *self._computed(batch)

    def _table(self, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
        table = self._tables.get(device)
        if table is None or len(table[0]) < rows:
            if table is not None:
                self._outgrown.append(table)  # a CUDA graph may read it; all of them are no larger than the new one
            positions = torch.arange(max(self.smallest, 1 << (rows - 1).bit_length()), device=device)
            table = self._tables[device] = self._turns(positions, self.rope.frequencies().to(device))
        return table

    def _computed(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        spans = batch.lengths if batch.spans is None else batch.spans
        regimes = [self.rope.regime(span) for span in spans.tolist()]
        index = {regime: place for place, regime in enumerate(dict.fromkeys([0, *regimes]))}
        frequencies = torch.stack([self.rope.frequencies(regime) for regime in index])
        texts = torch.tensor([index[regime] for regime in regimes], dtype=torch.int64)
        device = batch.position_ids.device
        tokens = texts.repeat_interleave(batch.lengths.long()).to(device)
        return self._turns(batch.position_ids, frequencies.to(device)[tokens])

    def _turns(self, positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
        angles = positions[:, None].float() * frequencies
        return angles.cos() * self._scaling, angles.sin() * self._scaling


def _magnitude(stretch: float, mscale: float = 1.0) -> float:
    """YaRN's factor against the flatter attention of longer texts (Peng et al. 2023, equation 22)."""
    return 0.1 * mscale * math.log(stretch) + 1.0 if stretch > 1 else 1.0


def _check_value(name: str, value: Any, pairs: int, where: str) -> None:
    if name in ("short_factor", "long_factor"):
        if not isinstance(value, (list, tuple)) or len(value) != pairs:
            found = f"{len(value)} values" if isinstance(value, (list, tuple)) else repr(value)[:60]
            raise ConfigError(f"{where}: expected a list of {pairs} numbers, got {found}")
        for index, item in enumerate(value):
            _check_number(item, (1e-6, 1e6), f"{where}[{index}]", whole=False)
    elif name == "truncate":
        # transformers looks for it beside the kinds of layer, not inside them, so it never sees a false here.
        if value is not True:
            raise ConfigError(f"{where}: expected true, got {value!r}: transformers computes as if it were")
    elif name in _LIMITS:
        _check_number(value, _LIMITS[name], where, whole=name == _LENGTH)
    else:
        known = ", ".join(("rope_type", *_LIMITS, "short_factor", "long_factor", "truncate"))
        raise ConfigError(f"{where}: unknown rotary parameter: expected one of {known}")


def _check_number(value: Any, limits: tuple[float, float], where: str, *, whole: bool) -> None:
    low, high = limits
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        kind = "an integer" if whole else "a number"
        raise ConfigError(f"{where}: expected {kind} from {low:g} to {high:g}, got {repr(value)[:60]}")


def _check_together(
    rope_type: str, head_dim: int, theta: float, values: dict[str, Any], given: dict[str, Any], source: str
) -> None:
    for name in _REQUIRED.get(rope_type, ()):
        if name not in values:
            raise ConfigError(f"{source}: {name}: missing, rope_type {rope_type!r} needs it")
    if rope_type != "proportional" and given.get("partial_rotary_factor", 1) != 1:
        found = given["partial_rotary_factor"]
        raise ConfigError(f"{source}: partial_rotary_factor: expected 1 with rope_type {rope_type!r}, got {found}")
    if rope_type == "dynamic" and head_dim == 2:
        raise ConfigError(f"{source}: rope_type 'dynamic' needs at least 4 channels a head, got 2")
    if rope_type == "yarn" and theta <= 1:
        raise ConfigError(f"{source}: rope_theta: expected more than 1 with rope_type 'yarn', got {theta}")
    if rope_type == "llama3" and values["high_freq_factor"] <= values["low_freq_factor"]:
        found = values["high_freq_factor"]
        raise ConfigError(f"{source}: high_freq_factor: expected more than low_freq_factor, got {found}")
    unused = [name for name in given if name not in values and name != "partial_rotary_factor"]
    if unused:
        logger.warning("%s: rope_type %r does not read %s", source, rope_type, ", ".join(unused))
