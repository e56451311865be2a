from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from likeness.trainers.dataset import from_images, load_folder, natural_key, preview_sheet


def save(
    path: Path, size: tuple[int, int] = (16, 16), colour: object = "red", mode: str = "RGB", **more: object
) -> None:
    Image.new(mode, size, colour).save(path, **more)  # type: ignore[arg-type]


def test_captions_come_from_files_else_from_the_template(tmp_path: Path) -> None:
    """Fails if a caption file is not read, its words are not filled in, or the order is 10 before 2."""
    for name in ("pic10.png", "pic2.png", "Pic1.png"):
        save(tmp_path / name)
    (tmp_path / "pic2.txt").write_text("\ufeffa {trigger}\n in  the {snow}\n", encoding="utf-8")
    (tmp_path / "pic10.txt").write_text("", encoding="utf-8")
    got = load_folder(tmp_path, trigger="sks", class_noun="dog", resolution=16, repeats=3, flip=True)
    assert [picture.source for picture in got.pictures] == ["Pic1.png", "pic2.png", "pic10.png"]
    assert [picture.caption for picture in got.pictures] == ["a picture of sks dog", "a sks in the {snow}", ""]
    assert (got.repeats, got.flip, got.trigger, got.class_noun) == (3, True, "sks", "dog")


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    """Fails if a phone's picture that is stored lying stays lying."""
    stored = Image.new("RGB", (32, 16), "blue")
    stored.paste((255, 0, 0), (0, 0, 8, 16))  # the stored left edge, shown on top
    exif = Image.Exif()
    exif[0x0112] = 6
    stored.save(tmp_path / "a.png", exif=exif)
    picture = load_folder(tmp_path, resolution=64).pictures[0]
    assert picture.original_size == (32, 16) and picture.target_size == (32, 16)
    assert picture.pixels[2, 8].tolist() == [255, 0, 0] and picture.pixels[30, 8].tolist() == [0, 0, 255]


def test_alpha_as_mask(tmp_path: Path) -> None:
    """Fails if opacity is not the mask, stored colours are bleached, or an opaque picture gets a mask for nothing."""
    image = Image.new("RGBA", (16, 16), (200, 100, 0, 0))
    image.paste((10, 20, 30, 51), (0, 0, 8, 16))
    image.save(tmp_path / "1.png")
    save(tmp_path / "2.png", mode="RGBA", colour=(9, 9, 9, 255))
    save(tmp_path / "3.jpg")
    masked, opaque, plain = load_folder(tmp_path, resolution=16, alpha="mask").pictures
    assert masked.mask is not None
    assert torch.allclose(masked.mask[:, :8], torch.tensor(0.2)) and (masked.mask[:, 8:] == 0).all()
    assert masked.pixels[0, 0].tolist() == [10, 20, 30] and masked.pixels[0, 15].tolist() == [200, 100, 0]
    assert opaque.mask is None and plain.mask is None
    (first, *_) = load_folder(tmp_path, resolution=16).pictures
    assert first.mask is None and first.pixels[0, 15].tolist() == [255, 255, 255]
    with pytest.raises(ValueError, match="'ignore'"):
        load_folder(tmp_path, resolution=16, alpha="ignore")


def test_mask_files_beside_pictures(tmp_path: Path) -> None:
    """Fails if a mask is trained as a picture, belongs to another one, or does not go before transparency."""
    save(tmp_path / "cat.jpg", size=(32, 32))
    save(tmp_path / "cow.png", size=(32, 32), mode="RGBA", colour=(0, 0, 0, 0))
    save(tmp_path / "dog.png", size=(32, 32))
    for name, size in (("cat", (32, 32)), ("cow", (16, 16))):  # the second is smaller than its picture
        mask = Image.new("L", size, 0)
        mask.paste(255, (0, 0, size[0] // 2, size[1]))
        mask.save(tmp_path / f"{name}-masklabel.png")
    cat, cow, dog = load_folder(tmp_path, resolution=32, alpha="mask").pictures
    assert [picture.source for picture in (cat, cow, dog)] == ["cat.jpg", "cow.png", "dog.png"]
    for picture in (cat, cow):
        assert picture.mask is not None
        assert (picture.mask[:, :14] == 1).all() and (picture.mask[:, 18:] == 0).all()
    assert dog.mask is None
    save(tmp_path / "dog-masklabel.png", size=(32, 16), mode="L", colour=255)
    with pytest.raises(ValueError, match=r"dog-masklabel\.png is 32×16 and its picture 32×32"):
        load_folder(tmp_path, resolution=32)
    (tmp_path / "dog.png").unlink()
    with pytest.raises(ValueError, match=r"dog-masklabel\.png is the mask of a picture 'dog'"):
        load_folder(tmp_path, resolution=32)


@given(
    opacity=st.lists(st.integers(0, 255), min_size=4, max_size=4),
    colour=st.tuples(*[st.integers(0, 255)] * 3),
)
@settings(max_examples=20, deadline=None)
def test_alpha_of_a_batch_is_that_of_a_file(
    opacity: list[int], colour: tuple[int, int, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Fails if an RGBA batch and the same RGBA file give other pixels or masks, laid on white or as a mask."""
    array = np.zeros((16, 16, 4), dtype=np.uint8)
    array[..., :3] = colour
    array[..., 3] = np.repeat(np.array(opacity, dtype=np.uint8), 4)
    folder = tmp_path_factory.mktemp("alpha")
    Image.fromarray(array).save(folder / "a.png")
    for alpha in ("composite", "mask"):
        (file,) = load_folder(folder, resolution=16, alpha=alpha).pictures
        (batch,) = from_images(torch.from_numpy(array)[None].float() / 255, resolution=16, alpha=alpha).pictures
        assert (file.pixels.int() - batch.pixels.int()).abs().max() <= 1
        if file.mask is None:
            assert batch.mask is None or (batch.mask == 1).all()
        else:
            assert batch.mask is not None and torch.allclose(file.mask, batch.mask)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_becomes_white(tmp_path: Path, mode: str) -> None:
    """Fails if what is transparent shows its hidden colour, or black."""
    if mode == "P":
        image = Image.new("P", (16, 16), 0)
        image.putpalette([0, 0, 0] * 256)
        image.save(tmp_path / "a.png", transparency=0)
        expected = 255
    else:
        save(tmp_path / "a.png", colour=(0, 0, 0, 51) if mode == "RGBA" else (0, 51), mode=mode)
        expected = 204  # a fifth of black over white
    pixels = load_folder(tmp_path, resolution=16).pictures[0].pixels
    assert pixels.shape == (16, 16, 3) and (pixels.int() - expected).abs().max() <= 1


def test_sixteen_bits_keep_their_greys(tmp_path: Path) -> None:
    """Fails if a 16-bit picture is clipped to white."""
    Image.fromarray(np.full((16, 16), 32896, dtype=np.uint16)).save(tmp_path / "a.png")
    pixels = load_folder(tmp_path, resolution=16).pictures[0].pixels
    assert (pixels == 128).all()


def test_errors_name_what_is_wrong(tmp_path: Path) -> None:
    """Fails if a missing folder, an empty one, or a bad file gives another error than one that names it."""
    with pytest.raises(ValueError, match=r"no folder .*absent"):
        load_folder(tmp_path / "absent")
    (tmp_path / "notes.md").write_text("no picture")
    with pytest.raises(ValueError, match="no pictures in"):
        load_folder(tmp_path)
    save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"half\.png cannot be read as a picture"):
        load_folder(tmp_path, resolution=16)
    (tmp_path / "half.png").write_text("<html>not found</html>")
    with pytest.raises(ValueError, match=r"half\.png cannot be read as a picture"):
        load_folder(tmp_path, resolution=16)
    (tmp_path / "half.png").unlink()
    with pytest.raises(ValueError, match=r"good\.png: The picture is 16×16"):
        load_folder(tmp_path, resolution=64, step=64)
    (tmp_path / "good.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"good\.txt cannot be read"):
        load_folder(tmp_path, resolution=16)
    with pytest.raises(ValueError, match=r"template names \{name\}"):
        load_folder(tmp_path, caption_template="a {name}")


def test_images_at_their_bucket_are_not_touched() -> None:
    """Fails if pictures that need no scaling are resampled, or lose their mask."""
    images = torch.rand(2, 24, 16, 3)
    masks = torch.zeros(1, 24, 16)
    masks[:, 4:9] = 1
    got = from_images(images, masks, resolution=32)
    for index, picture in enumerate(got.pictures):
        assert torch.equal(picture.pixels, (images[index] * 255).round().to(torch.uint8))
        assert picture.mask is not None and torch.equal(picture.mask, masks[0])
        assert picture.crop == (0, 0) and picture.target_size == (24, 16)


def test_mask_and_picture_are_cropped_alike() -> None:
    """Fails if the mask's window or scale differs from the picture's."""
    images = torch.zeros(1, 60, 200, 3)
    images[:, 20:50, 40:130] = 1
    picture = from_images(images, images[..., 0], resolution=32).pictures[0]
    assert picture.mask is not None
    assert ((picture.pixels[..., 0].float() / 255) - picture.mask).abs().mean() < 0.02


def test_image_batches_that_do_not_fit() -> None:
    """Fails if wrong shapes get past."""
    with pytest.raises(ValueError, match="expected \\(count"):
        from_images(torch.zeros(4, 4, 3))
    with pytest.raises(ValueError, match="Masks are"):
        from_images(torch.zeros(3, 16, 16, 3), torch.zeros(2, 16, 16))


def test_natural_key_mixes_words_and_numbers() -> None:
    """Fails if names that begin with a number and with a word cannot be compared."""
    assert sorted(["b", "10", "a2", "a10", "9", "²"], key=natural_key)[:2] == ["9", "10"]


def test_preview_sheet_shows_every_picture(tmp_path: Path) -> None:
    """Fails if a picture is missing on the sheet, or a caption that the font lacks raises."""
    colours = [(250, 10, 10), (10, 250, 10), (10, 10, 250)]
    for index, colour in enumerate(colours):
        save(tmp_path / f"{index}.png", size=(16 + 8 * index, 16), colour=colour)
    (tmp_path / "1.txt").write_text("猫 " * 40, encoding="utf-8")
    sheet = preview_sheet(load_folder(tmp_path, resolution=32))
    assert sheet.ndim == 4 and sheet.shape[0] == 1 and sheet.shape[3] == 3 and sheet.dtype == torch.float32
    assert sheet.min() >= 0 and sheet.max() <= 1
    for colour in colours:
        seen = ((sheet * 255).round() == torch.tensor(colour)).all(-1).sum()
        assert seen > 2000
