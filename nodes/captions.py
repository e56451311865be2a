"""LikenessCaptions: change the captions of a dataset, and draw variants of them."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..trainers.captions import TRIGGERS, CaptionRules, caption_list, with_captions
from .rows import seed_input
from .types import Dataset


class LikenessCaptions(io.ComfyNode):
    """A dataset with other captions."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and order are the contract of saved workflows."""
        return io.Schema(
            node_id="LikenessCaptions",
            display_name="Captions (Likeness)",
            category="Likeness/trainers",
            is_output_node=True,  # or its text is gone when the page is loaded again
            description="Changes the captions of a dataset: places the trigger word, replaces text, adds a prefix or "
            "suffix, shuffles and drops tags. The files stay as they are.",
            inputs=[
                Dataset.Input("dataset", tooltip="The pictures, from Dataset (Likeness)."),
                io.Combo.Input(
                    "place_trigger",
                    options=list(TRIGGERS),
                    default=TRIGGERS[0],
                    tooltip="Where the dataset's trigger word goes: nowhere, to the front, to the front of captions "
                    "that lack it, or before or in place of the class noun.",
                ),
                io.String.Input(
                    "prefix",
                    default="",
                    tooltip="Set before each caption, and never shuffled or dropped. {trigger} and {class} are filled "
                    "in.",
                ),
                io.String.Input("suffix", default="", tooltip="Set after each caption, like the prefix."),
                io.String.Input(
                    "find",
                    default="",
                    multiline=True,
                    tooltip="Text to replace, one a line, exactly as it stands in the captions.",
                ),
                io.String.Input(
                    "replace_with",
                    default="",
                    multiline=True,
                    tooltip="What to put in its place, on the same line. An empty or missing line removes the text.",
                ),
                io.String.Input("separator", default=",", tooltip="What stands between tags."),
                io.Boolean.Input(
                    "shuffle",
                    default=False,
                    tooltip="Put tags in another order in each variant, so that their place means nothing.",
                ),
                io.Int.Input(
                    "keep_tags",
                    default=1,
                    min=0,
                    max=1000,
                    tooltip="So many of the first tags stay in their place and are never dropped.",
                ),
                io.Float.Input(
                    "tag_dropout",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the other tags left out in each variant. The trigger word is never dropped.",
                ),
                io.Int.Input(
                    "variants",
                    default=8,
                    min=1,
                    max=256,
                    tooltip="With shuffle or tag_dropout: so many captions are drawn for each picture, and each visit "
                    "takes one of them. Each is encoded once, before training.",
                ),
                seed_input("Decides what is shuffled and dropped."),
            ],
            outputs=[
                Dataset.Output(display_name="dataset", tooltip="The same pictures with the new captions."),
                io.String.Output(display_name="captions", tooltip="All captions as text, a line each, with variants."),
            ],
        )

    @classmethod
    def execute(
        cls,
        dataset: Any,
        place_trigger: str,
        prefix: str,
        suffix: str,
        find: str,
        replace_with: str,
        separator: str,
        shuffle: bool,
        keep_tags: int,
        tag_dropout: float,
        variants: int,
        seed: int,
    ) -> io.NodeOutput:
        """Change the captions."""
        rules = CaptionRules(
            trigger=place_trigger,
            prefix=prefix,
            suffix=suffix,
            find=tuple(find.splitlines()),
            replacement=tuple(replace_with.splitlines()),
            separator=separator,
            shuffle=shuffle,
            keep_tags=keep_tags,
            tag_dropout=tag_dropout,
            variants=variants,
            seed=seed,
        )
        changed = with_captions(dataset, rules)
        text = caption_list(changed)
        return io.NodeOutput(changed, text, ui=ui.PreviewText(text))
