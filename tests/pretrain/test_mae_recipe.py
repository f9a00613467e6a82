"""What a run with MAE or ConvMAE chooses, and how it departs from the authors' run."""
import pytest
import torch

from common.distributed import Ranks
from pretrain.mae import build_mae
from pretrain.main import pretrain
from pretrain.methods import METHODS, recommended
from pretrain.pretraining import Run
from tests.conftest import log_of, saved

RECIPES = {name: METHODS[name].recipe for name in ('mae', 'convmae')}
IMAGENET = 1_281_167


def settled(images=IMAGENET, device='cuda', ranks=8, method='convmae', **given):
    options = recommended(name='run', method=method, **given)
    return RECIPES[method].settled(options, images, Ranks(0, ranks, torch.device(device)))[0]


@pytest.mark.parametrize(('given', 'fewest', 'expected'), [
    ({}, 49_152, (3072, 1600, 1.8e-3, 40)),
    ({'masks_per_image': 4}, 49_152, (512, 50, 1.2e-3, 10)),  # FastConvMAE
    ({'masks_per_image': 2}, 49_152, (1024, 100, 1.2e-3, 20)),
    ({'method': 'mae'}, 65_536, (4096, 800, 2.4e-3, 40)),
    ({'method': 'mae', 'masks_per_image': 4}, 65_536, (1024, 200, 2.4e-3, 10))])
def test_the_papers_setting(given, fewest, expected):
    for images in (IMAGENET, fewest):
        options = settled(images, **given)
        assert (options.batch_size, options.epochs, options.peak_lr, options.warmup) == pytest.approx(expected, rel=1e-12)
        assert (options.recipe, options.accum) == ('paper', 'auto')
    assert settled(fewest - 1, **given).recipe == settled(device='cpu', **given).recipe == 'auto'


def test_fastconvmae_is_a_run_of_200_epochs_with_each_image_used_four_times():
    fast = settled(masks_per_image=4)
    assert (4 * fast.batch_size, 4 * fast.epochs, fast.base_lr / 4, 4 * fast.warmup) == (2048, 200, 1.5e-4, 40)


@pytest.mark.parametrize('masks', range(2, 50))
def test_ranks_can_share_the_papers_batch_with_any_number_of_masks(masks):
    batch = settled(ranks=1, masks_per_image=masks).batch_size
    assert batch * masks <= 2048 and batch % 8 == 0 or batch < 64


@pytest.mark.parametrize(('images', 'device', 'given'), [
    (150, 'cpu', {}), (2_000, 'cpu', {}), (100_000, 'cpu', {}), (2_000, 'cuda', {}), (14_000_000, 'cuda', {})])
def test_several_masks_cost_what_one_mask_costs(images, device, given):
    """A run with four masks an image sees about as many masked images as a run with one, or no more epochs of images."""
    one, four = (settled(images, device, 1, masks_per_image=masks) for masks in (1, 4))
    assert four.epochs <= one.epochs
    if device == 'cpu':
        assert four.batch_size == max(8, one.batch_size // 4)
    else:
        assert 4 * four.epochs == pytest.approx(one.epochs, rel=0.03)


@pytest.mark.parametrize(('images', 'device', 'given', 'expected'), [
    (2_000, 'cuda', {}, (64, 1600)), (14_000_000, 'cuda', {}, (2048, 147)), (150, 'cpu', {}, (8, 105)),
    (10_000, 'cpu', {}, (32, 6)), (10_000, 'cpu', {'masks_per_image': 4}, (8, 2)),
    (2_000, 'cuda', {'masks_per_image': 4}, (64, 400)), (2_000, 'cuda', {'method': 'mae'}, (64, 800))])
def test_batch_and_epochs_for_other_numbers_of_images(images, device, given, expected):
    options = settled(images, device, 1, **given)
    assert (options.batch_size, options.epochs, options.recipe) == (*expected, 'auto')


def test_the_rate_for_other_numbers_of_images():
    published = settled().peak_lr
    longer = settled(2_000, ranks=1)  # 51,200 steps of 64 images
    share = (64 / 3072 * 1600 * 418 / 51_200) ** 0.5
    assert longer.peak_lr == pytest.approx(published * share, rel=0.05)
    fewest_steps = settled(10_000, ranks=1, batch_size=2048)
    assert fewest_steps.peak_lr == pytest.approx(published * RECIPES['convmae'].highest_share, rel=0.05)
    # As many steps of as many masked images: the same rate.
    four = settled(2_000, ranks=1, batch_size=16, epochs=400, masks_per_image=4)
    assert four.peak_lr == pytest.approx(longer.peak_lr, rel=0.05)
    assert settled(2_000, ranks=1, opt='lamb').peak_lr == pytest.approx(3.2e-3 * (500_000 / 51_200) ** (1 / 3), rel=0.05)
    assert settled(2_000, ranks=1, base_lr=1e-4).peak_lr == 1e-4 * 64 / 256


@pytest.mark.parametrize(('given', 'precision', 'expected'), [
    ({}, 'fp16', []), ({}, 'bf16', ['bf16 (not fp16)']), ({'masks_per_image': 4}, 'fp16', []), ({'drop_path': 0.0}, 'fp16', []),
    ({'method': 'mae'}, 'fp16', []), ({'method': 'mae', 'epochs': 1600, 'model': 'vit_large_patch16_224.mae'}, 'fp16', []),
    ({'epochs': 200}, 'fp16', ['epochs of warm-up 20 (not 40)']), ({'epochs': 200, 'warmup_epochs': 40}, 'fp16', []),
    ({'batch_size': 2048}, 'fp16', ['batches of 2,048 (not 3,072), peak learning rate 0.0012 (not 0.0018)']),
    ({'masks_per_image': 4, 'epochs': 200}, 'fp16', ['epochs 200 (not 50)']),
    ({'model': 'convvit_small', 'mask_ratio': 0.6, 'clip_grad': 1.0, 'decoder_depth': 4}, 'fp16',
     ['model convvit_small (not convvit_base), mask_ratio 0.6 (not 0.75), decoder_depth 4 (not 8), clip_grad 1.0 (not inf)']),
    ({'masks_per_image': 2}, 'fp16', [
        'batches of 1,024 (not 512), epochs 100 (not 50), epochs of warm-up 20 (not 10)',
        'mask_ratio 0.5 (not 0.75), masks_per_image 2 (not 4)']),
    ({'method': 'mae', 'masks_per_image': 4}, 'fp16', [
        'batches of 1,024 (not 4,096), epochs 200 (not 800), epochs of warm-up 10 (not 40)', 'masks_per_image 4 (not 1)']),
    ({'target': 'pixels', 'drop_path': 0.1, 'weight_decay_end': 0.2}, 'fp32', [
        'drop_path 0.1 (not 0.0), target pixels (not normalised), last_weight_decay 0.2 (not 0.05)', 'fp32 (not fp16)'])])
def test_what_departs_from_the_authors_run(given, precision, expected):
    assert RECIPES[given.get('method', 'convmae')].departures(settled(**given), precision) == expected


def test_the_schedule_of_the_authors_run():
    """9e-4 at epoch 20, 1.8e-3 at 40, 9e-4 at 820, and a constant weight decay."""
    run = Run(settled(), Ranks(0, 8, torch.device('cpu')), IMAGENET, curve=METHODS['convmae'].curve(None))
    rates = [run.schedule(epoch * run.per_epoch) for epoch in (0, 20, 40, 820)]
    assert rates == [pytest.approx((lr, 0.05), rel=1e-12) for lr in (0, 9e-4, 1.8e-3, 9e-4)]
    lr, decay = run.schedule(run.steps - 1)
    assert 0 < lr < 1e-13 and decay == 0.05


def test_groups_of_parameters():
    """The mask token and the class token decay, as in the authors' programs; positions are fixed."""
    network = build_mae('test_vit', input_size=64, decoder_width=32, decoder_depth=1, decoder_heads=4)
    names = {id(p): name for name, p in network.named_parameters()}
    decay, free = METHODS['mae'].parameter_groups(network, recommended(name='n', method='mae'))
    decaying, others = ({names[id(p)] for p in group['params']} for group in (decay, free))
    assert decay['weight_decay'] == 0.05 and free['weight_decay'] == 0
    assert {'mask_token', 'encoder.cnn.cls_token', 'decoder_embed.weight'} <= decaying
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    assert others == {name for name, p in trained.items() if p.ndim == 1} and decaying | others == trained.keys()
    assert 'encoder.cnn.pos_embed' not in trained and 'decoder_pos_embed' not in names.values()


def test_a_run_says_what_it_chose_and_goes_on_with_that(world, tmp_path, capsys):
    def run(**changes):
        return pretrain(recommended(**{
            'name': 'small', 'method': 'mae', 'model': 'test_vit', 'input_size': 64, 'masks_per_image': 4, 'decoder_width': 32,
            'decoder_depth': 1, 'decoder_heads': 4, 'epochs': 2, 'workers': 0, 'picture_every': 0, 'val_every': 9,
            'run_dir': str(tmp_path / 'run'), 'data_path': str(world), **changes}))

    folder = run()
    said = capsys.readouterr().out
    for text in ('auto, for 40 images on a CPU: batches of 8, a peak learning rate of', 'departures  batches of 8 (not 4,096)',
                 '(not given: 10, or a fifth of fewer than 50)', '16 in an image of 64 x 64, 4 visible'):
        assert text in said, text
    began = saved(folder, 'test_vit')
    assert (began['step'], began['config']['batch_size'], began['config']['mask_ratio']) == (10, 8, 0.75)
    with pytest.raises(ValueError, match='of another run: .*masks_per_image was 4 and is 2 now'):
        run(masks_per_image=2)
    run(epochs=4)  # a finished run becomes longer: the rate rises from 0 again
    epochs, runs = log_of(folder)
    peak, curve = runs[0]['config']['lr'], METHODS['mae'].curve(None)
    rates = {line['epoch']: line.get('lr') for line in epochs}
    for epoch, warmup in ((2, 2), (4, 1)):
        assert rates[epoch] == pytest.approx(curve.parts(9, 10, warmup)[0] * peak, rel=1e-6)
    assert (saved(folder, 'test_vit')['step'], saved(folder, 'test_vit')['ended_at']) == (20, (10,))
