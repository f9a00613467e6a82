"""What a run with A2MIM chooses, trains with and says: batch, epochs, rate, group, schedule, groups of parameters."""
import pytest
import torch

from common.distributed import Ranks
from common.training import accumulation
from common.training.optim import build_optimizer, set_schedule
from common.training.schedule import CosineToFloor, Drop
from pretrain.a2mim import build_a2mim
from pretrain.a2mim_recipe import Recipe, departures
from pretrain.main import pretrain
from pretrain.methods import METHODS, recommended
from pretrain.pretraining import Run
from tests.conftest import Stop, log_of, saved, stop_after

METHOD = METHODS['a2mim']


def settled(images, device='cuda', ranks=1, **given):
    """What a run has whose parts, where memory is to say how many, are one."""
    options = recommended(name='run', method='a2mim', **given)
    ranks = Ranks(0, ranks, torch.device(device))
    options, words = Recipe().settled(options, images, ranks)
    return METHOD.completed(options, options.accum if isinstance(options.accum, int) else 1, ranks), words


@pytest.mark.parametrize(('model', 'epochs', 'peak', 'group'), [
    ('resnet50', 300, 1.2e-3, 256), ('resnet101', 300, 1.2e-3, None), ('resnet152', 300, 1.2e-3, None),
    ('convnext_base', 300, 1.2e-3, None), ('regnety_040', 300, 1.2e-3, 256), ('vit_small_patch16_224', 800, 4e-4, 256),
    ('beit_abs_base_patch16_224', 800, 4e-4, 128), ('vit_large_patch16_224', 800, 4e-4, 128),
    ('deit_small_patch16_224', 800, 8e-4, 256)])
def test_the_papers_setting_by_model(model, epochs, peak, group):
    for images in (1_281_167, 32_768):
        options, _ = settled(images, ranks=8, model=model)
        assert (options.batch_size, options.epochs, options.fourier_group, options.recipe) == (2048, epochs, group, 'paper')
        assert options.peak_lr == pytest.approx(peak, rel=1e-12)
        assert options.warmup == 10 and options.accum == 'auto'


@pytest.mark.parametrize(('images', 'device', 'ranks', 'given', 'expected'), [
    (32_767, 'cuda', 8, {}, (1024, 300, 3e-3, 256, 'auto')),
    (2_000, 'cuda', 1, {}, (64, 300, 9.4e-4, 64, 'auto')),
    (150, 'cpu', 1, {}, (8, 105, 7.3e-4, 8, 'auto')),
    (10_000, 'cpu', 1, {}, (32, 6, 1.5e-3, 32, 'auto')),
    (150, 'cuda', 3, {}, (9, 300, 4.8e-4, 9, 'auto')),
    (14_000_000, 'cuda', 64, {}, (2048, 27, 1.2e-3, 256, 'auto')),
    (1_281_167, 'cuda', 4, {'batch_size': 300, 'accum': 1}, (300, 300, 1.7578125e-4, 150, 'paper')),
    (1_281_167, 'cuda', 8, {'batch_size': 2048, 'accum': 16}, (2048, 300, 1.2e-3, 128, 'paper')),
    (1_281_167, 'cuda', 8, {'fourier_group': 32}, (2048, 300, 1.2e-3, 32, 'paper')),
    (1_281_167, 'cuda', 8, {'fourier': 'none'}, (2048, 300, 1.2e-3, None, 'paper')),
    (1_281_167, 'cuda', 8, {'recipe': 'auto'}, (2048, 300, 1.2e-3, 256, 'auto')),
    (2_000, 'cuda', 1, {'opt': 'lamb', 'epochs': 10}, (64, 10, 0.03, 64, 'auto')),
    (1_281_167, 'cuda', 8, {'recipe': 'simmim'}, (2048, 300, 1.2e-3, None, 'simmim')),
    (2_000, 'cuda', 8, {'recipe': 'simmim'}, (64, 300, 9.4e-4, None, 'simmim'))])
def test_what_is_chosen_for_a_number_of_images(images, device, ranks, given, expected):
    options, words = settled(images, device, ranks, **given)
    peak = pytest.approx(options.peak_lr)
    assert (options.batch_size, options.epochs, peak, options.fourier_group, options.recipe) == expected
    known = options.fourier == 'focal' and 'fourier_group' not in given and options.accum != 'auto'
    assert ('spectra averaged over' in words) == known


@pytest.mark.parametrize(('model', 'curve'), [
    ('resnet50', CosineToFloor(1e-5)), ('deit_small_patch16_224', CosineToFloor(1e-5)),
    ('vit_base_patch16_224', Drop((7 / 8,)))])
def test_the_schedule_of_a_run(model, curve):
    options, _ = settled(1_281_167, ranks=8, model=model)
    assert METHOD.curve(options) == curve
    run = Run(options, Ranks(0, 8, torch.device('cpu')), 1_281_167, curve=METHOD.curve(options))
    assert (run.per_epoch, run.warmup_steps, run.schedule(0)[0]) == (626, 6260, 0)
    if model == 'resnet50':
        rates = {1: 1.91136e-7, 3130: 5.99564e-4, 6260: 1.2e-3, 97030: 6.05e-4, 187799: 1.0000000089e-5}
        for step, expected in rates.items():
            assert run.schedule(step)[0] == pytest.approx(expected, rel=2e-6)
            slow = run.floor(step) + 0.1 * (run.schedule(step)[0] - run.floor(step))
            share, floor = curve.parts(step, 187_800, 6260)
            assert slow == pytest.approx(floor + share * 1.2e-4, rel=1e-12)
    assert {run.schedule(step)[1] for step in (0, 100, run.steps - 1)} == {0.05}


def test_the_authors_training_steps_with_this_optimiser_and_schedule():
    """Weight decay and rates as the original gave them to each parameter, in groups as `set_schedule` takes them."""
    from tests.pretrain.official_a2mim import golden
    want = golden('resnet26')['train_steps']
    curve, floor_of = CosineToFloor(want['min_lr']), []
    weight, token = (torch.nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2))
    optimizer = build_optimizer('adamw', [{'params': [weight], 'weight_decay': 0.05, 'decays': True},
                                          {'params': [token], 'weight_decay': 0.0, 'decays': False, 'lr_scale': 0.1}])
    for step, (lr, slow) in enumerate(zip(want['lr'], want['lr_slow'])):
        share, floor = curve.parts(step, want['max_iters'], want['warmup_iters'])
        set_schedule(optimizer, floor + share * want['peak_lr'], want['weight_decay'], floor)
        assert [group['lr'] for group in optimizer.param_groups] == pytest.approx([lr, slow], rel=1e-12, abs=0)
        floor_of.append(floor)
    assert min(floor_of[1:]) >= 0 and max(floor_of) > 0


@pytest.mark.parametrize(('model', 'size'), [('resnet26', 64), ('test_convnext', 64)])
def test_groups_of_parameters(model, size):
    options = recommended(name='n', method='a2mim', model=model)
    network = build_a2mim(model, input_size=size)
    names = {id(p): name for name, p in network.named_parameters()}
    groups = METHOD.parameter_groups(network, options)
    decay, free = ({names[id(p)] for p in group['params']} for group in groups[:2])
    matrices = {name for name, p in network.named_parameters() if p.requires_grad and p.ndim > 1}
    assert decay == matrices - {'encoder.mask_token', 'encoder.mask_gain'}
    slow = {names[id(p)]: group for group in groups[2:] for p in group['params']}
    assert slow.keys() == {'encoder.mask_token', 'encoder.mask_gain'}
    assert all((group['lr_scale'], group['decays']) == (0.1, False) for group in slow.values())
    assert not any('gamma' in name or 'bias' in name for name in decay) and 'decoder.bias' in free
    full = METHOD.parameter_groups(network, recommended(name='n', method='a2mim', model=model, token_lr_scale=1.0))
    assert len(full) == 2 and {names[id(p)] for p in full[1]['params']} == free | slow.keys()


def test_what_a_vit_learns_of_positions_does_not_decay():
    network = torch.nn.Module()
    for name in ('cls_token', 'pos_embed', 'relative_position_bias_table', 'mask_token', 'other'):
        network.register_parameter(name, torch.nn.Parameter(torch.ones(1, 2, 3)))
    groups = METHOD.parameter_groups(network, recommended(name='n', method='a2mim', model='vit_base_patch16_224'))
    assert [len(group['params']) for group in groups] == [1, 4] and groups[0]['params'][0] is network.other


@pytest.mark.parametrize(('given', 'precision', 'expected'), [
    ({}, 'fp32', []), ({'epochs': 100}, 'fp32', []), ({'model': 'beit_abs_base_patch16_224'}, 'bf16', []),
    ({'model': 'convnext_small.fb_in22k'}, 'fp16', []), ({}, 'bf16', ['bf16 (not fp32)']),
    ({'model': 'vit_base_patch16_224'}, 'bf16', ['vit_base_patch16_224 is none of the networks of the paper']),
    ({'model': 'convnext_tiny'}, 'bf16', ['convnext_tiny is none of the networks of the paper', 'bf16 (not fp16)']),
    ({'model': 'deit_small_patch16_224', 'input_size': 192}, 'fp16', []),
    ({'model': 'deit_small_patch16_224'}, 'bf16', ['input_size 224 (not 192)', 'bf16 (not fp16)']),
    ({'drop_path': 0.1}, 'fp32', ['drop_path 0.1 (not 0.0)']),
    ({'epochs': 800, 'clip_grad': 5.0, 'token': 'residual'}, 'fp32',
     ['epochs 800 (not 300)', 'token residual (not gain), clip_grad 5.0 (not inf)']),
    ({'fourier_group': 32}, 'fp32',
     ['spectra averaged over 32 images (not 256): the loss on spectra is about 8 times as large']),
    ({'batch_size': 1024}, 'fp32', ['batches of 1,024 (not 2,048), peak learning rate 0.0006 (not 0.0012)']),
    ({'recipe': 'simmim'}, 'fp32',
     ['token replace (not gain), image_fill none (not mean), spatial_loss l1 (not focal_l1), fourier none (not focal), '
     'token_at maxpool (chosen there)'])])
def test_what_departs_from_the_paper(given, precision, expected):
    found = departures(settled(1_281_167, ranks=8, **given)[0], precision)
    if not given.get('model', '').startswith(('vit', 'beit', 'deit')):
        assert found.pop().startswith('no weight decay on any one-dimensional parameter')
    assert found == expected


@pytest.fixture
def small(world, tmp_path):
    """Options of a run of A2MIM of 2 epochs with 5 steps each; small(**changes)."""
    def make(**changes):
        return recommended(**{'name': 'small', 'method': 'a2mim', 'model': 'your_convnet', 'input_size': 32, 'cell_size': 16,
                              'epochs': 2, 'batch_size': 8, 'workers': 0, 'picture_every': 0, 'val_every': 9,
                              'run_dir': str(tmp_path / 'run'), 'data_path': str(world), **changes})
    return make


def test_a_run_says_and_saves_its_group_and_goes_on_with_no_other(small, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(Stop):
            pretrain(small())
    said = capsys.readouterr().out
    assert 'spectra averaged over 8 images' in said and 'departures  batches of 8 (not 2,048)' in said
    assert '\n            no weight decay on any one-dimensional' in said and 'gradient not clipped' in said
    assert 'up to 0.003; weight decay 0.05\n' in said
    assert (saved(tmp_path / 'run')['config']['fourier_group'], saved(tmp_path / 'run')['step']) == (8, 5)
    with pytest.raises(ValueError, match='of another run: fourier_group was 8 and is 4 now'):
        pretrain(small(fourier_group=4))
    with pytest.raises(ValueError, match='--fourier_group=8 does not fit 4 images at a time'):
        pretrain(small(accum=2))
    folder = pretrain(small())
    assert saved(folder)['step'] == 10
    epochs, runs = log_of(folder)
    assert {run['config']['fourier_group'] for run in runs} == {8}
    rates = {line['epoch']: line.get('lr') for line in epochs}
    curve, peak = CosineToFloor(1e-5), runs[0]['config']['lr']
    for epoch in (1, 2):
        share, floor = curve.parts(5 * epoch - 1, 10, 1)
        assert rates[epoch] == pytest.approx(floor + share * peak, rel=1e-6)
    pretrain(small(epochs=4))  # a finished run becomes longer, from the floor on
    rates = {line['epoch']: line.get('lr') for line in log_of(folder)[0]}
    share, floor = curve.again.parts(9, 10, 1)
    assert saved(folder)['ended_at'] == (10,) and rates[4] == pytest.approx(floor + share * peak, rel=1e-6)


def test_parts_that_do_not_fit_are_refused_before_the_network_is_built(small, monkeypatch):
    monkeypatch.setattr(type(METHOD), 'build', lambda *arguments: pytest.fail('it was built'))
    with pytest.raises(ValueError, match='--fourier_group=8 does not fit .* Give --fourier_group=4 or --bs=16 or --accum=1'):
        small(accum=2, fourier_group=8)
    with pytest.raises(ValueError, match='--fourier_group=16 does not fit 8 images at a time.*Give --fourier_group=8'):
        pretrain(small(batch_size=None, fourier_group=16))


def test_accumulation_that_is_found_out_keeps_the_group_together(small, monkeypatch):
    monkeypatch.setattr(accumulation, 'needed_on_host', lambda network, example, images, autocast: images)
    monkeypatch.setattr(accumulation, 'free_memory', lambda: 2)
    with pytest.raises(ValueError, match="4 images at a time do not fit .* the options do not allow that a rank's batch of 8 "
                                         'is cut further: give a smaller --fourier_group, which is another objective'):
        pretrain(small(accum='auto', fourier_group=4))
    folder = pretrain(small(accum='auto', fourier_group=2, epochs=1))
    assert saved(folder)['accum'] == 4
    other = pretrain(small(accum='auto', epochs=1, run_dir=str(folder) + '_of_any_group'))
    assert saved(other)['accum'] == 4 and saved(other)['config']['fourier_group'] == 2  # the largest that fits then


def test_simmim_is_trained(small):
    folder = pretrain(small(recipe='simmim', token_at='stages.0', epochs=1))
    config = saved(folder)['config']
    assert (config['recipe'], config['token'], config['fourier_group']) == ('simmim', 'replace', None)


def test_sparks_options_have_not_changed():
    """What a SparK run had before there was another method, by name."""
    config = recommended(name='n').as_dict()
    assert (config['crop_scale'], config['opt'], config['weight_decay'], config['weight_decay_end'], config['clip_grad'],
            config['interpolation'], config['beta2']) == ((0.67, 1.0), 'lamb', 0.04, 0.2, 5.0, 'bicubic', None)
    assert METHODS['spark'].curve(None).parts(0, 10, 2) == (0.005, 0.0)


@pytest.mark.parametrize(('ranks', 'accum', 'expected'), [(2, 2, 2), (2, 4, 4), (4, 4, 4), (8, 3, 4), (4, 3, 4)])
def test_parts_on_another_number_of_ranks(ranks, accum, expected):
    """Of a run on one rank with batches of 64 and groups of 16 images: others take as many parts, or more where these fit."""
    options = recommended(name='n', method='a2mim', batch_size=64, fourier_group=16, epochs=1, lr=1.0, accum=accum)
    saved_run = {'ranks': 1, 'config': options.as_dict(), 'accum': accum, 'path': 'run.pth'}
    assert Run(options, Ranks(0, ranks, torch.device('cpu')), 640).parts(saved_run) == expected
