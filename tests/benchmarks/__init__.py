"""What Anabranch promises in numbers: `python -m tests.benchmarks` on a CPU, `... tests.benchmarks.gpu` on a GPU."""
