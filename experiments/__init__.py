"""Sweeps: one graph, many values, a table that can be trusted. Imports metrics, and lora's writer of whole files.

`python experiments/run.py sweep.json --host http://127.0.0.1:8188 --folder out` runs one; docs/experiments.md says how.
"""
