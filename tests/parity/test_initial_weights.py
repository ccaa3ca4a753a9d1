"""Fresh weights: drawn as transformers draws them, parameter by parameter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from parity_models import LABELS, TINY, ModelClass, model_classes, their_config

WIDER: dict[str, dict[str, Any]] = {
    "bert": {"initializer_range": 0.05, "hidden_size": 48, "num_attention_heads": 4},
    "megatron-bert": {"initializer_range": 0.05, "hidden_size": 48, "num_attention_heads": 4},
    "mobilebert": {"initializer_range": 0.05, "hidden_size": 64, "intermediate_size": 48},
    "modernbert": {"initializer_range": 0.05, "hidden_size": 48, "initializer_cutoff_factor": 1.5},
    "mt5": {"initializer_factor": 0.5, "d_model": 48, "d_ff": 40},
}
"""Other than the defaults, and wide enough that a matrix shows its deviation."""
DRAWS = 3


@pytest.mark.parametrize("item", model_classes(), ids=str)
def test_fresh_parameters_have_the_deviation_and_the_range_of_those_of_transformers(item: ModelClass) -> None:
    fields = {**TINY[item.family], **WIDER[item.family]}
    config = their_config(item, fields)
    labels = {} if item.kind == "ForQuestionAnswering" or item.is_bare else {"num_labels": LABELS}
    found: list[dict[str, list[torch.Tensor]]] = [{}, {}]
    for seed in range(DRAWS):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            theirs = item.theirs(config)
            torch.manual_seed(100 + seed)
            ours = item.ours(item.ours.config_class(**{**fields, **labels}))
        for side, model in enumerate((theirs, ours)):
            for name, parameter in model.named_parameters():
                found[side].setdefault(name, []).append(parameter.detach().flatten())
    assert set(found[0]) == set(found[1])
    for name in found[0]:
        a, b = torch.cat(found[0][name]).double(), torch.cat(found[1][name]).double()
        if a.std() == 0:
            assert torch.equal(a, b), name  # biases, norms
            continue
        # The deviation of n draws is known to one part in sqrt(2n); 5 of those.
        margin = 5 * (2 / len(a)) ** 0.5
        assert abs((b.std() / a.std()).log()) < margin, name
        assert abs(a.mean() - b.mean()) < 5 * a.std() * (2 / len(a)) ** 0.5, name
        if item.family == "modernbert" and len(a) > 1000:
            assert abs((b.abs().max() / a.abs().max()).log()) < 0.05, name  # where it is cut off
