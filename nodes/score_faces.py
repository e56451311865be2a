"""LikenessScoreFaces: are they the same person's faces, and is there a face at all?"""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..metrics.rows import Rows
from .host.score_faces import NO_NETWORK, face_rows
from .host.scores import as_pictures, label_inputs, labels, network_files, score_outputs, scored


class LikenessScoreFaces(io.ComfyNode):
    """Pictures against references -> face distance, face similarity, how many have no face."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and order are the contract of saved workflows."""
        return io.Schema(
            node_id="LikenessScoreFaces",
            display_name="Score Faces (Likeness)",
            category="Likeness/metrics",
            description="Finds the largest face of each picture and compares it with the references'. Pictures without "
            "a face are counted apart and stay out of the means.",
            is_output_node=True,
            inputs=[
                io.Image.Input("pictures", tooltip="Generated pictures of a person."),
                io.Image.Input("references", optional=True, tooltip="Photos of the person. Without: only counts."),
                io.Combo.Input(
                    "distance_network",
                    options=[NO_NETWORK, *network_files(".pt", ".pth")],
                    tooltip="FaceNet's weights in models/metrics, e.g. 20180402-114759-vggface2.pt: face distance, "
                    "0 to 2, lower.",
                ),
                io.Combo.Input(
                    "similarity_network",
                    options=[NO_NETWORK, *network_files(".onnx")],
                    tooltip="An ArcFace-type network in ONNX in models/metrics: cosine, −1 to 1, higher. Needs "
                    "onnxruntime.",
                ),
                *label_inputs(),
            ],
            outputs=[
                *score_outputs(),
                io.Image.Output(
                    display_name="faces", tooltip="The face found in each picture, 160 × 160; grey where there is none."
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        pictures: Any,
        distance_network: str,
        similarity_network: str,
        references: Any = None,
        metrics: Rows = (),
        method: str = "",
        subject: str = "",
        step: int = 0,
    ) -> io.NodeOutput:
        """Find, embed, compare."""
        known = None if references is None else as_pictures(references, "references")
        about = labels(method, subject, step)
        made = as_pictures(pictures, "pictures")
        rows, faces = face_rows(made, known, distance_network, similarity_network, about)
        return scored(metrics, rows, faces)
