"""Memory in the host: estimates against what a pass keeps, fp8 and bf16 bases, block swap, the node's report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from likeness.trainers.config import TrainingConfig
from likeness.trainers.dataset import Example, PictureSet, TrainingSet, from_images


@pytest.fixture(scope="module")
def pictures() -> PictureSet:
    images = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    return from_images(images, trigger="sks", class_noun="toy", resolution=64)


def load(checkpoint: Path, **options: Any) -> Any:
    """(model, clip, vae), loaded as the host does: in inference mode."""
    import comfy.sd

    with torch.inference_mode():
        arguments = {"output_vae": True, "output_clip": True, "model_options": options}
        return comfy.sd.load_checkpoint_guess_config(str(checkpoint), **arguments)[:3]


def train(loaded: Any, pictures: PictureSet, samples: Any = None, **options: Any) -> Any:
    from likeness.nodes.host import train_lora

    config = TrainingConfig(steps=2, rank=2, alpha=2, learning_rate=1e-3, **options)
    with torch.inference_mode():  # as the host runs nodes
        return train_lora(*loaded, pictures, config, samples=samples)


@pytest.fixture(scope="module")
def plain(comfy: SimpleNamespace, tiny_checkpoint: Path, pictures: PictureSet) -> Iterator[Any]:
    yield train(load(tiny_checkpoint), pictures)


@pytest.mark.parametrize(
    "options",
    [
        {"offload_blocks": 1.0, "gradient_checkpointing": True},
        {"offload_blocks": 0.5},
        {"gradient_checkpointing": True, "checkpointing_share": 0.5},
    ],
)
def test_saving_memory_changes_no_bit(
    plain: Any, tiny_checkpoint: Path, pictures: PictureSet, options: dict[str, Any]
) -> None:
    """On the host's model: fails if a streamed weight or a recomputed block gives another LoRA."""
    loaded = load(tiny_checkpoint)
    import comfy.model_management

    comfy.model_management.load_models_gpu([loaded[0]])
    before = {name: (id(p), p.detach().clone()) for name, p in loaded[0].model.named_parameters()}
    trained = train(loaded, pictures, **options)
    assert all(torch.equal(trained.lora[name], tensor) for name, tensor in plain.lora.items())
    after = dict(loaded[0].model.named_parameters())
    assert all(id(after[name]) == number and torch.equal(after[name], was) for name, (number, was) in before.items())


def test_the_report(plain: Any, tiny_checkpoint: Path, pictures: PictureSet) -> None:
    """Fails if memory, estimate, time or size is missing, or the count of trained numbers is wrong."""
    size = sum(t.numel() for n, t in plain.lora.items() if not n.endswith(".alpha"))
    for words in ("peak memory", "estimated memory", "seconds a step", f"{size:,} trained numbers", "layers"):
        assert words in plain.report, plain.report


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16])
def test_low_precision_bases_train(
    comfy: SimpleNamespace, plain: Any, tiny_checkpoint: Path, pictures: PictureSet, dtype: torch.dtype
) -> None:
    """Stored in fp8 or bf16, as UNETLoader's weight_dtype does it: fails if the branch chokes, or learns elsewhere.

    The direction of what is learnt must be that of the fp32 base.
    """
    loaded = load(tiny_checkpoint, dtype=dtype)
    assert any(p.dtype == dtype for p in loaded[0].model.diffusion_model.parameters())
    trained = train(loaded, pictures)
    ups = [name for name in plain.lora if name.endswith("lora_up.weight")]
    one, other = (torch.cat([run.lora[name].flatten() for name in ups]) for run in (plain, trained))
    assert all(tensor.dtype == torch.float32 for tensor in trained.lora.values())
    assert float(torch.nn.functional.cosine_similarity(one, other, dim=0)) > 0.5


@pytest.mark.parametrize("targets", ["attention", "all"])
def test_estimate_against_what_a_pass_keeps(comfy: SimpleNamespace, tiny_checkpoint: Path, targets: str) -> None:
    """Activations within a tenth of the bytes that torch's hooks see with the adapters in: fails if it is a guess."""
    import comfy.model_management

    from likeness.nodes.host import HostDenoiser, autograd_weights, ordinary_tensors
    from likeness.nodes.host.conditioning import detach_cond, make_cond
    from likeness.nodes.host.memory import estimated, loading_memory
    from likeness.trainers.branch import lean_branches
    from likeness.trainers.lora import injected
    from likeness.trainers.targets import matched_layers

    model, clip, _ = load(tiny_checkpoint)
    comfy.model_management.load_models_gpu([model])
    text = clip.encode_from_tokens_scheduled(clip.tokenize("a sks"))
    with ordinary_tensors(), autograd_weights(model.model):
        latents = torch.randn(4, 16, 16)
        cond = detach_cond(make_cond(model, text, latents[None], {}), torch.device("cpu"))
        denoiser, config = HostDenoiser(model), TrainingConfig(rank=2, targets=targets, batch_size=2)
        data = TrainingSet((Example(latents, None, cond, None),), cond)
        estimate = estimated(denoiser, data, config)
        assert estimate is not None
        needed, early = loading_memory(model, data, config)
        assert early == estimate and estimate.extra(config) < needed < 2 * estimate.extra(config) + (1 << 30)
        kept: dict[int, Tensor] = {}

        def pack(tensor: Tensor) -> Tensor:
            if not isinstance(tensor if tensor._base is None else tensor._base, nn.Parameter):
                kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        modules = {"diffusion_model.": denoiser.module}
        layers = matched_layers(modules, targets)
        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with injected(modules, layers, rank=2, alpha=2.0, seed=0), lean_branches(modules), hooks:
            denoiser.denoise(torch.randn(2, 4, 16, 16), torch.ones(2), [cond, cond])
        measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert estimate.activations(config) == pytest.approx(measured, rel=0.1)


@pytest.fixture()
def loaded_now(comfy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """What the host has on the device at each training pass, the CPU passed off as a device that is worth leaving.

    The host moves nothing then, but keeps the same accounts. That memory is really given back needs a GPU.
    """
    import comfy.ldm.modules.diffusionmodules.openaimodel as network
    import comfy.model_management

    seen: list[list[str]] = []
    original = network.UNetModel.forward

    def noted(self: Any, x: Tensor, *arguments: Any, **named: Any) -> Any:
        if torch.is_grad_enabled() and type(x) is Tensor:
            seen.append(sorted(type(each.model).__name__ for each in comfy.model_management.loaded_models()))
        return original(self, x, *arguments, **named)

    monkeypatch.setattr(network.UNetModel, "forward", noted)
    monkeypatch.setattr(comfy.model_management, "is_device_cpu", lambda device: False)
    others = list(comfy.model_management.current_loaded_models)
    comfy.model_management.current_loaded_models.clear()
    yield seen
    comfy.model_management.current_loaded_models[:] = others


def test_vae_and_text_encoder_leave_the_device(
    plain: Any, loaded_now: list[list[str]], tiny_checkpoint: Path, pictures: PictureSet
) -> None:
    """Fails if one of them is on the device while training, also after a sample wanted the VAE; or a bit changes."""
    from likeness.nodes.types import Samples

    loaded = load(tiny_checkpoint)
    samples = Samples(("a sks",), "", 1, 1, 1, 2.0, "euler", "normal", 64, 64)
    trained = train(loaded, pictures, samples=samples, sample_every=1)
    assert len(list((trained.folder / "samples").iterdir())) == 2
    assert loaded_now == [["BaseModel"]] * 2
    assert all(torch.equal(trained.lora[name], tensor) for name, tensor in plain.lora.items())


def test_a_text_encoder_that_learns_stays(
    loaded_now: list[list[str]], tiny_checkpoint: Path, pictures: PictureSet
) -> None:
    """Fails if what is trained is sent away, or the VAE stays with it."""
    train(load(tiny_checkpoint), pictures, text_encoder_learning_rate=1e-3)
    assert loaded_now == [["BaseModel", "SD1ClipModel"]] * 2


def test_only_what_is_named_leaves(comfy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if another's model is unloaded, a clone is not known again, or what lives on the CPU is touched.

    Three models that the host takes to be on another device; nothing is moved there.
    """
    import weakref

    import comfy.model_management as management
    from comfy.model_patcher import ModelPatcher

    from likeness.nodes.host.memory import leave_device

    cpu, elsewhere = torch.device("cpu"), torch.device("meta")
    nets = [nn.Linear(2, 2) for _ in range(4)]
    patchers = [ModelPatcher(net, place, cpu) for net, place in zip(nets, (elsewhere,) * 3 + (cpu,), strict=True)]
    accounts = []
    for patcher in patchers:
        account = management.LoadedModel(patcher)
        account.real_model = weakref.ref(patcher.model)
        account.model_finalizer = weakref.finalize(patcher.model, lambda: None)
        accounts.append(account)
    monkeypatch.setattr(management, "current_loaded_models", accounts)
    monkeypatch.setattr(management, "get_free_memory", lambda *_, **__: (0, 0) if __ else 0)
    vae, clip, on_cpu = (SimpleNamespace(patcher=each) for each in (patchers[0].clone(), patchers[1], patchers[3]))
    leave_device(vae, clip, on_cpu, SimpleNamespace())  # the last as another pack may bring it
    assert management.loaded_models() == [patchers[2], patchers[3]]
