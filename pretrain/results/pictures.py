"""Pictures of what SparK does: masked images, reconstructions with and without the true cells' statistics, errors, features.

Images are (B, C, H, W), normalised; pictures are (3, H, W) or (B, 3, H, W) in [0, 1]. `visible` (B, k) as in spark.py.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from common.reliability.checkpoint import write_atomically
from pretrain.masking import cut, paste

CAPTIONS = {'image': 'image', 'masked': 'what the network sees', 'reconstruction': "reconstruction, each hidden cell\nwith the "
            "true cell's mean and deviation", 'own': "the same without them: with those\nof the image's visible cells",
            'error': 'error of the reconstruction\n(black: none, white: a range of 1/2)'}
TARGETS = {'normalised': 'pixels, each cell normalised by its own mean and deviation',
           'pixels': 'pixels, normalised with the mean and std of their channels alone'}


def captions(spark):
    """{name of a view: its caption} of the views that a SparK has: without `own` if it predicts pixels."""
    if spark.target == 'normalised':
        return CAPTIONS
    own = {**CAPTIONS, 'reconstruction': 'reconstruction: the pixels\nthat the network predicts'}
    own.pop('own')
    return own


def hidden_cells(target):
    """A sentence: how hidden cells are shown in pictures of a run with this target."""
    if target == 'pixels':
        return 'Hidden cells are the pixels that the network predicts.'
    return ("Hidden cells are shown with the true cell's mean and deviation, since the network predicts normalised "
            'cells.')


@dataclass(frozen=True)
class Views:
    """What there is to see of some images, pictures (B, 3, H, W) each, and the loss of each image, (B,).

    reconstruction: hidden cells with the true cell's mean and deviation, as in the paper. own: with the average mean and
    deviation of the visible cells instead, so that nothing comes from what is hidden. A network that predicts pixels
    needs neither, and both are what it predicts. error: of the reconstruction.
    """
    image: torch.Tensor
    masked: torch.Tensor
    reconstruction: torch.Tensor
    own: torch.Tensor
    error: torch.Tensor
    loss: torch.Tensor


@torch.no_grad()
def views(spark, images, visible, normalisation):
    """What a SparK in evaluation mode makes of some images. Raises ValueError for indices that are no cells."""
    grid, cell_size = spark.encoder.grid, spark.encoder.cell_size
    predicted = cut(spark.predict(images, visible).to(images.dtype), cell_size)
    cells, (target, mean, deviation) = cut(images, cell_size), spark.targets(images)
    is_visible = spark.geometry(images, visible).is_visible()[..., None]
    seen_mean, seen_deviation = ((x * is_visible).sum(1, keepdim=True) / visible.shape[1] for x in (mean, deviation))

    def shown(hidden):
        return to_rgb(paste(torch.where(is_visible, cells, hidden), grid, cell_size), normalisation)

    image, reconstruction = to_rgb(images, normalisation), shown(predicted * deviation + mean)
    loss = ((predicted - target).square().mean(2, keepdim=True) * ~is_visible).sum((1, 2)) / (~is_visible).sum((1, 2))
    return Views(image, shown(torch.zeros_like(cells)), reconstruction, shown(predicted * seen_deviation + seen_mean),
                 heat((2 * (reconstruction - image).abs()).mean(1)), loss)


@torch.no_grad()
def level_pictures(spark, images, visible):
    """{stride: picture (B, 3, H_i, W_i)} of the feature pyramid of a SparK in evaluation mode."""
    return {stride: of_features(level) for stride, level in zip(spark.encoder.reductions, spark.encode(images, visible))}


def to_rgb(images, normalisation):
    """Normalised images -> pictures. Of more than three channels the first three are shown, of two the first."""
    mean, std = (torch.tensor(value, dtype=images.dtype, device=images.device).view(1, -1, 1, 1) for value in normalisation)
    rows = images * std + mean
    rows = rows[:, :3] if rows.shape[1] >= 3 else rows[:, :1].expand(-1, 3, -1, -1)
    return rows.clamp(0, 1)


def heat(values):
    """(..., H, W) in [0, 1] -> (..., 3, H, W): black, red, yellow, white."""
    return torch.stack([3 * values, 3 * values - 1, 3 * values - 2], -3).clamp(0, 1)


def of_features(level):
    """A level of the pyramid (B, C, h, w) -> (B, 3, h, w): its three principal components as colours; hidden ones white."""
    return torch.stack([_of_features(one.float()) for one in level])


def _of_features(level):
    C, h, w = level.shape
    points = level.flatten(1).T
    seen = points.abs().sum(1) > 0
    picture = torch.ones(h * w, 3, device=level.device)
    if seen.sum() > 3 and C >= 3:
        values = points[seen] - points[seen].mean(0)
        components = torch.linalg.svd(values, full_matrices=False).Vh[:3]
        components = components * components.gather(1, components.abs().argmax(1, keepdim=True)).sign()  # a sign is no fact
        values = values @ components.T
        picture[seen] = (0.5 + values / values.std(0).clamp(min=1e-12) / 5).clamp(0, 1)
    else:
        picture[seen] = 0.5
    return picture.T.view(3, h, w)


def with_grid(pictures, cell):
    """Lines between the cells."""
    pictures = pictures.clone()
    for line in range(cell, pictures.shape[-2], cell):
        pictures[..., line, :] = 0
    for line in range(cell, pictures.shape[-1], cell):
        pictures[..., :, line] = 0
    return pictures


def contact_sheet(rows, captions, names, side=224):
    """rows [[picture (3, H, W)]] of each image, under captions, with names at the left -> PIL image."""
    height, width = rows[0][0].shape[-2:]
    scale = -(-side // max(height, width))  # so that the captions have room
    height, width, gap, left, top = height * scale, width * scale, 8, 130, 40
    sheet = Image.new('RGB', (left + (width + gap) * len(captions), top + (height + gap) * len(rows)), 'white')
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
    """Pictures (B, 3, h, w), each position a square, so that they are at least so high."""
    return F.interpolate(pictures, scale_factor=max(1, height // pictures.shape[-2]), mode='nearest')


def rows_of(view):
    """Rows of input, masked input, reconstruction, as one picture (3, H', W')."""
    return make_grid(torch.cat([view.image, view.masked, view.reconstruction]), nrow=len(view.image), padding=2,
                     pad_value=1.0).cpu()


def read_picture(path):
    """A PIL image, loaded, from a PNG that a run wrote. Raises ValueError."""
    try:
        with Image.open(path, formats=['PNG']) as image:
            image.load()
            return image
    except Exception as error:  # whatever a file can do to a reader
        raise ValueError(f'{path} is no picture that can be read ({type(error).__name__}): take it away') from error


def write_picture(path, image):
    """Write a PIL image as PNG, whole or not at all. Raises ValueError."""
    write_atomically(path, lambda file: image.save(file, 'PNG'))
