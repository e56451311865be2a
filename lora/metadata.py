"""What a LoRA file says of itself, in the keys that other programs read.

ss_*: sd-scripts' keys (A1111, Civitai and the trainers read them). modelspec.*: the Stability model metadata standard.
sshs_*: hashes that identify the weights whatever the metadata. likeness.*: ours. A file holds text only.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import safetensors.torch
from torch import Tensor

from . import suffixes
from .files import sorted_tensors, tensor_bytes

RES_BLOCKS = "likeness.res_blocks"
CONFIG = "likeness.config"
RESIZED = "likeness.resized"
"""A JSON list: how the LoRA was cut to smaller ranks, each time."""
_PARTS = ("unet", "transformer", "text_encoder_2", "text_encoder")
_IMPLEMENTATION = "https://github.com/Stability-AI/generative-models"


@dataclass(frozen=True)
class Family:
    """How the two standards call an architecture."""

    architecture: str
    base_model_version: str
    implementation: str = _IMPLEMENTATION


FAMILIES = {
    "sd1": Family("stable-diffusion-v1", "sd_v1", "diffusers"),
    "sd2": Family("stable-diffusion-v2-512", "sd_v2", "diffusers"),
    "sd2-v": Family("stable-diffusion-v2-768-v", "sd_v2", "diffusers"),
    "sdxl": Family("stable-diffusion-xl-v1-base", "sdxl_base_v1-0"),
    "sd3": Family("stable-diffusion-3", "sd3"),
    "flux": Family("flux-1-dev", "flux1", "https://github.com/black-forest-labs/flux"),
}
_LYCORIS: dict[str, dict[str, object]] = {
    "hada_w1_a": {"algo": "loha"},
    "lokr_w1": {"algo": "lokr"},
    "lokr_w1_a": {"algo": "lokr"},
    "oft_blocks": {"algo": "diag-oft"},
    "dora_scale": {"algo": "locon", "dora_wd": True, "wd_on_out": False},
}
_PREDICTION = {"eps": "epsilon", "epsilon": "epsilon", "v": "v", "flow": "flow"}


def build_metadata(
    *,
    family: str = "",
    prediction: str = "",
    res_blocks: Sequence[int] | None = None,
    trigger: str = "",
    class_noun: str = "",
    captions: Sequence[str] = (),
    dataset_name: str = "subject",
    resolution: tuple[int, int] | None = None,
    rank: int | None = None,
    alpha: float | None = None,
    steps: int | None = None,
    learning_rate: float | None = None,
    text_encoder_learning_rate: float | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    optimizer: str = "",
    final_loss: float | None = None,
    started: datetime | None = None,
    finished: datetime | None = None,
    base_model: str = "",
    config: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """The metadata of a finished training run. What is not given (or empty) is left out.

    family: a key of FAMILIES; "" or another name leaves the architecture out. prediction: eps, v or flow.
    captions: one for each picture, repeated as often as it is shown; ss_tag_frequency counts their comma-separated
    parts. resolution: (width, height) in pixels. started, finished: with a time zone. config: the whole training
    configuration, anything that JSON holds. ``complete_metadata`` adds what only the saved tensors tell.
    """
    known = FAMILIES.get(family)
    values: dict[str, object] = {
        "ss_base_model_version": known and known.base_model_version,
        "ss_sd_model_name": base_model,
        "ss_v2": str(family.startswith("sd2")) if known else None,
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": alpha,
        "ss_steps": steps,
        "ss_max_train_steps": steps,
        "ss_learning_rate": learning_rate,
        "ss_unet_lr": learning_rate,
        "ss_text_encoder_lr": text_encoder_learning_rate,
        "ss_batch_size_per_device": batch_size,
        "ss_total_batch_size": batch_size,
        "ss_seed": seed,
        "ss_optimizer": optimizer,
        "ss_final_loss": final_loss if final_loss is None or math.isfinite(final_loss) else None,
        "ss_num_train_images": len(captions) or None,
        "ss_resolution": f"({resolution[0]}, {resolution[1]})" if resolution else None,
        "ss_tag_frequency": json.dumps({dataset_name: tag_frequency(captions)}) if captions else None,
        "ss_training_started_at": started and str(started.timestamp()),
        "ss_training_finished_at": finished and str(finished.timestamp()),
        "ss_training_comment": f"trained with Likeness; trigger: {trigger}" if trigger else "trained with Likeness",
        "modelspec.architecture": known and f"{known.architecture}/lora",
        "modelspec.implementation": known and known.implementation,
        "modelspec.resolution": f"{resolution[0]}x{resolution[1]}" if resolution else None,
        "modelspec.prediction_type": _PREDICTION.get(prediction),
        "modelspec.trigger_phrase": f"{trigger} {class_noun}".strip() if trigger else None,
        "modelspec.usage_hint": f"put {f'{trigger} {class_noun}'.strip()!r} into the prompt" if trigger else None,
        "likeness.trigger": trigger,
        "likeness.class_noun": class_noun,
        RES_BLOCKS: json.dumps(list(res_blocks)) if res_blocks else None,
        CONFIG: json.dumps(config, sort_keys=True) if config else None,
    }
    return {key: str(value) for key, value in values.items() if value is not None and value != ""}


def complete_metadata(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    title: str,
    naming: str = "",
    date: datetime | None = None,
) -> dict[str, str]:
    """The metadata to write beside these tensors, which are named and typed as they will be in the file.

    Adds the standard's version, title, date (now, if not given), rank and alpha where nobody said them, and the hashes.
    """
    out = dict(metadata)
    out.pop("lora_adapter_metadata", None)  # its alphas are in the tensors, and a reader would apply them again
    out.setdefault("ss_network_module", "networks.lora")
    other = lycoris_args(tensors)
    if other:
        out["ss_network_module"] = "lycoris.kohya"
    for key, value in zip(("ss_network_dim", "ss_network_alpha"), rank_and_alpha(tensors), strict=True):
        if value is not None:
            out.setdefault(key, str(value))
    args = other | ({"naming": naming} if naming else {})
    out["ss_network_args"] = json.dumps(args)
    out["ss_output_name"] = title
    out["modelspec.sai_model_spec"] = "1.0.0"
    out["modelspec.title"] = title
    out["modelspec.date"] = (date or datetime.now(timezone.utc)).replace(microsecond=0).isoformat()
    out["sshs_model_hash"] = model_hash(tensors)
    out["sshs_legacy_hash"] = legacy_hash(tensors, out)
    out["modelspec.hash_sha256"] = f"0x{out['sshs_model_hash']}"
    return out


def lycoris_args(tensors: Mapping[str, Tensor]) -> dict[str, object]:
    """The network arguments of LyCORIS' trainer for what these tensors are; empty for a plain LoRA."""
    there = {split[1] for key in tensors if (split := suffixes.split(key))}
    for suffix, args in _LYCORIS.items():
        if suffix in there:
            return dict(args)
    return {}


def tag_frequency(captions: Sequence[str]) -> dict[str, int]:
    """How often each comma-separated part stands in the captions, the most frequent first."""
    counts = Counter(tag.strip() for caption in captions for tag in caption.split(",") if tag.strip())
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def rank_and_alpha(tensors: Mapping[str, Tensor]) -> tuple[int | None, float | None]:
    """The rank and alpha that most layers have; None where no layer has a low-rank pair. Any naming scheme."""
    downs: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for key, tensor in tensors.items():
        split = suffixes.split(key)
        if split and split[1] == suffixes.DOWN:
            downs[split[0]] = int(tensor.shape[0])
        elif split and split[1] == suffixes.ALPHA and tensor.numel() == 1:
            alphas[split[0]] = float(tensor)
    if not downs:
        return None, None
    rank, alpha = Counter((rank, alphas.get(base, float(rank))) for base, rank in downs.items()).most_common(1)[0][0]
    return rank, alpha


def model_hash(tensors: Mapping[str, Tensor]) -> str:
    """sshs_model_hash: the SHA-256 (hex) of the safetensors file's bytes after its header, that is of the tensors."""
    digest = hashlib.sha256()
    for _, tensor in sorted_tensors(tensors):
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def legacy_hash(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """sshs_legacy_hash: the first 8 hex digits of the SHA-256 of bytes 0x100000 to 0x110000 of the file.

    The file is taken with ss_* metadata alone, whose ORDER safetensors leaves to chance; but only its length counts
    for where those bytes lie, and a file of less than a megabyte has none (the hash of nothing).
    """
    kept = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    content = safetensors.torch.save({k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}, kept)
    return hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]


def res_blocks_of(metadata: Mapping[str, str]) -> tuple[int, ...] | None:
    """The UNet's res blocks a level as the metadata says (`likeness.res_blocks`), or None.

    Raises ValueError where it says something else than a list of whole numbers.
    """
    text = metadata.get(RES_BLOCKS)
    if text is None:
        return None
    try:
        numbers = json.loads(text)
        if not isinstance(numbers, list) or not numbers or not all(type(n) is int and 0 < n < 100 for n in numbers):
            raise TypeError
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"the metadata {RES_BLOCKS} is {text[:100]!r}; expected a list like [2, 2, 2, 2]") from error
    return tuple(numbers)


def peft_alphas(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """base -> alpha for the layers of a diffusers file that keeps peft's configuration in its metadata.

    Such a file (metadata `lora_adapter_metadata`) has no alpha tensors; a loader that overlooks it applies the LoRA at
    rank / alpha times its strength. rsLoRA scales by alpha / √r, so it counts as alpha · √r. Metadata that is no such
    configuration is left alone, but an alpha that is no number is not: raises ValueError naming the layer.
    """
    try:
        config = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except (ValueError, RecursionError):
        return {}
    out: dict[str, float] = {}
    for key, tensor in tensors.items():
        split = suffixes.split(key)
        if not split or split[1] != suffixes.DOWN or not isinstance(config, dict) or tensor.ndim < 2:
            continue
        base = split[0]
        part = next((p for p in _PARTS if base.startswith(f"{p}.")), "")
        alpha = config.get(f"{part}.lora_alpha", config.get("lora_alpha"))
        patterns = config.get(f"{part}.alpha_pattern", config.get("alpha_pattern")) or {}
        inner = base.removeprefix(f"{part}.")
        for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
            name = pattern.removeprefix("^")
            if inner == name or inner.endswith(f".{name}"):
                alpha = value
        if isinstance(alpha, int | float):
            if not abs(alpha) < 1e9:  # infinity and NaN too
                raise ValueError(f"the metadata lora_adapter_metadata gives {base} the alpha {str(alpha)[:30]}")
            rslora = config.get(f"{part}.use_rslora", config.get("use_rslora"))
            out[base] = float(alpha) * (math.sqrt(tensor.shape[0]) if rslora else 1.0)
    return out


def metadata_summary(metadata: Mapping[str, str]) -> dict[str, str]:
    """What a user asks of a file first, by a name that says it; what the file does not say is left out.

    Of the captions, the eight most frequent parts, which are the trigger words where nothing else says them.
    """
    wanted = {
        "title": ("modelspec.title", "ss_output_name"),
        "trigger": ("likeness.trigger", "modelspec.trigger_phrase"),
        "usage": ("modelspec.usage_hint",),
        "architecture": ("modelspec.architecture",),
        "base model": ("ss_sd_model_name", "ss_base_model_version"),
        "base model version": ("ss_base_model_version",),
        "network": ("ss_network_module",),
        "rank": ("ss_network_dim",),
        "alpha": ("ss_network_alpha",),
        "steps": ("ss_steps", "ss_max_train_steps"),
        "resolution": ("modelspec.resolution", "ss_resolution"),
        "learning rate": ("ss_learning_rate", "ss_unet_lr"),
        "date": ("modelspec.date",),
        "author": ("modelspec.author",),
        "license": ("modelspec.license",),
        "comment": ("ss_training_comment",),
    }
    out = {}
    for name, keys in wanted.items():
        if value := next((v for key in keys if (v := metadata.get(key, "").strip()) not in ("", "None")), None):
            out[name] = value
    try:
        folders = json.loads(metadata.get("ss_tag_frequency", "{}"))
        counts: Counter[str] = Counter()
        for tags in folders.values():
            counts.update({str(tag).strip(): int(number) for tag, number in tags.items()})
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError):
        counts = Counter()
    if counts:
        out["captions"] = ", ".join(f"{tag} ({number})" for tag, number in counts.most_common(8))
    return out
