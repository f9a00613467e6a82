"""Images that --val_fraction holds out: which, of what data sets, by which names, and that they are never trained on."""
import shutil
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset

from common.images.datasets import Share, fingerprint
from common.images.files import ImageFiles
from common.images.held_out import chosen, keys_of, with_held_out
from common.images.shards import TarShards
from pretrain.main import pretrain
from pretrain.pretraining import Pretraining
from tests.common.images.drawn import noise
from tests.conftest import Stop, assert_same_run, saved, stop_after


class Names:
    """A data set that has names and nothing else."""

    def __init__(self, names):
        self.names = names

    def __len__(self):
        return len(self.names)

    def name(self, index):
        return self.names[index]


LETTERS = Names([f'{letter}.png' for letter in 'abcdefghijklmnopqrst'])
EXPECTED = ['c.png', 'g.png', 'i.png', 's.png'], ['j.png', 'm.png', 'n.png', 'r.png']  # by seed


def held_out(names, fraction, seed=0, labels=None):
    return [names.name(i) for i in np.flatnonzero(chosen(keys_of(names, seed), fraction, labels))]


def names_below(images):
    return {images.name(i).rpartition('train/')[2] for i in range(len(images))}


def test_which_images_are_held_out_stays_the_same_for_ever():
    """Fixed names: another version of anything must not choose others."""
    assert held_out(LETTERS, 0.2) == EXPECTED[0] and held_out(LETTERS, 0.2, seed=1) == EXPECTED[1]
    shuffled = Names(LETTERS.names[::-1])
    assert sorted(held_out(shuffled, 0.2)) == EXPECTED[0]  # by name, not by place
    assert set(EXPECTED[0]) < set(held_out(LETTERS, 0.5))  # and those of a larger share hold those of a smaller one


def test_how_many_are_held_out():
    assert [len(held_out(LETTERS, fraction)) for fraction in (0.001, 0.1, 0.13, 0.5, 0.9)] == [1, 2, 3, 10, 18]
    twice = Names(['a', 'a', 'b', 'b', 'c', 'c'])
    assert all(len(held_out(twice, 0.1, seed)) == 2 for seed in range(5))  # images of one name are not parted


def test_the_same_share_of_every_class():
    labels = [0] * 10 + [1] * 2 + [2] + [3] * 7
    of_classes = chosen(keys_of(LETTERS, 0), 0.3, labels)
    assert np.bincount(labels, of_classes).tolist() == [3, 1, 0, 2]  # the class of one image stays in training
    images, part = with_held_out(LETTERS, None, 0.3, 0, labels)
    assert [*images.labels, *part.labels] == [*np.array(labels)[~of_classes], *np.array(labels)[of_classes]]
    other = np.array([9, 4, 7, 1])[labels]  # other numbers of the same classes
    assert np.array_equal(chosen(keys_of(LETTERS, 0), 0.3, other), of_classes)


def test_folders_lists_and_shards_are_divided_alike(world, tmp_path):
    folder = ImageFiles(world / 'train')
    lines = [folder.paths[i].decode() for i in range(len(folder))]
    (tmp_path / 'list.txt').write_text('\n'.join(reversed(lines)))
    with tarfile.open(tmp_path / 'all.tar', 'w') as tar:
        tar.add(world / 'train', '.')
    moved = shutil.copytree(world / 'train', tmp_path / 'elsewhere/train')
    both = [with_held_out(images, None, 0.1, 3) for images in (
        folder, ImageFiles(tmp_path / 'list.txt', root=world / 'train'), TarShards(tmp_path / 'all.tar'), ImageFiles(moved))]
    parts = [{path.decode() for path in part.paths} for _, part in both]
    assert all(part == parts[0] for part in parts) and len(parts[0]) == 4
    for (training, part), kind in zip(both, (ImageFiles, ImageFiles, TarShards, ImageFiles)):
        assert type(training) is type(part) is kind and len(training) == 36
        assert not {path.decode() for path in training.paths} & parts[0]
    (training, part), (_, packed) = both[0], both[2]
    assert part[3].tobytes() == packed[3].tobytes() and part.size(3) == packed.size(3)
    assert len({fingerprint(images) for images in (folder, training, part)}) == 3
    assert fingerprint(training) == fingerprint(both[2][0])


def test_data_sets_given_in_code_are_divided_by_number():
    images, part = with_held_out(list(range(20)), None, 0.2, 0)
    assert isinstance(part, Share) and sorted([*map(int, images), *map(int, part)]) == list(range(20))
    again = with_held_out([None] * 20, None, 0.2, 0)[1]
    assert part.indices.tolist() == again.indices.tolist() and part.name(0) == f'number {part.indices[0]}'
    inside = with_held_out(Subset(list(range(40)), range(20, 40)), None, 0.2, 0)[1]
    assert [int(image) - 20 for image in inside] == part.indices.tolist()


def test_what_cannot_be_divided_is_refused(world, tiny):
    with pytest.raises(ValueError, match=r'and there are held-out images already, .*val: leave --val_fraction out'):
        pretrain(tiny(val_fraction=0.1))
    with pytest.raises(ValueError, match=r'already, in a data set \(list\)'):
        pretrain(tiny(val_fraction=0.1, data_path=None), dataset=[noise(32, 32)] * 9, val_dataset=[noise(32, 32)])
    with pytest.raises(ValueError, match='of 1 images leaves none to train on: give more images'):
        with_held_out([None], None, 0.1, 0)
    with pytest.raises(ValueError, match='leaves none to hold out, since each class has a single image'):
        with_held_out([None] * 3, None, 0.1, 0, [0, 1, 2])
    for fraction in (0, 1, -0.1, float('nan')):
        with pytest.raises(ValueError, match='val_fraction must be more than 0 and less than 1'):
            tiny(val_fraction=fraction)


def test_a_run_trains_on_no_image_that_it_holds_out(world, tiny, tmp_path, monkeypatch, capsys):
    read, trained, shown = set(), set(), []
    original, show = ImageFiles.__getitem__, Pretraining.show_pictures

    def read_one(images, index):
        read.add((len(images), images.name(index)))
        return original(images, index)

    def show_some(run, epoch):
        trained.update(name for number, name in read if number == 36)
        read.clear()
        show(run, epoch)
        shown.append(set(read))

    options = tiny(data_path=str(world / 'train'), val_fraction=0.1, picture_every=1, val_every=1, decode='fast')
    with monkeypatch.context() as patch:
        patch.setattr(ImageFiles, '__getitem__', read_one)
        patch.setattr(Pretraining, 'show_pictures', show_some)
        runs = []
        patch.setattr(Pretraining, 'before_training', lambda run: runs.append(run) or True)
        folder = pretrain(options)
    training, part = runs[0].images, runs[0].val_images
    assert (len(training), len(part)) == (36, 4) and not names_below(training) & names_below(part)
    assert trained == {training.name(i) for i in range(36)}
    assert shown[0] == shown[1] == {(4, part.name(i)) for i in range(4)}  # pictures are of held-out images
    assert 'images      36 of' in (out := capsys.readouterr().out) and ', 4 more of it held out (--val_fraction=0.1)' in out
    assert saved(folder)['images'] == 36 and saved(folder)['config']['val_fraction'] == 0.1


def test_a_run_that_holds_images_out_is_resumed(world, tiny, tmp_path, monkeypatch):
    data = str(world / 'train')
    whole = pretrain(tiny(data_path=data, val_fraction=0.1, run_dir=str(tmp_path / 'whole')))
    options = tiny(data_path=data, val_fraction=0.1)
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(Stop):
            pretrain(options)
    for other in (0.2, None):
        with pytest.raises(ValueError, match=rf'val_fraction was 0.1 and is {other} now'):
            pretrain(tiny(data_path=data, val_fraction=other))
    assert_same_run(whole, pretrain(options))


def test_a_run_of_an_earlier_version_goes_on(whole, tiny, capsys):
    content = saved(whole)
    del content['config']['val_fraction']
    torch.save(content, whole / 'your_convnet_still_pretraining.pth')
    pretrain(tiny(run_dir=str(whole)))
    assert 'This run is finished' in capsys.readouterr().out


def test_images_given_in_code_are_held_out_of_a_run(tiny, capsys):
    pretrain(tiny(data_path=None, val_fraction=0.2, epochs=1, warmup_epochs=0), dataset=[noise(32, 32)] * 20)
    assert '16 of list, 4 more of it held out' in capsys.readouterr().out


def test_what_is_left_out_is_told_once(tmp_path, tiny, capsys):
    for i in range(10):
        Image.new('RGB', (32, 32), (i, i, i)).save(tmp_path / f'{i}.png')
    (tmp_path / 'film.mp4').write_bytes(b'')
    pretrain(tiny(data_path=str(tmp_path), run_dir=str(tmp_path / 'run'), val_fraction=0.1, epochs=1, warmup_epochs=0))
    assert capsys.readouterr().out.count('1 video file') == 1
