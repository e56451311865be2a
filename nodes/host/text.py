"""Captions -> what the model takes: encoded once before training, or at each step by text encoders that are trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import comfy.model_patcher
import torch
from torch import Tensor, nn

from ...lora.resolve import TEXT_ENCODERS
from ...trainers.config import TrainingConfig
from ...trainers.denoiser import Cond
from ...trainers.targets import text_encoder_layers
from .conditioning import detach_cond, encode_text, make_cond, moved_cond
from .denoiser import HostCond
from .weights import autograd_weights, ordinary, ordinary_tensors, resident_clone

Conditioning = list[list[Any]]
"""The host's."""


class Texts(Protocol):
    """What a training run asks of the text encoders."""

    def conditioning(self, text: str) -> Conditioning:
        """The host's CONDITIONING of a text, as the encoders are now."""

    def cond(self, text: str, latents: Tensor, sizes: Mapping[str, int]) -> Cond:
        """A condition for the trainer. Arguments as of :func:`.conditioning.make_cond`."""

    def keep(self, texts: Sequence[str]) -> None:
        """The data are encoded; from now on, :meth:`conditioning` is asked for these alone."""

    @property
    def patchers(self) -> list[comfy.model_patcher.ModelPatcher]:
        """What is to be loaded beside the diffusion model while training."""

    def training(self) -> AbstractContextManager[None]:
        """To be entered for as long as the run trains, once they are loaded; outside of inference mode."""


def texts_of(clip: Any, patcher: comfy.model_patcher.ModelPatcher, config: TrainingConfig) -> Texts:
    """The way that a configuration asks for.

    Raises:
        ValueError: text encoders are to be trained, and cannot be.
    """
    if config.text_encoder_learning_rate > 0:
        return LiveText(clip, patcher, config.text_encoders, config.text_encoder_pattern)
    return CachedText(clip, patcher)


class CachedText:
    """Encodes each text once. All that it gives are ordinary tensors."""

    def __init__(self, clip: Any, patcher: comfy.model_patcher.ModelPatcher) -> None:
        self._clip, self._patcher = clip, patcher
        self._texts: dict[str, Conditioning] = {}
        self._conds: dict[Any, HostCond] = {}

    def conditioning(self, text: str) -> Conditioning:
        """See :class:`Texts`."""
        if text not in self._texts:
            encoded = encode_text(self._clip, text)
            with ordinary_tensors():
                self._texts[text] = ordinary(encoded)
        return self._texts[text]

    def cond(self, text: str, latents: Tensor, sizes: Mapping[str, int]) -> HostCond:
        """One for all pictures of that caption, size and crop."""
        key = (text, *sizes.items(), latents.shape)
        if key not in self._conds:
            made = make_cond(self._patcher, self.conditioning(text), latents, sizes)
            with ordinary_tensors():
                self._conds[key] = detach_cond(made, self._patcher.load_device)
        return self._conds[key]

    def keep(self, texts: Sequence[str]) -> None:
        """Let go of all others; the encoders may leave the device."""
        self._conds.clear()
        self._texts = {text: self.conditioning(text) for text in texts}

    @property
    def patchers(self) -> list[comfy.model_patcher.ModelPatcher]:
        """None: the encoders have done their work."""
        return []

    def training(self) -> AbstractContextManager[None]:
        """Nothing to do."""
        return nullcontext()


@dataclass(frozen=True)
class LiveCond:
    """A caption and the size of a picture, to be encoded when they are needed.

    Attributes:
        text: the caption.
        sizes: see :func:`.conditioning.size_conditions`.
        shape: (1, C, …) of the latents.
    """

    text: str
    sizes: tuple[tuple[str, int], ...]
    shape: tuple[int, ...]


class LiveText:
    """Encodes by text encoders that are trained: the host's own code, with gradients.

    Nothing of the host's encoding stands in the way of a gradient but inference mode, weights that were made in it
    (:func:`.weights.autograd_weights`), and statements such as ``x += …``, which the loop rebinds. What would is the
    host's loading of the encoders before each text: it looks weights up by name, and those of adapted layers are not
    where it left them. So they are loaded once.

    Attributes:
        encoders: prefix of the canonical layer names -> module, in the host's order: all that are known.
        trained: prefixes of those that are trained; texts go through the others once.
    """

    def __init__(
        self, clip: Any, patcher: comfy.model_patcher.ModelPatcher, which: str = "all", pattern: str = ""
    ) -> None:
        """Args:
        clip: the host's; it is not changed.
        patcher: of the diffusion model.
        which, pattern: as of :func:`...trainers.targets.text_encoder_layers`.

        Raises:
            ValueError: no encoder that LoRA files have names for, or one that changes over time.
        """
        if getattr(clip, "use_clip_schedule", False) and clip.patcher.forced_hooks is not None:
            raise ValueError(
                "This CLIP has hooks that change it over the sampling steps, so it cannot be trained. Take the hook "
                "nodes before Train LoRA away, or set the text encoders' learning rate to 0."
            )
        self._patcher = patcher
        self._clip = clip.clone()
        self._clip.patcher = resident_clone(clip.patcher)
        self._tokens: dict[str, Any] = {}
        self._text = ""
        children = dict(clip.cond_stage_model.named_children())
        self.encoders: dict[str, nn.Module] = {
            f"{name}.": child for name, child in children.items() if f"{name}." in TEXT_ENCODERS
        }
        if not self.encoders:
            raise ValueError(
                f"The text encoder of this model ({', '.join(children) or type(clip.cond_stage_model).__name__}) "
                "cannot be trained yet: no program knows its layers' names in a LoRA file. Set the text encoders' "
                "learning rate to 0."
            )
        layers = text_encoder_layers(self.encoders, which, pattern)
        self.trained = tuple(prefix for prefix in self.encoders if any(name.startswith(prefix) for name in layers))

    @property
    def patchers(self) -> list[comfy.model_patcher.ModelPatcher]:
        """That of the encoders."""
        return [self._clip.patcher]

    @property
    def devices(self) -> dict[str, torch.device]:
        """Where each encoder computes, once it is loaded."""
        return {prefix: self._device(encoder) for prefix, encoder in self.encoders.items()}

    def _device(self, encoder: nn.Module) -> torch.device:
        if hasattr(encoder, "execution_device"):  # a newer host, which tells it before each text
            device: torch.device = self._clip.patcher.load_device
            return device
        weight: Tensor = encoder.transformer.get_input_embeddings().weight  # type: ignore[union-attr, operator]
        return weight.device

    def conditioning(self, text: str) -> Conditioning:
        """See :class:`Texts`; with gradients where they are on."""
        if text not in self._tokens:
            self._tokens[text] = self._clip.tokenize(text)
        self._text = text
        encoded: Conditioning = self._clip.encode_from_tokens_scheduled(self._tokens[text], show_pbar=False)
        return encoded

    def cond(self, text: str, latents: Tensor, sizes: Mapping[str, int]) -> LiveCond:
        """See :class:`Texts`."""
        return LiveCond(text, tuple(sizes.items()), tuple(latents.shape))

    def keep(self, texts: Sequence[str]) -> None:
        """Nothing was encoded yet."""

    def now(self, conds: Sequence[LiveCond]) -> list[HostCond]:
        """Conditions by the encoders as they are now; each text goes through them once."""
        texts = {text: self.conditioning(text) for text in dict.fromkeys(cond.text for cond in conds)}
        made = {
            cond: moved_cond(
                # Of the latents only the shape counts.
                make_cond(self._patcher, texts[cond.text], torch.empty(cond.shape, device="meta"), dict(cond.sizes)),
                self._patcher.load_device,
            )
            for cond in dict.fromkeys(conds)
        }
        return [made[cond] for cond in conds]

    @contextmanager
    def training(self) -> Iterator[None]:
        """The encoders' weights can be used by autograd, and nobody else loads them. Outside of inference mode."""
        frozen = [
            encoder
            for name, encoder in self._clip.cond_stage_model.named_children()
            if f"{name}." not in self.trained and hasattr(encoder, "encode_token_weights")
        ]
        with autograd_weights(self._clip.cond_stage_model):
            self._clip.load_model = lambda *_, **__: self._clip.patcher
            for encoder in frozen:
                encoder.__dict__["encode_token_weights"] = self._once(encoder.encode_token_weights)
            try:
                yield
            finally:
                for encoder in frozen:
                    del encoder.__dict__["encode_token_weights"]
                del self._clip.load_model

    def _once(self, encode: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """An encoder that is not trained gives the same for the same text."""
        known: dict[str, Any] = {}

        def encoded(tokens: Any) -> Any:
            if self._text not in known:
                known[self._text] = encode(tokens)
            return known[self._text]

        return encoded
