"""Side by side with peers, in one process: `python -m benchmarks NAME`, a file of this folder each."""
