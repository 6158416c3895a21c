"""CUDA graphs: stream capture, replay, and inspection node by node."""
