"""Files that would do something when they are read: code in weights, pictures that lie, PostScript."""
import io
import os
import pickle
import struct
import zlib

import torch
from PIL import Image


class Code:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def among(content, code):
    """A checkpoint with all that belongs there, and code in the place of one value."""
    return {**content, 'config': {**content['config'], 'name': code}}


PAYLOADS = {
    'zip': lambda path, code, content: torch.save({'layer.weight': code}, path),
    'legacy': lambda path, code, content: torch.save({'a': code}, path, _use_new_zipfile_serialization=False),
    'legacy, among the right keys': lambda path, code, content: torch.save(among(content, code), path,
                                                                           _use_new_zipfile_serialization=False),
    'pickle': lambda path, code, content: path.write_bytes(pickle.dumps({'a': code})),
    'old pickle': lambda path, code, content: path.write_bytes(pickle.dumps(code, protocol=0)),
    'among the right keys': lambda path, code, content: torch.save(among(content, code), path),
}


SECRET = 'TOP-SECRET-4711'
POSTSCRIPT = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n'


def ghostscript(folder):
    """A program in the place of Ghostscript, to which Pillow hands PostScript, that only says that it was called."""
    folder.mkdir()
    (folder / 'gs').write_text(f'#!/bin/sh\ntouch {folder}/was_called\n')
    (folder / 'gs').chmod(0o755)


def png(colour, claimed=(40, 40)):
    """A PNG of 40 x 40 pixels that claims to have another size."""
    file = io.BytesIO()
    Image.new('RGB', (40, 40), colour).save(file, 'PNG')
    content = bytearray(file.getvalue())
    content[16:24] = struct.pack('>II', *claimed)
    content[29:33] = struct.pack('>I', zlib.crc32(content[12:29]))
    return bytes(content)
