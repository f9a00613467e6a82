"""The probe: what it tries on smaller images, how it tells refusals and notes apart, and the proof."""
import pytest
import timm
import torch
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

from common.feature_maps import FeatureMapsError
from pretrain.encoder import SparseEncoder
from pretrain.sparse import probe, proof
from pretrain.sparse.levels import choose_levels
from pretrain.sparse.notes import Note, NoteKind
from pretrain.sparse.refused import AttentionRefused, ForwardFailed, Refused
from tests.conftest import randomise
from tests.pretrain.sparse.networks import Call

FACTS = ('stride', 'cell_size', 'grid', 'level_indices', 'reductions', 'channels', 'norm', 'unused', 'taps', 'stop',
         'aligned', 'uncompiled', 'has_attention', 'orders', 'notes')
KNOWN = set(timm.list_models())  # the lowest version lacks some


class Small(ResNet):
    """Stride 32, with a module of choice after the third level."""

    def __init__(self, odd=None):
        super().__init__(BasicBlock, (1, 1, 1, 1), channels=(8, 8, 8, 16), num_classes=0)
        self.layer3.append(odd or nn.Identity())


@pytest.fixture
def tried(monkeypatch):
    """Fills with the sizes of images on which networks are tried."""
    sizes, original = [], probe.try_on_strips

    def try_on_strips(twin, images, *others):
        sizes.append(tuple(images.shape[2:]))
        return original(twin, images, *others)

    monkeypatch.setattr(probe, 'try_on_strips', try_on_strips)
    return sizes


@pytest.mark.parametrize(('size', 'smaller'), [
    ((224, 224), (96, 128)), ((256, 96), (128, 96)), ((64, 256), (64, 128)), ((96, 128), None),
    ((64, 64), None)])
def test_networks_are_tried_on_fewer_cells_that_are_no_square(tried, size, smaller):
    SparseEncoder(Small(), size)
    assert tried == [smaller or size]


@pytest.mark.parametrize(('name', 'size'), [
    ('test_resnet', 224), ('ghostnet_050', 256), ('selecsls42', 224), ('inception_v3', 160),
    ('resnetblur18', 160), ('hgnetv2_b0', 160), ('test_efficientnet_ln', 224)])
def test_facts_are_those_at_the_real_size(monkeypatch, tried, name, size):
    if name not in KNOWN or not hasattr(timm.create_model(name), 'forward_intermediates'):
        pytest.skip(f'timm {timm.__version__} has no {name}, or no way to its feature maps')
    network = timm.create_model(name)
    quick = SparseEncoder(network, (size, size))
    assert tried[-1] != (size, size)
    monkeypatch.setattr(probe, 'stand_in', lambda images, cell: None)
    slow = SparseEncoder(network, (size, size))
    assert tried[-1] == (size, size)
    assert {fact: getattr(quick, fact) for fact in FACTS} == {fact: getattr(slow, fact) for fact in FACTS}


def flip_wide(x):
    """Flips maps of 10 positions or more in width, which no strip has: only the dense network shows it."""
    return x.flip(3) if x.shape[3] >= 10 else x


def test_who_runs_other_operators_on_large_images_is_tried_on_them(tried):
    SparseEncoder(Small(Call(flip_wide)), (96, 128))
    with pytest.raises(Refused, match=r'does not give its own features .* "layer3.1" \(Call\)'):
        SparseEncoder(Small(Call(flip_wide)), (224, 224))
    assert tried == [(96, 128), (224, 224)]


def test_who_cannot_take_smaller_images_is_tried_on_the_real_ones(tried):
    class Picky(Small):
        def forward_intermediates(self, x, **kwargs):
            assert x.shape[2] != 96
            return super().forward_intermediates(x, **kwargs)

    assert SparseEncoder(Picky(), (160, 160)).grid == (5, 5) and tried == [(160, 160)]
    with pytest.raises(ForwardFailed, match=r'cannot run on an image \(2, 3, 96, 160\): AssertionError'):
        SparseEncoder(Picky(), (96, 160))


def test_a_refusal_is_that_at_the_real_size(tried):
    """Its message may hold sizes."""
    with pytest.raises(Refused, match=r'makes a map of 12x12 positions, which is no whole number for each of '
                                      r'7x7 cells'):
        SparseEncoder(Small(nn.Sequential(nn.Conv2d(8, 8, 3), nn.ConvTranspose2d(8, 8, 3))), (224, 224))
    assert tried == [(96, 128), (224, 224)]


def test_the_network_and_the_random_numbers_are_left_as_they_are():
    network = randomise(Small(nn.Dropout(0.5))).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    torch.manual_seed(0)
    state = torch.get_rng_state()
    SparseEncoder(network, (224, 224))
    assert torch.equal(torch.get_rng_state(), state) and all(module.training for module in network.modules())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(p.grad is None and p.dtype == torch.float32 for p in network.parameters())


# -- the proof
# --------------------------------------------------------------------------------------------------------

def test_what_float32_leaves_in_doubt_float64_decides(monkeypatch):
    decided, original = [], proof.decide
    monkeypatch.setattr(proof, 'decide', lambda *arguments: decided.append(1) or original(*arguments))
    SparseEncoder(Small(), (224, 224))
    assert not decided
    SparseEncoder(Small(Call(lambda x: (3e4 * x).sin())), (224, 224))  # magnifies rounding
    assert len(decided) == 1
    with pytest.raises(Refused, match='does not give its own features .* "layer3.1" .Call.'):
        SparseEncoder(Small(Call(lambda x: x + 0.02 * x.flatten(2).cumsum(2).view_as(x))), (224, 224))


def test_a_fault_that_batch_norm_would_hide_is_found():
    """A factor that differs shows in running statistics only, which are what is used in the end."""
    odd = nn.Sequential(Call(lambda x: x * x.shape[3]), nn.BatchNorm2d(8))
    with pytest.raises(Refused, match=r'does not give its own features .* "layer3.1.0" .Call.'):
        SparseEncoder(Small(odd), (160, 160))


def test_networks_with_constants_of_their_own_precision_are_proven():
    for dtype in (torch.float32, torch.float64):
        weight = torch.randn(8, 8, 3, 3, dtype=dtype)
        network = Small(Call(lambda x, weight=weight: nn.functional.conv2d(x, weight, padding=1))).to(dtype)
        assert SparseEncoder(network, (160, 160)).grid == (5, 5)


# -- told apart by type
# -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize('words', ['levels: none', 'gives no feature pyramid', 'is attention', 'cannot run '
                                                                                               'on an image'])
def test_words_of_a_networks_own_errors_decide_nothing(words):
    class Raising(Small):
        def forward_intermediates(self, x, **kwargs):
            raise ValueError(words)

    with pytest.raises(ForwardFailed, match=f'Raising cannot run on an image .*{words}'):
        SparseEncoder(Raising(), (64, 64))


def test_refusals_have_types():
    with pytest.raises(AttentionRefused):
        SparseEncoder(timm.create_model('vit_tiny_patch16_224'), (224, 224))
    with pytest.raises(FeatureMapsError):
        SparseEncoder(nn.Sequential(nn.Conv2d(3, 3, 3), nn.Flatten()), (32, 32))
    assert issubclass(AttentionRefused, Refused) and issubclass(Refused, ValueError)


def test_notes_have_kinds_and_read_as_sentences():
    notes = SparseEncoder(Small(nn.Conv2d(8, 8, 3, padding=1, padding_mode='reflect')), (96, 96)).notes
    assert [note.kind for note in notes] == [NoteKind.PADDING_MODE]
    sentence = 'pads by "reflect", which a hidden neighbour cannot imitate: zeros are there'
    assert str(notes[0]) == f'{notes[0]}' == sentence and f'{notes[0]:<90}|' == f'{sentence:<90}|'
    assert notes[0] == Note(NoteKind.PADDING_MODE, sentence)


@pytest.mark.parametrize(('image', 'maps', 'want'), [
    ((224, 224), [(112, 112), (56, 56), (28, 28), (14, 14), (7, 7)],
     (32, None, (4, 8, 16, 32), (1, 2, 3, 4))),
    ((64, 32), [(32, 16), (32, 16), (8, 4)], (8, None, (2, 8), (1, 2))),  # the last of a stride; no stride 4
    ((224, 224), [(28, 28), (7, 7), (4, 4)], (32, 2, (8, 32), (0, 1))),  # the last level does not fit
])
def test_levels_are_chosen_by_sizes(image, maps, want):
    levels = choose_levels('Net', image, maps)
    assert (levels.stride, levels.stop, levels.reductions, levels.indices) == want
