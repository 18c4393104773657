// Where (block, head, token, dim) lives in each pool layout, in elements from the start of the array.
//
// A head vector is found in two steps: k_vector / v_vector give its dim 0, k_dim / v_dim the way from there to any other
// dim. LAYOUT is a template parameter, so that each specialisation keeps one line of arithmetic. Offsets are 64-bit: a
// pool of many gigabytes has more elements than an int counts.

enum PoolLayout { HND, NHD, X_SPLIT, INTERLEAVED };

template <typename T, int LAYOUT, int HEAD_DIM>
struct Pool {
  int num_kv_heads;
  int block_size;

  // X_SPLIT keeps 16 bytes of a K vector together.
  static constexpr constant int X = 16 / sizeof(T);

  METAL_FUNC long k_vector(int block, int head, int token) const {
    if (LAYOUT == NHD) return ((long(block) * block_size + token) * num_kv_heads + head) * HEAD_DIM;
    if (LAYOUT == X_SPLIT) return (long(block) * num_kv_heads + head) * HEAD_DIM * block_size + token * X;
    if (LAYOUT == INTERLEAVED) return ((long(block) * 2 * num_kv_heads + head) * block_size + token) * HEAD_DIM;
    return ((long(block) * num_kv_heads + head) * block_size + token) * HEAD_DIM;
  }

  METAL_FUNC long v_vector(int block, int head, int token) const {
    if (LAYOUT == X_SPLIT) return (long(block) * num_kv_heads + head) * HEAD_DIM * block_size + token;
    if (LAYOUT == INTERLEAVED) return k_vector(block, num_kv_heads + head, token);
    return k_vector(block, head, token);
  }

  METAL_FUNC int k_dim(int dim) const {
    if (LAYOUT == X_SPLIT) return dim / X * block_size * X + dim % X;
    return dim;
  }

  METAL_FUNC int v_dim(int dim) const {
    if (LAYOUT == X_SPLIT) return dim * block_size;
    return dim;
  }
};
