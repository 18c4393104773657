"""Answers to the coded exercises of notebook 06, in Metal."""

rescale = """
      const float rescale = exp(top[h] - tile_top);
      top[h] = tile_top;
      total[h] *= rescale;
      for (int i = 0; i < DIMS; ++i) acc[h][i] *= rescale;
"""

follow = """
    for (int j = 0; j < KEYS; ++j) {
      const int position = min(tile + j, end - 1);  // past the end: the last key again, whose weight will be 0
      const int block = block_tables[seq * problem.max_blocks + position / problem.block_size];
      k[j] = k_pool + pool.k_vector(block, kv_head, position % problem.block_size);
      v[j] = v_pool + pool.v_vector(block, kv_head, position % problem.block_size);
    }
"""
