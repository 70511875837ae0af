"""Work divided among processes."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from torch.utils.data import DataLoader, Dataset

from egcnn.errors import InputError, input_error

T = TypeVar("T")
R = TypeVar("R")


def in_processes(work: Callable[[T], R], items: Sequence[T], workers: int) -> Iterator[R]:
    """Compute ``work`` of each item, in worker processes of one thread each.

    Args:
        work: a function; of its results, plain data and tensors travel between processes.
        items: its arguments.
        workers: number of processes; 0 computes in this one.

    Yields:
        The results in the order of the items, whatever the number of processes.

    Raises:
        InputError: as ``work``, at the first item that fails.
    """
    if workers < 0:
        raise InputError(f"workers: {workers}; expected at least 0")
    results = DataLoader(
        _Work(work, items),
        batch_size=None,
        num_workers=min(workers, len(items)),
        collate_fn=_unchanged,
        worker_init_fn=end_with_parent,
    )
    for result in results:
        if isinstance(result, InputError):
            raise result
        yield result


def end_with_parent(*_: object) -> None:
    """End this worker process once the process that uses it has ended, however that was.

    A worker of torch's watches the process that forked it. Started by a fork server, as is usual
    from Python 3.14 on, it would outlive a process that was killed, and keep its memory.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


class _Work(Dataset[Any], Generic[T, R]):
    """Results by the index of their item; an ``InputError`` is returned, not raised.

    A raised one would arrive as the text of a traceback.
    """

    def __init__(self, work: Callable[[T], R], items: Sequence[T]) -> None:
        self.work = work
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> R | InputError:
        try:
            return self.work(self.items[index])
        except Exception as error:
            if (wrong := input_error(error)) is not None:
                return InputError(str(wrong))
            raise


def _unchanged(result: Any) -> Any:
    return result
