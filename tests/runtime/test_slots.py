"""Threads, waiting, timeouts, cancellation, closing: every way a call ends gives its slot back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from nextscale.runtime import Pipeline
from nextscale.runtime.errors import Cancelled, PipelineClosed, PipelineTimeout
from nextscale.runtime.slots import Control, SlotPool

Open = Callable[..., Pipeline]


@pytest.mark.parametrize("slots", [1, 3])
def test_eight_threads_get_their_own_pictures(open_pipeline: Open, slots: int) -> None:
    pipeline = open_pipeline(slots=slots, batch_sizes=(1, 2))
    wanted = [pipeline.generate([i % 3] * 3, seed=i).floats for i in range(8)]
    with ThreadPoolExecutor(8) as threads:
        for _ in range(3):
            found = list(threads.map(lambda i: pipeline.generate([i % 3] * 3, seed=i).floats, range(8)))
            for a, b in zip(found, wanted, strict=True):
                np.testing.assert_array_equal(a, b)


def test_every_thread_gets_its_turn(open_pipeline: Open) -> None:
    """Who gives a slot back stands behind those who wait: no thread takes it again and again."""
    pipeline, calls, start = open_pipeline(wait=30), [0] * 8, threading.Barrier(8)

    def loop(i: int) -> None:
        start.wait()
        while sum(calls) < 80:
            pipeline.generate([0], seed=i)
            calls[i] += 1

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(loop, range(8)))
    assert min(calls) >= 5


def test_slots_go_out_in_the_order_of_asking_and_who_leaves_the_queue_holds_nobody_up() -> None:
    pool, order = SlotPool([object()], 30, lambda: None), []  # type: ignore[list-item]  # the pool only lends them

    def ask(i: int, stop: threading.Event) -> None:
        with pool.take(Control.start(None, stop)):
            order.append(i)

    stops = [threading.Event() for _ in range(6)]
    with ThreadPoolExecutor(6) as threads:
        with pool.take(Control.start(None, None)):
            asked = []
            for i, stop in enumerate(stops):
                asked.append(threads.submit(ask, i, stop))
                while len(pool._queue) <= i:
                    time.sleep(0.001)
            stops[0].set()  # the first in line, and one in the middle
            stops[3].set()
            for i in (0, 3):
                with pytest.raises(Cancelled):
                    asked[i].result(timeout=20)
            stops[1].set()  # at the moment at which its slot comes free: it may win or lose, the others go on
        for i in (2, 4, 5):
            asked[i].result(timeout=20)
    assert [i for i in order if i != 1] == [2, 4, 5]
    with pool.take(Control.start(None, None)):  # the slot is still there
        assert not pool._queue


def test_waiting_for_a_slot_is_bounded(open_pipeline: Open) -> None:
    pipeline = open_pipeline(wait=0.1)
    stream = pipeline.stream([0])
    next(stream)
    with pytest.raises(PipelineTimeout, match=r"all 1 slots stayed busy for 0\.1 s: open the pipeline with more slots"):
        pipeline.generate([0])
    with pytest.raises(PipelineTimeout, match=r"past its timeout of 0\.01 s"):
        pipeline.generate([0], timeout=0.01)
    stream.close()
    assert len(pipeline.generate([0])) == 1


def test_closing_a_stream_frees_its_slot(open_pipeline: Open) -> None:
    pipeline = open_pipeline(wait=0.1)
    for steps in range(4):
        stream = pipeline.stream([0, 1])
        for _ in range(steps):
            next(stream)
        stream.close()
    pipeline.stream([0])  # never started: takes no slot
    for step in pipeline.stream([0]):
        if step.index == 1:
            break
    assert len(list(pipeline.stream([0]))) == 4


@pytest.mark.parametrize("after", [0, 1, 3])
def test_cancelled_by_an_event(open_pipeline: Open, after: int) -> None:
    pipeline, stop, seen = open_pipeline(wait=0.1), threading.Event(), []

    def on_step(step: object) -> None:
        seen.append(step)
        if len(seen) == after:
            stop.set()

    if after == 0:
        stop.set()
    with pytest.raises(Cancelled) as caught:
        pipeline.generate([0, 1], cancel=stop, on_step=on_step)
    assert len(seen) == after
    assert caught.value.exit_status == 130
    assert len(pipeline.generate([0])) == 1


def test_cancelled_by_a_function_while_waiting(open_pipeline: Open) -> None:
    pipeline = open_pipeline(wait=30)
    holding = pipeline.stream([0])
    next(holding)
    looks = iter([False, False, True])
    with pytest.raises(Cancelled):
        pipeline.generate([0], cancel=lambda: next(looks))
    holding.close()


def test_a_timeout_stops_between_two_steps(open_pipeline: Open) -> None:
    pipeline = open_pipeline()
    with pytest.raises(PipelineTimeout, match=r"past its timeout of 0\.05 s and was stopped"):
        pipeline.generate([0], timeout=0.05, on_step=lambda step: time.sleep(0.03))
    stream = pipeline.stream([0], timeout=0.02)
    time.sleep(0.03)
    with pytest.raises(PipelineTimeout):
        next(stream)
    assert isinstance(PipelineTimeout(""), TimeoutError)
    assert len(pipeline.generate([0], timeout=60)) == 1


def test_closed(open_pipeline: Open) -> None:
    pipeline = open_pipeline()
    stream = pipeline.stream([0])
    step = next(stream)
    with pipeline:
        pass
    with pytest.raises(PipelineClosed, match="was closed"):
        pipeline.generate([0])
    with pytest.raises(PipelineClosed):
        next(stream)
    with pytest.raises(PipelineClosed):
        step.preview()
    pipeline.close()


def test_closing_wakes_who_waits(open_pipeline: Open) -> None:
    pipeline = open_pipeline(wait=30)
    stream = pipeline.stream([0])
    next(stream)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(pipeline.generate, [0])
        pipeline.close()
        with pytest.raises(PipelineClosed):
            waiting.result(timeout=20)
    stream.close()


def test_a_preview_from_another_thread(open_pipeline: Open) -> None:
    """A web handler may show previews while the next step runs."""
    pipeline = open_pipeline(slots=1)
    wanted = [s.preview() for s in pipeline.stream([0, 1], seed=2)]
    with ThreadPoolExecutor(4) as threads:
        for _ in range(5):
            shown = [threads.submit(step.preview) for step in pipeline.stream([0, 1], seed=2)]
            for a, b in zip(shown, wanted, strict=True):
                np.testing.assert_array_equal(a.result(), b)
