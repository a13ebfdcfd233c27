"""Python's collector while a CUDA graph is captured: a graph that it frees then would end the capture."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Collect now, and not again inside.

    A graph kept alive by a reference cycle dies when the collector runs, by chance inside a later capture, and freeing
    a graph there is an error that invalidates the capture ("operation failed due to a previous error during capture").
    """
    gc.collect()
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
