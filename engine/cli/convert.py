"""`padless convert`: checkpoints of Megatron-LM, and pickled ones, into model folders of safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

__all__ = ["convert"]


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A Megatron-LM zip or .pt file; or a model folder with pytorch_model.bin, or that file itself.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write; it must be new or empty.")],
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A config.json for a Megatron checkpoint that does not say its sizes and is not the 345M model.",
        ),
    ] = None,
    vocab: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The vocab.txt of a Megatron checkpoint, to be placed beside its weights."),
    ] = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(help="Of the weights that are written; auto keeps each as it is stored."),
    ] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No summary.")] = False,
) -> None:
    """Turn a checkpoint into a model folder of safetensors.

    SOURCE is one of two kinds. A BERT of Megatron-LM, as NVIDIA publishes it (megatron_bert_345m_v0_1_cased.zip) or
    as training leaves it (model_optim_rng.pt): weights get the names of transformers, and query, key and value are
    taken apart, for every checkpoint_version. Its vocabulary is not in it: download the one it was trained with and
    give it by --vocab. Or a model folder whose weights are pickled, in one file or several: names and values stay, the
    files beside them are copied, and of names that share their values one is written.

    No pickle is carried out: it is walked as data, and a file that wants code run gets nothing run. OUT appears when
    all of it is there; after an error there is nothing of it. Memory holds a piece of a tensor at a time.

    \b
        padless convert megatron_bert_345m_v0_1_uncased.zip megatron/ --vocab vocab.txt
        padless convert path/to/model_with_bin/ path/to/model/
        padless convert model_optim_rng.pt megatron/ --config config.json --dtype float16
    """
    from ..convert import convert as run

    done = run(source, out, config=config, vocab=vocab, dtype=dtype)
    if not quiet:
        files = "1 file" if done.files == 1 else f"{done.files} files"
        print(
            f"{done.folder}: {done.tensors:,} tensors of {', '.join(done.dtypes)}, {done.nbytes:,} bytes in {files}; "
            f"load it with {done.how}"
        )
