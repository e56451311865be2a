"""2,580 LoRA files that a bad download, a bug or an attacker could make: each is refused by name, or read exactly."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from likeness.lora.delta import LowRankDelta
from likeness.lora.files import read_lora
from likeness.lora.keys import from_deltas, rename, to_deltas
from likeness.lora.load import load_lora

EACH = 60
LAYERS = {
    "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q": (8, 8),
    "diffusion_model.input_blocks.8.1.transformer_blocks.0.ff.net.0.proj": (16, 8),
    "diffusion_model.input_blocks.3.0.op": (8, 8, 3, 3),
    "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v": (8, 24),
    "clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj": (8, 8),
}
FLUX = {"diffusion_model.double_blocks.0.img_attn.qkv": (24, 8), "diffusion_model.single_blocks.1.linear1": (56, 8)}
Header = dict[str, Any]
WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}


def honest(chance: random.Random) -> tuple[Header, bytes]:
    """The header and the data of a good file, in one of the namings."""
    layers = chance.choice((LAYERS, FLUX))
    deltas = {}
    for layer, shape in layers.items():
        rank = chance.choice((1, 2, 4))
        conv = len(shape) == 4
        up, down = torch.randn(shape[0], rank, *([1, 1] if conv else [])), torch.randn(rank, *shape[1:])
        deltas[layer] = LowRankDelta(up, down, 0.5, "conv" if conv else "linear")
    scheme = chance.choice(("kohya", "diffusers", "comfy"))
    res_blocks = (2, 2, 2, 2) if layers is LAYERS else None
    dtype = chance.choice((torch.float32, torch.float16, torch.bfloat16))
    tensors = {name: t.to(dtype).contiguous() for name, t in rename(from_deltas(deltas), scheme, res_blocks).items()}
    metadata = {"likeness.trigger": "sks"} | ({"likeness.res_blocks": "[2, 2, 2, 2]"} if res_blocks else {})
    content = safetensors.torch.save(tensors, metadata)
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


@pytest.fixture(scope="module")
def good() -> list[tuple[str, bytes]]:
    """Good files: the header as JSON, and the data."""
    chance = random.Random(1)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return [(json.dumps(header), data) for header, data in (honest(chance) for _ in range(40))]


def joined(header: Header | bytes | str, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else (header if isinstance(header, str) else json.dumps(header)).encode()
    return len(text).to_bytes(8, "little") + text + data


def names(header: Header) -> list[str]:
    return [name for name in header if name != "__metadata__"]


def laid_out(tensors: dict[str, tuple[str, list[int]]], chance: random.Random, metadata: Any = None) -> bytes:
    """A file that is right as a safetensors file, whatever its tensors mean: name -> dtype and shape."""
    header: Header = {} if metadata is None else {"__metadata__": metadata}
    data = b""
    for name, (dtype, shape) in tensors.items():
        count = 1
        for n in shape:
            count *= n
        start = len(data)
        if dtype in ("F32", "F16", "BF16", "F64"):
            one = {"F32": "f", "F16": "e", "F64": "d"}.get(dtype)
            value = chance.uniform(-1, 1)
            data += (struct.pack("<" + one, value) if one else struct.pack("<f", value)[2:]) * count
        else:
            data += bytes(count * WIDTHS[dtype])
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, len(data)]}
    return joined(header, data)


def pair(base: str, rank: int = 2, out: int = 8, into: int = 8, dtype: str = "F32") -> dict[str, tuple[str, list[int]]]:
    return {f"{base}.lora_up.weight": (dtype, [out, rank]), f"{base}.lora_down.weight": (dtype, [rank, into])}


BASE = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
Mutation = Callable[[random.Random, Header, bytes], bytes]
MUTATIONS: dict[str, Mutation] = {}


def mutation(function: Mutation) -> Mutation:
    MUTATIONS[function.__name__.replace("_", " ")] = function
    return function


def entry(chance: random.Random, header: Header) -> Header:
    """One tensor's entry of the header, to be changed in place."""
    found: Header = header[chance.choice(names(header))]
    return found


# -- the file's bytes ------------------------------------------------------------------------------------------------


@mutation
def untouched(chance: random.Random, header: Header, data: bytes) -> bytes:
    return joined(header, data)


@mutation
def truncated(chance: random.Random, header: Header, data: bytes) -> bytes:
    whole = joined(header, data)
    return whole[: chance.randrange(len(whole))]


@mutation
def too_long(chance: random.Random, header: Header, data: bytes) -> bytes:
    return joined(header, data) + chance.randbytes(chance.randint(1, 99))


@mutation
def bytes_of_the_header_changed(chance: random.Random, header: Header, data: bytes) -> bytes:
    whole = bytearray(joined(header, data))
    for _ in range(chance.randint(1, 8)):
        whole[chance.randrange(len(whole) - len(data))] = chance.randrange(256)
    return bytes(whole)


@mutation
def bytes_of_the_data_changed(chance: random.Random, header: Header, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randint(1, 200)):
        changed[chance.randrange(len(data))] = chance.randrange(256)
    return joined(header, bytes(changed))


@mutation
def a_block_cut_out(chance: random.Random, header: Header, data: bytes) -> bytes:
    whole = joined(header, data)
    at = chance.randrange(len(whole) - 1)
    return whole[:at] + whole[at + chance.randint(1, 64) :]


@mutation
def another_header_length(chance: random.Random, header: Header, data: bytes) -> bytes:
    length = chance.choice((0, 1, 2**31, 2**32, 2**63, 2**64 - 1, 100_000_001, chance.randrange(4000)))
    return length.to_bytes(8, "little") + joined(header, data)[8:]


@mutation
def noise(chance: random.Random, header: Header, data: bytes) -> bytes:
    return chance.randbytes(chance.randint(0, 3000))


@mutation
def something_else(chance: random.Random, header: Header, data: bytes) -> bytes:
    start = chance.choice(
        (
            b"<!DOCTYPE html>",
            b"version https://git-lfs.github.com",
            b"GGUF",
            b"PK\x03\x04",
            b"\x80\x04",
            b"\x1f\x8b",
            b"",
        )
    )
    return start + chance.randbytes(chance.randint(0, 99))


# -- the header's text -----------------------------------------------------------------------------------------------


@mutation
def header_not_utf_8(chance: random.Random, header: Header, data: bytes) -> bytes:
    text = json.dumps(header)
    kind = chance.choice(("utf-16", "utf-32", "utf-8-sig", "latin-1", "surrogate"))
    if kind == "latin-1":
        return joined(text.replace("alpha", "älpha").replace("sks", "skß").encode("latin-1"), data)
    if kind == "surrogate":
        return joined(text.replace("sks", "\\ud800"), data)
    return joined(text.encode(kind), data)


@mutation
def header_too_deep(chance: random.Random, header: Header, data: bytes) -> bytes:
    depth = chance.choice((200, 2000, 100_000))
    opened = chance.choice(('{"a":', "["))
    return joined(chance.choice(("", '{"x":', '{"__metadata__":')) + opened * depth, data)


@mutation
def header_of_another_kind(chance: random.Random, header: Header, data: bytes) -> bytes:
    return joined(chance.choice(("[]", "null", "3", '"x"', "{}", '{"a":1}', '{"a":null}', '{"a":[]}', "", "NaN")), data)


@mutation
def keys_twice(chance: random.Random, header: Header, data: bytes) -> bytes:
    name = chance.choice(names(header))
    other = chance.choice(names(header))
    text = json.dumps(header)[:-1] + f", {json.dumps(name)}: {json.dumps(header[other])}" + "}"
    return joined(text, data)


@mutation
def fields_twice(chance: random.Random, header: Header, data: bytes) -> bytes:
    field = chance.choice(('"dtype": "F16", ', '"shape": [1], ', '"data_offsets": [0, 0], '))
    return joined(json.dumps(header).replace('"dtype"', field + '"dtype"', 1), data)


@mutation
def field_missing_or_strange(chance: random.Random, header: Header, data: bytes) -> bytes:
    about = entry(chance, header)
    strange = (None, 3, "x", {}, [], [[]], True, 1e300, -1)
    field = chance.choice(("dtype", "shape", "data_offsets", "more"))
    if chance.random() < 0.3 and field in about:
        del about[field]
    else:
        about[field] = chance.choice(strange)
    return joined(header, data)


@mutation
def huge_numbers_in_the_header(chance: random.Random, header: Header, data: bytes) -> bytes:
    text = json.dumps(header)
    number = chance.choice(("1" * 5000, "1e400", "-0", "18446744073709551616", "0x10"))
    return joined(text.replace('"data_offsets": [0', f'"data_offsets": [{number}', 1), data)


# -- what the header says --------------------------------------------------------------------------------------------


@mutation
def offsets_overlap(chance: random.Random, header: Header, data: bytes) -> bytes:
    one, other = chance.sample(names(header), 2)
    header[one]["data_offsets"] = list(header[other]["data_offsets"])
    if chance.random() < 0.5:
        header[one]["shape"], header[one]["dtype"] = header[other]["shape"], header[other]["dtype"]
    return joined(header, data)


@mutation
def offsets_out_of_range(chance: random.Random, header: Header, data: bytes) -> bytes:
    about = entry(chance, header)
    by = chance.choice((1, 4, len(data), 2**40, 2**62, -1, -4))
    about["data_offsets"] = [n + by for n in about["data_offsets"]]
    return joined(header, data)


@mutation
def offsets_reversed(chance: random.Random, header: Header, data: bytes) -> bytes:
    about = entry(chance, header)
    about["data_offsets"] = about["data_offsets"][::-1] if chance.random() < 0.5 else about["data_offsets"][:1]
    return joined(header, data)


@mutation
def a_hole_between_tensors(chance: random.Random, header: Header, data: bytes) -> bytes:
    del header[chance.choice(names(header))]
    return joined(header, data)


@mutation
def huge_shape(chance: random.Random, header: Header, data: bytes) -> bytes:
    about = entry(chance, header)
    big = chance.choice((2**31, 2**40, 2**62, 2**63, 2**64 - 1))
    about["shape"] = chance.choice(([big], [big, big], [big, 2, 4], [*about["shape"][:-1], big]))
    return joined(header, data)


@mutation
def huge_shape_of_nothing(chance: random.Random, header: Header, data: bytes) -> bytes:
    big = chance.choice((2**31, 2**40, 2**62))
    part = chance.choice(
        (pair(BASE, 0, big, big), {f"{BASE}.alpha": ("F32", [big, 0])}, {f"{BASE}.diff": ("F32", [0, big])})
    )
    return laid_out(part, chance)


@mutation
def strange_shape(chance: random.Random, header: Header, data: bytes) -> bytes:
    about = entry(chance, header)
    about["shape"] = chance.choice(
        ([], [0], [-1, *about["shape"][1:]], about["shape"][::-1], [1.5], ["8"], [None], about["shape"] + [1] * 200)
    )
    return joined(header, data)


@mutation
def other_dtype(chance: random.Random, header: Header, data: bytes) -> bytes:
    entry(chance, header)["dtype"] = chance.choice(
        (*WIDTHS, "F4", "F6_E2M3", "F8_E8M0", "C64", "f32", "float32", "U16", "U64", "")
    )
    return joined(header, data)


@mutation
def other_dtype_that_fits(chance: random.Random, header: Header, data: bytes) -> bytes:
    dtype = chance.choice((*WIDTHS, "C64", "I16", "U16", "U32", "U64"))
    widths = WIDTHS | {"C64": 8, "I16": 2, "U16": 2, "U32": 4, "U64": 8}
    kinds = {name: ("F32", shape) for name, (_, shape) in pair(BASE).items()} | {f"{BASE}.alpha": ("F32", [])}
    content = laid_out(kinds, chance)
    length = int.from_bytes(content[:8], "little")
    new = json.loads(content[8 : 8 + length])
    chosen = chance.choice(list(new))
    count, end = 1, 0
    for n in new[chosen]["shape"]:
        count *= n
    new[chosen]["dtype"] = dtype
    for about in new.values():
        size = (
            about["data_offsets"][1] - about["data_offsets"][0] if about is not new[chosen] else count * widths[dtype]
        )
        about["data_offsets"] = [end, end + size]
        end += size
    return joined(new, bytes(end))


# -- what the tensors are --------------------------------------------------------------------------------------------


@mutation
def not_a_number(chance: random.Random, header: Header, data: bytes) -> bytes:
    value = chance.choice((float("nan"), float("inf"), float("-inf")))
    name = chance.choice([n for n in names(header) if header[n]["dtype"] in ("F32", "F16", "BF16")])
    start, end = header[name]["data_offsets"]
    dtype = header[name]["dtype"]
    raw = struct.pack("<e", value) if dtype == "F16" else struct.pack("<f", value)[0 if dtype == "F32" else 2 :]
    at = chance.randrange(start, end, len(raw))
    return joined(header, data[:at] + raw + data[at + len(raw) :])


@mutation
def factor_missing(chance: random.Random, header: Header, data: bytes) -> bytes:
    parts = pair(BASE)
    del parts[chance.choice(list(parts))]
    return laid_out(parts | pair(BASE.replace("to_q", "to_k")), chance)


@mutation
def ranks_differ(chance: random.Random, header: Header, data: bytes) -> bytes:
    up, down = chance.sample(range(5), 2)
    parts = {f"{BASE}.lora_up.weight": ("F32", [8, up]), f"{BASE}.lora_down.weight": ("F32", [down, 8])}
    return laid_out(parts, chance)


@mutation
def no_matrix(chance: random.Random, header: Header, data: bytes) -> bytes:
    shapes: list[list[int]] = [[], [0], [8], [1, 1], [8, 2, 1], [8, 2, 3, 3], [8, 2, 1, 1, 1], [8, 2]]
    parts: dict[str, tuple[str, list[int]]] = {
        f"{BASE}.lora_up.weight": ("F32", chance.choice(shapes)),
        f"{BASE}.lora_down.weight": ("F32", chance.choice(shapes)[::-1]),
    }
    return laid_out(parts, chance)


@mutation
def strange_alpha(chance: random.Random, header: Header, data: bytes) -> bytes:
    dtype = chance.choice(("F32", "F16", "I64", "U8", "BOOL", "F8_E4M3", "F64"))
    return laid_out(pair(BASE) | {f"{BASE}.alpha": (dtype, chance.choice(([], [1], [1, 1], [2], [0], [8, 2])))}, chance)


@mutation
def tucker_bomb(chance: random.Random, header: Header, data: bytes) -> bytes:
    """Three small factors whose product would take terabytes."""
    big = chance.choice((3, 20_000))
    base = "lora_unet_down_blocks_0_downsamplers_0_conv"
    mid = chance.choice(([big, 1, 1, 1], [big, 1, 3, 3], [big, 1], [big, 2, 1, 1], [], [1, 1, 1]))
    parts: dict[str, tuple[str, list[int]]] = {
        f"{base}.lora_up.weight": ("F32", [1, big, 1, 1]),
        f"{base}.lora_down.weight": ("F32", [1, big, 1, 1]),
        f"{base}.lora_mid.weight": ("F32", mid),
    }
    return laid_out(parts, chance)


@mutation
def other_algorithms_half(chance: random.Random, header: Header, data: bytes) -> bytes:
    endings = [
        "hada_w1_a",
        "lokr_w1",
        "oft_blocks",
        "diff",
        "diff_b",
        "dora_scale",
        "set_weight",
        "reshape_weight",
        "w_norm",
    ]
    dtype = chance.choice(("F32", "I64", "F16"))
    parts = {f"{BASE}.{ending}": (dtype, chance.choice(([], [2], [2, 2]))) for ending in chance.sample(endings, 3)}
    return laid_out(parts | (pair(BASE) if chance.random() < 0.5 else {}), chance)


# -- names -----------------------------------------------------------------------------------------------------------


@mutation
def names_that_are_paths(chance: random.Random, header: Header, data: bytes) -> bytes:
    trick = chance.choice(
        ("../../x", "/etc/passwd", "C:\\x", "a\0b", "..", "\\\\host\\share", "", "~root/x", "%2e%2e/x")
    )
    return laid_out(pair(trick) if chance.random() < 0.5 else {trick: ("F32", [2])} | pair(BASE), chance)


@mutation
def endless_names(chance: random.Random, header: Header, data: bytes) -> bytes:
    word = chance.choice(("a", "lora_A.x.", ".lora_magnitude_vector", "down_blocks_0_", "_", ".", "to_q_", "9"))
    start = chance.choice(("", "lora_unet_", "transformer.", "text_encoder.", "unet."))
    return laid_out(pair(start + word * (chance.choice((20, 2000, 100_000)) // len(word))), chance)


@mutation
def endless_numbers(chance: random.Random, header: Header, data: bytes) -> bytes:
    number = chance.choice(("9" * 30, "9" * 5000, "٣", "00", "99999999999"))
    forms = ("unet:{}", "lora_unet_down_blocks_{}_attentions_0_proj_in", "diffusion_model.input_blocks.{}.1.proj_in")
    form = chance.choice(forms).format(number)
    if form.startswith("unet:"):
        return laid_out({f"{form}:up": ("F32", [8, 2]), f"{form}:down": ("F32", [2, 8])}, chance)
    return laid_out(pair(form), chance)


@mutation
def numbered_layers(chance: random.Random, header: Header, data: bytes) -> bytes:
    count = chance.choice((1, 4, 128, 144, 200))
    shape = chance.choice(([8, 2], [8], [], [0, 2]))
    roles = chance.choice((("up", "down"), ("up",), ("down",)))
    return laid_out({f"unet:{i}:{role}": ("F32", shape) for i in range(count) for role in roles}, chance)


@mutation
def one_layer_by_several_names(chance: random.Random, header: Header, data: bytes) -> bytes:
    layer = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    form = "{}.lora_{}{}.weight"
    parts: dict[str, tuple[str, list[int]]] = {}
    for adapter in chance.sample((".default", ".other", "", ".x"), 2):
        parts[form.format(layer, "B", adapter)] = ("F32", [8, 2])
        parts[form.format(layer, "A", adapter)] = ("F32", [2, 8])
    return laid_out(parts | (pair(BASE) if chance.random() < 0.5 else {}), chance)


@mutation
def names_of_no_layer(chance: random.Random, header: Header, data: bytes) -> bytes:
    parts: dict[str, tuple[str, list[int]]] = {}
    for number in range(chance.choice((1, 30, 600))):
        parts |= pair(f"{chance.choice(('lora_unet_', 'transformer.', 'x.', ''))}mystery{number}", 1, 1, 1)
    return laid_out(parts, chance)


@mutation
def a_whole_model(chance: random.Random, header: Header, data: bytes) -> bytes:
    start = chance.choice(
        ("model.diffusion_model.", "first_stage_model.", "double_blocks.", "decoder.up.", "text_model.")
    )
    return laid_out({f"{start}{i}.weight": ("F16", [2, 2]) for i in range(9)}, chance)


# -- metadata --------------------------------------------------------------------------------------------------------


@mutation
def metadata_no_text(chance: random.Random, header: Header, data: bytes) -> bytes:
    header["__metadata__"] = chance.choice((None, 3, [], "x", {"a": 3}, {"a": None}, {"a": {}}, {"a": ["b"]}))
    return joined(header, data)


@mutation
def strange_res_blocks(chance: random.Random, header: Header, data: bytes) -> bytes:
    text = chance.choice(
        ("[1000000000, 2]", "2", "[]", "[-1]", "[true]", "[" * 100_000, "x", '{"a": 1}', "[1.5]", "null")
    )
    header["__metadata__"] = {"likeness.res_blocks": text}
    return joined(header, data)


@mutation
def strange_peft_configuration(chance: random.Random, header: Header, data: bytes) -> bytes:
    config = chance.choice(
        (
            "[" * 100_000,
            "[]",
            "x",
            '{"lora_alpha": "8"}',
            '{"lora_alpha": NaN}',
            '{"lora_alpha": 1e999}',
            '{"lora_alpha": ' + "9" * 400 + "}",
            '{"alpha_pattern": [1], "lora_alpha": 4}',
            '{"alpha_pattern": {"": 3}, "lora_alpha": true}',
            '{"unet.lora_alpha": 8, "unet.use_rslora": "yes", "unet.alpha_pattern": "abc"}',
        )
    )
    base = chance.choice(("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", BASE))
    parts: dict[str, tuple[str, list[int]]] = {
        f"{base}.lora_A.weight": ("F32", [2, 8]),
        f"{base}.lora_B.weight": ("F32", [8, 2]),
    }
    if chance.random() < 0.2:
        parts[f"{base}.lora_A.weight"] = ("F32", [])
    return laid_out(parts, chance, {"lora_adapter_metadata": config})


@mutation
def endless_metadata(chance: random.Random, header: Header, data: bytes) -> bytes:
    header["__metadata__"] = {"ss_output_name": "../../" * chance.choice((1, 50_000)), "ss_tag_frequency": "{" * 50_000}
    return joined(header, data)


def is_exact(path: Path) -> bool:
    """Whether our reader gives what safetensors' own gives; False where ours refuses."""
    try:
        tensors, metadata = read_lora(path)
    except ValueError:
        return False
    theirs = safetensors.torch.load_file(path)
    assert set(tensors) == set(theirs)
    for name, tensor in theirs.items():
        assert tensors[name].dtype == tensor.dtype and tensors[name].shape == tensor.shape, name
        raw, other = (t.contiguous().flatten().view(torch.uint8) if t.numel() else t for t in (tensors[name], tensor))
        assert torch.equal(raw, other), name
    with safetensors.safe_open(path, "pt") as file:
        assert metadata == (file.metadata() or {})
    return True


def test_every_mutation_is_refused_by_name_or_read_exactly(judge: Any, peak: Any, good: Any, tmp_path: Path) -> None:
    """Oracle: safetensors' own loader. Fails at a crash, another error, a slow, huge or false reading of any file."""
    before = peak()
    for kind, mutate in MUTATIONS.items():
        chance = random.Random(kind)
        for number in range(EACH):
            path = tmp_path / f"case-{number}.safetensors"
            header, data = chance.choice(good)
            path.write_bytes(mutate(chance, json.loads(header), data))
            layers = None if kind == "untouched" else chance.choice((None, LAYERS, FLUX))
            lora = judge.read(kind, path.name, lambda path=path, layers=layers: load_lora(path, layers))
            exact = is_exact(path)
            if lora is not None:
                assert exact, f"{kind}: loaded, although the file is refused"
                numbers = [tensor.float() for tensor in lora.values() if tensor.is_floating_point()]
                assert all(bool(t.isfinite().all()) for t in numbers), f"{kind}: NaN or infinity was loaded"
                judge.read(f"{kind}, as a difference", "", lambda lora=lora: to_deltas(lora))
    assert judge.accepted["untouched"] == EACH, "good files are refused"
    always_refused = (
        "truncated",
        "too long",
        "noise",
        "not a number",
        "ranks differ",
        "factor missing",
        "header too deep",
    )
    assert not any(judge.accepted[kind] for kind in always_refused), judge.accepted
    assert {kind for kind in MUTATIONS if judge.refused[kind]} >= set(MUTATIONS) - {"untouched", "endless metadata"}
    assert sum(judge.refused[k] + judge.accepted[k] for k in MUTATIONS) == EACH * len(MUTATIONS) >= 2000
    assert peak() - before < 400e6, f"{(peak() - before) / 1e6:.0f} MB"
