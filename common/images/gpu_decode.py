"""Training images whose JPEGs the GPU decodes, crops, resizes and mirrors. Experimental.

A loading process reads the bytes of a JPEG, and draws its crop by the size that the header gives. The
training process hands the JPEGs of a batch to torchvision's `decode_jpeg`, which decodes them on the GPU by
NVIDIA's nvJPEG, and resizes their crops there.

The crops are those of `Augmented`. The pixels differ a little. The resize rounds once where Pillow rounds
twice: up to a fifth of the values differ by one of 256 levels. nvJPEG enlarges reduced colours by another
filter than libjpeg: torchvision's own tests ask for a mean difference below two levels.

What `stays_encoded` excludes, a loading process decodes by Pillow, as `Augmented` does. A JPEG that nvJPEG
does not decode is read once more, by `Augmented` in the training process, and named in a warning.
"""
import dataclasses
import io
import math
from dataclasses import dataclass

import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from torch.nn.functional import interpolate
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import functional as F

from common.images.augmented import Augmented, Crop, collate
from common.images.fast_decode import LARGEST
from common.images.files import ImageFiles
from common.memory_errors import is_out_of_memory
from common.words import first_line, printable

MOST_PIXELS = 2 ** 24  # of a JPEG that the GPU decodes; its crop takes 12 bytes a pixel there
AT_ONCE = 2 ** 27  # pixels that are decoded at a time, which take 3 bytes each
# An antialiased resize holds its weights in a block's shared memory, of which a GPU has at least 48 KiB.
# They take 65 * (4 * factor + 1) * 4 bytes.
LARGEST_REDUCTION = 32
END_OF_IMAGE = b'\xff\xd9'


@dataclass(frozen=True)
class EncodedImage:
    """What the training process knows of a JPEG besides its bytes.

    item: its (epoch, index) in the data set. name: of its file. size: (height, width). crop: a Crop.
    """
    item: tuple
    name: str
    size: tuple
    crop: Crop


class EncodedImages(Augmented):
    """An Augmented of ImageFiles with a RandomCrop, whose JPEGs stay encoded.

    Its items are (pixels (C, H, W), None, failures) for what Pillow has decoded, and
    (bytes of a JPEG (n,) uint8, EncodedImage, failures) for what the GPU is to decode.
    """

    def __init__(self, images, crop, *arguments, **options):
        super().__init__(images, crop, *arguments, **options)
        if not isinstance(images, ImageFiles):
            raise ValueError('--decode=gpu is for folders, lists and tars of images, not for a data set of '
                             f'the kind {type(images).__name__}: leave it out')

    def __getitem__(self, item):
        image, encoded, failures = super().__getitem__(item)
        return image, encoded and dataclasses.replace(encoded, item=item), failures

    def read(self, index):
        """(bytes of a JPEG (n,) uint8, its (height, width)), or (image, None) of any other file."""
        with self.images.opened(index) as image:
            if stays_encoded(image, self.images.mode, self.transform.size):
                image.fp.seek(0)
                content = image.fp.read()
                if content.endswith(END_OF_IMAGE):  # else it is cut off, or holds more than an image
                    return as_bytes(content), (image.height, image.width)
        return self.images[index], None

    def prepare(self, image, item, index):
        _, size = item
        if size is None:
            return super().prepare(image, item, index)
        # The item is filled in by __getitem__, which knows the epoch.
        return image, EncodedImage(None, self.name(index), size, self.transform.draw(*size))

    def decoded_by_pillow(self):
        """The same images as an Augmented: each item has the same crop."""
        return Augmented(self.images, self.transform, self.normalisation, self.seed, timeout=self.timeout)


def as_bytes(content):
    """The bytes of a file as a tensor (n,) uint8."""
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def stays_encoded(image, mode, size):
    """Whether an opened image is a JPEG that the GPU is to decode, by its header.

    mode: in which the images are read. size: (height, width) of the crops. Excluded are other formats, other
    modes (grey, CMYK), colours that are stored as red, green and blue, and what is too large.
    """
    is_jpeg = isinstance(image, JpegImageFile) and image.format == 'JPEG'  # not MPO, which holds several
    if not is_jpeg or image.mode != mode:
        return False
    # libjpeg knows them by these two signs; nvJPEG need not.
    components = bytes(number for number, *_ in image.layer)
    is_stored_as_rgb = image.info.get('adobe_transform') == 0 or components == b'RGB'
    return (not is_stored_as_rgb
            and image.fp.seek(0, io.SEEK_END) <= LARGEST
            and image.height * image.width <= MOST_PIXELS
            and image.height <= LARGEST_REDUCTION * size[0]
            and image.width <= LARGEST_REDUCTION * size[1])


@dataclass(frozen=True)
class EncodedBatch:
    """A batch of items of EncodedImages, in two tensors: each takes a file handle on its way between
    processes, which often may have no more than a thousand.

    content: the bytes of all JPEGs, one after the other, (n,) uint8. lengths: the bytes of each.
    encoded: an EncodedImage of each. places: where each stands in the batch.
    pixels: the other images in order, (b, C, H, W), uint8 or float32 in [0, 1].
    """
    content: torch.Tensor
    lengths: list
    encoded: list
    places: list
    pixels: torch.Tensor

    def pin_memory(self):
        """The same batch in pinned memory; a DataLoader calls it."""
        return dataclasses.replace(self, content=self.content.pin_memory(), pixels=self.pixels.pin_memory())


def collate_encoded(items):
    """(EncodedBatch, None, failures) of items of EncodedImages, as `collate` makes batches of pixels."""
    places = [place for place, (_, encoded, _) in enumerate(items) if encoded is not None]
    contents = [items[place][0] for place in places]
    pixels, _, _ = collate([item for item in items if item[1] is None])
    failures = [failure for *_, of_item in items for failure in of_item]
    content = torch.cat([torch.empty(0, dtype=torch.uint8), *contents])
    lengths = [len(one) for one in contents]
    encoded = [items[place][1] for place in places]
    return EncodedBatch(content, lengths, encoded, places, pixels), None, failures


def nvjpeg_on(device):
    """A function that decodes JPEGs on a GPU: decode(list of (n,) uint8, mode) -> list of (C, h, w) uint8.

    It raises RuntimeError if one of them cannot be decoded. This here raises ValueError, with the remedy, if
    none can be decoded on the device.
    """
    if device.type != 'cuda':
        raise ValueError('--decode=gpu needs a GPU of NVIDIA (CUDA), and this run is on the '
                         f'{device.type.upper()}: give --decode=fast in a new run, or go on where there is one')

    def decode(contents, mode):
        return decode_jpeg(contents, mode, device)

    file = io.BytesIO()
    Image.new('RGB', (16, 16)).save(file, 'JPEG')
    try:
        decode([as_bytes(file.getvalue())], ImageReadMode.RGB)
    except (RuntimeError, ImportError) as error:
        reason = first_line(error)
        raise ValueError(f'--decode=gpu does not work with this torchvision ({reason}): give --decode=fast in a new run, or '
                         'go on where it works'
                         ) from error
    return decode


class DeviceDecoder:
    """Makes images (B, C, H, W) on a device, uint8 or float32 in [0, 1], of an EncodedBatch.

    augmented: the EncodedImages. decode: as `nvjpeg_on` returns it. warn: called with the text of a warning.
    tell_failures: called with [(index, what is wrong)] of images that Pillow cannot read either.

    On a GPU the host waits until the JPEGs are decoded, but not for the training steps before: all of it has
    a stream of its own, so that it runs beside them. torchvision decodes on yet another stream, which does
    not wait for what still uses the memory that it writes to. So that memory is taken from our stream alone,
    once nothing is left to do there.
    """

    def __init__(self, augmented, device, decode, warn, tell_failures):
        self.by_pillow = augmented.decoded_by_pillow()
        self.mode = ImageReadMode.RGB if augmented.images.mode == 'RGB' else ImageReadMode.GRAY
        self.device = device
        self.decode = decode
        self.warn = warn
        self.tell_failures = tell_failures
        self.stream = torch.cuda.Stream(device) if device.type == 'cuda' else None
        self.refused = set()  # names of JPEGs that could not be decoded

    def __call__(self, batch):
        if self.stream is None:
            return self.images_of(batch)
        with torch.cuda.stream(self.stream):
            images = self.images_of(batch)
        training = torch.cuda.current_stream(self.device)
        training.wait_stream(self.stream)
        images.record_stream(training)
        return images

    def images_of(self, batch):
        """The images of an EncodedBatch, without a look at streams."""
        pixels = batch.pixels.to(self.device, non_blocking=True)
        if not batch.encoded:
            return pixels
        contents = batch.content.split(batch.lengths)
        crops = []
        for group in groups_of(batch.encoded):
            crops += self.crops_of([contents[i] for i in group], [batch.encoded[i] for i in group])
        decoded = torch.stack(crops).round_().clamp_(0, 255).to(torch.uint8)
        if not len(pixels):
            return decoded
        if pixels.dtype != torch.uint8:
            decoded = F.convert_image_dtype(decoded, torch.float32)
        others = iter(pixels)
        rows = dict(zip(batch.places, decoded))
        return torch.stack([rows[place] if place in rows else next(others)
                            for place in range(len(decoded) + len(pixels))])

    def crops_of(self, contents, encoded):
        """The resized crops of some JPEGs on the device, each (C, H, W) float32 in 0 ... 255."""
        images = self.decoded(contents, encoded)
        return [self.read_again(one) if image is None else resized_crop(image, one.crop)
                for image, one in zip(images, encoded)]

    def decoded(self, contents, encoded):
        """The whole images of some JPEGs on the device, each (C, h, w) uint8, or None where it cannot be decoded."""
        tried = [i for i, one in enumerate(encoded) if one.name not in self.refused]
        images = [None] * len(encoded)
        if self.stream is not None:
            self.stream.synchronize()
        try:
            found = self.decode_or_make_room([contents[i] for i in tried]) if tried else []
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            # It does not say which of them is at fault.
            if len(tried) > 1:
                return [self.decoded([content], [one])[0] for content, one in zip(contents, encoded)]
            self.refuse(encoded[tried[0]], first_line(error))
            return images
        for i, image in zip(tried, found):
            if tuple(image.shape[1:]) == encoded[i].size:
                images[i] = image
            else:
                self.refuse(encoded[i], f'it came out as {tuple(image.shape)}')
        return images

    def decode_or_make_room(self, contents):
        """The images of some JPEGs, by nvJPEG. Its memory is not torch's: where it finds none, torch gives back what it
        holds in reserve, and it is tried once more. Raises RuntimeError.
        """
        try:
            return self.decode(contents, self.mode)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        torch.cuda.empty_cache()
        return self.decode(contents, self.mode)

    def refuse(self, one, reason):
        """Warn that a JPEG is read by Pillow from now on."""
        self.refused.add(one.name)
        self.warn(f'{printable(one.name)} is decoded on the CPU, since the GPU could not ({reason}); '
                  f'{len(self.refused)} so far')

    def read_again(self, one):
        """A JPEG as Augmented has it, (C, H, W) float32 in 0 ... 255 on the device. If Pillow cannot read it
        either, the next image stands in for it.
        """
        image, _, failures = self.by_pillow[one.item]
        self.tell_failures(failures)
        return F.convert_image_dtype(image, torch.uint8).to(self.device).float()


def groups_of(encoded):
    """The places of EncodedImages in groups of at most AT_ONCE pixels, or of one image."""
    groups = []
    pixels = math.inf
    for place, one in enumerate(encoded):
        pixels += math.prod(one.size)
        if pixels > AT_ONCE:
            groups.append([])
            pixels = math.prod(one.size)
        groups[-1].append(place)
    return groups


def resized_crop(image, crop):
    """The Crop of an image (C, h, w) uint8, as (C, H, W) float32 in 0 ... 255, but for what bicubic filters overshoot."""
    top, left, height, width = crop.box
    part = image[None, :, top:top + height, left:left + width].float()
    resized = interpolate(part, crop.size, mode=crop.interpolation, antialias=True)[0]
    return F.hflip(resized) if crop.mirrored else resized
