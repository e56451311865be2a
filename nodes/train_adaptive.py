"""LikenessTrainAdaptiveLoRA: train a LoRA whose layers find the rank that they need."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..trainers.config import TRUNCATIONS, TrainingConfig
from ..trainers.rank_map import rank_map, rank_table
from . import host
from .rows import alpha_input
from .train import outlets, sockets
from .types import Prior, Samples


class LikenessTrainAdaptiveLoRA(io.ComfyNode):
    """Teach the model a subject, with a rank of its own for each layer."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and order are the contract of saved workflows."""
        standard = TrainingConfig()
        return io.Schema(
            node_id="LikenessTrainAdaptiveLoRA",
            display_name="Train Adaptive LoRA (Likeness)",
            category="Likeness/trainers",
            description="Trains a LoRA whose ranks are learnt, layer by layer (LoRA²): more where the subject needs "
            "it, less elsewhere, and a smaller file. The result is an ordinary LoRA. Draws which layer has which rank.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=sockets(
                [
                    io.Int.Input(
                        "target_rank",
                        default=4,
                        min=1,
                        max=4096,
                        tooltip="Where each layer's rank is pulled to, gently: layers that need more get more.",
                    ),
                    io.Int.Input(
                        "initial_rank",
                        default=8,
                        min=1,
                        max=4096,
                        tooltip="The rank that all layers begin with. How fast they learn does not depend on it.",
                    ),
                    alpha_input(
                        "How much the LoRA counts, whatever its ranks: as one of fixed rank with this alpha. Half of "
                        "it acts like half the learning rate."
                    ),
                    io.Float.Input(
                        "rank_lr",
                        default=standard.rank_lr,
                        min=1e-9,
                        max=100.0,
                        step=0.001,
                        round=1e-9,
                        tooltip="Learning rate of the ranks. Ten times larger: they settle within tens of steps. Ten "
                        "times smaller: they hardly move in a run of hundreds.",
                    ),
                    io.Float.Input(
                        "rank_weight",
                        default=standard.rank_weight,
                        min=0.0,
                        max=1e6,
                        step=1e-5,
                        round=1e-12,
                        tooltip="How strongly target_rank pulls. 0: not at all, and ranks tend to grow.",
                    ),
                    io.Float.Input(
                        "entropy_weight",
                        default=standard.entropy_weight,
                        min=0.0,
                        max=1e6,
                        step=1e-5,
                        round=1e-12,
                        tooltip="Keeps each part of the picture on few words, by the entropy of cross-attention. SD "
                        "and SDXL only; slower, and more memory. 1e-4 to try, 0 turns it off.",
                    ),
                    io.Combo.Input(
                        "export_truncation",
                        options=list(TRUNCATIONS),
                        default=standard.export_truncation,
                        tooltip="What the file keeps. quantile: exactly what was trained. energy: of each layer the "
                        "strongest directions that export_energy is in, which is smaller.",
                    ),
                    io.Float.Input(
                        "export_energy",
                        default=standard.export_energy,
                        min=0.001,
                        max=1.0,
                        step=0.001,
                        round=1e-6,
                        tooltip="With energy: the share of each layer's ‖ΔW‖² that the file keeps.",
                    ),
                ]
            ),
            outputs=[
                *outlets(),
                io.Image.Output(
                    display_name="rank_map", tooltip="The rank of each layer, self- and cross-attention apart."
                ),
                io.String.Output(
                    display_name="rank_table",
                    tooltip="JSON: rank, rank in the file, ν and norm of each layer, and the means.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        dataset: Any,
        initial_rank: int,
        options: dict[str, Any] | None = None,
        samples: Samples | None = None,
        run_name: str = "",
        resume_from: str = "",
        prior: Prior | None = None,
        weighting: str = "none",
        **shown: Any,
    ) -> io.NodeOutput:
        """Train."""
        chosen = options or {}
        if chosen.get("algorithm", "lora") != "lora":
            raise ValueError(
                f"The options ask for the algorithm {chosen['algorithm']!r}, and this node has one of its own. Set it "
                f"to 'lora' in Adapter Options, or use Train LoRA (Likeness)."
            )
        own = {"algorithm": "adaptive", "rank": initial_rank, "sample_every": samples.every if samples else 0}
        trained = host.train_lora(
            model,
            clip,
            vae,
            dataset,
            TrainingConfig.from_mapping({"weighting": weighting, **chosen, **shown, **own}),
            samples=samples,
            prior=prior,
            run_name=run_name,
            resume_from=resume_from,
            node_id=cls.hidden.unique_id,
        )
        assert trained.result is not None
        picture = rank_map(trained.result.ranks)
        table = rank_table(trained.result.ranks, trained.result.deltas)
        return io.NodeOutput(*trained.outputs(), picture, table, ui=ui.PreviewImage(picture, cls=cls))
