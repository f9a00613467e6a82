"""The check of networks for A2MIM: what it proves, and that it can fail."""
import pytest
import torch
from torch import nn

from pretrain.a2mim import A2MIM
from pretrain.a2mim_check import check_a2mim
from pretrain.check import main
from pretrain.dense import encoder


class Own(nn.Module):
    """Stride 8, with maps of strides 4 and 8. What `late` adds in training leads around the middle."""

    def __init__(self, late=None, factor=None):
        super().__init__()
        self.stem, self.middle = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 3, padding=1)
        self.deep, self.norm = nn.Conv2d(8, 12, 2, 2), nn.BatchNorm2d(12)
        self.late, self.factor = late, factor

    def forward(self, images):
        stem = self.stem(images)
        fine = self.middle(torch.tanh(stem))
        last = self.norm(self.deep(fine))
        if self.training and self.late is not None:
            last = last + self.late(stem)
        return [fine, last if self.factor is None else last * self.factor()]


class Steep(nn.Module):
    """A factor of 1 whose gradient is not finite."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self):
        return 1 + (self.weight - self.weight).abs().sqrt().sum()


@pytest.mark.parametrize('network', ['resnet18', 'test_convnext', 'test_vit', 'mobilevit_xxs', Own()])
def test_networks_fit(network):
    report = check_a2mim(network)
    assert report.ok, str(report)


def test_the_page():
    page = str(check_a2mim('resnet18', (64, 96), in_chans=4))
    for line in ('resnet18: fits\n', 'layer3, 256 channels', 'stride 32, 512 channels', '32 px: 2 x 3 in an image of 64 x 96',
                 '11.18 M of the network, 0.51 M outside, not pretrained (fc)', '512 of token and gain',
                 'ok     (a) all of the last map comes through layer3', 'not a bit around it'):
        assert line in page, page


@pytest.mark.parametrize(('network', 'arguments', 'words'), [
    ('hrnet_w18_small', {}, 'computes branches'),
    ('resnet18', {'token_at': 'layer3.0.conv1'}, 'something leads around it'),
    ('resnet18', {'input_size': 100}, 'give 96 or 128'),
    ('resnet18', {'input_size': (64,)}, 'a side or'),
    ('resnet5O', {}, 'resnet50'),
    (Own().to('meta'), {}, 'meta device'),
])
def test_what_does_not_fit_is_said(network, arguments, words):
    report = check_a2mim(network, **arguments)
    assert not report.ok and words in report.refused, str(report)


@pytest.mark.slow
def test_a_network_of_one_size_is_checked_at_that():
    assert '224 x 224' in str(check_a2mim('deit_tiny_patch16_224'))


def test_a_network_is_made_for_the_size_that_is_given():
    report = check_a2mim('deit_tiny_patch16_224', (64, 96))
    assert report.ok and '2 x 3 in an image of 64 x 96' in str(report), str(report)


# -- the check can fail -----------------------------------------------------------------------------------------------

def test_what_leads_around_in_training_alone_is_found():
    report = check_a2mim(Own(late=nn.Conv2d(8, 12, 2, 2)))
    assert not report.ok and 'WRONG  (a) all of the last map comes through middle' in str(report), str(report)


def test_a_gradient_that_is_not_finite_is_named():
    report = check_a2mim(Own(factor=Steep()))
    assert not report.ok and 'not factor.weight' in str(report), str(report)


def test_pixels_that_are_left_in_are_found(monkeypatch):
    monkeypatch.setattr(A2MIM, 'fill', lambda self, images, hidden: images)
    report = check_a2mim(Own())
    assert not report.ok and 'WRONG  (c) hidden pixels' in str(report), str(report)


def test_a_token_that_is_everywhere_is_found(monkeypatch):
    monkeypatch.setattr(encoder, 'with_token', lambda features, *arguments: features + 1)
    report = check_a2mim(Own())
    assert not report.ok and 'WRONG  (b) with nothing hidden' in str(report), str(report)


# -- the command ------------------------------------------------------------------------------------------------------

def test_command_line(capsys):
    with pytest.raises(SystemExit) as end:
        main(['test_resnet', '--method=a2mim', '--input_size=64,96', '--token_at=layer2'])
    assert not end.value.code and 'layer2, ' in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main(['hrnet_w18_small', '--method=a2mim'])
    assert end.value.code == 1 and '--token_at=layer1' in capsys.readouterr().out
    for wrong, word in ((['--token_at=layer2'], '--token_at is of --method=a2mim'),
                        (['--method=a2mim', '--levels=layer1'], '--levels and --all are of --method=spark')):
        with pytest.raises(SystemExit) as end:
            main(['test_resnet', *wrong])
        assert end.value.code == 2 and word in ''.join(capsys.readouterr())
