"""Let the tests of this folder import the parts that they share: seed_pages, seed_folders, seed_runs."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
