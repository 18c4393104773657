// Attention over paged K and V: decode (one query a sequence), prompts (many), and the merge of partial results.
//
// Read decode_keys first. Every kernel accumulates in float32, whatever T the pool holds, and runs with LANES threads to
// a simdgroup: 32 on a GPU and in the simulator, where simd_sum adds across them, and 1 on a CPU, where simd_sum(x) is x
// and the loops over HEAD_DIM / LANES dims are whole vectors for the compiler.
//
// Template parameters
//   T           float, half or bfloat: what pool and queries hold
//   LAYOUT      a PoolLayout, see layouts.metal
//   HEAD_DIM    dims in a head vector, a multiple of 8
//   LANES       threads in a simdgroup
//   SIMDGROUPS  simdgroups in a threadgroup
//   WIDTH       numbers that a thread multiplies at once: 1 on a GPU, a vector's on a CPU
//   HEADS, KEYS, ROWS, ROW_TILES, K_DIMS   tile sizes, explained where they are used
//
// Threadgroup arrays are declared as THREADGROUP_ARRAY(type, name, size), in the kernels at the end of this file, and
// functions as METAL_FUNC, Metal's own word for inline: so that other compilers can be told what either means to them.

#ifndef THREADGROUP_ARRAY
#define THREADGROUP_ARRAY(type, name, size) threadgroup type name[size]
#endif

// WIDTH numbers side by side that one thread works on at once. On a GPU the lanes are the width, and WIDTH is 1; a CPU's
// header brings the vectors that its arithmetic has.
#ifndef HOST_VECTORS
template <int WIDTH>
struct VectorOf;
template <>
struct VectorOf<1> {
  typedef float type;
};
METAL_FUNC float load_vector(const thread float* from, float) { return *from; }
METAL_FUNC float load_vector(const threadgroup float* from, float) { return *from; }
METAL_FUNC void store_vector(thread float* to, float value) { *to = value; }
#endif

// For loops that only count registers: the compiler writes out every turn. UNROLL_ON_GPU is for arrays that are small
// because many lanes share the work, and would else lie in a GPU's memory; a CPU's single lane has a cache for them.
#ifndef UNROLL
#define UNROLL _Pragma("clang loop unroll(full)")
#define UNROLL_ON_GPU UNROLL
#endif

// Asks memory for a key that comes later. A GPU runs other threads while one waits, and needs no such thing; native.h
// says what a CPU does.
#ifndef FETCH_AHEAD
#define FETCH_AHEAD(key)
#endif

// What is the same for every thread of a launch.
struct Problem {
  int num_seqs;
  int num_q_heads;
  int num_kv_heads;
  int block_size;
  int max_blocks;      // entries in a row of block_tables
  int num_partitions;  // how many threadgroups share the keys of one sequence
  int window;          // keys a query sees, its own included; 0 for all
  bool has_sinks;
  bool has_alibi;
  float scale;
  float softcap;  // 0 for none
};

// sizes [9], scalars [2]
template <typename Ints, typename Floats>
METAL_FUNC Problem read_problem(Ints sizes, Floats scalars) {
  return Problem{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], sizes[7] != 0, sizes[8] != 0,
                 scalars[0], scalars[1]};
}

// Is `dim` one of the head's? Lane numbers run past the end where HEAD_DIM is no multiple of LANES; where it is, this is
// known to be true, and a loop over a lane's dims has no condition in it.
template <int HEAD_DIM, int LANES>
METAL_FUNC bool in_head(int dim) {
  return HEAD_DIM % LANES == 0 || dim < HEAD_DIM;
}

// tanh by exp, which every executor has; its limits come out right: exp overflows to infinity and the quotient to 0. Near
// 0, where 1 - 1 would leave no digits, by the first terms of its series.
METAL_FUNC float soft_tanh(float x) {
  const float x2 = x * x;
  const float series = x * (1.0f + x2 * (-1.0f / 3 + x2 * (2.0f / 15 + x2 * (-17.0f / 315))));
  return x2 < 0.01f ? series : 1.0f - 2.0f / (exp(2.0f * x) + 1.0f);
}

// From a scaled dot product to the logit.
METAL_FUNC float to_logit(float s, float softcap, float slope, int distance) {
  if (softcap > 0.0f) s = softcap * soft_tanh(s / softcap);
  return s - slope * float(distance);
}

// ---------------------------------------------------------------------------------------------------------- decode

// One threadgroup: HEADS query heads of one KV head, one sequence, one partition of its keys.
//
// Each simdgroup takes every SIMDGROUPS-th tile of KEYS keys, its lanes the dims lane, lane + LANES, ...; so one load
// of K or V serves HEADS query heads. The softmax is kept online (Milakov and Gimelshein, 2018): `top` is the largest
// logit so far, `total` the sum of exp(s - top), `acc` the values weighted alike; a larger logit rescales both.
//
// Leaves in threadgroup memory, for the whole partition:  acc [HEADS, HEAD_DIM],  top [HEADS],  total [HEADS];
// total is 0 where the partition has no key.
template <typename T, int LAYOUT, int HEAD_DIM, int HEADS, int LANES, int SIMDGROUPS, int KEYS, typename Tables,
          typename Lens, typename Slopes>
METAL_FUNC void decode_keys(
    const device T* q,              // [num_seqs, num_q_heads, HEAD_DIM]
    const device T* k_pool,         // in LAYOUT
    const device T* v_pool,         // in LAYOUT
    Tables block_tables,            // [num_seqs, max_blocks]
    Lens context_lens,              // [num_seqs]
    Slopes alibi_slopes,            // [num_q_heads]
    threadgroup float* acc_all,     // [HEADS, HEAD_DIM]
    threadgroup float* top_all,     // [SIMDGROUPS, HEADS]; the result lies in the first row
    threadgroup float* total_all,   // [SIMDGROUPS, HEADS]; likewise
    Problem problem, int seq, int first_head, int partition, int simdgroup, int lane) {
  constexpr int DIMS = (HEAD_DIM + LANES - 1) / LANES;  // dims a lane looks after
  const Pool<T, LAYOUT, HEAD_DIM> pool{problem.num_kv_heads, problem.block_size};
  const int kv_head = first_head / (problem.num_q_heads / problem.num_kv_heads);

  // The query is the last token of the context. Its keys, shared out among the partitions:
  const int context = context_lens[seq];
  const int oldest = problem.window > 0 ? max(0, context - problem.window) : 0;
  const int share = (context - oldest + problem.num_partitions - 1) / problem.num_partitions;
  const int begin = oldest + partition * share;
  const int end = min(begin + share, context);

  float query[HEADS][DIMS];
  float acc[HEADS][DIMS];
  float top[HEADS];
  float total[HEADS];
  float slope[HEADS];
  UNROLL_ON_GPU for (int h = 0; h < HEADS; ++h) {
    top[h] = -INFINITY;
    total[h] = 0.0f;
    slope[h] = problem.has_alibi ? float(alibi_slopes[first_head + h]) : 0.0f;
    UNROLL_ON_GPU for (int i = 0; i < DIMS; ++i) {
      const int dim = i * LANES + lane;
      const long at = (long(seq) * problem.num_q_heads + first_head + h) * HEAD_DIM + dim;
      query[h][i] = in_head<HEAD_DIM, LANES>(dim) ? problem.scale * float(q[at]) : 0.0f;
      acc[h][i] = 0.0f;
    }
  }

  for (int tile = begin + simdgroup * KEYS; tile < end; tile += SIMDGROUPS * KEYS) {
    // Follow the block table. A tile that runs past the end repeats its last key; that one's weight will be 0.
    const device T* k[KEYS];
    const device T* v[KEYS];
    int entry = tile / problem.block_size;
    int token = tile % problem.block_size;
    int block = block_tables[long(seq) * problem.max_blocks + entry];
    UNROLL_ON_GPU for (int j = 0; j < KEYS; ++j) {
      k[j] = k_pool + pool.k_vector(block, kv_head, token);
      v[j] = v_pool + pool.v_vector(block, kv_head, token);
      if (tile + j + 1 < end && ++token == problem.block_size) {
        token = 0;
        block = block_tables[long(seq) * problem.max_blocks + ++entry];
      }
    }

    // Logits: each lane multiplies its dims, the simdgroup adds up.
    float s[HEADS][KEYS];
    UNROLL_ON_GPU for (int j = 0; j < KEYS; ++j) {
      FETCH_AHEAD(tile + SIMDGROUPS * KEYS + j);
      float dot[HEADS] = {};
      UNROLL_ON_GPU for (int i = 0; i < DIMS; ++i) {
        const int dim = i * LANES + lane;
        const float k_value = in_head<HEAD_DIM, LANES>(dim) ? float(k[j][pool.k_dim(dim)]) : 0.0f;
        UNROLL_ON_GPU for (int h = 0; h < HEADS; ++h) dot[h] += query[h][i] * k_value;
      }
      UNROLL_ON_GPU for (int h = 0; h < HEADS; ++h) s[h][j] = simd_sum(dot[h]);
    }

    // Weights, and what a new maximum does to the old ones.
    UNROLL_ON_GPU for (int h = 0; h < HEADS; ++h) {
      float tile_top = top[h];
      UNROLL_ON_GPU for (int j = 0; j < KEYS; ++j) {
        s[h][j] = to_logit(s[h][j], problem.softcap, slope[h], context - 1 - (tile + j));
        if (tile + j >= end) s[h][j] = -INFINITY;
        tile_top = max(tile_top, s[h][j]);
      }
      const float rescale = exp(top[h] - tile_top);
      top[h] = tile_top;
      total[h] *= rescale;
      UNROLL_ON_GPU for (int i = 0; i < DIMS; ++i) acc[h][i] *= rescale;
      UNROLL_ON_GPU for (int j = 0; j < KEYS; ++j) s[h][j] = exp(s[h][j] - tile_top);
      UNROLL_ON_GPU for (int j = 0; j < KEYS; ++j) total[h] += s[h][j];
    }

    // Values, four keys at a time: one trip of acc through a register serves all four.
    UNROLL_ON_GPU for (int j = 0; j < KEYS; j += 4) {
      const device T* v0 = v[j];
      const device T* v1 = v[j + 1];
      const device T* v2 = v[j + 2];
      const device T* v3 = v[j + 3];
      UNROLL_ON_GPU for (int i = 0; i < DIMS; ++i) {
        const int dim = i * LANES + lane;
        if (!in_head<HEAD_DIM, LANES>(dim)) continue;
        const int at = pool.v_dim(dim);
        UNROLL_ON_GPU for (int h = 0; h < HEADS; ++h)
          acc[h][i] += s[h][j] * float(v0[at]) + s[h][j + 1] * float(v1[at]) + s[h][j + 2] * float(v2[at]) +
                       s[h][j + 3] * float(v3[at]);
      }
    }
  }

  // The simdgroups agree on one maximum, then add up one after the other: the same order, so the same bits, every run.
  if (lane == 0) {
    UNROLL_ON_GPU for (int h = 0; h < HEADS; ++h) {
      top_all[simdgroup * HEADS + h] = top[h];
      total_all[simdgroup * HEADS + h] = total[h];
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float group_total[HEADS];
  UNROLL_ON_GPU for (int h = 0; h < HEADS; ++h) {
    float group_top = -INFINITY;
    for (int g = 0; g < SIMDGROUPS; ++g) group_top = max(group_top, top_all[g * HEADS + h]);
    group_total[h] = 0.0f;
    for (int g = 0; g < SIMDGROUPS; ++g) {
      const float g_total = total_all[g * HEADS + h];
      if (g_total != 0.0f) group_total[h] += g_total * exp(top_all[g * HEADS + h] - group_top);
    }
    const float rescale = total[h] != 0.0f ? exp(top[h] - group_top) : 0.0f;
    UNROLL_ON_GPU for (int i = 0; i < DIMS; ++i) acc[h][i] *= rescale;
    top[h] = group_top;
  }
  for (int g = 0; g < SIMDGROUPS; ++g) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (simdgroup != g) continue;
    UNROLL_ON_GPU for (int h = 0; h < HEADS; ++h) {
      UNROLL_ON_GPU for (int i = 0; i < DIMS; ++i) {
        const int dim = i * LANES + lane;
        if (!in_head<HEAD_DIM, LANES>(dim)) continue;
        const float before = g == 0 ? 0.0f : acc_all[h * HEAD_DIM + dim];
        acc_all[h * HEAD_DIM + dim] = before + acc[h][i];
      }
      if (g == 0 && lane == 0) {
        top_all[h] = top[h];
        total_all[h] = group_total[h];
      }
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

// What acc has to be multiplied by to give the output: one over the softmax's denominator. A sink is one more logit in
// it; it may also be the largest, so the weights are measured from it when it is. No key at all gives zeros.
METAL_FUNC float normaliser(float top, float total, bool has_sink, float sink) {
  if (total == 0.0f) return 0.0f;
  if (!has_sink) return 1.0f / total;
  const float new_top = max(top, sink);
  const float rescale = exp(top - new_top);
  return rescale / (total * rescale + exp(sink - new_top));
}

// ---------------------------------------------------------------------------------------------------------- prompts

// The n-th of the numbers that a lane looks after, when each lane has WIDTH side by side.
template <int LANES, int WIDTH>
METAL_FUNC int nth_of_lane(int n, int lane) {
  return (n / WIDTH * LANES + lane) * WIDTH + n % WIDTH;
}

// A row is one query head at one query token. A sequence's rows run token by token, the query heads of a KV head side
// by side; a RowTile is a stretch of them. Row r past the last one repeats it (and is not written).
struct RowTile {
  int first_query;  // the sequence's first query, in tokens of q
  int first_row;    // of this tile, counted in the sequence
  int num_rows;     // in this tile
  int group;        // query heads to a KV head
  int kv_head;
  int num_kv_heads;

  METAL_FUNC int row(int r) const { return first_row + min(r, num_rows - 1); }
  METAL_FUNC int query(int r) const { return row(r) / group; }
  METAL_FUNC int head(int r) const { return kv_head * group + row(r) % group; }
  METAL_FUNC long head_vector(int r) const { return long(first_query + query(r)) * num_kv_heads * group + head(r); }
};

// acc [ROW_TILES * ROWS, DIMS of this lane] += weights [ROW_TILES * ROWS, KEYS] times the KEYS V vectors, for the first
// `row_tiles` times ROWS rows. With EDGE a weight of 0 means that the row does not see the key, and what it does not see
// must not reach it: 0 times NaN would be NaN.
template <bool EDGE, typename T, int LAYOUT, int HEAD_DIM, int LANES, int WIDTH, int KEYS, int ROWS, int ROW_TILES,
          int DIMS>
METAL_FUNC void add_values(thread float (*acc)[DIMS], int row_tiles, const threadgroup float* weights,
                           const device T* v_pool, const threadgroup long* v_at, Pool<T, LAYOUT, HEAD_DIM> pool,
                           int lane) {
  typedef typename VectorOf<WIDTH>::type Vector;
  constexpr int VECTORS_AT_ONCE = DIMS / WIDTH % 2 == 0 ? 2 : 1;  // ROWS times as many sums stay in registers
  constexpr int CHUNK = VECTORS_AT_ONCE * WIDTH;
  constexpr int KEYS_AT_ONCE = LANES == 1 ? KEYS : 1;  // a single lane has a cache to keep converted values in
  UNROLL_ON_GPU for (int chunk = 0; chunk < DIMS; chunk += CHUNK) {
    for (int key = 0; key < KEYS; key += KEYS_AT_ONCE) {
      float values[KEYS_AT_ONCE][CHUNK];
      for (int j = 0; j < KEYS_AT_ONCE; ++j) {
        const device T* v = v_pool + v_at[key + j];
        UNROLL_ON_GPU for (int i = 0; i < CHUNK; ++i) {
          const int dim = nth_of_lane<LANES, WIDTH>(chunk + i, lane);
          values[j][i] = in_head<HEAD_DIM, LANES>(dim) ? float(v[pool.v_dim(dim)]) : 0.0f;
        }
      }
      for (int t = 0; t < ROW_TILES; ++t) {
        if (t >= row_tiles) break;
        thread float(*rows)[DIMS] = acc + t * ROWS;
        Vector part[ROWS][VECTORS_AT_ONCE];
        UNROLL for (int r = 0; r < ROWS; ++r)
          UNROLL for (int i = 0; i < VECTORS_AT_ONCE; ++i)
            part[r][i] = load_vector(rows[r] + chunk + i * WIDTH, Vector());
        for (int j = 0; j < KEYS_AT_ONCE; ++j) {
          UNROLL for (int r = 0; r < ROWS; ++r) {
            const float weight = weights[(t * ROWS + r) * KEYS + key + j];
            if (EDGE && weight == 0.0f) continue;
            UNROLL for (int i = 0; i < VECTORS_AT_ONCE; ++i)
              part[r][i] += weight * load_vector(values[j] + i * WIDTH, Vector());
          }
        }
        UNROLL for (int r = 0; r < ROWS; ++r)
          UNROLL for (int i = 0; i < VECTORS_AT_ONCE; ++i) store_vector(rows[r] + chunk + i * WIDTH, part[r][i]);
      }
    }
  }
}

// One threadgroup: one RowTile. All its rows share each load of K. A simdgroup works on ROWS rows at a time and does so
// ROW_TILES times: GROUP_ROWS = SIMDGROUPS * ROW_TILES * ROWS rows in all.
//
// Keys come KEYS at a time, the same for every row. K goes through threadgroup memory, K_DIMS dims at a time,
// transposed: then lanes stand for keys, WIDTH side by side, and a logit needs no sum across lanes. The weights go
// through threadgroup memory too, because for V lanes stand for dims again.
template <typename T, int LAYOUT, int HEAD_DIM, int LANES, int WIDTH, int SIMDGROUPS, int KEYS, int ROWS, int ROW_TILES,
          int K_DIMS, typename Tables, typename Lens, typename Starts, typename Slopes, typename Sinks>
METAL_FUNC void prompt_rows(
    const device T* q,               // [num_tokens, num_q_heads, HEAD_DIM]
    const device T* k_pool,          // in LAYOUT
    const device T* v_pool,          // in LAYOUT
    Tables block_tables,             // [num_seqs, max_blocks]
    Lens context_lens,               // [num_seqs]
    Starts query_start_loc,          // [num_seqs + 1]
    Slopes alibi_slopes,             // [num_q_heads]
    Sinks sinks,                     // [num_q_heads]
    device T* out,                   // [num_tokens, num_q_heads, HEAD_DIM]
    threadgroup float* q_tile,       // [GROUP_ROWS, HEAD_DIM], scaled
    threadgroup float* k_tile,       // [K_DIMS, KEYS]
    threadgroup float* weights_all,  // [GROUP_ROWS, KEYS]
    threadgroup long* v_at,          // [KEYS], where each key's V vector begins
    Problem problem, int tile, int kv_head, int simdgroup, int lane) {
  constexpr int DIMS = (HEAD_DIM + LANES - 1) / LANES;
  constexpr int K_DIMS_PER_LANE = (K_DIMS + LANES - 1) / LANES;
  constexpr int KEYS_PER_LANE = KEYS / LANES;
  constexpr int VECTORS = KEYS_PER_LANE / WIDTH;
  typedef typename VectorOf<WIDTH>::type Vector;
  constexpr int GROUP_ROWS = SIMDGROUPS * ROW_TILES * ROWS;
  const Pool<T, LAYOUT, HEAD_DIM> pool{problem.num_kv_heads, problem.block_size};
  const int group = problem.num_q_heads / problem.num_kv_heads;
  threadgroup float* weights = weights_all + simdgroup * ROW_TILES * ROWS * KEYS;

  // Which sequence? Sequence i's tiles begin at query_start_loc[i] * group / GROUP_ROWS + i: never too few for its rows,
  // at most one too many, and known without knowing how many tiles the others have.
  int seq = 0;
  for (int above = problem.num_seqs; above - seq > 1;) {
    const int middle = (seq + above) / 2;
    if (long(query_start_loc[middle]) * group / GROUP_ROWS + middle <= tile) seq = middle;
    else above = middle;
  }
  const int first_query = query_start_loc[seq];
  const int num_queries = query_start_loc[seq + 1] - first_query;
  const int first_row = (tile - int(long(first_query) * group / GROUP_ROWS) - seq) * GROUP_ROWS;
  if (first_row >= num_queries * group) return;  // the whole threadgroup at once: nobody is left waiting at a barrier
  const RowTile rows{first_query, first_row, min(GROUP_ROWS, num_queries * group - first_row), group, kv_head,
                     problem.num_kv_heads};
  const int context = context_lens[seq];
  const int simdgroup_row = simdgroup * ROW_TILES * ROWS;  // where this simdgroup's rows begin, and how many it has:
  const int row_tiles = min(ROW_TILES, max(0, rows.num_rows - simdgroup_row + ROWS - 1) / ROWS);

  for (int r = simdgroup; r < GROUP_ROWS; r += SIMDGROUPS) {
    for (int dim = lane; dim < HEAD_DIM; dim += LANES) {
      const long at = rows.head_vector(r) * HEAD_DIM + dim;
      q_tile[r * HEAD_DIM + dim] = problem.scale * float(q[at]);
      if (context == 0 && r < rows.num_rows) out[at] = T(0.0f);
    }
  }
  if (context == 0) return;

  float acc[ROW_TILES * ROWS][DIMS];
  float top[ROW_TILES * ROWS];
  float total[ROW_TILES * ROWS];
  UNROLL_ON_GPU for (int r = 0; r < ROW_TILES * ROWS; ++r) {
    top[r] = -INFINITY;
    total[r] = 0.0f;
    UNROLL_ON_GPU for (int i = 0; i < DIMS; ++i) acc[r][i] = 0.0f;
  }

  // From the oldest key that the first row sees to the newest that the last row sees.
  const int first_pos = context - num_queries;  // the position of the sequence's first query
  const int oldest_pos = first_pos + rows.query(0);
  const int newest_pos = first_pos + rows.query(rows.num_rows - 1);
  const int begin = problem.window > 0 ? max(0, oldest_pos - problem.window + 1) : 0;
  const int end = newest_pos + 1;

  for (int key = begin; key < end; key += KEYS) {
    float s[ROW_TILES * ROWS][KEYS_PER_LANE];
    for (int chunk = 0; chunk < HEAD_DIM; chunk += K_DIMS) {
      threadgroup_barrier(mem_flags::mem_threadgroup);  // nobody still reads the tile before; q_tile is complete
      for (int j = simdgroup; j < KEYS; j += SIMDGROUPS) {
        const int pos = min(key + j, end - 1);  // past the end: the last key again, whose weight will be 0
        const int block = block_tables[long(seq) * problem.max_blocks + pos / problem.block_size];
        const device T* k = k_pool + pool.k_vector(block, kv_head, pos % problem.block_size);
        if (lane == 0) v_at[j] = pool.v_vector(block, kv_head, pos % problem.block_size);
        float values[K_DIMS_PER_LANE];
        UNROLL_ON_GPU for (int i = 0; i < K_DIMS_PER_LANE; ++i) {
          const int d = i * LANES + lane;
          if (in_head<K_DIMS, LANES>(d)) values[i] = float(k[pool.k_dim(chunk + d)]);
        }
        UNROLL_ON_GPU for (int i = 0; i < K_DIMS_PER_LANE; ++i) {
          const int d = i * LANES + lane;
          if (in_head<K_DIMS, LANES>(d)) k_tile[d * KEYS + j] = values[i];
        }
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);

      for (int t = 0; t < ROW_TILES; ++t) {
        if (t >= row_tiles) break;
        const threadgroup float* q_rows = q_tile + (simdgroup_row + t * ROWS) * HEAD_DIM + chunk;
        Vector part[ROWS][VECTORS];
        UNROLL for (int r = 0; r < ROWS; ++r)
          UNROLL for (int j = 0; j < VECTORS; ++j)
            part[r][j] = chunk == 0 ? Vector() : load_vector(s[t * ROWS + r] + j * WIDTH, Vector());
        for (int d = 0; d < K_DIMS; ++d)
          UNROLL for (int r = 0; r < ROWS; ++r)
            UNROLL for (int j = 0; j < VECTORS; ++j)
              part[r][j] +=
                  q_rows[r * HEAD_DIM + d] * load_vector(k_tile + d * KEYS + (j * LANES + lane) * WIDTH, Vector());
        UNROLL for (int r = 0; r < ROWS; ++r)
          UNROLL for (int j = 0; j < VECTORS; ++j) store_vector(s[t * ROWS + r] + j * WIDTH, part[r][j]);
      }
    }

    // Does every row see every key of this tile? Only at the two edges of the mask does one have to ask key by key.
    const bool edge = key + KEYS - 1 > oldest_pos || (problem.window > 0 && key <= newest_pos - problem.window);

    UNROLL_ON_GPU for (int r = 0; r < ROW_TILES * ROWS; ++r) {
      if (r >= row_tiles * ROWS) break;
      const int pos = first_pos + rows.query(simdgroup_row + r);
      const float slope = problem.has_alibi ? float(alibi_slopes[rows.head(simdgroup_row + r)]) : 0.0f;
      float tile_top = top[r];
      for (int j = 0; j < KEYS_PER_LANE; ++j) {
        const int k_pos = key + nth_of_lane<LANES, WIDTH>(j, lane);
        s[r][j] = to_logit(s[r][j], problem.softcap, slope, pos - k_pos);
        if (k_pos > pos || (problem.window > 0 && k_pos <= pos - problem.window)) s[r][j] = -INFINITY;
        tile_top = max(tile_top, s[r][j]);
      }
      tile_top = simd_max(tile_top);
      const float base = tile_top == -INFINITY ? 0.0f : tile_top;  // a row that has seen no key yet
      const float rescale = exp(top[r] - base);
      float added = 0.0f;
      for (int j = 0; j < KEYS_PER_LANE; ++j) {
        const float weight = exp(s[r][j] - base);
        weights[r * KEYS + nth_of_lane<LANES, WIDTH>(j, lane)] = weight;
        added += weight;
      }
      top[r] = tile_top;
      total[r] = total[r] * rescale + simd_sum(added);
      UNROLL_ON_GPU for (int i = 0; i < DIMS; ++i) acc[r][i] *= rescale;
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    if (edge)
      add_values<true, T, LAYOUT, HEAD_DIM, LANES, WIDTH, KEYS, ROWS, ROW_TILES, DIMS>(acc, row_tiles, weights, v_pool,
                                                                                       v_at, pool, lane);
    else
      add_values<false, T, LAYOUT, HEAD_DIM, LANES, WIDTH, KEYS, ROWS, ROW_TILES, DIMS>(acc, row_tiles, weights, v_pool,
                                                                                        v_at, pool, lane);
  }

  UNROLL_ON_GPU for (int r = 0; r < ROW_TILES * ROWS; ++r) {
    const int row = simdgroup_row + r;
    if (row >= rows.num_rows) continue;
    const float sink = problem.has_sinks ? float(sinks[rows.head(row)]) : 0.0f;
    const float factor = normaliser(top[r], total[r], problem.has_sinks, sink);
    UNROLL_ON_GPU for (int i = 0; i < DIMS; ++i) {
      const int dim = nth_of_lane<LANES, WIDTH>(i, lane);
      if (in_head<HEAD_DIM, LANES>(dim)) out[rows.head_vector(row) * HEAD_DIM + dim] = T(acc[r][i] * factor);
    }
  }
}

// ------------------------------------------------------------------------------------------------------- the kernels
//
// What follows a `//// kernel NAME` line is one kernel's body: the arguments appear under the names of its inputs and
// outputs, and the thread finds out who it is.

//// kernel paged_decode
// in   q, k_pool, v_pool, block_tables, context_lens, alibi_slopes, sinks, sizes, scalars
// out  out [num_seqs, num_q_heads, HEAD_DIM]
// grid (1, num_q_heads / HEADS, num_seqs) threadgroups
THREADGROUP_ARRAY(float, acc, HEADS * HEAD_DIM);
THREADGROUP_ARRAY(float, top, SIMDGROUPS * HEADS);
THREADGROUP_ARRAY(float, total, SIMDGROUPS * HEADS);
const Problem problem = read_problem(sizes, scalars);
const int seq = threadgroup_position_in_grid.z;
const int first_head = threadgroup_position_in_grid.y * HEADS;
const int simdgroup = simdgroup_index_in_threadgroup;
const int lane = thread_index_in_simdgroup;

decode_keys<T, LAYOUT, HEAD_DIM, HEADS, LANES, SIMDGROUPS, KEYS>(
    q, k_pool, v_pool, block_tables, context_lens, alibi_slopes, acc, top, total, problem, seq, first_head, 0, simdgroup,
    lane);
for (int h = simdgroup; h < HEADS; h += SIMDGROUPS) {
  const float sink = problem.has_sinks ? float(sinks[first_head + h]) : 0.0f;
  const float factor = normaliser(top[h], total[h], problem.has_sinks, sink);
  for (int dim = lane; dim < HEAD_DIM; dim += LANES)
    out[(long(seq) * problem.num_q_heads + first_head + h) * HEAD_DIM + dim] = T(acc[h * HEAD_DIM + dim] * factor);
}

//// kernel paged_decode_partial
// in   q, k_pool, v_pool, block_tables, context_lens, alibi_slopes, sizes, scalars
// out  partial_acc [num_seqs, num_q_heads, num_partitions, HEAD_DIM], partial_top and partial_total [.., num_partitions]
// grid (num_partitions, num_q_heads / HEADS, num_seqs) threadgroups
THREADGROUP_ARRAY(float, acc, HEADS * HEAD_DIM);
THREADGROUP_ARRAY(float, top, SIMDGROUPS * HEADS);
THREADGROUP_ARRAY(float, total, SIMDGROUPS * HEADS);
const Problem problem = read_problem(sizes, scalars);
const int seq = threadgroup_position_in_grid.z;
const int first_head = threadgroup_position_in_grid.y * HEADS;
const int partition = threadgroup_position_in_grid.x;
const int simdgroup = simdgroup_index_in_threadgroup;
const int lane = thread_index_in_simdgroup;

decode_keys<T, LAYOUT, HEAD_DIM, HEADS, LANES, SIMDGROUPS, KEYS>(
    q, k_pool, v_pool, block_tables, context_lens, alibi_slopes, acc, top, total, problem, seq, first_head, partition,
    simdgroup, lane);
for (int h = simdgroup; h < HEADS; h += SIMDGROUPS) {
  const long at = (long(seq) * problem.num_q_heads + first_head + h) * problem.num_partitions + partition;
  for (int dim = lane; dim < HEAD_DIM; dim += LANES) partial_acc[at * HEAD_DIM + dim] = acc[h * HEAD_DIM + dim];
  if (lane == 0) {
    partial_top[at] = top[h];
    partial_total[at] = total[h];
  }
}

//// kernel paged_merge
// in   partial_acc, partial_top, partial_total, sinks, sizes, scalars
// out  out [num_seqs, num_q_heads, HEAD_DIM]
// grid (1, num_q_heads, num_seqs) threadgroups of one simdgroup
//
// Partial softmaxes add up once they are measured from the same maximum: the merge of FlashDecoding (Dao et al., 2023).
const Problem problem = read_problem(sizes, scalars);
const int head = threadgroup_position_in_grid.y;
const long row = long(threadgroup_position_in_grid.z) * problem.num_q_heads + head;
const int lane = thread_index_in_simdgroup;

float top = -INFINITY;
for (int p = 0; p < problem.num_partitions; ++p) {
  const long at = row * problem.num_partitions + p;
  if (partial_total[at] != 0.0f) top = max(top, partial_top[at]);
}
float total = 0.0f;
for (int p = 0; p < problem.num_partitions; ++p) {
  const long at = row * problem.num_partitions + p;
  if (partial_total[at] != 0.0f) total += partial_total[at] * exp(partial_top[at] - top);
}
const float factor = normaliser(top, total, problem.has_sinks, problem.has_sinks ? float(sinks[head]) : 0.0f);
for (int dim = lane; dim < HEAD_DIM; dim += LANES) {
  float acc = 0.0f;
  for (int p = 0; p < problem.num_partitions; ++p) {
    const long at = row * problem.num_partitions + p;
    if (partial_total[at] != 0.0f) acc += exp(partial_top[at] - top) * partial_acc[at * HEAD_DIM + dim];
  }
  out[row * HEAD_DIM + dim] = T(acc * factor);
}

//// kernel paged_prompt
// in   q, k_pool, v_pool, block_tables, context_lens, query_start_loc, alibi_slopes, sinks, sizes, scalars
// out  out [num_tokens, num_q_heads, HEAD_DIM]
// grid (num_tokens * group / GROUP_ROWS + num_seqs, num_kv_heads, 1) threadgroups
THREADGROUP_ARRAY(float, q_tile, SIMDGROUPS * ROW_TILES * ROWS * HEAD_DIM);
THREADGROUP_ARRAY(float, k_tile, K_DIMS * KEYS);
THREADGROUP_ARRAY(float, weights, SIMDGROUPS * ROW_TILES * ROWS * KEYS);
THREADGROUP_ARRAY(long, v_at, KEYS);
prompt_rows<T, LAYOUT, HEAD_DIM, LANES, WIDTH, SIMDGROUPS, KEYS, ROWS, ROW_TILES, K_DIMS>(
    q, k_pool, v_pool, block_tables, context_lens, query_start_loc, alibi_slopes, sinks, out, q_tile, k_tile, weights,
    v_at, read_problem(sizes, scalars), threadgroup_position_in_grid.x, threadgroup_position_in_grid.y,
    simdgroup_index_in_threadgroup, thread_index_in_simdgroup);
