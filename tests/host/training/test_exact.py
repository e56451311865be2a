"""The host's model is the same, object by object and byte by byte, however training ends."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from likeness.trainers.config import TrainingConfig
from likeness.trainers.dataset import PictureSet, from_images


@pytest.fixture(scope="module")
def loaded(comfy: SimpleNamespace, tiny_checkpoint: Path) -> Iterator[tuple[Any, Any, Any]]:
    """(model, clip, vae), loaded as the host does: in inference mode."""
    import comfy.sd

    with torch.inference_mode():
        yield comfy.sd.load_checkpoint_guess_config(str(tiny_checkpoint), output_vae=True, output_clip=True)[:3]


@pytest.fixture(scope="module")
def pictures() -> PictureSet:
    """Two pictures."""
    images = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    return from_images(images, trigger="sks", class_noun="toy", resolution=64)


def state(model: Any) -> list[tuple[Any, ...]]:
    """All of a module that training could change."""
    found: list[tuple[Any, ...]] = []
    for name, module in model.model.named_modules():
        hooks = (len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks))
        found.append((name, id(module), type(module), module.training, hooks, sorted(module.__dict__)))
    for name, tensor in (*model.model.named_parameters(), *model.model.named_buffers()):
        digest = hashlib.sha256(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        flags = (tensor.requires_grad, tensor.grad is None, tensor.is_inference(), tensor.dtype)
        found.append((name, id(tensor), tensor.data_ptr(), flags, digest))
    return found


def train(loaded: tuple[Any, Any, Any], pictures: PictureSet, **options: Any) -> Any:
    """Three steps, as the node does it."""
    from likeness.nodes.host import train_lora

    return train_lora(*loaded, pictures, TrainingConfig(steps=3, rank=2, alpha=2, **options))


@pytest.fixture()
def before(loaded: tuple[Any, Any, Any]) -> list[tuple[Any, ...]]:
    """The state with the model on its device, as the host would have it after a picture."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([loaded[0]])
    return state(loaded[0])


def test_after_success(loaded: Any, pictures: PictureSet, before: list[Any]) -> None:
    """Fails if an adapter, a hook, a flag or a copied weight stays behind."""
    weights = [entry for entry in before if len(entry) == 5]
    assert any(inference for *_, (_, _, inference, _), _ in weights), "this must be tried on inference tensors"
    assert train(loaded, pictures, targets="all", gradient_checkpointing=True).lora
    assert state(loaded[0]) == before


def test_after_a_cancel_in_the_middle_of_a_step(
    loaded: Any, pictures: PictureSet, before: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host raises in whichever layer comes next: fails if that escapes before a checkpoint is written."""
    import comfy.model_management
    from torch._subclasses.fake_tensor import FakeTensor

    from likeness.nodes.host import HostDenoiser, folders

    original, calls = HostDenoiser._apply, []

    def interrupted(self: Any, *arguments: Any) -> Any:
        if isinstance(arguments[0], FakeTensor):  # the memory estimate, before the first step
            return original(self, *arguments)
        calls.append(1)
        if len(calls) == 2:
            comfy.model_management.interrupt_current_processing()
        return original(self, *arguments)

    monkeypatch.setattr(HostDenoiser, "_apply", interrupted)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train(loaded, pictures)
    assert len(calls) == 3  # the second step is finished, the third never begins
    newest = max(folders.runs_folder().iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert [path.name for path in (newest / "checkpoints").iterdir()] == ["step-000002"]
    assert state(loaded[0]) == before
    assert not comfy.model_management.processing_interrupted()


def test_after_running_out_of_memory(
    loaded: Any, pictures: PictureSet, before: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if the adapters stay in the model, or the user is not told what to change."""
    from likeness.nodes.host import HostDenoiser

    def full(self: Any, *arguments: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    monkeypatch.setattr(HostDenoiser, "_apply", full)
    with pytest.raises(RuntimeError, match=r"ran out of memory.*gradient_checkpointing"):
        train(loaded, pictures)
    assert state(loaded[0]) == before


def test_after_previews(loaded: Any, pictures: PictureSet, before: list[Any]) -> None:
    """Pictures drawn on the live adapters must not leave anything either, nor change what is learnt."""
    from likeness.nodes.host import train_lora
    from likeness.nodes.types import Samples

    config = TrainingConfig(steps=3, rank=2, alpha=2, sample_every=1)
    samples = Samples(("a sks",), "", 0, 1, 2, 2.0, "euler_ancestral", "normal", 64, 64)
    with_pictures = train_lora(*loaded, pictures, config, samples=samples)
    assert len(list((with_pictures.folder / "samples").iterdir())) == 3
    assert state(loaded[0]) == before
    without = train(loaded, pictures)
    assert all(torch.equal(with_pictures.lora[name], without.lora[name]) for name in without.lora)
