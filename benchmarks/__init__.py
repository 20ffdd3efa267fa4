"""Baselines and ours, measured in turn, in one run: `python -m benchmarks`.

One noun a file: `workloads` (what is measured), `materials` (weights and token ids that every side reads), `baselines`
and `ours` (the sides), `side` (the process that one side runs in), `harness` (rounds and figures), `machine`, `floor`,
`switches` and `apart` (one technique off), `report`. `anatomy` takes a step of ours apart,
`time_to_accuracy` says how soon a run is as good as the source's.
"""
