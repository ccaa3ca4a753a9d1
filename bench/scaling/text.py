"""The words of `docs/scaling.md`; `scaling.py` fills in what is in braces."""

from __future__ import annotations

__all__ = ["PAGE"]

PAGE = """# What a job costs, and what limits it

**Everything about GPUs on this page is modelled, not measured.** No figure comes from a GPU that ran padless.
Tokenisation and the CPU are measured, on {cpu} ({cpus} CPUs), {measured_on}.

Written by `make scaling` (`bench/scaling.py`) from `bench/cost.py` (FLOPs, bytes and launches, tested against torch's
counter and against what padless dispatches), `bench/roofline.py` (an H200), `bench/job_cost.py` (hosts and clusters)
and the measurements under `bench/results/amd-epyc/`. What it assumes is in the last section.

## In short

- A billion news-like documents of 300 tokens take {short_answer}, on an H200.
- Plan with {plan_factor} times these hours until a GPU has been measured: the best service that was published for
  BERT-base on an H200 does {published_rate} M tokens/s at 512 tokens, {published_share} of what is modelled here.
- Small models wait for tokenisation, not for the GPU. Those that do where an H200 has {cores_a_gpu} cores:
  {tokenising_bound}.
- Vectors of short documents come faster than storage takes {storage} GB/s. Those that wait for it on a host of
  {host_gpus} GPUs: {storage_bound}.

## A token

Texts of 300 tokens, or as many as the model keeps; batches of 65,536 tokens; bf16; the GPU alone. *Roofline*: nothing
is faster. *Published rates*: products at {gemm} TFLOP/s, attention at {attention}, nothing else. *By kernel*: each
launch of padless by itself, with its bytes, whole tiles and whole waves of them; all that follows uses it. Money at
${price} a GPU-hour.

{token_table}

## A billion documents

GPU-hours on one H200 with {cores_a_gpu} cores. In brackets what is waited for, where it is not the GPU. *cut*: the
model keeps fewer tokens than the texts have. Read in pieces instead, they cost as many times more as there are pieces.

{document_table}

News-like documents again. Each GPU has {cores_a_gpu} cores and a process, which is planned: today a job is one process
on one GPU. Hosts write {storage} GB/s each. Money is GPU-hours times the price; at another price than ${price},
multiply.

{cluster_table}

## What grows, and how

**Length.** Products cost the same for every token; attention grows with the tokens that one sees. In a row: M
tokens/s, and in brackets attention's share of the FLOPs. At published rates attention takes longer than the products
{crossovers}. BERT, MobileBERT and MegatronBERT end at 512 tokens; the rest of such a row shows the shape only.

{length_table}

**Batch.** A layer's weights are read once a batch, a tile has 128 rows, and {multiprocessors} multiprocessors want
tiles. Texts of 128 tokens, thousand tokens/s: kernels launched one by one / recorded and replayed
(`engine/cuda_graphs`). Where both are the same, the GPU takes longer than the host that launches.

{batch_table}

**Width.** FLOPs grow with its square, bytes with itself. Below some {balance} FLOPs a byte memory is the bound. BERT's
shape, 12 layers, inner width four times the hidden, 300 tokens:

{width_table}

**GPUs.** They share nothing but the host: its cores, and its disk or network. News-like documents, thousand a second,
on a host of {gpu_cores} cores and on one of {few_cores}; in brackets what is waited for, where it is not the GPU.

{gpu_table}

## Where tokenisation is the bottleneck

Measured by `python -m padless.bench.scaling.tokenisation` with tokenizers {tokenizers_version} at commit {commit},
thousand tokens/s. *A core* counts CPU time, which others on the machine disturb less than the clock. *Python* is the
one thread of a process that puts ids into arrays and plans and packs batches. *unigram* is sentencepiece's algorithm
with {pieces} pieces learnt from these texts; it stands for mT5, whose own pieces were not at hand, and *wordpiece*
for ModernBERT's BPE. Cores of other machines are faster or slower: run it there.{disturbed}

{tokenisation_table}

Cores that keep one H200 fed, and in brackets processes, where the Python thread of one is not enough:

{cores_table}

The GPU waits for tokenisation where it has fewer cores. Turned around, for news-like documents and WordPiece, products
at their published rate, one core kept by the process:

{threshold_table}

What padless does about it today:

- One piece of the texts is tokenised while the GPU runs the one before (`engine/streaming/stream.py`), on all cores
  (the library's own threads), and without padding.
- A text far longer than the model takes is cut before it is tokenised (`engine/text_cut.py`), to the same ids.

What is planned, none of it built:

- Ids cached beside the texts, so that a second model with the same tokenizer, or a second run, does not tokenise.
- Several processes for a GPU, for models so small that one Python thread cannot keep up; several GPUs, a process each.
- Ids from the library to arrays without Python lists in between, and batches packed outside of Python.
- Hosts without GPUs that tokenise for those that have them, through Ray Data.

## Vectors

Terabytes of a billion vectors. Jobs write float32, and fewer numbers with `truncate_dim`; the other columns are
planned.

{vector_table}

At the modelled speed one GPU makes, of short documents, {write_small} MB/s of vectors with MiniLM-L6 and {write_base}
with BERT-base.

## A cluster with Ray Data

Planned (`padless.engine.integrations.ray`). Documents share nothing, so the hours of a cluster are the GPU-hours above
divided by its GPUs, and more for three reasons:

- **Scheduling.** Ray's documentation (too fine-grained tasks) shows 10,000 tasks in 1.6 s that take 0.17 s without it:
  {ray_ms} ms a task (published). A task of a shard, {shard_documents} documents, makes {tasks} tasks of a billion:
  {ray_seconds} s.
- **Start.** Processes start, load weights and compile kernels while their GPUs wait: {start} s (assumed) are
  {start_hours} GPU-hours on {cluster_gpus} GPUs. A short job on many GPUs pays mostly for that.
- **The last shards.** A process takes whole shards. A billion documents are {tasks} of them; on {cluster_gpus} GPUs
  {tail} of the time is waiting for the last ones. A million documents are {small_tasks}: more GPUs than that have
  nothing to do.

## On a CPU

Measured (`bench/results/amd-epyc/models_minilm.json`): MiniLM-L6 on {model_cpus} cores of {model_cpu}, real texts
of 4 to 256 tokens, tokenisation included: {cpu_bf16} tokens/s in bfloat16, {cpu_fp32} in float32. A million documents
of 300 tokens, of which MiniLM keeps 256, take {million_bf16} hours, or {million_fp32}; a million short ones of 30
tokens {million_short}. A billion news-like ones would take {billion_years} years: that is what GPUs, or many more
cores, are for.

## What is assumed

{assumption_table}

- FLOPs are of products and attention only, and of attention only the keys that are seen: 129 in ModernBERT's windows.
- All texts of a job have one length. The parts of a job (GPU, tokenising, the Python thread, link, storage) work side
  by side, and the slowest decides. Cores that tokenise do nothing else; each process needs one for itself.
- Not modelled: the level-2 cache (MobileBERT reads all its weights from there for every 128 tokens), clocks under
  load, what a kernel loses against the best there is, reading the input, and the thread that writes.
- Published for BERT-base's shape on an H200: Arctic Inference 1.41 M tokens/s at 50 tokens and 1.64 M at 512, TEI 1.62
  M at 512 (charts of github.com/snowflakedb/ArcticInference; services with a network protocol in front).
"""
