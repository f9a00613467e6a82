"""Evaluation: each image counts once, on any number of processes."""
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch import multiprocessing
from torch.nn.functional import interpolate
from torchvision.transforms import functional as F

from common.config import IMAGENET_MEAN, IMAGENET_STD
from common.demo_masks import write_masks
from common.distributed import Ranks
from common.live_facts import Count
from downstream_ade20k.checkpoints import build_segmenter, read_segmenter, restore, restored_options
from downstream_ade20k.classes import IGNORE, Classes, read_classes
from downstream_ade20k.config import Options
from downstream_ade20k.confusion import Confusion, class_table
from downstream_ade20k.evaluation import confusion, evaluate_file, figures, whole_images
from downstream_ade20k.inference import Inference
from downstream_ade20k.views import Segmented, WholeView
from tests.conftest import randomise
from tests.downstream_ade20k.seeing import Seeing

CPU = torch.device('cpu')
ALONE = Ranks(0, 1, CPU)
NORMALISATION = (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)
WINDOWS = Inference((24, 24), (16, 16))
BROKEN = 3, 10
SMALL = {'model': 'test_resnet', 'input_size': 48, 'head': 'fpn', 'head_channels': 16, 'workers': 0}


class Images:
    """11 images of different sizes with masks, in memory; those of some numbers cannot be read."""
    classes = Classes.of_ids(range(5), (255,))

    def __init__(self, broken=()):
        self.broken = broken

    def __len__(self):
        return 11

    def name(self, index):
        return f'picture {index}'

    def __getitem__(self, index):
        if index in self.broken:
            raise OSError('it is truncated')
        generator = torch.Generator().manual_seed(index)
        size = 20 + 7 * index, 60 - 3 * index
        mask = torch.randint(5, size, generator=generator, dtype=torch.int16)
        mask[:index] = IGNORE
        return torch.rand(3, *size, generator=generator), mask


def segmented(*broken):
    return Segmented(Images(broken), WholeView(32, 64), NORMALISATION, stand_ins=False)


def test_every_pixel_of_every_image_is_counted():
    model, images, expected = Seeing(), segmented(), Confusion(5)
    count = Count('validation images', len(images), 'image', lambda: 0.0)
    found = confusion(model, images, ALONE, nullcontext, WINDOWS, count=count)
    model.eval()
    for index in range(len(images)):
        image, target, _ = images[0, index]
        expected.add(WINDOWS.classes(model, image[None], target['mask'].shape), target['mask'])
    assert torch.equal(found.counts, expected.counts) and found.images == 11 == count.done
    assert int(found.counts.sum()) == sum(int((images.images[i][1] != IGNORE).sum()) for i in range(len(images)))
    assert all(max(shape[2:]) <= 24 for shape in model.shapes)


def test_it_is_measured_in_evaluation_mode_and_left_in_the_mode_before():
    for mode in (True, False):
        model = Seeing().train(mode)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        confusion(model, segmented(), ALONE, nullcontext, Inference())
        assert model.training == mode
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_images_that_cannot_be_read_are_left_out_and_named():
    told, model = [], Seeing()
    found = confusion(model, segmented(*BROKEN), ALONE, nullcontext, Inference(), warn=told.append)
    assert found.images == 9 and len(told) == 2
    assert 'picture 3' in told[0] and 'it is truncated' in told[0] and 'picture 10' in told[1]
    whole = confusion(model, segmented(), ALONE, nullcontext, Inference())
    assert 0 < int(found.counts.sum()) < int(whole.counts.sum())
    with pytest.raises(ValueError, match='none of the validation images can be read'):
        confusion(model, segmented(*range(11)), ALONE, nullcontext, Inference(), warn=told.append)


def test_it_ends_where_it_is_told_to():
    model = Seeing()
    assert confusion(model, segmented(), ALONE, nullcontext, Inference(), go_on=lambda: len(model.shapes) < 3) is None
    assert len(model.shapes) == 3


def test_a_signal_is_not_taken_for_images_that_cannot_be_read():
    assert confusion(Seeing(), segmented(*range(11)), ALONE, nullcontext, Inference(), warn=[].append,
                     go_on=lambda: False) is None
    with pytest.raises(ValueError, match='none of the validation images can be read'):
        confusion(Seeing(), segmented(*range(11)), ALONE, nullcontext, Inference(), warn=[].append, go_on=lambda: True)


def test_the_forward_pass_is_in_the_context():
    """Scores are added up and counted as they are without it."""
    model = Seeing()
    found = confusion(model, segmented(), ALONE, lambda: torch.autocast('cpu', torch.bfloat16), Inference())
    exact = confusion(model, segmented(), ALONE, nullcontext, Inference())
    assert not torch.equal(found.counts, exact.counts)
    assert torch.equal(found.counts.sum(1), exact.counts.sum(1))


def on_rank(rank, folder):
    """What three processes measure, and then the first two of them, saved in the folder."""
    torch.set_num_threads(1)
    for size in (3, 2):
        if rank < size:
            dist.init_process_group('gloo', store=dist.FileStore(f'{folder}/{size}', size), rank=rank, world_size=size)
            torch.save(measured(Ranks(rank, size, CPU)), f'{folder}/{size}_{rank}.pth')
            dist.destroy_process_group()


def measured(ranks):
    """{which images: counts, metrics and warnings}; only the main rank's statistics of the network are to count."""
    model, found = Seeing(), {}
    model.norm.running_mean.copy_(ranks.rank * torch.arange(5))
    for name, broken in (('all', ()), ('some', BROKEN)):
        told = []
        pixels = confusion(model, segmented(*broken), ranks, nullcontext, WINDOWS, ranks.rank % 2, told.append)
        found[name] = pixels.counts, pixels.metrics(), told
    return found


def test_any_number_of_processes_count_the_same(tmp_path):
    alone = measured(ALONE)
    multiprocessing.start_processes(on_rank, (str(tmp_path),), nprocs=3, start_method='fork')  # which imports nothing again
    for size in (2, 3):
        found = [torch.load(tmp_path / f'{size}_{rank}.pth') for rank in range(size)]
        for name, (counts, metrics, told) in alone.items():
            assert all(torch.equal(one[name][0], counts) and one[name][1] == metrics for one in found)
            assert sorted(text for one in found for text in one[name][2]) == sorted(told)
    assert alone['all'][1]['images'] == 11 and alone['some'][1]['images'] == 9 == 11 - len(alone['some'][2])


def test_figures_for_a_person():
    metrics = {'mIoU': 41.234, 'mAcc': 50.0, 'aAcc': 80.999, 'mIoU_ema': None, 'mAcc_ema': None, 'aAcc_ema': None}
    assert figures(metrics) == 'mIoU 41.23 (mAcc 50.00, aAcc 81.00)'
    assert 'not measured' in figures(metrics, '_ema')


# -- the file of a run ------------------------------------------------------------------------------------------------

@pytest.fixture(scope='session')
def drawn(tmp_path_factory):
    """4 training and 5 validation images of 64 px; one of the latter is damaged."""
    folder = tmp_path_factory.mktemp('masks')
    write_masks(folder, 4, 5, 64, 1)
    image = folder / 'images/val/000003.png'
    image.write_bytes(image.read_bytes()[:200])
    return folder


@pytest.fixture
def file(drawn, tmp_path):
    """What a run writes, with an average of the weights that differs from them."""
    options = Options(name='small', data_path=str(drawn), **SMALL)
    classes = read_classes(drawn / 'classes.txt', (255,))
    content = {'config': options.as_dict(), 'classes': classes.as_data()}
    for key, seed in (('model', 1), ('ema', 2)):
        network, _ = build_segmenter(options, len(classes))
        network = randomise(network, seed).eval()
        with torch.no_grad():  # Otherwise the same class would win everywhere.
            scores = network.scores(torch.cat([standardised(image, 48) for image, _ in images_and_masks(drawn)]))
            network.classifier[-1].bias -= scores.mean((0, 2, 3))
        content[key] = network.state_dict()
    torch.save(content, tmp_path / 'small.pth')
    return tmp_path / 'small.pth'


@pytest.mark.parametrize('given', [{}, {'slide': True, 'test_scales': (0.5, 1.5), 'test_flip': True}])
def test_eval_measures_the_weights_and_their_average(given, drawn, file, capsys):
    options = Options(eval=str(file), data_path=str(drawn), workers=0, **given)
    results, told = evaluate_file(options, ALONE), capsys.readouterr().out
    _, models, classes = restore(read_segmenter(file), options)
    assert results.keys() == models.keys() == {'model', 'ema'}
    for which, found in results.items():
        model = models[which].to(memory_format=torch.channels_last).eval()
        pairs = [(predicted(model, image, many_views=bool(given)), mask) for image, mask in images_and_masks(drawn)]
        seen, truth = (np.concatenate([one.ravel() for one in ones]) for ones in zip(*pairs))
        counts = truth != 255
        assert found['aAcc'] == pytest.approx(100 * (seen == truth)[counts].mean(), abs=1e-6)
        for number, value in enumerate(classes.ids):
            both, either = (seen == number) & (truth == value), ((seen == number) & counts) | (truth == value)
            iou = 100 * both.sum() / either.sum() if either.any() else None
            assert found['IoU'][number] == (iou if iou is None else pytest.approx(iou, abs=1e-6))
        assert found['images'] == 4 and found['mIoU'] > 0 and len(np.unique(seen)) > 2
        assert f'{which}: {figures(found)} on 4 images\n{class_table(found, classes.names)}\n' in told
    assert results['model'] != results['ema'] and 'unreadable image' in told and '000003.png' in told


def images_and_masks(folder):
    """[(PIL image, mask (64, 64))] of the validation images that are not damaged."""
    names = [f'{number:06}.png' for number in (0, 1, 2, 4)]
    return [(Image.open(folder / 'images/val' / name).convert('RGB'), np.array(Image.open(folder / 'annotations/val' / name)))
            for name in names]


def standardised(image, side):
    """A PIL image as (1, 3, side, side), normalised."""
    resized = F.pil_to_tensor(image.resize((side, side), Image.Resampling.BILINEAR)) / 255
    return F.normalize(resized, IMAGENET_MEAN, IMAGENET_STD)[None]


@torch.no_grad()
def predicted(model, image, many_views):
    """The classes of an image of 64 x 64 pixels, written out: at 48 x 48; or, with many views, at 24 x 24 and at 72 x 72 in
    windows of 48 x 48, and mirrored.
    """
    def probabilities(logits):
        return interpolate(logits, (64, 64), mode='bilinear').softmax(1)[0]

    if not many_views:
        return probabilities(model.scores(standardised(image, 48))).argmax(0).numpy()
    large = standardised(image, 72)
    small = interpolate(large, (24, 24), mode='bilinear', antialias=True)
    total = 0
    for view, is_mirrored in ((small, False), (small.flip(3), True), (large, False), (large.flip(3), True)):
        side = view.shape[3]
        starts = (0,) if side == 24 else (0, 24)
        logits, windows = torch.zeros(1, 7, side, side), torch.zeros(side, side)
        for top in starts:
            for left in starts:
                logits[..., top:top + 48, left:left + 48] += model.scores(view[..., top:top + 48, left:left + 48])
                windows[top:top + 48, left:left + 48] += 1
        found = probabilities(logits / windows)
        total = total + (found.flip(2) if is_mirrored else found)
    return total.argmax(0).numpy()


@pytest.mark.parametrize(('of_file', 'given', 'expected'), [
    # Nothing is given: all is as in the run.
    ({'slide': True, 'slide_stride': 30, 'test_flip': True, 'test_scales': (0.5, 1.0), 'short_side': 60, 'long_side': 90,
      'mean': (0.5,) * 3}, {}, {'input_size': 48, 'slide': True, 'slide_stride': 30, 'test_flip': True,
                                'test_scales': (0.5, 1.0), 'short_side': 60, 'long_side': 90, 'mean': (0.5,) * 3}),
    ({'test_flip': True, 'slide': True, 'test_scales': (0.5,)}, {'test_flip': False, 'slide': False, 'test_scales': (1.0,)},
     {'test_flip': False, 'slide': False, 'test_scales': (1.0,)}),
    # What is given stands above the file, whatever the default is.
    ({}, {'input_size': 512}, {'input_size': 512, 'short_side': None}),
    ({'slide': True, 'slide_stride': 40}, {'input_size': 32}, {'input_size': 32, 'slide': True, 'slide_stride': None}),
    ({'keep_size': True}, {'short_side': 128}, {'keep_size': False, 'short_side': 128, 'long_side': None}),
    ({'keep_size': True}, {'keep_size': False}, {'keep_size': False, 'short_side': None}),
    ({'short_side': 60, 'long_side': 90}, {'keep_size': True}, {'keep_size': True, 'short_side': None, 'long_side': None}),
    ({'short_side': 60, 'long_side': 90}, {'keep_size': False}, {'keep_size': False, 'short_side': 60, 'long_side': 90}),
    ({'short_side': 60, 'long_side': 90}, {'short_side': 100}, {'short_side': 100, 'long_side': None}),
    ({'short_side': 60, 'long_side': 90}, {'long_side': 200}, {'short_side': 60, 'long_side': 200})])
def test_the_file_says_how_images_are_measured_unless_it_is_given(of_file, given, expected):
    config = Options(name='small', **SMALL, **of_file).as_dict()
    options = restored_options(config, Options(eval='run.pth', **given))
    assert {name: getattr(options, name) for name in expected} == expected
    # A file of before an option has the option's default.
    for name in ('keep_size', 'test_flip', 'test_scales'):
        del config[name]
    assert restored_options(config, Options(eval='run.pth')).test_flip is False


@pytest.mark.parametrize(('given', 'number'), [({'slide_stride': 30}, 1), ({'slide_stride': 30, 'slide': False}, 1),
                                              ({'slide_stride': 30, 'slide': True}, 0), ({'slide': False}, 0), ({}, 0)])
def test_a_stride_without_windows_is_said(given, number):
    assert len(Options(name='n', **given).unused()) == number


def test_a_run_has_the_defaults_where_nothing_is_given():
    options = Options(name='n')
    assert (options.input_size, options.keep_size, options.test_scales, options.test_flip, options.ignore) == (
        512, False, (1.0,), False, (255,))


def test_the_options_say_how_images_are_looked_at():
    options = Options(name='n', input_size=(48, 60))
    assert Inference.of(options) == Inference() and whole_images(options, []).view == WholeView(48, 192)
    options = Options(name='n', input_size=512, slide=True, test_scales=(0.5, 1.75), test_flip=True)
    assert Inference.of(options) == Inference((512, 512), (341, 341), (0.5 / 1.75, 1.0), True)
    assert whole_images(options, []).view == WholeView(896, 3584)  # the larger scale, of which the smaller one is made
    options = Options(name='n', input_size=(48, 60), slide=True, slide_stride=20, test_scales=(0.5, 1.75), keep_size=True)
    assert Inference.of(options) == Inference((48, 60), (20, 20), (0.5, 1.75))
    assert whole_images(options, []).view.keep_size


def test_kernels_are_not_timed_for_each_size_of_the_images(monkeypatch):
    """Training has crops of one size, for which they are; whole images have many sizes."""
    monkeypatch.setattr(torch.backends.cudnn, 'benchmark', True)
    seen = []

    class Noting(Seeing):
        def scores(self, images):
            seen.append(torch.backends.cudnn.benchmark)
            return super().scores(images)

    confusion(Noting(), segmented(), ALONE, nullcontext, Inference())
    assert seen and not any(seen) and torch.backends.cudnn.benchmark
