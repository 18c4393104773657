// The machinery of the simulator: a fiber per GPU thread, a look at every load and store before it is made, and a record
// of it. Python drives it through the extern "C" functions at the end.
//
// Each buffer is copied into the middle of a slot of address space with nothing else in it, so that an address tells which
// buffer it was meant for even when it misses. Threadgroups run one after the other, the threads of one in turns: each
// until it waits for others. What is found does not depend on these turns: two accesses race when no barrier orders
// them, whichever came first here.
#if defined(__APPLE__)
#define _XOPEN_SOURCE 700  // ucontext
#define _DARWIN_C_SOURCE
#endif
#include <dlfcn.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

namespace {

enum Space : int32_t { INPUT, OUTPUT, THREADGROUP };
enum Kind : int32_t { NONE, OUTSIDE, WRITE_TO_INPUT, NEVER_WRITTEN, RACE, DIVERGENCE, TOO_LONG, LEFT_OUT, BROKEN };
enum MemFlags { MEM_DEVICE = 1, MEM_THREADGROUP = 2 };  // msl::mem_flags

typedef void Kernel(void* const* buffers, uint32_t x, uint32_t y, uint32_t z, uint32_t simdgroup, uint32_t lane);

constexpr int SLOTS = 64;
constexpr size_t STACK_BYTES = size_t(256) << 10;
constexpr size_t TABLE_BYTES = size_t(64) << 10;  // for the kernel's own arguments; lies with the stacks, and is not traced

// What Python reads: 16 bytes for one load or store.
struct Record {
  int64_t index;
  uint16_t thread;  // in its threadgroup
  uint16_t site;    // which load or store of the program
  uint8_t slot;
  uint8_t size;  // bytes, negative sizes being impossible; 0 stands for 256 or more
  uint8_t is_write;
  uint8_t launch;
};

// What Python reads: one thread, or two, caught at something.
struct Finding {
  int32_t kind = NONE;
  int32_t slot = 0;
  int64_t index = 0;
  int64_t size = 0;
  int64_t threadgroup = 0, other_threadgroup = 0;
  int32_t thread = 0, other = 0;
  int32_t is_write = 0, other_is_write = 0;
  int64_t site = -1, other_site = -1;  // offsets in the kernel's library; -1 where there is none
  int32_t line = 0, other_line = 0;
  const char *operation = nullptr, *other_operation = nullptr;  // where the thread waits; null where it is done
  const char *file = nullptr, *other_file = nullptr;
  const char* why = nullptr;
};

// When something was done, as far as barriers can tell, and by whom.
struct Access {
  int32_t thread = -1;
  uint32_t threadgroup_phase = 0;  // barriers of the threadgroup before it
  uint32_t simdgroup_phase = 0;    // barriers of its simdgroup before it
  uint16_t site = 0;
};

// What is remembered of one element of threadgroup memory. Of the readers since the last write three are enough to know
// whether any writer to come is in conflict: the latest, one of another simdgroup, one of the same simdgroup.
struct Element {
  Access writer, reader, far_reader, near_reader;
};

// What is remembered of one element of an output.
struct OutputElement {
  uint32_t writer = 0;  // 0: nobody; EARLIER: an earlier launch; else 1 + the thread's number in the grid
  uint32_t phase = 0;   // barriers for device memory before the write
};
constexpr uint32_t EARLIER = ~0u;

struct Buffer {
  std::string name;
  Space space;
  char* start;
  int64_t bytes, itemsize, count;
  std::vector<Element> elements;
  std::vector<OutputElement> outputs;
};

struct Fiber {
  ucontext_t context;
  enum { READY, WAITING, STUCK, DONE } state;  // STUCK: at a read of what nobody has written
  const char *operation, *file;
  int32_t line;
  uint32_t flags;
  float value;
};

struct Site {
  uintptr_t program_counter;
  int64_t offset;  // in the kernel's library
  int32_t launch, slot;
};

class Simulation {
 public:
  explicit Simulation(int64_t max_records) : max_records_(max_records) {
    for (slot_bits_ = 39; slot_bits_ >= 28; --slot_bits_) {  // less where address space is rationed
      arena_bytes_ = size_t(SLOTS) << slot_bits_;
      arena_ = reserve(arena_bytes_);
      if (arena_) break;
    }
    site_table_.resize(1 << 12, -1);
  }

  ~Simulation() {
    if (arena_) munmap(arena_, arena_bytes_);
    if (stacks_) munmap(stacks_, stacks_bytes_);
  }

  bool usable() const { return arena_; }

  // The slot of a new buffer, or -1.
  int add(const char* name, Space space, const void* data, int64_t count, int64_t itemsize) {
    const int64_t bytes = count * itemsize;
    const size_t page = sysconf(_SC_PAGESIZE);
    const size_t mapped = (size_t(bytes) + page - 1) / page * page;
    if (buffers_.size() == SLOTS || mapped >= size_t(1) << (slot_bits_ - 1)) return -1;
    char* start = arena_ + (buffers_.size() << slot_bits_) + (size_t(1) << (slot_bits_ - 1));
    if (mapped && mprotect(start, mapped, PROT_READ | PROT_WRITE)) return -1;
    if (data && bytes) std::memcpy(start, data, bytes);
    Buffer buffer{name, space, start, bytes, itemsize, count, {}, {}};
    if (space == THREADGROUP) buffer.elements.resize(count);
    if (space == OUTPUT) buffer.outputs.resize(count);
    buffers_.push_back(std::move(buffer));
    return int(buffers_.size()) - 1;
  }

  const Buffer* buffer(int slot) const { return slot < int(buffers_.size()) ? &buffers_[slot] : nullptr; }
  const Finding& finding() const { return finding_; }
  const std::vector<Record>& records() const { return records_; }
  const std::vector<int64_t>& starts() const { return starts_; }
  const std::vector<Site>& sites() const { return sites_; }

  // Run a kernel over its grid. False when it was caught at something.
  bool launch(Kernel* kernel, const int32_t* slots, int num_buffers, const int32_t* grid, int simdgroups, int lanes) {
    kernel_ = kernel;
    lanes_ = lanes;
    Dl_info library;
    library_ = dladdr(reinterpret_cast<void*>(kernel), &library) ? reinterpret_cast<char*>(library.dli_fbase) : nullptr;
    threads_.resize(simdgroups * lanes);
    if (!make_stacks()) return caught(BROKEN, "there is no memory for the threads' stacks");
    for (int i = 0; i < num_buffers; ++i) table_[i] = buffers_[slots[i]].start;
    arrays_.clear();
    simdgroup_phases_.assign(simdgroups, 0);
    results_.resize(threads_.size());
    const int64_t threadgroups = int64_t(grid[0]) * grid[1] * grid[2];
    for (threadgroup_ = 0; threadgroup_ < threadgroups; ++threadgroup_) {
      starts_.push_back(records_.size());
      x_ = threadgroup_ % grid[0];
      y_ = threadgroup_ / grid[0] % grid[1];
      z_ = threadgroup_ / grid[0] / grid[1];
      first_phase_ = ++threadgroup_phase_;
      run_threadgroup();
      if (finding_.kind != NONE) return false;
    }
    for (int i = 0; i < num_buffers; ++i)
      for (OutputElement& element : buffers_[slots[i]].outputs)
        if (element.writer) element.writer = EARLIER;
    ++launch_;
    return true;
  }

  // Has every element of an output been written? If not, that is a finding.
  bool complete(int slot) {
    const Buffer& buffer = buffers_[slot];
    for (int64_t i = 0; i < buffer.count; ++i) {
      if (buffer.outputs[i].writer) continue;
      finding_.kind = LEFT_OUT;
      finding_.slot = slot;
      finding_.index = i;
      return false;
    }
    return true;
  }

  // ------------------------------------------------------------------------------------------ called by the kernel

  void* threadgroup_array(const char* name, int64_t itemsize, int64_t count) {
    const auto found = arrays_.find(name);
    int slot = found == arrays_.end() ? -1 : found->second;
    if (slot < 0) {
      slot = add(name, THREADGROUP, nullptr, count, itemsize);
      if (slot < 0) stop(BROKEN, "there are more than 64 buffers and threadgroup arrays, or one is too large");
      arrays_[name] = slot;
    } else if (buffers_[slot].count != count || buffers_[slot].itemsize != itemsize) {
      stop(BROKEN, "two threadgroup arrays have one name");
    }
    return buffers_[slot].start;
  }

  // What the operation gives this lane when all have met. `other` says whose value a shuffle takes, in its own way.
  float simd(const char* operation, float x, int32_t other, const char* file, int32_t line) {
    threads_[thread_].value = x;
    wait(operation, 0, file, line);
    const int lane = thread_ % lanes_;
    int from = lane;
    if (is(operation, "simd_shuffle") || is(operation, "simd_broadcast")) from = other;
    if (is(operation, "simd_shuffle_xor")) from = lane ^ other;
    if (is(operation, "simd_shuffle_down")) from = lane + other;
    if (from < 0 || from >= lanes_) from = lane;  // nobody there: each keeps its own
    return results_[thread_ - lane + from];
  }

  void wait(const char* operation, uint32_t flags, const char* file, int32_t line) {
    Fiber& fiber = threads_[thread_];
    fiber.state = Fiber::WAITING;
    fiber.operation = operation;
    fiber.flags = flags;
    fiber.file = file;
    fiber.line = line;
    next_lane(fiber);
  }

  inline void access(const void* address, int64_t size, bool is_write, uintptr_t program_counter) {
    const uintptr_t offset = uintptr_t(address) - uintptr_t(arena_);
    if (offset >= arena_bytes_) {
      if (uintptr_t(address) - uintptr_t(stacks_) < stacks_bytes_ || in_library(address)) return;
      stray(address, size, is_write, program_counter);
    }
    const int slot = int(offset >> slot_bits_);
    Buffer& buffer = buffers_[std::min(slot, int(buffers_.size()) - 1)];
    const uint64_t byte = uintptr_t(address) - uintptr_t(buffer.start);
    if (byte >= uint64_t(buffer.bytes) || byte + size > uint64_t(buffer.bytes))
      stray(address, size, is_write, program_counter);
    const uint16_t site = site_number(program_counter, slot);
    const int64_t index = int64_t(byte) / buffer.itemsize;
    if (buffer.space == THREADGROUP) {
      const int64_t last = int64_t(byte + size - 1) / buffer.itemsize;
      for (int64_t i = index; i <= last; ++i) see_shared(buffer, i, size, is_write, site);
    } else if (buffer.space == OUTPUT) {
      const int64_t last = int64_t(byte + size - 1) / buffer.itemsize;
      for (int64_t i = index; i <= last; ++i) see_output(buffer, i, size, is_write, site);
    } else if (is_write) {
      stop_at(WRITE_TO_INPUT, buffer, index, size, is_write, site);
    }
    if (max_records_ < 0) return;
    if (int64_t(records_.size()) == max_records_) stop(TOO_LONG, nullptr);
    records_.push_back({index, uint16_t(thread_), site, uint8_t(slot), uint8_t(size), is_write, uint8_t(launch_)});
  }

  void run_thread() {
    kernel_(table_, x_, y_, z_, thread_ / lanes_, thread_ % lanes_);
    threads_[thread_].state = Fiber::DONE;
    next_lane(threads_[thread_]);
  }

 private:
  static char* reserve(size_t bytes) {
    int flags = MAP_PRIVATE | MAP_ANON;
#ifdef MAP_NORESERVE
    flags |= MAP_NORESERVE;
#endif
    void* memory = mmap(nullptr, bytes, PROT_NONE, flags, -1, 0);
    return memory == MAP_FAILED ? nullptr : static_cast<char*>(memory);
  }

  // [the table of arguments][an unmapped page, a stack] for every thread
  bool make_stacks() {
    const size_t page = sysconf(_SC_PAGESIZE), bytes = TABLE_BYTES + threads_.size() * STACK_BYTES;
    if (bytes > stacks_bytes_) {
      if (stacks_) munmap(stacks_, stacks_bytes_);
      stacks_ = reserve(bytes);
      stacks_bytes_ = stacks_ ? bytes : 0;
      if (!stacks_) return false;
      if (mprotect(stacks_, TABLE_BYTES, PROT_READ | PROT_WRITE)) return false;
      for (size_t i = 0; i < threads_.size(); ++i)
        if (mprotect(stack(i) + page, STACK_BYTES - page, PROT_READ | PROT_WRITE)) return false;
    }
    table_ = reinterpret_cast<void**>(stacks_);
    return true;
  }

  char* stack(size_t thread) const { return stacks_ + TABLE_BYTES + thread * STACK_BYTES; }

  // ---------------------------------------------------------------------------------------------------- taking turns

  static void begin_thread();

  void run_threadgroup() {
    const size_t page = sysconf(_SC_PAGESIZE);
    for (size_t i = 0; i < threads_.size(); ++i) {
      Fiber& fiber = threads_[i];
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = stack(i) + page;
      fiber.context.uc_stack.ss_size = STACK_BYTES - page;
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, begin_thread, 0);
      fiber.state = Fiber::READY;
    }
    const int simdgroups = int(threads_.size()) / lanes_;
    do {
      for (int g = 0; g < simdgroups; ++g) {
        do {
          run_lanes(g);
          if (finding_.kind != NONE) return;
        } while (meet_in_simdgroup(g));
      }
    } while (meet_in_threadgroup());
  }

  // Run the lanes of a simdgroup, one after the other, until all of them wait or are done.
  void run_lanes(int simdgroup) {
    for (thread_ = simdgroup * lanes_; thread_ < (simdgroup + 1) * lanes_; ++thread_) {
      if (threads_[thread_].state != Fiber::READY) continue;
      swapcontext(&scheduler_, &threads_[thread_].context);
      return;  // the last lane came back here: see next_lane
    }
  }

  void next_lane(Fiber& from) {
    const int end = thread_ / lanes_ * lanes_ + lanes_;
    for (++thread_; thread_ < end; ++thread_) {
      if (threads_[thread_].state != Fiber::READY) continue;
      swapcontext(&from.context, &threads_[thread_].context);
      return;
    }
    swapcontext(&from.context, &scheduler_);
  }

  // Do all lanes wait at one simd operation or simdgroup_barrier? Then they go on.
  bool meet_in_simdgroup(int simdgroup) {
    Fiber* lanes = &threads_[simdgroup * lanes_];
    if (!at_same_place(lanes, lanes_) || is(lanes[0].operation, "threadgroup_barrier")) return false;
    if (is(lanes[0].operation, "simdgroup_barrier")) {
      if (lanes[0].flags & MEM_THREADGROUP) ++simdgroup_phases_[simdgroup];
      if (lanes[0].flags & MEM_DEVICE) ++device_phase_;
    } else {
      float* results = &results_[simdgroup * lanes_];
      for (int i = 0; i < lanes_; ++i) results[i] = lanes[i].value;
      if (is(lanes[0].operation, "simd_sum")) combine(results, [](float a, float b) { return a + b; });
      if (is(lanes[0].operation, "simd_max")) combine(results, [](float a, float b) { return a < b ? b : a; });
      if (is(lanes[0].operation, "simd_min")) combine(results, [](float a, float b) { return b < a ? b : a; });
    }
    for (int i = 0; i < lanes_; ++i) lanes[i].state = Fiber::READY;
    return true;
  }

  // Half the lanes on the other half, and again, as the hardware does.
  template <typename Function>
  void combine(float* lanes, Function two) const {
    for (int n = lanes_; n > 1; n = (n + 1) / 2)
      for (int i = 0; i < n / 2; ++i) lanes[i] = two(lanes[i], lanes[i + (n + 1) / 2]);
    std::fill(lanes, lanes + lanes_, lanes[0]);
  }

  // Do all threads wait at one threadgroup_barrier? Then they go on. Are all done? Then that was it. Else some wait for
  // others who will never come.
  bool meet_in_threadgroup() {
    Fiber* threads = threads_.data();
    const int count = int(threads_.size());
    if (std::all_of(threads, threads + count, [](const Fiber& f) { return f.state == Fiber::DONE; })) return false;
    if (at_same_place(threads, count)) {
      if (threads[0].flags & MEM_THREADGROUP) ++threadgroup_phase_;
      if (threads[0].flags & MEM_DEVICE) ++device_phase_;
      for (int i = 0; i < count; ++i) threads[i].state = Fiber::READY;
      return true;
    }
    if (stuck_.kind != NONE) {  // all that can run has run, and nobody wrote it
      finding_ = stuck_;
      return false;
    }
    // Who waits, and who is elsewhere? Two lanes of one simdgroup where there are such, else two simdgroups.
    for (int size : {lanes_, count})
      for (int first = 0; first < count; first += size)
        for (int i = first; i < first + size; ++i) {
          const int other = same_place(threads[first], threads[i]) ? -1 : i;
          if (other < 0) continue;
          const int waits = threads[first].state == Fiber::WAITING ? first : other;
          report_divergence(waits, waits == first ? other : first);
          return false;
        }
    return false;
  }

  static bool is(const char* a, const char* b) { return a == b || !std::strcmp(a, b); }

  static bool same_place(const Fiber& a, const Fiber& b) {
    if (a.state != b.state) return false;
    if (a.state == Fiber::DONE) return true;
    return a.line == b.line && is(a.operation, b.operation) && is(a.file, b.file);
  }

  static bool at_same_place(const Fiber* fibers, int count) {
    return fibers[0].state == Fiber::WAITING &&
           std::all_of(fibers, fibers + count, [&](const Fiber& f) { return same_place(fibers[0], f); });
  }

  // ------------------------------------------------------------------------------------------------ looking at memory

  bool together(const Access& earlier, const Access& now) const {
    if (earlier.thread < 0 || earlier.thread == now.thread) return false;
    if (earlier.threadgroup_phase != now.threadgroup_phase) return false;
    return earlier.thread / lanes_ != now.thread / lanes_ || earlier.simdgroup_phase == now.simdgroup_phase;
  }

  inline void see_shared(Buffer& buffer, int64_t index, int64_t size, bool is_write, uint16_t site) {
    Element& element = buffer.elements[index];
    const Access now{thread_, threadgroup_phase_, simdgroup_phases_[thread_ / lanes_], site};
    if (together(element.writer, now)) race(buffer, index, size, is_write, now, element.writer, true);
    if (!is_write) {
      if (element.writer.threadgroup_phase < first_phase_) stick(buffer, index, size, now);
      Access& reader = element.reader;
      if (reader.thread >= 0 && reader.thread != thread_)
        (reader.thread / lanes_ == thread_ / lanes_ ? element.near_reader : element.far_reader) = reader;
      reader = now;
      return;
    }
    for (const Access* reader : {&element.reader, &element.far_reader, &element.near_reader})
      if (together(*reader, now)) race(buffer, index, size, is_write, now, *reader, false);
    if (stuck_.kind != NONE && stuck_.index == index && &buffers_[stuck_.slot] == &buffer && together(stuck_reader_, now))
      race(buffer, index, size, is_write, now, stuck_reader_, false);
    element = Element();
    element.writer = now;
  }

  inline void see_output(Buffer& buffer, int64_t index, int64_t size, bool is_write, uint16_t site) {
    OutputElement& element = buffer.outputs[index];
    const uint32_t me = uint32_t(threadgroup_ * int64_t(threads_.size()) + thread_) + 1;
    if (element.writer == 0 && !is_write) stop_at(NEVER_WRITTEN, buffer, index, size, false, site);
    if (element.writer != 0 && element.writer != EARLIER && element.writer != me) {
      const int64_t threadgroup = (element.writer - 1) / threads_.size();
      if (threadgroup != threadgroup_ || element.phase == device_phase_) {
        const Access other{int32_t((element.writer - 1) % threads_.size()), 0, 0, 0};
        finding_.other_threadgroup = threadgroup;
        race(buffer, index, size, is_write, Access{thread_, 0, 0, site}, other, true);
      }
    }
    if (is_write) element = {me, device_phase_};
  }

  // A number for each load and store of the program, and the buffer it went to last.
  inline uint16_t site_number(uintptr_t program_counter, int slot) {
    size_t at = program_counter * 0x9e3779b97f4a7c15u >> 52;
    for (;; at = (at + 1) % site_table_.size()) {
      const int number = site_table_[at];
      if (number < 0) break;
      if (sites_[number].program_counter == program_counter) {
        sites_[number].slot = slot;
        return uint16_t(number);
      }
    }
    if (sites_.size() >= site_table_.size() / 2) return uint16_t(sites_.size() - 1);  // far more than any kernel has
    site_table_[at] = int32_t(sites_.size());
    sites_.push_back({program_counter, int64_t(program_counter - uintptr_t(library_)), launch_, slot});
    return uint16_t(sites_.size() - 1);
  }

  // Constants of the kernel's own lie in its library.
  bool in_library(const void* address) const {
    Dl_info library;
    return dladdr(address, &library) && library.dli_fbase == library_;
  }

  // ---------------------------------------------------------------------------------------------------------- findings

  // An address in no buffer: the buffer that this load or store went to before, else the one whose slot or neighbourhood
  // it lies in.
  [[noreturn]] void stray(const void* address, int64_t size, bool is_write, uintptr_t program_counter) {
    int slot = -1;
    for (const Site& site : sites_)
      if (site.program_counter == program_counter) slot = site.slot;
    const int64_t offset = int64_t(uintptr_t(address) - uintptr_t(arena_));
    if (slot < 0) slot = int(std::clamp<int64_t>(offset >> slot_bits_, 0, int64_t(buffers_.size()) - 1));
    const Buffer& buffer = buffers_[slot];
    const int64_t byte = int64_t(uintptr_t(address) - uintptr_t(buffer.start));
    const int64_t index = byte >= 0 ? byte / buffer.itemsize : -((-byte + buffer.itemsize - 1) / buffer.itemsize);
    stop_at(OUTSIDE, buffer, index, size, is_write, site_number(program_counter, slot));
  }

  [[noreturn]] void race(const Buffer& buffer, int64_t index, int64_t size, bool is_write, const Access& now,
                         const Access& other, bool other_is_write) {
    if (buffer.space == THREADGROUP) finding_.other_threadgroup = threadgroup_;
    finding_.other = other.thread;
    finding_.other_is_write = other_is_write;
    finding_.other_site = buffer.space == THREADGROUP ? sites_[other.site].offset : -1;
    stop_at(RACE, buffer, index, size, is_write, now.site);
  }

  // A read of threadgroup memory that nobody has written. Yet: if one of those who run later writes it, that is a race.
  void stick(const Buffer& buffer, int64_t index, int64_t size, const Access& now) {
    if (stuck_.kind == NONE) {
      stuck_ = finding(NEVER_WRITTEN, buffer, index, size, false, now.site);
      stuck_reader_ = now;
    }
    threads_[thread_].state = Fiber::STUCK;
    next_lane(threads_[thread_]);
  }

  [[noreturn]] void stop_at(Kind kind, const Buffer& buffer, int64_t index, int64_t size, bool is_write, uint16_t site) {
    finding_ = finding(kind, buffer, index, size, is_write, site);
    setcontext(&scheduler_);  // for good: this thread is never run again
    __builtin_unreachable();
  }

  Finding finding(Kind kind, const Buffer& buffer, int64_t index, int64_t size, bool is_write, uint16_t site) const {
    Finding found = finding_;  // a race has already said who the other one is
    found.kind = kind;
    found.slot = int32_t(&buffer - buffers_.data());
    found.index = index;
    found.size = size;
    found.threadgroup = threadgroup_;
    found.thread = thread_;
    found.is_write = is_write;
    found.site = sites_[site].offset;
    return found;
  }

  [[noreturn]] void stop(Kind kind, const char* why) {
    caught(kind, why);
    setcontext(&scheduler_);
    __builtin_unreachable();
  }

  bool caught(Kind kind, const char* why) {
    finding_.kind = kind;
    finding_.why = why;
    finding_.threadgroup = threadgroup_;
    finding_.thread = thread_;
    return false;
  }

  void report_divergence(int waits, int elsewhere) {
    const Fiber &here = threads_[waits], &there = threads_[elsewhere];
    thread_ = elsewhere;  // the one that does not come
    caught(DIVERGENCE, nullptr);
    finding_.operation = there.state == Fiber::WAITING ? there.operation : nullptr;
    finding_.file = there.file;
    finding_.line = there.line;
    finding_.other_threadgroup = threadgroup_;
    finding_.other = waits;
    finding_.other_operation = here.operation;
    finding_.other_file = here.file;
    finding_.other_line = here.line;
  }

  const int64_t max_records_;  // negative: keep none
  char* arena_ = nullptr;
  size_t arena_bytes_ = 0;
  int slot_bits_ = 0;
  std::vector<Buffer> buffers_;
  std::unordered_map<std::string, int> arrays_;  // this launch's threadgroup arrays
  char* stacks_ = nullptr;
  size_t stacks_bytes_ = 0;
  void** table_ = nullptr;
  std::vector<Fiber> threads_;
  ucontext_t scheduler_;
  Kernel* kernel_ = nullptr;
  char* library_ = nullptr;
  int lanes_ = 1;
  int32_t launch_ = 0;
  int64_t threadgroup_ = 0;
  uint32_t x_ = 0, y_ = 0, z_ = 0;
  int32_t thread_ = 0;
  uint32_t threadgroup_phase_ = 0, first_phase_ = 0, device_phase_ = 0;
  std::vector<uint32_t> simdgroup_phases_;
  std::vector<float> results_;  // of each thread's simdgroup, at its latest simd operation
  std::vector<Site> sites_;
  std::vector<int32_t> site_table_;
  std::vector<Record> records_;
  std::vector<int64_t> starts_;  // of each threadgroup's records
  Finding finding_;  // ends the simulation
  Finding stuck_;    // what the first thread that is stuck will have been caught at
  Access stuck_reader_;
};

Simulation* current = nullptr;  // the one that runs; Python holds a lock

void Simulation::begin_thread() { current->run_thread(); }

}  // namespace

// ----------------------------------------------------------------------------------------------------- for the kernels

extern "C" {

void* paged_threadgroup_array(const char* name, int64_t itemsize, int64_t count) {
  return current->threadgroup_array(name, itemsize, count);
}
float paged_simd(const char* operation, float x, int32_t other, const char* file, int32_t line) {
  return current->simd(operation, x, other, file, line);
}
void paged_barrier(const char* operation, uint32_t flags, const char* file, int32_t line) {
  current->wait(operation, flags, file, line);
}

// ThreadSanitizer's interface: what the compiler calls before each load and store.
#define SEE(size, is_write) \
  current->access(address, size, is_write, uintptr_t(__builtin_extract_return_addr(__builtin_return_address(0))))
#define SEE_SIZE(bytes)                                                   \
  void __tsan_read##bytes(void* address) { SEE(bytes, false); }           \
  void __tsan_write##bytes(void* address) { SEE(bytes, true); }           \
  void __tsan_unaligned_read##bytes(void* address) { SEE(bytes, false); } \
  void __tsan_unaligned_write##bytes(void* address) { SEE(bytes, true); }
SEE_SIZE(1)
SEE_SIZE(2)
SEE_SIZE(4)
SEE_SIZE(8)
SEE_SIZE(16)
void __tsan_read_range(void* address, size_t bytes) { SEE(bytes, false); }
void __tsan_write_range(void* address, size_t bytes) { SEE(bytes, true); }
void* __tsan_memset(void* address, int value, size_t bytes) {
  SEE(bytes, true);
  return std::memset(address, value, bytes);
}
void* __tsan_memmove(void* to, const void* from, size_t bytes) {
  const void* address = from;
  SEE(bytes, false);
  address = to;
  SEE(bytes, true);
  return std::memmove(to, from, bytes);
}
void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
  const void* address = from;
  SEE(bytes, false);
  address = to;
  SEE(bytes, true);
  return std::memcpy(to, from, bytes);
}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}

// --------------------------------------------------------------------------------------------------------- for Python

// A new simulation that keeps up to max_records records, none where that is negative. Null without address space for it.
Simulation* paged_simulation_new(int64_t max_records) {
  Simulation* simulation = new Simulation(max_records);
  if (simulation->usable()) return simulation;
  delete simulation;
  return nullptr;
}

void paged_simulation_delete(Simulation* simulation) { delete simulation; }

// The slot of a copy of `data` ([count] elements), or of an output where `data` is null; -1 where it is too large.
int32_t paged_simulation_add(Simulation* simulation, const char* name, const void* data, int64_t count, int64_t itemsize) {
  return simulation->add(name, data ? INPUT : OUTPUT, data, count, itemsize);
}

// Whether the kernel ran to its end; if not, ask for the finding.
int32_t paged_simulation_launch(Simulation* simulation, Kernel* kernel, const int32_t* slots, int32_t num_buffers,
                                const int32_t* grid, int32_t simdgroups, int32_t lanes) {
  current = simulation;
  return simulation->launch(kernel, slots, num_buffers, grid, simdgroups, lanes);
}

int32_t paged_simulation_complete(Simulation* simulation, int32_t slot) { return simulation->complete(slot); }

const Finding* paged_simulation_finding(Simulation* simulation) { return &simulation->finding(); }

const void* paged_simulation_data(Simulation* simulation, int32_t slot) { return simulation->buffer(slot)->start; }

// The name of a buffer and its element count and size; null past the last slot.
const char* paged_simulation_buffer(Simulation* simulation, int32_t slot, int32_t* space, int64_t* count, int64_t* itemsize) {
  const Buffer* buffer = simulation->buffer(slot);
  if (!buffer) return nullptr;
  *space = buffer->space;
  *count = buffer->count;
  *itemsize = buffer->itemsize;
  return buffer->name.c_str();
}

const void* paged_simulation_records(Simulation* simulation, int64_t* count) {
  *count = simulation->records().size();
  return simulation->records().data();
}

// Where each threadgroup's records begin, launch after launch.
const int64_t* paged_simulation_starts(Simulation* simulation, int64_t* count) {
  *count = simulation->starts().size();
  return simulation->starts().data();
}

// Where in its launch's library load or store number i is; -1 past the last.
int64_t paged_simulation_site(Simulation* simulation, int32_t i, int32_t* launch) {
  if (i >= int32_t(simulation->sites().size())) return -1;
  *launch = simulation->sites()[i].launch;
  return simulation->sites()[i].offset;
}

}  // extern "C"
