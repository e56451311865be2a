"""LikenessLoRARar: a subject's LoRA and a style's into one in no time, by predicted coefficients."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io, ui

from ..lora.columns import low_rank_layers
from ..merging.align import Source
from ..merging.column_plot import column_plot
from ..merging.columns import columns_table, merge_columns
from ..merging.lora_rar import HyperNetwork, Predicted, load_network, predict_columns
from . import host
from .host.rar import HYPERNETWORKS
from .merge_sources import merge_sources
from .types import HyperNetworkSocket, LoraModel

NONE = "(connected)"


class LikenessLoRARar(io.ComfyNode):
    """Predict how much of each column of each LoRA is to be kept."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and order are the contract of saved workflows."""
        return io.Schema(
            node_id="LikenessLoRARar",
            display_name="LoRA.rar (Likeness)",
            category="Likeness/merging",
            description="Merges a subject's LoRA and a style's into one ordinary LoRA by coefficients that a "
            "hypernetwork predicts in a moment: no pictures, no prompt, no training (LoRA.rar). The hypernetwork is "
            "made by Train LoRA.rar, or is your copy of the authors' hypernet.pth.",
            is_output_node=True,
            inputs=[
                LoraModel.Input("subject_lora", tooltip="A subject's LoRA, e.g. from Load LoRA (Likeness)."),
                LoraModel.Input("style_lora", tooltip="A style's LoRA. The order matters: the subject comes first."),
                io.Combo.Input(
                    "hypernetwork",
                    options=[NONE, *folder_paths.get_filename_list(HYPERNETWORKS)],
                    tooltip="A file in models/hypernetworks: of Train LoRA.rar (Likeness), or the authors' "
                    "hypernet.pth, for SDXL. (connected): the one on trained.",
                ),
                HyperNetworkSocket.Input(
                    "trained", optional=True, tooltip="From Train LoRA.rar (Likeness); used in place of the file."
                ),
                io.Model.Input("model", optional=True, tooltip="The model they are for: every layer is checked."),
            ],
            outputs=[
                LoraModel.Output(
                    display_name="lora", tooltip="The merged LoRA, its ranks added up, for Save or Apply Merged LoRA."
                ),
                io.Image.Output(display_name="coefficients", tooltip="How many columns are kept how much, and where."),
                io.String.Output(
                    display_name="report", tooltip="Time taken, coefficients by block, which layers were left as is."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, hypernetwork: str = NONE, **_: Any) -> str:
        """A file that was replaced is read again."""
        path = folder_paths.get_full_path(HYPERNETWORKS, hypernetwork)
        return "" if path is None else f"{Path(path).stat().st_mtime_ns} {Path(path).stat().st_size}"

    @classmethod
    def execute(
        cls, subject_lora: Any, style_lora: Any, hypernetwork: str, trained: Any = None, model: Any = None
    ) -> io.NodeOutput:
        """Predict, merge, report."""
        network = trained if trained is not None else _read(hypernetwork)
        layers = host.model_layers(model) if model is not None else None
        sources = merge_sources([("subject", subject_lora), ("style", style_lora)], "", "1", layers)
        with host.ordinary_tensors():
            pairs = [_layers(source) for source in sources]
            began = time.perf_counter()
            found = predict_columns(network, *pairs)
            seconds = time.perf_counter() - began
            about = {"hypernetwork": dict(network.about), "layers": len(found.columns)}
            lora, _ = merge_columns(sources, found.columns, "LoRA.rar", about)
            names = [source.name for source in sources]
            plot = column_plot(found.columns, names, "LoRA.rar")
        report = rar_report(found, names, network, seconds)
        return io.NodeOutput(lora, plot, report, ui=ui.PreviewImage(plot, cls=cls))


def _read(name: str) -> HyperNetwork:
    if name == NONE:
        raise ValueError(
            "There is no hypernetwork: choose a file of models/hypernetworks, or connect Train LoRA.rar to trained."
        )
    return load_network(Path(folder_paths.get_full_path_or_raise(HYPERNETWORKS, name)))


def _layers(source: Source) -> Mapping[str, Any]:
    try:
        return low_rank_layers(source.tensors)
    except ValueError as error:
        raise ValueError(f"{source.name}: {error}") from error


def rar_report(found: Predicted, names: Sequence[str], network: HyperNetwork, seconds: float) -> str:
    """What was predicted, in markdown."""
    widths = ", ".join(map(str, network.widths))
    kind = "trained with Train LoRA.rar (Likeness)" if network.normalised else "the published kind"
    lines = [
        f"# LoRA.rar of {names[0]} and {names[1]}",
        f"Coefficients of {len(found.columns)} layers in {1000 * seconds:.1f} ms, by a hypernetwork for layers of the "
        f"widths {widths} ({kind}).",
        "\n".join(
            ["Left as they were, both LoRAs in full:", ""]
            + [f"- {len(layers)} layers {why}" for why, layers in found.left.items()]
        )
        if found.left
        else "",
        "## Coefficients",
        columns_table(found.columns, names),
    ]
    return "\n\n".join(line for line in lines if line) + "\n"
