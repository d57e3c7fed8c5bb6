"""Every benchmark of the model, one after the other: `python -m benchmarks`, which is `make bench`."""

from __future__ import annotations

from benchmarks import import_cost, model_cost

if __name__ == "__main__":
    print("### Importing\n")
    print(import_cost.measure(), "\n")
    model_cost.main()
