"""Side by side with peers, in one process: `python -m benchmarks attention`, `mlx_lm` or `scheduler`."""
