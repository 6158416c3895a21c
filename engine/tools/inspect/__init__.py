"""`ostinato inspect`: the nodes and edges of a captured decode step, and the time of every node.

    command.py   the command line
    step.py      the data: nodes, edges, and the operation and layer of each node
    timing.py    the time of every node, checked against the time of a replay
    group.py     groups identical layers
    table.py     tables and JSON
    dot.py       a file for graphviz
    picture.py   a drawing of one layer, and the time by operation

Nodes and edges are read through engine/graph/cuda_graph.py; the rest of this folder works on plain data.
"""
