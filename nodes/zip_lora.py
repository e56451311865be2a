"""LikenessZipLoRA: a subject's LoRA and a style's into one, by learnt coefficients."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..trainers.config import TARGETS, TrainingConfig
from . import host
from .host.zipped import NOISE, WITHOUT_PICTURES, Asked, Drawing
from .rows import seed_input, size_inputs
from .types import Dataset, LoraModel, TrainingOptions

MOST = 4
NAMES = ("subject", "style", *(f"lora_{number}" for number in range(3, MOST + 1)))
NOT_OURS = (
    "layer_rules",
    "text_encoder_learning_rate",
    "ema_decay",
    "dropout",
    "init",
    "rank_stabilised",
    "loraplus_ratio",
    "algorithm",
)


class LikenessZipLoRA(io.ComfyNode):
    """Learn how much of each column of each LoRA is to be kept."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and order are the contract of saved workflows."""
        return io.Schema(
            node_id="LikenessZipLoRA",
            display_name="ZipLoRA (Likeness)",
            category="Likeness/merging",
            description="Merges a subject's LoRA and a style's into one ordinary LoRA that does both, by learning how "
            "much of each column of each is kept (ZipLoRA). Needs pictures or a prompt for each, and a few minutes. "
            "Cancel keeps what was learnt.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="The base model, without the LoRAs."),
                io.Clip.Input("clip", tooltip="Its text encoder, without the LoRAs."),
                io.Vae.Input("vae", tooltip="Its VAE."),
                LoraModel.Input("subject_lora", tooltip="A LoRA, e.g. from Load LoRA (Likeness) or Train LoRA."),
                io.String.Input(
                    "subject_prompt",
                    default="a picture of sks subject",
                    multiline=True,
                    tooltip="What shows it, with its trigger word; one a line. Not used where a dataset is connected.",
                ),
                LoraModel.Input("style_lora", tooltip="The other LoRA: a style, or a second subject."),
                io.String.Input(
                    "style_prompt",
                    default="a picture in sty style",
                    multiline=True,
                    tooltip="What shows it, with its trigger word; one a line. Not used where a dataset is connected.",
                ),
                io.Int.Input(
                    "steps",
                    default=100,
                    min=1,
                    max=100_000,
                    tooltip="Each asks all LoRAs once. 100 is usual; the loss curves show whether more would help.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=0.01,
                    min=1e-9,
                    max=100.0,
                    step=0.001,
                    round=1e-9,
                    tooltip="How far a coefficient moves in a step at most. 0.01: from 1 to 0 in 100 steps.",
                ),
                io.Float.Input(
                    "overlap_weight",
                    default=0.001,
                    min=0.0,
                    max=1e6,
                    step=0.001,
                    round=1e-9,
                    tooltip="λ: how strongly columns that both LoRAs use are pushed apart. 0: only the pictures "
                    "decide.",
                ),
                seed_input("Decides all that is random. The same seed gives the same LoRA."),
                Dataset.Input(
                    "subject_dataset", optional=True, tooltip="The pictures it was trained on. Else its prompt is used."
                ),
                Dataset.Input(
                    "style_dataset", optional=True, tooltip="The pictures it was trained on. Else its prompt is used."
                ),
                io.Combo.Input(
                    "without_pictures",
                    optional=True,
                    options=list(WITHOUT_PICTURES),
                    default=NOISE,
                    tooltip="For LoRAs without a dataset. noise: what each makes of pure noise at first sight. drawn "
                    "pictures: each draws some first, which takes longer and is nearer to real ones.",
                ),
                io.Combo.Input(
                    "layers",
                    optional=True,
                    options=list(TARGETS[:3]),
                    default="attention",
                    tooltip="Where coefficients are learnt: attention as in the paper. In all other layers the LoRAs "
                    "are added up.",
                ),
                io.Int.Input("batch_size", optional=True, default=1, min=1, max=64, tooltip="Pictures of each a step."),
                *size_inputs(),
                io.Int.Input(
                    "pictures", optional=True, default=4, min=1, max=1000, tooltip="Drawn pictures of each LoRA."
                ),
                io.Int.Input(
                    "sampling_steps", optional=True, default=20, min=1, max=1000, tooltip="Of drawn pictures."
                ),
                io.Float.Input(
                    "cfg", optional=True, default=5.0, min=0.0, max=100.0, step=0.1, tooltip="Of drawn pictures."
                ),
                TrainingOptions.Input(
                    "options",
                    optional=True,
                    tooltip="From Training Options (Likeness): optimizer, schedule, noise levels, memory.",
                ),
                io.String.Input(
                    "run_name",
                    optional=True,
                    default="",
                    tooltip="Name of the run's folder, where the LoRA is kept, too. Empty: by the LoRAs and the time.",
                ),
                io.String.Input(
                    "resume_from",
                    optional=True,
                    default="",
                    tooltip="Name of a run that was cancelled, or is to have more steps: goes on from there exactly.",
                ),
                *(
                    input_
                    for number in range(3, MOST + 1)
                    for input_ in (
                        LoraModel.Input(f"lora_{number}", optional=True, tooltip="One more LoRA, to be kept as well."),
                        io.String.Input(
                            f"prompt_{number}",
                            optional=True,
                            default="",
                            multiline=True,
                            tooltip="What shows it, with its trigger word; one a line.",
                        ),
                        Dataset.Input(f"dataset_{number}", optional=True, tooltip="The pictures it was trained on."),
                    )
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the merged LoRA at strength 1."),
                LoraModel.Output(
                    display_name="lora", tooltip="The merged LoRA, its ranks added up, for Save LoRA (Likeness)."
                ),
                io.Image.Output(
                    display_name="coefficients",
                    tooltip="How many columns are kept how much; where; and which are shared.",
                ),
                io.Image.Output(
                    display_name="loss_curves",
                    tooltip="Each term of the loss by steps, and the distance to each LoRA beside a plain sum's.",
                ),
                io.String.Output(display_name="report", tooltip="The same in numbers, and time and memory. Markdown."),
                io.String.Output(display_name="run_folder", tooltip="Where the LoRA and the state are kept."),
                io.Clip.Output(
                    display_name="clip", tooltip="The text encoder with the merged LoRA, where the LoRAs change it."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        steps: int,
        learning_rate: float,
        overlap_weight: float,
        seed: int,
        without_pictures: str = NOISE,
        layers: str = "attention",
        batch_size: int = 1,
        width: int = 512,
        height: int = 512,
        pictures: int = 4,
        sampling_steps: int = 20,
        cfg: float = 5.0,
        options: dict[str, Any] | None = None,
        run_name: str = "",
        resume_from: str = "",
        **wired: Any,
    ) -> io.NodeOutput:
        """Learn."""
        shown = {"steps": steps, "learning_rate": learning_rate, "seed": seed, "targets": layers}
        chosen = {name: value for name, value in (options or {}).items() if name not in NOT_OURS}
        run = host.learn_zip(
            model,
            clip,
            vae,
            asked_of(wired),
            TrainingConfig.from_mapping({**chosen, **shown, "batch_size": batch_size, "rank": 1}),
            overlap_weight,
            Drawing(without_pictures, width, height, pictures, sampling_steps, cfg),
            run_name=run_name,
            resume_from=resume_from,
            node_id=cls.hidden.unique_id,
        )
        return io.NodeOutput(
            run.model,
            run.lora,
            run.coefficients,
            run.curves,
            run.report,
            str(run.folder),
            run.clip,
            ui=ui.PreviewImage(run.coefficients, cls=cls),
        )


def asked_of(wired: dict[str, Any]) -> list[Asked]:
    """The LoRAs on the sockets with what shows each, in the sockets' order."""
    found = []
    for name in NAMES:
        ours = name in NAMES[:2]
        names = [f"{name}_{what}" if ours else name.replace("lora", what) for what in ("lora", "prompt", "dataset")]
        lora, prompt, dataset = (wired.get(each) for each in names)
        if lora is not None:
            prompts = tuple(line.strip() for line in (prompt or "").splitlines() if line.strip())
            found.append(Asked(name, lora, prompts, dataset))
    return found
