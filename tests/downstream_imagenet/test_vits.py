"""ViTs in fine-tuning, linear probing, k-NN and prediction, from weights that A2MIM pretrained."""
import pytest
import torch

import tests.small_vit  # noqa: F401
from common.feature_maps import pooled_features
from common.networks.create import create_cnn
from common.networks.openmmlab import to_openmmlab
from common.training.layer_decay import layers_of, parameter_groups
from downstream_imagenet import knn, linear
from downstream_imagenet.main import fine_tune
from downstream_imagenet.tuned import read_tuned
from pretrain.a2mim import build_a2mim
from tests.common.networks.test_weights import under
from tests.conftest import randomise


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory):
    """(an A2MIM of 64 px, a whole official file of it)."""
    a2mim = randomise(build_a2mim('small_vit', 64, token='residual'))
    network = {key: value for key, value in a2mim.encoder.cnn.state_dict().items() if not key.startswith('head.')}
    keys = under('backbone.', to_openmmlab(network)) | {
        'backbone.mask_token': a2mim.encoder.mask_token.data.reshape(1, 1, -1),
        'neck.decoder_pred.0.weight': a2mim.decoder.weight.data, 'neck.decoder_pred.0.bias': a2mim.decoder.bias.data}
    file = tmp_path_factory.mktemp('vit') / 'w.pth'
    torch.save({'meta': {'epoch': 800}, 'state_dict': keys}, file)
    return a2mim, file


@pytest.mark.parametrize('size', [64, 96])
def test_fine_tuning_from_pretrained_weights(small, pretrained, capsys, size):
    _, file = pretrained
    folder = fine_tune(small(model='small_vit', input_size=size, finetune_from=str(file), drop_path=0.1, layer_decay=0.65,
                             opt='adamw', lr=1e-3, epochs=1, warmup_epochs=0.0))
    out = capsys.readouterr().out
    assert 'besides, not loaded' in out and ('resized from 4x4 patches to 6x6' in out) == (size == 96)
    tuned = read_tuned(folder)
    assert tuned.model.cnn.patch_embed.grid_size == (size // 16, size // 16)
    assert tuned.model.logits(torch.zeros(1, 3, size, size)).shape == (1, 12)
    fine_tune(small(model='small_vit', input_size=size, eval=str(folder / 'small_vit_1kfinetuned_last.pth')))


def test_layer_decay_of_a_vit():
    """Section 8: n = depth + 1; embeddings 0.65 ** n, block i 0.65 ** (n - 1 - i), the rest 1."""
    cnn = create_cnn('small_vit', num_classes=3)
    layers, last, _ = layers_of(cnn)
    assert last == 4
    names = {id(parameter): name for name, parameter in cnn.named_parameters()}
    shares = {names[id(p)]: group['lr_scale'] for group in parameter_groups(cnn, 0.05, 0.65) for p in group['params']}
    assert shares.keys() == layers.keys()
    for name, share in shares.items():
        block = int(name.split('.')[1]) if name.startswith('blocks.') else None
        is_rest = name.startswith(('fc_norm.', 'head.'))
        expected = 1 if is_rest else 0.65 ** 4 if block is None else 0.65 ** (4 - 1 - block)
        assert share == pytest.approx(expected), name


def test_features_are_the_mean_of_the_patches():
    cnn = randomise(create_cnn('small_vit', input_size=64)).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        features = pooled_features(cnn, images)
        torch.testing.assert_close(features, cnn.fc_norm(cnn.forward_features(images)[:, 1:].mean(1)))
        torch.testing.assert_close(cnn.head(features), cnn(images))
        vit = create_cnn('test_vit').eval()  # its norm is over the tokens
        torch.testing.assert_close(pooled_features(vit, images), vit.forward_features(images)[:, 1:].mean(1))


def test_neighbours_by_a_vit(labelled, pretrained, capsys):
    knn.main([*probe(labelled, pretrained)])
    out = capsys.readouterr().out
    assert 'k-NN, k = 20: top-1' in out and 'resized from 4x4 patches to 6x6' in out


@pytest.mark.slow
def test_linear_probes_of_a_vit(labelled, pretrained, small, capsys):
    linear.main([*probe(labelled, pretrained)])
    assert 'linear probe: top-1' in capsys.readouterr().out
    fine_tune(small(model='small_vit', input_size=64, finetune_from=str(pretrained[1]), freeze=True, opt='lars', epochs=1,
                    warmup_epochs=0.0))


def probe(labelled, pretrained):
    """The words of a probe with images of another size than the weights."""
    return (f'--data_path={labelled}', '--model=small_vit', '--input_size=96', '--workers=0', f'--weights={pretrained[1]}',
            '--register=tests.small_vit')


def test_prediction_with_an_official_fine_tuned_file(tmp_path):
    """The classifier is beside the network there, and the norm over the mean is called ln2."""
    cnn = randomise(create_cnn('small_vit', num_classes=5))
    state = to_openmmlab({key: value for key, value in cnn.state_dict().items() if not key.startswith('head.')})
    keys = under('backbone.', {key.replace('ln1.', 'ln2.') if key.startswith('ln1.') else key: value
                               for key, value in state.items()})
    keys |= {'head.fc.weight': cnn.head.weight.data, 'head.fc.bias': cnn.head.bias.data}
    torch.save({'state_dict': keys}, tmp_path / 'w.pth')
    tuned = read_tuned(tmp_path / 'w.pth', model='small_vit', input_size=64)
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(tuned.model.logits(images), cnn.eval()(images))
