"""A2MIM's weight files: official ones, strictly, and what each kind of file fills."""
from dataclasses import replace

import pytest
import timm
import torch

import tests.small_vit  # noqa: F401
from common.networks.keys import unwrap
from common.networks.load import load_classifier, load_found
from common.networks.openmmlab import to_openmmlab
from downstream_imagenet.tuned import read_tuned
from pretrain.a2mim import build_a2mim
from pretrain.a2mim_options import A2MIMOptions
from pretrain.a2mim_weights import ALONE, find_init, is_part_of_whole, kind_of_token, load_init, load_official
from pretrain.main import pretrain
from pretrain.saved import encoder_entries, read_saved
from pretrain.spark import build_spark
from tests.common.networks.test_openmmlab import VIT
from tests.common.networks.test_weights import holds, randomised, under
from tests.conftest import log_of, randomise
from tests.pretrain.official import fill
from tests.pretrain.official_a2mim import LOSSES, golden, network, official_state, our_state

MODELS = ('resnet26', 'convnext_tiny', 'vit')


@pytest.fixture(scope='module', params=MODELS)
def case(request):
    """(an A2MIM as drawn, the authors' state_dict for it, the same under our names)."""
    model, want = request.param, golden(request.param)
    return build_a2mim(network(model), 96, **LOSSES[model]).double(), official_state(want), our_state(want)


def test_every_entry_of_the_authors_program_is_loaded(case):
    a2mim, official, ours = case
    drawn = {key: value.clone() for key, value in a2mim.state_dict().items()}
    report = load_official(official, a2mim)
    assert holds(a2mim, ours) and len(report.matched) == len(official) and not report.left_out and not report.beside
    assert set(report.missing) == {f'encoder.cnn.{name}' for name in a2mim.encoder.unused}
    a2mim.load_state_dict(drawn)
    a2mim.load_official({'state_dict': under('module.', official), 'meta': {'epoch': 300}})
    assert holds(a2mim, ours)


def test_a_vit_that_classifies_by_the_mean_of_its_patches_reads_the_same_last_map():
    """Its last norm is `fc_norm`, which pretraining has on the tokens."""
    want = golden('vit')
    vits = [network('vit'), timm.models.beit.Beit(**VIT, num_classes=3)]
    images, visible = fill('input', (want['batch'], 3, 96, 96)), torch.tensor(want['visible'])
    maps = []
    for vit in vits:
        a2mim = build_a2mim(vit, 96, **LOSSES['vit']).double().eval()
        a2mim.load_official(official_state(want))
        maps.append(a2mim.encode(images, visible))
    assert hasattr(vits[1].fc_norm, 'weight') and torch.equal(*maps)


def test_what_is_wrong_is_named(case):
    a2mim, official, _ = case
    before = {key: value.clone() for key, value in a2mim.state_dict().items()}
    token = 'backbone.mask_token'
    for changes, message in (({'neck.more': torch.zeros(1)}, 'not in the network: neck.more'),
                             ({'head.fc.weight': torch.zeros(2, 2)}, 'not in the network: head.fc.weight'),
                             ({'backbone.more.weight': torch.zeros(1)}, 'not in the network: encoder.cnn.more.weight'),
                             ({token: torch.zeros(1, 5, 1, 1)}, r'(?s)encoder.mask_token is .*give the --token and'),
                             ({'neck.decoder_pred.0.bias': torch.zeros(7)}, r'decoder.bias is \(7,\)')):
        with pytest.raises(ValueError, match=message):
            load_official({**official, **changes}, a2mim)
    for missing, ours in ((token, 'encoder.mask_token'), ('neck.decoder_pred.0.bias', 'decoder.bias')):
        with pytest.raises(ValueError, match=f'missing: {ours}'):
            load_official({key: value for key, value in official.items() if key != missing}, a2mim)
    with pytest.raises(ValueError, match='no whole official A2MIM'):
        load_official(randomised(a2mim.encoder.cnn), a2mim)
    assert holds(a2mim, before)


# -- other kinds of files ---------------------------------------------------------------------------------------------

NETWORKS = {'test_resnet': {'token_at': 'layer3'}, 'test_convnext': {}}


def small(model, **changes):
    return build_a2mim(model, 64, **{**NETWORKS[model], **changes})


def as_official(a2mim, model, decoder='neck.decoder_pred.0.', prefix=''):
    """A made file of the official program with the weights of a network of ours."""
    unused = {f'encoder.cnn.{name}' for name in a2mim.encoder.unused}
    state = {key: value for key, value in a2mim.state_dict().items() if key not in unused}
    cnn = {key.removeprefix('encoder.cnn.'): value for key, value in state.items() if key.startswith('encoder.cnn.')}
    cnn = cnn if model == 'test_resnet' else to_openmmlab(cnn)
    keys = under('backbone.', cnn) | {'backbone.mask_token': state['encoder.mask_token'],
                                      f'{decoder}weight': state['decoder.weight'], f'{decoder}bias': state['decoder.bias']}
    if 'encoder.mask_gain' in state:
        keys['backbone.mask_gamma'] = state['encoder.mask_gain']
    return {'meta': {'epoch': 300, 'mmcv_version': '1.4'}, 'state_dict': under(prefix, keys),
            'optimizer': {'state': {0: {'exp_avg': torch.ones(3)}}}}


@pytest.mark.parametrize('kind', ['official', 'older', 'ours'])
@pytest.mark.parametrize('model', NETWORKS)
def test_a_whole_file_fills_everything(tmp_path, model, kind):
    a2mim = small(model)
    a2mim.load_state_dict(randomised(a2mim))
    decoder = 'neck.decoder.0.' if kind == 'older' else 'neck.decoder_pred.0.'
    content = {'model': a2mim.state_dict(), 'optimizer': {}} if kind == 'ours' else \
        as_official(a2mim, model, decoder, 'module.')
    torch.save(content, tmp_path / 'w.pth')
    other = small(model)
    report = load_init(other, tmp_path / 'w.pth')
    unused = {f'encoder.cnn.{name}' for name in a2mim.encoder.unused}
    assert holds(other, {key: value for key, value in a2mim.state_dict().items() if kind == 'ours' or key not in unused})
    assert ALONE not in str(report)
    third, own = small(model), a2mim.encoder.cnn.state_dict()
    key = 'encoder.cnn' if kind == 'ours' else 'backbone'
    report = load_init(third, f'{tmp_path / "w.pth"}:{key}')
    features = {key: value for key, value in own.items() if key not in a2mim.encoder.unused}
    assert holds(third.encoder.cnn, features) and not holds(third, a2mim.state_dict()) and ALONE in str(report)


@pytest.mark.parametrize('model', NETWORKS)
def test_programs_that_know_no_method_take_the_network(tmp_path, model):
    a2mim = small(model)
    a2mim.load_state_dict(randomised(a2mim))
    torch.save(as_official(a2mim, model), tmp_path / 'w.pth')
    cnn = timm.create_model(model, num_classes=7)
    report = load_classifier(cnn, tmp_path / 'w.pth', model, (64, 64))
    assert {'neck', 'optimizer', 'backbone.mask_token'} <= set(report.beside)
    assert holds(cnn, {key: value for key, value in a2mim.encoder.cnn.state_dict().items()
                       if key not in a2mim.encoder.unused})
    with pytest.raises(ValueError, match='without a trained classifier'):
        read_tuned(tmp_path / 'w.pth', model=model)


def test_a_file_of_another_method_fills_the_network():
    spark, a2mim = build_spark('test_resnet', 64, decoder_width=32), small('test_resnet')
    spark.load_state_dict(randomised(spark))
    report = load_init(a2mim, {'model': spark.state_dict()})
    assert holds(a2mim.encoder.cnn, spark.encoder.cnn.state_dict())
    assert 'dense_decoder' in report.beside and ALONE in str(report)


def test_another_kind_of_token_is_refused_with_the_remedy():
    gain, residual = small('test_resnet'), small('test_resnet', token='residual')
    for there, here in ((gain, residual), (residual, gain)):
        with pytest.raises(ValueError, match=r'(?s)encoder.mask_gain.*FILE:backbone.*FILE:encoder.cnn'):
            load_init(here, as_official(there, 'test_resnet'))
    load_init(residual, {'model': {key: value for key, value in gain.state_dict().items() if 'encoder.cnn.' in key}})


def test_what_is_found_in_a_whole_file():
    a2mim = small('test_resnet')
    for content in (as_official(a2mim, 'test_resnet'), {'model': a2mim.state_dict()}):
        module, found, may_miss = find_init(a2mim, unwrap(content))
        assert module is a2mim
        entries = encoder_entries(found, load_found(module, found, may_miss))
        own = a2mim.encoder.cnn.state_dict()
        assert entries.keys() >= own.keys() - set(a2mim.encoder.unused)
        assert all(torch.equal(value, own[key]) for key, value in entries.items())
        module, found, _ = find_init(a2mim, unwrap(content), which='backbone' if 'state_dict' in content else 'cnn')
        assert module is a2mim.encoder.cnn and is_part_of_whole(found)
    _, found, _ = find_init(a2mim, under('encoder.cnn.', a2mim.encoder.cnn.state_dict()))
    assert not is_part_of_whole(found)


@pytest.mark.parametrize('decoder, token', [('neck.decoder_pred.0.', 'gain'), ('neck.decoder_pred.0.', 'residual'),
                                            ('neck.decoder.0.', 'replace')])
def test_the_kind_of_token_of_an_official_file(tmp_path, decoder, token):
    content = as_official(small('test_resnet', token=token), 'test_resnet', decoder)
    assert kind_of_token(unwrap(content)) == token
    torch.save(content, tmp_path / 'w.pth')
    saved = read_saved(tmp_path / 'w.pth', model='test_resnet', input_size=64)
    assert saved.has_decoder and saved.options.token == token
    assert saved.network.image_fill == ('none' if token == 'replace' else 'mean')
    if token == 'residual':
        assert read_saved(tmp_path / 'w.pth', model='test_resnet', input_size=64, token='replace').options.token == 'replace'


def test_our_files_tell_of_a_gain_alone():
    assert kind_of_token(small('test_resnet').state_dict()) == 'gain'
    assert kind_of_token(small('test_resnet', token='replace').state_dict()) is None


def test_colour_weights_start_a_grey_pretraining():
    colour, grey = small('test_resnet'), small('test_resnet', in_chans=1)
    with pytest.raises(ValueError, match='--adapt_input_conv'):
        load_init(grey, {'model': colour.state_dict()})
    report = load_init(grey, {'model': colour.state_dict()}, adapt=True)
    assert 'decoder' in report.beside and report.adapted and ALONE in str(report)


def test_a_vit_starts_from_a_whole_file_of_another_size():
    a2mim, other = (build_a2mim('small_vit', size, token='residual') for size in (64, 96))
    report = load_init(other, as_official(randomise(a2mim), 'small_vit'))
    assert 'the positions and 3 tables of relative positions are resized from 4x4 patches to 6x6' in str(report)
    own = other.state_dict()
    assert own['encoder.cnn.pos_embed'].shape[1] == 37 and ALONE not in str(report)
    assert torch.equal(own['decoder.weight'], a2mim.decoder.weight)
    assert torch.equal(own['encoder.mask_token'], a2mim.encoder.mask_token)


# -- runs -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('model, changes', [('test_convnext', {}), ('small_vit', {'token': 'residual'})])
def test_a_run_starts_from_an_official_file_and_another_from_its_files(world, tmp_path, capsys, model, changes):
    options = A2MIMOptions(name='a', model=model, input_size=64, batch_size=8, epochs=1, lr=1e-4, workers=0, warmup_epochs=0.0,
                           data_path=str(world), run_dir=str(tmp_path / 'a'), **changes)
    a2mim = randomise(build_a2mim(**options.network))
    torch.save(as_official(a2mim, model), tmp_path / 'w.pth')
    folder = pretrain(replace(options, init=str(tmp_path / 'w.pth')))
    out = capsys.readouterr().out
    assert f'{tmp_path / "w.pth"}: matched' in out and ALONE not in out
    assert len(log_of(folder)[0]) == 2
    for file, is_whole in ((f'{model}_still_pretraining.pth', True), (f'{model}_1kpretrained.pth', False)):
        a2mim = build_a2mim(**options.network)
        state = torch.load(folder / file, weights_only=True)
        assert (ALONE in str(load_init(a2mim, folder / file))) != is_whole
        assert holds(a2mim, state['model']) if is_whole else holds(a2mim.encoder.cnn, state)
        cnn = timm.create_model(model, num_classes=3, **({'img_size': 64} if model == 'small_vit' else {}))
        assert 'matched' in str(load_classifier(cnn, folder / file, model, (64, 64)))
