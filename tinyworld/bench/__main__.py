"""`python -m tinyworld.bench`, from the root of a clone."""

from __future__ import annotations

import importlib
import sys

if __name__ == "__main__":
    importlib.import_module("devtools.start").load_pack()
    try:
        sys.exit(importlib.import_module("likeness.tinyworld.bench.run").main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on")
