"""`ostinato doctor --graph-limits`: probes what a CUDA graph can hold on this GPU, next to an article's claims.

    article.py     the limits that the article lists
    probe.py       definition of a probe and its outcome, and whether the article agrees
    table.py       all probes, in the order of the article
    streams.py, memory.py, allocation.py, calls.py, updates.py, nodes.py     the probes
    sources.py     their CUDA C++
    lab.py         tools for probes: a stream, kernels, capture and replay, comparison of arrays
    linking.py     kernels that call the CUDA device runtime
    worker.py      the process in which probes run
    runner.py      starts the worker, sends it one probe at a time, and replaces it after a fatal CUDA error
    report.py      the table and the JSON list

A probe passes only if the replayed graph leaves the right numbers. Only lab.py and linking.py call CUDA libraries, and
only in the worker.
"""
