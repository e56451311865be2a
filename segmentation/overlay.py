"""The picture with what was found drawn on it."""

from __future__ import annotations

import colorsys

import torch
from torch import Tensor

from .found import Objects

TINT = 0.45


def colour(index: int) -> tuple[int, int, int]:
    """Of the index-th object: hues a golden angle apart, so that neighbours in number differ most."""
    red, green, blue = colorsys.hsv_to_rgb((0.58 + index * 0.381966) % 1, 0.75, 1)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_objects(picture: Tensor, objects: Objects) -> Tensor:
    """(3, H, W) in [0, 1] -> the same with tinted masks, boxes, labels and scores."""
    from PIL import Image, ImageDraw, ImageFont

    tinted = picture.detach().to("cpu", torch.float32).clone()
    for index, mask in enumerate(objects.masks):
        weight = mask * TINT
        for channel, level in zip(tinted, colour(index), strict=True):
            channel.lerp_(torch.full((), level / 255), weight)
    drawn = Image.fromarray((tinted * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy())
    canvas = ImageDraw.Draw(drawn)
    side = max(drawn.size)
    width = max(1, side // 400)
    font = ImageFont.load_default(max(10, side // 50))
    rows = zip(objects.boxes.tolist(), objects.labels, objects.scores.tolist(), strict=True)
    for index, ((x0, y0, x1, y1), label, score) in enumerate(rows):
        right, low = max(x0, x1 - 1), max(y0, y1 - 1)
        canvas.rectangle((x0, y0, right, low), outline=colour(index), width=width)
        text = f"{index + 1} {label} {score:.2f}".replace("  ", " ")
        place = canvas.textbbox((x0 + width, y0 + width), text, font=font)
        canvas.rectangle(place, fill=colour(index))
        canvas.text((x0 + width, y0 + width), text, fill=(0, 0, 0), font=font)
    array = torch.frombuffer(bytearray(drawn.tobytes()), dtype=torch.uint8)
    return array.view(drawn.height, drawn.width, 3).permute(2, 0, 1).float() / 255
