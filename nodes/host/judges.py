"""The three ways to ask a judge: an address, a folder, the host's own text generation."""

from __future__ import annotations

import inspect
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...metrics.judge import Ask, AskFailed, Judgement, judge
from ...metrics.judge_local import LocalJudge, load_processor, load_vlm
from ...metrics.judge_url import ChatJudge
from ...metrics.rows import Row
from .interrupt import InterruptProcessingException
from .network_folders import folder_stamp
from .scores import Labels, network

URL, FOLDER, HOST = BACKENDS = ("address", "folder", "TextGenerate")
KIND = "LLM"
"""Vision-language models lie in folders below models/ here."""


def patient_wait(seconds: float) -> None:
    """Sleeps, and lets a cancel through."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        comfy.model_management.throw_exception_if_processing_interrupted()
        time.sleep(min(left, 0.25))


def folder_judge(folder: Path) -> LocalJudge:
    """A vision-language model of a folder, kept by the host."""
    device = comfy.model_management.get_torch_device()
    half = comfy.model_management.should_use_bf16(device, prioritize_performance=False)
    dtype = torch.bfloat16 if half else torch.float32
    processor = load_processor(folder)
    managed = network(
        tuple(sorted(folder.glob("*.safetensors"))), ("judge", str(dtype), folder_stamp(folder)),
        lambda: load_vlm(folder, dtype),
    )  # fmt: skip
    return LocalJudge(lambda: managed.loaded(2 * 1024**3), processor, stopping=_interrupted)


def host_judge(clip: Any) -> Ask:
    """The host's TextGenerate, where this host has it.

    Raises:
        ValueError: it has not, or no CLIP that can write is wired.
    """
    import nodes as host_nodes

    node = host_nodes.NODE_CLASS_MAPPINGS.get("TextGenerate")
    if node is None:
        raise ValueError(
            "this ComfyUI has no TextGenerate; update it, or choose the backend 'address' or 'folder' for the judge"
        )
    if clip is None or not hasattr(clip, "generate"):
        raise ValueError("TextGenerate needs a text encoder that can write and see (e.g. Gemma 3, Qwen-VL): wire clip")
    return text_generate(node, clip)


def text_generate(node: Any, clip: Any) -> Ask:
    """An ``Ask`` over a node class like TextGenerate. Newer ones take several pictures, older ones one."""
    takes = inspect.signature(node.execute).parameters

    def ask(question: str, pictures: Sequence[Image.Image]) -> str:
        tensors = [torch.from_numpy(np.array(picture)).float()[None] / 255 for picture in pictures]
        more: dict[str, Any]
        if "images" in takes:
            more = {"images": {f"image_{number}": one for number, one in enumerate(tensors)}}
        else:
            more = {"image": _beside(tensors)}
            question = f"The picture shows two images side by side: the first left, the second right. {question}"
        found = node.execute(clip=clip, prompt=question, max_length=64, sampling_mode={"sampling_mode": "off"}, **more)
        values = getattr(found, "args", None) or getattr(found, "result", None) or found
        return str(values[0])

    return ask


def judged_rows(
    pictures: Tensor,
    subject_references: Tensor | None,
    style_references: Tensor | None,
    ask: Ask,
    name: str,
    labels: Labels,
    **questions: str,
) -> tuple[list[Row], Judgement]:
    """Rows of (N, 3, H, W): three a picture, and two of the batch as N attempts at one thing.

    Raises:
        ValueError: nothing to judge by, or the judge never answered.
    """
    bar = comfy.utils.ProgressBar(1)

    def progress(done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    try:
        found = judge(pictures, subject_references, style_references, ask, progress=progress, **questions)
    except AskFailed as why:
        raise ValueError(f"the judge did not answer: {why}") from why
    rows = []
    sides = [("judge", "good")]
    sides += [("judge_subject", "subject")] if subject_references is not None else []
    sides += [("judge_style", "style")] if style_references is not None else []
    for metric, side in sides:
        values = [getattr(one, side) for one in found.pictures]
        held = [None if value is None else float(value) for value in values]
        rows += labels.per_picture(metric, held, name, "questions failed that could have turned it")
    counted = [f"{found.unclear} unclear answers of {len(found.transcript)}"] if found.unclear else []
    counted += [f"{found.failed} failed questions of {len(found.transcript)}"] if found.failed else []
    note = "; ".join(counted)
    best, first = found.best_of_n, found.attempts
    rows.append(labels.row("judge_best_of_n", None if best is None else float(best), name, note))
    none_good = "no picture was judged good" if best is False else note
    rows.append(labels.row("judge_attempts", None if first is None else float(first), name, none_good))
    return rows, found


def url_judge(url: str, model: str, key_variable: str, timeout: float, retries: int) -> ChatJudge:
    """A chat-completions address; waiting can be cancelled."""
    return ChatJudge(url, model, key_variable, timeout, retries, wait=patient_wait)


def _interrupted() -> bool:
    try:
        comfy.model_management.throw_exception_if_processing_interrupted()
    except InterruptProcessingException:
        comfy.model_management.interrupt_current_processing(True)  # told to whoever looks next
        return True
    return False


def _beside(pictures: Sequence[Tensor]) -> Tensor:
    height = max(picture.shape[1] for picture in pictures)
    padded = [torch.nn.functional.pad(one, (0, 0, 0, 16, 0, height - one.shape[1]), value=1.0) for one in pictures]
    return torch.cat(padded, dim=2)
