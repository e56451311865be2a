"""LikenessTrainLoRARar: from a library of LoRAs to a hypernetwork that merges any two of their kind."""

from __future__ import annotations

from typing import Any

import folder_paths
from comfy_api.latest import io, ui

from ..merging.selection import select_files
from ..trainers.config import TrainingConfig
from .host.rar import Library, learn_rar
from .merge_sources import files_fingerprint
from .rows import seed_input, size_inputs
from .types import HyperNetworkSocket, TrainingOptions
from .zip_lora import NOT_OURS


class LikenessTrainLoRARar(io.ComfyNode):
    """Teach a hypernetwork."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and order are the contract of saved workflows."""
        return io.Schema(
            node_id="LikenessTrainLoRARar",
            display_name="Train LoRA.rar (Likeness)",
            category="Likeness/merging",
            description="Teaches a small network to merge subjects with styles, from a folder of subject LoRAs and a "
            "folder of style LoRAs of one model. Afterwards LoRA.rar (Likeness) merges any two in a moment, those that "
            "it never saw, too. Cancel keeps the state to resume from.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="The base model, without any of the LoRAs."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                io.Vae.Input("vae", tooltip="Its VAE."),
                io.String.Input(
                    "subjects",
                    default="subjects/*",
                    multiline=True,
                    tooltip="LoRAs of subjects below models/loras, a line each: a file, a folder, or a pattern such as "
                    "subjects/*. 20 and more.",
                ),
                io.String.Input(
                    "styles",
                    default="styles/*",
                    multiline=True,
                    tooltip="LoRAs of styles, likewise. What shows a LoRA: the lines of a .txt beside it, or the "
                    "captions it was trained on; with a folder of its name beside it, the pictures in there.",
                ),
                io.Int.Input(
                    "steps", default=1000, min=1, max=1_000_000, tooltip="A pair a step. Some tens for each LoRA."
                ),
                io.Float.Input(
                    "learning_rate", default=0.01, min=1e-9, max=100.0, step=0.001, round=1e-9, tooltip="0.01 is usual."
                ),
                io.Float.Input(
                    "cosine_weight",
                    default=0.01,
                    min=0.0,
                    max=1e6,
                    step=0.001,
                    round=1e-9,
                    tooltip="λ: how strongly the coefficients of the two LoRAs are pushed apart.",
                ),
                io.Int.Input(
                    "held_out",
                    default=2,
                    min=0,
                    max=1000,
                    tooltip="The last subjects and the last styles are only measured: the report says how well LoRAs "
                    "are merged that it never saw.",
                ),
                seed_input("Decides all that is random. The same seed gives the same hypernetwork."),
                io.String.Input(
                    "filename", default="likeness/my_hypernetwork", tooltip="Below models/hypernetworks, no ending."
                ),
                *size_inputs(),
                TrainingOptions.Input(
                    "options", optional=True, tooltip="From Training Options (Likeness): schedule, memory, checkpoints."
                ),
                io.String.Input(
                    "run_name", optional=True, default="", tooltip="Name of the run's folder. Empty: by the time."
                ),
                io.String.Input(
                    "resume_from", optional=True, default="", tooltip="Name of a run: goes on from there exactly."
                ),
            ],
            outputs=[
                HyperNetworkSocket.Output(display_name="hypernetwork", tooltip="For the trained input of LoRA.rar."),
                io.Image.Output(display_name="loss_curve", tooltip="Loss over steps, smoothed and raw."),
                io.String.Output(
                    display_name="report", tooltip="Held-out pairs beside a plain sum, time and size. Markdown."
                ),
                io.String.Output(display_name="path", tooltip="Where the hypernetwork was written."),
                io.String.Output(display_name="run_folder", tooltip="Where its copy and the state are."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, subjects: str = "", styles: str = "", **_: Any) -> str:
        """LoRAs that were replaced are read again."""
        return f"{files_fingerprint(subjects or '')} {files_fingerprint(styles or '')}"

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        subjects: str,
        styles: str,
        steps: int,
        learning_rate: float,
        cosine_weight: float,
        held_out: int,
        seed: int,
        filename: str,
        width: int = 512,
        height: int = 512,
        options: dict[str, Any] | None = None,
        run_name: str = "",
        resume_from: str = "",
    ) -> io.NodeOutput:
        """Teach."""
        there = folder_paths.get_filename_list("loras")
        chosen = [tuple(name for name, _ in select_files(text, there)) for text in (subjects, styles)]
        shown = {"steps": steps, "learning_rate": learning_rate, "seed": seed, "rank": 1}
        kept = {name: value for name, value in (options or {}).items() if name not in NOT_OURS}
        run = learn_rar(
            model,
            clip,
            vae,
            Library(chosen[0], chosen[1], held_out),
            TrainingConfig.from_mapping({"checkpoint_every": 100, **kept, **shown}),
            cosine_weight,
            (width, height),
            filename,
            run_name=run_name,
            resume_from=resume_from,
            node_id=cls.hidden.unique_id,
        )
        return io.NodeOutput(
            run.network, run.curve, run.report, str(run.path), str(run.folder), ui=ui.PreviewImage(run.curve, cls=cls)
        )
