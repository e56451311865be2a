"""Methods against each other on subjects and styles that no base model has seen, scored by their true pictures.

`python -m tinyworld.bench` writes tinyworld/RESULTS.md. The graphs here also serve benchmarks/compare_*.py.
"""
