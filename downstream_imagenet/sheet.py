"""Images with a caption each, on one picture."""
import math

from PIL import Image, ImageDraw

from common.pictures import GAP, INK, PAPER, as_image, breaks, font_of, framed, shortened, side_by_side, stacked

SIDE = 224  # pixels of a tile
LETTERS = 20  # pixels of the height of letters
NAMES, FRAME, GROUND = '#6b7280', '#d1d5db', '#f3f4f6'


def sheet_of(tiles):
    """Put images onto one sheet, each scaled to fit a tile, with two lines of text beneath.

    tiles: [(image, name, label)], where the image is a PIL image, a tensor (C, h, w), uint8 or float in [0,
    1], or None for an empty tile. Returns a PIL image.
    """
    columns = math.ceil(len(tiles) / breaks(len(tiles), 1, len(tiles)))
    drawn = [tile_of(*tile) for tile in tiles]
    rows = [side_by_side(drawn[start:start + columns], gap=2 * GAP) for start in range(0, len(tiles), columns)]
    return framed(stacked(rows, 2 * GAP))


def tile_of(image, name, label):
    """Return a tile: an image of `sheet_of`, and below it the label and the name."""
    line = round(1.3 * LETTERS)
    tile = Image.new('RGB', (SIDE, SIDE + 4 + 2 * line), PAPER)
    draw = ImageDraw.Draw(tile)
    draw.rectangle((0, 0, SIDE - 1, SIDE - 1), fill=GROUND, outline=FRAME)
    if image is not None:
        small = fitted(image)
        tile.paste(small, ((SIDE - small.width) // 2, (SIDE - small.height) // 2))
    font = font_of(LETTERS)
    draw.text((0, SIDE + 4), shortened(label, SIDE, font), fill=INK, font=font)
    draw.text((0, SIDE + 4 + line), shortened(name, SIDE, font), fill=NAMES, font=font)
    return tile


def fitted(image):
    """Return an image as RGB, as large as a tile allows, with its proportions."""
    image = as_image(image)
    scale = min(SIDE / image.width, SIDE / image.height)
    sides = [max(1, round(side * scale)) for side in image.size]
    return image.resize(sides, Image.Resampling.BICUBIC)
