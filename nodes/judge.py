"""LikenessJudge: a language model that sees judges subject and style."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from comfy_api.latest import io

from ..metrics.judge import STYLE_QUESTION, SUBJECT_QUESTION
from ..metrics.rows import Rows
from .host.judges import BACKENDS, FOLDER, KIND, URL, folder_judge, host_judge, judged_rows, url_judge
from .host.network_folders import chosen_folder
from .host.scores import as_pictures, label_inputs, labels, score_outputs, scored


class LikenessJudge(io.ComfyNode):
    """Pictures and references -> yes or no, by strict majority."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and order are the contract of saved workflows."""
        return io.Schema(
            node_id="LikenessJudge",
            display_name="Judge (Likeness)",
            category="Likeness/metrics",
            description="Asks a multimodal language model one yes/no question for each reference picture: is it the "
            "same subject, is it the same style? A strict majority decides; a picture is good when both hold.",
            is_output_node=True,
            inputs=[
                io.Image.Input("pictures", tooltip="Generated pictures: N attempts at one subject in one style."),
                io.Image.Input("subject_references", optional=True, tooltip="Photos of it: one question each."),
                io.Image.Input("style_references", optional=True, tooltip="Examples of the style: one question each."),
                io.Combo.Input(
                    "backend",
                    options=list(BACKENDS),
                    tooltip="Who is asked. address: a server that speaks OpenAI's chat completions. folder: a model in "
                    "models/LLM. TextGenerate: the host's own, with clip.",
                ),
                io.String.Input(
                    "model",
                    default="",
                    tooltip="address: its name as the server calls it. folder: the folder's name in models/LLM.",
                ),
                io.String.Input(
                    "url",
                    default="http://127.0.0.1:8000/v1",
                    tooltip="The server. Your pictures are sent there. Plain http is for this machine or network.",
                ),
                io.String.Input(
                    "key_variable",
                    default="",
                    tooltip="NAME of the environment variable that holds the key, never the key. Another variable of "
                    "that name with _HOST must name the server's host. Empty: no key.",
                ),
                io.String.Input("class_noun", default="subject", tooltip="What it is, e.g. dog, for the question."),
                io.Clip.Input("clip", optional=True, tooltip="For TextGenerate: a text encoder that writes and sees."),
                io.Float.Input(
                    "timeout", optional=True, default=60.0, min=1.0, max=3600.0, step=1.0, tooltip="Seconds to wait."
                ),
                io.Int.Input(
                    "retries", optional=True, default=4, min=0, max=20, tooltip="How often a busy server is asked anew."
                ),
                io.Float.Input(
                    "prompt_price", optional=True, default=0.0, min=0.0, max=1e6, step=0.01,
                    tooltip="Price of a million tokens in, for the cost in the transcript.",
                ),
                io.Float.Input(
                    "answer_price", optional=True, default=0.0, min=0.0, max=1e6, step=0.01,
                    tooltip="Price of a million tokens out.",
                ),
                io.String.Input(
                    "subject_question", optional=True, multiline=True, default="",
                    tooltip="Empty: ours. Must ask for Yes or No first; subject in braces is the class noun.",
                ),
                io.String.Input(
                    "style_question", optional=True, multiline=True, default="",
                    tooltip="Empty: ours. Another one must ask for Yes or No first.",
                ),
                *label_inputs(),
            ],
            outputs=[
                *score_outputs(),
                io.String.Output(
                    display_name="transcript", tooltip="Every question and answer, tokens and cost. JSON."
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        pictures: Any,
        backend: str,
        model: str,
        url: str,
        key_variable: str,
        class_noun: str,
        subject_references: Any = None,
        style_references: Any = None,
        clip: Any = None,
        timeout: float = 60.0,
        retries: int = 4,
        prompt_price: float = 0.0,
        answer_price: float = 0.0,
        subject_question: str = "",
        style_question: str = "",
        metrics: Rows = (),
        method: str = "",
        subject: str = "",
        step: int = 0,
    ) -> io.NodeOutput:
        """Ask, count."""
        ask: Any
        if backend == URL:
            ask = url_judge(url, model, key_variable, timeout, retries)
        elif backend == FOLDER:
            ask = folder_judge(chosen_folder(f"{KIND}/{model.strip()}", KIND))
        else:
            ask = host_judge(clip)
        known = [
            None if images is None else as_pictures(images, name)
            for images, name in ((subject_references, "subject_references"), (style_references, "style_references"))
        ]
        rows, found = judged_rows(
            as_pictures(pictures, "pictures"), *known, ask, f"judge: {model.strip() or backend}",
            labels(method, subject, step), subject=class_noun,
            subject_question=subject_question.strip() or SUBJECT_QUESTION,
            style_question=style_question.strip() or STYLE_QUESTION,
        )  # fmt: skip
        transcript: dict[str, Any] = {
            "average": found.average, "best_of_n": found.best_of_n, "attempts": found.attempts,
            "unclear": found.unclear, "failed": found.failed,
            "pictures": [asdict(one) for one in found.pictures], "questions": [asdict(one) for one in found.transcript],
        }  # fmt: skip
        usage = getattr(ask, "usage", None)
        if usage is not None:
            transcript["usage"] = {**asdict(usage), "cost": usage.cost(prompt_price, answer_price)}
        written = json.dumps(transcript, indent=1, ensure_ascii=False)
        return scored(metrics, rows, written)
