"""Prediction: of each image a picture, a mask with the data set's ids, and the shares of its classes."""
import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as F

from common.config import IMAGENET_MEAN, IMAGENET_STD
from common.images.files import SeveralFiles
from common.live_line import LiveLine
from downstream_ade20k.checkpoints import build_segmenter
from downstream_ade20k.classes import Classes
from downstream_ade20k.config import Options
from downstream_ade20k.inference import Inference
from downstream_ade20k.predict import in_words, main, masks_of, predict
from tests.terminal import as_stdout

CLASSES = Classes((0, 4, 9), ('ground', 'leaf', 'sky'), ((0, 0, 0), (0, 200, 0), (0, 0, 200)), (255,))
OPTIONS = Options(name='small', model='test_convnext', input_size=64, head='fpn', head_channels=16)


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """A file as a run writes it. The model and its average have other weights."""
    path = tmp_path_factory.mktemp('run') / 'test_convnext_ade20k_last.pth'
    models = [build_segmenter(dataclasses.replace(OPTIONS, seed=seed), 3)[0].state_dict() for seed in (0, 1)]
    torch.save({'config': dataclasses.asdict(OPTIONS), 'classes': CLASSES.as_data(), 'model': models[0],
                'ema': models[1]}, path)
    return path


@pytest.fixture
def photos(tmp_path):
    """A folder of a coloured image, a damaged one, a grey one and one that EXIF turns."""
    folder = tmp_path / 'photos'
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    Image.fromarray(noise).resize((90, 60)).save(folder / 'a.png')
    (folder / 'b.png').write_bytes(b'no image')
    Image.fromarray(noise[..., 0]).resize((30, 50)).save(folder / 'c.png')
    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(noise).resize((90, 60)).save(folder / 'd.jpg', exif=exif)
    return folder


def mask_in(folder, name):
    return np.asarray(Image.open(folder / name))


def test_every_image_gets_a_picture_a_mask_and_its_shares(weights, photos, tmp_path):
    out = tmp_path / 'out'
    said = []
    results = predict(weights, [photos / 'c.png', photos], out, say=said.append)
    assert json.loads((out / 'predictions.json').read_text()) == results
    names = ['0000_c', '0001_a', '0003_c', '0004_d']
    assert [result['picture'] for result in results] == [f'{name}.png' for name in names]
    assert [result['mask'] for result in results] == [f'{name}_mask.png' for name in names]
    assert {path.name for path in out.iterdir()} == {
        'predictions.json', *(f'{name}{end}' for name in names for end in ('.png', '_mask.png'))}
    assert [result['file_name'] for result in results] == [str(photos / name) for name in ('c.png', 'a.png', 'c.png', 'd.jpg')]
    for result, size in zip(results, ((50, 30), (60, 90), (50, 30), (90, 60))):
        ids = mask_in(out, result['mask'])
        assert ids.shape == size  # upright
        name_of = dict(zip(CLASSES.ids, CLASSES.names))
        assert all(one['name'] == name_of[one['id']] for one in result['classes'])
        shares = [one['share'] for one in result['classes']]
        assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1) and min(shares) > 0
        assert shares == [pytest.approx((ids == one['id']).mean()) for one in result['classes']]
        assert 'accuracy' not in result
    assert results[0]['classes'] == results[2]['classes']
    text = '\n'.join(said)
    assert text.count('cannot be read') == 1 and 'b.png cannot be read' in text and '4 images in all' in text
    assert f'a.png: {in_words(results[1])}, {out}/0001_a.png' in text


def test_the_mask_holds_the_classes_that_eval_would_count(weights, photos, tmp_path):
    """Of an image that is not the same when it is mirrored, in windows."""
    content = torch.load(weights, weights_only=True)
    changed = {**OPTIONS.as_dict(), 'slide': True, 'short_side': 80}
    torch.save({**content, 'config': changed}, tmp_path / 'slide.pth')
    predict(tmp_path / 'slide.pth', [photos / 'a.png'], tmp_path / 'out', say=lambda text: None)
    model, _ = build_segmenter(OPTIONS, 3)
    resized = Image.open(photos / 'a.png').resize((120, 80), Image.Resampling.BILINEAR)
    image = F.normalize(F.pil_to_tensor(resized) / 255, IMAGENET_MEAN, IMAGENET_STD)[None]
    expected = Inference((64, 64), (42, 42)).classes(model.eval(), image, (60, 90))
    assert np.array_equal(mask_in(tmp_path / 'out', '0000_a_mask.png'), np.array(CLASSES.ids)[expected])
    for other in (Inference((64, 64), (42, 42)).classes(model, image.flip(3), (60, 90)).flip(1),
                  Inference().classes(model, image, (60, 90))):
        assert not torch.equal(other, expected)


def test_the_average_of_the_weights_predicts_if_it_is_asked_for(weights, photos, tmp_path):
    found = {}
    for which in ('model', 'ema'):
        predict(weights, [photos / 'a.png'], tmp_path / which, which=which, say=lambda text: None)
        found[which] = mask_in(tmp_path / which, '0000_a_mask.png')
    assert not np.array_equal(found['model'], found['ema'])
    content = torch.load(weights, weights_only=True)
    del content['ema']
    torch.save(content, tmp_path / 'without.pth')
    with pytest.raises(ValueError, match='no average'):
        predict(tmp_path / 'without.pth', [photos], tmp_path / 'out', which='ema', say=lambda text: None)


def test_the_truth_is_drawn_and_compared(weights, photos, tmp_path):
    predict(weights, [photos / 'a.png', photos / 'c.png'], tmp_path / 'alone', say=lambda text: None)
    masks = tmp_path / 'masks'
    masks.mkdir()
    truth = mask_in(tmp_path / 'alone', '0000_a_mask.png').copy()
    truth[:30] = 255
    truth[30:45] = np.array(CLASSES.ids)[(np.searchsorted(CLASSES.ids, truth[30:45]) + 1) % 3]
    Image.fromarray(truth).save(masks / 'a.png')
    said = []
    results = predict(weights, [photos / 'a.png', photos / 'c.png'], tmp_path / 'both', masks, say=said.append)
    assert results[0]['accuracy'] == 0.5 and 'accuracy' not in results[1]
    sizes = {folder: Image.open(tmp_path / folder / '0000_a.png').width for folder in ('alone', 'both')}
    assert sizes['both'] == 2 * sizes['alone'] - 8
    assert Image.open(tmp_path / 'both/0001_c.png').size == Image.open(tmp_path / 'alone/0001_c.png').size
    assert f'there is no mask in {masks} of 1 ({photos}/c.png)' in '\n'.join(said) and '50.0 % right' in '\n'.join(said)


@pytest.mark.parametrize(('mask', 'why'), [(np.zeros((90, 60), np.uint8), 'it is 60x90, the image 90x60'),
                                           (np.full((60, 90), 7, np.uint8), 'the value 7, which is neither'),
                                           (np.uint8([[[9, 8, 7]]]).repeat(60, 0).repeat(90, 1),
                                            '(it holds colours: save the ids of the classes as a grey or palette PNG)')])
def test_a_mask_that_does_not_fit_is_named_and_left_away(weights, photos, tmp_path, mask, why):
    masks = tmp_path / 'masks'
    masks.mkdir()
    Image.fromarray(mask).save(masks / 'a.png')
    said = []
    results = predict(weights, [photos / 'a.png'], tmp_path / 'out', masks, say=said.append)
    assert len(results) == 1 and 'accuracy' not in results[0]
    assert f'the mask {masks}/a.png cannot be used' in '\n'.join(said) and why in '\n'.join(said)


def test_masks_are_found_by_name_the_nearest_folder_first(tmp_path):
    for name in ('photos/x/a.png', 'photos/y/a.png', 'photos/y/b.png', 'masks/a.png', 'masks/y/a.png'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('L', (2, 2)).save(tmp_path / name)
    images = SeveralFiles([tmp_path / 'photos'])
    said = []
    found = masks_of(images, tmp_path / 'masks', LiveLine(said.append))
    assert found == {0: tmp_path / 'masks/a.png', 1: tmp_path / 'masks/y/a.png'}
    assert len(said) == 1 and 'y/b.png' in said[0]
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match='no mask of these images, .* would be a.png'):
        masks_of(images, tmp_path / 'empty', LiveLine(None))
    with pytest.raises(ValueError, match='no folder of masks'):
        masks_of(images, tmp_path / 'none', LiveLine(None))


def test_the_command_line(weights, photos, tmp_path):
    with as_stdout() as terminal:
        main([f'--weights={weights}', str(photos / 'c.png')])
    folder = weights.parent / 'predictions'
    assert len(json.loads((folder / 'predictions.json').read_text())) == 1
    assert '1 image in all' in ''.join(terminal.lines)
    torch.save({'model': {}}, tmp_path / 'other.pth')
    with pytest.raises(SystemExit, match='holds no segmenter'):
        main([f'--weights={tmp_path / "other.pth"}', str(photos)])
    with pytest.raises(SystemExit, match='no image or folder'):
        main([f'--weights={weights}', str(tmp_path / 'none')])
    with pytest.raises(SystemExit, match='no folder of masks'):
        main([f'--weights={weights}', str(photos), f'--masks={tmp_path / "none"}'])


def test_the_largest_classes_in_words():
    def result(count, **more):
        return {'classes': [{'name': f'n{number}', 'share': 0.25} for number in range(count)], **more}
    assert in_words(result(2)) == 'n0 25.0 %, n1 25.0 %'
    assert in_words(result(3, accuracy=None)) == 'n0 25.0 %, n1 25.0 %, n2 25.0 %'
    assert in_words(result(5, accuracy=0.5)) == 'n0 25.0 %, n1 25.0 %, n2 25.0 %, 2 more, 50.0 % right'
