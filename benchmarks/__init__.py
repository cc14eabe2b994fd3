"""Measurements: each file is a command, `python -m edgeseg.benchmarks.NAME --help`, and takes --json."""
