"""`ostinato bench`: what a decode step costs, and how far that is from what reading its bytes costs.

    decode.py      which combinations are measured, and the proof that the path that was asked for is the one that ran
    session.py     a batch of sequences on a runner, and the clocks
    operations.py  where the time of a step goes, and the bytes each operation must read
    ceiling.py     how fast the device reads memory at all
    update.py      what changing a graph for every token costs
    synthetic.py   models of random weights
    report.py      the table, the JSON file, the plot

Called by cli.py; measures through the public methods of the runner, the loop and the device.
"""
