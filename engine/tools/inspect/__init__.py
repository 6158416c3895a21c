"""`ostinato inspect`: what a decode step consists of once it is recorded, and how long every node of it takes.

    command.py   the command line
    step.py      what is looked at: nodes, edges, which operation of which layer each node is of
    timing.py    the time of every node, and whether the times add up to a replay's
    group.py     layers that are the same, described once
    table.py     the tables, and JSON
    dot.py       a file for graphviz
    picture.py   one layer drawn, and where the time goes

The driver is asked through engine/graph/cuda_graph.py; everything here is plain data once a step was opened.
"""
