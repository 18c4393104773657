"""The machine's read bandwidth: what every attention over a long context is measured against."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np

from paged_core.executors import host, native

_TEXT = """
#include <cstdint>
typedef void ParallelFor(void (*)(void*, int64_t), void*, int64_t, int32_t);
struct Job { const float* numbers; int64_t per_task; float* sums; };
static void task(void* context, int64_t i) {
  const Job& job = *static_cast<const Job*>(context);
  const float* numbers = job.numbers + i * job.per_task;
  float sum = 0;
  for (int64_t j = 0; j < job.per_task; ++j) sum += numbers[j];
  job.sums[i] = sum;
}
extern "C" void read_all(const float* numbers, int64_t per_task, int64_t tasks, float* sums, ParallelFor* parallel_for,
                         int32_t threads) {
  Job job{numbers, per_task, sums};
  parallel_for(task, &job, tasks, threads);
}
"""


def reader(nbytes: int = 1 << 28) -> tuple[Callable[[], object], int]:
    """A function that reads `nbytes` once, in order, with the threads that `native` uses; and the bytes it reads."""
    function = host.library("read_bandwidth", _TEXT, host.optimised()).read_all
    per_task = 1 << 16
    tasks = nbytes // 4 // per_task
    numbers, sums = np.ones(tasks * per_task, np.float32), np.empty(tasks, np.float32)
    pointer, long, int_ = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    function.argtypes = [pointer, long, long, pointer, pointer, int_]
    function.restype = None

    def read() -> None:
        function(numbers.ctypes.data, per_task, tasks, sums.ctypes.data, native.parallel_for(), native.num_threads())

    return read, numbers.nbytes
