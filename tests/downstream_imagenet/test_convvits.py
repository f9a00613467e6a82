"""ConvViTs in fine-tuning, linear probing, k-NN and prediction, from files as a pretraining leaves them."""
import json

import pytest
import torch
from PIL import Image

import tests.small_convvit  # noqa: F401
from common.feature_maps import pooled_features
from common.networks.create import create_cnn
from common.training.optim import build_optimizer, parameter_groups, set_schedule
from downstream_imagenet import knn, linear
from downstream_imagenet.classifier import LinearProbe, build_classifier
from downstream_imagenet.config import recommended
from downstream_imagenet.data import training_transform
from downstream_imagenet.main import fine_tune, main
from downstream_imagenet.predict import main as predict_main
from downstream_imagenet.tuned import read_tuned
from tests.conftest import Stop, randomise, same, stop_after
from tests.downstream_imagenet.runs import saved


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory):
    """(a ConvViT of 64 px, a file of it without its last norm and classifier)."""
    torch.manual_seed(0)
    network = randomise(create_cnn('tiny_convvit'))
    state = {key: value for key, value in network.state_dict().items() if not key.startswith(('fc_norm.', 'head.'))}
    file = tmp_path_factory.mktemp('convvit') / 'w.pth'
    torch.save(state, file)
    return network.eval(), file


def flags(labelled, pretrained, *others):
    return [f'--data_path={labelled}', '--model=tiny_convvit', '--register=tests.small_convvit', '--workers=0',
            f'--weights={pretrained[1]}', *others]


@pytest.mark.parametrize('size', [64, 96])
def test_fine_tuning_with_the_papers_recipe(labelled, pretrained, tmp_path, monkeypatch, capsys, size):
    monkeypatch.chdir(tmp_path)
    main(['--name=t', *flags(labelled, pretrained), f'--input_size={size}', '--bs=16', '--ep=2', '--lr=1e-3'])
    out = capsys.readouterr().out
    for text in ('none of its own; that of convvit_base, under what was given', 'missing 4 (fc_norm.weight, fc_norm.bias, '
                 'head.weight, head.bias)', 'mixup 0.8 or CutMix 1', 'augmentation rand-m9-mstd0.5-inc1, erasing 0.25',
                 "layers (ConvMAE's), the share of the learning rate of each at a decay of 0.65",
                 'gradient not clipped'):
        assert text in out, text
    assert ('resized from 4x4 patches to 6x6' in out) == (size == 96)
    tuned = read_tuned(tmp_path / 'output_t')
    assert tuned.model.cnn.grid == (size // 16, size // 16) and tuned.options.lr_schedule == 'mae'
    assert tuned.model.logits(torch.zeros(1, 3, size, size)).shape == (1, 12)
    log = [json.loads(line) for line in (tmp_path / 'output_t/finetune_log.txt').read_text().splitlines()]
    found = fine_tune(recommended(name='e', model='tiny_convvit', data_path=str(labelled), input_size=size, workers=0,
                                  eval=str(tmp_path / 'output_t/tiny_convvit_1kfinetuned_last.pth')))
    assert found['model']['top1'] == pytest.approx(log[-1]['top1'])
    Image.new('RGB', (70, 50), (200, 40, 40)).save('red.png')
    predict_main(['output_t', '--register=tests.small_convvit', '--workers=0', 'red.png'])
    assert 'red.png' in capsys.readouterr().out


def test_the_classifier_starts_near_zero_and_the_positions_are_trained(pretrained):
    options = recommended(name='n', model='tiny_convvit', input_size=64)
    cnn = build_classifier(options, 1000).cnn
    assert cnn.head.weight.std().item() == pytest.approx(2e-5, rel=0.05) and not cnn.head.bias.any()
    assert cnn.pos_embed.requires_grad
    assert [type(block.drop_path).__name__ for block in (*cnn.blocks1, *cnn.blocks2)] == ['Identity', 'DropPath']


def test_features_are_the_mean_of_the_patches_behind_a_norm(pretrained):
    network, _ = pretrained
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        features = pooled_features(network, images)
        tokens = network.forward_features(images)
        torch.testing.assert_close(features, network.fc_norm(tokens.mean(1)))
        torch.testing.assert_close(network.head(features), network(images))
    fresh = create_cnn('tiny_convvit').eval()
    with torch.no_grad():
        features = pooled_features(fresh, images)
    torch.testing.assert_close(features.mean(1), torch.zeros(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(features.std(1, correction=0), torch.ones(2), rtol=0, atol=1e-3)


def test_a_probe_of_the_paper(pretrained):
    """What is trained of it is the classifier; LARS takes a trust ratio for its weight alone."""
    options = recommended(name='n', model='tiny_convvit', recipe='mae_probe', input_size=64)
    torch.manual_seed(0)
    probe = build_classifier(options, 1000).train()
    assert isinstance(probe, LinearProbe) and not probe.cnn.training
    assert probe.fc.weight.std().item() == pytest.approx(0.01, rel=0.05) and not probe.fc.bias.any()
    trained = {name: p for name, p in probe.named_parameters() if p.requires_grad}
    assert list(trained) == ['fc.weight', 'fc.bias'] and sum(p.numel() for p in trained.values()) == 97_000
    assert (probe.norm.eps, probe.norm.affine) == (1e-6, False)
    images, targets = torch.randn(6, 3, 64, 64), torch.eye(1000)[[1, 5, 7, 30, 70, 9]]
    optimizer = build_optimizer(options.opt, parameter_groups(probe, options.weight_decay))
    set_schedule(optimizer, 1.6, 0.0)
    expected = {name: (p.detach().clone(), torch.zeros_like(p)) for name, p in trained.items()}
    for _ in range(3):
        optimizer.zero_grad()
        probe(images, targets).backward()
        for name, p in trained.items():
            value, momentum = expected[name]
            trust = 0.001 * value.norm() / p.grad.norm() if p.ndim > 1 else 1.0
            momentum = 0.9 * momentum + trust * p.grad
            expected[name] = value - 1.6 * momentum, momentum
        optimizer.step()
        for name, p in trained.items():
            torch.testing.assert_close(p.detach(), expected[name][0], rtol=1e-4, atol=1e-7)


def test_the_crops_of_a_probe_are_drawn_once():
    crop, = training_transform(recommended(name='n', model='tiny_convvit', recipe='mae_probe', input_size=64)).transforms
    assert (crop.scale, crop.flip, crop.interpolation, crop.retries) == ((0.08, 1.0), True, 'bicubic', False)
    fine_tuning = training_transform(recommended(name='n', model='tiny_convvit', input_size=64)).transforms[0]
    assert (fine_tuning.scale, fine_tuning.retries) == ((0.08, 1.0), True)


@pytest.mark.parametrize('size', [64, 96])
def test_a_linear_probe_is_trained_measured_and_read_back(small, labelled, pretrained, tmp_path, monkeypatch, capsys, size):
    monkeypatch.chdir(tmp_path)
    main(['--name=p', *flags(labelled, pretrained, f'--input_size={size}'), '--recipe=mae_probe', '--bs=8', '--ep=2', '--lr=1'])
    out = capsys.readouterr().out
    assert 'mae_probe, under what was given' in out and '(frozen features)' in out and 'to 1 of the area, drawn once' in out
    assert ('resized from 4x4 patches to 6x6' in out) == (size == 96)
    file = tmp_path / 'output_p/tiny_convvit_1kfinetuned_last.pth'
    state = saved(tmp_path / 'output_p', model='tiny_convvit')['model']
    kept = {key.removeprefix('cnn.'): value for key, value in state.items() if key.startswith('cnn.blocks')}
    assert same(kept, {key: value for key, value in pretrained[0].state_dict().items() if key.startswith('blocks')})
    found = fine_tune(small(model='tiny_convvit', input_size=size, eval=str(file), ema=0.0))
    assert 0 <= found['model']['top1'] <= 100
    tuned = read_tuned(file)
    assert tuned.model.logits(torch.zeros(2, 3, size, size)).shape == (2, 12)


def test_neighbours_and_a_linear_fit(labelled, pretrained, capsys):
    knn.main(flags(labelled, pretrained, '--input_size=96'))
    linear.main(flags(labelled, pretrained, '--input_size=64'))
    out = capsys.readouterr().out
    assert 'k-NN, k = 20: top-1' in out and 'resized from 4x4 patches to 6x6' in out and 'linear probe: top-1' in out


def test_images_that_do_not_fit_are_refused(small):
    with pytest.raises(ValueError, match='tiny_convvit cannot be made for images of 60x60 .*multiples of 16'):
        fine_tune(small(model='tiny_convvit', input_size=60))
    with pytest.raises(ValueError, match='cannot take images of 72x72 .*give another --test_size'):
        fine_tune(small(model='tiny_convvit', input_size=64, test_size=72))


def test_a_killed_run_goes_on_to_the_same_end_to_the_last_bit(labelled, pretrained, tmp_path, monkeypatch):
    def options(name):
        return recommended(name=name, run_dir=str(tmp_path / name), data_path=str(labelled), model='tiny_convvit', workers=0,
                           input_size=96, finetune_from=str(pretrained[1]), batch_size=12, epochs=2, lr=1e-3,
                           save_every_steps=3)
    whole = fine_tune(options('whole'))
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_after(patch, 3)
        fine_tune(options('cut'))
    fine_tune(options('cut'))
    one, other = (saved(folder, model='tiny_convvit') for folder in (whole, tmp_path / 'cut'))
    assert one['step'] == 8 and all(same(one[key], other[key]) for key in ('step', 'sums', 'model', 'optimizer', 'best'))
