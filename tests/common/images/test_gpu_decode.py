"""JPEGs that are decoded, cropped and resized on a device; torchvision's decoder for the CPU stands in for nvJPEG."""
import dataclasses
import io
import pickle
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from common.images import gpu_decode
from common.images.augmented import Augmented, Crop, RandomCrop
from common.images.files import ImageFiles
from common.images.gpu_decode import (
    DeviceDecoder,
    EncodedImages,
    collate_encoded,
    groups_of,
    nvjpeg_on,
    resized_crop,
    stays_encoded,
)
from common.images.loading import loader
from pretrain.main import pretrain
from pretrain.methods import recommended
from tests.common.images.drawn import noise, pack, photo, photos_in
from tests.conftest import assert_same_run, saved

CPU = torch.device('cpu')
CROP = RandomCrop((24, 40), (0.1, 1.0))
SIZES = ((300, 400), (61, 47), (130, 160), (201, 133))


def on_cpu(contents, mode):
    """Stands in for nvJPEG."""
    return decode_jpeg(contents, mode, CPU)


@pytest.fixture
def photos(tmp_path):
    """JPEGs of many sizes and kinds, all of which stay encoded."""
    return photos_in(tmp_path / 'photos', SIZES)


class Told(list):
    """Warnings and failures, as they were told."""

    def warn(self, text):
        self.append(text)

    def failures(self, failures):
        self.extend(failures)


def both(images, items, crop=CROP, decode=on_cpu, told=None):
    """Batches of the same items, decoded by Pillow and on the device; and the EncodedBatch."""
    told = Told() if told is None else told
    plain, encoded = (kind(images, crop, None, seed=5) for kind in (Augmented, EncodedImages))
    batch, _, failures = collate_encoded([encoded[item] for item in items])
    decoder = DeviceDecoder(encoded, CPU, decode, told.warn, told.failures)
    expected = [plain[item] for item in items]
    assert failures == [failure for *_, of_item in expected for failure in of_item]
    return [image for image, *_ in expected], decoder(batch), batch


def apart(one, other):
    return (one.int() - other.int()).abs()


@pytest.mark.parametrize(('in_chans', 'interpolation'), [(1, 'bicubic'), (3, 'bicubic'), (3, 'bilinear')])
def test_the_same_crops_of_nearly_the_same_pixels(photos, in_chans, interpolation):
    """With the same decoder, so that what is left is the resize, which rounds once where Pillow rounds twice."""
    if in_chans == 1:
        for path in photos.iterdir():
            Image.open(path).convert('L').save(path)
    images, crop = ImageFiles(photos, in_chans), dataclasses.replace(CROP, interpolation=interpolation)
    for epoch in range(4):
        expected, found, batch = both(images, [(epoch, index) for index in range(len(images))], crop)
        assert found.shape == (len(images), in_chans, 24, 40) and found.dtype == torch.uint8
        assert len(batch.encoded) == len(images) and not len(batch.pixels)
        difference = apart(torch.stack(expected), found)
        assert difference.max() <= 1 and (difference > 0).float().mean() < 0.2


def test_a_crop_of_another_place_would_be_seen(photos):
    images = ImageFiles(photos)
    expected, _, batch = both(images, [(0, 0)])
    top, left, height, width = batch.encoded[0].crop.box
    whole = on_cpu([batch.content], ImageReadMode.RGB)[0]
    moved = Crop((top, left + 4, height, width - 4), (24, 40), batch.encoded[0].crop.mirrored)
    assert apart(expected[0], resized_crop(whole, moved).round().clamp(0, 255).byte()).float().mean() > 1


def odd_files(folder):
    """Files that the loading process decodes, as Augmented does; one JPEG among them that it does not."""
    noise(60, 70).save(folder / 'a.png')
    photo(60, 70).convert('L').save(folder / 'grey.jpg')
    photo(60, 70).convert('CMYK').save(folder / 'cmyk.jpg')
    photo(60, 70).save(folder / 'rgb.jpg', keep_rgb=True)
    photo(60, 70).save(folder / 'several.mpo', save_all=True, append_images=[photo(60, 70, 1)])
    photo(60, 2000).save(folder / 'wide.jpg')
    photo(60, 70).save(folder / 'followed.jpg')
    with open(folder / 'followed.jpg', 'ab') as file:
        file.write(b'more')
    photo(60, 70).save(folder / 'plain.jpg')


@pytest.mark.parametrize('deep', [False, True])
def test_what_stays_with_the_loading_process_is_exactly_what_pillow_gives(tmp_path, deep):
    """With an image of 16 bits the whole batch is float, as without a GPU."""
    odd_files(tmp_path)
    if deep:
        Image.fromarray(np.arange(4800, dtype=np.uint16).reshape(60, 80)).save(tmp_path / 'b_deep.png')
    images = ImageFiles(tmp_path)
    names = [Path(images.name(index)).name for index in range(len(images))]
    expected, found, batch = both(images, [(1, index) for index in range(len(images))], RandomCrop((20, 20)))
    assert [names[place] for place in batch.places] == ['plain.jpg']
    assert found.dtype == (torch.float32 if deep else torch.uint8)
    for name, one, other in zip(names, expected, found):
        if name != 'plain.jpg':
            assert torch.equal(one if one.dtype == other.dtype else one.float() / 255, other), name


def test_only_jpegs_of_a_size_that_the_resize_can_do_stay_encoded():
    def opened(height, width):
        file = io.BytesIO()
        Image.new('RGB', (width, height)).save(file, 'JPEG')
        return Image.open(file)

    assert stays_encoded(opened(320, 640), 'RGB', (10, 20))
    assert not stays_encoded(opened(321, 640), 'RGB', (10, 20))
    assert not stays_encoded(opened(320, 641), 'RGB', (10, 20))
    assert stays_encoded(opened(4096, 4096), 'RGB', (224, 224))
    assert not stays_encoded(opened(4097, 4096), 'RGB', (224, 224))


def test_other_data_sets_are_refused():
    with pytest.raises(ValueError, match='--decode=gpu is for folders, lists and tars'):
        EncodedImages([noise(9, 9)], CROP, None)


def test_a_jpeg_that_is_cut_off_is_replaced_as_without_a_gpu(photos):
    images = ImageFiles(photos)
    for index, keep in ((3, 0.6), (6, 0.02), (9, 0.9)):
        path = Path(images.name(index))
        path.write_bytes(path.read_bytes()[:int(keep * path.stat().st_size)])
    expected, found, batch = both(images, [(0, index) for index in (2, 3, 6, 9)])
    assert apart(torch.stack(expected), found).max() <= 1
    assert [Path(one.name).name for one in batch.encoded] == [Path(images.name(i)).name for i in (2, 4, 7, 10)]


class Failing:
    """Decodes no batch that holds the JPEG of a certain name, as nvJPEG does with one that it cannot decode."""

    def __init__(self, path):
        self.bad = path.read_bytes()
        self.calls = []

    def __call__(self, contents, mode):
        self.calls.append(len(contents))
        if any(bytes(content.tolist()) == self.bad for content in contents):
            raise RuntimeError('Error while decoding JPEG images: unsupported\nwith a trace')
        return on_cpu(contents, mode)


def test_a_jpeg_that_the_device_does_not_decode_is_read_by_pillow_and_named_once(photos):
    images = ImageFiles(photos)
    bad, told = Path(images.name(1)), Told()
    encoded = EncodedImages(images, CROP, None, seed=5)
    plain = Augmented(images, CROP, None, seed=5)
    decode = Failing(bad)
    decoder = DeviceDecoder(encoded, CPU, decode, told.warn, told.failures)
    for epoch in range(3):
        items = [(epoch, index) for index in range(4)]
        found = decoder(collate_encoded([encoded[item] for item in items])[0])
        assert torch.equal(found[1], plain[items[1]][0])
        assert apart(found, torch.stack([plain[item][0] for item in items])).max() <= 1
    assert told == [f'{bad} is decoded on the CPU, since the GPU could not (Error while decoding JPEG images: unsupported); '
                    '1 so far']
    assert decode.calls == [4, 1, 1, 1, 1, 3, 3]  # known by then, it does not cost the others their batch


def test_a_full_memory_is_no_fault_of_an_image(photos):
    def full(contents, mode):
        raise torch.OutOfMemoryError('CUDA out of memory')

    encoded = EncodedImages(ImageFiles(photos), CROP, None, seed=5)
    told = Told()
    decoder = DeviceDecoder(encoded, CPU, full, told.warn, told.failures)
    with pytest.raises(torch.OutOfMemoryError):
        decoder(collate_encoded([encoded[0, index] for index in range(4)])[0])
    assert not told and not decoder.refused


def test_nvjpeg_gets_the_memory_that_torch_holds_in_reserve(photos, monkeypatch):
    emptied = []
    monkeypatch.setattr(torch.cuda, 'empty_cache', lambda: emptied.append(1))

    def full_at_first(contents, mode):
        if not emptied:
            raise RuntimeError('Error while decoding JPEG images: Failed to decode batch: 5')
        return on_cpu(contents, mode)

    encoded = EncodedImages(ImageFiles(photos), CROP, None, seed=5)
    told = Told()
    decoder = DeviceDecoder(encoded, CPU, full_at_first, told.warn, told.failures)
    found = decoder(collate_encoded([encoded[0, index] for index in range(4)])[0])
    assert len(found) == 4 and len(emptied) == 1 and not told and not decoder.refused


def test_what_neither_decodes_is_replaced_and_told(photos):
    """The file was whole when its header was read, and is damaged when Pillow comes to it."""
    images, told = ImageFiles(photos), Told()
    encoded, plain = (kind(images, CROP, None, seed=5) for kind in (EncodedImages, Augmented))
    batch, _, _ = collate_encoded([encoded[0, index] for index in (1, 5)])
    path = Path(images.name(1))
    decode = Failing(path)
    path.write_bytes(path.read_bytes()[:200])
    found = DeviceDecoder(encoded, CPU, decode, told.warn, told.failures)(batch)
    assert torch.equal(found[0], plain[0, 1][0])  # what stands in, cropped as the seed of the item has it
    assert str(path) in told[0] and [index for index, _ in told[1:]] == [1]


def test_an_image_of_another_size_than_its_header_says_is_not_taken(photos):
    def decode(contents, mode):
        return [on_cpu(contents, mode)[0], torch.zeros(3, 8, 8, dtype=torch.uint8)]

    told = Told()
    expected, found, _ = both(ImageFiles(photos), [(0, 0), (0, 1)], decode=decode, told=told)
    assert torch.equal(found[1], expected[1]) and len(told) == 1 and 'it came out as (3, 8, 8)' in told[0]


def test_large_images_are_decoded_a_few_at_a_time(photos, monkeypatch):
    monkeypatch.setattr(gpu_decode, 'AT_ONCE', 300 * 400 + 61 * 47)
    images, sizes = ImageFiles(photos), []

    def decode(contents, mode):
        sizes.append(len(contents))
        return on_cpu(contents, mode)

    expected, found, batch = both(images, [(0, index) for index in (0, 3, 1, 2, 3, 4, 5)], decode=decode)
    assert [len(group) for group in groups_of(batch.encoded)] == sizes == [2, 1, 2, 2]
    assert apart(torch.stack(expected), found).max() <= 1


def test_batches_without_any_jpeg_and_without_anything_else(tmp_path):
    noise(60, 70).save(tmp_path / 'a.png')
    photo(60, 70).save(tmp_path / 'b.jpg')
    images = ImageFiles(tmp_path)
    for items, jpegs in (([(0, 0), (1, 0)], 0), ([(0, 1), (1, 1)], 2), ([(0, 0), (0, 1), (1, 0)], 1)):
        expected, found, batch = both(images, items)
        assert len(batch.encoded) == jpegs and apart(torch.stack(expected), found).max() <= 1


def test_a_batch_comes_from_a_loading_process_in_two_tensors(photos):
    images = ImageFiles(photos)
    encoded = EncodedImages(images, CROP, None)
    items = [(0, index) for index in range(6)]
    (batch, labels, failures), = loader(encoded, [items], 1, CPU, collate_encoded)
    here, _, _ = collate_encoded([encoded[item] for item in items])
    assert labels is None and failures == [] and torch.equal(batch.content, here.content) and batch.encoded == here.encoded
    assert len(batch.content) == sum(batch.lengths) == sum(path.stat().st_size for path in sorted(photos.iterdir())[:6])
    assert len(pickle.dumps(here)) < len(batch.content) + 6000  # each JPEG is in it once
    assert [one.item for one in batch.encoded] == items and batch.places == list(range(6))


def test_pinned_memory_is_asked_for(photos, monkeypatch):
    """What a DataLoader does with a batch on its way to a GPU."""
    encoded = EncodedImages(ImageFiles(photos), CROP, None)
    batch, _, _ = collate_encoded([encoded[0, 0]])
    pinned = []
    monkeypatch.setattr(torch.Tensor, 'pin_memory', lambda tensor: pinned.append(tensor) or tensor)
    assert batch.pin_memory() == batch and [len(tensor) for tensor in pinned] == [len(batch.content), 0]


def test_on_a_gpu_nothing_is_overwritten_that_is_still_in_use(photos, monkeypatch):
    """With streams that stand in for a GPU's: torchvision writes to memory of our stream once that has nothing left to do,
    and the training stream goes on once the images are there.
    """
    done = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def synchronize(self):
            done.append(f'{self.name} ends')

        def wait_stream(self, other):
            done.append(f'{self.name} waits for {other.name}')

    @contextmanager
    def within(stream):
        done.append(f'{stream.name} is current')
        yield
        done.append(f'{stream.name} is left')

    def decode(contents, mode):
        done.append('decode')
        return on_cpu(contents, mode)

    encoded = EncodedImages(ImageFiles(photos), CROP, None)
    batch, _, _ = collate_encoded([encoded[0, 0], encoded[0, 3]])
    decoder = DeviceDecoder(encoded, CPU, decode, None, None)
    expected = decoder(batch)
    done.clear()
    decoder.stream = Stream('own')
    monkeypatch.setattr(gpu_decode, 'AT_ONCE', 1)  # each JPEG by itself
    monkeypatch.setattr(torch.cuda, 'stream', within)
    monkeypatch.setattr(torch.cuda, 'current_stream', lambda device: Stream('training'))
    monkeypatch.setattr(torch.Tensor, 'record_stream', lambda tensor, stream: done.append(f'kept for {stream.name}'))
    assert torch.equal(decoder(batch), expected)
    assert done == ['own is current', 'own ends', 'decode', 'own ends', 'decode', 'own is left', 'training waits for own',
                    'kept for training']


def test_without_a_gpu_it_is_refused(tiny):
    with pytest.raises(ValueError, match=r'--decode=gpu needs a GPU of NVIDIA \(CUDA\), and this run is on the CPU: give '
                                         '--decode=fast'):
        nvjpeg_on(CPU)
    with pytest.raises(ValueError, match='give --decode=fast'):
        pretrain(tiny(decode='gpu'))


def test_a_torchvision_without_nvjpeg_is_refused(monkeypatch):
    def decode(contents, mode, device):
        raise RuntimeError('decode_jpegs_cuda: torchvision not compiled with nvJPEG support\n(a trace)')

    monkeypatch.setattr(gpu_decode, 'decode_jpeg', decode)
    with pytest.raises(ValueError, match=r'not compiled with nvJPEG support\): give --decode=fast'):
        nvjpeg_on(torch.device('cuda', 0))


def test_nvjpeg_is_called_as_torchvision_documents_it(monkeypatch, photos):
    called = []
    monkeypatch.setattr(gpu_decode, 'decode_jpeg', lambda *given: called.append(given) or decode_jpeg(*given[:2]))
    decode = nvjpeg_on(torch.device('cuda', 0))
    contents = [torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8) for path in sorted(photos.iterdir())]
    assert len(decode(contents, ImageReadMode.RGB)) == len(contents)
    assert all(mode is ImageReadMode.RGB and device == torch.device('cuda', 0) for _, mode, device in called)
    assert [len(given) for given, *_ in called] == [1, len(contents)]  # the first is a trial


def test_a_run_whose_jpegs_the_device_decodes(tiny, tmp_path, photos, monkeypatch):
    """It is the same from tars, and with loading processes; and near the run that Pillow decodes for."""
    monkeypatch.setattr('pretrain.pretraining.nvjpeg_on', lambda device: on_cpu)
    noise(50, 60).save(photos / 'z.png')
    options = {'data_path': str(photos), 'decode': 'gpu', 'run_dir': str(tmp_path / 'one')}
    target = pack(photos, sorted(path.name for path in photos.iterdir()), tmp_path / 'tars/a.tar')
    one = pretrain(tiny(**options))
    other = pretrain(tiny(**{**options, 'data_path': str(target), 'run_dir': str(tmp_path / 'tar'), 'workers': 1}))
    assert_same_run(one, other)
    plain = pretrain(tiny(**{**options, 'decode': 'pillow', 'run_dir': str(tmp_path / 'plain')}))
    assert saved(one)['sums'][0] == pytest.approx(saved(plain)['sums'][0], rel=1e-2)
    with pytest.raises(ValueError, match='decode was gpu and is pillow now'):
        pretrain(tiny(**{**options, 'decode': 'pillow'}))


def test_a_run_from_before_there_was_a_choice_goes_on(tiny, tmp_path, photos):
    """Its options have fast_decode."""
    options = {'data_path': str(photos), 'run_dir': str(tmp_path / 'run')}
    folder = pretrain(tiny(**options, decode='fast'))
    path = folder / 'your_convnet_still_pretraining.pth'
    content = torch.load(path, weights_only=True)
    del content['config']['decode']
    torch.save({**content, 'config': {**content['config'], 'fast_decode': True}}, path)
    assert pretrain(tiny(**options, decode='fast')) == folder
    with pytest.raises(ValueError, match='decode was fast and is pillow now'):
        pretrain(tiny(**options))
    assert recommended(name='x', fast_decode=True).decode == 'fast'
