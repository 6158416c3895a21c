"""`ostinato bench`: what a decode step costs beside reading its bytes, and what CUDA graphs give.

    decode.py      which combinations are measured, and the proof that the path that was asked for is the one that ran
    session.py     a batch of sequences on a runner, and the clocks
    operations.py  where the time of a step goes, and the bytes each operation must read
    ceiling.py     how fast the device reads memory at all
    update.py      what changing a graph for every token costs
    synthetic.py   models of random weights
    report.py      the table, the JSON file, the plot
    graphs.py      samples a second with and without graphs, of encoders and decoders; graphs_report.py shows them
    breakdown.py   a step's wall clock: launching, kernels, idle
    samples.py     the sentences that graphs.py runs over
    check.py       a run against an earlier one on the same card

Measures through the public methods of the runner, the engine and the device.
"""
