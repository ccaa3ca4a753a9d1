"""Write docs/parity.md: every class beside transformers, in tiny and in the shape of a published checkpoint.

    python tests/parity/parity_report.py                     all of it, about ten minutes on two cores
    python tests/parity/parity_report.py --family bert       prints the rows of one family and writes nothing
    python tests/parity/parity_report.py --tiny              the same without the real shapes

Exits 1 where a row fails; whether it does is computed from its figures.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from parity_compare import ABSOLUTE, COSINE, LOSS, RATIO, lowest_cosine, relative, worst
from parity_inputs import (
    FORMS,
    Texts,
    alone_call,
    draw_texts,
    loss_by_definition,
    padded_call,
    run_alone,
    run_form,
    values_at_padding,
)
from parity_models import REAL, SEED, TINY, ModelClass, bare_class, model_classes, their_model

from padless.engine.models import FAMILIES

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "parity.md"
TINY_LENGTHS = (23, 1, 9, 40, 2, 9)
REAL_LENGTHS = (140, 1, 21, 12)
"""Longer than the window of ModernBERT (129 tokens) and than the distances of mT5 (128), and as short as can be."""


@dataclass(frozen=True)
class Row:
    """One class in one configuration.

    Attributes:
        gap, bound, output: fp32, the output that is nearest to its bound, over all forms.
        loss: fp32, relative; None for a class without loss.
        cosine: bf16, ours with transformers' fp32, the lowest over all forms.
        their_cosine: bf16, transformers' own.
    """

    item: ModelClass
    gap: float
    bound: float
    output: str
    loss: float | None
    cosine: float
    their_cosine: float

    @property
    def cosine_bound(self) -> float:
        """0.999 where transformers reaches it; else ours may be twice as far from 1 as theirs."""
        return COSINE if self.their_cosine >= COSINE else 1 - 2 * (1 - self.their_cosine)

    @property
    def passes(self) -> bool:
        return self.gap <= self.bound and (self.loss is None or self.loss <= LOSS) and self.cosine >= self.cosine_bound

    def __str__(self) -> str:
        loss = "-" if self.loss is None else f"{self.loss:.1e}"
        cells = [
            self.item.name,
            f"{self.gap:.1e}",
            f"{self.bound:.1e}",
            f"`{self.output}`",
            loss,
            f"{self.cosine:.6f}",
            f"{self.their_cosine:.6f}",
            "pass" if self.passes else "**FAIL**",
        ]
        return f"| {' | '.join(cells)} |"


def measure(item: ModelClass, fields: dict[str, Any], lengths: Sequence[int], noise: float) -> Row:
    """Build transformers' model once, save it, load it in both dtypes, compare in every form."""
    theirs = their_model(item, fields, noise=noise, attention=None)
    texts = draw_texts(item, lengths, theirs.config.vocab_size)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        theirs.save_pretrained(folder)
        expected = run_alone(theirs, item, texts)
        theirs = theirs.bfloat16()
        their_cosine = lowest_cosine(run_alone(theirs, item, texts), expected)
        del theirs
        ours = item.ours.from_pretrained(folder, dtype="float32")
        rows, losses = [], []
        for form in FORMS:
            found = run_form(ours, item, texts, form, with_targets=form != "alone")
            if "loss" in found:
                losses.append(relative(found.pop("loss"), loss_by_definition(item, expected, texts)))
            rows.append(worst(found, expected, item.family))
        gap, bound, output = max(rows, key=lambda row: row[0] / row[1])
        loss = max(losses, default=None)
        ours = item.ours.from_pretrained(folder, dtype="bfloat16")
        cosine = min(lowest_cosine(run_form(ours, item, texts, form), expected) for form in FORMS)
    return Row(item, gap, bound, output, loss, cosine, their_cosine)


@dataclass(frozen=True)
class Padded:
    """How far padded transformers is from itself alone, fp32, tiny configuration.

    Attributes:
        at_padding: largest value of the last hidden state where there is no token; ours are 0.
        right_last: at the last token of the texts that are padded on the right.
        right: at all other tokens.
        left: at any token, padded on the left, without `position_ids`.
        left_positions: the same with `position_ids` that count each text from 0; None where there are no positions.
        span_loss: relative, of question answering, padded on the right; None where there is no such class.
    """

    family: str
    at_padding: float
    right_last: float
    right: float
    left: float
    left_positions: float | None
    span_loss: float | None

    def __str__(self) -> str:
        values = (self.at_padding, self.right_last, self.right, self.left, self.left_positions, self.span_loss)
        return f"| {FAMILIES[self.family][1]} | {' | '.join('-' if v is None else f'{v:.1e}' for v in values)} |"


def measure_padding(family: str) -> Padded:
    """transformers' bare model on a padded batch against each text alone."""
    item = bare_class(family)
    theirs = their_model(item, TINY[family])
    with torch.no_grad():
        # As in trained checkpoints: the embedding of [PAD] is not zero.
        theirs.get_input_embeddings().weight[0] = theirs.get_input_embeddings().weight[7]
        texts = draw_texts(item, TINY_LENGTHS, TINY[family]["vocab_size"])
        expected = run_alone(theirs, item, texts)["last_hidden_state"]
        gaps = {side: _gap(theirs, item, texts, side, expected) for side in ("right", "left")}
        at_padding = values_at_padding(theirs(**_with_pads(item, texts, "right")), item, texts, "right")
        positions = None
        if family != "mt5":
            positions = _gap(theirs, item, texts, "left", expected, count=True).max().item()
        last = torch.tensor(texts.lengths).cumsum(0) - 1
        others = torch.ones(len(expected), dtype=torch.bool)
        others[last] = False
        return Padded(
            family,
            at_padding["last_hidden_state"].abs().max().item(),
            gaps["right"][last].max().item(),
            gaps["right"][others].max().item(),
            gaps["left"].max().item(),
            positions,
            _span_loss(family),
        )


def _with_pads(item: ModelClass, texts: Texts, side: str, *, with_targets: bool = False) -> dict[str, torch.Tensor]:
    call = padded_call(item, texts, side, with_targets=with_targets)
    call["input_ids"] = call["input_ids"].where(call["attention_mask"].bool(), 0)
    return call


def _gap(
    model: Any, item: ModelClass, texts: Texts, side: str, expected: torch.Tensor, *, count: bool = False
) -> torch.Tensor:
    """`[tokens]`, largest difference in any channel."""
    call = _with_pads(item, texts, side)
    if count:
        call["position_ids"] = (call["attention_mask"].cumsum(1) - 1).clamp(min=0)
    found = model(**call).last_hidden_state[call["attention_mask"].bool()]
    return (found - expected).abs().amax(1)


def _span_loss(family: str) -> float | None:
    item = ModelClass(family, "ForQuestionAnswering")
    if item not in model_classes():
        return None
    theirs = their_model(item, TINY[family])
    texts = draw_texts(item, TINY_LENGTHS, TINY[family]["vocab_size"])
    found = theirs(**_with_pads(item, texts, "right", with_targets=True)).loss
    alone = [theirs(**alone_call(item, texts, row, with_targets=True)).loss for row in range(len(texts))]
    return relative(found, torch.stack(alone).mean())


HEADER = """\
| class | fp32 difference | bound | output | loss | bf16 cosine | transformers' own | |
|---|---|---|---|---|---|---|---|"""


def document(tiny: Sequence[Row], real: Sequence[Row], padding: Sequence[Padded]) -> str:
    """docs/parity.md."""
    shapes = "; ".join(
        f"{FAMILIES[family][1]} as {REAL[family][0]}" for family in dict.fromkeys(r.item.family for r in real)
    )
    return f"""\
# Parity with transformers

Written by `make parity`; do not edit. transformers {transformers.__version__}, torch {torch.__version__}, on a CPU.

Each class has random weights (seed {SEED}; biases and norms moved off their 0 and 1), which transformers saves and
padless loads. **The reference is transformers on each text alone**, without padding. padless is given the same texts
each alone, in one batch padded on the right, in one padded on the left, and packed (`PackedBatch`), and the worst of
the four counts.

- **fp32 difference**: largest difference in any output, and its bound: max |a - b| ≤ {ABSOLUTE:.0e} · max(1, max |b|).
  MobileBERT's is a ratio, at most {RATIO:.0e}: the largest difference in a token or text over its largest value, since
  nothing normalises between its layers. The output is the one nearest to its bound.
- **loss**: relative difference of a batch's loss to the mean over the reference's logits, in fp64; at most {LOSS:.0e}.
- **bf16 cosine**: lowest cosine of any token (or text) with transformers' fp32 result; beside it that of transformers'
  own bf16. At least {COSINE} where transformers reaches it; where it does not, at most twice as far from 1. Outputs of
  fewer than 8 channels are one vector.

## Tiny configurations

Texts of {", ".join(map(str, TINY_LENGTHS))} tokens.

{HEADER}
{chr(10).join(map(str, tiny))}

## Real shapes

Widths and depth of published checkpoints: {shapes}; no layer is left out. Texts of
{", ".join(map(str, REAL_LENGTHS))} tokens.

{HEADER}
{chr(10).join(map(str, real))}

## Where padded transformers differs from itself

padless follows transformers on a text alone. A padded batch of transformers is something else in these places (tiny
configurations, fp32, largest difference to the same text alone; the embedding of [PAD] is not zero, as in trained
checkpoints):

- **Outputs at padding**: transformers computes values there; padless returns zeros, and the lowest finite value for
  start and end logits.
- **MobileBERT's trigram**: the last token of a text that is padded on the right sees the embedding of [PAD] as its
  neighbour (the first one, where padding is on the left); alone it sees zeros. Attention carries the difference to the
  other tokens. padless ends a text where it ends.
- **Left padding**: where positions are embedded, transformers counts them from the start of the row, padding included,
  unless `position_ids` are given. padless counts each text from 0.
- **Question answering**: transformers' softmax runs over padding as well, which changes the loss. padless' runs over
  the tokens of each text.

| family | at padding | right: last tokens | right: others | left | left, `position_ids` given | span loss, relative |
|---|---|---|---|---|---|---|
{chr(10).join(map(str, padding))}

Labels at padding do not count in padless, whatever they are; in transformers they count unless they are -100.
"""


def main() -> int:
    """Measure, print, write; 1 where a row fails."""
    parser = argparse.ArgumentParser(description="Compare every class with transformers and write docs/parity.md.")
    parser.add_argument("--family", choices=sorted(FAMILIES), help="only this one; the document is not written")
    parser.add_argument("--tiny", action="store_true", help="no real shapes; the document is not written")
    options = parser.parse_args()
    transformers.logging.disable_progress_bar()
    classes = [item for item in model_classes() if options.family in (None, item.family)]
    threads = torch.get_num_threads()
    tiny: list[Row] = []
    real: list[Row] = []
    for rows, lengths, noise in ((tiny, TINY_LENGTHS, 0.3), (real, REAL_LENGTHS, 0.05)):
        torch.set_num_threads(1 if rows is tiny else threads)
        for item in classes if rows is tiny or not options.tiny else ():
            start = time.monotonic()
            rows.append(measure(item, TINY[item.family] if rows is tiny else REAL[item.family][1], lengths, noise))
            print(rows[-1], f"{time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
            gc.collect()
    padding = [measure_padding(family) for family in dict.fromkeys(item.family for item in classes)]
    for row in padding:
        print(row, file=sys.stderr)
    failed = [row for row in (*tiny, *real) if not row.passes]
    if options.family is None and not options.tiny:
        DOCUMENT.write_text(document(tiny, real, padding), encoding="utf-8")
    for row in failed:
        print(f"FAILED: {row}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
