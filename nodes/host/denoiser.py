"""Any MODEL of the host as the trainers' Denoiser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.model_patcher
import comfy.model_sampling
import comfy.patcher_extension
import comfy.samplers
import torch
from torch import Tensor, nn

from ...trainers.denoiser import Parameterisation
from .interrupt import Interrupt, InterruptProcessingException

if TYPE_CHECKING:
    from .text import LiveText


@dataclass(frozen=True)
class HostCond:
    """The host's ``model_conds`` of one caption and one picture's size: names of apply_model's arguments -> COND…"""

    model_conds: dict[str, Any]

    def fits(self, other: HostCond) -> bool:
        """Can both be in one batch? (The host's own rule: same names, and each pair says it can be concatenated.)"""
        return bool(comfy.samplers.cond_equal_size(self.model_conds, other.model_conds))


UNUSUAL = ("IMG_TO_IMG", "COSMOS_RFLOW", "X0", "EDM")
"""Classes of the host's model_sampling that derive from EPS and V_PREDICTION but predict something else."""


def parameterisation(sampling: nn.Module) -> Parameterisation:
    """What the model predicts, by the class of its ``model_sampling`` (which nodes such as ModelSamplingSD3 replace).

    Raises:
        ValueError: a kind of model whose loss is not known here.
    """
    known = comfy.model_sampling
    unusual = [name for name in UNUSUAL if isinstance(sampling, getattr(known, name, ()))]
    if not unusual:
        if isinstance(sampling, known.CONST):
            return "flow"
        if isinstance(sampling, known.V_PREDICTION):
            return "v"
        if isinstance(sampling, known.EPS):
            return "eps"
    raise ValueError(
        f"Likeness cannot train this kind of model yet ({', '.join(unusual) or type(sampling).__name__}): it knows "
        "models that predict the noise (SD1.5, SDXL), the velocity (SD2 v, SDXL v), or a flow (SD3, Flux)."
    )


class HostDenoiser:
    """Implements ``trainers.denoiser.Denoiser`` for a loaded ModelPatcher.

    The patcher must be loaded (weights patched and on the device), and its weights usable by autograd. Its patches,
    wrappers and transformer options stay in force, as they would in a KSampler. With ``text``, whose encoders are
    trained too, conditions are its own.
    """

    def __init__(
        self,
        patcher: comfy.model_patcher.ModelPatcher,
        interrupt: Interrupt | None = None,
        text: LiveText | None = None,
    ) -> None:
        self.patcher = patcher
        self.model = patcher.model
        self.module: nn.Module = self.model.diffusion_model
        self.device: torch.device = patcher.load_device
        self.sampling = self.model.model_sampling  # after loading: object patches are in place
        self.parameterisation: Parameterisation = parameterisation(self.sampling)
        self.sigmas: Tensor = self.sampling.sigmas.detach().clone().float().cpu()
        patch = getattr(self.module, "patch_size", 2)  # of image tokens, in latents; (t, h, w) in models of video
        self.patch_size: int = patch if isinstance(patch, int) else int(patch[-1])
        self.interrupt = interrupt or Interrupt()
        self.text = text
        self._options = _transformer_options(patcher)

    @property
    def text_encoders(self) -> Mapping[str, nn.Module]:
        """Prefix of the canonical layer names -> module, where they are trained."""
        return self.text.encoders if self.text is not None else {}

    @property
    def text_devices(self) -> Mapping[str, torch.device]:
        """Where each of them computes."""
        return self.text.devices if self.text is not None else {}

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latents: Tensor) -> Tensor:
        """Noise latents (B, C, …) to the levels sigma (B,), as the host does."""
        noisy: Tensor = self.sampling.noise_scaling(sigma, noise.clone(), latents)  # it may write into the noise
        return noisy

    def denoise(self, noisy: Tensor, sigma: Tensor, conds: Sequence[Any]) -> Tensor:
        """Predict x₀ (B, C, …) float32."""
        try:
            return self._denoise(noisy, sigma, conds)
        except InterruptProcessingException:
            self.interrupt.seen = True  # the step is finished, and the loop stops before the next
        return self._denoise(noisy, sigma, conds)  # here, where the error and all that its frames hold is gone

    def _denoise(self, noisy: Tensor, sigma: Tensor, conds: Sequence[Any]) -> Tensor:
        if self.text is not None:
            conds = self.text.now(conds)
        groups = _groups(conds)
        if len(groups) == 1:
            return self._apply(noisy, sigma, conds)
        order = [index for group in groups for index in group]
        parts = [self._apply(noisy[group], sigma[group], [conds[index] for index in group]) for group in groups]
        back = torch.tensor(order, device=noisy.device).argsort()
        return torch.cat(parts)[back]

    def _apply(self, noisy: Tensor, sigma: Tensor, conds: Sequence[HostCond]) -> Tensor:
        arguments = comfy.samplers.cond_cat([cond.model_conds for cond in conds])
        options = {**self._options, "cond_or_uncond": [0] * len(conds), "sigmas": sigma}
        x0: Tensor = self.model.apply_model(noisy, sigma, transformer_options=options, **arguments)
        return x0.float()


def _groups(conds: Sequence[HostCond]) -> list[list[int]]:
    """Indices of conditions that fit into one batch each. One group is the rule; long captions may make two."""
    groups: list[list[int]] = []
    for index, cond in enumerate(conds):
        for group in groups:
            if all(conds[other].fits(cond) for other in group):
                group.append(index)
                break
        else:
            groups.append([index])
    return groups


def _transformer_options(patcher: comfy.model_patcher.ModelPatcher) -> dict[str, Any]:
    """What the host's sampler hands to the model: attention patches, and the patcher's wrappers and callbacks."""
    options: dict[str, Any] = comfy.model_patcher.create_model_options_clone(patcher.model_options)
    transformer_options: dict[str, Any] = options.setdefault("transformer_options", {})
    merge = comfy.patcher_extension.merge_nested_dicts
    for name in ("wrappers", "callbacks"):
        merge(transformer_options.setdefault(name, {}), getattr(patcher, name, {}), copy_dict1=False)
    return transformer_options
