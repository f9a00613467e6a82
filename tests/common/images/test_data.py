"""Images: what is found, what is read, what a step sees."""
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset
from torchvision.transforms import functional as F

from common.images.augmented import Augmented, CentreCrop, RandomCrop, Steps, collate
from common.images.datasets import check_dataset, fingerprint
from common.images.files import ImageFiles
from common.images.loading import loader
from pretrain.data import find_held_out, find_images

NORM = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def picture(path, mode='RGB', size=(20, 14), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    image.convert(mode).save(path)
    return path


def test_flat_nested_class_folders_and_train(tmp_path):
    picture(tmp_path / 'flat/a.png')
    picture(tmp_path / 'flat/b.JPEG')
    (tmp_path / 'flat/notes.txt').write_text('no image')
    (tmp_path / 'flat/._a.png').write_text('a resource fork')
    assert len(ImageFiles(tmp_path / 'flat')) == 2
    picture(tmp_path / 'deep/x/y/z/a.webp')
    picture(tmp_path / 'deep/b.tiff')
    assert len(find_images(tmp_path / 'deep')) == 2
    picture(tmp_path / 'imagenet/train/n01/a.png')
    picture(tmp_path / 'imagenet/val/n01/b.png')
    assert find_images(tmp_path / 'imagenet').name(0).endswith('train/n01/a.png')
    (tmp_path / 'linked').mkdir()
    (tmp_path / 'linked/n01').symlink_to(tmp_path / 'imagenet/train/n01')
    (tmp_path / 'linked/up').symlink_to(tmp_path / 'linked')
    assert len(find_images(tmp_path / 'linked')) == 1
    picture(tmp_path / 'both/val/a.png')
    picture(tmp_path / 'both/b.png')
    assert len(find_images(tmp_path / 'both')) == 2 and find_held_out(tmp_path / 'both') is None
    with pytest.raises(ValueError, match='whose images are trained on'):
        find_held_out(tmp_path / 'both', tmp_path / 'both/val')
    assert len(find_held_out(tmp_path / 'imagenet')) == 1 and find_held_out(tmp_path / 'flat') is None
    assert len(find_held_out(tmp_path / 'flat', tmp_path / 'deep')) == 2


def test_a_list_of_paths(tmp_path):
    picture(tmp_path / 'a b.png')
    below = picture(tmp_path / 'far/away.png')
    (tmp_path / 'list.txt').write_text(f'a b.png\n\n{below}\nfar/../a b.png\n')
    images = ImageFiles(tmp_path / 'list.txt')
    assert [images.name(i) for i in range(3)] == [str(tmp_path / name) for name in ('a b.png', 'far/away.png', 'a b.png')]
    assert [images[i].mode for i in range(3)] == ['RGB'] * 3


@pytest.mark.parametrize('line', ['../b.png', 'x/../../b.png', '{outside}/b.png', '{root}/../b.png', '{root}x/b.png',
                                  '{root}/x/../../b.png', '{root}//../b.png', '..', '{root}'])
def test_a_list_names_nothing_outside_of_its_root(tmp_path, line):
    root = tmp_path / 'root'
    for name in ('root/a.png', 'b.png', 'rootx/b.png'):
        picture(tmp_path / name)
    line = line.format(outside=tmp_path, root=root)
    (root / 'list.txt').write_text(f'a.png\n{line}\n')
    with pytest.raises(ValueError, match='--list_root=DIR') as error:
        find_images(root / 'list.txt')
    assert f'names {line},' in str(error.value)


def test_a_list_lies_where_it_likes_with_a_root(tmp_path):
    picture(tmp_path / 'images/x/a.png')
    (tmp_path / 'linked').symlink_to(tmp_path / 'images')
    (tmp_path / 'lists').mkdir()
    file = tmp_path / 'lists' / 'list.txt'
    file.write_text(f'x/a.png\n{tmp_path}/images/x/a.png\n{tmp_path}/linked/x/a.png\n{tmp_path}/linked//x/a.png\n')
    for images in (find_images(file, list_root=tmp_path / 'linked'), find_held_out(None, file, 3, str(tmp_path / 'linked'))):
        assert [images.name(i) for i in range(4)] == [str(tmp_path / 'linked/x/a.png')] * 4  # as is, and where the link leads
    with pytest.raises(ValueError, match='which is no file.*--list_root'):
        file.write_text('x/a.png')
        find_images(file)
    with pytest.raises(ValueError, match='there is no folder .*--list_root'):
        find_images(file, list_root=tmp_path / 'nowhere')


def test_folders_are_searched_for_what_is_read(tmp_path):
    for name in ('a.eps', 'b.pdf', 'c.mpg', 'd.h5', 'e.wmf', 'f.iim', 'g.png', 'h.JPG'):
        picture(tmp_path / f'{name}.png').rename(tmp_path / name)
    images = ImageFiles(tmp_path)
    assert [images.name(i) for i in range(len(images))] == [str(tmp_path / name) for name in ('g.png', 'h.JPG')]


def test_a_fingerprint_is_of_names_and_sizes(tmp_path):
    for i in range(3):
        picture(tmp_path / f'{i}.png', seed=i)
    images, before = ImageFiles(tmp_path), fingerprint(ImageFiles(tmp_path))
    assert before == images.fingerprint() and len(before) == 32
    halves = [fingerprint(Subset(images, indices)) for indices in ([0, 1], torch.tensor([0, 1]), [1, 2])]
    assert halves[0] == halves[1] and len({before, *halves}) == 3
    (tmp_path / '1.png').write_bytes(b'other')
    assert fingerprint(ImageFiles(tmp_path)) != before
    (tmp_path / '1.png').unlink()
    gone = fingerprint(images)
    assert gone not in (before, fingerprint(ImageFiles(tmp_path)))
    picture(tmp_path / '1.png', seed=1)
    assert fingerprint(images) == before
    (tmp_path / '2.png').rename(tmp_path / '3.png')
    assert fingerprint(ImageFiles(tmp_path)) != before


def test_a_fingerprint_of_a_dataset_of_ones_own():
    class Own(list):
        fingerprint = 'abc'

    class Counted(list):
        def fingerprint(self):
            return f'{len(self)} of mine'

    assert fingerprint(Own()) == 'abc' and fingerprint(Counted([1])) == '1 of mine'
    assert fingerprint([]) is None and fingerprint(Subset([1, 2], [0])) is None


def test_a_strip_is_cut_before_it_is_resized():
    assert CentreCrop((32, 32))(Image.new('RGB', (60000, 1))).size == (32, 32)
    assert CentreCrop((32, 48), 0.95)(torch.rand(3, 50000, 1)).shape == (3, 32, 48)
    middle = torch.zeros(3, 5, 4001)
    middle[:, :, 1998:2003] = 1
    assert CentreCrop((5, 5))(middle).min() > 0.99 and CentreCrop((4, 4), 0.5)(middle).min() > 0.99
    ordinary = torch.rand(3, 40, 600, generator=torch.Generator().manual_seed(0))  # 15 to 1, as ever
    whole = F.center_crop(F.resize(ordinary, [20, 300], F.InterpolationMode.BICUBIC, antialias=True), [20, 20])
    assert torch.equal(CentreCrop((20, 20))(ordinary), whole)


@pytest.mark.parametrize(('make', 'word'), [
    (lambda p: p / 'missing', 'no folder or list'), (lambda p: p, 'holds no images'),
    (lambda p: picture(p / 'x.png'), 'neither a folder nor a text file'),
    (lambda p: (p / 'l.txt').write_text('gone.png') and p / 'l.txt', "from the list's own folder on"),
    (lambda p: (p / 'l.txt').write_text('a' * 9999) and p / 'l.txt', "from the list's own folder on"),
    (lambda p: (p / 'l.txt').write_bytes(b'a.png\0\n') and p / 'l.txt', 'no NUL bytes'),
    (lambda p: (p / 'l.txt').write_bytes(b'\xe9.png\n') and p / 'l.txt', 'UTF-8'),
])
def test_no_images_is_an_error(tmp_path, make, word):
    with pytest.raises(ValueError, match=word):
        find_images(make(tmp_path))


def test_more_channels_need_a_dataset_and_no_path_is_an_error(tmp_path):
    with pytest.raises(ValueError, match='Dataset of your own'):
        find_images(tmp_path, in_chans=4)
    with pytest.raises(ValueError, match='--data_path'):
        find_images()
    with pytest.raises(ValueError, match='__len__'):
        check_dataset(iter([]))


@pytest.mark.parametrize('mode', ['RGB', 'L', 'P', 'RGBA', 'CMYK', '1', 'LA'])
def test_every_mode_becomes_rgb_or_grey(tmp_path, mode):
    path = picture(tmp_path / ('a.tiff' if mode == 'CMYK' else 'a.png'), mode)
    assert ImageFiles(path.parent)[0].mode == 'RGB' and ImageFiles(path.parent, in_chans=1)[0].mode == 'L'


def test_sixteen_bit_images_keep_their_depth(tmp_path):
    values = (np.arange(64 * 48, dtype=np.uint16) * 21).reshape(48, 64)
    Image.fromarray(values).save(tmp_path / 'a.png')
    image = ImageFiles(tmp_path, in_chans=1)[0]
    assert torch.equal(image, torch.from_numpy(values.astype(np.float32))[None] / 65535)
    assert ImageFiles(tmp_path)[0].shape == (3, 48, 64)
    item, _, failed = Augmented(ImageFiles(tmp_path, in_chans=1), CentreCrop((16, 16)), ((0.0,), (1.0,)))[(0, 0)]
    assert not failed and item.shape == (1, 16, 16) and item.unique().numel() > 250


def test_float_images_and_values_that_are_none(tmp_path):
    Image.fromarray(np.linspace(0, 1, 400, dtype=np.float32).reshape(20, 20)).save(tmp_path / 'a.tiff')
    image = ImageFiles(tmp_path)[0]
    assert image.shape == (3, 20, 20) and image.max() == 1
    Image.fromarray(np.full((20, 20), 70000, dtype=np.int32)).save(tmp_path / 'b.tiff')
    with pytest.raises(ValueError, match='neither 8 or 16 bits nor floats'):
        ImageFiles(tmp_path)[1]
    holes = torch.full((3, 9, 9), float('nan'))
    assert Augmented([holes, torch.ones(3, 9, 9)], RandomCrop((8, 8)), NORM)[(0, 0)][2][0][0] == 0  # the next one stands in


@pytest.mark.parametrize('item', [np.zeros((3, 8, 8)), {'image': 1}, torch.zeros(8, 8, 3), torch.zeros(1, 8, 8),
                                  torch.zeros(3, 8, 8, dtype=torch.int32), Image.new('L', (8, 8))])
def test_what_a_dataset_must_yield(item):
    with pytest.raises(ValueError, match='the data set yields'):
        check_dataset([item])


def test_a_corrupt_image_is_replaced_counted_and_named(tmp_path):
    for i in range(4):
        picture(tmp_path / f'{i}.png', seed=i)
    whole = (tmp_path / '1.png').read_bytes()
    (tmp_path / '1.png').write_bytes(whole[:len(whole) // 2])
    (tmp_path / '2.png').write_bytes(b'')
    augmented = Augmented(ImageFiles(tmp_path), RandomCrop((8, 8)), NORM)
    image, _, failed = augmented[(0, 1)]
    assert [index for index, _ in failed] == [1, 2] and augmented.name(1) == str(tmp_path / '1.png')
    assert image.shape == (3, 8, 8) and augmented[(0, 3)][2] == []
    for i in range(4):
        (tmp_path / f'{i}.png').write_bytes(b'x')
    with pytest.raises(ValueError, match='4 images in a row'):
        augmented[(0, 0)]


def test_augmentation_is_a_function_of_seed_epoch_and_index(tmp_path):
    for i in range(3):
        picture(tmp_path / f'{i}.png', seed=i, size=(40, 40))
    images = ImageFiles(tmp_path)
    one, other = (Augmented(images, RandomCrop((16, 24)), NORM, seed=1) for _ in range(2))
    first = one[(2, 1)][0]
    torch.rand(5)
    state = torch.get_rng_state()
    one[(0, 0)]
    assert torch.equal(torch.get_rng_state(), state)  # others' random numbers are left alone
    assert first.shape == (3, 16, 24) and torch.equal(other[(2, 1)][0], first)
    assert not torch.equal(one[(3, 1)][0], first) and not torch.equal(one[(2, 0)][0], first)
    assert not torch.equal(Augmented(images, RandomCrop((16, 24)), NORM, seed=2)[(2, 1)][0], first)


def test_the_filter_of_a_crop_is_the_one_that_is_asked_for():
    image = torch.rand(3, 40, 60, generator=torch.Generator().manual_seed(0))
    for name in ('bicubic', 'bilinear'):
        filter = F.InterpolationMode(name)
        whole = F.resize(image, [20, 30], filter, antialias=True)
        crop = RandomCrop((20, 30), (0.5, 1.0), False, name).draw(40, 60)
        assert torch.equal(crop(image), F.resized_crop(image, *crop.box, [20, 30], filter, antialias=True))
        assert torch.equal(CentreCrop((20, 20), interpolation=name)(image), F.center_crop(whole, [20, 20]))


def test_normalisation_crop_and_flip():
    grey = Image.fromarray(np.full((30, 50, 3), 51, np.uint8))
    image = Augmented([grey], RandomCrop((8, 8)), NORM)[(0, 0)][0]
    torch.testing.assert_close(image, torch.full((3, 8, 8), (0.2 - 0.5) / 0.25))
    ramp = torch.linspace(0, 1, 32).expand(1, 32, 32)
    still = Augmented([ramp], RandomCrop((32, 32), (1.0, 1.0), flip=False), ((0.0,), (1.0,)))
    assert all((still[(epoch, 0)][0].diff(dim=2) >= -1e-6).all() for epoch in range(8))
    flipping = Augmented([ramp], RandomCrop((32, 32)), ((0.0,), (1.0,)))
    directions = {bool((flipping[(epoch, 0)][0].diff(dim=2) <= 1e-6).all()) for epoch in range(20)}
    assert directions == {True, False}
    centre = Augmented([torch.zeros(3, 30, 50)], CentreCrop((8, 16)), NORM)[(0, 0)][0]
    assert centre.shape == (3, 8, 16)


def test_own_datasets_may_give_tensors_tuples_and_any_channels():
    for item in (torch.zeros(5, 20, 20, dtype=torch.uint8), (torch.rand(5, 20, 20), 3)):
        image, label, failed = Augmented([item], RandomCrop((8, 8)), ((0.5,) * 5, (0.5,) * 5))[(0, 0)]
        assert image.shape == (5, 8, 8) and image.dtype == torch.float32 and label is None and not failed


def test_an_epoch_shows_every_image_and_fills_the_last_batch():
    steps = list(Steps(images=10, batch=4, epochs=2, seed=0))
    assert len(steps) == 6 and all(len(batch) == 4 for batch in steps)
    for epoch in (0, 1):
        batches = steps[epoch * 3:epoch * 3 + 3]
        indices = [index for batch in batches for e, index in batch if e == epoch]
        assert len(indices) == 12 and set(indices) == set(range(10)) and indices[10:] == indices[:2]
    assert [i for b in steps[:3] for _, i in b] != [i for b in steps[3:] for _, i in b]
    assert len(list(Steps(images=3, batch=8, epochs=1, seed=0))[0]) == 8


def test_order_does_not_depend_on_ranks_or_on_where_it_started():
    whole = list(Steps(images=10, batch=4, epochs=3, seed=5))
    parts = [list(Steps(images=10, batch=4, epochs=3, seed=5, rank=r, ranks=2)) for r in (0, 1)]
    assert whole == [a + b for a, b in zip(*parts)]
    assert list(Steps(images=10, batch=4, epochs=3, seed=5, start=4)) == whole[4:]
    halves = list(Steps(images=10, batch=4, epochs=3, seed=5, accum=2))
    assert [a + b for a, b in zip(halves[::2], halves[1::2])] == whole
    both = [list(Steps(images=10, batch=4, epochs=3, seed=5, rank=r, ranks=2, accum=2)) for r in (0, 1)]
    assert halves == [a + b for a, b in zip(*both)]  # each part holds the same images on any number of ranks
    assert whole != list(Steps(images=10, batch=4, epochs=3, seed=6))


def test_workers_change_nothing(world):
    augmented = Augmented(find_images(world), RandomCrop((16, 16)), NORM, seed=3)
    batches = Steps(len(augmented), 8, 1, seed=3)
    none, two = (list(loader(augmented, batches, workers, torch.device('cpu'))) for workers in (0, 2))
    assert len(none) == len(two) == 5
    assert all(torch.equal(a, b) for (a, *_), (b, *_) in zip(none, two))


def test_collate_gathers_classes_and_failures():
    images, classes, failures = collate([(torch.zeros(1), None, []), (torch.ones(1), None, [(4, 'x'), (5, 'y')])])
    assert images.tolist() == [[0.0], [1.0]] and classes is None and failures == [(4, 'x'), (5, 'y')]
    assert collate([(torch.zeros(1), 7, []), (torch.ones(1), 0, [])])[1].tolist() == [7, 0]


def test_repeated_augmentation_draws_an_image_again_in_the_same_batch():
    steps = list(Steps(images=10, batch=6, epochs=2, seed=0, repeats=3))
    assert len(steps) == 4
    for epoch in (0, 1):
        batches = steps[2 * epoch:2 * epoch + 2]
        for batch in batches:
            indices = [index for _, index in batch]
            assert indices == indices[:2] * 3 and len(set(indices)) == 2  # copies stand apart: mixup takes neighbours
            assert [draw - 3 * epoch for draw, _ in batch] == [0, 0, 1, 1, 2, 2]
        assert len({index for batch in batches for _, index in batch}) == 4
    whole, parts = ([Steps(10, 6, 1, 0, rank=rank, ranks=ranks, repeats=3) for rank in range(ranks)] for ranks in (1, 2))
    assert list(whole[0]) == [a + b for a, b in zip(*parts)]


def test_timm_datasets_by_name(tmp_path):
    picture(tmp_path / 'train/a/1.png')
    picture(tmp_path / 'train/b/2.png')
    images = find_images(str(tmp_path), dataset='folder/')
    assert len(images) == 2 and Augmented(images, RandomCrop((8, 8)), NORM)[(0, 1)][0].shape == (3, 8, 8)


def test_a_crop_that_is_drawn_once_is_cut_to_the_image():
    """The height of 100 is passed where the share of the area is more than a quarter of the shape, width over height."""
    crop = RandomCrop((8, 8), (0.08, 1.0), retries=False)
    torch.manual_seed(0)
    boxes = torch.tensor([crop.draw(100, 400).box for _ in range(4000)])
    top, left, height, width = boxes.T
    assert top.min() == left.min() == 0 and (top + height).max() == 100 and (left + width).max() == 400
    mean_shape = (4 / 3 - 3 / 4) / math.log(16 / 9)
    assert (height == 100).float().mean() == pytest.approx((1 - mean_shape / 4) / 0.92, abs=0.03)
    inside = height < 100
    shapes = (width / height)[inside]
    assert shapes.min() > 0.73 and shapes.max() < 1.36
    square = torch.tensor([crop.draw(1000, 1000).box for _ in range(4000)])
    areas = square[:, 2] * square[:, 3] / 1e6
    assert 0.079 < areas.min() < 0.09 and areas[areas < 0.7].mean() == pytest.approx(0.39, abs=0.015)
    assert crop.draw(1, 1).box == (0, 0, 1, 1)
