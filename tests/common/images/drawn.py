"""Images that are drawn at random, and tars of images."""
import tarfile

import numpy as np
from PIL import Image


def noise(height, width, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pack(folder, paths, target, form=tarfile.GNU_FORMAT):
    """Pack files of a folder into a tar, in this order."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(target, 'w', format=form) as tar:
        for path in paths:
            tar.add(folder / path, path)
    return target


def packed(world, target):
    """train/ and val/ in shards: three of the first, dealt out in turns and from the back, as ./name; one of the second."""
    for split, number in (('train', 3), ('val', 1)):
        paths = sorted(str(path.relative_to(world / split)) for path in (world / split).rglob('*.png'))[::-1]
        for i in range(number):
            pack(world / split, [f'./{path}' for path in paths[i::number]], target / split / f'{i:02}.tar')
    return target


def photo(height, width, seed=0):
    """Smooth colours with some noise, so that its pixels say where they are."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = np.stack([np.sin(7 * x + 3 * y), np.cos(9 * y - x), np.sin(5 * x * y + seed)], 2)
    waves = 120 + 90 * waves + np.random.default_rng(seed).normal(0, 4, waves.shape)
    return Image.fromarray(waves.clip(0, 255).astype(np.uint8))


def photos_in(folder, sizes):
    """Write JPEGs of these sizes (height, width), each in three kinds. Returns the folder."""
    folder.mkdir()
    for i, (height, width) in enumerate(sizes):
        for kind, options in (('plain', {}), ('full', {'subsampling': 0}), ('progressive', {'progressive': True})):
            photo(height, width, i).save(folder / f'{i}_{kind}.jpg', quality=90, **options)
    return folder
