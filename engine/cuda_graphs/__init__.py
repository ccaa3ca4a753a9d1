"""Small batches on a GPU, recorded once and replayed: `CudaGraphs` is what an encoder has.

buckets.py -> the few sizes that batches are brought to, and their memory
model_state.py -> what a recording depends on beside its input
recording.py -> the recordings
"""

from __future__ import annotations

from .recording import MOST_BUCKETS, CudaGraphs, wanted

__all__ = ["MOST_BUCKETS", "CudaGraphs", "wanted"]
