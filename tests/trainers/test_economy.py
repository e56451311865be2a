from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from likeness.trainers.branch import lean_branches
from likeness.trainers.compiled import compiled_blocks
from likeness.trainers.config import TrainingConfig
from likeness.trainers.loop import train
from likeness.trainers.lora import injected
from likeness.trainers.recast import recast_weights
from likeness.trainers.recompute import recomputed_blocks


def run(toy: Any, data: Any, folder: Path, **options: Any) -> Any:
    return train(toy(), data(3), TrainingConfig(steps=3, rank=2, alpha=2, learning_rate=1e-2, **options), folder)


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "checkpointing_share": 0.5},
        {"offload_blocks": 1.0},
        {"offload_blocks": 0.5, "gradient_checkpointing": True},
        {"gradient_checkpointing": True, "dropout": 0.3},
    ],
)
def test_what_saves_memory_changes_no_bit(toy: Any, data: Any, tmp_path: Path, options: dict[str, Any]) -> None:
    """Against the same run without: fails if any of it changes what is learnt."""
    plain = run(toy, data, tmp_path / "plain", targets="all", dropout=options.get("dropout", 0.0))
    saving = run(toy, data, tmp_path / "saving", targets="all", **options)
    assert saving.notes and not plain.notes
    assert saving.losses == plain.losses
    for name, tensor in plain.tensors.items():
        assert torch.equal(saving.tensors[name], tensor), name


def test_compile_and_offload_are_refused_together() -> None:
    """Fails if weights that come and go are compiled, once for each arrival."""
    with pytest.raises(ValueError, match="compile"):
        TrainingConfig(compile=True, offload_blocks=0.5).validate()


@pytest.mark.parametrize("recomputed", [False, True])
def test_compiled_is_the_same(toy: Any, recomputed: bool) -> None:
    """Gradients through torch's own tracer: fails if a compiled block computes something else."""
    net, x = toy().module, torch.randn(2, 4, 4, 4)
    arguments = (x, torch.ones(2), torch.ones(2))
    expected = torch.autograd.grad(net(*arguments).square().sum(), list(net.parameters()))
    with compiled_blocks(net, backend="aot_eager") as compiled:
        assert compiled.count == 2
        with recomputed_blocks(net, share=float(recomputed)):
            got = torch.autograd.grad(net(*arguments).square().sum(), list(net.parameters()))
    assert not compiled.failure
    torch.testing.assert_close(got, expected)


def test_blocks_of_a_class_are_all_compiled() -> None:
    """An SDXL's blocks have a dozen shapes: fails if those after torch's limit of eight run as they are."""
    graphs: list[int] = []

    def counting(graph: Any, inputs: Any) -> Any:
        graphs.append(len(inputs))
        return graph.forward

    class GrowingBlock(torch.nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(width, width + 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(self.layer(x))

    import torch._dynamo.config as settings

    limit = settings.cache_size_limit  # in newer versions another name of recompile_limit
    net = torch.nn.Sequential(*(GrowingBlock(width) for width in range(2, 14)))
    with compiled_blocks(net, backend=counting):  # type: ignore[arg-type]
        net(torch.randn(3, 2)).sum().backward()
    assert len(graphs) == 12
    assert settings.cache_size_limit == limit


def test_a_failing_compiler_is_loud_and_harmless(toy: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Fails if it stops the run, goes unsaid, or is tried again at each call."""
    net, arguments = toy().module, (torch.randn(2, 4, 4, 4), torch.ones(2), torch.ones(2))
    tried = 0

    def broken(graph: Any, inputs: Any) -> Any:
        nonlocal tried
        tried += 1
        raise RuntimeError("no compiler here")

    expected = net(*arguments)
    with caplog.at_level(logging.WARNING), compiled_blocks(net, backend=broken) as compiled:  # type: ignore[arg-type]
        for _ in range(2):
            assert torch.equal(net(*arguments), expected)
    assert "no compiler here" in compiled.failure and "no compiler here" in caplog.text and tried == 1


class Waits(TorchDispatchMode):
    """Counts what makes a program wait for the device: reading a number, and copies to the CPU's side of a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)
        return func(*args, **(kwargs or {}))


def test_a_step_waits_for_the_device_once(toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if a step reads more numbers from the device than one batch of what it logs.

    Steps 4 to 9 are compared, so that what is done once does not count; on a GPU the loss is read a step late.
    """
    counts = []
    for steps in (3, 9):
        denoiser = toy()
        with Waits() as waits:
            config = TrainingConfig(steps=steps, rank=2, gradient_checkpointing=True)
            train(denoiser, data(3), config, tmp_path / str(steps))
        counts.append(waits.count)
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in denoiser.module.modules()]
        assert not any(hooks)
    assert (counts[1] - counts[0]) / 6 <= WAITS


WAITS = 3
"""Loss, gradient norm, and one of the log; each from one read on a CPU."""


def lora_of(toy: Any) -> tuple[nn.Module, list[str]]:
    net = toy().module
    names = [n for n, m in net.named_modules() if isinstance(m, nn.Linear | nn.Conv2d) and "blocks" in n]
    return net, ["diffusion_model." + name for name in names]


def test_lean_branches_are_pefts(toy: Any) -> None:
    """Output and gradients against peft's own forward, alpha ≠ rank: fails if a factor or the scale is misplaced."""
    net, names = lora_of(toy)
    arguments = (torch.randn(2, 4, 4, 4), torch.ones(2), torch.ones(2))
    with injected({"diffusion_model.": net}, names, rank=3, alpha=2.0, seed=0) as adapters:
        parameters = adapters.parameters()
        with torch.no_grad():
            for parameter in parameters:
                parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(3))
        expected = torch.autograd.grad(net(*arguments).square().sum(), parameters)
        with lean_branches({"": net}) as count:
            assert count == len(names)
            got = torch.autograd.grad(net(*arguments).square().sum(), parameters)
            with adapters.disabled():
                bare = net(*arguments)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(bare, net(*arguments))


class CastLinear(nn.Linear):
    """Casts its weight to the input's dtype, as hosts do with fp8."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, self.weight.to(x.dtype), None)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16])
def test_cast_weights_are_not_kept(dtype: torch.dtype, saved_bytes: Callable[..., int]) -> None:
    """Fails if the graph holds full-precision copies of low-precision weights, or gradients differ from theirs."""
    net = nn.Sequential(*(CastLinear(32, 32, bias=False) for _ in range(3)))
    for layer in net:
        layer.weight = nn.Parameter(layer.weight.detach().to(dtype), requires_grad=False)
    x = torch.randn(2, 32, requires_grad=True)
    (expected,) = torch.autograd.grad(net(x).square().sum(), [x])
    copies = saved_bytes(lambda: net(x))
    with recast_weights(net):
        (got,) = torch.autograd.grad(net(x).square().sum(), [x])
        assert saved_bytes(lambda: net(x)) == 0
    assert copies >= 3 * 32 * 32 * 4
    assert torch.equal(got, expected)


def test_bf16_branches_keep_no_second_input(saved_bytes: Callable[..., int]) -> None:
    """Beside a bf16 layer: fails if the branch keeps an fp32 copy of the input, or trains in other than fp32."""
    net = nn.ModuleDict({"attn1": nn.Linear(64, 64).to(torch.bfloat16)})
    x = torch.randn(50, 64, dtype=torch.bfloat16, requires_grad=True)
    sizes = []
    with injected({"diffusion_model.": net}, ["diffusion_model.attn1"], rank=2, alpha=2.0, seed=0) as adapters:
        for lean in (False, True):
            with lean_branches({"": net} if lean else {}):
                sizes.append(saved_bytes(lambda: net["attn1"](x * 1)))
                out = net["attn1"](x)
                assert out.dtype == torch.bfloat16
                out.square().sum().backward()
        assert all(p.dtype == torch.float32 and p.grad.dtype == torch.float32 for p in adapters.parameters())
    assert sizes[0] - sizes[1] >= 50 * 64 * 2 - 1000  # the input in bf16, which others keep too, in place of fp32


@pytest.fixture()
def saved_bytes() -> Callable[..., int]:
    """saved_bytes(forward): bytes of all storages that the graph of forward() keeps, by torch's own hooks."""

    def measure(forward: Callable[[], Tensor]) -> int:
        kept: dict[int, Tensor] = {}

        def pack(tensor: Tensor) -> Tensor:
            if not isinstance(tensor if tensor._base is None else tensor._base, nn.Parameter):
                kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            forward()
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())

    return measure
