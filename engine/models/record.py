"""What a forward pass is asked to keep beside its result: hidden states and attention weights."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from .padding import Layout

__all__ = ["Record", "Recorded"]


@dataclass
class Record:
    """Filled while the layers run; an encoder is handed None where nothing is to be kept.

    Attributes:
        wants_hidden_states: keep the input of the first layer and the output of every layer.
        wants_attentions: keep softmax weights, which makes eager serve the attention.
        hidden_states: `[tokens, hidden]` each.
        attentions: of every layer, of every text `[heads, length, length]`.
        cross_attentions: of every layer of a decoder, of every sequence `[heads, length, length of its text]`.
    """

    wants_hidden_states: bool = False
    wants_attentions: bool = False
    hidden_states: list[Tensor] = field(default_factory=list)
    attentions: list[list[Tensor]] = field(default_factory=list)
    cross_attentions: list[list[Tensor]] = field(default_factory=list)

    def hidden_state(self, x: Tensor) -> None:
        """Keep `[tokens, hidden]`, if that is asked for."""
        if self.wants_hidden_states:
            self.hidden_states.append(x)

    def outputs(self, layout: Layout) -> dict[str, tuple[Tensor, ...]]:
        """Fields of a ModelOutput, in the caller's layout; those not asked for are left out."""
        found: dict[str, tuple[Tensor, ...]] = {}
        if self.wants_hidden_states:
            found["hidden_states"] = tuple(layout.unpack(x) for x in self.hidden_states)
        if self.wants_attentions:
            found["attentions"] = tuple(layout.unpack_attention(weights) for weights in self.attentions)
        return found


@dataclass
class Recorded(Record):
    """What was kept elsewhere and is in the caller's layout already.

    Attributes:
        given: fields of a ModelOutput.
    """

    given: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)

    def outputs(self, layout: Layout) -> dict[str, tuple[Tensor, ...]]:
        """As given."""
        return self.given
