"""Images with a caption each, on one picture."""
import math
from contextlib import suppress

import torch
from PIL import Image, ImageDraw, ImageFont
from torchvision.transforms import functional as F

SIDE = 208  # pixels of a tile
GAP = 16  # pixels between tiles
TEXT = 15  # pixels of the letters
COLUMNS = 8  # at most


def sheet_of(tiles):
    """Put images onto one sheet, each scaled to fit a tile, with two lines of text beneath.

    tiles: [(image, name, label)], where the image is a PIL image, a tensor (C, h, w), uint8 or float in [0,
    1], or None for an empty tile. Returns a PIL image.
    """
    columns = min(COLUMNS, math.ceil(math.sqrt(len(tiles))))
    rows = math.ceil(len(tiles) / columns)
    font = font_of_letters()
    line = round(1.4 * TEXT)
    height = SIDE + 4 + 2 * line
    sheet = Image.new('RGB', (GAP + columns * (SIDE + GAP), GAP + rows * (height + GAP)), 'white')
    draw = ImageDraw.Draw(sheet)
    for number, (image, name, label) in enumerate(tiles):
        row, column = divmod(number, columns)
        left = GAP + column * (SIDE + GAP)
        top = GAP + row * (height + GAP)
        draw.rectangle((left - 1, top - 1, left + SIDE, top + SIDE), fill='#f4f4f4', outline='#c8c8c8')
        if image is not None:
            small = fitted(image)
            sheet.paste(small, (left + (SIDE - small.width) // 2, top + (SIDE - small.height) // 2))
        draw.text((left, top + SIDE + 4), shortened(name, font), fill='#606060', font=font)
        draw.text((left, top + SIDE + 4 + line), shortened(label, font), fill='black', font=font)
    return sheet


def font_of_letters():
    """Return a font of the system that has more than ASCII, where there is one; Pillow's has little else."""
    for name in ('DejaVuSans.ttf', 'NotoSans-Regular.ttf', 'Arial.ttf', 'arial.ttf'):
        with suppress(OSError):
            return ImageFont.truetype(name, TEXT)
    return ImageFont.load_default(TEXT)


def fitted(image):
    """Return an image as RGB, as large as a tile allows, with its proportions."""
    if torch.is_tensor(image):
        image = F.to_pil_image(F.convert_image_dtype(image, torch.uint8))
    scale = min(SIDE / image.width, SIDE / image.height)
    sides = [max(1, round(side * scale)) for side in image.size]
    return image.convert('RGB').resize(sides, Image.Resampling.BICUBIC)


def shortened(text, font):
    """Return a text that is no wider than a tile: of a longer one the middle is left out."""
    if font.getlength(text) <= SIDE:
        return text
    kept = min(len(text), 200)
    while kept > 2:
        kept -= 1
        short = text[:kept - kept // 2] + '…' + text[len(text) - kept // 2:]
        if font.getlength(short) <= SIDE:
            break
    return short
