"""Files: whole or not at all, the same bytes each time, and every broken or foreign file refused by name."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from likeness.lora.files import read_lora, write_safetensors

ROOT = Path(__file__).resolve().parents[2]
LORA = {"lora_unet_conv_in.lora_up.weight": torch.ones(4, 2), "lora_unet_conv_in.lora_down.weight": torch.ones(2, 3)}
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.float64]


def test_safetensors_reads_what_was_written(tmp_path: Path) -> None:
    """Fails if a header, an offset or a dtype is wrong: the format's own library must read the very same tensors."""
    tensors = {str(dtype): torch.arange(7).to(dtype) for dtype in DTYPES}
    tensors |= {"scalar": torch.tensor(4.0), "empty": torch.zeros(0, 3), "strided": torch.arange(12.0).reshape(3, 4).T}
    path = tmp_path / "deep" / "file.safetensors"
    write_safetensors(path, tensors, {"ключ": 'a "quoted" value', "a": "1"})
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"ключ": 'a "quoted" value', "a": "1"}
        assert set(file.keys()) == set(tensors)
        for name, tensor in tensors.items():
            assert torch.equal(file.get_tensor(name), tensor) and file.get_tensor(name).dtype == tensor.dtype, name


def test_the_layout_is_that_of_safetensors(tmp_path: Path) -> None:
    """Fails if tensors lay in another order than safetensors puts them, on which sshs_model_hash depends."""
    tensors = {f"{name} {dtype}": torch.arange(5).to(dtype) for dtype in DTYPES for name in "ba"}
    write_safetensors(tmp_path / "a.safetensors", tensors)
    ours, theirs = (tmp_path / "a.safetensors").read_bytes(), safetensors.torch.save(tensors)
    assert ours[8 + int.from_bytes(ours[:8], "little") :] == theirs[8 + int.from_bytes(theirs[:8], "little") :]


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    """Fails if the order of a dict or of the metadata decided the bytes: two equal runs must give equal files."""
    pairs, metadata = list(LORA.items()), {c: c for c in "qwertyuiop"}
    write_safetensors(tmp_path / "a", dict(pairs), metadata)
    write_safetensors(tmp_path / "b", dict(reversed(pairs)), dict(reversed(metadata.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


KILLER = """
import importlib.util, os, random, signal, sys, time
root, path = sys.argv[1:]
spec = importlib.util.spec_from_file_location("likeness", root + "/__init__.py", submodule_search_locations=[root])
sys.modules["likeness"] = importlib.util.module_from_spec(spec)
import safetensors.torch, torch
torch.set_num_threads(1)
from likeness.lora.files import write_safetensors

chance, number, seen = random.Random(3), 0, set()
write_safetensors(path, {"x": torch.zeros(1 << 18), "y": torch.zeros(1 << 18)})
for _ in range(25):
    number += 1000
    written, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        while True:
            number += 1
            fill = torch.full((1 << 18,), float(number))
            write_safetensors(path, {"x": fill, "y": fill}, {"n": str(number)})
            os.write(tell, b"w")
    os.read(written, 1)  # this writer's first file is there
    time.sleep(chance.uniform(0.0, 0.03))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    tensors = safetensors.torch.load(open(path, "rb").read())
    value = float(tensors["y"][0])
    assert (tensors["y"] == value).all() and (tensors["x"] == value).all()
    seen.add(value)
    os.close(written), os.close(tell)
print(len(seen))
"""


@pytest.mark.skipif(os.name != "posix", reason="there is no kill -9")
def test_kill_9_leaves_the_old_or_the_new_file(tmp_path: Path) -> None:
    """Fails if a killed save left half a file: writers of one file are killed at 25 random moments, and it is read."""
    command = [sys.executable, "-c", KILLER, str(ROOT), str(tmp_path / "lora.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 25, "a writer did not get to replace the file, so nothing was tested"
    assert [p for p in tmp_path.iterdir() if p.suffix == ".tmp"], "no writer was killed while it wrote"


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    """Fails if an error in the middle of a save damaged the file that was there."""
    path = tmp_path / "a.safetensors"
    write_safetensors(path, LORA)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"complex.*safetensors cannot hold"):
        write_safetensors(path, {"x": torch.zeros(2, dtype=torch.complex64)})
    with pytest.raises(ValueError, match="is no text"):
        write_safetensors(path, LORA, {"steps": 3})  # type: ignore[dict-item]
    with pytest.raises(IsADirectoryError):
        (tmp_path / "folder").mkdir()
        write_safetensors(tmp_path / "folder", LORA)
    assert path.read_bytes() == before and sorted(os.listdir(tmp_path)) == ["a.safetensors", "folder"]


def test_every_truncation_is_called_one(tmp_path: Path) -> None:
    """Fails if a download that broke off anywhere loaded, or gave an error that does not say so."""
    path = tmp_path / "a.safetensors"
    write_safetensors(path, LORA, {"a": "b"})
    whole = path.read_bytes()
    for length in (3, 8, 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"a\.safetensors is truncated"):
            read_lora(path)
    path.write_bytes(whole)
    assert set(read_lora(path)[0]) == set(LORA) and read_lora(path)[1] == {"a": "b"}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.safetensors", b"", "is empty"),
        ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        ("a.safetensors", b"\n<!DOCTYPE html><html>", "web page"),
        ("a.safetensors", b"GGUF\x03\x00\x00\x00", "GGUF"),
        ("a.safetensors", pickle.dumps({"a": 1}), "pickle under another name"),
        ("a.safetensors", b"PK\x03\x04" + bytes(60), "pickle under another name"),
        ("a.safetensors", b"\x10" + bytes(7) + b"not json at all!", "header is broken"),
        ("a.safetensors", b"\xff" * 40, "no safetensors file"),
        ("a.pt", b"PK\x03\x04" + bytes(60), "cannot be read"),
    ],
)
def test_what_is_no_model_file_is_called_what_it_is(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    """Fails if a web page, a pointer or a broken file gave an error that does not help."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=says):
        read_lora(tmp_path / name)


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("model.diffusion_model.input_blocks.0.0.weight", "whole checkpoint"),
        ("decoder.up.0.weight", "VAE"),
        ("emb_params", "textual inversion"),
        ("lora_unet_conv_in.alpha", "no LoRA"),
        ("something", "first is something"),
    ],
)
def test_other_models_are_no_lora(tmp_path: Path, key: str, says: str) -> None:
    """Fails if a checkpoint, a VAE or an embedding passed as a LoRA that changes nothing."""
    write_safetensors(tmp_path / "a.safetensors", {key: torch.ones(2)})
    with pytest.raises(ValueError, match=says):
        read_lora(tmp_path / "a.safetensors")


class Evil:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("evil-was-here",)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if reading a malicious file ran it: it would make a folder here."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.pt", "a.ckpt", "a.bin"):
        torch.save({"x": Evil(), **LORA}, name)
        with pytest.raises(ValueError, match="could run code: refused"):
            read_lora(name)
    assert not Path("evil-was-here").exists()


def test_tensors_alone_are_read_from_torch_files(tmp_path: Path) -> None:
    """Fails if a harmless .pt were refused, or one without names accepted."""
    torch.save({"state_dict": LORA}, tmp_path / "a.pt")
    assert set(read_lora(tmp_path / "a.pt")[0]) == set(LORA)
    torch.save([torch.ones(2, 2)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="no table of named tensors"):
        read_lora(tmp_path / "list.pt")
    with pytest.raises(FileNotFoundError, match=r"no file b\.safetensors"):
        read_lora(tmp_path / "b.safetensors")


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480])
def test_a_header_as_long_as_a_pickle_begins_is_no_pickle(length: int, tmp_path: Path) -> None:
    """Fails if a file is refused for the length of its header: 80 04 also begins a pickle."""
    for pad in range(length - 160, length):
        write_safetensors(tmp_path / "a.safetensors", {"a.lora_up.weight": torch.ones(1)}, {"x": "y" * pad})
        if (tmp_path / "a.safetensors").read_bytes()[:8] == length.to_bytes(8, "little"):
            break
    else:
        pytest.fail("no such header was made")
    assert set(read_lora(tmp_path / "a.safetensors")[0]) == {"a.lora_up.weight"}
