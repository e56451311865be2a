from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from likeness.trainers import offload
from likeness.trainers.offload import FileHome, MemoryHome, _bring_back, _movable, _swap_out, offloaded_blocks
from likeness.trainers.recompute import recomputed_blocks

CPU = torch.device("cpu")


class WideBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.down = nn.Linear(width, 2, bias=False)
        self.up = nn.Linear(2, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        h = torch.tanh(self.linear(h) + self.up(self.down(h)))
        return x + self.conv(h[:, None])[:, 0]


class WideNet(nn.Module):
    """Frozen blocks with a trained branch each."""

    def __init__(self, blocks: int = 4, width: int = 16) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(WideBlock(width) for _ in range(blocks))
        for name, parameter in self.named_parameters():
            parameter.requires_grad_("down" in name or "up" in name)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@pytest.fixture()
def net() -> Iterator[WideNet]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield WideNet()


def gradients(net: nn.Module, x: Tensor) -> list[Tensor]:
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    return list(torch.autograd.grad(net(x).square().sum(), trained))


def state(net: nn.Module) -> list[tuple[Any, ...]]:
    """Objects, flags and bytes of all parameters, and what the modules' instances hold."""
    found: list[tuple[Any, ...]] = [
        (name, id(tensor), tensor.requires_grad, tensor.detach().clone().numpy().tobytes())
        for name, tensor in net.named_parameters()
    ]
    return found + [(name, sorted(module.__dict__)) for name, module in net.named_modules()]


@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("recomputed", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("in_file", [True, False])
def test_gradients_are_the_same_and_the_model_comes_back(
    net: WideNet, tmp_path: Path, share: float, recomputed: float, in_file: bool
) -> None:
    """Against the model left alone, to the bit: fails if a weight is stale, missing or swapped in a pass."""
    x, before = torch.randn(2, 8, 16), state(net)
    expected, plain = gradients(net, x), net(x)
    with offloaded_blocks(net, share, CPU, FileHome(tmp_path) if in_file else MemoryHome()) as offload:
        assert offload.count == 4 * share
        with recomputed_blocks(net, share=recomputed):
            for _ in range(2):
                assert all(map(torch.equal, gradients(net, x), expected))
            with torch.no_grad():
                assert torch.equal(net(x), plain)
        # 2 gradients: forward and backward; 1 picture: forward.
        assert offload.fetches == offload.count * 5
    assert state(net) == before
    assert all(map(torch.equal, gradients(net, x), expected))


def test_pinned_weights_take_little_more_than_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flux' single blocks in small: fails if weights overlap, or each is rounded up to a power of two by itself."""
    made: list[Tensor] = []

    def pinned(size: int) -> Tensor:
        made.append(torch.empty(1 << (size - 1).bit_length(), dtype=torch.uint8))
        return made[-1][:size]

    monkeypatch.setattr(offload, "_pinned", pinned)
    monkeypatch.setattr(offload, "_SLAB", 512 << 10)
    home = MemoryHome()
    sizes = [132 << 10, 94 << 10, 56 << 10, 256] * 38
    rooms = [home.room(size) for size in sizes]
    for number, room in enumerate(rooms):
        room.fill_(number % 251)
    assert all(bool((room == number % 251).all()) for number, room in enumerate(rooms))
    assert all(len(room) == size for room, size in zip(rooms, sizes, strict=True))
    assert all(room.storage_offset() % 512 == 0 for room in rooms)
    assert sum(map(len, made)) < 1.1 * sum(sizes)


def test_weights_live_in_ordinary_memory_where_none_can_be_pinned(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Fails if a machine that locks no pages cannot swap, or says so for each weight."""

    def refused(size: int) -> Tensor:
        raise RuntimeError("out of pages")

    monkeypatch.setattr(offload, "_pinned", refused)
    home = MemoryHome()
    first, second = home.room(8), home.room(16)
    assert (len(first), len(second)) == (8, 16) and first.data_ptr() != second.data_ptr()
    assert caplog.text.count("out of pages") == 1


class FakeStream:
    """Notes what waits for what."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def wait_stream(self, other: FakeStream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event: FakeEvent) -> None:
        self.log.append(f"{self.name} waits for {event.after}")


class FakeEvent:
    after = "nothing"

    def record(self, stream: FakeStream) -> None:
        self.after = f"a copy on {stream.name}"


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_the_next_block_comes_over_a_side_stream(
    net: WideNet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, share: float
) -> None:
    """Fails if a copy may begin before what used its memory is done, a block is used before its copy is, or more than
    the next one is fetched ahead. (Of the streams themselves nothing is tried out here.)"""
    x, log = torch.randn(2, 8, 16), []
    expected = gradients(net, x)
    main, side = FakeStream("main", log), FakeStream("side", log)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    with offloaded_blocks(net, share, CPU, MemoryHome()) as swapped, recomputed_blocks(net):
        swapped._stream = side
        assert all(map(torch.equal, gradients(net, x), expected))
        count = swapped.count
        assert swapped.fetches == 2 * count
        # All but the first of the forward and the first of the backward pass came ahead.
        assert log == ["side waits for main", "main waits for a copy on side"] * (2 * (count - 1))
        assert all(block.coming is None for block in swapped.blocks)


def squares() -> set[int]:
    """All tensors of a weight's shape that hold memory."""
    gc.collect()
    return {id(o) for o in gc.get_objects() if isinstance(o, Tensor) and o.shape == (16, 16) and o.untyped_storage()}


def test_the_device_holds_no_swapped_weight(net: WideNet, tmp_path: Path) -> None:
    """Fails if the model's own parameter, or the graph after a forward pass, keeps a weight on the device."""
    originals = {name: p for name, p in net.named_parameters() if not p.requires_grad}
    with offloaded_blocks(net, 1.0, CPU, FileHome(tmp_path)):
        assert sum(p.untyped_storage().nbytes() for p in originals.values()) == 0
        standing = dict(net.named_parameters())
        assert all(standing[name].shape == p.shape for name, p in originals.items())
        before = squares()
        loss = net(torch.randn(2, 9, 16)).square().sum()
        assert squares() == before
        loss.backward()
    assert all(p.untyped_storage().nbytes() == p.numel() * 4 for p in originals.values())


def test_an_error_inside_brings_the_weights_back(net: WideNet) -> None:
    """Fails if a run that dies leaves an empty model."""
    before = state(net)
    with pytest.raises(KeyError), offloaded_blocks(net, 1.0, CPU):
        net(torch.randn(1, 8, 16))
        raise KeyError
    assert state(net) == before


def test_weights_that_share_memory_stay(net: WideNet) -> None:
    """Fails if emptying one parameter's storage would take another's bytes with it."""
    both = torch.randn(2, 16, 16)
    for number in range(2):
        net.blocks[number].linear.weight = nn.Parameter(both[number], requires_grad=False)
    with offloaded_blocks(net, 1.0, CPU):
        assert net.blocks[0].linear.weight.data_ptr() == both.data_ptr()
    with pytest.raises(ValueError, match="offload_blocks"), offloaded_blocks(nn.Linear(2, 2), 1.0, CPU):
        pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_a_files_pages_are_the_weight(tmp_path: Path, dtype: torch.dtype) -> None:
    """Fails if a fetch copies on a CPU, if weights share a place, or if one that was let go cannot be read again."""
    weights = [torch.randn(shape).to(dtype) for shape in ((3, 5), (700, 9), (), (2, 1, 3, 3))]
    home = FileHome(tmp_path)
    kept = [home.keep(weight) for weight in weights]
    for _ in range(2):
        for here, weight in zip(kept, weights, strict=True):
            fetched = here.fetch(CPU)
            assert fetched.data_ptr() == here.tensor.data_ptr() != weight.data_ptr()
            assert fetched.shape == weight.shape and fetched.stride() == weight.stride()
            assert torch.equal(fetched.float(), weight.float())
            here.leave()
            assert torch.equal(fetched.float(), weight.float())


@pytest.mark.parametrize("recomputed", [0.0, 1.0])
def test_a_block_is_left_when_the_next_comes(net: WideNet, tmp_path: Path, recomputed: float) -> None:
    """Fails if the pages of a block that is done stay, or go while its backward pass still needs them."""
    log: list[tuple[str, int]] = []

    class Noted:
        def __init__(self, kept: Any, number: int) -> None:
            self.kept, self.tensor, self.number = kept, kept.tensor, number

        def fetch(self, device: torch.device) -> Tensor:
            log.append(("fetch", self.number))
            return self.kept.fetch(device)

        def leave(self) -> None:
            log.append(("leave", self.number))
            self.kept.leave()

    class NotedHome(FileHome):
        def keep(self, tensor: Tensor) -> Any:
            kept = super().keep(tensor)
            if tensor.shape == (16, 16):  # one such weight a block
                self.number = getattr(self, "number", -1) + 1
                return Noted(kept, self.number)
            return kept

    with offloaded_blocks(net, 1.0, CPU, NotedHome(tmp_path)), recomputed_blocks(net, share=recomputed):
        gradients(net, torch.randn(2, 8, 16))
        present = set()
        for what, number in log:
            present = present | {number} if what == "fetch" else present - {number}
            assert len(present) <= 1
        assert [number for what, number in log if what == "fetch"] == [0, 1, 2, 3, 3, 2, 1, 0]


RESIDENT = """
import importlib.util, pathlib, sys
root, test, folder = map(pathlib.Path, sys.argv[1:])
for name, path in (("likeness", root / "__init__.py"), ("tested", test)):
    where = [str(root)] if name == "likeness" else None
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=where)
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
t = sys.modules["tested"]

def resident():
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if "VmRSS" in line)

net, x = t.WideNet(8, 2048), t.torch.randn(1, 4, 2048)
t.gradients(net, x)
before = resident()
with t.offloaded_blocks(net, 1.0, t.CPU, t.FileHome(folder)), t.recomputed_blocks(net):
    t.gradients(net, x)
    print(before - resident())
"""


def test_resident_memory_falls(tmp_path: Path) -> None:
    """Of 8 blocks of 16 MiB at most 2 stay resident: fails if the file's pages or the originals count on."""
    if not Path("/proc/self/status").is_file():
        pytest.skip("no /proc")
    here = Path(__file__).resolve()
    command = [sys.executable, "-c", RESIDENT, str(here.parents[2]), str(here), str(tmp_path)]
    fell = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert float(fell) > 5 * 16


def test_weights_that_a_host_left_in_main_memory_go_too() -> None:
    """As on a small GPU: fails if they are left to the host, held twice, or not as they were afterwards."""
    block = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3)).requires_grad_(False)
    before = {name: parameter.clone() for name, parameter in block.named_parameters()}
    objects = list(block.parameters())
    device = torch.device("cuda")  # nothing is sent there
    found = _movable(block, device)
    assert [parameter for *_, parameter in found] == objects
    swapped = _swap_out(found, device, MemoryHome())
    assert all(parameter.untyped_storage().nbytes() == 0 for parameter in objects)
    assert all(torch.equal(parameter, before[name]) for name, parameter in block.named_parameters())
    _bring_back([swapped])
    assert all(map(lambda one, other: one is other, block.parameters(), objects))
    assert all(torch.equal(parameter, before[name]) for name, parameter in block.named_parameters())
