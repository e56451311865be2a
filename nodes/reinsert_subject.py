"""LikenessReinsertSubject: paint the taught subject where an object was; LikenessReinsertOptions: how exactly."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..segmentation.prompts import with_token
from .host import reinsert
from .host.conditioning import encode_text
from .rows import sampling_inputs, seed_input
from .types import LoraModel, ReinsertOptions


class LikenessReinsertSubject(io.ComfyNode):
    """A scene, a mask, and a model that knows the subject -> the subject in the scene."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and order are the contract of saved workflows."""
        return io.Schema(
            node_id="LikenessReinsertSubject",
            display_name="Reinsert Subject (Likeness)",
            category="Likeness/segmentation",
            description="Paints a taught subject into a scene, where an object of its class was (Image-Alchemy): the "
            "scene keeps what the base model composed, the subject comes from the LoRA. Chain one node a subject.",
            is_output_node=True,
            inputs=[
                io.Image.Input("base", tooltip="The scene. Where the mask is 0 it stays as it is, bit for bit."),
                io.Mask.Input("mask", tooltip="Where the subject goes, e.g. from Grounded Segment or Blur Subject."),
                io.Model.Input("model", tooltip="The model; with the subject's LoRA in it, or connect lora."),
                io.Clip.Input("clip", tooltip="Reads the prompts."),
                io.Vae.Input("vae", tooltip="Encodes and decodes the pictures."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="a photo of a dog on a bench",
                    tooltip="The scene's prompt. Its class noun becomes the token.",
                ),
                io.String.Input(
                    "class_noun",
                    default="dog",
                    tooltip="The word in the prompt that stands for the subject. Empty: the prompt is used as it is.",
                ),
                io.String.Input(
                    "token", default="sks dog", tooltip="What the subject was taught as: it takes the noun's place."
                ),
                io.Combo.Input(
                    "mode",
                    options=list(reinsert.MODES),
                    default=reinsert.MASKED,
                    tooltip="whole picture: img2img of all of it (the paper). masked: only the mask, melted in. crop "
                    "and stitch: a piece around the mask at full size, for small subjects.",
                ),
                io.Float.Input(
                    "denoise",
                    default=0.8,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="How far the picture is noised before it is painted: more changes more.",
                ),
                seed_input("Of the noise; each further picture of a batch has one more."),
                *sampling_inputs(30),
                io.Image.Input(
                    "blurred",
                    optional=True,
                    tooltip="What painting begins with, from Blur Subject. None: the scene itself.",
                ),
                LoraModel.Input("lora", optional=True, tooltip="The subject's LoRA, applied here and nowhere else."),
                io.String.Input("negative", optional=True, default="", tooltip="What is not to be painted."),
                ReinsertOptions.Input("options", optional=True, tooltip="From Reinsert Options (Likeness)."),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The scenes with the subject, as many as in base."),
                io.Mask.Output(display_name="mask", tooltip="What was painted, and how much of it was taken."),
                io.String.Output(display_name="report", tooltip="The prompt, and of each picture what was done."),
            ],
        )

    @classmethod
    def execute(
        cls,
        base: Any,
        mask: Any,
        model: Any,
        clip: Any,
        vae: Any,
        prompt: str,
        class_noun: str,
        token: str,
        mode: str,
        denoise: float,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        blurred: Any = None,
        lora: Any = None,
        negative: str = "",
        options: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        """Apply, encode, paint, report."""
        how = reinsert.How(mode, seed, steps, cfg, sampler_name, scheduler, denoise, **(options or {}))
        asked = with_token(prompt, class_noun, token)
        model, clip, hooks = reinsert.with_lora(model, clip, lora, how)
        texts = [reinsert.hooked(encode_text(clip, text), hooks) for text in (asked, negative)]
        painter = reinsert.Painter(model, vae, *texts)
        done = reinsert.reinsert(painter, base, base if blurred is None else blurred, mask, how)
        report = "\n".join([f"**{asked}**", "", *(f"- {line}" for line in done.lines)])
        return io.NodeOutput(done.pictures, done.masks, report, ui=ui.PreviewImage(done.pictures, cls=cls))


class LikenessReinsertOptions(io.ComfyNode):
    """What Reinsert Subject knows besides."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and order are the contract of saved workflows."""
        return io.Schema(
            node_id="LikenessReinsertOptions",
            display_name="Reinsert Options (Likeness)",
            category="Likeness/segmentation",
            description="How strong the LoRA is and when, how the mask is softened, and how a piece is cut out.",
            inputs=[
                io.Float.Input(
                    "lora_strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Of the LoRA that is connected to Reinsert Subject.",
                ),
                io.String.Input(
                    "strength_ranges",
                    default="",
                    placeholder="0-0.3: 0.5, 0.3-1: 1",
                    tooltip="Factors of the strength by share of the sampling: 0-0.3: 0.5, 0.3-1: 1 lets the scene "
                    "settle first. Empty: 1 throughout.",
                ),
                io.Int.Input(
                    "mask_grow", default=0, min=-512, max=512, tooltip="Pixels that the mask is grown by first."
                ),
                io.Int.Input("mask_feather", default=0, min=0, max=512, tooltip="Pixels of a soft edge of the mask."),
                io.Boolean.Input(
                    "differential",
                    default=True,
                    tooltip="Differential diffusion: where the mask is soft, painting begins later. Off: all that is "
                    "masked at all is painted from the first step.",
                ),
                io.Float.Input(
                    "crop_context",
                    default=1.6,
                    min=1.0,
                    max=10.0,
                    step=0.1,
                    tooltip="Crop and stitch: sides of the piece, of the masked part's longer side.",
                ),
                io.Int.Input(
                    "crop_size",
                    default=0,
                    min=0,
                    max=4096,
                    step=8,
                    tooltip="Crop and stitch: the piece is painted at this size; best the one that the model was "
                    "trained at. 0: the picture's own longer side.",
                ),
            ],
            outputs=[ReinsertOptions.Output(display_name="options", tooltip="For options of Reinsert Subject.")],
        )

    @classmethod
    def execute(
        cls,
        lora_strength: float,
        strength_ranges: str,
        mask_grow: int,
        mask_feather: int,
        differential: bool,
        crop_context: float,
        crop_size: int,
    ) -> io.NodeOutput:
        """Gather the inputs."""
        return io.NodeOutput(
            {
                "strength": lora_strength,
                "ranges": strength_ranges,
                "grow": mask_grow,
                "feather": mask_feather,
                "differential": differential,
                "context": crop_context,
                "size": crop_size,
            }
        )
