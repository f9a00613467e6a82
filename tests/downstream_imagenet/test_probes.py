"""Probes: nearest neighbours, linear fits, and the linear probe of MAE."""
import pytest
import torch

from common.networks.create import create_cnn
from common.networks.load import load_classifier
from common.reliability.checkpoint import save
from common.training.optim import build_optimizer, set_schedule
from downstream_imagenet import knn, linear
from downstream_imagenet.classifier import LinearProbe
from downstream_imagenet.classifier import build_classifier as build
from downstream_imagenet.config import recommended
from downstream_imagenet.features import Features, accuracy, compute
from downstream_imagenet.features import Options as FeatureOptions
from downstream_imagenet.main import fine_tune
from tests.conftest import same
from tests.downstream_imagenet.runs import saved
from tests.terminal import as_stdout

# -- probes -----------------------------------------------------------------------------------------------------------

def test_knn_votes_by_hand():
    x = torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]])
    features = Features(x, torch.tensor([0, 0, 1, 1]), torch.tensor([[5.0, 0.2], [0.0, 3.0]]), torch.tensor([0, 1]), ['a', 'b'])
    (k, scores), = knn.votes(features, 2).items()
    assert k == 4
    cosine = torch.nn.functional.normalize(features.val_x) @ torch.nn.functional.normalize(x).T
    weight = (cosine / 0.07).exp()
    torch.testing.assert_close(scores, torch.stack([weight[:, :2].sum(1), weight[:, 2:].sum(1)], 1))


def test_features_are_those_of_evaluation_mode(labelled, tmp_path):
    """With the statistics of a batch, the features of an image would depend on the other images."""
    torch.manual_seed(0)
    cnn = create_cnn('your_convnet')
    for name, buffer in cnn.named_buffers():
        if name.endswith('running_mean'):
            buffer.normal_()
    save(tmp_path / 'w.pth', cnn.state_dict())
    few, many = (compute(FeatureOptions(data_path=str(labelled), model='your_convnet', input_size=32, workers=0,
                                        weights=str(tmp_path / 'w.pth'), batch_size=batch), say=lambda _: None)
                 for batch in (2, 24))
    torch.testing.assert_close(few.x, many.x, rtol=1e-4, atol=1e-5)
    assert few.x.std() > 0.01


def test_accuracy_by_hand():
    scores = torch.tensor([[9.0, 8, 7, 6, 5, 4, 3], [3, 4, 5, 6, 7, 8, 9]])
    assert accuracy(scores, torch.tensor([0, 0])) == (50.0, 50.0)
    assert accuracy(scores, torch.tensor([1, 2])) == (0.0, 100.0)


def test_the_linear_fit_is_the_minimum():
    torch.manual_seed(0)
    x, y = torch.randn(60, 4).double(), torch.randint(3, (60,))
    for penalty, (weight, bias) in zip((1.0, 0.01), linear.fit(x, y, 3, (1.0, 0.01))):
        weight, bias = weight.requires_grad_(), bias.requires_grad_()
        value = torch.nn.functional.cross_entropy(x @ weight.T + bias, y) + penalty / 2 * weight.square().sum()
        gradient = torch.autograd.grad(value, [weight, bias])
        assert max(g.abs().max() for g in gradient) < 1e-5


def test_folds_divide_each_class():
    y = torch.tensor([0] * 10 + [1] * 7)
    parts = linear.folds(y, 0)
    assert len(parts) == 5 and sorted(torch.cat([out for _, out in parts]).tolist()) == list(range(17))
    assert all(len(set(y[out].tolist())) == 2 and len(inside) + len(out) == 17 for inside, out in parts)
    assert linear.folds(torch.tensor([0, 0, 1]), 0) == [] and len(linear.folds(torch.tensor([0, 0, 1, 1]), 0)) == 2


@pytest.mark.parametrize('flags', [['--random'], ['--weights=w.pth']])
def test_probes_from_the_command_line(labelled, tmp_path, monkeypatch, capsys, flags):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / 'w.pth', create_cnn('your_convnet').state_dict())
    common = [f'--data_path={labelled}', '--model=your_convnet', '--input_size=32', '--workers=0', *flags]
    knn.main(common)
    linear.main(common)
    out = capsys.readouterr().out
    assert 'k-NN, k = 20: top-1' in out and 'linear probe: top-1' in out and 'chosen by 4-fold cross-validation' in out
    assert ('matched' in out) == (flags != ['--random'])
    with as_stdout() as terminal:
        knn.main(common)
        linear.main(common)
    shown = {text.split('  ')[0] for text in terminal.drawn}
    assert {'features, training', 'nearest neighbours', 'cross-validation'} <= shown
    assert out == '\n'.join(terminal.lines)  # nothing of it is left
    linear.main(['--mae', *common, '--name=p', '--bs=12', '--ep=2'])
    assert 'linear probe' in capsys.readouterr().out and saved(tmp_path / 'output_p')['config']['freeze']
    linear.main(['--mae', *common, '--name=p', '--bs=12', '--ep=4'])  # whose warm-up would be longer
    assert saved(tmp_path / 'output_p')['config']['epochs'] == 4


def test_a_linear_probe_trains_its_classifier_only():
    options = recommended(name='n', model='your_convnet', input_size=32, freeze=True, loss='ce')
    model = build(options, 3).train()
    assert isinstance(model, LinearProbe) and not model.cnn.training
    before = {k: v.clone() for k, v in model.cnn.state_dict().items()}
    optimizer = build_optimizer('lars', [{'params': [p for p in model.parameters() if p.requires_grad], 'decays': False}])
    set_schedule(optimizer, 0.1, 0.0)
    model(torch.randn(6, 3, 32, 32), torch.eye(3)[[0, 1, 2, 0, 1, 2]]).backward()
    weight = model.fc.weight.detach().clone()
    optimizer.step()
    assert same(dict(model.cnn.state_dict()), before) and not torch.equal(model.fc.weight, weight)


@pytest.mark.parametrize('given', [{}, {'random': True, 'timm': True}, {'weights': 'f', 'random': True}])
def test_probes_ask_for_one_kind_of_weights(given):
    with pytest.raises(ValueError, match='one of --weights=FILE, --random and --timm'):
        FeatureOptions(**given)


# -- what went wrong once ---------------------------------------------------------------------------------------------

def test_a_linear_probes_file_is_evaluated_and_fine_tuned(small, tmp_path, capsys):
    probe = fine_tune(small(freeze=True, opt='lars', ema=0.0, run_dir=str(tmp_path / 'probe'), epochs=1, warmup_epochs=0.0,
                            graph=True))
    assert '--graph is not used: LARS has its steps called off by the host' in capsys.readouterr().err
    file = str(probe / 'your_convnet_1kfinetuned_last.pth')
    assert fine_tune(small(eval=file))['model']['images'] == 26
    cnn = create_cnn('your_convnet', num_classes=12)
    loaded = load_classifier(cnn, file, 'your_convnet', (32, 32))
    assert not loaded.missing
    assert torch.equal(cnn.stages[0].conv1.weight, saved(probe)['model']['cnn.stages.0.conv1.weight'])


def test_mae_asks_for_one_kind_of_weights():
    for flags in ([], ['--random', '--weights=f']):
        with pytest.raises(SystemExit, match='one of --weights=FILE, --random and --timm'):
            linear.main(['--mae', '--data_path=D', *flags])


def test_mae_explains_its_options(capsys):
    with pytest.raises(SystemExit) as end:
        linear.main(['--mae', '--help'])
    assert end.value.code in (0, None) and '--data_path' in capsys.readouterr().out
