"""A judge from a folder: any vision-language model that transformers can load (LLaVA, Qwen-VL, SmolVLM …), greedy.

The folder is what ``save_pretrained`` writes, or a clone of a model's repository: config.json, safetensors, tokenizer,
processor with a chat template. Nothing is downloaded, and no code from the folder is run.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image


def load_vlm(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The network, on the CPU.

    Raises:
        ValueError: transformers is too old, or the folder holds no such model.
    """
    try:
        import transformers
        from transformers import AutoModelForImageTextToText
    except ImportError as why:
        raise ValueError(
            f"the judge needs transformers 4.46 or newer ({why}): run `pip install -U transformers`"
        ) from why
    name = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"  # renamed; the old one warns
    try:
        model: Any = AutoModelForImageTextToText.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, use_safetensors=True, **{name: dtype}
        )
    except Exception as why:  # a folder can be wrong in as many ways as there are models
        raise ValueError(
            f"{folder} holds no vision-language model that transformers can load: {' '.join(str(why).split())[:300]}"
        ) from why
    return model.eval().requires_grad_(False)


def load_processor(folder: Path) -> Any:
    """Its processor, with a chat template.

    Raises:
        ValueError: there is none in the folder.
    """
    try:
        import transformers

        auto: Any = transformers.AutoProcessor
        processor = auto.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as why:
        raise ValueError(f"{folder} has no processor: {' '.join(str(why).split())[:300]}") from why
    if not getattr(processor, "chat_template", None) or not hasattr(processor, "image_processor"):
        raise ValueError(
            f"{folder} has no processor of pictures with a chat template; copy preprocessor_config.json, the tokenizer "
            "and chat_template.jinja (or .json) of the model there"
        )
    return processor


class LocalJudge:
    """An ``Ask`` of a network and its processor.

    Args:
        model: gives the network, on the device where it shall run; asked before each question.
        processor: from :func:`load_processor`.
        max_tokens: of an answer.
        stopping: asked before each token; True ends the answer.
    """

    def __init__(
        self,
        model: Callable[[], Any],
        processor: Any,
        max_tokens: int = 16,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._model, self._processor, self._most, self._stopping = model, processor, max_tokens, stopping

    @torch.no_grad()
    def __call__(self, question: str, pictures: Sequence[Image.Image]) -> str:
        content = [{"type": "image"} for _ in pictures] + [{"type": "text", "text": question}]
        text = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        model = self._model()
        weight = next(model.parameters())
        inputs = self._processor(text=[text], images=[list(pictures)], return_tensors="pt")
        if "token_type_ids" not in inspect.signature(model.forward).parameters:
            inputs.pop("token_type_ids", None)  # some tokenizers give it to models that know nothing of it
        inputs = {
            name: value.to(weight.device, weight.dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
            if isinstance(value, torch.Tensor)
        }
        found = model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=self._most,
            stopping_criteria=[lambda ids, scores, **_: torch.full((len(ids),), self._stopping(), device=ids.device)],
        )
        made = found[:, inputs["input_ids"].shape[1] :]
        return str(self._processor.batch_decode(made, skip_special_tokens=True)[0]).strip()
