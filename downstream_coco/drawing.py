"""Pictures of what a detector found: boxes, masks, and labels that stand in the picture and can be read."""
import colorsys
import hashlib

import numpy as np
import torch
from PIL import Image, ImageDraw
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import nms

from common.pictures import as_image, enlarged, font_of, shortened
from common.words import printable

LINES, LETTERS, LETTERS_IN_CROWD = 1 / 300, 1 / 45, 1 / 60  # width and height as shares of the long side
CROWD = 12  # objects in a picture from which on letters are smaller
OPACITY = 0.4  # of masks


def to_draw(found, overlap):
    """Return the numbers of the objects that are drawn, LongTensor (n,), the most certain one first.

    Of two objects whose boxes overlap by more than `overlap` (intersection over union) only the more certain
    one is drawn, whatever their classes. 1 draws all.
    """
    return nms(found['boxes'], found['scores'], overlap)


def drawn(image, found, categories):
    """Draw objects into an image.

    Args:
        image: (C, h, w), integers or floats in [0, 1].
        found: 'boxes' (N, 4) in pixels of the image, 'labels' (N,), 'scores' (N,), and perhaps 'masks'
            (N, 1, 28, 28), in [0, 1] in their boxes. The most certain object comes first.
        categories: of COCO's format; that of label 1 comes first.

    Returns a PIL image. Small images are enlarged.
    """
    picture = enlarged(as_image(image))
    boxes = found['boxes'] * (max(picture.size) / max(image.shape[1:]))
    about = [categories[label - 1] for label in found['labels'].tolist()]
    colours = [colour_of(category['id']) for category in about]
    if 'masks' in found:
        picture = with_masks(picture, found['masks'], boxes, colours)
    texts = [f'{printable(category["name"])} {score:.2f}'
             for category, score in zip(about, found['scores'].tolist())]
    draw_boxes(picture, boxes.tolist(), texts, colours)
    return picture


def with_masks(picture, masks, boxes, colours):
    """Return a picture with masks (N, 1, 28, 28) in their colours. Those of the first boxes lie uppermost."""
    pixels = np.array(picture)
    for mask, box, colour in reversed(list(zip(masks, boxes, colours))):
        # A mask reaches beyond its box by less than a tenth. The rest of the picture is not looked at.
        margin = 2 + int((box[2:] - box[:2]).max() / 10)
        left, top = (box[:2].int() - margin).clamp(min=0).tolist()
        right, bottom = (box[2:].int() + margin).tolist()
        window = pixels[top:bottom, left:right]
        shifted = box - torch.tensor([left, top, left, top])
        inside = paste_masks_in_image(mask[None], shifted[None], window.shape[:2], padding=1)[0, 0].numpy() > 0.5
        window[inside] = (1 - OPACITY) * window[inside] + OPACITY * np.array(colour)
    return Image.fromarray(pixels)


def colour_of(number):
    """Return the colour of a category, (red, green, blue) up to 255: the same for its id in every picture.

    The hues of successive ids are a golden section of the circle apart, which keeps any few of them apart.
    """
    if not isinstance(number, int):  # ids may be texts or other numbers
        number = int.from_bytes(hashlib.sha256(str(number).encode()).digest()[:4], 'big')
    hue = number * 0.618034 % 1
    lightness = (0.45, 0.6, 0.35)[number % 3]
    return tuple(round(255 * part) for part in colorsys.hls_to_rgb(hue, lightness, 0.85))


def draw_boxes(picture, boxes, texts, colours):
    """Draw boxes, [(left, top, right, bottom)], and their texts into a PIL image. The first lie uppermost."""
    draw = ImageDraw.Draw(picture)
    long_side = max(picture.size)
    line = max(2, round(long_side * LINES))
    letters = round(long_side * (LETTERS if len(boxes) <= CROWD else LETTERS_IN_CROWD))
    font = font_of(letters)
    margin = letters // 4
    height = round(1.4 * letters)
    texts = [shortened(text, picture.width - 2 * margin, font) for text in texts]
    labels = []
    for box, text in zip(boxes, texts):
        width = round(font.getlength(text)) + 2 * margin
        left, top = place_of_label((width, height), box, labels, picture.size)
        labels.append((left, top, left + width - 1, top + height - 1))
    for box, colour in reversed(list(zip(boxes, colours))):
        draw.rectangle(box, outline=colour, width=line)
    for label, text, colour in reversed(list(zip(labels, texts, colours))):
        draw.rectangle(label, fill=colour)
        is_light = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 150
        draw.text((label[0] + margin, label[1] + height // 2), text,
                  'black' if is_light else 'white', font, 'lm')


def place_of_label(size, box, taken, picture):
    """Return where a label stands, (left, top) in whole pixels: inside the picture, at its box.

    The first place is taken that no other label covers: above the box, below it, inside it, or a little
    further up or down. Where there is none, the place of which the others cover least.

    Args:
        size: (width, height) of the label.
        box: (left, top, right, bottom).
        taken: the labels that have their place, [(left, top, right, bottom)].
        picture: (width, height).
    """
    width, height = size
    x1, y1, x2, y2 = map(round, box)
    lines = [y1 - height, y2, y1, y2 - height, y1 + height, y1 - 2 * height, y2 + height, y1 - 3 * height,
             y2 + 2 * height]
    places = [(max(0, min(left, picture[0] - width)), max(0, min(top, picture[1] - height)))
              for top in lines for left in (x1, x2 - width, x2, x1 - width)]

    def covered(place):
        left, top = place
        return sum(max(0, min(left + width, other[2] + 1) - max(left, other[0]))
                   * max(0, min(top + height, other[3] + 1) - max(top, other[1])) for other in taken)
    return min(places, key=covered)
