"""The methods of pretraining, and that the trainer knows none of them."""
import inspect
import re

import pytest
import torch
from torch import nn

from pretrain.main import main, pretrain
from pretrain.methods import METHODS, Method, method_of, parse_options, recommended
from pretrain.options import OPTIONS
from pretrain.spark_method import SparKMethod
from pretrain.spark_options import SparKOptions
from tests.conftest import ROOT, saved


def asked_of_a_method():
    """Names of all that `Method` lists."""
    functions = {name for name, _ in inspect.getmembers(Method, inspect.isfunction) if not name.startswith('_')}
    return functions | Method.__annotations__.keys()


@pytest.mark.parametrize('name', METHODS)
def test_every_method_answers_all_that_is_asked(name):
    method = METHODS[name]
    assert method.name == name and asked_of_a_method() <= set(dir(method))
    for function in asked_of_a_method() - Method.__annotations__.keys():
        asked = inspect.signature(getattr(Method, function)).parameters
        assert list(inspect.signature(getattr(type(method), function)).parameters) == list(asked), function


def test_the_trainer_names_no_method():
    for path in [*(ROOT / 'common').rglob('*.py'), ROOT / 'pretrain/pretraining.py', ROOT / 'pretrain/main.py']:
        text = path.read_text(encoding='utf-8').replace("project = 'spark'", '')  # of a tracker: all programs are one
        assert not re.search('spark', text, re.IGNORECASE), path


def test_the_commands_that_read_a_run_know_no_method():
    files = [ROOT / f'pretrain/{name}.py' for name in ('saved', 'arguments', 'reconstruct', 'features', 'export', 'playground',
                                                       'playground_page', 'report', 'plan', 'demo')]
    others = [path for folder in ('results', 'planning') for path in (ROOT / 'pretrain' / folder).glob('*.py')]
    assert len(others) > 5
    for path in (*files, *others):
        imported = re.findall(r'(?:from|import) pretrain\.(\w+)', path.read_text(encoding='utf-8'))
        known = [name for name in imported if name.split('_')[0] in METHODS]
        assert not known, f'{path} imports {known}'


class Blank(nn.Module):
    """Predicts one colour for all hidden cells: the least that a network of a method is."""
    input_size = (32, 32)
    uncompiled = False

    def __init__(self):
        super().__init__()
        self.colour = nn.Parameter(torch.zeros(3))

    def placed(self, device):
        return self.to(device)

    def draw_visible(self, batch, generator=None, rows=slice(None)):
        return torch.rand(batch, 16, generator=generator)[rows].argsort(1)[:, :6].sort(1).values

    draw_masks = draw_visible

    def forward(self, images, visible):
        hidden = torch.ones(len(images), 16, device=images.device).scatter(1, visible, 0.0)
        cells = images.unfold(2, 8, 8).unfold(3, 8, 8).mean((4, 5)).flatten(2)
        return ((cells - self.colour.view(-1, 1)).square().mean(1) * hidden).sum() / hidden.sum()


class BlankMethod(SparKMethod):
    """Another method, in the place of a second one in METHODS; it shares SparK's options alone."""

    def build(self, options, record=None, cnn=None):
        return Blank()

    def record(self, network):
        return {'seen': 1}

    def betas(self, network, options):
        return 0.9, 0.99

    def parts_to_compile(self, network):
        return [network]

    def exported(self, network):
        return network

    def describe(self, network, options):
        return [('model', 'one colour')]

    def warnings(self, network, options):
        return ['it is for tests alone']

    def picture(self, network, images, visible, normalisation):
        return images[0].cpu().clamp(0, 1), 'image'


def test_a_method_that_has_nothing_of_spark_is_trained(tiny, tmp_path, capsys):
    folder = pretrain(tiny(), method=BlankMethod())
    exported = torch.load(folder / 'your_convnet_1kpretrained.pth', weights_only=True)
    assert exported.keys() == {'colour'} and exported['colour'].abs().sum() > 0
    assert 'model       one colour' in capsys.readouterr().out and saved(folder)['network'] == {'seen': 1}
    assert list((folder / 'reconstructions').iterdir())


def test_the_method_is_in_the_checkpoint_and_must_be_the_same(whole, tiny, monkeypatch):
    path = whole / 'your_convnet_still_pretraining.pth'
    content = saved(whole)
    assert content['config']['method'] == 'spark'
    content['config']['method'] = 'another'
    torch.save(content, path)
    with pytest.raises(ValueError, match='method was another and is spark now'):
        pretrain(tiny(run_dir=str(whole)))


def test_a_checkpoint_without_a_method_is_sparks(whole, tiny, capsys):
    path = whole / 'your_convnet_still_pretraining.pth'
    content = saved(whole)
    del content['config']['method']
    content.pop('network')
    torch.save(content, path)
    assert method_of(content['config']) is METHODS['spark']
    pretrain(tiny(run_dir=str(whole)))
    assert 'This run is finished' in capsys.readouterr().out


def test_help_shows_the_options_of_the_method_that_is_asked_for(capsys):
    with pytest.raises(SystemExit):
        main(['--method=spark', '--help'])
    text = capsys.readouterr().out
    assert '--mask_ratio' in text and '--data_path' in text and '--method' in text
    assert parse_options(['--name=n', '--method', 'spark']).method == 'spark'


@pytest.mark.parametrize('flags', (['--method=simmim'], ['--method', 'simmim'], ['--method=']))
def test_an_unknown_method_is_refused(flags, capsys):
    with pytest.raises(SystemExit) as ended:
        main(['--name=n', *flags])
    assert ended.value.code == 2 and f'--method is one of {", ".join(OPTIONS)}, not' in capsys.readouterr().err
    with pytest.raises(ValueError, match=f'method is one of {", ".join(OPTIONS)}, not simmim'):
        recommended(name='n', method='simmim')
    with pytest.raises(ValueError, match='options of spark, not of simmim'):
        SparKOptions(name='n', method='simmim')


def test_every_method_has_options_of_its_name():
    assert OPTIONS.keys() == METHODS.keys()
    for name, method in OPTIONS.items():
        assert method.options.__dataclass_fields__['method'].default == name


def test_an_option_of_another_method_is_named_with_its_method(capsys):
    with pytest.raises(SystemExit) as ended:
        main(['--name=n', '--data_path=x', '--fourier_group=8'])
    assert ended.value.code == 2
    assert '--fourier_group is an option of --method=a2mim, and this is --method=spark' in capsys.readouterr().err
