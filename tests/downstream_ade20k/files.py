"""Small data sets of images and masks, written for a test, and the options that name them."""
import struct
import zlib
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from common.distributed import Ranks
from common.images.reading import AS_IT_IS

ALONE = Ranks(0, 1, torch.device('cpu'))
HALVES = np.repeat(np.uint8([[0, 1]]), 6, 0).repeat(4, 1)  # a mask of 6 x 8 pixels, class 0 at the left, 1 at the right


def written(folder, train, val, names=('train', 'val')):
    """Write a data set below a folder; returns the folder.

    train, val: {name of an image: its mask as an array (h, w), or (h, w, 3) in colours}. names: of the splits.
    """
    for split, masks in zip(names, (train, val)):
        for name, mask in masks.items():
            write_image(folder / 'images' / split / name, mask.shape[:2])
            path = (folder / 'annotations' / split / name).with_suffix('.png')
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(path)
    return folder


def write_image(path, shape, **saved):
    """Write an image of some height and width. saved: of Image.save, such as exif."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = np.linspace(0, 255, shape[1]).astype(np.uint8)
    Image.fromarray(np.broadcast_to(columns[:, None], (*shape, 3)).copy()).save(path, **saved)


def options(folder=None, **changed):
    """The options that the data set is read with."""
    given = {'data_path': folder, 'train_images': None, 'train_masks': None, 'val_images': None, 'val_masks': None,
             'classes': None, 'ignore': (255,), 'val_fraction': None, 'seed': 0, 'in_chans': 3, 'reading': AS_IT_IS,
             'read_timeout': 120.0}
    return SimpleNamespace(**{**given, **changed})


def grey_png(values, bits):
    """The bytes of a grey PNG of 1, 2, 4 or 8 bits a pixel, which Pillow itself does not write. values: (h, w)."""
    def chunk(kind, content):
        return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))

    height, width = values.shape
    in_bits = np.unpackbits(values.astype(np.uint8)[..., None], axis=2)[..., -bits:].reshape(height, -1)
    rows = np.packbits(in_bits, axis=1)
    filtered = b''.join(b'\0' + row.tobytes() for row in rows)
    header = struct.pack('>IIBBBBB', width, height, bits, 0, 0, 0, 0)
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(filtered))
            + chunk(b'IEND', b''))
