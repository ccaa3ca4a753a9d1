"""The threads kept for batches: order, errors, copies, forks, and their end."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import pickle
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from padless.engine.streaming.prefetch import Workers


def calls(count: int) -> Iterator[tuple[int]]:
    return ((number,) for number in range(count))


def here(number: int) -> tuple[int, int, int]:
    time.sleep(0.002)
    return number, threading.get_ident(), torch.get_num_threads()


def alive() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("padless-run")}


def test_calls_come_back_in_order_from_the_same_one_core_threads() -> None:
    workers = Workers()
    first, second = (list(workers.run(here, calls(20), 3)) for _ in range(2))
    assert [number for number, *_ in first] == list(range(20))
    assert {threads for *_, threads in first} == {1}
    seen = {ident for _, ident, _ in first + second}
    assert len(seen) <= 3
    assert threading.get_ident() not in seen


def test_one_at_once_stays_on_the_callers_thread() -> None:
    workers = Workers()
    assert {ident for _, ident, _ in workers.run(here, calls(4), 1)} == {threading.get_ident()}


def test_as_many_at_once_as_torch_has_threads_unless_one_would_idle() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert [Workers().at_once(likely) for likely in (0, 2, 3, 100)] == [1, 1, 3, 3]
    finally:
        torch.set_num_threads(threads)


def test_an_error_takes_the_place_of_its_result_and_harms_no_later_call() -> None:
    workers = Workers()
    results = workers.run(lambda number: 6 // (number - 3), calls(10), 2)
    assert [next(results) for _ in range(3)] == [-2, -3, -6]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert [number for number, *_ in workers.run(here, calls(5), 2)] == list(range(5))


def test_leaving_early_waits_for_what_runs() -> None:
    running = 0
    lock = threading.Lock()

    def count(number: int) -> int:
        nonlocal running
        with lock:
            running += 1
        time.sleep(0.01)
        with lock:
            running -= 1
        return number

    results = Workers().run(count, calls(50), 2)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert running == 0


def test_threads_end_with_their_owner() -> None:
    others = alive()
    workers = Workers()
    list(workers.run(here, calls(4), 2))
    own = alive() - others
    assert len(own) == 2
    del workers
    gc.collect()
    for thread in own:
        thread.join(30)
    assert not own & alive()


def test_copies_and_pickles_start_their_own() -> None:
    workers = Workers()
    own = {ident for _, ident, _ in workers.run(here, calls(8), 2)}
    for other in (copy.deepcopy(workers), pickle.loads(pickle.dumps(workers))):
        assert not own & {ident for _, ident, _ in other.run(here, calls(8), 2)}


def in_a_fork(workers: Workers, answer: multiprocessing.SimpleQueue[list[int]]) -> None:
    answer.put([number for number, *_ in workers.run(here, calls(6), 2)])


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_starts_its_own() -> None:
    workers = Workers()
    list(workers.run(here, calls(6), 2))
    context = multiprocessing.get_context("fork")
    answer = context.SimpleQueue()
    child = context.Process(target=in_a_fork, args=(workers, answer))
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert answer.get() == list(range(6))
