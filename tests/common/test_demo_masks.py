"""Drawn masks are functions of their seed, and say what is on the pictures."""
import numpy as np
from PIL import Image

from common.demo_masks import IGNORED, MASK_CLASSES, mask_of, write_masks
from common.demo_objects import Scene, reduced


def scenes(objects, count=12, side=48):
    """Scenes of so many objects each, on the same backgrounds."""
    found = []
    for number in range(count):
        scene = Scene(np.random.default_rng(number), side, MASK_CLASSES)
        for _ in range(objects):
            scene.add_object()
        found.append(scene)
    return found


def test_masks_are_a_function_of_seed_split_and_number(tmp_path):
    for name, train, seed in (('one', 13, 0), ('longer', 14, 0), ('other', 13, 1)):
        write_masks(tmp_path / name, train=train, val=3, side=32, seed=seed)
    paths = sorted((tmp_path / 'one').rglob('*.png'))
    assert len(paths) == 2 * (13 + 3)
    for path in paths:
        relative = path.relative_to(tmp_path / 'one')
        assert path.read_bytes() == (tmp_path / 'longer' / relative).read_bytes()
        is_empty = relative.parts[0] == 'annotations' and path.stem == '000011'
        assert (path.read_bytes() == (tmp_path / 'other' / relative).read_bytes()) == is_empty
    first = [(tmp_path / 'one/images' / split / '000000.png').read_bytes() for split in ('train', 'val')]
    assert first[0] != first[1]


def test_the_layout_pairs_images_with_palette_masks_of_the_listed_classes(tmp_path):
    write_masks(tmp_path, train=24, val=2, side=32, seed=0)
    lines = [line.split() for line in (tmp_path / 'classes.txt').read_text().splitlines()]
    assert [(int(value), name) for value, name, _ in lines] == list(enumerate(['background', *MASK_CLASSES]))
    values = set()
    for split, count in (('train', 24), ('val', 2)):
        masks = sorted((tmp_path / 'annotations' / split).iterdir())
        assert len(masks) == count
        images = sorted((tmp_path / 'images' / split).iterdir())
        assert [path.name for path in masks] == [path.name for path in images]
        for path in masks:
            mask = Image.open(path)
            assert mask.mode == 'P' and mask.size == (32, 32)
            assert Image.open(tmp_path / 'images' / split / path.name).size == (32, 32)
            values |= set(np.unique(mask).tolist())
            for value, _, colour in lines:
                assert bytes(mask.getpalette()[3 * int(value):][:3]).hex() == colour[1:]
    assert values == {*range(len(MASK_CLASSES) + 1), IGNORED}
    assert not np.array(Image.open(tmp_path / 'annotations/train/000011.png')).any()


def test_a_mask_is_zero_where_the_background_is_seen():
    for scene, plain in zip(scenes(4), scenes(0), strict=True):
        seen = np.array(reduced(scene.picture, scene.side)) == np.array(reduced(plain.picture, plain.side))
        assert ((mask_of(scene) == 0) == seen.all(-1)).mean() > 0.999


def test_a_mask_gives_objects_the_number_of_their_class():
    for scene in scenes(1):
        [(name, visible, _, _)] = scene.objects
        values = np.unique(mask_of(scene)[visible[1::3, 1::3]])
        assert set(values.tolist()) == {1 + MASK_CLASSES.index(name), IGNORED}


def test_ignored_pixels_are_a_thin_line():
    for scene in scenes(4):
        ignored = mask_of(scene) == IGNORED
        around = np.lib.stride_tricks.sliding_window_view(np.pad(ignored, 1, mode='edge'), (3, 3))
        assert ignored.any() and not around.all((2, 3)).any()
