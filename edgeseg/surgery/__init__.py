"""Rewriting ONNX graphs: what a graph is known to compute, its tail cut off, pixels put in front."""
