"""LikenessTokenPrior: which of some words does the model know least?"""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from .host.drawn import How
from .host.prior import TOGETHER
from .host.token_prior import measure_prior, words_of
from .rows import sampling_inputs, seed_input
from .types import MetricModel

_SEEDS = 1 << 64


class LikenessTokenPrior(io.ComfyNode):
    """Words -> how alike the pictures are that the model draws for each."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and order are the contract of saved workflows."""
        return io.Schema(
            node_id="LikenessTokenPrior",
            display_name="Token Prior (Likeness)",
            category="Likeness/trainers",
            description="Draws pictures for each candidate word, with the same seeds, and chooses the word whose "
            "pictures differ most: the model has the weakest prior for it, so it makes a good trigger word.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="The model that is to be taught, without LoRAs."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                io.Vae.Input("vae", tooltip="Its VAE."),
                io.String.Input(
                    "words",
                    multiline=True,
                    default="sks, ohwx, iklan, ffin, rrrr",
                    tooltip="Candidates, one a line or between commas, e.g. from Find Rare Tokens (Likeness). A "
                    "word that the model knows well, such as dog, shows what a strong prior looks like.",
                ),
                io.String.Input(
                    "template",
                    default="a photo of {word}",
                    tooltip="The prompt; {word} is the candidate. {word} alone asks for the word itself.",
                ),
                seed_input("Of the first picture of every word; the next has the next one."),
                io.Int.Input(
                    "pictures",
                    default=4,
                    min=2,
                    max=64,
                    tooltip="Of each word. 2 show nothing but a tendency; 4 to 8 tell differences from chance.",
                ),
                *sampling_inputs(),
                io.Int.Input("width", default=512, min=16, max=16384, step=8, tooltip="Width in pixels."),
                io.Int.Input("height", default=512, min=16, max=16384, step=8, tooltip="Height in pixels."),
                io.String.Input("negative", optional=True, default="", tooltip="The negative prompt of all pictures."),
                MetricModel.Input(
                    "metric_model",
                    optional=True,
                    tooltip="A network that compares pictures by what is in them. Adds feature variance to the table, "
                    "which decides between words of the same SSIM.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="word", tooltip="The chosen one: lowest mean SSIM."),
                io.Image.Output(
                    display_name="sheet", tooltip="A row a word, weakest prior first. A column has one seed."
                ),
                io.String.Output(
                    display_name="table",
                    tooltip="Markdown: mean SSIM of each word, how sure the difference is, a warning where it is not.",
                ),
                io.String.Output(display_name="json", tooltip="The same with every pair of pictures, for programs."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        words: str,
        template: str,
        seed: int,
        pictures: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        width: int,
        height: int,
        negative: str = "",
        metric_model: Any = None,
    ) -> io.NodeOutput:
        """Draw, compare, choose."""
        found = measure_prior(
            model,
            clip,
            vae,
            words_of(words),
            template,
            [(seed + number) % _SEEDS for number in range(pictures)],
            How(negative, steps, cfg, sampler_name, scheduler, width, height, min(pictures, TOGETHER)),
            metric_model,
            cls.hidden.unique_id,
        )
        return io.NodeOutput(found.word, found.sheet, found.table, found.json, ui=ui.PreviewImage(found.sheet, cls=cls))
