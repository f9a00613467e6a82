"""Weight files: every kind that is read, strictly, and what is refused."""
import os
import pickle

import pytest
import timm
import torch

from common.checkpoint import read_plain
from common.weights import create_cnn, load_init, load_strictly, to_timm, unwrap
from pretrain.spark import build_spark
from tests.test_golden import official_name


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
