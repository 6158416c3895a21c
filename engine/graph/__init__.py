"""CUDA graphs: recorded once by stream capture, replayed, opened node by node."""
