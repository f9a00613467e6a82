"""What a run is made of its options: parameter groups, learning rates, views, and how it measures."""
from types import SimpleNamespace

import pytest
import torch

from common.distributed import Ranks
from common.sync_batchnorm import is_synchronised, synchronise_on_cpus, synchronise_on_gpus
from downstream_ade20k.checkpoints import restored_options
from downstream_ade20k.classes import Classes
from downstream_ade20k.config import Options, recommended
from downstream_ade20k.main import train_segmenter
from downstream_ade20k.recipe import Recipe
from downstream_ade20k.run import Run
from downstream_ade20k.training import SegmenterTraining
from downstream_ade20k.views import TrainingView, WholeView
from tests.downstream_ade20k.runs import evaluations

ALONE = Ranks(0, 1, torch.device('cpu'))
CLASSES = Classes.of_ids(range(5), (255,))
DECAY = 0.05


def training_of(options):
    """A SegmenterTraining whose network is built, without images."""
    images = SimpleNamespace(classes=CLASSES)
    training = SegmenterTraining(Run(options, ALONE, 100), images, images)
    training.saved = None
    training.network = training.build_network()
    return training


# -- parameter groups -------------------------------------------------------------------------------------------------

def groups_of(model, **given):
    """({name of a parameter: (share of the learning rate, weight decay)}, the network). None is in two groups."""
    training = training_of(Options(name='run', model=model, input_size=64, batch_size=4, head_channels=16,
                                   weight_decay=DECAY, **given))
    name_of = {id(parameter): name for name, parameter in training.network.named_parameters()}
    found = {}
    for group in training.build_optimizer().param_groups:
        for parameter in group['params']:
            name = name_of[id(parameter)]
            assert name not in found
            found[name] = round(group.get('lr_scale', 1.0), 9), group['weight_decay']
    return found, training.network


def assert_all_are_trained(found, network):
    """All parameters that are trained are in a group, and matrices and kernels alone have weight decay."""
    trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert found.keys() == trained.keys()
    for name, (share, decay) in found.items():
        is_free = trained[name].ndim == 1 or name.endswith(('gamma', 'pos_embed'))
        assert decay == (0 if is_free else DECAY), name
        assert name.startswith('backbone.cnn.') or share == 1, name


def shares_of(found, part):
    """The shares of the learning rate of the parameters below a part of the network."""
    return {share for name, (share, _) in found.items() if name.startswith(part)}


def test_a_convvit_has_its_layers_and_its_added_level_the_rate_of_the_head():
    found, network = groups_of('test_convvit', layer_decay=0.5)
    assert_all_are_trained(found, network)
    depth = len(network.backbone.cnn.blocks3)
    for number in range(depth):
        assert shares_of(found, f'backbone.cnn.blocks3.{number}.') == {0.5 ** (depth - number)}
    for part in ('patch_embed', 'pos_embed', 'blocks1', 'blocks2'):
        assert shares_of(found, f'backbone.cnn.{part}') == {round(0.5 ** (depth + 1), 9)}
    for part in ('backbone.extra.convolution', 'backbone.extra.norm', 'head', 'classifier', 'auxiliary'):
        assert shares_of(found, part) == {1}


def test_a_convnext_has_its_stages_as_layers():
    """A ConvNeXt with few blocks has the head at layer 7, as ConvNeXt-T has."""
    found, network = groups_of('test_convnext', layer_decay=0.9, layer_decay_by='stages')
    assert_all_are_trained(found, network)
    assert shares_of(found, 'backbone.cnn.stem') == {round(0.9 ** 7, 9)}
    for stage in range(4):
        assert shares_of(found, f'backbone.cnn.stages.{stage}.blocks') == {round(0.9 ** (6 - stage), 9)}
    assert shares_of(found, 'backbone.cnn.stages.3.downsample') == {round(0.9 ** 7, 9)}
    by_layers, _ = groups_of('test_convnext', layer_decay=0.9)
    assert shares_of(by_layers, 'backbone.cnn.stages.3') == {0.9}


def test_a_resnet_with_frozen_norms_trains_its_convolutions_at_the_full_rate():
    found, network = groups_of('test_resnet', opt='sgd', layer_decay=1.0, frozen_bn=True, head='fpn')
    assert_all_are_trained(found, network)
    cnn = {name: value for name, value in found.items() if name.startswith('backbone.cnn.')}
    assert cnn and set(cnn.values()) == {(1, DECAY)}


def test_with_a_frozen_network_the_head_alone_is_trained():
    found, network = groups_of('test_resnet', layer_decay=0.9, freeze=True, aux_weight=0.0)
    assert_all_are_trained(found, network)
    assert {name.split('.')[0] for name in found} == {'head', 'classifier'}


# -- learning rates ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(('model', 'given', 'rates'), [
    # 1e-4 * (1 - s / 160,000), in the warm-up times 1e-6 at first, and s / 1,500 or so
    ('convnext_base', {}, {0: 1e-10, 300: 0.2 * 9.98125e-5, 16_000: 9e-5, 120_000: 2.5e-5}),
    # 1e-4 + 0.0099 * (1 - s / 160,000) ** 0.9, with 1/2 and 1/32 of the run left
    ('resnet50', {}, {0: 0.01, 80_000: 1e-4 + 0.0099 * 2 ** -0.9, 155_000: 1e-4 + 0.0099 * 2 ** -4.5}),
    # 1e-5 + 2.9e-4 * (1 - s / 80) ** 2, in the warm-up times s / 8
    ('convvit_base', {'iterations': 80, 'power': 2.0, 'end_lr': 1e-5, 'lr': 3e-4},
     {4: 0.5 * (1e-5 + 2.9e-4 * 0.95 ** 2), 40: 1e-5 + 2.9e-4 / 4, 60: 1e-5 + 2.9e-4 / 16})])
def test_the_learning_rate_of_a_run_at_some_iterations(model, given, rates):
    options, _ = Recipe().settled(recommended(name='run', model=model, recipe='paper', **given), 20_210, ALONE)
    run = Run(options, ALONE, 20_210)
    for step, rate in rates.items():
        assert run.schedule(step) == (pytest.approx(rate, rel=1e-5), options.weight_decay), step


# -- images and figures -----------------------------------------------------------------------------------------------

def test_views_have_what_the_options_say():
    options = Options(name='run', model='test_resnet', input_size=(48, 64), short_side=80, long_side=200,
                      scales=(0.7, 1.5), most_of_one=0.5, flip=False, distort=False, mean=(0.1, 0.2, 0.3),
                      std=(0.4, 0.5, 0.6), seed=3, read_timeout=7, batch_size=4)
    training, whole = training_of(options).make_datasets()
    assert training.view == TrainingView((48, 64), 80, 200, (0.7, 1.5), 0.5, False, False, False)
    assert whole.view == WholeView(80, 200)
    for images in (training, whole):
        assert images.normalisation == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)) and images.timeout == 7
    assert training.seed == 3 and training.stand_ins and not whole.stand_ins
    options = Options(name='run', model='test_resnet', input_size=48, keep_size=True, batch_size=4)
    assert [images.view for images in training_of(options).make_datasets()] == [
        TrainingView((48, 48), 48, 192, keep_size=True), WholeView(48, 192, True)]


def test_eval_measures_as_the_run_did(small, drawn_masks, capsys):
    """None of the figures would be the same if images were measured whole, smaller, or not mirrored."""
    given = {'slide': True, 'slide_stride': 20, 'short_side': 80, 'test_flip': True, 'test_scales': (0.75, 1.25),
             'mean': (0.3, 0.4, 0.5), 'std': (0.3, 0.3, 0.3)}
    folder = train_segmenter(small(lr=1e-2, iterations=3, **given))
    last = evaluations(folder)[-1]
    path = str(folder / 'your_convnet_ade20k_last.pth')
    capsys.readouterr()

    def measured(**changes):
        return train_segmenter(Options(eval=path, data_path=str(drawn_masks), workers=0, **changes))['model']

    names = ('mIoU', 'mAcc', 'aAcc')
    found = measured()
    assert [found[name] for name in names] == [last[name] for name in names]
    assert ('images with a short side of 80 px, a long side of 320 at most, in windows of 64 x 64 px that move by 20 px, '
            'at the scales 0.75, 1.25, mirrored too; ignored: 255\n') in capsys.readouterr().out
    for change in ({'slide': False}, {'slide_stride': 64}, {'short_side': 64}, {'test_flip': False}, {'test_scales': (1.0,)},
                   {'mean': (0.5,) * 3}, {'std': (0.5,) * 3}):
        assert measured(**change)['aAcc'] != last['aAcc'], change


def test_eval_refuses_another_network_than_that_of_the_file():
    config = Options(name='run', model='test_resnet', input_size=64).as_dict()
    assert restored_options(config, Options(eval='FILE')).model == 'test_resnet'
    assert restored_options(config, Options(eval='FILE', model='test_resnet')).model == 'test_resnet'
    with pytest.raises(ValueError, match='--model=test_convnext: the network of FILE is test_resnet. Leave --model out'):
        restored_options(config, Options(eval='FILE', model='test_convnext'))


# -- several ranks ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('head', ['upernet', 'fpn'])
def test_all_norms_of_the_heads_are_shared_by_ranks(head):
    options = Options(name='run', model='test_convvit', input_size=64, head=head, head_channels=16, batch_size=4)
    for synchronise in (synchronise_on_cpus, lambda network: synchronise_on_gpus(network, True)):
        network = training_of(options).network
        before = network.state_dict()
        norms = [name for name, module in network.named_modules() if isinstance(module, torch.nn.BatchNorm2d)]
        network = synchronise(network)
        assert {name.split('.')[0] for name in norms} >= {'backbone', 'auxiliary'}
        assert norms and all(is_synchronised(network.get_submodule(name)) for name in norms)
        assert network.state_dict().keys() == before.keys()
