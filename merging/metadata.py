"""What a merged LoRA says of itself: what it was merged from, how, and everybody's trigger words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from torch import Tensor

from ..lora.lazy import LoraFile
from ..lora.metadata import RES_BLOCKS, model_hash
from ..lora.model import metadata_of
from .align import Source
from .layer_weights import LayerWeights
from .methods import METHODS
from .options import MergeOptions

MERGED_FROM = "likeness.merged_from"
"""A JSON object: method, its options, the layer weights, and of each LoRA name, hash, weight and trigger."""
_OF_THE_BASE = (
    *("ss_base_model_version", "ss_sd_model_name", "ss_v2", "modelspec.architecture", "modelspec.implementation"),
    *("modelspec.prediction_type", "modelspec.resolution", RES_BLOCKS),
)


def merged_metadata(
    sources: Sequence[Source], options: MergeOptions, rules: Sequence[LayerWeights], tensors: Mapping[str, Tensor]
) -> dict[str, str]:
    """Text pairs for the merged LoRA.

    What the LoRAs say of their base model is kept where all that say it agree; what is of one training alone is not.
    The hash is the file's own sshs_model_hash, computed where it has none; of a LoRA that is no ``LoraFile`` all is
    held at once for it.
    """
    theirs = [metadata_of(source.tensors) for source in sources]
    out: dict[str, str] = {}
    for key in _OF_THE_BASE:
        if len(said := {one[key] for one in theirs if key in one}) == 1:
            out[key] = said.pop()
    triggers = [one.get("likeness.trigger") or one.get("modelspec.trigger_phrase", "") for one in theirs]
    if together := ", ".join(dict.fromkeys(filter(None, triggers))):
        out |= {"likeness.trigger": together, "modelspec.trigger_phrase": together}
        out["modelspec.usage_hint"] = f"trigger words: {together}"
    record = {
        "method": options.method,
        "scale": options.scale,
        "output": options.output.text,
        **{name: getattr(options, name) for name in METHODS[options.method].uses},
        "layer_weights": [{"layers": rule.pattern, "factors": list(rule.factors)} for rule in rules],
        "loras": [
            {
                "name": source.name,
                "hash": one.get("sshs_model_hash") or _hash(source),
                "weight": source.weight,
                "trigger": trigger,
            }
            for source, one, trigger in zip(sources, theirs, triggers, strict=True)
        ],
    }
    out[MERGED_FROM] = json.dumps(record, ensure_ascii=False)
    if len({len(tensor) for key, tensor in tensors.items() if key.endswith(".lora_down.weight")}) > 1:
        out["ss_network_dim"] = out["ss_network_alpha"] = "Dynamic"  # sd-scripts' own word for it
    names = " + ".join(f"{source.weight:g} · {source.name}" for source in sources)
    out["ss_training_comment"] = f"merged with Likeness by {options.method}: {names}"
    return out


def _hash(source: Source) -> str:
    return source.tensors.file_hash() if isinstance(source.tensors, LoraFile) else model_hash(source.tensors)
