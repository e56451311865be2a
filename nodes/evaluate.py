"""LikenessEvaluate: a protocol in one node."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..experiments.summary import summarise
from ..experiments.summary_table import to_markdown
from ..metrics.protocols import NAMES, OWN, own, published
from ..metrics.rows import Rows, json_safe
from .host.drawn import How
from .host.evaluate import evaluate, subjects_of
from .rows import sampling_inputs, seed_input
from .types import Dataset, LoraModel, MetricModel, Metrics


class LikenessEvaluate(io.ComfyNode):
    """Subjects × prompts × seeds -> pictures and METRICS."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and order are the contract of saved workflows."""
        return io.Schema(
            node_id="LikenessEvaluate",
            display_name="Evaluate (Likeness)",
            category="Likeness/metrics",
            description="Draws every prompt of a protocol with several seeds and scores each picture: does it look "
            "like the subject, does it show what the prompt says. Time, trained numbers and size stand beside.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="The model that draws, with or without a LoRA."),
                io.Clip.Input("clip", tooltip="Its text encoder, with the LoRA if that has a part for it."),
                io.Vae.Input("vae", tooltip="Its VAE."),
                io.String.Input(
                    "method",
                    default="base",
                    tooltip="What this is called in tables, e.g. 'LoRA, rank 16'. Give each method a name of its own.",
                ),
                io.Combo.Input(
                    "protocol",
                    options=list(NAMES),
                    tooltip="own prompts: those below. DreamBooth: 25 prompts, 4 pictures each. FLUX study: 11 prompts "
                    "of a face.",
                ),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    default="a picture of {trigger} {class}",
                    tooltip="For own prompts: one a line. {trigger} is the word that was taught, {class} the class "
                    "noun. Scored with the class noun in the trigger's place.",
                ),
                io.Int.Input(
                    "pictures",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="Of each prompt. 0: as many as the protocol has; own prompts: 4.",
                ),
                seed_input("Of each prompt's first picture; the next has the next seed. The same for all methods."),
                *sampling_inputs(),
                io.Int.Input("width", default=512, min=16, max=16384, step=8, tooltip="Width in pixels."),
                io.Int.Input("height", default=512, min=16, max=16384, step=8, tooltip="Height in pixels."),
                MetricModel.Input(
                    "subject_model",
                    optional=True,
                    tooltip="Scores how much each picture looks like the references, e.g. DINO.",
                ),
                MetricModel.Input("subject_model_2", optional=True, tooltip="Another one; it gets its own column."),
                MetricModel.Input(
                    "prompt_model",
                    optional=True,
                    tooltip="Scores how well each picture shows its prompt: a CLIP, or ImageReward.",
                ),
                io.Image.Input("references", optional=True, tooltip="Pictures of the subject to compare with."),
                Dataset.Input(
                    "dataset",
                    optional=True,
                    tooltip="In place of references: the subject's pictures and words. Of a combined dataset, each "
                    "subject is evaluated.",
                ),
                io.String.Input(
                    "trigger",
                    optional=True,
                    default="",
                    tooltip="The word that was taught. Empty: the dataset's; without one, the class noun is drawn.",
                ),
                io.String.Input(
                    "class_noun",
                    optional=True,
                    default="",
                    tooltip="What kind of thing the subject is, e.g. dog. Empty: the dataset's.",
                ),
                io.Boolean.Input(
                    "use_trigger",
                    optional=True,
                    default=True,
                    tooltip="Off: draw with the class noun in the trigger's place, for a model that was not taught it.",
                ),
                io.String.Input("negative", optional=True, default="", tooltip="The negative prompt of all pictures."),
                io.Int.Input(
                    "batch_size",
                    optional=True,
                    default=4,
                    min=1,
                    max=64,
                    tooltip="Pictures of one prompt drawn at once. Fewer need less memory.",
                ),
                io.Int.Input(
                    "step",
                    optional=True,
                    default=0,
                    min=0,
                    max=10_000_000,
                    tooltip="Training step of this model, for the plot over steps. 0: not said.",
                ),
                io.String.Input(
                    "subject", optional=True, default="", tooltip="The subject's name in tables. Empty: its words."
                ),
                LoraModel.Input(
                    "lora", optional=True, tooltip="Its trained numbers and size are put beside the scores."
                ),
                Metrics.Input(
                    "metrics", optional=True, tooltip="Rows so far, e.g. of another method; they come first."
                ),
            ],
            outputs=[
                Metrics.Output(
                    display_name="metrics", tooltip="The rows so far and these, for Report (Likeness) or another node."
                ),
                io.Image.Output(display_name="pictures", tooltip="All of them: prompts in turn, seeds within."),
                io.Image.Output(display_name="sheet", tooltip="A row a prompt. Also shown on the node."),
                io.String.Output(display_name="table", tooltip="This method's means. Markdown."),
                io.String.Output(
                    display_name="prompts",
                    tooltip="What each picture was scored against, a line a picture, for other scoring nodes.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        method: str,
        protocol: str,
        prompts: str,
        pictures: int,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        width: int,
        height: int,
        subject_model: Any = None,
        subject_model_2: Any = None,
        prompt_model: Any = None,
        references: Any = None,
        dataset: Any = None,
        trigger: str = "",
        class_noun: str = "",
        use_trigger: bool = True,
        negative: str = "",
        batch_size: int = 4,
        step: int = 0,
        subject: str = "",
        lora: Any = None,
        metrics: Rows = (),
    ) -> io.NodeOutput:
        """Draw and score."""
        found = evaluate(
            model,
            clip,
            vae,
            subjects_of(dataset, references, trigger.strip(), class_noun.strip(), subject.strip()),
            own(prompts) if protocol == OWN else published(protocol),
            How(negative, steps, cfg, sampler_name, scheduler, width, height, batch_size),
            method=method.strip(),
            step=step or None,
            pictures=pictures,
            seed=seed,
            by_class=not use_trigger,
            subject_models=[each for each in (subject_model, subject_model_2) if each is not None],
            prompt_model=prompt_model,
            lora=lora,
            node_id=cls.hidden.unique_id,
        )
        table = to_markdown(summarise(found.rows))
        rows = (*(metrics or ()), *found.rows)
        shown = ui.PreviewImage(found.sheet, cls=cls).as_dict() | {"text": [table], "metrics": json_safe(found.rows)}
        return io.NodeOutput(rows, found.pictures, found.sheet, table, "\n".join(found.prompts), ui=shown)
