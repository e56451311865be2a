"""How each method learns. Takes tensors, paths, frozen dataclasses and callbacks; knows nothing of the host."""
