"""From prompts to sequences: the one entry of this package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError, OptionError
from ..outputs import ModelOutput
from .beam import search
from .decoder import Decoder
from .greedy import Written, likeliest, write
from .options import GenerationOptions
from .sampling import Draw

__all__ = ["Generated", "decoder_prompts", "generate"]


@dataclass
class Generated(ModelOutput):
    """What `generate` returns: `num_return_sequences` rows for each prompt, one prompt after the other.

    Attributes:
        sequences: int64 `[rows, longest]`: prompt, new tokens, then padding.
        sequences_scores: of a beam search, fp32 `[rows]`: log probability over the length's power.
        scores: where asked for, of each step fp32 `[rows, vocab]`: the scores that the token was chosen by; zeros for a
            row that had ended. In a beam search `[prompts * beams, vocab]`.
        beam_indices: of a beam search, int64 `[rows, longest new]`: the row of `scores` that each new token was chosen
            from; -1 behind the last.
        new_tokens: int64 `[rows, longest new]`: what was written behind the prompts, then padding.
        lengths: int64 `[rows]` on the host: new tokens of each row, an end token included.
    """

    sequences: Tensor
    sequences_scores: Tensor | None = None
    scores: tuple[Tensor, ...] | None = None
    beam_indices: Tensor | None = None
    new_tokens: Tensor | None = None
    lengths: Tensor | None = None


@torch.no_grad()
def generate(
    decoder: Decoder, options: GenerationOptions, prompts: Sequence[Tensor], given: Tensor | None = None
) -> Generated:
    """Continue each prompt: greedily, by drawing tokens, or by a beam search, as the options say.

    What a prompt gives alone is what it gives among others, draws aside. Padding is `pad_token_id`, in a beam search
    too (transformers takes the end token there where `pad_token_id` is 0).

    Args:
        decoder: made for these prompts, not used before.
        options: made by `GenerationOptions.resolve`.
        prompts: int64 `[tokens]` each, at least one token long, on the decoder's device. For an encoder-decoder what
            stands on its decoder's side, see `decoder_prompts`.
        given: int64 `[prompts, width]`, the prompts as the caller has them, padding and all: what is written then
            stands behind these rows.

    Raises:
        OptionError: options that do not fit the prompts' lengths, forbid every token or ask for more memory than there
            is.
        InputError: a prompt without a token.
    """
    if not prompts:
        none = torch.empty(0, 0, dtype=torch.int64)
        return Generated(none if given is None else given, new_tokens=none, lengths=none[:, :0].sum(dim=1))
    for number, prompt in enumerate(prompts):
        if prompt.dim() != 1 or not len(prompt):
            raise InputError(f"generate: prompt {number}: expected a row of tokens, got shape {[*prompt.shape]}")
    options.check_prompts({len(prompt) for prompt in prompts}, in_rows=given is not None)
    try:
        return _generated(_written(decoder, options, prompts), prompts, options, given)
    except (RuntimeError, MemoryError) as error:
        # On a GPU torch has a class for it, which callers know.
        if isinstance(error, torch.OutOfMemoryError) or not _is_of_memory(error):
            raise
        rows = len(prompts) * max(options.num_beams, options.num_return_sequences)
        longest = options.longest(max(map(len, prompts)))
        raise OptionError(
            f"generate: no memory for {rows:,} sequences of up to {longest:,} tokens: ask for fewer of either"
        ) from error


def _written(decoder: Decoder, options: GenerationOptions, prompts: Sequence[Tensor]) -> Written:
    if options.num_beams > 1:
        return search(decoder, prompts, options)
    rows = len(prompts) * options.num_return_sequences
    choose = Draw(options, rows, prompts[0].device) if options.do_sample else likeliest
    return write(decoder, prompts, options, choose)


def _is_of_memory(error: Exception) -> bool:
    # On the host torch raises plain errors.
    return isinstance(error, MemoryError) or any(
        text in str(error) for text in ("allocate memory", "bad_alloc", "Storage size")
    )


def decoder_prompts(
    options: GenerationOptions, texts: int, device: torch.device, given: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """What stands on the decoder's side of an encoder-decoder before it writes: the start token.

    Args:
        options: `decoder_start_token_id`, one or one for each text, or else `bos_token_id`.
        texts: that the encoder has read.
        device: of the result.
        given: int64 `[tokens]` for each text; the start token is put in front unless one of them begins with its own.

    Raises:
        OptionError: there is no start token, or one out of the vocabulary, or not one for each text.
        InputError: `given` is not one for each text, or holds what is no token.
    """
    starts = options.decoder_start_token_id
    if not starts and options.bos_token_id is not None:
        starts = (options.bos_token_id,)
    if not starts:
        raise OptionError("decoder_start_token_id: expected a token id, neither it nor bos_token_id is set")
    if max(starts) >= options.vocab_size:
        raise OptionError(f"bos_token_id: expected a token id from 0 to {options.vocab_size - 1}, got {max(starts)}")
    if len(starts) not in (1, texts):
        raise OptionError(f"decoder_start_token_id: expected one, or one for each of {texts} texts, got {len(starts)}")
    if len(starts) == 1:
        starts = starts * texts
    firsts = [torch.tensor([start], device=device) for start in starts]
    if given is None:
        return firsts
    if len(given) != texts:
        raise InputError(f"decoder_input_ids: expected {texts} rows, one for each text, got {len(given)}")
    for row in given:
        if row.dtype not in (torch.int64, torch.int32):
            raise InputError(f"decoder_input_ids: expected int64, got {str(row.dtype).removeprefix('torch.')}")
        if len(row) and (outside := row[(row < 0) | (row >= options.vocab_size)].tolist()):
            raise InputError(f"decoder_input_ids: expected 0 to {options.vocab_size - 1}, got {outside[0]}")
    if any(len(rest) and int(rest[0]) == start for rest, start in zip(given, starts, strict=True)):
        return [row.long() for row in given]
    return [torch.cat((first, rest)) for first, rest in zip(firsts, given, strict=True)]


def _generated(
    written: Written, prompts: Sequence[Tensor], options: GenerationOptions, given: Tensor | None
) -> Generated:
    filler = -1 if options.filler is None else options.filler  # then all are equally long
    copies = options.num_return_sequences
    new_tokens = _in_rows(written.tokens, filler)
    if given is None:
        whole = [torch.cat((prompts[row // copies], new)) for row, new in enumerate(written.tokens)]
        sequences = _in_rows(whole, filler)
    else:
        sequences = torch.cat((given.repeat_interleave(copies, dim=0), new_tokens), dim=1)
    return Generated(
        sequences,
        written.sequences_scores,
        written.scores or None,
        None if written.beam_indices is None else _in_rows(written.beam_indices, -1),
        new_tokens,
        torch.tensor([len(tokens) for tokens in written.tokens]),
    )


def _in_rows(rows: Sequence[Tensor], filler: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([*rows], batch_first=True, padding_value=filler)
