"""`ostinato doctor --graph-limits`: what a CUDA graph can hold, asked of the GPU at hand, beside an article's claims.

    article.py     the limits as the article lists them
    probe.py       what a probe is, what comes out of it, and whether the article agrees
    table.py       all probes, in the order of the article
    streams.py, memory.py, allocation.py, calls.py, updates.py, nodes.py     the probes
    sources.py     their CUDA C++
    lab.py         what a probe works with: a stream, kernels, capture and replay, comparison of numbers
    linking.py     kernels that call the CUDA device runtime
    worker.py      the process in which probes run
    runner.py      starts it, gives it one probe at a time, and replaces it when a probe has spoiled it
    report.py      the table and the JSON list

A probe passes only if a replayed graph leaves the right numbers. Only lab.py and linking.py talk
to CUDA libraries, in the worker.
"""
