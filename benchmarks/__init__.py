"""Side by side with peers, in one process: `python -m benchmarks attention`, `scheduler` or `viz`."""
