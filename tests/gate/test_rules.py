"""The gate bites: kernels that keep the rules pass, each that breaks one is caught, and for that reason alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gate_planted
import pytest
import torch
from gate_addresses import narrow_products
from gate_compile import TARGETS, Compiled, Dot, compile_launch
from gate_recorder import recorded
from gate_rules import problems

ROWS = "gate_planted.py"


def compile_planted(kernel: Any, target: str, arguments: dict[str, Any], **options: Any) -> Compiled:
    options = {"num_warps": 4, "num_stages": 2, "enable_fp_fusion": False} | options
    with recorded() as made:
        kernel[(1,)](**arguments, **{name: value for name, value in options.items() if value is not None})
    return compile_launch(made[0], TARGETS[target])


def matmul(
    target: str, dtype: torch.dtype, rows: int, columns: int, inner: int, precision: str = "ieee", **options: Any
) -> Compiled:
    a, b, out = (torch.empty(size, dtype=kind) for size, kind in ((4096, dtype), (4096, dtype), (4096, torch.float32)))
    arguments = {"a_ptr": a, "b_ptr": b, "out_ptr": out, "stride_a": 4096, "stride_b": 4096, "stride_out": 4096}
    tiles = {"inner": 4096, "BLOCK_M": rows, "BLOCK_N": columns, "BLOCK_K": inner, "PRECISION": precision}
    return compile_planted(gate_planted.matmul_kernel, target, {**arguments, **tiles}, **options)


def rows(how: str, target: str = "sm_90") -> Compiled:
    x, out, edges = torch.empty(64), torch.empty(64), torch.empty(5, dtype=torch.int32)
    arguments = {"x_ptr": x, "out_ptr": out, "cu_seqlens_ptr": edges, "stride": 768, "limit": 1000}
    return compile_planted(gate_planted.rows_kernel, target, {**arguments, "HOW": how, "BLOCK": 32, "WIDTH": 64})


@pytest.mark.parametrize(
    ("target", "instruction"),
    [("sm_80", "mma.sync"), ("sm_90", "wgmma"), ("sm_100", "tcgen05"), ("sm_120", "mma.sync"), ("gfx942", "mfma")],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_sound_product_of_matrices_passes_on_the_tensor_cores(
    target: str, instruction: str, dtype: torch.dtype
) -> None:
    compiled = matmul(target, dtype, 64, 64, 32)
    assert problems(compiled, TARGETS[target]) == []
    assert compiled.instruction == instruction
    assert compiled.dots == {Dot(64, {torch.bfloat16: "bf16", torch.float16: "f16"}[dtype])}
    assert 0 < compiled.registers < 255
    assert compiled.shared >= 2 * (64 * 32 + 32 * 64)


def test_a_full_precision_product_passes_without_tensor_cores() -> None:
    compiled = matmul("sm_90", torch.float32, 32, 32, 32)
    assert problems(compiled, TARGETS["sm_90"]) == []
    assert (compiled.instruction, compiled.tf32) == ("none", False)


@pytest.mark.parametrize("precision", ["tf32", "tf32x3"])
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_tf32_is_caught(target: str, precision: str) -> None:
    compiled = matmul(target, torch.float32, 64, 64, 32, precision)
    assert "tl.dot in TF32, expected input_precision 'ieee'" in problems(compiled, TARGETS[target])


def test_tf32_left_unsaid_in_half_precision_is_caught() -> None:
    """Such a kernel would compute its fp32 cases in TF32."""
    compiled = matmul("sm_90", torch.bfloat16, 64, 64, 32, "tf32")
    assert problems(compiled, TARGETS["sm_90"]) == ["tl.dot in TF32, expected input_precision 'ieee'"]


@pytest.mark.parametrize(("target", "height"), [("sm_80", 64), ("gfx942", 256)])
def test_spills_are_caught(target: str, height: int) -> None:
    """More sums than one warp, or wave, has registers for: 255 x 32, 512 x 64."""
    compiled = matmul(target, torch.float32, height, 128, 16, num_warps=1)
    assert compiled.spill > 0
    found = problems(compiled, TARGETS[target])
    assert [line for line in found if not line.startswith("spills")] == []
    assert found == [f"spills {compiled.spill} bytes with a stack of {compiled.stack}, expected none"]
    assert problems(compiled, TARGETS[target], shipped=False) == []


@pytest.mark.parametrize(
    ("target", "limit"), [("sm_80", 166_912), ("sm_86", 101_376), ("sm_90", 232_448), ("gfx942", 65_536)]
)
def test_too_much_shared_memory_is_caught(target: str, limit: int) -> None:
    compiled = matmul(target, torch.bfloat16, 128, 128, 128, num_warps=8, num_stages=4)
    assert compiled.shared > limit, "planted too small"
    found = [line for line in problems(compiled, TARGETS[target]) if "shared" in line]
    assert found == [f"{compiled.shared} bytes of shared memory, {target} has {limit}"]
    assert not any("shared" in line for line in problems(compiled, TARGETS[target], shipped=False))


def test_shared_memory_up_to_the_limit_passes() -> None:
    compiled = matmul("sm_86", torch.bfloat16, 128, 128, 32, num_warps=8, num_stages=4)
    assert 32_768 <= compiled.shared <= 101_376
    assert problems(compiled, TARGETS["sm_86"]) == []


def test_a_product_too_narrow_for_a_warp_group_is_caught() -> None:
    """Two warps are half a warp group: Hopper falls back to the instruction of Ampere."""
    found = problems(matmul("sm_90", torch.bfloat16, 64, 64, 32, num_warps=2), TARGETS["sm_90"])
    assert found == ["tl.dot of [64] rows: expected wgmma, got mma.sync"]


def test_a_product_of_few_rows_may_use_any_tensor_core() -> None:
    compiled = matmul("sm_90", torch.bfloat16, 16, 64, 32)
    assert compiled.instruction == "mma.sync"
    assert problems(compiled, TARGETS["sm_90"]) == []


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize(("given", "named"), [(None, "nothing"), (True, "True")])
def test_fusion_that_is_not_switched_off_is_caught(given: bool | None, named: str) -> None:
    compiled = matmul("sm_90", torch.bfloat16, 64, 64, 32, enable_fp_fusion=given)
    found = problems(compiled, TARGETS["sm_90"])
    assert found == [f"enable_fp_fusion: expected False from the launcher, got {named}"]


@pytest.mark.parametrize(
    "how",
    [
        "nowhere",
        "an assumed number",
        "rounded down",
        "a number of the second axis",
        "a condition",
        "the end of a loop",
        "small constants",
        "a mask",
    ],
)
@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_products_that_reach_no_address_or_cannot_overflow_pass(how: str, target: str) -> None:
    assert problems(rows(how, target), TARGETS[target]) == []


@pytest.mark.parametrize(
    ("how", "op", "findings"),
    [
        ("before the cast", "arith.muli", 1),
        ("inside a loop", "arith.muli", 1),
        ("carried through a loop", "arith.muli", 1),
        ("a number of the first axis", "arith.muli", 1),
        ("half an assumption", "arith.muli", 1),
        ("a selection", "arith.muli", 1),
        ("a shift", "arith.shli", 1),
        ("narrowed again", "arith.trunci", 1),
    ],
)
@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_a_product_in_32_bits_that_reaches_an_address_is_caught(how: str, op: str, findings: int, target: str) -> None:
    found = problems(rows(how, target), TARGETS[target])
    assert len(found) == findings
    assert all(line.startswith(f"{ROWS}:") and f"32-bit {op} reaches an address" in line for line in found)


@pytest.mark.parametrize(("how", "findings"), [("neither", 0), ("if", 1), ("while", 1)])
def test_products_are_followed_through_branches(how: str, findings: int) -> None:
    x, out = torch.empty(64), torch.empty(64)
    arguments = {"x_ptr": x, "out_ptr": out, "n": 1000, "stride": 768, "HOW": how}
    compiled = compile_planted(gate_planted.branching_kernel, "sm_90", arguments)
    assert len(compiled.narrow) == findings


def test_a_finding_names_the_line_of_the_kernel() -> None:
    found = rows("before the cast").narrow[0]
    number = int(found.split(":")[1])
    source = Path(gate_planted.__file__).read_text(encoding="utf-8").splitlines()
    assert source[number - 1].strip() == "offset = (first * stride).to(tl.int64)"


PASSED_TO_A_BLOCK = """\
module {
  tt.func public @k(%x: !tt.ptr<f32>, %a: i32, %c: i1) {
    %p = arith.muli %a, %a : i32
    cf.cond_br %c, ^bb1(%p : i32), ^bb2
  ^bb1(%q: i32):  // pred: ^bb0
    %y = tt.addptr %x, %q : !tt.ptr<f32>, i32
    cf.br ^bb2
  ^bb2:  // 2 preds: ^bb0, ^bb1
    tt.return
  }
}
"""


def test_a_product_is_followed_into_a_block_that_it_is_passed_to() -> None:
    assert len(narrow_products(PASSED_TO_A_BLOCK)) == 1
    assert narrow_products(PASSED_TO_A_BLOCK.replace("(%p : i32)", "(%a : i32)")) == []


SPLIT = """\
module {
  tt.func public @k(%x: !tt.ptr<f32>, %a: i32, %c: tensor<8x2xi32>) {
    %p = arith.muli %a, %a : i32
    %low, %high = tt.split %c : tensor<8x2xi32> -> tensor<8xi32>
    %q = arith.muli %high, %low : tensor<8xi32>
    %y = tt.addptr %x, %q : !tt.ptr<f32>, i32
    tt.return
  }
}
"""


def test_results_with_names_of_their_own_are_told_apart() -> None:
    assert len(narrow_products(SPLIT)) == 1
    assert narrow_products(SPLIT.replace("%x, %q", "%x, %high")) == []


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_every_width_below_64_bits_counts(bits: int) -> None:
    text = PASSED_TO_A_BLOCK.replace("i32", f"i{bits}")
    assert len(narrow_products(text)) == 1
    assert narrow_products(PASSED_TO_A_BLOCK.replace("i32", "i64")) == []


@pytest.mark.parametrize(
    "line",
    [
        "%y = tt.addptr %x, %unknown : !tt.ptr<f32>, i32",
        "%y = new.region %x ({",
        "something else entirely",
    ],
)
def test_text_that_cannot_be_read_is_an_error(line: str) -> None:
    with pytest.raises(ValueError, match="TTIR: expected"):
        narrow_products(f"module {{\n  tt.func public @k(%x: !tt.ptr<f32>) {{\n    {line}\n    tt.return\n  }}\n}}\n")
