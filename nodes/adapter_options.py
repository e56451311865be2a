"""LikenessAdapterOptions: what kind of LoRA is trained, how it begins, and what single layers get."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..trainers.config import ALGORITHMS, INITS, TrainingConfig
from . import host
from .types import TrainingOptions


class LikenessAdapterOptions(io.ComfyNode):
    """Algorithm, init and rules of a training run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and order are the contract of saved workflows."""
        standard = TrainingConfig()
        return io.Schema(
            node_id="LikenessAdapterOptions",
            display_name="Adapter Options (Likeness)",
            category="Likeness/trainers",
            is_output_node=True,  # or its text is gone when the page is loaded again
            description="More options of Train LoRA: the algorithm (LoRA, DoRA, LoHa, LoKr, OFT, AdaLoRA), how it "
            "begins, and ranks and learning rates of single layers. ComfyUI's own LoRA loader reads what each of them "
            "saves.",
            inputs=[
                io.Combo.Input(
                    "algorithm",
                    options=[name for name in ALGORITHMS if name != "adaptive"],  # which has a node of its own
                    default=standard.algorithm,
                    tooltip="lora: the usual one. dora: learns size and direction apart, slower. loha: more rank in "
                    "the same size. lokr: very small files. oft: turns what is there, adds nothing. adalora: begins "
                    "with the rank and ends with target_rank on average, more where it matters.",
                ),
                io.Combo.Input(
                    "init",
                    options=list(INITS),
                    default=standard.init,
                    tooltip="How LoRA and DoRA begin. kaiming: the usual one. pissa, olora (LoRA only): from the "
                    "model's own strongest directions, which learns faster; the file has twice the rank.",
                ),
                io.Boolean.Input(
                    "rank_stabilised",
                    default=standard.rank_stabilised,
                    tooltip="Scale by alpha / √rank in place of alpha / rank (rsLoRA): large ranks learn as fast as "
                    "small ones. LoRA and DoRA. Lower alpha then.",
                ),
                io.Float.Input(
                    "dropout",
                    default=standard.dropout,
                    min=0.0,
                    max=0.99,
                    step=0.01,
                    round=0.001,
                    tooltip="Share of each layer's input that LoRA and DoRA do not see in a step. 0.1 against "
                    "learning a few pictures by heart; 0 turns it off.",
                ),
                io.Int.Input(
                    "lokr_factor",
                    default=standard.lokr_factor,
                    min=-1,
                    max=1024,
                    tooltip="With lokr: size of its small matrix. -1: the smallest file. 4 to 16: more capacity.",
                ),
                io.String.Input(
                    "layer_rules",
                    default=standard.layer_rules,
                    multiline=True,
                    tooltip="A line a rule: a regular expression of layer names, then rank=, alpha= or lr= (a factor "
                    r"of the learning rate), such as attn2\.to_[kv]$ rank=4 lr=0.5. The first that matches counts. "
                    "rank=0 leaves layers out.",
                ),
                TrainingOptions.Input(
                    "options",
                    optional=True,
                    tooltip="Options to start from. Everything shown on this node overrides them.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="Wire the model to see in the report how many layers each rule decides.",
                ),
                io.Int.Input(
                    "target_rank",
                    default=standard.target_rank,
                    min=0,
                    max=4096,
                    optional=True,
                    tooltip="With adalora: the mean rank that it keeps, below rank. 0: half of it.",
                ),
                io.Float.Input(
                    "loraplus_ratio",
                    default=standard.loraplus_ratio,
                    min=0.01,
                    max=1024.0,
                    step=0.5,
                    round=0.01,
                    optional=True,
                    tooltip="LoRA+: the learning rate of up (B) is so many times that of down (A), which is the one on "
                    "Train LoRA. LoRA and DoRA. 1: the same for both. Lower learning_rate when you raise it.",
                ),
            ],
            outputs=[
                TrainingOptions.Output(display_name="options", tooltip="For the options input of Train LoRA."),
                io.String.Output(display_name="report", tooltip="What was chosen, and the layers that it meets."),
            ],
        )

    @classmethod
    def execute(cls, options: dict[str, Any] | None = None, model: Any = None, **shown: Any) -> io.NodeOutput:
        """Lay what the node shows over the options it was given."""
        chosen = {**(options or {}), **shown}
        report = host.describe_options(TrainingConfig.from_mapping(chosen), model)
        return io.NodeOutput(chosen, report, ui=ui.PreviewText(report))
