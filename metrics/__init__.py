"""How a picture, or a set of pictures, is scored. Imports no other room; `registry.METRICS` lists what there is."""
