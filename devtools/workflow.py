"""The converter lies in experiments/, which ships with the pack; devtools and tests know it by this name too."""

from __future__ import annotations

from ..experiments.workflow import find, set_inputs, to_api, widget_values

__all__ = ["find", "set_inputs", "to_api", "widget_values"]
