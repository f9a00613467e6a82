"""Sheets of pictures with labels drawn into them, readable on a screen and on a phone.

A picture is a PIL image or a tensor (C, H, W), of integers or of floats in [0, 1].
`labelled_rows` and `labelled_columns` make whole sheets. They are put together from `written`, `side_by_side`
and `stacked`.
"""
import math
from contextlib import suppress

import torch
from PIL import Image, ImageDraw, ImageFont

SIDE = 224  # pixels of the long side of a picture on a sheet, about
LONG_SIDE = 800  # pixels of the long side of a picture that is looked at alone, at least
GAP = 8  # pixels between pictures
INK, PAPER = '#1f2937', 'white'
SMALLEST_LETTERS = 14  # pixels
PHONE_LETTERS = 10 / 390  # of a sheet's width: letters of 10 px where a phone shows it 390 px wide


def labelled_rows(rows, labels, names=(), note='', side=SIDE):
    """Put rows of pictures onto one sheet, with a label above each row.

    Pictures at the same place of each row belong together, such as an image and its reconstruction. Long rows
    are broken, all of them at the same places.

    Args:
        rows: R lists of N pictures.
        labels: R texts.
        names: N texts, written below the pictures of the last row. Empty for none.
        note: a text at the bottom of the sheet.
        side: pixels of the long side of a picture, about; see `scaled`.

    Returns a PIL image.
    """
    rows = [[scaled(picture, side) for picture in row] for row in rows]
    count = len(rows[0])
    size = largest(picture for row in rows for picture in row)
    columns = math.ceil(count / breaks(count * size[0], len(rows) * size[1], count))
    width = columns * (size[0] + GAP) - GAP
    letters = letters_of(width, size)
    bands = []
    for start in range(0, count, columns):
        band = slice(start, start + columns)
        parts = []
        for row, label in zip(rows, labels):
            parts += [written(label, width, letters), side_by_side(row[band], size)]
        if names:
            parts.append(side_by_side([written(name, size[0], letters) for name in names[band]]))
        bands.append(stacked(parts))
    return framed(stacked(bands, 2 * GAP), note, letters)


def labelled_columns(rows, labels, names=(), note='', side=SIDE):
    """Put rows of pictures onto one sheet, with a label above each column, and perhaps a name below each row.

    A row holds the pictures of one image. Many rows are broken into groups that stand side by side.

    Args:
        rows: N lists of C pictures.
        labels: C texts.
        names: N texts. Empty for none.
        note: a text at the bottom of the sheet.
        side: pixels of the long side of a picture, about; see `scaled`.

    Returns a PIL image.
    """
    rows = [[scaled(picture, side) for picture in row] for row in rows]
    size = largest(picture for row in rows for picture in row)
    groups = breaks(len(rows) * size[1], len(labels) * size[0], len(rows))
    in_group = math.ceil(len(rows) / groups)
    width = len(labels) * (size[0] + GAP) - GAP
    letters = letters_of(width * groups, size)
    head = side_by_side([written(label, size[0], letters) for label in labels], bottom=True)
    columns = []
    for start in range(0, len(rows), in_group):
        parts = [head]
        for number, row in enumerate(rows[start:start + in_group], start):
            parts.append(side_by_side(row, size))
            if names:
                parts.append(written(names[number], width, letters))
        columns.append(stacked(parts, GAP))
    return framed(side_by_side(columns, gap=4 * GAP), note, letters)


def breaks(length, across, most):
    """Into how many pieces a strip of some length is cut, so that they make about a square side by side."""
    return min(range(1, most + 1), key=lambda pieces: abs(math.log(length / across / pieces ** 2)))


def as_image(picture):
    """Return a picture as a PIL image in RGB: its first three channels, or one if there are fewer."""
    if isinstance(picture, Image.Image):
        return picture.convert('RGB')
    picture = picture[:3] if len(picture) >= 3 else picture[:1].expand(3, -1, -1)
    largest_value = 1 if picture.is_floating_point() else torch.iinfo(picture.dtype).max
    values = (picture.float() / largest_value).clamp(0, 1) * 255 + 0.5  # rounded by the conversion to bytes
    return Image.fromarray(values.permute(1, 2, 0).byte().cpu().numpy())


def scaled(picture, side):
    """Return a picture with a long side of about so many pixels, as a PIL image in RGB.

    Small pictures are enlarged by a whole number, so that each pixel becomes a square and the borders of cells
    stay sharp; their long side ends between 0.7 and 1.5 of `side`. Larger ones are made as small as `side`.
    """
    image = as_image(picture)
    long_side = max(image.size)
    if long_side * 1.5 <= side:
        factor = round(side / long_side)
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    if long_side <= side * 1.5:
        return image
    sides = [max(1, round(length * side / long_side)) for length in image.size]
    return image.resize(sides, Image.Resampling.LANCZOS)


def enlarged(image):
    """Return a PIL image with a long side of LONG_SIDE pixels or more: a smaller one is enlarged."""
    scale = max(1, LONG_SIDE / max(image.size))
    return image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)


def largest(images):
    """Return the largest width and the largest height of some PIL images."""
    widths, heights = zip(*(image.size for image in images))
    return max(widths), max(heights)


def side_by_side(images, size=None, gap=GAP, bottom=False):
    """Put PIL images into one row.

    size: (width, height) of the place that each gets the middle of; that of the largest if not given, and the
    image is at the left of it. bottom: whether images that are less high stand at the bottom of the row.
    """
    width, height = largest(images) if size is None else size
    row = Image.new('RGB', (len(images) * (width + gap) - gap, height), PAPER)
    for number, image in enumerate(images):
        left = number * (width + gap) + (0 if size is None else (width - image.width) // 2)
        top = 0 if size is None else (height - image.height) // 2
        row.paste(image, (left, height - image.height if bottom else top))
    return row


def stacked(images, gap=GAP // 2):
    """Put PIL images below each other, at the left."""
    width = max(image.width for image in images)
    column = Image.new('RGB', (width, sum(image.height + gap for image in images) - gap), PAPER)
    top = 0
    for image in images:
        column.paste(image, (0, top))
        top += image.height + gap
    return column


def framed(sheet, note='', letters=SMALLEST_LETTERS):
    """Return a sheet with a border, and perhaps a note below it."""
    if note:
        sheet = stacked([sheet, written(note, sheet.width, letters)], GAP)
    whole = Image.new('RGB', (sheet.width + 2 * GAP, sheet.height + 2 * GAP), PAPER)
    whole.paste(sheet, (GAP, GAP))
    return whole


def letters_of(width, size):
    """Return the height of letters, in pixels, on a sheet of this width with pictures of this size."""
    return max(SMALLEST_LETTERS, min(round(width * PHONE_LETTERS), max(size) // 8))


def written(text, width, letters, colour=INK):
    """Return a PIL image of this width with a text on it, broken into lines. letters: their height in pixels."""
    font = font_of(letters)
    lines = lines_of(text, width, font)
    step = round(1.3 * letters)
    image = Image.new('RGB', (width, step * len(lines)), PAPER)
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        draw.text((0, number * step), line, fill=colour, font=font)
    return image


def lines_of(text, width, font):
    """Break a text into lines no wider than `width` pixels. Of a longer word the middle is left out."""
    lines = []
    for paragraph in text.splitlines():
        line = ''
        for word in paragraph.split():
            longer = f'{line} {word}'.strip()
            if font.getlength(longer) <= width:
                line = longer
            else:
                lines += [line] if line else []
                line = shortened(word, width, font)
        lines.append(line)
    return lines


def shortened(text, width, font):
    """Return a text no wider than `width` pixels: of a longer one the middle is left out. Its first and its last
    letter stay, even where these alone are wider.
    """
    if font.getlength(text) <= width:
        return text
    short = text
    kept = min(len(text), 200)
    while kept > 2:
        kept -= 1
        short = text[:kept - kept // 2] + '…' + text[len(text) - kept // 2:]
        if font.getlength(short) <= width:
            break
    return short


def font_of(letters):
    """Return a font with letters of this height in pixels.

    It is one of the system's that has more than ASCII, where there is one; Pillow's own has little else.
    """
    for name in ('DejaVuSans.ttf', 'NotoSans-Regular.ttf', 'Arial.ttf', 'arial.ttf'):
        with suppress(OSError):
            return ImageFont.truetype(name, letters)
    return ImageFont.load_default(letters)
