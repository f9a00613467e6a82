"""Files of MAE, ConvMAE and of programs built on them, by the names and shapes of the authors' program."""
import argparse

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import LayerScale, VisionTransformer
from torch import nn

from common.convvit import ConvViT
from common.networks.classifier import head_parameters, num_classes_in
from common.networks.create import without_values
from common.networks.guess import guess_model
from common.networks.keys import unwrap
from common.networks.load import load_classifier
from tests.common.networks.test_weights import holds, randomised, under
from tests.conftest import randomise
from tests.pretrain.official_convmae import convvit as convvit_of
from tests.pretrain.official_convmae import golden

HEAD = {'head.weight', 'head.bias', 'fc_norm.weight', 'fc_norm.bias'}
SHAPE = {'widths': (32, 48, 96), 'depths': (1, 2, 3), 'heads': 4}  # of the small golden case


def drawn(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.rand(shape, generator=generator) for key, shape in shapes.items()}


def as_checkpoint(state):
    """What the authors' programs write around the weights."""
    options = argparse.Namespace(model='convmae_convvit_base_patch16', mask_ratio=0.75, epochs=1600)
    return {'model': state, 'optimizer': {'state': {0: {'step': 3, 'exp_avg': torch.ones(3)}}, 'param_groups': [{'lr': 1e-4}]},
            'epoch': 3, 'scaler': {'scale': 65536.0, '_growth_tracker': 0}, 'args': options}


def convvit(size=224, **changes):
    return ConvViT(size, **{**SHAPE, 'num_classes': 10, **changes})


def filled(tmp_path, content, cnn=None, size=(224, 224)):
    """(the network, the report) of a file with a content."""
    torch.save(content, tmp_path / 'w.pth')
    cnn = convvit(size) if cnn is None else cnn
    return cnn, load_classifier(cnn, tmp_path / 'w.pth', 'convvit_base', size)


@pytest.mark.parametrize('case', ['small', 'base'])
def test_a_whole_pretraining_file_leaves_out_what_the_authors_program_leaves_out(case):
    want = golden(f'convmae_{case}_224')
    tuned = want['finetune']
    cnn = without_values(lambda: convvit_of(want, tuned['num_classes'])).to_empty(device='cpu')
    assert {key: list(value.shape) for key, value in cnn.state_dict().items()} == tuned['keys']
    state = {key: torch.full(shape, float(number)) for number, (key, shape) in enumerate(want['keys'].items())}
    report = load_classifier(cnn, as_checkpoint(state), 'convvit_base', (224, 224))
    assert holds(cnn, {key: state[key] for key in report.matched}) and len(report.matched) == len(tuned['keys']) - 4
    assert set(report.missing) == set(tuned['missing_from_pretraining']) == HEAD
    assert set(report.left_out) == want['keys'].keys() - tuned['keys'].keys()
    assert len(report.left_out) == tuned['left_over_of_pretraining']
    assert f'{len(report.left_out)} of those left out are for pretraining alone: ' in str(report)
    assert set(report.beside) == {'optimizer'}


def encoder_of(state):
    """The entries of the released file, without norm, fusion and decoder."""
    own = convvit().state_dict()
    return {key: value for key, value in state.items() if key in own}


@pytest.mark.parametrize('with_norm', [False, True])
def test_the_released_file_of_the_encoder(tmp_path, with_norm):
    state = drawn(golden('convmae_small_224')['keys'])
    encoder = encoder_of(state) | ({key: state[key] for key in ('norm.weight', 'norm.bias')} if with_norm else {})
    cnn, report = filled(tmp_path, {'model': encoder})
    assert holds(cnn, encoder_of(state)) and set(report.missing) == HEAD
    assert set(report.left_out) == ({'norm.weight', 'norm.bias'} if with_norm else set())


def test_a_fine_tuned_file_fills_everything(tmp_path):
    state = randomised(convvit())
    cnn, report = filled(tmp_path, as_checkpoint(state))
    assert holds(cnn, state) and not report.missing and not report.left_out
    with pytest.raises(ValueError, match='1 entries differ:\n  not in the network: norm.weight'):
        filled(tmp_path, {'model': {**state, 'norm.weight': torch.ones(96)}})  # it has two norms


def as_probe(cnn, classes=10):
    """(the entries of a probe of the authors' program on a network, its classifier)."""
    head = nn.Sequential(nn.BatchNorm1d(cnn.embed_dim, affine=False, eps=1e-6), nn.Linear(cnn.embed_dim, classes))
    head.load_state_dict(randomised(head))
    rest = {key: value for key, value in cnn.state_dict().items() if not key.startswith('head.')}
    return rest | under('head.', head.state_dict()), head.double().eval()


@pytest.mark.parametrize('make', [convvit, lambda: timm.create_model('test_vit', num_classes=10)])
def test_a_probe_is_read_as_a_linear_classifier(tmp_path, make):
    donor = make().double().eval()
    state, head = as_probe(donor)
    torch.save(as_checkpoint(state), tmp_path / 'w.pth')
    cnn = make().double()
    size = (224, 224) if isinstance(cnn, ConvViT) else (160, 160)
    assert num_classes_in(unwrap(as_checkpoint(state)), cnn, ('head.weight', 'head.bias')) == 10
    report = load_classifier(cnn.float(), tmp_path / 'w.pth', 'x', size)
    assert not report.missing and not report.left_out and "'head.0.', is multiplied into it" in str(report)
    images = torch.rand(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        logits = cnn.double().eval()(images)
        expected = head(donor.forward_head(donor.forward_features(images), pre_logits=True))
    assert torch.allclose(logits, expected, rtol=1e-5, atol=1e-5 * expected.abs().max())


@pytest.mark.parametrize('changes', [{'num_classes': 7}, {'num_classes': 10, 'more': 'head.0.weight'}])
def test_a_probe_for_other_classes_or_of_another_kind_fills_the_network(tmp_path, changes):
    state, _ = as_probe(convvit())
    more = {changes['more']: torch.ones(96)} if 'more' in changes else {}
    cnn, report = filled(tmp_path, {**state, **more}, convvit(num_classes=changes['num_classes']))
    assert holds(cnn, encoder_of(state)) and {key.split('.')[0] for key in report.left_out} == {'head'}


@pytest.mark.parametrize('prefix', ['backbone.bottom_up.', 'backbone.', 'module.'])
@pytest.mark.parametrize('grid', [64, 32])
def test_detectors_and_segmenters(tmp_path, prefix, grid):
    encoder = encoder_of(drawn(golden('convmae_small_224')['keys']))
    encoder['pos_embed'] = torch.rand(1, grid ** 2, 96)
    tables = {'rel_pos_bias.relative_position_bias_table': torch.ones(31 * 31, 4), 'blocks3.0.attn.rel_pos_h': torch.ones(9, 9),
              'blocks3.0.attn.relative_position_index': torch.ones(9, 9)}
    outer = prefix.removesuffix('bottom_up.') if prefix.endswith('bottom_up.') else ''
    beside = {f'{outer}fpn_lateral2.weight': torch.ones(1), 'decode_head.conv_seg.weight': torch.ones(1)}
    content = {'model': under(prefix, encoder | tables) | beside}
    cnn, report = filled(tmp_path, content, size=(96, 160))
    assert set(report.missing) == HEAD and set(report.left_out) == tables.keys()
    assert f'the positions are resized from {grid}x{grid} patches to 6x10' in str(report)
    assert '3 of those left out are relative positions' in str(report)
    table = encoder.pop('pos_embed').transpose(1, 2).unflatten(2, (grid, grid))
    expected = F.interpolate(table, (6, 10), mode='bicubic', align_corners=False).flatten(2).transpose(1, 2)
    assert holds(cnn, encoder) and torch.equal(cnn.pos_embed, expected)


@pytest.mark.parametrize('names', [('gamma_1', 'gamma_2'), ('ls1.gamma', 'ls2.gamma')])
def test_layer_scales_and_other_layers_of_a_segmenter(tmp_path, names):
    donor = randomise(convvit()).eval()
    scales = [torch.rand(96) for _ in range(6)]
    state = donor.state_dict() | {f'blocks3.{i // 2}.{names[i % 2]}': scale for i, scale in enumerate(scales)}
    for i, block in enumerate(donor.blocks3):
        block.ls1, block.ls2 = (LayerScale(96) for _ in range(2))
        block.ls1.gamma.data, block.ls2.gamma.data = scales[2 * i:2 * i + 2]
    more = {'blocks3.0.attn.relative_position_bias_table': torch.ones(729, 4), 'last.0.weight': torch.ones(9, 96, 3, 3)}
    cnn, report = filled(tmp_path, {'state_dict': under('backbone.', state | more)})
    assert set(report.left_out) == more.keys() and '1 of those left out are other layers of it: last' in str(report)
    assert 'its layer scales are multiplied' in str(report)
    with torch.no_grad():
        images = torch.randn(1, 3, 64, 96)
        torch.testing.assert_close(cnn.eval()(images), donor(images), rtol=1e-4, atol=1e-4)
    for wrong in ('cls_token', 'blocks1.0.gamma_1', 'blocks3.0.gamma_3'):
        with pytest.raises(ValueError, match=f'1 entries differ:\n  not in the network: {wrong}'):
            filled(tmp_path, under('backbone.', state | more | {wrong: torch.ones(96)}))


def test_positions_are_resized_as_by_the_network(tmp_path):
    donor = convvit()
    cnn, _ = filled(tmp_path, donor.state_dict(), size=(128, 96))
    donor.set_input_size((128, 96))
    assert holds(cnn, donor.state_dict())
    cnn, report = filled(tmp_path, donor.state_dict(), size=(256, 192))  # 8x6 = 48, no square, has these proportions
    donor.set_input_size((256, 192))
    assert holds(cnn, donor.state_dict()) and 'from 8x6 patches to 16x12' in str(report)
    with pytest.raises(ValueError, match=r'pos_embed is \(1, 192, 96\)'):
        filled(tmp_path, donor.state_dict())


def test_the_second_version_is_refused_with_the_reason(tmp_path):
    state = encoder_of(drawn(golden('convmae_small_224')['keys']))
    more = {'cls_token': torch.ones(1, 1, 96), 'pos_embed': torch.ones(1, 197, 96)}
    cnn = convvit()
    before = {key: value.clone() for key, value in cnn.state_dict().items()}
    with pytest.raises(ValueError, match='(?s)not in the network: cls_token .*no class token: .*MR-MCMAE'):
        filled(tmp_path, {'model': {**state, **more}}, cnn)
    for key in ('blocks1.9.conv1.weight', 'decoder.weight', 'target_norm.weight'):
        with pytest.raises(ValueError, match=f'1 entries differ:\n  not in the network: {key}'):
            filled(tmp_path, {'model': {**state, key: torch.ones(1)}}, cnn)
    with pytest.raises(ValueError, match='missing: patch_embed4.bias'):
        filled(tmp_path, {'model': {key: value for key, value in state.items() if key != 'patch_embed4.bias'}}, cnn)
    assert holds(cnn, before)


def test_what_may_be_missing_is_the_classifier_and_its_norm():
    assert set(head_parameters(convvit(), (224, 224))) == HEAD
    assert set(head_parameters(timm.create_model('test_vit'), (160, 160))) == {'head.weight', 'head.bias'}


# -- MAE's own files, for timm's ViTs -----------------------------------------------------------------------------------

VIT = {'img_size': 64, 'embed_dim': 32, 'depth': 2, 'num_heads': 4, 'num_classes': 5}


def mae_state(vit):
    """The entries of MAE's own pretraining file for a ViT."""
    width, grid = 24, vit.patch_embed.num_patches
    block = VisionTransformer(**{**VIT, 'embed_dim': width}).blocks.state_dict()
    decoder = {'mask_token': torch.ones(1, 1, width), 'decoder_pos_embed': torch.ones(1, grid + 1, width),
               'decoder_embed.weight': torch.ones(width, 32), 'decoder_embed.bias': torch.ones(width),
               **under('decoder_blocks.', block), 'decoder_norm.weight': torch.ones(width),
               'decoder_norm.bias': torch.ones(width), 'decoder_pred.weight': torch.ones(768, width),
               'decoder_pred.bias': torch.ones(768)}
    return {key: value for key, value in randomised(vit).items() if not key.startswith('head.')} | decoder


@pytest.mark.parametrize('size', [64, 96])
def test_a_pretraining_file_of_mae(tmp_path, size):
    state = mae_state(VisionTransformer(**VIT))
    vit, report = filled(tmp_path, as_checkpoint(state), VisionTransformer(**{**VIT, 'img_size': size}), (size, size))
    own = vit.state_dict()
    assert holds(vit, {key: value for key, value in state.items() if key in own and key != 'pos_embed'})
    assert set(report.missing) == {'head.weight', 'head.bias'} and set(report.left_out) == state.keys() - own.keys()
    assert ('resized from 4x4 patches to 6x6' in str(report)) == (size == 96)


def test_a_vit_that_classifies_by_the_mean_starts_with_the_norm_of_the_tokens(tmp_path):
    state = mae_state(VisionTransformer(**VIT))
    vit, report = filled(tmp_path, {'model': state}, VisionTransformer(**VIT, global_pool='avg'), (64, 64))
    assert torch.equal(vit.fc_norm.weight, state['norm.weight']) and 'starts as the pretrained norm' in str(report)
    assert set(report.missing) == {'head.weight', 'head.bias'} and 'norm.weight' not in report.left_out


def test_a_fine_tuned_vit_that_classifies_by_the_mean_is_for_such_a_vit(tmp_path):
    state = randomised(VisionTransformer(**VIT, global_pool='avg'))
    vit, report = filled(tmp_path, as_checkpoint(state), VisionTransformer(**VIT, global_pool='avg'), (64, 64))
    assert holds(vit, state) and not report.missing and not report.left_out
    with pytest.raises(ValueError, match="(?s)missing: norm.weight .*register one that is made with global_pool='avg'"):
        filled(tmp_path, as_checkpoint(state), VisionTransformer(**VIT), (64, 64))


def test_a_mask_token_without_a_decoder_is_another_method_s(tmp_path):
    state = randomised(VisionTransformer(**VIT))
    vit, report = filled(tmp_path, {**state, 'mask_token': torch.ones(1, 32)}, VisionTransformer(**VIT), (64, 64))
    assert holds(vit, state) and not report.left_out and report.beside == ('mask_token',)


def test_a_decoder_beside_another_network_is_refused(tmp_path):
    state = randomised(timm.create_model('test_resnet')) | {'decoder_pred.weight': torch.ones(1)}
    with pytest.raises(ValueError, match='not in the network: decoder_pred.weight'):
        filled(tmp_path, state, timm.create_model('test_resnet'), (64, 64))


@pytest.mark.parametrize('name', ['convvit_small', 'convvit_base', 'vit_base_patch16_224',
                                  pytest.param('convvit_large', marks=pytest.mark.slow),
                                  pytest.param('convvit_huge', marks=pytest.mark.slow),
                                  pytest.param('vit_large_patch16_224', marks=pytest.mark.slow),
                                  pytest.param('vit_huge_patch14_224', marks=pytest.mark.slow)])
def test_guessing_a_network(name):
    state = without_values(lambda: timm.create_model(name)).state_dict()
    decoder = {f'decoder_blocks.{i}.attn.qkv.weight': torch.ones(24, 8) for i in range(12)}
    for found in (state, decoder | under('encoder.cnn.', state), under('backbone.bottom_up.', state), decoder | state):
        assert guess_model(found) == name
    assert guess_model({key: value for key, value in state.items() if '.3.' not in key}) is None
