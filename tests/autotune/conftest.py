"""What the tests of tuned configurations share; they import the other modules of this folder by their bare names."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
