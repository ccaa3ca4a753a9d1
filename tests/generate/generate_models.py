"""Tiny random models of transformers, and both sides' generation from them.

The models compute in fp64, so that the fp32 logits that both sides choose by are the same to the bit: in fp32 the size
of the batch would decide between hypotheses whose scores differ by a millionth.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from generate_decoders import CausalDecoder, EncoderDecoder, Recomputing
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from padless.engine.generate.generate import Generated, decoder_prompts, generate
from padless.engine.generate.options import GenerationOptions

PAD, END, START, VOCABULARY = 0, 1, 3, 47


@dataclass
class Family:
    """A model, and prompts of several lengths (texts for an encoder-decoder)."""

    name: str
    model: Any

    @property
    def seq2seq(self) -> bool:
        return self.model.config.is_encoder_decoder

    def prompts(self, count: int, seed: int = 0, lengths: Sequence[int] = (1, 2, 4, 7, 12)) -> list[Tensor]:
        """`count` random prompts, as many of each length."""
        draw = torch.Generator().manual_seed(seed + 100)
        each = [lengths[number * len(lengths) // count] for number in range(count)]
        return [torch.randint(4, VOCABULARY, (length,), generator=draw) for length in each]

    def ours(self, prompts: Sequence[Tensor], **arguments: Any) -> tuple[Generated, Recomputing]:
        options = self.options(**arguments)
        with torch.no_grad():
            if self.seq2seq:
                decoder: Recomputing = EncoderDecoder(self.model, *_padded(prompts))
                return generate(decoder, options, decoder_prompts(options, len(prompts), torch.device("cpu"))), decoder
            decoder = CausalDecoder(self.model)
            return generate(decoder, options, prompts), decoder

    def options(self, **arguments: Any) -> GenerationOptions:
        config = self.model.config.to_dict()
        return GenerationOptions.resolve(
            arguments, config=config, generation_config=self.model.generation_config.to_dict()
        )

    def theirs(self, prompts: Sequence[Tensor], **arguments: Any) -> list[Any]:
        """transformers' output of each group of equally long prompts; an encoder-decoder's texts are one group."""
        if self.seq2seq:
            groups = [_padded(prompts)]
        else:
            by_length = defaultdict(list)
            for prompt in prompts:
                by_length[len(prompt)].append(prompt)
            groups = [
                (torch.stack(group), torch.ones(len(group), length).long()) for length, group in by_length.items()
            ]
        return [
            self.model.generate(ids, attention_mask=mask, return_dict_in_generate=True, output_scores=True, **arguments)
            for ids, mask in groups
        ]


def _padded(prompts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    mask = pad_sequence([torch.ones_like(prompt) for prompt in prompts], batch_first=True)
    return pad_sequence([*prompts], batch_first=True), mask


def mt5() -> Family:
    """An mT5 whose sequences end at different lengths; its output layer gets a bias for that."""
    config = transformers.MT5Config(
        vocab_size=VOCABULARY, d_model=24, d_kv=6, d_ff=28, num_layers=2, num_heads=3,
        relative_attention_num_buckets=8, relative_attention_max_distance=16, decoder_start_token_id=PAD,
        pad_token_id=PAD, eos_token_id=END, dropout_rate=0.0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = transformers.MT5ForConditionalGeneration(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith((".q.weight", ".relative_attention_bias.weight")):
                    parameter.mul_(4)
        # An output layer that is the embedding repeats the last token for ever.
        model.lm_head = nn.Linear(config.d_model, VOCABULARY)
        with torch.no_grad():
            model.lm_head.weight.normal_(std=3.0)
            model.lm_head.bias.zero_()[END] = 3.0
    return Family("mt5", model.double().eval())


def megatron_bert() -> Family:
    """A causal MegatronBERT whose sequences end at different lengths."""
    config = transformers.MegatronBertConfig(
        vocab_size=VOCABULARY, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=28,
        max_position_embeddings=64, is_decoder=True, initializer_range=0.5, pad_token_id=PAD, eos_token_id=END,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = transformers.MegatronBertForCausalLM(config)
    with torch.no_grad():
        model.cls.predictions.bias[END] = 0.7
    return Family("megatron_bert", model.double().eval())


def settings(family: Family) -> dict[str, dict[str, Any]]:
    """Each option that changes scores, with values that bite: made of what the model writes without them."""
    plain = [row[:length] for row, length in _rows(family.ours(family.prompts(50), max_new_tokens=14)[0])]
    tokens, pairs, triples = (frequent(plain, length) for length in (1, 2, 3))
    first = Counter(row[0] for row in plain if row[0] != END).most_common(2)
    return {
        "min_length": {"min_length": 9},
        "min_new_tokens": {"min_new_tokens": 6},
        "one-grams": {"no_repeat_ngram_size": 1},
        "two-grams": {"no_repeat_ngram_size": 2},
        "three-grams": {"no_repeat_ngram_size": 3},
        "penalty": {"repetition_penalty": 1.9},
        "reward": {"repetition_penalty": 0.6},
        "bad words": {"bad_words_ids": [tokens[1], *pairs[:3], *triples[:2], [END], [2] * 30]},
        "first": {"forced_bos_token_id": 11},
        "last": {"forced_eos_token_id": [END, 5]},
        "never": {"suppress_tokens": [tokens[0][0], tokens[2][0]]},
        "not first": {"begin_suppress_tokens": [token for token, _ in first]},
        "several ends": {"eos_token_id": [tokens[3][0], END, 9]},
    }


def frequent(rows: Sequence[Sequence[int]], length: int) -> list[list[int]]:
    """Runs of `length` tokens, the commonest first, end tokens aside."""
    runs = Counter(run for row in rows for run in zip(*(row[i:] for i in range(length)), strict=False))
    return [[*run] for run, _ in runs.most_common() if END not in run]


def _rows(result: Generated) -> list[tuple[list[int], int]]:
    assert result.new_tokens is not None
    assert result.lengths is not None
    return [*zip(result.new_tokens.tolist(), result.lengths.tolist(), strict=True)]


def assert_same(family: Family, prompts: Sequence[Tensor], **arguments: Any) -> list[list[int]]:
    """Both sides write the same; returns our new tokens."""
    result, _ = family.ours(prompts, **arguments)
    options = family.options(**arguments)
    copies, ends = options.num_return_sequences, {*options.eos_token_id}
    beginnings = [1] * len(prompts) if family.seq2seq else [len(prompt) for prompt in prompts]
    whole = [row for output in family.theirs(prompts, **arguments) for row in output.sequences.tolist()]
    written = []
    assert len(whole) == len(result.sequences) == len(prompts) * copies
    for number, (row, length) in enumerate(_rows(result)):
        prompt, theirs = prompts[number // copies], whole[number][beginnings[number // copies] :]
        ours = row[:length]
        assert ours == theirs[:length], f"{number}: {prompt.tolist()}"
        assert {*row[length:]} <= {PAD}
        assert {*theirs[length:]} <= {PAD, *ends}  # the beam search of transformers fills with an end token
        assert ours[-1] in ends or length == len(theirs)
        assert not ends & {*ours[:-1]}
        written.append(ours)
    return written
