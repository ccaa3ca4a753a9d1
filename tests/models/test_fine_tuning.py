"""Fine-tuning with padless' own classes: every loss on the way is that of transformers' class."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from torch import Tensor

import padless
from padless.bench.workloads import verses

SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 36,
    "max_position_embeddings": 23,
    "initializer_range": 0.1,
    "num_labels": 3,
}
NO_DROPOUT: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
T5 = {"vocab_size": 61, "d_model": 24, "d_kv": 8, "d_ff": 36, "num_layers": 2, "num_heads": 3, "dropout_rate": 0.0}
FAMILIES: dict[tuple[str, str], dict[str, Any]] = {
    ("MobileBert", "ForSequenceClassification"): (
        {**SMALL, **NO_DROPOUT, "embedding_size": 12, "intra_bottleneck_size": 12, "normalization_type": "layer_norm"}
    ),
    ("ModernBert", "ForSequenceClassification"): {**SMALL, "pad_token_id": 0, "local_attention": 4},
    ("MegatronBert", "ForSequenceClassification"): {**SMALL, **NO_DROPOUT},
    ("MT5", "ForTokenClassification"): {**T5, "num_labels": 3, "classifier_dropout": 0.0},
    ("MT5", "ForConditionalGeneration"): {**T5, "num_decoder_layers": 2},
}


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        yield


def train(model: Any, batches: list[dict[str, Tensor]], rate: float) -> list[float]:
    """The loss of every step."""
    optimiser = torch.optim.AdamW(model.train().parameters(), lr=rate)
    losses = []
    for batch in batches:
        loss = model(**batch).loss
        losses.append(loss.item())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    return losses


def assert_trained_alike(ours: Any, theirs: Any, batches: list[dict[str, Tensor]], rate: float) -> None:
    found, expected = (train(model, batches, rate) for model in (ours, theirs))
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) <= 1e-4
    with torch.no_grad():
        before = found[0]
        after = float(ours.eval()(**batches[0]).loss)
        assert abs(after - float(theirs.eval()(**batches[0]).loss)) <= 1e-4
    assert after < 0.9 * before  # it learned


def verse_batches(folder: Path, steps: int, texts: int) -> list[dict[str, Tensor]]:
    """Verses of three parts of the book; which part is the label. One batch over and over would teach too little."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    book = verses()
    third = len(book) // 3
    batches = []
    for step in range(steps):
        places = [(7 * step + 131 * index) % third + (index % 3) * third for index in range(texts)]
        batch = dict(tokenizer([book[place] for place in places], padding=True, truncation=True, max_length=24,
                               return_tensors="pt"))  # fmt: skip
        batches.append({**batch, "labels": torch.tensor([index % 3 for index in range(texts)])})
    return batches


def minilm_classifiers(minilm_folder: Path, folder: Path) -> tuple[Any, Any]:
    """Ours and transformers', with the same head."""
    theirs = transformers.BertForSequenceClassification.from_pretrained(minilm_folder, num_labels=3, **NO_DROPOUT)
    theirs.save_pretrained(folder)
    return padless.BertForSequenceClassification.from_pretrained(folder), theirs


def test_twenty_steps_of_minilm(minilm_folder: Path, tmp_path: Path) -> None:
    ours, theirs = minilm_classifiers(minilm_folder, tmp_path)
    assert ours.config.hidden_dropout_prob == 0.0
    batches = verse_batches(minilm_folder, 5, 3) * 4
    assert any(0 in batch["attention_mask"] for batch in batches)
    assert_trained_alike(ours, theirs, batches, 2e-4)


@pytest.mark.parametrize(("family", "kind"), sorted(FAMILIES))
def test_five_steps_of_every_family(family: str, kind: str, tmp_path: Path) -> None:
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family, kind])
    theirs = getattr(transformers, family + kind)(config)
    theirs.save_pretrained(tmp_path)
    ours = getattr(padless, family + kind).from_pretrained(tmp_path)
    lengths = torch.tensor([[9], [2], [14]])
    mask = (torch.arange(14) < lengths).long()
    batch = {"input_ids": torch.randint(3, 61, (3, 14)) * mask, "attention_mask": mask}
    labels = torch.tensor([0, 2, 1])
    if kind == "ForTokenClassification":
        labels = torch.randint(0, 3, (3, 14)).masked_fill(mask == 0, -100)
    if kind == "ForConditionalGeneration":
        labels = torch.randint(3, 61, (3, 6)).masked_fill(torch.arange(6) >= torch.tensor([[6], [3], [5]]), -100)
    assert_trained_alike(ours, theirs, [{**batch, "labels": labels}] * 5, 3e-3)


@pytest.mark.skipif(
    importlib.util.find_spec("accelerate") is None, reason="needs the package accelerate, without which Trainer stops"
)
def test_transformers_trainer_trains_a_padless_model(minilm_folder: Path, tmp_path: Path) -> None:
    batches = verse_batches(minilm_folder, 3, 6)
    rows = [
        {name: values[index][: int(batch["attention_mask"][index].sum())] if values.dim() > 1 else values[index]
         for name, values in batch.items()}
        for batch in batches
        for index in range(6)
    ]  # fmt: skip
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_folder)
    losses, trained = [], minilm_classifiers(minilm_folder, tmp_path / "start")
    for model in trained:
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / type(model).__module__.partition(".")[0]),
            per_device_train_batch_size=6, num_train_epochs=2, learning_rate=2e-4, logging_steps=1, seed=3,
            save_strategy="epoch", report_to=[], use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        trainer = transformers.Trainer(
            model=model,
            args=arguments,
            train_dataset=rows,  # pyright: ignore[reportArgumentType]
            eval_dataset=rows[:6],  # pyright: ignore[reportArgumentType]
            data_collator=transformers.DataCollatorWithPadding(tokenizer),
        )
        trainer.train()
        logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        losses.append([*logged, trainer.evaluate()["eval_loss"]])
    assert len(losses[0]) == 7
    assert max(abs(a - b) for a, b in zip(*losses, strict=True)) <= 1e-3
    # Its checkpoints hold the weights of a model that is not transformers' own, and no configuration.
    (checkpoint,) = (tmp_path / "padless").glob("checkpoint-6")
    weights = safetensors.torch.load_file(checkpoint / "model.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in trained[0].state_dict().items())
    trained[0].save_pretrained(tmp_path / "end")
    read = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "end")
    batch = {name: values for name, values in batches[0].items() if name != "labels"}
    with torch.no_grad():
        difference = (read.eval()(**batch).logits - trained[0].eval()(**batch).logits).abs().max()
    assert difference <= 1e-5


CLASSES = sorted(name for name in padless.__all__ if "For" in name and not name.startswith("Auto"))


@pytest.mark.parametrize("name", CLASSES)
def test_trainer_finds_the_labels_that_it_finds_in_transformers(name: str) -> None:
    # Where it takes another argument for a label, it evaluates no loss.
    from transformers.utils.generic import find_labels

    found, expected = (find_labels(getattr(package, name)) for package in (padless, transformers))
    assert set(found) == set(expected)


def test_parameters_are_counted_with_and_without_embeddings() -> None:
    config = transformers.BertConfig(**SMALL)
    theirs = transformers.BertForMaskedLM(config)
    ours = padless.BertForMaskedLM(padless.BertConfig(**{k: v for k, v in SMALL.items() if k != "num_labels"}))
    for excluded in (False, True):
        assert ours.num_parameters(exclude_embeddings=excluded) == theirs.num_parameters(exclude_embeddings=excluded)
