"""Dispatch: the order of the rows, the reasons against each, and that every row is what the table says it is."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from padless.engine import dispatch
from padless.engine.contract import Call, Impl, Requires
from padless.engine.dispatch import TABLE, backends, explain, resolve
from padless.engine.errors import BackendError
from padless.kernels.llvm import host

REASON = re.compile(
    r"needs .+, (got .+|found none|not installed|this one .+|this CPU .+)|cannot be imported: .+|"
    r"leaves .+ to cuBLAS: .+|backend='\w+' was asked for|op \w+ has no row of this name"
)
ROWS = [(op, impl) for op, rows in TABLE.items() for impl in rows]
ROW_IDS = [f"{op}-{impl.name}" for op, impl in ROWS]


def call(op: str = "attention", device: str = "cpu", dtype: torch.dtype = torch.float32, **facts: Any) -> Call:
    defaults: dict[str, Any] = {}
    if op == "attention":
        defaults = {"head_dim": 32, "window": "full", "bias": "none"}
    return Call(op, device, dtype, **{**defaults, **facts})


def function(impl: Impl) -> Callable[..., Any]:
    module, _, name = impl.target.partition(":")
    return getattr(import_module(module), name)


def reasons(resolution: dispatch.Resolution, name: str) -> tuple[str, ...]:
    return dict(resolution.rejected)[name]


def refusal(asked: Call, backend: str) -> str:
    with pytest.raises(BackendError) as error:
        resolve(asked, backend)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    return message


def features(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let the CPU at hand look as if it had these parts of AVX-512 alone; rows are only chosen here."""
    monkeypatch.setattr(host, "_features", lambda: dict.fromkeys(names, True))


@pytest.fixture
def vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llvmlite", reason="needs package llvmlite, not installed")
    features(monkeypatch, "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512bf16")


@pytest.fixture
def no_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    features(monkeypatch)


# What the table says of its rows.


@pytest.mark.parametrize(("op", "impl"), ROWS, ids=ROW_IDS)
def test_every_row_has_the_parameters_of_the_eager_row(op: str, impl: Impl) -> None:
    eager = inspect.signature(function(TABLE[op][-1])).parameters
    row = inspect.signature(function(impl)).parameters
    # A kernel's own tiling, for benchmarks; no part of the op.
    row = {name: parameter for name, parameter in row.items() if (impl.name, name) != ("triton", "config")}
    if (prepare := getattr(import_module(impl.target.partition(":")[0]), "prepare", None)) is not None:
        # Weights come as the row prepared them, as many as it likes, behind the same inputs.
        # A module of several ops prepares more of them than each has.
        weights = [name for name in inspect.signature(prepare).parameters if name != "call" and name in eager]
        inputs = len([name for name in eager if eager[name].kind != eager[name].KEYWORD_ONLY]) - len(weights)
        assert list(row)[:inputs] == list(eager)[:inputs]
        eager = {name: parameter for name, parameter in eager.items() if name not in weights}
        row = {name: p for place, (name, p) in enumerate(row.items())
               if place < inputs or p.kind == p.KEYWORD_ONLY}  # fmt: skip
    assert list(row) == [name for name in eager if name in row]
    for name, parameter in row.items():
        assert parameter.kind == eager[name].kind, name
        assert parameter.default == eager[name].default, name
    # What a row leaves out is an option of eager, never an input.
    assert all(eager[name].default is not inspect.Parameter.empty for name in eager if name not in row)


@pytest.mark.parametrize("op", TABLE)
def test_the_last_row_is_eager_serves_anything_and_has_a_gradient(op: str) -> None:
    last = TABLE[op][-1]
    assert last.name == "eager"
    assert last.differentiable
    assert last.requires == Requires()
    assert getattr(import_module(last.target.partition(":")[0]), "unsupported", None) is None
    assert last.target.startswith("padless.engine.ops.")
    assert (function(last).__doc__ or "").count("\n") > 5


@pytest.mark.parametrize("op", TABLE)
def test_row_names_are_told_apart(op: str) -> None:
    names = [impl.name for impl in TABLE[op]]
    assert len(set(names)) == len(names)
    assert "auto" not in names


def test_the_backends_are_auto_and_every_row() -> None:
    assert backends()[0] == "auto"
    assert set(backends()[1:]) == {impl.name for _, impl in ROWS}


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    op=st.sampled_from(list(TABLE)),
    device=st.sampled_from(["cpu", "cuda"]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
    sm=st.sampled_from([75, 80, 90, 120]),
    window=st.sampled_from(["full", "sliding", "causal"]),
    bias=st.sampled_from(["none", "t5"]),
    cross=st.booleans(),
    lse=st.booleans(),
)
def test_auto_serves_every_call_and_gives_a_reason_for_each_row_it_passes(
    op: str, device: str, dtype: torch.dtype, sm: int, window: str, bias: str, cross: bool, lse: bool
) -> None:
    facts: dict[str, Any] = {"sm": sm if device == "cuda" else None}
    if op == "attention":
        facts |= {"window": window, "bias": bias, "cross": cross, "lse": lse}
    resolution = resolve(call(op, device, dtype, **facts))
    above = [impl.name for impl in TABLE[op][: TABLE[op].index(resolution.impl)]]
    assert [name for name, _ in resolution.rejected] == above
    for name, listed in resolution.rejected:
        assert listed, name
        for reason in listed:
            assert REASON.fullmatch(reason), reason
    assert resolution.fn is function(resolution.impl)
    assert resolution.gradient is function(TABLE[op][-1])


# Order and reasons.


@pytest.mark.usefixtures("no_vectors")
def test_rows_are_taken_in_order() -> None:
    assert resolve(call()).impl.name == "cpu"
    assert resolve(call(dtype=torch.float64)).impl.name == "eager"
    assert resolve(call("linear")).impl.name == "cpu"
    assert resolve(call("linear", dtype=torch.float64)).impl.name == "eager"
    for op in ("norm", "embed", "pool"):
        assert resolve(call(op)).impl.name == "eager"


@pytest.mark.usefixtures("vectors")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_cpu_with_avx_512_the_rows_compiled_by_llvm_come_first(dtype: torch.dtype) -> None:
    served = [("attention", {}), ("norm", {"hidden": 384}), ("no_norm", {"hidden": 128})]
    if dtype == torch.bfloat16:
        served.append(("rms_norm", {"hidden": 512}))
    else:
        found = reasons(resolve(call("rms_norm", hidden=512)), "cpu_llvm")
        assert found == ("leaves rms_norm in float32 to the operators that transformers uses",)
        assert resolve(call("rms_norm", hidden=512), "cpu_llvm").impl.name == "cpu_llvm"
    served += [("linear", {"epilogue": "none", "rope": True, "head_dim": 64, "hidden": 100})]
    served += [
        ("linear", {"epilogue": name, "gated": gated}) for name in ("gelu", "gelu_tanh") for gated in (False, True)
    ]
    if dtype == torch.bfloat16:
        served += [("linear", {"epilogue": name, "hidden": 384, "inner": 1536}) for name in ("none", "relu")]
    for op, facts in served:
        assert resolve(call(op, dtype=dtype, **facts)).impl.name == "cpu_llvm"
    left = [("attention", {"window": "causal"}, "needs window full or sliding, got causal"),
            ("attention", {"cross": True}, "needs self-attention, got cross-attention"),
            ("attention", {"lse": True}, "needs a call without log-sum-exp, got one with it"),
            ("attention", {"head_dim": 40}, "needs head_dim a multiple of "),
            ("linear", {"epilogue": "relu", "hidden": 384}, "needs rope, or epilogue gelu or gelu_tanh, got relu"),
            ("linear", {"epilogue": "gelu", "hidden": 40}, "needs a multiple of 16 activated features, got 40"),
            ("linear", {"epilogue": "gelu", "hidden": 48, "gated": True}, "needs a multiple of 16 activated features"),
            ("linear", {"epilogue": "none", "rope": True, "head_dim": 48}, "needs head_dim a multiple of 32, got 48"),
            ("norm", {"hidden": 40}, "needs hidden a multiple of 16, got 40"),
            ("rms_norm", {"hidden": 40}, "needs hidden a multiple of 16, got 40")]  # fmt: skip
    for op, facts, reason in left:
        resolution = resolve(call(op, dtype=dtype, **facts))
        assert resolution.impl.name in ("cpu", "eager")
        (found,) = reasons(resolution, "cpu_llvm")
        assert found.startswith(reason)
    for op in ("attention", "linear", "norm", "rms_norm"):
        for other in (torch.float16, torch.float64):
            assert "needs dtype float32 or bfloat16" in reasons(resolve(call(op, dtype=other)), "cpu_llvm")[0]


def test_what_a_cpu_lacks_for_the_rows_compiled_by_llvm_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llvmlite", reason="needs package llvmlite, not installed")
    asked: list[tuple[str, dict[str, Any]]] = [("attention", {}), ("linear", {"epilogue": "gelu"}), ("norm", {})]
    for op, facts in asked:
        features(monkeypatch, "avx512f", "avx512bw", "avx512vl", "avx512dq")
        assert resolve(call(op, **facts)).impl.name == "cpu_llvm"
        found = reasons(resolve(call(op, dtype=torch.bfloat16, **facts)), "cpu_llvm")
        assert found == ("needs a CPU with avx512bf16, this one has not",)
        features(monkeypatch, "avx512f", "avx512dq", "avx512bf16", "avx2")
        found = reasons(resolve(call(op, **facts)), "cpu_llvm")
        assert found == ("needs a CPU with avx512bw, avx512vl, this one has not",)


def test_on_a_cpu_triton_is_passed_over_for_its_device_and_its_capability() -> None:
    assert reasons(resolve(call()), "triton") == (
        "needs device cuda, got cpu",
        "needs sm_80 or newer, got no GPU",
    )


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"dtype": torch.float64}, "needs dtype float32 or bfloat16, got float64"),
        ({"dtype": torch.float16}, "needs dtype float32 or bfloat16, got float16"),
        ({"window": "causal"}, "needs window full or sliding, got causal"),
        ({"cross": True}, "needs self-attention, got cross-attention"),
        ({"lse": True}, "needs a call without log-sum-exp, got one with it"),
    ],
)
def test_what_the_cpu_row_of_attention_cannot_do_falls_to_eager(facts: dict[str, Any], reason: str) -> None:
    resolution = resolve(call(**facts))
    assert resolution.impl.name == "eager"
    assert reasons(resolution, "cpu") == (reason,)
    assert reason in refusal(call(**facts), "cpu")


@pytest.mark.parametrize("sm", [80, 90, 120])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_on_a_gpu_triton_serves_attention(sm: int, dtype: torch.dtype) -> None:
    resolution = resolve(call(device="cuda", sm=sm, dtype=dtype))
    assert resolution.impl.name == "triton"
    assert resolution.rejected == ()
    assert resolution.config_source == "default"


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"dtype": torch.float64}, "needs dtype float32, float16, bfloat16, got float64"),
        ({"head_dim": 512}, "needs head_dim up to 256, got 512"),
    ],
)
def test_what_the_triton_row_of_attention_cannot_do_falls_to_eager(facts: dict[str, Any], reason: str) -> None:
    asked = call(device="cuda", sm=90, **facts)
    resolution = resolve(asked)
    assert resolution.impl.name == "eager"
    assert reasons(resolution, "triton") == (reason,)
    assert reason in refusal(asked, "triton")


FUSED = [
    {"epilogue": "gelu"},
    {"epilogue": "none", "residual": True},
    {"epilogue": "none", "rope": True, "head_dim": 64},
]


@pytest.mark.parametrize("facts", [*FUSED, {"epilogue": "gelu_tanh", "gated": True}], ids=str)
def test_on_a_gpu_triton_serves_products_with_something_behind_them(facts: dict[str, Any]) -> None:
    asked = call("linear", "cuda", torch.bfloat16, sm=90, hidden=2304, inner=768, **facts)
    assert resolve(asked).impl.name == "triton"
    # In fp32 its gain was not measured either.
    assert resolve(replace(asked, dtype=torch.float32)).impl.name == "eager"


def test_plain_products_are_left_to_cublas_unless_triton_is_named_or_bits_must_not_change() -> None:
    asked = call("linear", "cuda", torch.bfloat16, sm=90, hidden=768, inner=768, epilogue="none")
    resolution = resolve(asked)
    assert resolution.impl.name == "eager"
    assert reasons(resolution, "triton") == ("leaves plain products to cuBLAS: was not measured faster",)
    assert resolve(asked, "triton").impl.name == "triton"
    assert resolve(replace(asked, deterministic=True)).impl.name == "triton"


def test_on_an_older_gpu_the_capability_is_named_on_both_sides() -> None:
    asked = call(device="cuda", sm=75)
    assert reasons(resolve(asked), "triton")[0] == "needs sm_80 or newer, got sm_75"
    assert "needs sm_80 or newer, got sm_75" in refusal(asked, "triton")


def test_triton_on_a_cpu_raises_with_every_reason_at_once() -> None:
    message = refusal(call(), "triton")
    assert "'triton' cannot serve attention" in message
    assert "needs device cuda, got cpu" in message
    assert "needs sm_80 or newer, got no GPU" in message


@pytest.mark.usefixtures("no_vectors")
def test_a_named_backend_leaves_ops_without_such_a_row_to_the_next() -> None:
    for op in ("linear", "norm", "rope", "mobilebert_in", "mlm_head"):
        resolution = resolve(call(op), "flash_attn")
        assert reasons(resolution, "flash_attn") == (f"op {op} has no row of this name",)
        assert resolution.impl.name == ("cpu" if op == "linear" else "eager")


def test_a_named_backend_passes_over_better_rows_and_says_so() -> None:
    resolution = resolve(call(), "eager")
    assert resolution.impl.name == "eager"
    assert resolution.rejected == (
        ("triton", ("backend='eager' was asked for",)),
        ("flash_attn", ("backend='eager' was asked for",)),
        ("torch_varlen", ("backend='eager' was asked for",)),
        ("cpu_llvm", ("backend='eager' was asked for",)),
        ("cpu", ("backend='eager' was asked for",)),
        ("cpu_fixed", ("backend='eager' was asked for",)),
    )


@pytest.mark.usefixtures("vectors")
def test_of_the_rows_compiled_by_llvm_all_but_a_library_s_product_are_deterministic() -> None:
    for op, row in (("attention", "cpu_llvm"), ("norm", "cpu_llvm"), ("no_norm", "cpu_llvm"), ("linear", "cpu_fixed")):
        assert resolve(call(op, epilogue="gelu" if op == "linear" else None, deterministic=True)).impl.name == row
    shapes = {"hidden": 1536, "inner": 384, "epilogue": "gelu", "deterministic": True}
    for dtype, row in ((torch.bfloat16, "cpu_llvm"), (torch.float32, "cpu_fixed")):
        assert resolve(call("linear", dtype=dtype, **shapes)).impl.name == row


@pytest.mark.usefixtures("no_vectors")
def test_deterministic_takes_only_rows_that_promise_it() -> None:
    resolution = resolve(call(deterministic=True))
    assert resolution.impl.name == "cpu_fixed"
    assert any("deterministic=True" in reason for reason in reasons(resolution, "cpu"))
    for op in ("attention", "decode_attention", "linear", "mlm_head", "norm", "rms_norm", "embed", "rope", "pool"):
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            assert resolve(call(op, dtype=dtype, deterministic=True)).impl.deterministic


def test_rows_for_deterministic_serve_nobody_else() -> None:
    for op in ("attention", "linear", "mlm_head"):
        assert "needs deterministic=True, got deterministic=False" in refusal(call(op), "cpu_fixed")


@pytest.mark.parametrize(("device", "backend"), [("cuda", "auto"), ("cpu", "eager"), ("cpu", "cpu")])
def test_deterministic_linear_is_refused_with_reasons(device: str, backend: str) -> None:
    message = refusal(call("linear", device, deterministic=True, sm=75 if device == "cuda" else None), backend)
    assert "linear" in message
    assert "needs a row that promises deterministic=True" in message
    if backend == "auto":
        assert message.index("triton: ") < message.index("cpu_fixed: ") < message.index("eager: ")


def test_unknown_op_and_unknown_backend_list_what_is_known() -> None:
    message = refusal(Call("matmul", "cpu", torch.float32), "auto")
    assert "'matmul'" in message
    assert all(op in message for op in TABLE)
    for name in ("tirton", "", "AUTO"):
        message = refusal(call(), name)
        assert repr(name) in message
        assert all(backend in message for backend in backends())


# Rows that cannot be imported, or lack a package.


def with_row(monkeypatch: pytest.MonkeyPatch, impl: Impl) -> None:
    monkeypatch.setitem(TABLE, "embed", (impl, *TABLE["embed"]))


def test_a_missing_package_is_a_reason_and_the_row_is_never_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    requires = Requires(packages=("no_such_package_anywhere",))
    with_row(monkeypatch, Impl("fast", "padless.no_such_module:embed", requires))
    resolution = resolve(call("embed"))
    assert resolution.impl.name == "eager"
    assert reasons(resolution, "fast") == ("needs package no_such_package_anywhere, not installed",)
    assert "no_such_package_anywhere" in refusal(call("embed"), "fast")


def test_a_missing_package_inside_a_missing_package_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    with_row(monkeypatch, Impl("fast", "padless.x:y", Requires(packages=("no_such_package_anywhere.inside",))))
    assert reasons(resolve(call("embed")), "fast") == ("needs package no_such_package_anywhere.inside, not installed",)


def test_a_row_that_fails_to_import_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    with_row(monkeypatch, Impl("fast", "padless.engine.no_such_module:embed"))
    resolution = resolve(call("embed"))
    assert resolution.impl.name == "eager"
    (reason,) = reasons(resolution, "fast")
    assert reason.startswith("cannot be imported: ")
    assert "no_such_module" in reason


def test_every_unmet_requirement_is_listed_with_both_values() -> None:
    requires = Requires("cuda", sm=90, packages=("no_such_package_anywhere",), dtypes=(torch.float16, torch.bfloat16))
    assert requires.unmet(call(dtype=torch.float64)) == [
        "needs device cuda, got cpu",
        "needs sm_90 or newer, got no GPU",
        "needs package no_such_package_anywhere, not installed",
        "needs dtype float16 or bfloat16, got float64",
    ]
    met = Requires("cuda", sm=90, packages=("torch",), dtypes=(torch.float16,))
    assert met.unmet(call(device="cuda", dtype=torch.float16, sm=90)) == []
    assert Requires().unmet(call()) == []


def test_a_call_is_hashable_and_prints_only_its_facts() -> None:
    assert hash(call()) == hash(call())
    assert call() != call(sm=90)
    assert str(call("linear", epilogue="gelu", hidden=0)).split(", ")[:3] == [
        "op=linear",
        "device=cpu",
        "dtype=float32",
    ]
    assert "None" not in str(call())
    assert "False" not in str(call())


# Rows that could serve and would rather not.


def leaving(asked: Call) -> list[str]:
    return (
        [f"leaves plain products to the rows below, got epilogue {asked.epilogue}"] if asked.epilogue == "none" else []
    )


@pytest.fixture
def modest(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a row above all others of `linear` that leaves plain products to them."""
    module = ModuleType("modest_rows")
    module.linear = function(TABLE["linear"][-1])  # type: ignore[attr-defined]
    module.defers = leaving  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modest_rows", module)
    monkeypatch.setitem(TABLE, "linear", (Impl("modest", "modest_rows:linear"), *TABLE["linear"]))
    return "modest"


def test_a_row_that_defers_is_passed_over_under_auto_with_its_reason(modest: str) -> None:
    resolution = resolve(call("linear", epilogue="none", dtype=torch.float64))
    assert resolution.impl.name == "eager"
    assert reasons(resolution, modest) == ("leaves plain products to the rows below, got epilogue none",)
    assert "modest: leaves plain products to the rows below, got epilogue none" in explain([resolution])


def test_a_row_that_defers_serves_what_it_does_not_defer(modest: str) -> None:
    resolution = resolve(call("linear", epilogue="gelu"))
    assert resolution.impl.name == modest
    assert resolution.rejected == ()


def test_a_row_that_is_named_is_not_asked_whether_it_defers(modest: str) -> None:
    assert resolve(call("linear", epilogue="none"), modest).impl.name == modest


def test_a_row_that_defers_serves_where_no_row_below_can(modest: str) -> None:
    first, *others = TABLE["linear"]
    TABLE["linear"] = (replace(first, deterministic=True), *(row for row in others if row.name != "cpu_fixed"))
    resolution = resolve(call("linear", epilogue="none", deterministic=True))
    assert resolution.impl.name == modest
    assert resolution.rejected == ()


def test_under_a_backend_that_the_op_has_no_row_of_rows_defer_as_under_auto(modest: str) -> None:
    resolution = resolve(call("linear", epilogue="none", dtype=torch.float64), "flash_attn")
    assert resolution.impl.name == "eager"
    assert reasons(resolution, modest)[0].startswith("leaves plain products")


# explain


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        ({"epilogue": "none"}, "linear"),
        ({"epilogue": "none", "rope": True, "head_dim": 64}, "linear + rope"),
        ({"epilogue": "none", "residual": True}, "linear + residual"),
        ({"epilogue": "gelu_tanh", "gated": True}, "linear + gated gelu_tanh"),
        ({"epilogue": "relu", "residual": True}, "linear + relu + residual"),
    ],
)
def test_explain_says_what_follows_a_product(facts: dict[str, Any], name: str) -> None:
    line = explain([resolve(call("linear", **facts))]).splitlines()[1]
    assert re.split(r" {2,}", line)[0] == name


@pytest.mark.usefixtures("vectors")
def test_explain_prints_a_table_that_lines_up() -> None:
    asked = [call("linear", epilogue="none"), call("linear", epilogue="gelu"), call(), call("linear", epilogue="none")]
    lines = explain(map(resolve, asked)).splitlines()
    assert lines[0].split() == ["op", "implementation", "dtype", "uses", "tuned", "by", "rejected"]
    cells = [re.split(r" {2,}", line) for line in lines[1:]]
    no_gpu = "needs device cuda, got cpu; needs sm_80 or newer, got no GPU"
    no_gelu = "cpu_llvm: needs rope, or epilogue gelu or gelu_tanh, got none"
    assert cells == [
        ["linear", "cpu", "float32", "2", "none", f"triton: {no_gpu} | {no_gelu}"],
        ["linear + gelu", "cpu_llvm", "float32", "1", "none", f"triton: {no_gpu}"],
        [
            "attention",
            "cpu_llvm",
            "float32",
            "1",
            "none",
            f"triton, flash_attn, torch_varlen: {no_gpu}",
        ],
    ]
    column = lines[0].index("implementation")
    assert all(line[column - 1] == " " != line[column] for line in lines)


def test_explain_keeps_bindings_that_differ_apart() -> None:
    asked = [resolve(call()), resolve(call(), "eager"), resolve(call(dtype=torch.bfloat16))]
    assert len(explain(asked).splitlines()) == 4
    assert explain([]).split() == ["op", "implementation", "dtype", "uses", "tuned", "by", "rejected"]
