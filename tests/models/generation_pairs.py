"""Models of both sides with the same weights, prompts for them, and what each side writes."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor

import padless

T5: dict[str, Any] = {
    "vocab_size": 53,
    "d_model": 24,
    "d_kv": 5,
    "d_ff": 28,
    "num_layers": 2,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "tie_word_embeddings": False,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
}
MEGATRON: dict[str, Any] = {
    "vocab_size": 53,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 36,
    "max_position_embeddings": 96,
    "initializer_range": 0.5,
    "is_decoder": True,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
FAMILIES = ("mt5", "megatron")
END = 1


@cache
def pair(family: str, dtype: torch.dtype = torch.float64) -> tuple[Any, Any]:
    """transformers' model and ours."""
    torch.manual_seed(5)
    if family == "mt5":
        theirs: Any = transformers.MT5ForConditionalGeneration(transformers.MT5Config(**T5))
        ours: Any = padless.MT5ForConditionalGeneration(padless.MT5Config(**T5))
        with torch.no_grad():  # so that what is written depends on text and past, and ends at several lengths
            for name, parameter in theirs.named_parameters():
                if name.endswith((".q.weight", ".o.weight", ".relative_attention_bias.weight", ".wo.weight")):
                    parameter.mul_(4)
            theirs.shared.weight.mul_(0.1)
            theirs.lm_head.weight[END].mul_(1.3)
    else:
        theirs = transformers.MegatronBertForCausalLM(transformers.MegatronBertConfig(**MEGATRON))
        ours = padless.MegatronBertForCausalLM(padless.MegatronBertConfig(**MEGATRON))
        with torch.no_grad():
            theirs.cls.predictions.decoder.bias[1] += 2.0
    ours.load_state_dict(theirs.state_dict())
    return theirs.to(dtype).eval(), ours.to(dtype).eval()


def prompts(count: int, seed: int = 0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 13, (count,), generator=draw).tolist()
    return [torch.randint(2, 53, (length,), generator=draw) for length in lengths]


def padded(texts: list[Tensor]) -> dict[str, Tensor]:
    width = max(map(len, texts))
    rows = [torch.cat([torch.zeros(width - len(text), dtype=torch.long), text]) for text in texts]
    masks = [torch.cat([torch.zeros(width - len(text), dtype=torch.long), torch.ones_like(text)]) for text in texts]
    return {"input_ids": torch.stack(rows), "attention_mask": torch.stack(masks)}


def new_tokens(sequences: Tensor, family: str, width: int) -> list[list[int]]:
    """What was written, up to its end token; behind it transformers' beams have end tokens, others have padding."""
    rows = sequences[:, 1 if family == "mt5" else width :].tolist()
    return [row[: row.index(END) + 1] if END in row else row for row in rows]


def theirs_alone(
    family: str, texts: Sequence[Tensor], dtype: torch.dtype = torch.float64, **options: Any
) -> list[list[int]]:
    """What transformers writes where nothing is padded: prompts of one length are one call."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for number, text in enumerate(texts):
        by_length[len(text)].append(number)
    copies = options.get("num_return_sequences", 1)
    found: list[list[int]] = [[]] * (len(texts) * copies)
    for length, numbers in by_length.items():
        ids = torch.stack([texts[number] for number in numbers])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            given = {"attention_mask": torch.ones_like(ids), **options}
            rows = new_tokens(pair(family, dtype)[0].generate(ids, **given), family, length)
        for place, number in enumerate(numbers):
            found[number * copies : (number + 1) * copies] = rows[place * copies : (place + 1) * copies]
    return found
