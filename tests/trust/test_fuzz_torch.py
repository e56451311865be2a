"""420 torch files (pickles in archives) that carry code, grow, lie or are broken: nothing runs, no memory is filled."""

from __future__ import annotations

import io
import os
import pickle
import random
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from likeness.lora.files import read_lora, write_safetensors

ROOT = Path(__file__).resolve().parents[2]
EACH = 30
LORA = {"lora_unet_conv_in.lora_up.weight": torch.ones(4, 2), "lora_unet_conv_in.lora_down.weight": torch.ones(2, 3)}
Make = Callable[[random.Random, Path], bytes]  # (chance, what code would make) -> the file
KINDS: dict[str, Make] = {}


def kind(function: Make) -> Make:
    KINDS[function.__name__.replace("_", " ")] = function
    return function


class Calls:
    """Pickled, it calls a function when it is read."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class SetsState:
    """Pickled, it calls `exec` by way of its state."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> Any:
        return exec, (self.code,), {"x": 1}


def payload(chance: random.Random, canary: Path) -> Any:
    """Something that makes the canary when it is unpickled in the ordinary way."""
    code = f"open({str(canary)!r}, 'w').close()"
    return chance.choice(
        (
            Calls(os.mkdir, str(canary)),
            Calls(open, str(canary), "w"),
            Calls(os.system, f"touch '{canary}'"),
            Calls(exec, code),
            Calls(eval, code),
            Calls(subprocess.check_call, ["touch", str(canary)]),
            Calls(Path.touch, canary),
            SetsState(code),
        )
    )


def saved(content: Any, zipped: bool = True, protocol: int = 2) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    return file.getvalue()


@kind
def code_among_the_tensors(chance: random.Random, canary: Path) -> bytes:
    evil = payload(chance, canary)
    content: Any = chance.choice(
        (
            {**LORA, "x": evil},
            {"state_dict": {"x": evil}},
            [evil],
            evil,
            {"x": (1, {"y": evil})},
            {**LORA, "x": {1: evil}},
        )
    )
    return saved(content, chance.random() < 0.6, chance.choice((2, 3, 4)))


@kind
def a_bare_pickle(chance: random.Random, canary: Path) -> bytes:
    return pickle.dumps(payload(chance, canary), chance.choice((0, 1, 2, 3, 4, 5)))


@kind
def code_in_an_old_archive(chance: random.Random, canary: Path) -> bytes:
    """The tar of 2016, in which torch before 2.6 runs code even when told to read weights alone."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = pickle.dumps(payload(chance, canary))
            about = tarfile.TarInfo(("\x80\x02" if chance.random() < 0.3 else "") + name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    return file.getvalue()


@kind
def code_in_a_script_archive(chance: random.Random, canary: Path) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/constants.pkl", pickle.dumps(payload(chance, canary)))
        archive.writestr("archive/data.pkl", pickle.dumps(payload(chance, canary)))
        archive.writestr("archive/code/__torch__.py", "import os")
        archive.writestr("archive/version", "3\n")
    return file.getvalue()


@kind
def names_in_the_archive_that_are_paths(chance: random.Random, canary: Path) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(LORA))) as old, zipfile.ZipFile(file, "w") as new:
        for item in old.infolist():
            new.writestr(item.filename, old.read(item))
        new.writestr(chance.choice((str(canary), f"../../{canary.name}", f"archive/../../{canary.name}")), b"x")
    return file.getvalue()


@kind
def truncated(chance: random.Random, canary: Path) -> bytes:
    whole = saved(LORA, chance.random() < 0.6)
    return whole[: chance.randrange(len(whole))]


@kind
def bytes_changed(chance: random.Random, canary: Path) -> bytes:
    whole = bytearray(saved(LORA, chance.random() < 0.6))
    for _ in range(chance.randint(1, 30)):
        whole[chance.randrange(len(whole))] = chance.randrange(256)
    return bytes(whole)


@cache
def bomb() -> bytes:
    """400 MB of zeros in 400 kB, laid out as torch does."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(LORA))) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for item in old.infolist():
            content = old.read(item)
            new.writestr(item.filename, bytes(200_000_000) if "/data/" in item.filename else content)
    return file.getvalue()


@kind
def a_zip_bomb(chance: random.Random, canary: Path) -> bytes:
    return bomb()


@kind
def one_number_as_a_huge_tensor(chance: random.Random, canary: Path) -> bytes:
    size = chance.choice((10_000, 1_000_000))
    huge = torch.ones(1).expand(size, size)
    return saved({**LORA, "lora_unet_conv_in.diff": huge}, chance.random() < 0.6)


@kind
def one_storage_many_times(chance: random.Random, canary: Path) -> bytes:
    one = torch.zeros(1000)
    return saved({f"lora_unet_x{i}.diff": one for i in range(3000)})


@kind
def no_plain_tensors(chance: random.Random, canary: Path) -> bytes:
    strange = chance.choice(
        (
            torch.eye(3).to_sparse(),
            torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.int64), [1.0], (10**9, 10**9)),
            torch.eye(4).to_sparse_csr(),
            torch.empty(10**6, 10**6, device="meta"),
            torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
            torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        )
    )
    return saved({**LORA, "lora_unet_conv_in.diff": strange})


@kind
def no_table_of_tensors(chance: random.Random, canary: Path) -> bytes:
    circle: dict[Any, Any] = {}
    circle["state_dict"] = circle
    deep: dict[Any, Any] = {**LORA}
    for _ in range(50):
        deep = {"state_dict": deep}
    contents: tuple[Any, ...] = (
        circle,
        deep,
        {1: torch.ones(2)},
        {**LORA, "x": "text"},
        [],
        3,
        None,
        {"state_dict": 3},
    )
    return saved(chance.choice((*contents, {}, {**LORA, "x": None}, torch.ones(2), {"x": [torch.ones(2)]})))


@kind
def many_marks(chance: random.Random, canary: Path) -> bytes:
    """Pickles that nest, repeat or claim great lengths."""
    start = b"\x80\x02"
    return chance.choice(
        (
            start + b"]" * 200_000 + b"a" * 100_000 + b".",
            start + b"(" * 100_000 + b".",
            start + b"\x8b\xff\xff\xff\x7f" + b"9" * 10 + b".",  # LONG4 of 2 GB
            b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b".",  # BINBYTES8 of a terabyte
            b"\x80\x04\x95" + (2**62).to_bytes(8, "little") + b".",
            start + b"c__builtin__\nbytearray\n" + b"\x8a\x05" + (10**11).to_bytes(5, "little") + b"\x85R.",
        )
    )


@kind
def honest(chance: random.Random, canary: Path) -> bytes:
    return saved(
        chance.choice((LORA, {"state_dict": LORA}, {"state_dict": {"state_dict": LORA}})), chance.random() < 0.6
    )


def test_the_payloads_are_live(tmp_path: Path) -> None:
    """Read in the ordinary way, every payload makes its canary: else the next test would prove nothing."""
    seen = set()
    for number in range(60):
        evil, canary = random.Random(number), tmp_path / f"canary-{number}"
        content = payload(evil, canary)
        seen.add(str(type(content)) + str(content.__reduce__()[0]))
        try:
            pickle.loads(pickle.dumps(content))
        except Exception:  # the state that is set after the call fits nothing
            assert isinstance(content, SetsState)
        assert canary.exists()
    assert len(seen) == 8


def test_nothing_runs_nothing_grows(judge: Any, peak: Any, tmp_path: Path) -> None:
    """Fails if any file runs code, takes other memory or time than its size allows, or gives an unclear error."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    canary, before = tmp_path / "canary", peak()
    for name, make in KINDS.items():
        chance = random.Random(name)
        for number in range(EACH):
            ending = chance.choice(("pt", "pth", "bin", "ckpt")) if chance.random() < 0.8 else "safetensors"
            path = tmp_path / "deep" / "er" / f"case-{number}.{ending}"
            path.write_bytes(make(chance, canary))
            tensors = judge.read(name, path.name, lambda path=path: read_lora(path))
            if tensors is not None and name == "honest":
                assert all(torch.equal(tensors[0][key], tensor) for key, tensor in LORA.items())
            path.unlink()
            assert not canary.exists(), f"{name} ran code"
    assert not [p for p in tmp_path.rglob("*") if not p.is_dir()], "a file was left somewhere"
    assert judge.accepted["honest"] > EACH // 2
    assert set(judge.accepted) <= {"honest", "bytes changed", "names in the archive that are paths"}, judge.accepted
    assert judge.total == EACH * len(KINDS) >= 400
    assert peak() - before < 300e6, f"{(peak() - before) / 1e6:.0f} MB"


OVERWRITTEN = """
import importlib.util, os, sys
root, path = sys.argv[1:]
spec = importlib.util.spec_from_file_location("likeness", root + "/__init__.py", submodule_search_locations=[root])
sys.modules["likeness"] = importlib.util.module_from_spec(spec)
import torch
from likeness.lora.files import read_lora
tensors, _ = read_lora(path)
os.truncate(path, 0)
print(sum(float(tensor.sum()) for tensor in tensors.values()))
"""


def test_a_file_cut_short_after_it_was_read_changes_nothing(tmp_path: Path) -> None:
    """Fails if what was read is a window into the file: another program that writes over it would end the host."""
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"lora_unet_conv_in.lora_up.weight": torch.ones(4096, 4096)})
    command = [sys.executable, "-c", OVERWRITTEN, str(ROOT), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr}"
    assert float(done.stdout) == 4096**2


def test_an_extension_says_nothing(tmp_path: Path) -> None:
    """Fails if a pickle is read because it is called .safetensors, or safetensors because they are called .pt."""
    (tmp_path / "a.safetensors").write_bytes(saved(LORA))
    with pytest.raises(ValueError, match="pickle under another name"):
        read_lora(tmp_path / "a.safetensors")
    write_safetensors(tmp_path / "b.pt", LORA)
    with pytest.raises(ValueError, match=r"b\.pt is a safetensors file under another name"):
        read_lora(tmp_path / "b.pt")
