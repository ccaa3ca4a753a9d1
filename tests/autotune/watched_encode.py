"""Encodes texts twice and prints what happened meanwhile: kernels launched, clocks read and by whom, modules imported.

    python watched_encode.py FOLDER BACKEND [plant]

`plant` then puts a search into the kernels' lookup, has them forget what they know, and encodes twice more: each first
call is now timed with two configurations, which whoever reads the output must notice, under `planted`.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import padless

ROOT = Path(padless.__file__).parent
TEXTS = ["one", "a few words", ""]
CLOCKS = ("perf_counter", "monotonic", "process_time", "thread_time", "time", "clock_gettime")
TIMERS = frozenset(getattr(time, name) for name in dir(time) if name.removesuffix("_ns") in CLOCKS)
CALLS = frozenset(("launch", "do_bench", "do_bench_cudagraph", "elapsed_time", "autotune"))
PLANT = """
def timed(self, call, device):
    import time
    found = original(self, call, device)
    for config in self.candidates[:2]:
        start = time.perf_counter()
        launch(None, (0,), {}, {}, config)
        self.best = time.perf_counter() - start
    return found
"""

launches = 0
clocks: set[str] = set()


def watch(frame: FrameType, event: str, argument: Any) -> None:
    """Note launches of kernels, and which of our files reads a clock or has torch and Triton do so."""
    global launches
    if event == "call" and (name := frame.f_code.co_name) in CALLS:
        file = Path(frame.f_code.co_filename)
        if name != "launch":
            clocks.add(f"{file.name}:{name}")
        elif file.parts[-2:] == ("kernels", "launch.py"):
            launches += 1
    elif event == "c_call" and argument in TIMERS:
        file = Path(frame.f_code.co_filename)
        if ROOT in file.parents:
            clocks.add(file.relative_to(ROOT).as_posix())


def plant() -> None:
    from padless.autotune.lookup import process_lookup
    from padless.kernels import launch as launching
    from padless.kernels import tuned

    names: dict[str, Any] = {"original": tuned.Tuned._find, "launch": launching.launch}
    exec(compile(PLANT, str(ROOT / "kernels" / "tuned.py"), "exec"), names)
    tuned.Tuned._find = names["timed"]
    process_lookup().forget()


def encode_twice(encoder: Any) -> dict[str, Any]:
    """What happened in either call."""
    clocks.clear()
    counts, vectors = [], []
    threading.setprofile(watch)
    sys.setprofile(watch)
    for _ in range(2):
        before = launches
        vectors.append(encoder.encode(TEXTS, show_progress_bar=False))
        counts.append(launches - before)
    sys.setprofile(None)
    threading.setprofile(None)
    return {
        "launches": counts,
        "clocks": sorted(clocks),
        "modules": sorted(name for name in sys.modules if name.startswith("padless.")),
        "same": bool((vectors[0] == vectors[1]).all()),
    }


def main() -> None:
    folder, backend, *more = sys.argv[1:]
    encoder = padless.load(folder, device="cpu", dtype="float32", backend=backend)
    facts = encode_twice(encoder)
    if more == ["plant"]:
        plant()
        facts["planted"] = encode_twice(encoder)
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
