"""Which of our classes computes what a class of transformers computes."""

from __future__ import annotations

from typing import Any

from ...models import CLASSES, FAMILIES, family_class

__all__ = ["is_from_transformers", "our_class", "supported"]

SAME_AS = {"t5": ("mt5", "T5")}
"""`model_type` of transformers that is a family of ours under another name -> (ours, what their names begin with)."""


def our_class(model: Any) -> Any | None:
    """Our class for a model of transformers; None where there is none, as for classes that others derived."""
    if not is_from_transformers(model):
        return None
    kind = str(getattr(getattr(model, "config", None), "model_type", None))
    family, prefix = SAME_AS.get(kind, (kind, FAMILIES[kind][1] if kind in FAMILIES else ""))
    name = type(model).__name__
    if family not in CLASSES or not name.startswith(prefix):
        return None
    ending = name.removeprefix(prefix)
    return family_class(family, ending, source=name) if ending in CLASSES[family] and ending != "Config" else None


def is_from_transformers(model: Any) -> bool:
    """Whether the model's own class is one of transformers, not one that somebody derived."""
    return type(model).__module__.startswith("transformers.models.")


def supported() -> str:
    """The classes, for a message."""
    prefixes = {family: [prefix] for family, (_, prefix) in FAMILIES.items()}
    for family, prefix in SAME_AS.values():
        prefixes[family].append(prefix)
    return "; ".join(
        f"{'/'.join(prefixes[family])}: {', '.join(kind for kind in kinds if kind != 'Config')}"
        for family, kinds in CLASSES.items()
    )
