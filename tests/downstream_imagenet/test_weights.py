"""Files of weights that fine-tuning starts from."""
import re

import pytest
import timm
import torch
import torchvision
from timm.models.beit import Beit
from timm.models.swin_transformer_v2 import SwinTransformerV2

from common.networks.classifier import head_parameters
from common.networks.create import create_cnn
from common.networks.load import load_classifier
from common.reliability.checkpoint import save
from tests.conftest import randomise

# -- weights ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(('name', 'expected'), [
    ('resnet18', ['fc.weight', 'fc.bias']),
    ('test_convnext', ['head.norm.weight', 'head.norm.bias', 'head.fc.weight', 'head.fc.bias']),
    ('your_convnet', ['head.weight', 'head.bias']), ('mobilenetv3_small_050', [
        'conv_head.weight', 'conv_head.bias', 'classifier.weight', 'classifier.bias']),
])
def test_the_head_is_what_the_features_do_not_need(name, expected):
    assert head_parameters(timm.create_model(name), (64, 64)) == expected


def test_layers_whose_weights_attention_takes_itself_are_no_head():
    """BEiT's attention and Swin v2's do not call their layer `qkv`. A file without its weights must not count as whole."""
    beit = Beit(img_size=32, patch_size=16, embed_dim=32, depth=1, num_heads=2, num_classes=5)
    assert head_parameters(beit, (32, 32)) == ['fc_norm.weight', 'fc_norm.bias', 'head.weight', 'head.bias']
    swin = SwinTransformerV2(img_size=64, embed_dim=16, depths=(1, 1), num_heads=(2, 2), window_size=4, num_classes=5)
    assert head_parameters(swin, (64, 64)) == ['head.fc.weight', 'head.fc.bias']


@pytest.mark.parametrize('name', ['convnext_tiny', 'resnet18', 'densenet121'])
def test_torchvision_weights(name):
    theirs = randomise(getattr(torchvision.models, name)()).eval()
    ours = create_cnn(name).eval()
    loaded = load_classifier(ours, theirs.state_dict(), name, (64, 64))
    assert not loaded.missing and not loaded.left_out
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-3, atol=1e-3 * theirs(x).abs().max().item())


def test_every_kind_of_file(tmp_path):
    donor = randomise(create_cnn('your_convnet', num_classes=12))
    state = donor.state_dict()
    body = {k: v for k, v in state.items() if not k.startswith('head.')}
    kinds = {'plain': state, 'without head': body, 'other classes': create_cnn('your_convnet').state_dict() | body,
             'wrapped': {'model': state}, 'ours, whole': {'model': {f'encoder.cnn.{k}': v for k, v in state.items()}},
             'official, fine-tuned': {'module': {f'module.{k}': v for k, v in state.items()}, 'epoch': torch.tensor(3)}}
    for kind, content in kinds.items():
        save(tmp_path / 'w.pth', content)
        cnn = create_cnn('your_convnet', num_classes=12)
        loaded = load_classifier(cnn, str(tmp_path / 'w.pth'), 'your_convnet', (32, 32))
        assert all(torch.equal(cnn.state_dict()[k], v) for k, v in body.items()), kind
        assert bool(loaded.missing) == (kind == 'without head') and bool(loaded.left_out) == (kind == 'other classes'), kind
    save(tmp_path / 'w.pth', {k: v for k, v in state.items() if k != 'stages.1.conv1.weight'})
    with pytest.raises(ValueError, match='missing: stages.1.conv1.weight'):
        load_classifier(cnn, str(tmp_path / 'w.pth'), 'your_convnet', (32, 32))


# -- what went wrong once ---------------------------------------------------------------------------------------------

def test_torchvisions_densenet_files_have_older_names():
    theirs = torchvision.models.densenet121().state_dict()
    file = {re.sub(r'(denselayer\d+\.(?:norm|conv))([12])\.', r'\1.\2.', key): value for key, value in theirs.items()}
    assert file.keys() != theirs.keys()
    assert not load_classifier(create_cnn('densenet121'), file, 'densenet121', (64, 64)).missing
