"""The Python in README.md, docs/python.md and docs/use.md runs as it stands there, and some of pretrain/README.md."""
import re
import shutil

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import common.networks.vits  # noqa: F401  (registers A2MIM's ViTs with timm)
from tests.conftest import ROOT


def blocks(page):
    """{first words of the heading above: the blocks of Python below it} of a page."""
    found = {}
    for section in re.split(r'^#+ ', (ROOT / page).read_text(encoding='utf-8'), flags=re.MULTILINE):
        heading = section.partition('\n')[0]
        found[heading] = re.findall(r'^```python\n(.*?)^```$', section, re.MULTILINE | re.DOTALL)
    return {heading: code for heading, code in found.items() if code}


def test_every_block_is_tried():
    """Of each page and heading, as many blocks as the tests below run."""
    assert {heading: len(code) for heading, code in blocks('docs/python.md').items()} == {
        'Read a run': 1, 'Pretrain on data of your own kind': 1, 'Fine-tune': 1, 'The method as a module': 5}
    assert {heading: len(code) for heading, code in blocks('docs/use.md').items()} == {
        'Load the weights in your own code': 2}
    assert {heading: len(code) for heading, code in blocks('README.md').items()} == {'The next commands': 1}


def test_a_run_is_read(finished, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / 'output_my_run')
    Image.new('RGB', (50, 40)).save(tmp_path / 'cat.jpg')
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(blocks('docs/python.md')['Read a run'][0], names)
    assert names['pooled'].shape == (1, 128) and names['picture'].shape == (1, 3, 32, 32)


def test_bands_are_pretrained_on(tmp_path, monkeypatch):
    """With a smaller network, and fewer epochs."""
    code = blocks('docs/python.md')['Pretrain on data of your own kind'][0]
    options = "model='your_convnet', input_size=32, decoder_width=16, epochs=1, batch_size=8, workers=0, lr=1e-2"
    code = code.replace("model='resnet50'", options).replace('return 1000', 'return 16')
    monkeypatch.chdir(tmp_path)
    exec(code, {'__name__': '__main__'})
    assert (tmp_path / 'output_bands/your_convnet_1kpretrained.pth').exists()


def test_mean_and_standard_deviation_of_the_images(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'DIR').mkdir()
    values = np.random.default_rng(0).integers(0, 4096, (2, 6, 8), dtype=np.uint16)
    for index, one in enumerate(values):
        Image.fromarray(one).save(tmp_path / 'DIR' / f'{index}.png')
    exec(blocks('pretrain/README.md')['Normalised cells or pixels'][0], {})
    said = capsys.readouterr().out
    mean, std = re.fullmatch(r'mean \[(.*)\] standard deviation \[(.*)\]\n', said).groups()
    assert float(mean) == pytest.approx(values.mean() / 4095, rel=1e-5)
    assert float(std) == pytest.approx(values.std() / 4095, rel=1e-4)


def test_options_of_a_recipe():
    names = {'__name__': 'imported'}
    exec(blocks('docs/python.md')['Fine-tune'][0], names)
    assert (names['options'].input_size, names['options'].test_size) == (160, 224)


def test_a2mim():
    """With a smaller network and fewer images."""
    code = blocks('docs/python.md')['The method as a module'][3]
    names = {}
    exec(code.replace('resnet50', 'resnet18').replace('randn(8', 'randn(2'), names)
    assert names['features'].shape == (2, 512, 7, 7) and names['predicted'].shape == names['picture'].shape == (2, 3, 224, 224)
    assert names['terms'].keys() == {'loss', 'spatial', 'frequency'}


def test_convmae():
    """With fewer images."""
    names = {}
    exec(blocks('docs/python.md')['The method as a module'][4].replace('randn(8', 'randn(2'), names)
    assert names['latent'].shape == (2, 12, 192) and names['picture'].shape == (2, 3, 96, 128)
    assert [level.shape[1] for level in names['pyramid']] == [64, 128, 192] and names['logits'].shape == (2, 10)


def test_a_loop_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(blocks('docs/python.md')['The method as a module'][2], names)
    assert names['loss'].isfinite()
    state = torch.load(tmp_path / 'weights.pth', weights_only=True)
    drawn = names['torchvision'].models.resnet18().state_dict()
    assert state.keys() == drawn.keys() and not torch.equal(state['conv1.weight'], drawn['conv1.weight'])


@pytest.mark.slow  # a ConvNeXt-S and two ResNet-50s
@pytest.mark.parametrize('number', [0, 1])
def test_modules(number):
    names = {}
    exec(blocks('docs/python.md')['The method as a module'][number], names)
    assert number or names['picture'].shape == (8, 3, 224, 224)


@pytest.mark.parametrize('page, heading', [('docs/use.md', 'Load the weights in your own code'),
                                           ('README.md', 'The next commands')])
def test_weights_are_loaded(tmp_path, monkeypatch, page, heading):
    (tmp_path / 'output_my_run').mkdir()
    state = timm.create_model('resnet18').state_dict()
    torch.save(state, tmp_path / 'output_my_run/resnet18_1kpretrained.pth')
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(blocks(page)[heading][0].replace('resnet50', 'resnet18'), names)  # for speed
    assert torch.equal(names['model'].state_dict()['layer1.0.conv1.weight'], state['layer1.0.conv1.weight'])


def test_a_vit_is_loaded(tmp_path, monkeypatch):
    (tmp_path / 'output_my_vit').mkdir()
    state = timm.create_model('beit_abs_small_patch16_224', depth=1).state_dict()  # for speed
    torch.save(state, tmp_path / 'output_my_vit/beit_abs_small_patch16_224_1kpretrained.pth')
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(blocks('docs/use.md')['Load the weights in your own code'][1].replace('depth=8', 'depth=1'), names)
    loaded = names['vit'].state_dict()
    assert loaded.keys() == state.keys() and all(torch.equal(loaded[key], state[key]) for key in state)
