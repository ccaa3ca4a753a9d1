"""What a job takes on paper: documents, hosts with GPUs, and which of their parts everything waits for.

The parts work side by side (texts are tokenised while the GPU runs, vectors are written behind it), so a job takes as
long as the slowest of them. GPU times are those of `roofline.py`; how fast a core tokenises was measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...engine.config import ModelConfig
from ...engine.errors import InputError
from ...engine.models.bert import BertConfig
from ...engine.models.megatron_bert import MegatronBertConfig
from ...engine.models.mobilebert_config import MobileBertConfig
from ...engine.models.modernbert_config import ModernBertConfig
from ...engine.models.mt5 import MT5Config
from .roofline import Device, Figure, tokens_per_second

__all__ = [
    "DOCUMENTS",
    "DOCUMENTS_A_SHARD",
    "HOST",
    "MODELS",
    "VECTOR_BYTES",
    "Documents",
    "Host",
    "Job",
    "Model",
    "Tokenisation",
    "job",
    "read_tokenisation",
]

DOCUMENTS_A_SHARD = 50_000
"""Of `padless embed`; a process takes whole shards."""

ID_BYTES = 16
"""Bytes a token that go to the GPU: its id and its place."""

VECTOR_BYTES = 4
"""Bytes of a number of a vector, in memory and in the shards."""


@dataclass(frozen=True)
class Model:
    """A checkpoint.

    Attributes:
        name: of it.
        config: its widths.
        limit: tokens it keeps of a text; None: all.
        dimension: numbers in a vector.
        tokenizer: which of those that were measured stands for its own.
    """

    name: str
    config: ModelConfig
    limit: int | None
    dimension: int
    tokenizer: str = "wordpiece"

    @property
    def family(self) -> str:
        """Its name, without what is said of it."""
        return self.name.partition(",")[0].partition(" (")[0]

    def kept(self, tokens: int) -> int:
        """Tokens that are computed of a text of `tokens`."""
        return tokens if self.limit is None else min(tokens, self.limit)


MODELS = (
    Model(
        "MiniLM-L6 (BERT)",
        BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536),
        256,
        384,
    ),
    Model("BERT-base", BertConfig(), 512, 768),
    Model("MobileBERT", MobileBertConfig(), 512, 512),
    Model("ModernBERT-base", ModernBertConfig(), 8192, 768),
    Model(
        "ModernBERT-large",
        ModernBertConfig(hidden_size=1024, num_hidden_layers=28, intermediate_size=2624, num_attention_heads=16),
        8192,
        1024,
    ),
    Model("MegatronBERT-345m", MegatronBertConfig(), 512, 1024),
    Model("mT5-small, encoder", MT5Config(), None, 512, "unigram"),
    Model("mT5-base, encoder", MT5Config(d_model=768, d_ff=2048, num_layers=12, num_heads=12), None, 768, "unigram"),
)
"""Of each family, at widths that were published."""


@dataclass(frozen=True)
class Documents:
    """What is embedded.

    Attributes:
        name: of the kind.
        tokens: of each, special tokens included.
        corpus: of the tokenisation measurement, whose texts are most like these.
    """

    name: str
    tokens: int
    corpus: str


DOCUMENTS = (Documents("short", 30, "verses"), Documents("news", 300, "news"), Documents("long", 2000, "articles"))


@dataclass(frozen=True)
class Host:
    """A machine with GPUs.

    Attributes:
        gpus: of it.
        cores: of its CPUs, for all processes.
        storage: bytes/s of vectors that it writes.
    """

    gpus: int
    cores: Figure
    storage: Figure

    def share(self, gpus: int) -> Host:
        """A host of fewer GPUs, and of as many cores for each."""
        cores = Figure(self.cores.value * gpus / self.gpus, self.cores.kind, self.cores.source)
        return Host(gpus, cores, self.storage)


HOST = Host(
    gpus=8,
    cores=Figure(112, "assumed", "beside 8 GPUs, as in NVIDIA's DGX H200: 14 for each"),
    storage=Figure(2e9, "assumed", "a 25 Gbit/s network, or one NVMe disk"),
)


@dataclass(frozen=True)
class Tokenisation:
    """Tokens a second of each tokenizer and corpus, from a report of `tokenisation.py`.

    Attributes:
        a_core: (tokenizer, corpus) -> what a core tokenises.
        a_process: (tokenizer, corpus) -> what the one Python thread of a process puts into arrays and batches.
        report: all of it.
    """

    a_core: Mapping[tuple[str, str], float]
    a_process: Mapping[tuple[str, str], float]
    report: Mapping[str, Any]


def read_tokenisation(file: Path) -> Tokenisation:
    """Read a report.

    Raises:
        InputError: there is none, or it is of another kind.
    """
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        rates = [rate for rate in report["rates"] if rate["threads"] == 1]
        found = [
            {(rate["tokenizer"], rate["corpus"]): float(rate[field]["median"]) for rate in rates}
            for field in ("tokens_per_core_second", "serial_tokens_per_second")
        ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{file}: expected a report of padless.bench.scaling.tokenisation ({error!r})") from None
    return Tokenisation(found[0], found[1], report)


@dataclass(frozen=True)
class Job:
    """Seconds that each part of the machines is busy with a job.

    Attributes:
        gpus: that took part.
        tokens: computed.
        busy: part -> seconds.
    """

    gpus: int
    tokens: float
    busy: Mapping[str, float]

    @property
    def bound(self) -> str:
        """The part that the others wait for."""
        return max(self.busy, key=lambda part: self.busy[part])

    @property
    def seconds(self) -> float:
        """From the first document to the last."""
        return self.busy[self.bound]

    @property
    def gpu_hours(self) -> float:
        """That are paid for, waiting or not."""
        return self.seconds * self.gpus / 3600


def job(
    model: Model,
    documents: Documents,
    count: float,
    device: Device,
    tokenisation: Tokenisation,
    *,
    host: Host = HOST,
    hosts: int = 1,
    processes_a_gpu: int = 1,
) -> Job:
    """A job of `count` documents on `hosts` hosts.

    A process a GPU, or several, takes whole shards. Each has a thread that puts batches together; the other cores
    tokenise.

    Args:
        model: what embeds.
        documents: of one length.
        count: how many.
        device: the GPU.
        tokenisation: measured rates.
        host: one of the hosts.
        hosts: how many.
        processes_a_gpu: that share it.
    """
    gpus = host.gpus * hosts
    length = model.kept(documents.tokens)
    tokens = count * length
    rates = model.tokenizer, documents.corpus
    processes = gpus * processes_a_gpu
    cores = max(host.cores.value * hosts - processes, 1)
    shards = math.ceil(count / DOCUMENTS_A_SHARD)
    rounds = math.ceil(shards / gpus) * gpus / shards
    vectors = count * model.dimension * VECTOR_BYTES
    busy = {
        "GPU": tokens / tokens_per_second(model.config, length, device) / gpus * rounds,
        "tokenising": tokens / (tokenisation.a_core[rates] * cores),
        "Python": tokens / (tokenisation.a_process[rates] * processes),
        "link": (tokens * ID_BYTES + vectors) / (device.link.value * gpus),
        "storage": vectors / (host.storage.value * hosts),
    }
    return Job(gpus, tokens, busy)
