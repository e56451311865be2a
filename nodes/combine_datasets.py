"""LikenessCombineDatasets: several subjects in one training run."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainers.sheet import preview_sheet
from ..trainers.subjects import combined
from . import host
from .types import Dataset

MOST = 8


class LikenessCombineDatasets(io.ComfyNode):
    """Several datasets as one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and order are the contract of saved workflows."""
        return io.Schema(
            node_id="LikenessCombineDatasets",
            display_name="Combine Datasets (Likeness)",
            category="Likeness/trainers",
            description="Several subjects, each with its own trigger word, learnt in one run and kept in one LoRA.",
            inputs=[
                io.Boolean.Input(
                    "balance",
                    default=True,
                    tooltip="Each subject is seen as often as the others, however many pictures it has. Off: each "
                    "picture is seen as often as the others, times its dataset's repeats.",
                ),
                Dataset.Input("dataset_1", tooltip="The first subject, from Dataset (Likeness)."),
                *(
                    Dataset.Input(f"dataset_{number}", optional=True, tooltip="Another subject with its own trigger.")
                    for number in range(2, MOST + 1)
                ),
            ],
            outputs=[
                Dataset.Output(display_name="dataset", tooltip="For the dataset input of Train LoRA."),
                io.Image.Output(display_name="preview", tooltip="The pictures of all subjects, with captions."),
            ],
        )

    @classmethod
    def execute(cls, balance: bool, **datasets: Any) -> io.NodeOutput:
        """Combine what is wired, in the order of the inputs."""
        wired = [datasets.get(f"dataset_{number}") for number in range(1, MOST + 1)]
        pictures = combined([one for one in wired if one is not None], balanced=balance)
        with host.ordinary_tensors():
            return io.NodeOutput(pictures, preview_sheet(pictures))
