"""The networks of a command line: which weights they get, and what is refused."""
import numpy as np
import pytest
import timm
import torch
from PIL import Image

from analysis.images import Settings, find_images
from analysis.networks import Asked, Opened, asked, class_numbers, open_classifier, open_network
from downstream_imagenet.classifier import LinearProbe
from tests.analysis.conftest import write_tuned
from tests.conftest import randomise


def test_words_and_names(tmp_path):
    file = tmp_path / 'run' / 'w.pth'
    file.parent.mkdir()
    file.touch()
    found = asked(['resnet18', 'resnet18=timm', f'resnet18={file}'])
    assert found == [Asked('resnet18, untrained', 'resnet18', None), Asked('resnet18, timm', 'resnet18', 'timm'),
                     Asked('resnet18, run/w.pth', 'resnet18', str(file))]
    assert [one.legend for one in asked(['resnet18', 'resnet18=timm'], ['a', 'b'])] == ['a', 'b']


def test_words_that_do_not_fit(tmp_path):
    torch.save(timm.create_model('resnet18').state_dict(), tmp_path / 'w.pth')
    (tmp_path / 'resnet18_1kpretrained.pth').touch()
    for words, names, message in (
            (['resnet18', 'resnet34'], ['a'], '--names has 1 name for 2 networks'),
            (['resnet18', 'resnet18'], None, 'two networks would be called "resnet18, untrained"'),
            ([str(tmp_path / 'w.pth')], None, f'write resnet18={tmp_path}/w.pth'),
            ([f'resnet18={tmp_path}'], None, f'is a folder: .*, such as resnet18={tmp_path}/resnet18_1kpretrained.pth'),
            (['resnet18=gone.pth'], None, 'there is no file gone.pth')):
        with pytest.raises(ValueError, match=message):
            asked(words, names)


def test_weights_are_put_into_the_network(settings, tuned):
    opened = open_network(Asked('x', 'your_convnet', str(tuned)), settings())
    state = torch.load(tuned, weights_only=True)['model']
    for key, value in opened.module.state_dict().items():
        assert 'head' in key or torch.equal(value, state[f'cnn.{key}'])
    assert 'matched' in opened.notes[0]
    untrained = [open_network(Asked('x', 'your_convnet', None), settings(seed=seed)).digest for seed in (0, 0, 1)]
    assert untrained[0] == untrained[1] != untrained[2]


def test_an_official_file_of_a2mim_is_read(settings, tmp_path):
    state = {f'backbone.{key}': value for key, value in timm.create_model('resnet18').state_dict().items() if 'fc.' not in key}
    extras = {'backbone.mask_token': torch.zeros(1, 256, 1, 1), 'backbone.mask_gamma': torch.zeros(1, 256, 1, 1),
              'neck.decoder_pred.0.bias': torch.zeros(3072)}
    torch.save({'state_dict': {**state, **extras}}, tmp_path / 'a2mim.pth')
    opened = open_network(Asked('x', 'resnet18', str(tmp_path / 'a2mim.pth')), settings())
    assert torch.equal(opened.module.conv1.weight, state['backbone.conv1.weight'])
    with pytest.raises(ValueError, match='is a pretrained network'):
        open_classifier(Asked('x', 'resnet18', str(tmp_path / 'a2mim.pth')), settings())


def test_a_transformer_is_made_for_the_size_of_the_images(settings):
    cnn = open_network(Asked('x', 'vit_tiny_patch16_224', None), settings(size=(32, 64))).module
    assert cnn.patch_embed.grid_size == (2, 4)


def test_a_fine_tuned_file_is_a_classifier(settings, tuned):
    opened = open_classifier(Asked('x', 'your_convnet', str(tuned)), settings())
    assert opened.num_classes == 12 and len(opened.classes) == 12 and len(opened.notes) == 1
    assert opened.module(torch.rand(2, 3, 32, 32)).shape == (2, 12)


def test_the_average_of_the_weights_is_taken_where_it_is_named(settings, tuned, tmp_path):
    content = torch.load(tuned, weights_only=True)
    average = {key: value + 1 if value.is_floating_point() else value for key, value in content['model'].items()}
    path = tmp_path / 'your_convnet_1kfinetuned_last.pth'
    torch.save({**content, 'ema': average, 'step': 3}, path)
    for source, state in ((str(path), content['model']), (f'{path}:ema', average)):
        opened = open_classifier(Asked('x', 'your_convnet', source), settings())
        assert torch.equal(opened.module.head.bias, state['cnn.head.bias']) and opened.num_classes == 12


def test_a_difference_from_training_is_said(settings, tuned):
    notes = open_classifier(Asked('x', 'your_convnet', str(tuned)), settings(size=(48, 64))).notes
    assert 'note: input_size of x was (32, 32) in training, and is (48, 64) here' in notes


@pytest.mark.parametrize('opened', [open_classifier, open_network])
def test_values_of_pixels_are_read_as_in_training_or_the_difference_is_said(opened, settings, tmp_path):
    file = write_tuned(tmp_path / 'your_convnet_1kfinetuned_best.pth', seed=1, pixel_range=[0.0, 4095.0])
    asked = Asked('x', 'your_convnet', str(file))
    told = 'note: pixel_range of x was (0.0, 4095.0) in training, and is None here'
    assert told in opened(asked, settings()).notes
    assert not any('pixel_range' in note for note in opened(asked, settings(pixel_range=(0.0, 4095.0))).notes)


def test_images_of_more_than_8_bits_are_read_in_the_range_that_is_given(tmp_path):
    Image.fromarray(np.full((8, 8), 4095, dtype=np.uint16)).save(tmp_path / '1.png')
    options = {'data_path': str(tmp_path), 'images': 1, 'size': (8, 8), 'in_chans': 1}
    whole, part = (find_images(Settings(**options, pixel_range=given))[0] for given in (None, (0, 4095)))
    assert whole.max() < 0.07 and part.min() == 1
    assert Settings(**options).preparation != Settings(**options, pixel_range=(0, 4095)).preparation
    with pytest.raises(ValueError, match='--pixel_range is from,to with from < to, not 5,1'):
        Settings(**options, pixel_range=(5, 1))


@pytest.mark.parametrize('has_norm', [True, False])
def test_a_linear_probe_is_a_classifier(has_norm, settings, tmp_path):
    cnn = randomise(timm.create_model('your_convnet', num_classes=12))
    probe = LinearProbe(cnn, 'ce', 128, 12)
    if has_norm:
        probe.norm.running_mean.uniform_()
    else:
        probe.norm = torch.nn.Identity()
    torch.save({'model': probe.state_dict(), 'config': {'freeze': True}, 'classes': list('abcdefghijkl')}, tmp_path / 'p.pth')
    opened = open_classifier(Asked('x', 'your_convnet', str(tmp_path / 'p.pth')), settings())
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(opened.module(images), probe.eval().logits(images))
    assert opened.num_classes == 12


def test_what_is_no_classifier_is_refused_with_the_remedy(settings, tuned, tmp_path):
    content = torch.load(tuned, weights_only=True)
    without = {key: value for key, value in content['model'].items() if 'head' not in key}
    torch.save(without, tmp_path / 'without.pth')
    torch.save(content['model'], tmp_path / 'your_convnet_1kpretrained.pth')
    torch.save({**content['model'], 'mask_token': torch.zeros(1)}, tmp_path / 'masked.pth')
    torch.save({**content, 'classes': ['a', 'b']}, tmp_path / 'damaged.pth')
    for source, message in ((None, 'has no trained classifier: give your_convnet=timm'),
                            (tmp_path / 'without.pth', 'has no classifier for your_convnet.*fine-tune it'),
                            (tmp_path / 'your_convnet_1kpretrained.pth', 'is a pretrained network.*downstream_imagenet.linear'),
                            (tmp_path / 'masked.pth', 'is a pretrained network'),
                            (tmp_path / 'damaged.pth', 'is damaged: it names 2 classes, its network tells 12')):
        with pytest.raises(ValueError, match=message):
            open_classifier(Asked('x', 'your_convnet', source and str(source)), settings())


def test_classes_by_name_by_order_and_as_imagenets():
    def numbers(classes, number, folders):
        return class_numbers(Opened(None, classes, number, (), ''), Asked('x', 'm', None), folders)
    assert numbers(['c', 'a', 'b'], 3, ['a', 'b']) == {'a': 1, 'b': 2}
    assert numbers(None, 2, ['b', 'a']) == {'a': 0, 'b': 1}
    assert numbers(None, 1000, ['n01440764', 'n15075141']) == {'n01440764': 0, 'n15075141': 999}
    for classes, number, folders in ((None, 3, ['a', 'b']), (['a', 'b'], 2, ['a', 'z']), (None, 1000, ['cat'])):
        with pytest.raises(ValueError, match='x tells .* classes apart, and which of them the folders'):
            numbers(classes, number, folders)
