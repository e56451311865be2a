"""LikenessMergeLoRAs: several LoRAs into one."""

from __future__ import annotations

from typing import Any

import comfy.utils
import torch
from comfy_api.latest import io, ui

from ..lora import suffixes
from ..lora.load import DTYPES
from ..lora.model import LoraTensors
from ..merging import options as merging
from ..merging.heat_map import merge_heat_map
from ..merging.layer_weights import parse_layer_weights
from ..merging.merge import merge_loras
from ..merging.methods import METHODS
from ..merging.report import merge_json, merge_report
from . import host
from .host.base_weights import base_weights
from .merge_sources import files_fingerprint, merge_sources
from .rows import seed_input
from .types import LoraModel, MergeOptions

MOST = 16
"""Sockets; the page shows one more than are connected (web/merge_sockets.js). Files have no limit."""


class LikenessMergeLoRAs(io.ComfyNode):
    """LORA_MODELs and files -> one LORA_MODEL, and what happened to each layer."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and order are the contract of saved workflows."""
        standard = merging.MergeOptions()
        return io.Schema(
            node_id="LikenessMergeLoRAs",
            display_name="Merge LoRAs (Likeness)",
            category="Likeness/merging",
            description="Merges any number of LoRAs, of every kind and rank, into one ordinary LoRA. Works on what "
            "they change (ΔW), not on their factors, and says what was lost.",
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default=standard.method,
                    tooltip="linear: exactly what applying all of them gives. svd: the same, at its true rank. ties, "
                    "dare, dare-ties, della, breadcrumbs, magnitude: keep only part of each, so that less is in the "
                    "other's way. knots: the same in a shared basis. slerp, karcher: between them, at full strength. "
                    "model stock: nearer to the base, the less they agree.",
                ),
                io.String.Input(
                    "weights",
                    default="1",
                    tooltip="One number for all, or one for each LoRA: sockets first, then files, such as 1 0.8 -0.3. "
                    "Negative takes something away.",
                ),
                io.Float.Input(
                    "density",
                    default=standard.density,
                    min=0.001,
                    max=1.0,
                    step=0.05,
                    round=0.0001,
                    tooltip="Share of each LoRA's entries that is kept. Of ties, dare, dare-ties, della, breadcrumbs, "
                    "magnitude and knots. 0.2 is sparse, 1 keeps all.",
                ),
                io.Combo.Input(
                    "output_rank",
                    options=list(merging.RANKS),
                    default=standard.output.mode,
                    tooltip="exact: nothing is lost; with linear the sum of the ranks, with ties and the like nearly "
                    "full rank, a large file. number: at most rank. energy: as much as Merge Options says. auto: 99% "
                    "of each layer, and never more than the sum of the ranks.",
                ),
                io.Int.Input(
                    "rank",
                    default=standard.output.rank,
                    min=1,
                    max=4096,
                    tooltip="For output_rank number: no layer has more than this.",
                ),
                seed_input("Of dare, dare-ties, della and knots-dare-ties: which entries are dropped."),
                io.String.Input(
                    "files",
                    default="",
                    multiline=True,
                    optional=True,
                    placeholder="files below models/loras, a line each: style/ink 0.6, a folder, or a pattern: style/*",
                    tooltip="LoRAs from models/loras, after those on the sockets. A line each: a file, a folder, or a "
                    "pattern such as style/*, and after it a weight if it is not 1.",
                ),
                MergeOptions.Input(
                    "options", optional=True, tooltip="Weights of blocks and layers, λ, precision: from Merge Options."
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model they are meant for: every layer is checked against it, and DoRA and OFT need it "
                    "to know what they change.",
                ),
                io.Clip.Input("clip", optional=True, tooltip="For DoRA and OFT of text encoders."),
                *(
                    LoraModel.Input(
                        f"lora_{number}",
                        optional=True,
                        tooltip="A LoRA, e.g. from Load LoRA (Likeness) or Train LoRA. One more socket appears when "
                        "the last is connected.",
                    )
                    for number in range(1, MOST + 1)
                ),
            ],
            outputs=[
                LoraModel.Output(display_name="lora", tooltip="For Save LoRA, Apply Merged LoRA, or Inspect LoRA."),
                io.String.Output(
                    display_name="report",
                    tooltip="Norms, cosines, opposite signs beside what chance gives, energy kept, ranks: over all, "
                    "by block, by layer. Markdown.",
                ),
                io.Image.Output(
                    display_name="heat_map",
                    tooltip="The same figures by block: who rules where, where LoRAs agree or fight, what was lost.",
                ),
                io.String.Output(display_name="json", tooltip="The report for programs."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, files: str | None = "", **_: Any) -> str:
        """A file that was replaced is read again."""
        return files_fingerprint(files or "")

    @classmethod
    def execute(
        cls,
        method: str,
        weights: str,
        density: float,
        output_rank: str,
        rank: int,
        seed: int,
        files: str = "",
        options: dict[str, Any] | None = None,
        model: Any = None,
        clip: Any = None,
        **loras: Any,
    ) -> io.NodeOutput:
        """Read, merge, report."""
        more = dict(options or {})
        rules = parse_layer_weights(more.pop("layer_weights", ""))
        dtype = DTYPES[more.pop("dtype", "fp32")]
        output = merging.OutputRank(output_rank, rank, more.pop("energy", merging.OutputRank().energy))
        how = merging.MergeOptions(**more, method=method, density=density, output=output, seed=seed)
        wired = [(f"lora_{i}", loras[f"lora_{i}"]) for i in range(1, MOST + 1) if loras.get(f"lora_{i}") is not None]
        bar = comfy.utils.ProgressBar(1)
        layers = host.model_layers(model) if model is not None else None
        sources = merge_sources(wired, files, weights, layers, bar.update_absolute)
        base = base_weights(model, clip) if model is not None else None
        merged, found = merge_loras(sources, how, rules, bar.update_absolute, base)
        plot = merge_heat_map(found, [source.name for source in sources], f"{len(sources)} LoRAs by {method}")
        return io.NodeOutput(
            _cast(merged, dtype),
            merge_report(sources, how, found, rules),
            plot,
            merge_json(sources, how, found, rules),
            ui=ui.PreviewImage(plot, cls=cls),
        )


def _cast(lora: LoraTensors, dtype: torch.dtype) -> LoraTensors:
    """alpha stays as it is: half precision would round it."""
    if dtype == torch.float32:
        return lora
    cast = {key: t if key.endswith(f".{suffixes.ALPHA}") else t.to(dtype) for key, t in lora.items()}
    if wrong := next((key for key, tensor in cast.items() if not bool(torch.isfinite(tensor).all())), None):
        raise ValueError(f"the tensor {wrong} has values too large for {dtype}; choose fp32 or bf16")
    return LoraTensors(cast, lora.metadata)
