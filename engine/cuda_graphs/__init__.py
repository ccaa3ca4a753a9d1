"""What a GPU is told, recorded once and replayed: `CudaGraphs` is what an encoder has for small batches.

buckets.py -> the few sizes that batches are brought to, and their memory
model_state.py -> what a recording depends on beside its input
recorder.py -> how a recording is made, and when it may be used
recording.py -> those of an encoder
"""

from __future__ import annotations

from .model_state import ModelState
from .recorder import NotRecordable, Recorder, Recording
from .recording import MOST_BUCKETS, CudaGraphs, wanted

__all__ = ["MOST_BUCKETS", "CudaGraphs", "ModelState", "NotRecordable", "Recorder", "Recording", "wanted"]
