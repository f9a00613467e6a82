"""The shift of BatchNorm's statistics: worked by hand, and on the weights of a small pretraining."""
import json
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from benchmarks.norm_shift import Moments, Options, Pooled, estimate, figures, main, measure, sample
from common.cli import parse
from downstream_imagenet import knn


class TwoNorms(nn.Module):
    """Two BatchNorms of one channel, one behind the other, a third one that does not run, and dropout."""

    def __init__(self):
        super().__init__()
        self.first = nn.BatchNorm2d(1, eps=1e-9)
        self.second = nn.BatchNorm2d(1, eps=1e-9)
        self.unused = nn.BatchNorm2d(1)
        self.dropout = nn.Dropout(0.9)

    def forward_features(self, x):
        return self.dropout(self.second(self.first(x)))


def ones_and_fives(number):
    """Two batches of so many images (B, 1, 8, 8), whose halves are 1 and 5: mean 3, variance 4."""
    images = torch.ones(number, 1, 8, 8)
    images[:, :, 4:] = 5
    return iter([images, images])


def approx(shift, ratio, log2):
    # torch estimates variances with n - 1, for 64 n pixels
    return pytest.approx({'mean_shift': shift, 'std_ratio': ratio, 'log2_std_ratio': log2}, abs=1e-3)


def test_figures_by_hand():
    mean, var = torch.tensor([1.0, 0, 0]), torch.tensor([3.0, 0, 15])
    whole_mean, whole_var = torch.tensor([3.0, 0, 4]), torch.tensor([0.0, 3, 3])
    # With eps = 1 the deviations are 2, 1, 4 against 1, 2, 2.
    found = figures(mean, var, whole_mean, whole_var, 1)
    assert found == pytest.approx({'mean_shift': (2 + 0 + 2) / 3, 'std_ratio': 2, 'log2_std_ratio': 1})


def test_a_norm_is_measured_with_the_inputs_that_it_has_in_evaluation():
    """The first norm subtracts 1, its running mean, although the mean of these images is 3. So the inputs of
    the second have mean 2 and variance 4 in evaluation, but 0 and 1 where the first uses those of a batch.
    """
    cnn = TwoNorms()
    cnn.first.running_mean.fill_(1)
    results = measure(cnn, nullcontext, lambda: ones_and_fives(16))
    first, second = results['layers']
    assert results['images'] == 32 and [first['name'], second['name']] == ['first', 'second']
    of_first, of_second = first.pop('by_layer'), second.pop('by_layer')
    assert {key: first[key] for key in of_first} == approx(1, 0.5, 1) == of_first
    assert {key: second[key] for key in of_second} == approx(1, 0.5, 1)
    assert of_second == approx(0, 1, 0)
    of_all = results['mean'].pop('by_layer')
    assert results['mean'] == approx(1, 0.5, 1) and of_all == approx(0.5, 0.75, 0.5)


def test_moments_of_parts_are_those_of_the_whole():
    torch.manual_seed(0)
    x = torch.randn(7, 3, 4, 5) * torch.arange(1, 8).view(7, 1, 1, 1) + torch.arange(7).view(7, 1, 1, 1)
    moments = Moments()
    for part in x.split([1, 4, 2]):
        moments.add(part)
    var, mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(moments.mean, mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(moments.var, var, rtol=1e-5, atol=1e-6)


def test_estimating_changes_the_statistics_of_norms_that_run_and_nothing_else():
    cnn = TwoNorms()
    cnn.unused.running_mean.fill_(7)
    model = Pooled(cnn, nullcontext)
    cnn.second.running_mean.fill_(2)
    before = {key: value.clone() for key, value in cnn.state_dict().items()}
    estimate(model, ones_and_fives(16), ['first', 'second'])
    after = cnn.state_dict()
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    kept = {key for key in after if key.startswith('unused') or key.endswith(('weight', 'bias'))}
    assert changed == after.keys() - kept
    torch.testing.assert_close(after['first.running_mean'], torch.tensor([3.0]))
    assert not any(module.training for module in cnn.modules())


def test_only_norms_are_in_training_mode_while_statistics_are_estimated():
    cnn = TwoNorms()
    Pooled(cnn, nullcontext).train()
    assert [name for name, module in cnn.named_modules() if module.training] == ['first', 'second', 'unused']


def words(world, *more):
    return [f'--data_path={world}', '--model=your_convnet', '--input_size=32', '--batch_size=8',
            '--workers=0', *more]


def test_estimated_weights_fit_whole_images_and_are_read_by_the_probes(world, finished, tmp_path, capsys):
    weights, estimated = finished / 'your_convnet_1kpretrained.pth', tmp_path / 'estimated.pth'
    files = [tmp_path / 'before.json', tmp_path / 'after.json']
    main(words(world, f'--weights={weights}', f'--estimated={estimated}', f'--json={files[0]}'))
    main(words(world, f'--weights={estimated}', f'--json={files[1]}'))
    before, after = (json.loads(file.read_text()) for file in files)
    first = [results['layers'][0] for results in (before, after)]
    assert first[0]['mean_shift'] > 0.02 and first[0]['log2_std_ratio'] > 0.02
    # Not 0: the average over batches of their variances lacks the variance between batches.
    assert first[1]['mean_shift'] < 1e-3 and first[1]['log2_std_ratio'] < first[0]['log2_std_ratio']
    assert after['mean']['by_layer']['mean_shift'] < 1e-5
    assert after['mean']['mean_shift'] < before['mean']['mean_shift'] / 2
    out = capsys.readouterr().out
    assert 'mean over layers' in out and '40 whole training images' in out and 'stages.0.bn1' in out

    old, new = (torch.load(file, weights_only=True) for file in (weights, estimated))
    assert old.keys() == new.keys()
    statistics = {key for key in old if key.endswith(('running_mean', 'running_var', 'num_batches_tracked'))}
    assert {key for key in old if not torch.equal(old[key], new[key])} == statistics
    knn.main(words(world, f'--weights={estimated}'))
    assert f'matched {len(new)} entries, missing 0' in capsys.readouterr().out


def test_the_sample_is_drawn_by_the_seed_in_whole_batches(world):
    def indices(*more):
        return sample(parse(Options, 'x', '', words(world, '--random', '--images=21', *more))).images.indices.tolist()

    assert len(set(indices())) == 16 and indices() == indices() != indices('--seed=1')
    assert indices() != sorted(indices())
    assert len(indices('--batch_size=64')) == 21


def test_a_network_without_batchnorm_is_refused(world):
    arguments = words(world, '--random')
    arguments[1] = '--model=test_convnext'
    with pytest.raises(SystemExit, match='^error: test_convnext has no BatchNorm with running statistics'):
        main(arguments)


@pytest.mark.parametrize(('more', 'said'), [
    (['--random', '--images=1'], 'images must be 2 or more, not 1'),
    (['--random', '--batch_size=1'], 'batch_size must be 2 or more, not 1'),
    (['--random', '--json=nowhere/a.json'], 'cannot write --json=nowhere/a.json'),
    (['--weights=a.pth', '--estimated=./a.pth'], 'would be lost'),
    (['--weights=a.pth:ema', '--estimated=a.pth'], 'would be lost'),
    ([], 'one of --weights=FILE, --random and --timm')])
def test_wrong_options_are_refused_before_the_images_are_read(more, said, capsys):
    with pytest.raises(SystemExit) as error:
        main(words('nowhere', *more))
    assert error.value.code == 2 and said in capsys.readouterr().err


def test_a_file_that_is_not_there_is_named(world, tmp_path):
    with pytest.raises(SystemExit, match='^error: .*no file'):
        main(words(world, f'--weights={tmp_path}/none.pth'))
