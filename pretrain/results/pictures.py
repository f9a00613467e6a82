"""Pictures of what a masked network does: masked images, reconstructions, their errors, features.

Images are (B, C, H, W), normalised; pictures are (3, H, W) or (B, 3, H, W) in [0, 1]. `visible` (B, k) as in
masking.py. What is asked of a network is in pretrain/masked_network.py.
"""
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from common.pictures import labelled_columns
from common.reliability.checkpoint import write_atomically
from pretrain.masking import is_visible, patchify, unpatchify

CAPTIONS = {  # of the fields of Views
    'image': 'input',
    'masked': 'masked',
    'reconstruction': 'reconstruction',
    'own': "with visible cells' statistics",
    'error': 'error'}
OWN = ("The column beside the reconstruction: hidden cells have the mean and deviation of the image's visible "
       'cells instead, so that nothing comes from what is hidden.')
ERROR = 'Error: of the reconstruction, from black, which is none, to white, half of the range of values.'
TARGETS = {  # what the decoder predicts, by the option target
    'normalised': 'pixels, each cell normalised by its own mean and deviation',
    'pixels': 'pixels, normalised with the mean and std of their channels alone'}


def captions(network):
    """Return {name of a field of Views: its caption}; without `own` if the network predicts pixels."""
    return {field: caption for field, caption in CAPTIONS.items()
            if field != 'own' or network.target == 'normalised'}


def hidden_cells(target):
    """Return a sentence on how hidden cells are shown in pictures of a run with this target."""
    if target == 'pixels':
        return 'Hidden cells are the pixels that the network predicts.'
    return ("Hidden cells are shown with the true cell's mean and deviation, since the network predicts "
            'normalised cells.')


def explanation(network, masked=''):
    """Return the sentences below a sheet with all of `captions`.

    masked: what is to be said of the masked images, `Method.masked_images`.
    """
    own = [OWN] if 'own' in captions(network) else []
    return ' '.join([hidden_cells(network.target), *own, *filter(None, [masked]), ERROR])


@dataclass(frozen=True)
class Views:
    """What there is to see of some images, pictures (B, 3, H, W) each, and the loss of each image, (B,).

    image, masked: the image, and what the network sees of it. reconstruction: hidden cells have the true
    cell's mean and deviation, as in SparK's paper. own: they have the average mean and deviation of the visible
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
def views(network, images, visible, normalisation):
    """Return the Views of some images by a masked network in evaluation mode.

    normalisation: (mean, std) of each channel. Raises ValueError for indices that are no cells.
    """
    grid = network.encoder.grid
    cell_size = network.encoder.cell_size
    prediction = network.predict(images, visible)
    predicted = patchify(prediction.to(images.dtype), cell_size)
    cells = patchify(images, cell_size)
    _, mean, deviation = network.targets(images)
    seen = is_visible(visible, network.cells)[..., None]
    num_visible = visible.shape[1]
    visible_mean = (mean * seen).sum(1, keepdim=True) / num_visible
    visible_deviation = (deviation * seen).sum(1, keepdim=True) / num_visible

    def picture(hidden):
        """The visible cells as they are, the others from `hidden`."""
        return to_rgb(unpatchify(torch.where(seen, cells, hidden), grid, cell_size), normalisation)

    image = to_rgb(images, normalisation)
    reconstruction = picture(predicted * deviation + mean)
    hidden = ~seen[..., 0]
    loss = (network.cell_errors(images, prediction) * hidden).sum(1) / hidden.sum(1)
    masked = to_rgb(network.masked(images, visible), normalisation)
    return Views(image=image, masked=masked, reconstruction=reconstruction,
                 own=picture(predicted * visible_deviation + visible_mean),
                 error=heat((2 * (reconstruction - image).abs()).mean(1)), loss=loss)


@torch.no_grad()
def level_pictures(network, images, visible):
    """Return {stride: picture (B, 3, H_i, W_i)} of the pyramid of a masked network in evaluation mode."""
    levels = network.pyramid(images, visible)
    return {stride: feature_pictures(level) for stride, level in zip(network.encoder.reductions, levels)}


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


def enlarged(pictures, height):
    """Enlarge pictures (B, 3, h, w) by a whole number, up to a height; each position becomes a square."""
    return F.interpolate(pictures, scale_factor=max(1, height // pictures.shape[-2]), mode='nearest')


def in_columns(view):
    """Put images, masked images and reconstructions side by side, as one labelled picture (3, H', W')."""
    fields = ('image', 'masked', 'reconstruction')
    rows = [[getattr(view, field)[number] for field in fields] for number in range(len(view.image))]
    sheet = labelled_columns(rows, [CAPTIONS[field] for field in fields])
    return torch.from_numpy(np.array(sheet)).permute(2, 0, 1) / 255


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
