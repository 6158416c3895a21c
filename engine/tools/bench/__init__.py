"""`ostinato bench`: decode steps against the memory read ceiling, and what CUDA graphs gain.

    decode.py      measures each backend, graph mode and batch size, and proves that the requested path ran
    session.py     a batch of sequences on its own runner and engine, and the clocks
    operations.py  time and bytes of each operation of a step
    ceiling.py     the read bandwidth of the device
    update.py      the cost of updating a graph for every token
    synthetic.py   models with random weights
    report.py      table, JSON file and plot
    graphs.py      samples/s with and without graphs, for encoders and decoders; graphs_report.py prints them
    breakdown.py   wall clock of a step: host, kernels, idle
    samples.py     the sentences that graphs.py runs over
    check.py       compares a run with an earlier one on the same GPU

Measures through the public methods of runner, engine and device.
"""
