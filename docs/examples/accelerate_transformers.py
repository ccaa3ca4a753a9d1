"""Label texts with a classifier of transformers, computed by padless: one line more than without it.

    python docs/examples/accelerate_transformers.py path/to/classifier "a text" "another one" [--untouched]

prints one line of JSON a text: its label and score. With --untouched the one line is left out. See docs/accelerate.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import padless


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; ends with one line and status 2 where padless does not know the model."""
    options = argparse.ArgumentParser(description="Label texts with a classifier of transformers.")
    options.add_argument("model", help="folder of a classifier that transformers saved")
    options.add_argument("texts", nargs="+")
    options.add_argument("--untouched", action="store_true", help="leave out padless, to compare")
    chosen = options.parse_args(arguments)
    tokenizer = AutoTokenizer.from_pretrained(chosen.model)
    model = AutoModelForSequenceClassification.from_pretrained(chosen.model).eval()
    if not chosen.untouched:
        try:
            padless.accelerate(model)  # the one line
        except padless.PadlessError as error:
            print(f"accelerate_transformers: {error}", file=sys.stderr)
            sys.exit(2)
    inputs = tokenizer(chosen.texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        scores = model(**inputs).logits.softmax(dim=-1)
    for text, row in zip(chosen.texts, scores, strict=True):
        best = int(row.argmax())
        print(json.dumps({"text": text, "label": model.config.id2label[best], "score": round(row[best].item(), 6)}))


if __name__ == "__main__":
    main()
