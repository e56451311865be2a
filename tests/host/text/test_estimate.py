"""What a step is said to take where text encoders learn, too."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from likeness.trainers.config import TrainingConfig
from likeness.trainers.dataset import PictureSet, from_images


def pictures() -> PictureSet:
    images = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    return from_images(images, trigger="sks", class_noun="toy", resolution=64)


@pytest.mark.parametrize("which", ["all", "first"])
def test_estimate_counts_text_encoders(small: SimpleNamespace, family: str, which: str) -> None:
    """Within a tenth of what torch's hooks see in a real pass: fails if the encoders' share is missing or a guess.

    With "first", encoders that do not learn go through the texts once and keep it: fails if that has no numbers.
    """
    import comfy.model_management

    from likeness.nodes.host import HostDenoiser, autograd_weights, ordinary_tensors
    from likeness.nodes.host.memory import estimated
    from likeness.nodes.host.session import encode
    from likeness.nodes.host.text import LiveText
    from likeness.trainers.branch import lean_branches
    from likeness.trainers.lora import injected
    from likeness.trainers.modules import trained_modules

    model, clip = small.build(family)
    text = LiveText(clip, model, which)
    data = encode(model, clip, text, small.eye(model), pictures(), 0)
    comfy.model_management.load_models_gpu([model, *text.patchers])
    config = TrainingConfig(rank=2, batch_size=2, text_encoder_learning_rate=1e-3, text_encoders=which)
    with ordinary_tensors(), autograd_weights(model.model), text.training():
        denoiser = HostDenoiser(model, text=text)
        estimate = estimated(denoiser, data, config)
        alone = estimated(HostDenoiser(model, text=text), data, TrainingConfig(rank=2, batch_size=2))
        assert estimate is not None and alone is not None
        trained = trained_modules(denoiser, config)
        kept: dict[int, Tensor] = {}

        def pack(tensor: Tensor) -> Tensor:
            if not isinstance(tensor if tensor._base is None else tensor._base, nn.Parameter):
                kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        conds: list[Any] = [example.cond for example in data.examples]
        noisy = torch.randn(2, *data.examples[0].latents.shape)
        with injected(trained.modules, trained.layers, rank=2, alpha=2.0, seed=0) as adapters:
            size = sum(parameter.numel() for parameter in adapters.parameters())
            with lean_branches(trained.modules), hooks:
                denoiser.denoise(noisy, torch.full((2,), 0.5), conds)
    assert estimate.activations(config) == pytest.approx(
        sum(t.untyped_storage().nbytes() for t in kept.values()), rel=0.1
    )
    assert estimate.trained == 16 * size
    encoders = sum(p.nbytes for prefix in text.trained for p in text.encoders[prefix].parameters())
    assert estimate.weights - alone.weights >= encoders


def test_the_report_of_a_run_has_it(small: SimpleNamespace) -> None:
    """Fails if the node says nothing of memory when text encoders learn, or rehearsing changed what is learnt."""
    from likeness.nodes.host import train_lora

    model, clip = small.build("sd15")
    config = TrainingConfig(steps=2, rank=2, alpha=2, text_encoder_learning_rate=1e-3)
    with torch.inference_mode():
        trained = train_lora(model, clip, small.eye(model), pictures(), config)
    assert "estimated memory" in trained.report
    assert all(bool(tensor.isfinite().all()) for tensor in trained.lora.values())
