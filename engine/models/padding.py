"""Between the padded tensors that callers hold and the packed ones that models compute on.

The reference is a text alone: what the mask leaves out is taken away on entry, wherever it stands, and positions count
the tokens that are there. On exit it comes back as zeros. Neither side of padding is better than the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..batch import PackedBatch
from ..errors import InputError

__all__ = ["Layout", "PackedInputs", "pack_padded", "rows_of"]


@dataclass(frozen=True)
class Layout:
    """Where packed tokens sit in the caller's tensors.

    Attributes:
        shape: the caller's `(batch, sequence)`, or None where the caller works on packed tokens.
        slots: int64 `[tokens]`, each token's place in the flattened `[batch * sequence]`; None where every place holds
            one, in order.
        choices: texts that belong to one question, where inputs came as `[batch, choices, sequence]`.
    """

    shape: tuple[int, int] | None = None
    slots: Tensor | None = None
    choices: int | None = None

    def unpack(self, x: Tensor, fill: float = 0.0) -> Tensor:
        """`[tokens, …]` to `[batch, sequence, …]`, `fill` where there is no token."""
        if self.shape is None:
            return x
        batch, sequence = self.shape
        if self.slots is None:
            return x.reshape(batch, sequence, *x.shape[1:])
        padded = x.new_full((batch * sequence, *x.shape[1:]), fill)
        return padded.index_copy(0, self.slots, x).view(batch, sequence, *x.shape[1:])

    def pack(self, x: Tensor, name: str) -> Tensor:
        """`[batch, sequence, …]` to `[tokens, …]`.

        Raises:
            InputError: another shape; `name` says of what.
        """
        if self.shape is None:
            return x
        if tuple(x.shape[:2]) != self.shape:
            raise InputError(f"{name}: expected shape {list(self.shape)}, got {list(x.shape)}")
        flat = x.flatten(0, 1)
        return flat if self.slots is None else flat[self.slots]

    def unpack_weights(self, weights: Sequence[Tensor], keys: Layout | None = None) -> Tensor:
        """Of every sequence `[heads, length, length of what it sees]` to `[batch, heads, sequence, …]`, zero elsewhere.

        Args:
            weights: of an attention whose keys are not its queries.
            keys: where the keys stand in the caller's tensors; None for those of a cache, which stand on the left.
        """
        if not weights:
            return torch.zeros(0, 0, 0, 0)
        width = max(w.shape[2] for w in weights) if keys is None or keys.shape is None else keys.shape[1]
        height = max(w.shape[1] for w in weights) if self.shape is None else self.shape[1]
        padded = weights[0].new_zeros(len(weights), weights[0].shape[0], height, width)
        rows = self._places([w.shape[1] for w in weights], weights[0].device)
        columns = (keys or Layout())._places([w.shape[2] for w in weights], weights[0].device)
        for text, (weight, row, column) in enumerate(zip(weights, rows, columns, strict=True)):
            padded[text, :, row[:, None], column] = weight
        return padded

    def _places(self, lengths: Sequence[int], device: torch.device) -> list[Tensor]:
        """Of every text, int64 `[length]`: the column of each token."""
        if self.slots is None or self.shape is None:
            return [torch.arange(length, device=device) for length in lengths]
        return list((self.slots % self.shape[1]).split(list(lengths)))

    def unpack_attention(self, weights: Sequence[Tensor]) -> Tensor:
        """Of every text `[heads, length, length]` to `[batch, heads, sequence, sequence]`, zero at padding.

        Packed callers get every text in the upper left corner of `[batch, heads, longest, longest]`.
        """
        sequence = max((w.shape[-1] for w in weights), default=0) if self.shape is None else self.shape[1]
        if not weights:
            return torch.zeros(0, 0, sequence, sequence)  # without texts nothing says how many heads there are
        if self.slots is None:
            rows = [F.pad(w, (0, sequence - w.shape[-1], 0, sequence - w.shape[-1])) for w in weights]
            return torch.stack(rows)
        padded = weights[0].new_zeros(len(weights), weights[0].shape[0], sequence, sequence)
        places = (self.slots % sequence).split([w.shape[-1] for w in weights])
        for row, (text, place) in enumerate(zip(weights, places, strict=True)):
            padded[row, :, place[:, None], place] = text
        return padded


@dataclass(frozen=True)
class PackedInputs:
    """What a model is called with, packed.

    Attributes:
        batch: ids, positions, types and lengths; the ids are zeros where embeddings are given.
        inputs_embeds: `[tokens, width]` in place of the word embeddings, or None.
        layout: the way back.
    """

    batch: PackedBatch
    inputs_embeds: Tensor | None
    layout: Layout


def pack_padded(
    input_ids: Tensor | None,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    position_ids: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
) -> PackedInputs:
    """Take away the padding of a batch.

    Args:
        input_ids: int64 `[batch, sequence]`; None where `inputs_embeds` is given.
        attention_mask: `[batch, sequence]`, zero where there is no token; None where there is no padding.
        token_type_ids: int64 `[batch, sequence]`, or None.
        position_ids: int64 `[batch, sequence]` or `[1, sequence]`; None counts the tokens of each text from 0.
        inputs_embeds: `[batch, sequence, width]`, or None.

    Raises:
        InputError: both or neither of `input_ids` and `inputs_embeds`; tensors whose shapes do not fit each other.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise InputError("expected exactly one of input_ids and inputs_embeds")
    given = input_ids if input_ids is not None else inputs_embeds
    assert given is not None
    axes = 2 if input_ids is not None else 3
    if given.dim() != axes:
        name = "input_ids" if input_ids is not None else "inputs_embeds"
        raise InputError(f"{name}: expected {axes} axes, got shape {list(given.shape)}")
    if input_ids is not None and input_ids.dtype not in (torch.int64, torch.int32):
        raise InputError(f"input_ids: expected int64, got {str(input_ids.dtype).removeprefix('torch.')}")
    shape = (given.shape[0], given.shape[1])
    present = _present(attention_mask, shape, given.device)
    lengths = present.sum(dim=1, dtype=torch.int32)
    tracing = torch.compiler.is_compiling()  # a number that is looked at becomes part of the graph
    host_lengths = lengths if tracing else lengths.cpu()
    whole = not tracing and int(host_lengths.sum()) == shape[0] * shape[1]
    layout = Layout(shape, None if whole else present.flatten().nonzero().flatten())
    spans = None
    if position_ids is None:
        positions = layout.pack(present.cumsum(dim=1) - 1, "position_ids")
    else:
        shared = tuple(position_ids.shape) in ((shape[1],), (1, shape[1]))
        positions = layout.pack(position_ids.expand(shape) if shared else position_ids, "position_ids")
        reached = layout.unpack(positions + 1)
        spans = (reached.amax(dim=1) if shape[1] else host_lengths).long().cpu()
    cu_seqlens = F.pad(lengths.cumsum(dim=0, dtype=torch.int32), (1, 0))
    ids = positions.new_zeros(len(positions)) if input_ids is None else layout.pack(input_ids, "input_ids").long()
    batch = PackedBatch(
        input_ids=ids,
        position_ids=positions,
        token_type_ids=None if token_type_ids is None else layout.pack(token_type_ids, "token_type_ids").long(),
        cu_seqlens=cu_seqlens,
        lengths=host_lengths,
        max_seqlen=shape[1] if tracing else int(host_lengths.max()) if len(host_lengths) else 0,
        spans=spans,
    )
    embeds = None if inputs_embeds is None else layout.pack(inputs_embeds, "inputs_embeds")
    return PackedInputs(batch, embeds, layout)


def rows_of(batch: PackedBatch) -> Layout:
    """The layout of one text a row, padded on the right."""
    count = len(batch)
    starts = torch.repeat_interleave(batch.cu_seqlens[:-1], batch.cu_seqlens.diff())
    within = torch.arange(batch.tokens, device=starts.device) - starts
    text = torch.repeat_interleave(torch.arange(count, device=starts.device), batch.cu_seqlens.diff())
    return Layout((count, batch.max_seqlen), text * batch.max_seqlen + within)


def _present(mask: Tensor | None, shape: tuple[int, int], device: torch.device) -> Tensor:
    if mask is None:
        return torch.ones(shape, dtype=torch.bool, device=device)
    if tuple(mask.shape) != shape:
        raise InputError(
            f"attention_mask: expected shape {list(shape)}, one value a token, got {list(mask.shape)}; masks between "
            "pairs of tokens are not supported"
        )
    return mask.to(device) != 0
