// The threads that the native executor's kernels share: a library of its own, so that many kernels have one set.
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace {

// Threads that wait for work between calls: starting one anew costs as much as a small decode.
class Workers {
 public:
  void run(void (*task)(void*, int64_t), void* context, int64_t tasks, int threads) {
    std::lock_guard<std::mutex> one_call(calls_);  // several Python threads may call: they queue up
    {
      std::lock_guard<std::mutex> lock(mutex_);
      task_ = task;
      context_ = context;
      tasks_ = tasks;
      next_ = 0;
      while (int(threads_.size()) < threads - 1) threads_.emplace_back([this, seen = call_] { serve(seen); });
      busy_ = int(threads_.size());
      ++call_;
    }
    wake_.notify_all();
    work();
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return busy_ == 0; });
  }

 private:
  void work() {
    for (int64_t i; (i = next_.fetch_add(1)) < tasks_;) task_(context_, i);
  }

  void serve(int64_t seen) {
    for (;;) {
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return call_ != seen; });
        seen = call_;
      }
      work();
      std::lock_guard<std::mutex> lock(mutex_);
      if (--busy_ == 0) done_.notify_one();
    }
  }

  std::mutex calls_, mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> threads_;
  std::atomic<int64_t> next_{0};
  int64_t tasks_ = 0, call_ = 0;
  int busy_ = 0;
  void (*task_)(void*, int64_t) = nullptr;
  void* context_ = nullptr;
};

}  // namespace

// Calls task(context, i) for every i below `tasks`, on `threads` threads at most, and returns when all are done.
extern "C" void paged_parallel_for(void (*task)(void*, int64_t), void* context, int64_t tasks, int32_t threads) {
  if (threads < 2 || tasks < 2) {
    for (int64_t i = 0; i < tasks; ++i) task(context, i);
    return;
  }
  // Never destroyed, for its threads run until the process ends. A forked child has none of its parent's threads, and
  // makes its own.
  static Workers* workers = new Workers;
  static pid_t owner = getpid();
  if (owner != getpid()) {
    workers = new Workers;
    owner = getpid();
  }
  workers->run(task, context, tasks, threads);
}
