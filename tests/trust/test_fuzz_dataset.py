"""840 training folders with hostile pictures, captions and links: each is refused by name, or read."""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from likeness.trainers.dataset import load_folder

EACH = 30
Make = Callable[[random.Random, Path], None]  # writes into the folder, whose parent may be written to, too
PICTURES: dict[str, Make] = {}
CAPTIONS: dict[str, Make] = {}
LINKS: dict[str, Make] = {}


def into(table: dict[str, Make]) -> Callable[[Make], Make]:
    def add(function: Make) -> Make:
        table[function.__name__.replace("_", " ")] = function
        return function

    return add


picture, caption, link = into(PICTURES), into(CAPTIONS), into(LINKS)
FORMATS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "bmp": "BMP", "gif": "GIF", "tif": "TIFF"}


def drawn(chance: random.Random, mode: str = "RGB") -> Image.Image:
    size = chance.randint(16, 48), chance.randint(16, 48)
    bands = len(Image.new(mode, (1, 1)).getbands())
    return Image.frombytes(mode, size, chance.randbytes(size[0] * size[1] * bands))


def encoded(chance: random.Random, ending: str = "", **more: Any) -> tuple[str, bytes]:
    """(ending, the bytes of a good picture)."""
    ending = ending or chance.choice(list(FORMATS))
    file = io.BytesIO()
    drawn(chance).save(file, FORMATS[ending], **more)
    return ending, file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def a_png(width: int, height: int, *more: bytes, depth: int = 8, colours: int = 2) -> bytes:
    """A PNG that claims a size, with a few bytes of data."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", zlib.compress(bytes(999))) + chunk(b"IEND", b"")
    )


# -- pictures --------------------------------------------------------------------------------------------------------


@picture
def good(chance: random.Random, folder: Path) -> None:
    ending, content = encoded(chance)
    (folder / f"a.{ending}").write_bytes(content)


@picture
def truncated(chance: random.Random, folder: Path) -> None:
    ending, content = encoded(chance)
    (folder / f"a.{ending}").write_bytes(content[: chance.randrange(len(content) // 2)])


@picture
def bytes_changed(chance: random.Random, folder: Path) -> None:
    ending, content = encoded(chance)
    changed = bytearray(content)
    for _ in range(chance.randint(1, 20)):
        changed[chance.randrange(min(len(changed), 200))] = chance.randrange(256)
    (folder / f"a.{ending}").write_bytes(changed)


@picture
def a_png_of_a_huge_size(chance: random.Random, folder: Path) -> None:
    size = chance.choice(((50_000, 50_000), (2**31 - 1, 1), (2**31 - 1, 2**31 - 1), (1, 2**31 - 1), (2**32 - 1, 7)))
    depth, colours = chance.choice(((8, 2), (16, 6), (1, 0), (8, 3), (16, 0)))
    (folder / "a.png").write_bytes(a_png(*size, depth=depth, colours=colours))


@picture
def other_formats_of_a_huge_size(chance: random.Random, folder: Path) -> None:
    ending = chance.choice(("jpg", "gif", "bmp", "webp", "tif"))
    content = bytearray(encoded(chance, ending)[1])
    big = chance.choice((65_535, 60_000, 40_000))
    if ending == "jpg":
        at = content.index(b"\xff\xc0")
        content[at + 5 : at + 9] = struct.pack(">HH", big, big)
    elif ending == "gif":
        content[6:10] = struct.pack("<HH", big, big)
    elif ending == "bmp":
        content[18:26] = struct.pack("<ii", big * 100, chance.choice((1, -1)) * big * 100)
    elif ending == "webp":
        content[26:30] = struct.pack("<HH", 16383, 16383)
    else:
        for tag in (256, 257):
            at = content.find(struct.pack("<HH", tag, 4)) if struct.pack("<HH", tag, 4) in content else -1
            at = at if at >= 0 else content.index(struct.pack("<HH", tag, 3))
            content[at : at + 12] = struct.pack("<HHII", tag, 4, 1, big)
    (folder / f"a.{ending}").write_bytes(content)


@cache
def _packed() -> bytes:
    return zlib.compress(bytes(80_000_000), 1)


@picture
def texts_that_unpack_to_much(chance: random.Random, folder: Path) -> None:
    packed = _packed()
    kind = chance.choice(("zTXt", "iTXt", "iCCP"))
    content = {"zTXt": b"a\0\0" + packed, "iTXt": b"a\0\1\0\0\0" + packed, "iCCP": b"a\0\0" + packed}[kind]
    (folder / "a.png").write_bytes(a_png(16, 16, chunk(kind.encode(), content)))


@picture
def broken_orientation(chance: random.Random, folder: Path) -> None:
    """EXIF of noise, of the wrong type, or with offsets that point anywhere."""
    exif = chance.choice(
        (
            chance.randbytes(chance.randint(0, 99)),
            b"Exif\0\0MM\0*" + chance.randbytes(40),
            b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01" + chance.randbytes(12),
            b"Exif\0\0II*\0" + struct.pack("<I", 2**32 - 1),
            b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x02\0\xff\xff\xff\xff\x08\0\0\0" * 9,
        )
    )
    ending = chance.choice(("jpg", "png", "webp"))
    (folder / f"a.{ending}").write_bytes(encoded(chance, ending, exif=exif)[1])


@picture
def another_kind_of_file(chance: random.Random, folder: Path) -> None:
    content = chance.choice(
        (
            b"<html>not found</html>",
            b"version https://git-lfs.github.com/spec/v1",
            b"",
            b"\x80\x04\x95",
            b"%PDF-1.4\n",
            b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            b"P6 99999 99999 255\n",
            b"8BPS\0\x01" + bytes(20),
            chance.randbytes(300),
        )
    )
    (folder / f"a.{chance.choice(list(FORMATS))}").write_bytes(content)


@picture
def a_program_for_a_printer(chance: random.Random, folder: Path) -> None:
    """PostScript, which Pillow would hand to another program, to be run."""
    code = f"({folder.parent / 'canary'}) (w) file closefile\n"
    (folder / f"a.{chance.choice(list(FORMATS))}").write_text(
        f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n{code}showpage\n%%EOF\n"
    )


@picture
def another_mode(chance: random.Random, folder: Path) -> None:
    """Good pictures of every kind of number and transparency, NaN among them."""
    kind = chance.choice(("F", "I", "I;16", "1", "L", "LA", "RGBA", "CMYK", "P"))
    if kind == "F":
        values = np.full((20, 20), chance.choice((np.nan, np.inf, 1e30, 300.0)), dtype=np.float32)
        return Image.fromarray(values).save(folder / "a.tif")
    if kind in ("I", "I;16"):
        values = np.full((20, 20), 40_000, dtype=np.int32 if kind == "I" else np.uint16)
        return Image.fromarray(values).save(folder / "a.tif")
    made = drawn(chance).convert(kind)
    made.save(folder / ("a.jpg" if kind == "CMYK" else "a.png"))
    return None


@picture
def an_extreme_shape(chance: random.Random, folder: Path) -> None:
    size = chance.choice(((1, 1), (7, 7), (8, 3000), (20_000, 8), (1, 5000), (8, 8)))
    Image.new("L", size).save(folder / "a.png")


@picture
def a_mask_that_does_not_fit(chance: random.Random, folder: Path) -> None:
    (folder / "a.png").write_bytes(encoded(chance, "png")[1])
    content = chance.choice((b"", a_png(50_000, 50_000), encoded(chance, "jpg")[1], chance.randbytes(99)))
    (folder / f"{chance.choice('ab')}-masklabel.png").write_bytes(content)


@picture
def huge_metadata(chance: random.Random, folder: Path) -> None:
    about = PngImagePlugin.PngInfo()
    about.add_text("parameters", "x" * chance.choice((1_500_000, 5_000_000)))
    (folder / "a.png").write_bytes(encoded(chance, "png", pnginfo=about)[1])


# -- captions --------------------------------------------------------------------------------------------------------


@caption
def of_odd_encodings(chance: random.Random, folder: Path) -> None:
    text = chance.choice(("a sks 猫 in a café", "{trigger}", "ß" * 50))
    encodings = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "gb18030"]
    (folder / "a.txt").write_bytes(text.encode(chance.choice(encodings)))


@caption
def of_noise(chance: random.Random, folder: Path) -> None:
    (folder / "a.txt").write_bytes(chance.randbytes(chance.randint(0, 500)))


@caption
def of_broken_utf_8(chance: random.Random, folder: Path) -> None:
    bad = (b"\xed\xa0\x80", b"\xc0\xaf", b"\xf8\x88\x80\x80\x80", b"\xff\xfe", b"a\x80b", b"\xf4\x90\x80\x80", b"a\xc3")
    (folder / "a.txt").write_bytes(chance.choice(bad))


@caption
def of_control_characters(chance: random.Random, folder: Path) -> None:
    (folder / "a.txt").write_bytes(bytes(chance.randrange(32) for _ in range(20)))


@caption
def of_gigabytes(chance: random.Random, folder: Path) -> None:
    with (folder / "a.txt").open("wb") as file:
        file.write(b"a sks dog")
        file.truncate(chance.choice((200_000, 50_000_000, 20_000_000_000)))  # with a hole, which takes no room


@caption
def of_many_braces(chance: random.Random, folder: Path) -> None:
    texts = (
        "{" * 50_000,
        "{}" * 30_000,
        "{trigger.__class__}",
        "{0}{1}",
        "{trigger!r:>99999999}",
        "{{{trigger}}}",
        "}{",
    )
    (folder / "a.txt").write_text(chance.choice(texts))


@caption
def that_is_no_file(chance: random.Random, folder: Path) -> None:
    if chance.random() < 0.5:
        (folder / "a.txt").mkdir()
    else:
        os.mkfifo(folder / "a.txt")


# -- links and names -------------------------------------------------------------------------------------------------


@link
def link_to_a_file_elsewhere(chance: random.Random, folder: Path) -> None:
    """Welcome: nobody makes a link inside the input folder but the machine's owner, who keeps the photos elsewhere."""
    other = chance.choice((folder.parent, folder.parent.parent)) / "other"
    other.mkdir()
    (other / "c.png").write_bytes(encoded(chance, "png")[1])
    (other / "c.txt").write_text("a sks from next door")
    (other / "again.png").symlink_to("c.png")
    relative = os.path.relpath(other, folder)
    (folder / "a.png").unlink()
    (folder / "a.png").symlink_to(chance.choice((f"{relative}/c.png", other / "c.png", other / "again.png")))
    (folder / "a.txt").symlink_to(chance.choice((f"{relative}/c.txt", other / "c.txt")))


@link
def link_to_nowhere(chance: random.Random, folder: Path) -> None:
    (folder / chance.choice(("a.txt", "b.png"))).symlink_to(chance.choice(("nothing", "/dev/none", "../../../../x")))


@link
def links_in_a_circle(chance: random.Random, folder: Path) -> None:
    name = chance.choice(("a.txt", "b.png"))
    (folder / name).symlink_to("round")
    (folder / "round").symlink_to(name)


@link
def device(chance: random.Random, folder: Path) -> None:
    (folder / chance.choice(("a.txt", "b.png"))).symlink_to(
        chance.choice(("/dev/zero", "/dev/stdin", "/proc/self/mem"))
    )


@link
def a_pipe_or_a_folder_called_a_picture(chance: random.Random, folder: Path) -> None:
    if chance.random() < 0.5:
        os.mkfifo(folder / "b.png")
    else:
        (folder / "b.png").mkdir()


@link
def odd_file_names(chance: random.Random, folder: Path) -> None:
    names = (
        b"\xff\xfe",
        b"a" * 240,
        b"\n\r",
        "²٣".encode(),
        b"9" * 240,
        b"..a",
        b"-rf",
        b"$(id)",
        "\u202egnp".encode(),
    )
    content = encoded(chance, "png")[1] if chance.random() < 0.7 else b"x"
    with open(os.fsencode(folder) + b"/" + chance.choice(names) + b".png", "wb") as file:
        file.write(content)


@pytest.mark.skipif(os.name != "posix", reason="links and pipes as POSIX has them")
@pytest.mark.parametrize("table", [PICTURES, CAPTIONS, LINKS], ids=["pictures", "captions", "links"])
def test_every_folder_is_refused_by_name_or_read(table: dict[str, Make], judge: Any, peak: Any, tmp_path: Path) -> None:
    """Fails at a crash, a wait, another error, a device that is read, a program that is run, or much memory."""
    encoded(random.Random(0), "png")
    before = peak()
    for kind, make in table.items():
        chance = random.Random(kind)
        for number in range(EACH):
            folder = tmp_path / f"{kind} {number}" / "input" / "mine"
            folder.mkdir(parents=True)
            if table is not PICTURES:
                (folder / "a.png").write_bytes(encoded(chance, "png")[1])
            make(chance, folder)

            def read(folder: Path = folder) -> Any:
                return load_folder(folder, trigger="sks", resolution=32)

            found = judge.read(kind, "a" if kind != "odd file names" else "", read)
            if found is None:
                continue
            for one in found.pictures:
                assert one.pixels.dtype.itemsize == 1 and one.pixels.shape[0] * one.pixels.shape[1] <= 32 * 32
                assert len(one.caption) < 200_000
                assert kind != "link to a file elsewhere" or one.caption == "a sks from next door"
                one.caption.encode()
    assert not list(tmp_path.rglob("canary")), "a picture ran a program"
    assert {kind for kind in table if judge.refused[kind] + judge.accepted[kind] == EACH} == set(table)
    never = {"truncated", "a png of a huge size", "another kind of file", "a program for a printer", "of gigabytes"}
    never |= {"of broken utf 8", "that is no file", "link to nowhere", "links in a circle", "device"}
    never |= {"a pipe or a folder called a picture"}
    assert not never & set(judge.accepted), judge.accepted
    for kind in {"good", "another mode", "huge metadata", "link to a file elsewhere"} & set(table):
        assert judge.accepted[kind] == EACH, judge.messages[kind]
    assert peak() - before < 600e6, f"{(peak() - before) / 1e6:.0f} MB"


def test_a_picture_that_is_too_large_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peak: Any) -> None:
    """Fails if the limit is Pillow's alone, which other nodes of the same process turn off."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    before = peak()
    rows = zlib.compressobj(1)
    data = b"".join(rows.compress(bytes(30_001)) for _ in range(30_000)) + rows.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0))
    content = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    assert len(content) < 5_000_000
    (tmp_path / "bomb.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"bomb\.png .*30000×30000"):
        load_folder(tmp_path)
    assert peak() - before < 100e6


def test_pillow_is_asked_for_pictures_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a file called .png is handed to Ghostscript, as Pillow does with PostScript, whatever it is called."""
    from PIL import EpsImagePlugin

    asked: list[Any] = []

    def draw(*arguments: Any, **named: Any) -> Any:
        asked.append(arguments)
        return Image.new("RGB", (32, 32)).im

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", draw)
    a_program_for_a_printer(random.Random(1), tmp_path)
    (path,) = tmp_path.iterdir()
    with Image.open(path) as file:
        file.load()
    assert len(asked) == 1, "Pillow no longer does it, so this test shows nothing"
    with pytest.raises(ValueError, match="cannot be read as a picture"):
        load_folder(tmp_path)
    assert len(asked) == 1
