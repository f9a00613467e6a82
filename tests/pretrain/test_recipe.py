"""The recipe of a pretraining: what is chosen for which number of images on which device, and what a resume takes."""
import pytest
import torch

from common.distributed import Ranks
from common.networks.create import create_cnn, drop_path_of
from common.training import accumulation
from common.training.recipe import batch_for, epochs_for, saved_options, step_and_content
from pretrain.main import pretrain
from pretrain.methods import METHODS, recommended
from pretrain.recipe import Recipe
from tests.conftest import Stop, log_of, saved, stop_after


def chosen(images, device='cuda', ranks=1, **given):
    """(batch, epochs, peak learning rate, recipe) of a run for so many images."""
    options, _ = Recipe().settled(recommended(name='run', **given), images, Ranks(0, ranks, torch.device(device)))
    return options.batch_size, options.epochs, options.peak_lr, options.recipe


@pytest.mark.parametrize('images, device, ranks, expected', [
    (1_281_167, 'cuda', 32, (4096, 1600, 3.2e-3, 'paper')),
    (1_281_167, 'cuda', 1, (4096, 1600, 3.2e-3, 'paper')),
    (65_536, 'cuda', 8, (4096, 1600, 3.2e-3, 'paper')),
    (65_535, 'cuda', 8, (2048, 1600, 6.8e-3, 'auto')),
    (10_000, 'cuda', 1, (512, 1600, 8e-3, 'auto')),
    (2_000, 'cuda', 1, (64, 1600, 6.8e-3, 'auto')),
    (150, 'cuda', 1, (8, 1600, 8.1e-3, 'auto')),
    (150, 'cuda', 8, (16, 1600, 1e-2, 'auto')),
    (2_500_000, 'cuda', 1, (4096, 1600, 3.2e-3, 'paper')),
    (14_000_000, 'cuda', 64, (4096, 147, 3.2e-3, 'auto')),
    (100_000_000, 'cuda', 64, (4096, 21, 3.2e-3, 'auto')),
    (1, 'cuda', 1, (8, 1600, 0.022, 'auto')),
    (150, 'cpu', 1, (8, 105, 0.02, 'auto')),
    (2_000, 'cpu', 1, (32, 32, 0.02, 'auto')),
    (10_000, 'cpu', 1, (32, 6, 0.021, 'auto')),
    (1_281_167, 'cpu', 1, (32, 1, 7.4e-3, 'auto'))])
def test_what_is_chosen_for_a_number_of_images(images, device, ranks, expected):
    batch, epochs, lr, name = chosen(images, device, ranks)
    assert (batch, epochs, pytest.approx(lr), name) == expected


def test_what_is_given_stands_and_the_rest_follows_from_it():
    assert chosen(2_000, batch_size=128, epochs=10, lr=1e-3) == (128, 10, 1e-3, 'auto')
    assert chosen(2_000, batch_size=256, base_lr=1e-3) == (256, 1600, 1e-3, 'auto')
    assert chosen(2_000, 'cpu', batch_size=8)[:2] == (8, 8)  # 250 steps an epoch
    assert chosen(2_000, epochs=10)[2] == 0.03  # 320 steps: the highest rate
    assert chosen(2_000, opt='adamw')[2] == pytest.approx(4e-4)  # by the root of the batch
    assert chosen(150, 'cpu', recipe='paper') == (4096, 1600, 3.2e-3, 'paper')
    assert chosen(1_281_167, recipe='auto') == (4096, 1600, 3.2e-3, 'auto')  # the rule meets the paper there
    assert chosen(1_281_167, batch_size=256)[2:] == (2e-4, 'paper')


def test_accumulation_is_found_out_for_a_batch_that_was_not_given():
    settled = [Recipe().settled(recommended(name='run', **given), 150, Ranks(0, 1, torch.device('cpu')))[0].accum
               for given in ({}, {'batch_size': 4}, {'accum': 2}, {'batch_size': 4, 'accum': 'auto'})]
    assert settled == ['auto', 1, 2, 'auto']


def test_parts_of_the_rule():
    assert [batch_for(images, 1, 4096) for images in (1, 255, 256, 511, 512, 10 ** 9)] == [8, 8, 16, 16, 32, 4096]
    assert [batch_for(150, ranks, 4096) for ranks in (2, 3, 4, 6, 8)] == [8, 9, 8, 12, 16]
    assert [epochs_for(150, 8, 2000, most) for most in (1600, 50)] == [105, 50]
    assert epochs_for(10 ** 7, 8, 2000, 1600) == 1


def test_a_run_that_goes_on_takes_what_its_first_start_chose(tiny, tmp_path, monkeypatch, capsys):
    given = {'run_dir': str(tmp_path / 'run'), 'batch_size': None, 'epochs': None, 'lr': None, 'warmup_epochs': None}
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(Stop):
            pretrain(tiny(**given, save_every_steps=5))
    text = capsys.readouterr().out
    assert ("auto, for 40 images on a CPU: batches of 8, 400 epochs, a peak learning rate of 0.02 (the paper's is for "
            '65,536 to 2,500,000 images on GPUs)') in text
    config = saved(tmp_path / 'run')['config']
    assert (config['recipe'], config['batch_size'], config['epochs'], config['lr']) == ('auto', 8, 400, 0.02)
    step, content = step_and_content(tmp_path / 'run' / 'your_convnet_still_pretraining.pth')
    assert (step, content['config']) == (5, config)
    # On another device, for another number of images, with an older rule: what was chosen stays.
    options, words = Recipe().settled(tiny(**given), 10 ** 6, Ranks(0, 1, torch.device('cuda')), config)
    assert (options.batch_size, options.epochs, options.lr, options.recipe) == (8, 400, 0.02, 'auto')
    assert words == 'auto, as the run began'
    assert Recipe().settled(tiny(**given | {'lr': 0.01}), 40, Ranks(0, 1, torch.device('cpu')), config)[0].lr == 0.01
    slower = tiny(**given | {'base_lr': 0.064})
    assert Recipe().settled(slower, 40, Ranks(0, 1, torch.device('cpu')), config)[0].peak_lr == pytest.approx(0.002)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stop):
            pretrain(tiny(**given))
    assert log_of(tmp_path / 'run')[1][-1]['config']['epochs'] == 400 and log_of(tmp_path / 'run')[1][-1]['step'] == 5
    with pytest.raises(ValueError, match='recipe was auto and is paper now'):
        pretrain(tiny(**given, recipe='paper'))


def test_a_run_of_before_there_was_a_choice_goes_on():
    options = recommended(name='run')
    before = {'batch_size': 64, 'epochs': 100, 'base_lr': 2e-4, 'lr': None, 'accum': 2}
    settled, _ = Recipe().settled(options, 150, Ranks(0, 1, torch.device('cpu')), before)
    assert (settled.batch_size, settled.epochs, settled.peak_lr, settled.accum) == (64, 100, 5e-5, 2)
    assert settled.recipe is None
    settled, _ = Recipe().settled(options, 150, Ranks(0, 1, torch.device('cpu')), {'model': 'resnet50'})
    assert (settled.batch_size, settled.epochs, settled.peak_lr, settled.accum) == (4096, 1600, 3.2e-3, 1)


def drop_path(saved=None, **given):
    settled, _ = Recipe().settled(recommended(name='run', **given), 150, Ranks(0, 1, torch.device('cpu')), saved)
    return settled.drop_path


def test_a_run_has_no_drop_path_that_nobody_chose():
    """timm makes some networks with one."""
    swin = {'model': 'swin_tiny_patch4_window7_224'}
    with torch.device('meta'):
        assert drop_path_of(create_cnn(swin['model'])) != 'none'
        assert drop_path_of(create_cnn(swin['model'], drop_path=drop_path(**swin))) == 'none'
    assert drop_path() == 0.05 and drop_path(drop_path=0.3) == 0.3 and drop_path(**swin, drop_path=0.2) == 0.2
    assert drop_path({'drop_path': None}, **swin) is None, 'a run of earlier versions goes on as it began'
    assert drop_path({'drop_path': 0.0}, **swin) == 0.0 and drop_path({'drop_path': 0.3}, **swin) == 0.3


def test_a_network_without_drop_path_has_a_drop_path_of_0():
    torch.manual_seed(0)
    own = create_cnn('vgg11').state_dict()
    torch.manual_seed(0)
    none = create_cnn('vgg11', drop_path=0.0).state_dict()
    assert all(torch.equal(none[key], value) for key, value in own.items())


@pytest.mark.parametrize(('given', 'precision', 'expected'), [
    ({}, 'fp32', []), ({}, 'bf16', ['bf16 (not fp32)']), ({'model': 'convnext_base.fb_in1k'}, 'fp32', []),
    ({'model': 'convnext_large', 'input_size': 384, 'batch_size': 2048, 'base_lr': 4e-4, 'mask_ratio': 0.75}, 'fp32', []),
    ({'beta2': 0.95, 'cell_size': 32, 'input_size': (224, 224)}, 'fp32', []),
    ({'beta2': 0.9}, 'fp32', ['beta2 0.9 (not 0.95)']),
    ({'model': 'resnet18'}, 'fp32', ['resnet18 is none of the networks of the paper']),
    ({'epochs': 200}, 'fp32', ['epochs 200 (not 1,600), epochs of warm-up 20 (not 40)']),
    ({'batch_size': 1024, 'mask_ratio': 0.5, 'decoder': 'light', 'drop_path': 0.0}, 'fp32', [
        'batches of 1,024 (not 4,096), peak learning rate 0.0008 (not 0.0032)',
        'mask_ratio 0.5 (not 0.6), decoder light (not unet), drop_path 0.0 (not 0.05)'])])
def test_what_departs_from_the_papers_run(given, precision, expected):
    options, _ = Recipe().settled(recommended(name='run', **given), 1_281_167, Ranks(0, 8, torch.device('cuda')))
    assert METHODS['spark'].departures(options, precision) == expected


def test_a_step_that_does_not_fit_is_refused_before_images_are_loaded(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(accumulation, 'free_memory', lambda: 2 ** 20)
    monkeypatch.setattr('common.training.trainer.Trainer.start_loading', lambda self: pytest.fail('images are loaded'))
    with pytest.raises(ValueError, match='a step on 8 images at a time would take about 0.0 GiB of memory, and 0.0 GiB '
                                         'are free: give a smaller --bs'):
        pretrain(tiny(run_dir=str(tmp_path / 'large')))
    with pytest.raises(ValueError, match='there are 40 images, fewer than a batch, so leave --bs away, or give --bs=4 or so'):
        pretrain(tiny(run_dir=str(tmp_path / 'larger'), batch_size=64))


def test_a_run_that_goes_on_with_less_memory_is_cut_into_more_parts(tiny, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_after(patch, 7)
        pretrain(tiny(save_every_steps=5))
    monkeypatch.setattr(accumulation, 'free_memory', lambda: 1)
    with pytest.raises(ValueError, match='0.0 GiB are free: give --accum=auto, which cuts'):
        pretrain(tiny())
    monkeypatch.setattr(accumulation, 'needed_on_host', lambda network, example, images, autocast: images)
    monkeypatch.setattr(accumulation, 'free_memory', lambda: 4)
    assert saved(pretrain(tiny(accum='auto')))['accum'] == 2


def test_the_options_are_those_of_the_checkpoint_that_is_loaded(tmp_path):
    ranks = Ranks(0, 1, torch.device('cpu'))
    own, other = tmp_path / 'resnet50_still_pretraining.pth', tmp_path / 'other.pth'
    torch.save({'step': 10, 'config': {'epochs': 1}}, own)
    torch.save({'step': 30, 'config': {'epochs': 3}}, other)
    torch.save({'step': 5, 'config': {'epochs': 7}}, tmp_path / 'resnet50_still_pretraining_step5.pth')
    begun, elsewhere = recommended(name='n'), recommended(name='n', resume=str(other))
    assert saved_options(begun, own, ranks) == {'epochs': 1}
    assert saved_options(elsewhere, own, ranks) == {'epochs': 3}
    assert saved_options(recommended(name='n', fresh=True), own, ranks) is None
    own.write_bytes(own.read_bytes()[:100])  # damaged: the run will take the one before
    assert saved_options(begun, own, ranks) == {'epochs': 7}
    assert saved_options(begun, tmp_path / 'none.pth', ranks) is None


def test_few_cells_and_a_short_warmup_are_warned_of(tiny, tmp_path, capsys):
    pretrain(tiny(run_dir=str(tmp_path / 'few'), epochs=10, warmup_epochs=0.2))
    errors = capsys.readouterr().err
    assert 'an image has 16 cells of 8 px only, of which 10 (62%) are hidden' in errors
    assert 'Give an --input_size of 48 or more, a network whose stride is smaller than 8' in errors
    assert 'rises to its peak within 1 step, in which the weights can be spoilt: give --warmup_epochs=0.5 or so' in errors
    pretrain(tiny(run_dir=str(tmp_path / 'large_cells'), epochs=1, warmup_epochs=0, cell_size=16, mask_ratio=0.5))
    assert 'an image has 4 cells of 16 px only, of which 2 (50%) are hidden: little of it can be learned from so few. ' \
           'Give --cell_size=8' in capsys.readouterr().err
