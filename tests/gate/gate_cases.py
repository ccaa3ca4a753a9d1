"""Which compilations the gate makes: kernel x dtype x configuration x GPU, a covering set, a share of it, and all.

The covering set has, for every kernel, each value of each dimension below together with each value of every other
dimension at least once (a pairwise covering design), and every GPU with the case that is used most. The complete set
is the product of dtype, shape, kind and GPU, and on top of it what tuning tries. The share has each value once, and
every GPU with the case that is used most.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import gate_calls
import gate_calls_products as products
import torch
from gate_compile import TARGETS, Target
from gate_recorder import Launch, recorded

from padless.kernels import (
    attention,
    attention_hopper,
    decode,
    embed,
    linear,
    mlm_head,
    mobilebert,
    norm,
    norm_linear,
    pool,
    rope,
    trigram,
    tuned,
)
from padless.kernels.launch import Config

__all__ = ["SPACES", "Case", "Space", "complete", "covering", "launches", "share"]

DTYPES = tuple(gate_calls.DTYPES)
HEAD_DIMS = (64, 16, 24, 32, 40, 48, 60, 80, 96, 128, 256)
"""What models have, and odd ones: 24, 40, 60 and 96 are padded to a power of two, whose last lanes are masked."""
FEW_HEAD_DIMS = (64, 24, 32, 48, 60, 128, 256)


@dataclass(frozen=True)
class Space:
    """The cases of one launcher.

    Attributes:
        call: calls the launcher with the facts of a case, see `gate_calls`.
        kernels: names of the kernels it is about; what else it launches has a space of its own.
        shapes: values by fact, that used most first; each pair of values is covered, their product is complete.
        variants: more facts, each pair of which is covered, while the complete set keeps to the first.
        candidates: what tuning tries.
        extra: candidates that the covering set has as well, and the GPUs to compile them for.
        targets: the GPUs it runs on.
        more: values by fact that the complete set has behind those of `shapes`.
    """

    call: Callable[..., None]
    kernels: tuple[str, ...]
    shapes: Mapping[str, tuple[Any, ...]]
    variants: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    candidates: tuple[Config, ...] = ()
    extra: tuple[tuple[Config, tuple[str, ...]], ...] = ()
    targets: tuple[str, ...] = tuple(TARGETS)
    more: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def dimensions(self) -> dict[str, tuple[Any, ...]]:
        """Values by fact, with those of a `Case`: what is covered pair by pair."""
        return {**self.shapes, **self.variants, "target": self.targets, "aligned": (True, False)}

    @property
    def all_shapes(self) -> dict[str, tuple[Any, ...]]:
        """Values by fact, of which the complete set has the product."""
        return {name: (*values, *self.more.get(name, ())) for name, values in self.shapes.items()}

    @property
    def usual(self) -> dict[str, Any]:
        """The case that is used most."""
        return {name: values[0] for name, values in (*self.shapes.items(), *self.variants.items())}


@dataclass(frozen=True)
class Case:
    """One call of a launcher, compiled for one GPU.

    Attributes:
        space: key of `SPACES`.
        facts: names and values.
        target: name of the GPU.
        aligned: the tensors are as torch allocates them, and what Triton finds out about them is used. Otherwise rows
            begin anywhere, and nothing is known: see `gate_recorder.specialise`.
        config: one that tuning tries; None for what the launcher chooses, which is what users get.
    """

    space: str
    facts: tuple[tuple[str, Any], ...]
    target: str
    aligned: bool = True
    config: Config | None = None

    @property
    def label(self) -> str:
        """The facts in words; what is as usual of `variants` goes unsaid."""
        unsaid = {(name, values[0]) for name, values in SPACES[self.space].variants.items()}
        words = [_word(name, value) for name, value in self.facts if (name, value) not in unsaid]
        words += [] if self.config is None else [_described(self.config)]
        return ", ".join(words + ([] if self.aligned else ["unaligned"]))

    def __str__(self) -> str:
        return f"{self.space}, {self.label}, {self.target}"


TMA = next(
    config for config in attention.CANDIDATES if config["TMA"] and config["BLOCK_N"] == 64 and config.num_warps == 8
)
WITH_TMA = ("sm_90", "sm_100", "sm_120")
HEADS = {"heads": ("own", "grouped"), "lse": (False, True)}
KINDS = ("full", "window", "wide window", "causal", "t5", "t5 causal", "cross")
MODES = ("mean", "cls", "lasttoken", "max", "mean_sqrt_len_tokens", "weightedmean")
WIDTHS = (768, 128, 384, 1000, 1024, 4096, 8192)
NORM_WIDTHS = (768, 128, 1000, 1024, 8192)
NORMS = ("layer", "layer + residual", "layer without bias", "rms", "rms + residual", "rms + fp32")
FP16 = {"dtype": ("fp16",)}
"""For the complete set of kernels that take longest to compile, and give the instructions of bf16."""
MOBILEBERT = {"dtype": ("bf16", "fp32"), "tokens": ("many", "few"), "norm": ("no_norm", "layer_norm")}

SPACES: dict[str, Space] = {
    "attention": Space(
        gate_calls.call_attention,
        ("attention_kernel",),
        {"dtype": ("bf16", "fp16", "fp32"), "head_dim": HEAD_DIMS, "kind": KINDS},
        {"lengths": ("mixed", "equal"), **HEADS},
        attention.CANDIDATES,
        ((TMA, WITH_TMA),),
    ),
    "attention on Hopper": Space(
        gate_calls.call_hopper,
        ("attention_hopper_kernel",),
        {"dtype": ("bf16", "fp16"), "head_dim": (64, 128)},
        {"lengths": ("mixed", "equal"), **HEADS},
        attention_hopper.CANDIDATES,
        targets=("sm_90",),
    ),
    "tile list": Space(gate_calls.call_tiles, ("_tile_list_kernel",), {"texts": (60, 1, 700, 5000)}),
    "decode": Space(
        gate_calls.call_decode,
        ("_split_kernel", "_reduce_kernel"),
        {"dtype": ("bf16", "fp16", "fp32"), "head_dim": FEW_HEAD_DIMS, "kind": ("plain", "t5", "t5 cross")},
        HEADS,
        decode.CANDIDATES,
    ),
    "rope": Space(
        gate_calls.call_rope,
        ("rope_kernel",),
        {"dtype": ("bf16", "fp16", "fp32"), "head_dim": FEW_HEAD_DIMS},
        {"heads": ("own", "grouped")},
        rope.CANDIDATES,
    ),
    "pool": Space(
        gate_calls.call_pool,
        ("pool_row_kernel", "pool_parts_kernel", "pool_join_kernel"),
        {"dtype": ("bf16", "fp16", "fp32"), "hidden": WIDTHS, "mode": MODES},
        {"finish": ("whole", "plain")},
        pool.CANDIDATES,
    ),
    "embed": Space(
        gate_calls.call_embed,
        ("embed_kernel",),
        {
            "dtype": ("bf16", "fp16", "fp32"),
            "hidden": WIDTHS,
            "family": ("bert", "one type", "modernbert", "t5"),
        },
        candidates=embed.CANDIDATES,
    ),
    "trigram": Space(
        gate_calls.call_trigram,
        ("trigram_kernel",),
        {"dtype": ("bf16", "fp16", "fp32"), "width": (128, 96, 1024)},
        candidates=trigram.CANDIDATES,
    ),
    "linear": Space(
        products.call_linear,
        ("linear_kernel",),
        {"dtype": ("bf16", "fp16", "fp32"), "use": tuple(products.LINEAR_USES)},
        candidates=linear.CANDIDATES,
        more={"use": tuple(products.MORE_LINEAR_USES)},
    ),
    "statistics": Space(
        products.call_linear_statistics,
        ("linear_kernel",),
        {"dtype": ("bf16", "fp16", "fp32"), "use": tuple(products.STATISTICS_USES)},
        candidates=linear.CANDIDATES,
    ),
    "norm linear": Space(
        products.call_norm_linear,
        ("linear_kernel",),
        {"dtype": ("bf16", "fp16"), "use": tuple(products.NORM_LINEAR_USES)},
        {"statistics": ("handed on", "own")},
        norm_linear.CANDIDATES,
        more={"use": tuple(products.MORE_NORM_LINEAR_USES)},
    ),
    "row statistics": Space(
        products.call_row_statistics,
        ("row_statistics_kernel",),
        {"dtype": ("bf16", "fp16"), "hidden": (768, 512, 1000, 8192)},
    ),
    "norm": Space(
        products.call_norm,
        ("norm_kernel",),
        {"dtype": ("bf16", "fp16", "fp32"), "hidden": NORM_WIDTHS, "kind": NORMS},
        candidates=norm.CANDIDATES,
        more={"hidden": (384, 512, 4096)},
    ),
    "no norm": Space(
        products.call_norm,
        ("no_norm_kernel",),
        {"dtype": ("bf16", "fp32", "fp16"), "hidden": (512, 128, 1000), "kind": ("no norm + fp32", "no norm")},
        candidates=norm.CANDIDATES,
    ),
    "head": Space(
        products.call_mlm_head,
        ("top_k_parts_kernel", "top_k_join_kernel"),
        {
            "dtype": ("bf16", "fp32"),
            "family": ("bert", "modernbert", "mobilebert"),
            "asked": ("top 5", "top 1"),
        },
        candidates=mlm_head.CANDIDATES,
        more=FP16,
    ),
    "mobilebert in": Space(
        products.call_mobilebert_in, ("mobilebert_in_kernel",), MOBILEBERT, candidates=mobilebert.CANDIDATES, more=FP16
    ),
    "mobilebert out": Space(
        products.call_mobilebert_out,
        ("mobilebert_out_kernel",),
        MOBILEBERT,
        candidates=mobilebert.CANDIDATES,
        more=FP16,
    ),
    "logits": Space(
        products.call_mlm_head,
        ("logits_kernel",),
        {"dtype": ("bf16", "fp32"), "family": ("mobilebert",), "asked": ("all",)},
        candidates=mlm_head.CANDIDATES,
        more=FP16,
    ),
}


def covering() -> list[Case]:
    """What a change of a kernel is held against: the cases of the table."""
    cases: dict[Case, None] = {}
    for name, space in SPACES.items():
        usual = [{**space.usual, "target": target, "aligned": True} for target in space.targets]
        for row in [*usual, *_pairwise(space.dimensions, usual)]:
            target, aligned = row.pop("target"), row.pop("aligned")
            cases[Case(name, tuple(row.items()), target, aligned)] = None
        for config, targets in space.extra:
            cases.update({Case(name, tuple(space.usual.items()), target, config=config): None for target in targets})
    return list(cases)


def share() -> list[Case]:
    """What every test run compiles: of the covering set, what has each value once, and all configurations asked for."""
    cases, seen = [], set()
    for case in covering():
        values = {(case.space, *item) for item in (*case.facts, ("target", case.target), ("aligned", case.aligned))}
        if values - seen or case.config is not None:
            cases.append(case)
            seen |= values
    return cases


def complete() -> list[Case]:
    """Every dtype, shape and kind for every GPU, and for the case used most all that tuning tries."""
    cases: dict[Case, None] = {}
    for name, space in SPACES.items():
        usual = {variant: values[0] for variant, values in space.variants.items()}
        for values in itertools.product(*space.all_shapes.values()):
            facts = tuple({**dict(zip(space.shapes, values, strict=True)), **usual}.items())
            cases.update({Case(name, facts, target): None for target in space.targets})
        for config in space.candidates:
            cases.update(
                {Case(name, tuple(space.usual.items()), target, config=config): None for target in space.targets}
            )
    return list(cases)


def launches(case: Case) -> list[Launch]:
    """What the launcher of `case` would launch on such a GPU, each kernel once."""
    space = SPACES[case.space]
    with _as_on(TARGETS[case.target]), recorded() as made:
        space.call(**dict(case.facts), aligned=case.aligned, config=case.config)
    return list({launch.name: launch for launch in made if launch.name in space.kernels}.values())


@contextmanager
def _as_on(target: Target) -> Iterator[None]:
    """Let launchers believe that their tensors are on such a GPU."""
    hip = "6.4" if target.sm is None else None
    with (
        patch.object(torch.version, "hip", hip),
        patch.object(tuned, "_capability", lambda device: target.sm),
    ):
        yield


def _pairwise(dimensions: Mapping[str, tuple[Any, ...]], made: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows that, with those `made`, have each pair of values of two dimensions at least once; always the same ones.

    Greedy: a row starts from the first pair that is missing, and takes of each other dimension the value that adds the
    most missing pairs, and of several such the one used least (Cohen et al. 1997, "The AETG system", section 3, without
    its random restarts).
    """
    items = [[(name, value) for value in values] for name, values in dimensions.items()]
    missing = {frozenset(pair): None for a, b in itertools.combinations(items, 2) for pair in itertools.product(a, b)}

    uses: Counter[tuple[str, Any]] = Counter()

    def strike(row: dict[str, Any]) -> None:
        uses.update(row.items())
        for pair in itertools.combinations(row.items(), 2):
            missing.pop(frozenset(pair), None)

    for row in made:
        strike(row)
    while missing:
        row = dict(next(iter(missing)))
        for name, values in dimensions.items():
            if name not in row:
                gains = {v: sum(frozenset(((name, v), item)) in missing for item in row.items()) for v in values}
                row[name] = max(values, key=lambda value, name=name, gains=gains: (gains[value], -uses[name, value]))
        row = {name: row[name] for name in dimensions}
        strike(row)
        yield row


def _word(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return name if value else f"no {name}"
    return value if isinstance(value, str) else f"{name} {value}"


def _described(config: Config) -> str:
    tiles = " ".join(f"{name}={value}" for name, value in config.blocks)
    registers = f" registers={config.max_registers}" if config.max_registers else ""
    return f"{tiles} warps={config.num_warps} stages={config.num_stages}{registers}"
