"""The tables of `docs/scaling.md`, in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ...engine.models.bert import BertConfig
from ..cost import attention_flops_per_token, bytes_per_token, flops_per_token, parameters
from .job_cost import DOCUMENTS, HOST, MODELS, VECTOR_BYTES, Documents, Host, Job, Model, Tokenisation, job
from .roofline import Device, Figure, ideal_seconds, practical_seconds, tokens_per_second

__all__ = ["Tables", "listed", "table"]

BILLION = 1e9
LENGTHS = (32, 128, 512, 2048, 8192)
BATCHES = (128, 1024, 4096, 16_384, 65_536)
WIDTHS = (256, 512, 1024, 2048, 4096)
DIMENSIONS = (384, 512, 768, 1024)
CORES = (2, 4, 8, 14, 28)
FEW_CORES = 32
BY_LENGTH = ("BERT-base", "MegatronBERT-345m", "ModernBERT-base", "mT5-small, encoder")
BY_BATCH = ("MiniLM-L6 (BERT)", "MobileBERT", "BERT-base", "ModernBERT-base")
BY_GPUS = ("MiniLM-L6 (BERT)", "MobileBERT", "BERT-base")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all but the first column are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def listed(parts: Sequence[str]) -> str:
    """ "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


@dataclass(frozen=True)
class Tables:
    """What the tables are made from.

    Attributes:
        tokenisation: measured.
        device: the GPU.
        price: dollars a GPU-hour.
    """

    tokenisation: Tokenisation
    device: Device
    price: float

    def all(self) -> dict[str, str]:
        """Every table, by its name in the text."""
        return {
            "token_table": self._tokens(),
            "document_table": self._documents(),
            "cluster_table": self._clusters(),
            "length_table": self._lengths(),
            "batch_table": self._batches(),
            "width_table": self._widths(),
            "gpu_table": self._gpus(),
            "gpu_cores": f"{HOST.cores.value:.0f}",
            "few_cores": f"{FEW_CORES}",
            "tokenisation_table": self._tokenisation(),
            "cores_table": self._cores(),
            "threshold_table": self._thresholds(),
            "vector_table": _vectors(),
            "assumption_table": self._assumptions(),
        }

    def on_one(self, model: Model, kind: Documents) -> Job:
        """A billion documents on one GPU with its share of a host's cores."""
        return job(model, kind, BILLION, self.device, self.tokenisation, host=HOST.share(1))

    def on_hosts(self, model: Model, kind: Documents, hosts: int) -> Job:
        """A billion documents on so many whole hosts."""
        return job(model, kind, BILLION, self.device, self.tokenisation, hosts=hosts)

    def written(self, model: Model, kind: Documents) -> float:
        """Bytes/s of float32 vectors of one GPU that waits for nothing."""
        return self._rate(model, kind) / model.kept(kind.tokens) * model.dimension * VECTOR_BYTES

    def _rate(self, model: Model, kind: Documents) -> float:
        return tokens_per_second(model.config, model.kept(kind.tokens), self.device)

    def _tokens(self) -> str:
        news = DOCUMENTS[1]
        rows = []
        for model in MODELS:
            length = model.kept(news.tokens)
            ideal, practical = (
                1 / seconds(model.config, length, self.device) for seconds in (ideal_seconds, practical_seconds)
            )
            rate = self._rate(model, news)
            seconds = 1e6 / rate
            rows.append(
                (
                    model.name,
                    f"{parameters(model.config) / 1e6:.1f} M",
                    f"{flops_per_token(model.config, length) / 1e6:.1f}",
                    f"{bytes_per_token(model.config) / 1e3:.0f}",
                    *(f"{value / 1e6:.2f}" for value in (ideal, practical, rate)),
                    f"{seconds:.3f}",
                    f"{seconds / 3600 * self.price * 1e3:.2f}",
                )
            )
        head = ("model", "weights multiplied", "MFLOP", "kB", "M tok/s, roofline", "published rates", "by kernel")
        return table((*head, "GPU-s a million tokens", "$ a billion tokens"), rows)

    def _documents(self) -> str:
        head = ("model", *(f"{kind.name}, {kind.tokens:,} tokens" for kind in DOCUMENTS))
        rows = []
        for model in MODELS:
            cells = []
            for kind in DOCUMENTS:
                done = self.on_one(model, kind)
                cut = ["cut"] if model.kept(kind.tokens) < kind.tokens else []
                cells.append(_with_bound(f"{done.gpu_hours:,.1f}", done, *cut))
            rows.append((model.name, *cells))
        return table(head, rows)

    def _clusters(self) -> str:
        news = DOCUMENTS[1]
        rows = []
        for model in MODELS:
            jobs = [self.on_one(model, news), *(self.on_hosts(model, news, hosts) for hosts in (1, 8))]
            cells = (f"{done.seconds / 3600:,.1f} h, ${done.gpu_hours * self.price:,.0f}" for done in jobs)
            rows.append((model.name, *(_with_bound(cell, done) for cell, done in zip(cells, jobs, strict=True))))
        return table(("model", "1 H200", f"{HOST.gpus}, one host", f"{8 * HOST.gpus}, eight hosts"), rows)

    def _lengths(self) -> str:
        rows = []
        for model in _named(BY_LENGTH):
            cells = []
            for length in LENGTHS:
                attention = attention_flops_per_token(model.config, length) / flops_per_token(model.config, length)
                rate = tokens_per_second(model.config, length, self.device)
                cells.append(f"{rate / 1e6:.2f} ({attention:.0%})")
            rows.append((model.name, *cells))
        return table(("model", *(f"{length:,}" for length in LENGTHS)), rows)

    def _batches(self) -> str:
        rows = []
        for model in _named(BY_BATCH):
            cells = []
            for budget in BATCHES:
                rates = (
                    tokens_per_second(model.config, 128, self.device, budget=budget, recorded=recorded) / 1e3
                    for recorded in (False, True)
                )
                cells.append(" / ".join(f"{rate:,.0f}" for rate in rates))
            rows.append((model.name, *cells))
        return table(("tokens in a batch", *(f"{budget:,}" for budget in BATCHES)), rows)

    def _widths(self) -> str:
        a_core = self.tokenisation.a_core["wordpiece", "news"]
        rows = []
        for width in WIDTHS:
            config = BertConfig(hidden_size=width, num_attention_heads=width // 64, intermediate_size=4 * width)
            flops, moved = flops_per_token(config, 300), bytes_per_token(config)
            rate = tokens_per_second(config, 300, self.device)
            rows.append(
                (
                    f"{width:,}",
                    f"{flops / 1e6:,.0f}",
                    f"{moved / 1e3:,.0f}",
                    f"{flops / moved:,.0f}",
                    f"{rate / 1e6:.2f}",
                    f"{math.ceil(rate / a_core)}",
                )
            )
        head = ("hidden size", "MFLOP a token", "kB a token", "FLOPs a byte", "M tok/s", "cores that tokenise for it")
        return table(head, rows)

    def _gpus(self) -> str:
        news = DOCUMENTS[1]
        rows = []
        for gpus in (1, 2, 4, 8):
            cells = []
            for model in _named(BY_GPUS):
                for cores in (HOST.cores.value, FEW_CORES):
                    host = Host(gpus, Figure(cores, "assumed", ""), HOST.storage)
                    done = job(model, news, BILLION, self.device, self.tokenisation, host=host)
                    cells.append(_with_bound(f"{BILLION / done.seconds / 1e3:,.1f}", done))
            rows.append((str(gpus), *cells))
        cores = (f"{HOST.cores.value:.0f}", f"{FEW_CORES}")
        head = (f"{model.family}, {count} cores" for model in _named(BY_GPUS) for count in cores)
        return table(("GPUs", *head), rows)

    def _tokenisation(self) -> str:
        rates = self.tokenisation.report["rates"]
        threads = sorted({rate["threads"] for rate in rates})
        rows = []
        for first in (rate for rate in rates if rate["threads"] == threads[0]):
            same = [rate for rate in rates if all(rate[key] == first[key] for key in ("tokenizer", "corpus"))]
            rows.append(
                (
                    f"{first['tokenizer']}, {first['corpus']}",
                    f"{first['tokens'] / first['texts']:,.0f}",
                    f"{first['characters'] / first['tokens']:.1f}",
                    *(f"{rate['tokens_per_second']['median'] / 1e3:,.0f}" for rate in same),
                    f"{first['tokens_per_core_second']['median'] / 1e3:,.0f}",
                    f"{first['serial_tokens_per_second']['median'] / 1e3:,.0f}",
                )
            )
        clock = (f"{count} thread{'s' * (count > 1)}" for count in threads)
        return table(("tokenizer, texts", "tokens a text", "characters a token", *clock, "a core", "Python"), rows)

    def _cores(self) -> str:
        rows = []
        for model in MODELS:
            cells = []
            for kind in DOCUMENTS:
                rate, at = self._rate(model, kind), (model.tokenizer, kind.corpus)
                processes = math.ceil(rate / self.tokenisation.a_process[at])
                several = f" ({processes})" if processes > 1 else ""
                cells.append(f"{math.ceil(rate / self.tokenisation.a_core[at])}{several}")
            rows.append((model.name, *cells))
        return table(("model", *(kind.name for kind in DOCUMENTS)), rows)

    def _thresholds(self) -> str:
        """By published rates: products alone, so that a number of FLOPs can be named."""
        a_core = self.tokenisation.a_core["wordpiece", "news"]
        cells = []
        for cores in CORES:
            # The process keeps one for itself.
            flops = self.device.gemm.value / (a_core * max(cores - 1, 1))
            cells.append((f"{flops / 1e6:,.0f}", f"{flops / 2e6:,.0f} M"))
        return table(
            ("cores for each H200", *map(str, CORES)),
            [
                ("a model waits for tokenisation below MFLOP a token", *(flops for flops, _ in cells)),
                ("that is, below so many weights in its products", *(weights for _, weights in cells)),
            ],
        )

    def _assumptions(self) -> str:
        device = self.device
        rows = (
            (f"{device.name}: peak of products", f"{device.peak.value / 1e12:.0f} TFLOP/s", device.peak),
            ("memory", f"{device.bandwidth.value / 1e12:.1f} TB/s", device.bandwidth),
            ("large products", f"{device.gemm.value / 1e12:.0f} TFLOP/s", device.gemm),
            ("attention", f"{device.attention.value / 1e12:.0f} TFLOP/s", device.attention),
            ("a launch, on the host", f"{device.launch.value * 1e6:.0f} µs", device.launch),
            ("the shortest kernel", f"{device.kernel.value * 1e6:.0f} µs", device.kernel),
            ("host to GPU", f"{device.link.value / 1e9:.0f} GB/s", device.link),
            ("cores of a host", f"{HOST.cores.value:.0f}", HOST.cores),
            ("storage of a host", f"{HOST.storage.value / 1e9:.0f} GB/s", HOST.storage),
            ("a GPU-hour", f"${self.price:g}", Figure(self.price, "assumed", "`--price` of the generator")),
        )
        lines = ["| what | value | | source |", "|---|---:|---|---|"]
        lines += [f"| {what} | {value} | {figure.kind} | {figure.source} |" for what, value, figure in rows]
        return "\n".join(lines)


def _vectors() -> str:
    bits = {"float32": 32, "float16": 16, "int8": 8, "1 bit": 1}
    rows = (
        (f"{dimension:,}", *(f"{BILLION * dimension * width / 8 / 1e12:.2f}" for width in bits.values()))
        for dimension in DIMENSIONS
    )
    return table(("dimension", *bits), rows)


def _with_bound(cell: str, done: Job, *notes: str) -> str:
    notes = notes if done.bound == "GPU" else (*notes, done.bound)
    return f"{cell} ({', '.join(notes)})" if notes else cell


def _named(names: Sequence[str]) -> list[Model]:
    return [model for name in names for model in MODELS if model.name == name]
