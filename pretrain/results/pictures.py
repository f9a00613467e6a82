"""Pictures of what SparK does: masked images, reconstructions, their errors, features.

Images are (B, C, H, W), normalised; pictures are (3, H, W) or (B, 3, H, W) in [0, 1]. `visible` (B, k) as in
spark.py.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from common.reliability.checkpoint import write_atomically
from pretrain.masking import cut, paste

CAPTIONS = {  # of the fields of Views
    'image': 'image',
    'masked': 'what the network sees',
    'reconstruction': "reconstruction, each hidden cell\nwith the true cell's mean and deviation",
    'own': "the same without them: with those\nof the image's visible cells",
    'error': 'error of the reconstruction\n(black: none, white: a range of 1/2)'}
TARGETS = {  # what the decoder predicts, by the option target
    'normalised': 'pixels, each cell normalised by its own mean and deviation',
    'pixels': 'pixels, normalised with the mean and std of their channels alone'}


def captions(spark):
    """Return {name of a field of Views: its caption}; without `own` if the network predicts pixels."""
    if spark.target == 'normalised':
        return CAPTIONS
    captions = {**CAPTIONS, 'reconstruction': 'reconstruction: the pixels\nthat the network predicts'}
    del captions['own']
    return captions


def hidden_cells(target):
    """Return a sentence on how hidden cells are shown in pictures of a run with this target."""
    if target == 'pixels':
        return 'Hidden cells are the pixels that the network predicts.'
    return ("Hidden cells are shown with the true cell's mean and deviation, since the network predicts "
            "normalised "
            'cells.')


@dataclass(frozen=True)
class Views:
    """What there is to see of some images, pictures (B, 3, H, W) each, and the loss of each image, (B,).

    image, masked: the image, and what the network sees of it. reconstruction: hidden cells have the true
    cell's mean and deviation, as in the paper. own: they have the average mean and deviation of the visible
    cells instead, so that nothing comes from what is hidden. A network that predicts pixels needs neither;
    both are what it predicts. error: of the reconstruction.
    """
    image: torch.Tensor
    masked: torch.Tensor
    reconstruction: torch.Tensor
    own: torch.Tensor
    error: torch.Tensor
    loss: torch.Tensor


@torch.no_grad()
def views(spark, images, visible, normalisation):
    """Return the Views of some images by a SparK in evaluation mode.

    normalisation: (mean, std) of each channel. Raises ValueError for indices that are no cells.
    """
    grid = spark.encoder.grid
    cell_size = spark.encoder.cell_size
    prediction = spark.predict(images, visible)
    predicted = cut(prediction.to(images.dtype), cell_size)
    cells = cut(images, cell_size)
    _, mean, deviation = spark.targets(images)
    is_visible = spark.geometry(images, visible).is_visible()[..., None]
    num_visible = visible.shape[1]
    visible_mean = (mean * is_visible).sum(1, keepdim=True) / num_visible
    visible_deviation = (deviation * is_visible).sum(1, keepdim=True) / num_visible

    def picture(hidden):
        """The visible cells as they are, the others from `hidden`."""
        return to_rgb(paste(torch.where(is_visible, cells, hidden), grid, cell_size), normalisation)

    image = to_rgb(images, normalisation)
    reconstruction = picture(predicted * deviation + mean)
    hidden = ~is_visible[..., 0]
    loss = (spark.cell_errors(images, prediction) * hidden).sum(1) / hidden.sum(1)
    return Views(image=image, masked=picture(torch.zeros_like(cells)), reconstruction=reconstruction,
                 own=picture(predicted * visible_deviation + visible_mean),
                 error=heat((2 * (reconstruction - image).abs()).mean(1)), loss=loss)


@torch.no_grad()
def level_pictures(spark, images, visible):
    """Return {stride: picture (B, 3, H_i, W_i)} of the feature pyramid of a SparK in evaluation mode."""
    levels = spark.encode(images, visible)
    return {stride: feature_pictures(level) for stride, level in zip(spark.encoder.reductions, levels)}


def to_rgb(images, normalisation):
    """Make pictures of normalised images: of their first three channels, or of one if there are less."""
    mean, std = (torch.tensor(value, dtype=images.dtype, device=images.device).view(1, -1, 1, 1)
                 for value in normalisation)
    pictures = images * std + mean
    pictures = pictures[:, :3] if pictures.shape[1] >= 3 else pictures[:, :1].expand(-1, 3, -1, -1)
    return pictures.clamp(0, 1)


def heat(values):
    """Show values (..., H, W) in [0, 1] as colours (..., 3, H, W): black, red, yellow, white."""
    return torch.stack([3 * values, 3 * values - 1, 3 * values - 2], -3).clamp(0, 1)


def feature_pictures(level):
    """Show three principal components of features (B, C, h, w) as colours (B, 3, h, w); hidden ones white."""
    return torch.stack([feature_picture(features.float()) for features in level])


def feature_picture(features):
    """As `feature_pictures`, of one image: (C, h, w) -> (3, h, w)."""
    C, h, w = features.shape
    points = features.flatten(1).T
    is_seen = points.abs().sum(1) > 0
    picture = torch.ones(h * w, 3, device=features.device)
    if is_seen.sum() > 3 and C >= 3:
        values = points[is_seen] - points[is_seen].mean(0)
        components = torch.linalg.svd(values, full_matrices=False).Vh[:3]
        largest = components.gather(1, components.abs().argmax(1, keepdim=True))
        components = components * largest.sign()  # the sign of a component is arbitrary
        values = values @ components.T
        picture[is_seen] = (0.5 + values / values.std(0).clamp(min=1e-12) / 5).clamp(0, 1)
    else:
        picture[is_seen] = 0.5
    return picture.T.view(3, h, w)


def with_grid(pictures, cell):
    """Draw black lines between the cells; cell: their side in pixels."""
    pictures = pictures.clone()
    for row in range(cell, pictures.shape[-2], cell):
        pictures[..., row, :] = 0
    for column in range(cell, pictures.shape[-1], cell):
        pictures[..., :, column] = 0
    return pictures


def contact_sheet(rows, captions, names, side=224):
    """Put the pictures of several images onto one sheet.

    Args:
        rows: [[picture (3, H, W)]], one list for each image.
        captions: texts above the columns.
        names: texts at the left of the rows.
        side: of a picture in pixels, at least, so that the captions have room.

    Returns a PIL image.
    """
    height, width = rows[0][0].shape[-2:]
    scale = -(-side // max(height, width))
    height, width = height * scale, width * scale
    gap, left, top = 8, 130, 40  # pixels between pictures, and for the names and captions
    size = (left + (width + gap) * len(captions), top + (height + gap) * len(rows))
    sheet = Image.new('RGB', size, 'white')
    draw = ImageDraw.Draw(sheet)
    for column, caption in enumerate(captions):
        draw.multiline_text((left + column * (width + gap), 6), caption, fill='black')
    for row, (pictures, name) in enumerate(zip(rows, names)):
        y = top + row * (height + gap)
        draw.multiline_text((6, y), name, fill='black')
        for column, picture in enumerate(pictures):
            image = to_pil_image(picture.float().cpu()).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(image, (left + column * (width + gap), y))
    return sheet


def enlarged(pictures, height):
    """Enlarge pictures (B, 3, h, w) by a whole number, up to a height; each position becomes a square."""
    return F.interpolate(pictures, scale_factor=max(1, height // pictures.shape[-2]), mode='nearest')


def rows_of(view):
    """Put images, masked images and reconstructions below each other, as one picture (3, H', W')."""
    pictures = torch.cat([view.image, view.masked, view.reconstruction])
    return make_grid(pictures, nrow=len(view.image), padding=2, pad_value=1.0).cpu()


def read_picture(path):
    """Read a PNG that a run wrote, as a PIL image. Raises ValueError."""
    try:
        with Image.open(path, formats=['PNG']) as image:
            image.load()
            return image
    except Exception as error:  # whatever a damaged file makes its reader raise
        raise ValueError(f'{path} is no picture that can be read ({type(error).__name__}): take it '
                         'away') from error


def write_picture(path, image):
    """Write a PIL image as PNG, whole or not at all. Raises ValueError."""
    write_atomically(path, lambda file: image.save(file, 'PNG'))


def labelled_rows(rows, side):
    """Put pictures of the same images below each other, in rows with names. Returns a PIL image.

    rows: {name: pictures (B, 3, H, W)}. side: of a picture on the sheet, in pixels; it is scaled smoothly.
    """
    gap, left, font = 6, 170, ImageFont.load_default(18)  # pixels
    count = max(map(len, rows.values()))
    sheet = Image.new('RGB', (left + count * (side + gap), gap + len(rows) * (side + gap)), 'white')
    draw = ImageDraw.Draw(sheet)
    for row, (name, pictures) in enumerate(rows.items()):
        y = gap + row * (side + gap)
        draw.multiline_text((left - 12, y + side // 2), name, 'black', font, anchor='rm', align='right')
        for column, picture in enumerate(pictures):
            image = to_pil_image(picture.float().cpu()).resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(image, (left + column * (side + gap), y))
    return sheet
