"""Weight files: every kind that is read, strictly, and what is refused."""
import argparse
import os
import pickle
import re

import pytest
import timm
import torch

from common.networks.create import create_cnn
from common.networks.keys import unwrap
from common.networks.load import load_classifier, load_strictly, read_weights
from common.networks.renaming import to_timm
from common.reliability.checkpoint import is_run, read_plain
from pretrain.spark import build_spark
from pretrain.spark_weights import load_init, official_encoder
from tests.pretrain.official import official_name


def spark_of(model, **changes):
    return build_spark(model, **{'input_size': 64, 'decoder_width': 64, **changes})


def randomised(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {k: torch.rand(v.shape, generator=generator) if v.is_floating_point() else v + 3
            for k, v in module.state_dict().items()}


def holds(module, state):
    own = module.state_dict()
    return all(torch.equal(own[key], value) for key, value in state.items())


@pytest.mark.parametrize('wrap', [lambda s: s, lambda s: {'module': s, 'arch': 'x', 'is_pretrain': True},
                                  lambda s: {'state_dict': {f'module.{k}': v for k, v in s.items()}, 'epoch': 3},
                                  lambda s: {'model': s}])
@pytest.mark.parametrize('model', ['test_resnet', 'test_convnext'])
def test_an_encoder_in_any_wrapping(tmp_path, model, wrap):
    spark = spark_of(model)
    state = randomised(spark.encoder.cnn)
    torch.save(wrap(state), tmp_path / 'w.pth')
    report = load_init(spark, tmp_path / 'w.pth')
    assert holds(spark.encoder.cnn, state) and len(report.matched) == len(state) and not report.missing


def test_without_or_with_another_classifier(tmp_path):
    spark = spark_of('test_resnet')
    state = randomised(spark.encoder.cnn)
    backbone = {k: v for k, v in state.items() if not k.startswith('fc.')}
    torch.save(backbone, tmp_path / 'w.pth')
    report = load_init(spark, tmp_path / 'w.pth')
    assert holds(spark.encoder.cnn, backbone) and set(report.missing) == {'fc.weight', 'fc.bias'}
    torch.save({**backbone, 'fc.weight': torch.zeros(7, 96), 'fc.bias': torch.zeros(7)}, tmp_path / 'w.pth')
    report = load_init(spark, tmp_path / 'w.pth')
    assert set(report.left_out) == {'fc.weight', 'fc.bias'} and 'left out 2 (fc.weight, fc.bias)' in str(report)


def test_our_whole_spark(tmp_path):
    spark = spark_of('your_convnet')
    state = randomised(spark)
    torch.save({'model': state, 'step': 3, 'optimizer': {}}, tmp_path / 'w.pth')
    load_init(spark, tmp_path / 'w.pth')
    assert holds(spark, state)


@pytest.mark.parametrize('model', ['test_resnet', 'convnext_atto'])
def test_official_whole_spark_and_official_encoder(tmp_path, model):
    spark, other, third = spark_of(model), spark_of(model), spark_of(model)
    state = randomised(spark)
    spark.load_state_dict(state)
    unused = {f'encoder.cnn.{name}' for name in spark.encoder.unused}
    official = {official_name(k): v for k, v in state.items() if k not in unused}
    extra = {'imn_m': torch.zeros(1, 3, 1, 1), 'imn_s': torch.zeros(1, 3, 1, 1), 'norm_black': torch.zeros(1, 3, 64, 64)}
    torch.save({'module': {**official, **extra}, 'config': {'mask': 0.6}}, tmp_path / 'whole.pth')
    load_init(other, tmp_path / 'whole.pth')
    assert holds(other, {k: v for k, v in state.items() if k not in unused})
    prefix = 'sparse_encoder.sp_cnn.'
    torch.save({k.removeprefix(prefix): v for k, v in official.items() if k.startswith(prefix)}, tmp_path / 'encoder.pth')
    load_init(third, tmp_path / 'encoder.pth')
    assert holds(third, {k: v for k, v in state.items() if k.startswith('encoder.') and k not in unused})
    with pytest.raises(ValueError, match='not in the network: dense_decoder.more'):
        other.load_official({**official, 'dense_decoder.more': torch.zeros(1)})
    with pytest.raises(ValueError, match=r'missing: mask_tokens\.2'):
        other.load_official({k: v for k, v in official.items() if k != 'mask_tokens.2'})
    with pytest.raises(ValueError, match='mask_tokens.2 is'):
        other.load_official({**official, 'mask_tokens.2': torch.zeros(1, 5, 1, 1)})
    with pytest.raises(ValueError, match='no whole official SparK'):
        other.load_official(randomised(spark.encoder.cnn))


def test_weights_of_another_network_are_refused_and_change_nothing(tmp_path):
    spark = spark_of('test_resnet')
    before = {k: v.clone() for k, v in spark.state_dict().items()}
    torch.save(timm.create_model('resnet18').state_dict(), tmp_path / 'w.pth')
    with pytest.raises(ValueError, match=r'do not fit ResNet, \d+ entries differ'):
        load_init(spark, tmp_path / 'w.pth')
    torch.save({'downsample_layers.0.0.weight': torch.zeros(1)}, tmp_path / 'w.pth')
    with pytest.raises(ValueError, match='those of a ConvNeXt, the network is a ResNet'):
        load_init(spark, tmp_path / 'w.pth')
    assert holds(spark, before)


class Hostile:
    def __reduce__(self):
        return os.system, ('touch hostile_was_here',)


@pytest.mark.parametrize(('content', 'word'), [
    (lambda p: p.write_bytes(pickle.dumps({'a': Hostile()})), 'refused|damaged'),
    (lambda p: torch.save({'a': Hostile()}, p), 'refused'),
    (lambda p: p.write_bytes(b''), 'damaged'), (lambda p: p.write_text('hello'), 'refused|damaged'),
    (lambda p: torch.save([1, 2], p), 'holds a list'), (lambda p: torch.save({'epoch': 1}, p), 'holds no weights'),
    (lambda p: None, 'there is no file'),
])
def test_no_weights_file(tmp_path, monkeypatch, content, word):
    monkeypatch.chdir(tmp_path)
    content(tmp_path / 'w.pth')
    with pytest.raises(ValueError, match=word):
        unwrap(read_plain(tmp_path / 'w.pth'))
    assert not (tmp_path / 'hostile_was_here').exists()


def test_options_of_another_program_beside_the_weights(tmp_path, donor):
    """MAE's programs and those built on them keep an argparse.Namespace there."""
    options = argparse.Namespace(model='x', step=3, version=1, weights={'conv1.0.weight': torch.zeros(1)})
    content = {'model': donor, 'optimizer': {'state': {}}, 'epoch': 3, 'scaler': {'scale': 65536.0}, 'args': options}
    torch.save(content, tmp_path / 'w.pth')
    read = read_plain(tmp_path / 'w.pth')
    assert type(read['args']) is argparse.Namespace and read['args'].step == 3
    assert unwrap(read).keys() == {f'model/{key}' for key in donor} and not is_run(read, tmp_path / 'w.pth')
    assert holds(loaded(tmp_path / 'w.pth')[0], donor)
    torch.save(options, tmp_path / 'w.pth')
    with pytest.raises(ValueError, match='holds a Namespace, not the weights'):
        unwrap(read_plain(tmp_path / 'w.pth'))
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


class Derived(argparse.Namespace):
    pass


@pytest.mark.parametrize('inside, name', [(Hostile(), f'{os.name}.system'), (Derived(), f'{__name__}.Derived')])
def test_options_that_hold_anything_else_are_refused(tmp_path, monkeypatch, inside, name):
    monkeypatch.chdir(tmp_path)
    for options in (argparse.Namespace(more=inside), argparse.Namespace(__setstate__=inside), inside):
        torch.save({'model': {'a': torch.ones(1)}, 'args': options}, tmp_path / 'w.pth')
        with pytest.raises(ValueError, match=rf'refused: it holds {re.escape(name)} besides tensors'):
            read_plain(tmp_path / 'w.pth')
    assert not (tmp_path / 'hostile_was_here').exists()


def test_a_cut_off_file_is_named_as_damaged(tmp_path):
    torch.save({'a': torch.zeros(1000)}, tmp_path / 'w.pth')
    whole = (tmp_path / 'w.pth').read_bytes()
    for size in (10, 1000, len(whole) - 10):
        (tmp_path / 'w.pth').write_bytes(whole[:size])
        with pytest.raises(ValueError, match='damaged|refused'):
            read_plain(tmp_path / 'w.pth')


def test_torchvision_names_are_timm_names():
    torchvision = pytest.importorskip('torchvision')
    state = torchvision.models.resnet18().state_dict()
    cnn = create_cnn('resnet18')
    assert not load_strictly(cnn, to_timm(state, cnn)).missing


def test_unreachable_pretrained_weights_are_one_sentence():
    with pytest.raises(ValueError, match="timm's pretrained weights of your_convnet"):
        load_init(spark_of('your_convnet'), 'timm', 'your_convnet')


def test_timm_pretrained_weights_fill_the_encoder(monkeypatch):
    spark, source = spark_of('test_resnet'), timm.create_model('test_resnet')
    state = randomised(source)
    source.load_state_dict(state)
    monkeypatch.setattr(timm, 'create_model', lambda name, pretrained, in_chans: source)  # no network in tests
    assert len(load_init(spark, 'timm', 'test_resnet').matched) == len(state) and holds(spark.encoder.cnn, state)


def under(prefix, state):
    return {f'{prefix}{key}': value for key, value in state.items()}


def without(part, state):
    return {key: value for key, value in state.items() if not key.startswith(part)}


@pytest.fixture(scope='module')
def donor():
    return randomised(timm.create_model('test_resnet', num_classes=3), seed=1)


def loaded(content, model='test_resnet', classes=3, **given):
    """(the network, what was said) of a content or file that is loaded."""
    cnn = timm.create_model(model, num_classes=classes)
    return cnn, load_classifier(cnn, content, model, (64, 64), **given)


@pytest.mark.parametrize('prefix', ['_orig_mod.', 'module._orig_mod.', '_orig_mod.module.', 'model.backbone.', 'a.b.c.d.'])
@pytest.mark.parametrize('wrap', [lambda s: s, lambda s: {'state_dict': s, 'epoch': 3},
                                  lambda s: {'checkpoint': {'weights': s}, 'optimizer': {'state': {0: {'x': torch.ones(3)}}}}])
def test_keys_behind_any_prefix_in_any_dictionary(donor, prefix, wrap):
    cnn, report = loaded(wrap(under(prefix, donor)))
    assert holds(cnn, donor) and not report.missing
    assert f"the keys begin with '{prefix}', which is left out" in str(report)


@pytest.mark.parametrize('name', ['convnext_atto', 'densenet121'])
def test_other_names_behind_a_prefix(name):
    network = timm.create_model(name, num_classes=3)
    state = randomised(network)
    renamed = official_encoder(state) if name == 'convnext_atto' else {
        re.sub(r'(denselayer\d+\.(?:norm|conv))([12])\.', r'\1.\2.', key): value for key, value in state.items()}
    assert renamed.keys() != state.keys()
    cnn, _ = loaded({'model': under('module.encoder.', renamed)}, name)
    assert holds(cnn, without('head.', state))


def test_what_torch_writes_into_the_middle_of_keys(donor):
    inside = {key.replace('layer2.', 'layer2._orig_mod.').replace('layer3.0.', 'layer3.0._checkpoint_wrapped_module.'): value
              for key, value in donor.items()}
    assert inside.keys() != donor.keys() and holds(loaded(under('module.', inside))[0], donor)


def test_what_is_beside_the_network_is_said(donor):
    others = {'projector.0.weight': torch.ones(2, 2), 'head.fc.weight': torch.ones(3, 64), 'queue': torch.ones(1)}
    cnn, report = loaded({**under('backbone.', without('fc.', donor)), **others, 'optimizer': {'x': torch.ones(1)}})
    assert set(report.beside) == {'projector', 'head', 'queue', 'optimizer'} and set(report.missing) == {'fc.weight', 'fc.bias'}
    assert 'projector, head, queue, optimizer besides, not loaded' in str(report)
    cnn, report = loaded({**under('m.encoder_q.', without('fc.', donor)), 'm.encoder_q.fc.0.weight': torch.ones(2, 2)})
    assert report.left_out == ('fc.0.weight',)  # MoCo's projection in the place of the classifier


def test_weights_before_their_average_and_the_outer_before_the_inner(donor):
    other = {key: value + 1 for key, value in donor.items()}
    for content in ({'ema': other, 'model': donor}, {'state_dict': donor, 'state_dict_ema': other},
                    {**under('model_ema.module.', other), **under('model.', donor)}, {**donor, **under('momentum.', other)},
                    {**donor, 'teacher': other}, {'model_ema': donor}):
        assert holds(loaded(content)[0], donor)


@pytest.mark.parametrize('prefixes', [('module.encoder_q.', 'module.encoder_k.'), ('student/backbone.', 'teacher/backbone.')])
def test_of_two_networks_the_one_that_is_named(tmp_path, donor, prefixes):
    content = {}
    for number, prefix in enumerate(prefixes):
        folder, _, rest = prefix.rpartition('/')
        state = under(rest, {key: value + number for key, value in donor.items()})
        content.update({folder: state} if folder else state)
    torch.save(content, tmp_path / 'w.pth')
    with pytest.raises(ValueError, match='holds 2 networks that fit, under ') as error:
        loaded(tmp_path / 'w.pth')
    for number, prefix in enumerate(prefixes):
        way = prefix.replace('/', '.').rstrip('.')
        assert way in str(error.value)
        assert holds(loaded(f'{tmp_path / "w.pth"}:{way}')[0], {key: value + number for key, value in donor.items()})
    with pytest.raises(ValueError, match='no such network under "absent". The keys of the file begin with'):
        loaded(f'{tmp_path / "w.pth"}:absent')


def test_a_colon_in_a_name_is_no_key(tmp_path, donor):
    torch.save(donor, tmp_path / 'a:b.pth')
    assert read_weights(tmp_path / 'a:b.pth')[2] is None
    with pytest.raises(ValueError, match='there is no file .*absent.pth:ema'):
        read_weights(tmp_path / 'absent.pth:ema')


def test_a_network_with_a_part_too_many_is_refused(donor):
    for key in ('layer4.9.conv1.weight', 'extra.weight'):
        content = under('model.', {**donor, key: torch.ones(1)})
        with pytest.raises(ValueError, match=f'1 entries differ:\n  not in the network: {key} '):
            loaded(content)


def test_a_refusal_shows_both_sides(donor):
    with pytest.raises(ValueError) as error:
        loaded({'state_dict': under('model.trunk.', timm.create_model('test_vit').state_dict())})
    for part in ('missing: conv1.0.weight (16, 3, 3, 3)', 'not in the network: model.trunk.cls_token (1, 1, 64)',
                 "The keys of the file begin with 'state_dict/model.trunk.blocks.' ("):
        assert part in str(error.value)
    with pytest.raises(ValueError, match=r"missing: layer1.0.bn1.weight.*\n.*begin with 'net.layer3.'.*below 'net.'"):
        loaded(under('net.', without('layer1.0.bn1.weight', donor)))


# -- images of other channels -----------------------------------------------------------------------------------------

@pytest.mark.parametrize('name, convs', [('test_resnet', 1), ('your_convnet', 2), ('repvgg_a0', 2), ('mobileone_s0', 2),
                                         ('regnety_002', 1), ('convnext_atto', 1)])
@pytest.mark.parametrize('in_chans', [1, 5])
def test_weights_of_colour_images_are_adapted_as_timm_does(tmp_path, name, convs, in_chans):
    state = randomised(timm.create_model(name))
    torch.save(state, tmp_path / 'w.pth')
    cnn = timm.create_model(name, in_chans=in_chans)
    before = {key: value.clone() for key, value in cnn.state_dict().items()}
    with pytest.raises(ValueError, match=f'for images of 3 channels, the network is for {in_chans} .*--adapt_input_conv'):
        load_classifier(cnn, tmp_path / 'w.pth', name, (64, 64), in_chans)
    assert holds(cnn, before)
    report = load_classifier(cnn, tmp_path / 'w.pth', name, (64, 64), in_chans, adapt=True)
    assert len(report.adapted) == convs and f'is adapted from images of 3 channels to {in_chans}' in str(report)
    if name != 'your_convnet':  # which timm does not load
        overlay = {'file': tmp_path / 'w.pth'}
        theirs = timm.create_model(name, pretrained=True, in_chans=in_chans, pretrained_cfg_overlay=overlay)
        assert holds(cnn, theirs.state_dict())


@pytest.mark.parametrize('there, here', [(1, 3), (5, 3), (2, 1), (1, 4)])
def test_weights_of_any_channels_are_adapted(there, here):
    state, cnn = randomised(timm.create_model('test_resnet', in_chans=there)), timm.create_model('test_resnet', in_chans=here)
    load_classifier(cnn, state, 'test_resnet', (64, 64), here, adapt=True)
    given, found = state['conv1.0.weight'], cnn.state_dict()['conv1.0.weight']
    for channel in range(here):
        wanted = given.sum(1) if here == 1 else given[:, channel % there] * there / here
        assert torch.allclose(found[:, channel], wanted)


def test_a_stem_that_folds_pixels_into_channels_is_refused():
    state, cnn = timm.create_model('tresnet_m').state_dict(), timm.create_model('tresnet_m', in_chans=1)
    with pytest.raises(ValueError, match='(?s)48, 3, 3.*the network has .*16, 3, 3.*adapts convolutions in one group'):
        load_classifier(cnn, state, 'tresnet_m', (64, 64), 1, adapt=True)


def test_colour_weights_start_a_grey_pretraining():
    colour, grey = spark_of('your_convnet'), spark_of('your_convnet', in_chans=1)
    state = randomised(colour)
    with pytest.raises(ValueError, match='--adapt_input_conv'):
        load_init(grey, {'model': state})
    report = load_init(grey, {'model': state}, adapt=True)  # the decoder, for three channels, starts anew
    assert 'dense_decoder' in report.beside and len(report.adapted) == 2
    first = 'encoder.cnn.stages.0.conv1.weight'
    assert torch.equal(grey.state_dict()[first], state[first].sum(1, keepdim=True))
