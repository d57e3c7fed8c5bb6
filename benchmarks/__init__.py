"""Time and memory, side by side with other libraries, as ratios from one run: `python -m benchmarks`."""
