"""LikenessFindTokens: words that the text encoder knows as one token and has hardly learnt."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..trainers.rare_table import scan_json, scan_table
from ..trainers.rare_tokens import PAPER_TOKENS
from .host.find_tokens import find_tokens

RARE, PAPER, BOTH = LISTS = ("rare words", "the paper's 28", "both")


class LikenessFindTokens(io.ComfyNode):
    """CLIP -> candidates for a trigger word."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and order are the contract of saved workflows."""
        return io.Schema(
            node_id="LikenessFindTokens",
            display_name="Find Rare Tokens (Likeness)",
            category="Likeness/trainers",
            description="Candidates for a trigger word: scans the text encoder's own vocabulary for short words of one "
            "token, and ranks them by how little the embedding seems to have learnt of them. No picture is drawn; let "
            "Token Prior (Likeness) draw some before you choose.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder of the model that is to be taught."),
                io.Int.Input("shortest", default=4, min=1, max=64, tooltip="Letters of a word, at least."),
                io.Int.Input(
                    "longest", default=5, min=1, max=64, tooltip="Letters of a word, at most. The paper: 4 to 5."
                ),
                io.String.Input(
                    "letters",
                    default="[a-z]+",
                    tooltip="A regular expression that the whole word matches. [a-z]+ is Latin letters only; "
                    "[b-df-hj-np-tv-z]+ leaves vowels out; z.* begins with z.",
                ),
                io.Int.Input("count", default=16, min=1, max=1000, tooltip="Words in the table and in words."),
                io.Combo.Input(
                    "listed",
                    options=list(LISTS),
                    tooltip="What comes out as words: the rare words of the scan, the 28 tokens that Image-Alchemy "
                    "proposes for SDXL, or both. The table always has both.",
                ),
                io.Int.Input(
                    "neighbours",
                    optional=True,
                    default=10,
                    min=1,
                    max=100,
                    tooltip="Nearest words whose mean cosine is taken.",
                ),
                io.String.Input(
                    "tokenizer",
                    optional=True,
                    default="auto",
                    tooltip="Whose vocabulary is scanned, where the model has several: clip_l, clip_g, clip_h, t5xxl … "
                    "auto takes CLIP's, the first of these that is there.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="words", tooltip="One a line, for words of Token Prior (Likeness)."),
                io.String.Output(
                    display_name="table",
                    tooltip="Markdown: each word's score, norm, nearest words; then the paper's tokens and what the "
                    "tokenizer makes of them.",
                ),
                io.String.Output(display_name="json", tooltip="The same for programs."),
            ],
        )

    @classmethod
    def execute(
        cls,
        clip: Any,
        shortest: int,
        longest: int,
        letters: str,
        count: int,
        listed: str,
        neighbours: int = 10,
        tokenizer: str = "auto",
    ) -> io.NodeOutput:
        """Scan, rank."""
        scan = find_tokens(clip, tokenizer, shortest, longest, letters, count, neighbours, cls.hidden.unique_id)
        rare = [each.word for each in scan.ranked[:count]] if listed != PAPER else []
        words = dict.fromkeys((*rare, *(PAPER_TOKENS if listed != RARE else ())))
        table = scan_table(scan, count)
        return io.NodeOutput("\n".join(words), table, scan_json(scan, count), ui=ui.PreviewText(table))
