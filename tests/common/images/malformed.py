"""Image files that are broken or odd: some two hundred."""
import io
import os
import random
import struct
import zlib

import numpy as np
from PIL import Image, PngImagePlugin, TiffImagePlugin

FORMATS = ('PNG', 'JPEG', 'WEBP', 'TIFF', 'GIF', 'BMP')


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width, height, depth=8, colour=0, pixels=b'', extra=b''):
    """A PNG that says of itself what it likes."""
    def chunk(name, content):
        return struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, 0)) + extra \
        + chunk(b'IDAT', zlib.compress(pixels)) + chunk(b'IEND', b'')


def written(folder, seed=0):
    """Write 200 files and more; {name: whether it can be read, None where that is the decoder's business}."""
    rng, draw, files = np.random.default_rng(seed), random.Random(seed), {}
    noise = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    image, deep = Image.fromarray(noise), rng.integers(0, 65536, (30, 40), dtype=np.uint16)
    frames, turned, text = [image, image.rotate(180)], Image.Exif(), PngImagePlugin.PngInfo()
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    turned[0x112] = 6
    text.add_text('comment', 'x' * 10_000_000, zip=True)
    tags[700] = b'x' * 1_000_000
    clear = image.quantize(16)
    clear.info['transparency'] = bytes(range(16))
    whole = {kind: encoded(image, kind) for kind in FORMATS}
    good = {
        'png_called.jpg': whole['PNG'], 'jpg_called.png': whole['JPEG'], 'cmyk.jpg': encoded(image.convert('CMYK'), 'JPEG'),
        'cmyk.tif': encoded(image.convert('CMYK'), 'TIFF'), 'ycbcr.jpg': encoded(image.convert('YCbCr'), 'JPEG'),
        'exif.jpg': encoded(image, 'JPEG', exif=turned), 'palette.png': encoded(clear, 'PNG'), 'alpha.png': encoded(
            image.convert('RGBA'), 'PNG'), 'alpha.webp': encoded(image.convert('RGBA'), 'WEBP'), 'grey_alpha.png': encoded(
            image.convert('LA'), 'PNG'), 'palette.gif': encoded(clear, 'GIF', transparency=3), 'bits.png': encoded(
            image.convert('1'), 'PNG'), 'fax.tif': encoded(image.convert('1'), 'TIFF', compression='group4'),
        'sixteen.png': encoded(Image.fromarray(deep), 'PNG'), 'sixteen_little.tif': encoded(Image.fromarray(deep), 'TIFF'),
        'sixteen_big.tif': encoded(Image.fromarray(deep.astype('>u2')), 'TIFF'), 'sixteen.pgm': b'P5 40 30 65535\n'
        + deep.astype('>u2').tobytes(), 'float.tif': encoded(Image.fromarray(rng.random((30, 40), np.float32)), 'TIFF'),
        'one_pixel.png': encoded(image.crop((0, 0, 1, 1)), 'PNG'), 'wide.png': png(60000, 1, pixels=bytes(60001)),
        'high.png': png(1, 60000, pixels=bytes(120000)),
        'moving.gif': encoded(image, 'GIF', save_all=True, append_images=frames),
        'moving.webp': encoded(image, 'WEBP', save_all=True, append_images=frames), 'moving.png': encoded(
            image, 'PNG', save_all=True, append_images=frames), 'pages.tif': encoded(
            image, 'TIFF', save_all=True, append_images=frames), 'icc.jpg': encoded(image, 'JPEG', icc_profile=bytes(900_000)),
        'icc.png': encoded(image, 'PNG', icc_profile=bytes(900_000)), 'tag.tif': encoded(image, 'TIFF', tiffinfo=tags),
        'warned_of.png': png(1200, 1200, 1, pixels=bytes(151 * 1200)), 'spaces and ünïcode.png': whole['PNG']}
    bad = {
        'empty.jpg': b'', 'empty.png': b'', 'text.jpg': b'This is no image.\n' * 99, 'page.jpg': b'<html>404</html>',
        'zeros.jpg': bytes(5000), 'bomb.png': png(20000, 20000, 1, pixels=bytes(99)), 'bomb.gif': b'GIF89a' + b'\xff' * 4
        + whole['GIF'][10:], 'bomb.bmp': whole['BMP'][:18] + struct.pack('<ii', 60000, 60000) + whole['BMP'][26:],
        'no_width.png': png(0, 30), 'no_height.png': png(30, 0),
        'no_width.bmp': whole['BMP'][:18] + struct.pack('<ii', 0, 30) + whole['BMP'][26:], 'no_width.pgm': b'P5 0 30 255\n',
        'text.png': encoded(image, 'PNG', pnginfo=text), 'header.jpg': whole['JPEG'][:20], 'header.png': whole['PNG'][:33],
        'script.jpg': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\nshowpage\n%%EOF\n',
        'nan.tif': encoded(Image.fromarray(np.full((30, 40), np.nan, np.float32)), 'TIFF'), 'inf.tif': encoded(
            Image.fromarray(np.full((30, 40), np.inf, np.float32)), 'TIFF'), 'meters.tif': encoded(
            Image.fromarray(np.full((30, 40), -70000, np.int32)), 'TIFF'), 'half.png': whole['PNG'][:len(whole['PNG']) // 2],
        'half.jpg': whole['JPEG'][:len(whole['JPEG']) // 2], 'half.webp': whole['WEBP'][:len(whole['WEBP']) // 2]}
    unclear = {'no_width.gif': b'GIF89a' + bytes(4) + whole['GIF'][10:]}
    for number in range(150):
        kind, content = FORMATS[number % 6], bytearray(whole[FORMATS[number % 6]])
        if number % 4 == 0:
            del content[draw.randrange(len(content)):]
        for _ in range(number % 4):
            content[draw.randrange(min(len(content), 200 if number % 8 < 4 else len(content)))] ^= 1 << draw.randrange(8)
        unclear[f'{number:03}.{kind.lower()}'] = bytes(content)
    for outcome, contents in ((True, good), (False, bad), (None, unclear)):
        for name, content in contents.items():
            (folder / name).write_bytes(content)
            files[name] = outcome
    os.mkfifo(folder / 'fifo.png')
    (folder / 'device.png').symlink_to('/dev/zero')
    (folder / 'broken link.png').symlink_to('nowhere')
    return {**files, **dict.fromkeys(('fifo.png', 'device.png'), False)}
