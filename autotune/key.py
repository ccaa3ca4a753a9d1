"""The key of a tuned configuration: the facts of a call that it may depend on, and no others.

Which facts those are stands here once, for who measures, who reads and who explains. There is no batch among them: a
text is to have the same bits in any company.
"""

from __future__ import annotations

from ..engine.contract import Call

__all__ = ["FACTS", "KEYED_BY", "Key", "key_of"]

Key = tuple[tuple[str, str | int | bool], ...]
"""Named facts of a call in the order of their names; facts that are None or False are left out."""

FACTS: dict[str, type] = {
    "dtype": str,
    "head_dim": int,
    "window": str,
    "bias": str,
    "hidden": int,
    "inner": int,
    "epilogue": str,
    "norm": str,
    "gated": bool,
    "residual": bool,
    "rope": bool,
}
"""All facts of a `Call` that a key may hold, and what they are in a file."""

_PRODUCT = ("dtype", "inner", "hidden", "epilogue", "gated", "rope", "head_dim")

KEYED_BY: dict[str, tuple[str, ...]] = {
    "attention": ("dtype", "head_dim", "window", "bias"),
    "decode_attention": ("dtype", "head_dim", "bias"),
    "linear": (*_PRODUCT, "residual"),
    "norm_linear": (*_PRODUCT, "norm"),
    "mobilebert_in": ("dtype", "hidden", "inner"),
    "mobilebert_out": ("dtype", "hidden", "inner"),
    "rope": ("dtype", "head_dim"),
    **dict.fromkeys(("norm", "rms_norm", "no_norm", "mlm_head", "embed", "trigram", "pool"), ("dtype", "hidden")),
}
"""The facts that each op's kernel knows of a call when it is launched; of other ops all count."""


def key_of(call: Call) -> Key:
    """The facts of `call` that entries for its op are chosen by."""
    facts = {name: getattr(call, name) for name in KEYED_BY.get(call.op, FACTS)}
    facts["dtype"] = str(call.dtype).removeprefix("torch.")
    return tuple((name, facts[name]) for name in sorted(facts) if facts[name] not in (None, False))
