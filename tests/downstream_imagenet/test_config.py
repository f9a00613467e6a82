"""Options of fine-tuning: official spellings, and the recipes of the paper."""
import dataclasses

import pytest
import torch

from common.distributed import Ranks
from downstream_imagenet.config import recommended
from downstream_imagenet.published import RECIPES, recipe_of
from downstream_imagenet.recipe import Recipe
from tests.downstream_imagenet.runs import parse


def on_imagenet(options):
    """The options as a run on ImageNet and 8 GPUs has them."""
    return Recipe().settled(options, 1_281_167, Ranks(0, 8, torch.device('cuda')))[0]


def test_official_command_lines_parse():
    options = parse('--data_path=D --exp_dir=E --model=resnet50 --resume_from=F --img_size=224 --bs=2048 --ep=300 --wp_ep=5 '
                    '--opt=lamb --base_lr=0.002 --lr_scale=0.7 --clip=-1 --wd=0.02 --mixup=0.1 --rep_aug=0 --drop_path=0.05 '
                    '--ema=0.9999 --sbn=False --dataloader_workers=8')
    assert (options.folder, options.resume, options.input_size, options.batch_size, options.layer_decay, options.clipping,
            options.repeats, options.sync_bn, options.workers) == ('E', 'F', 224, 2048, 0.7, float('inf'), 0, False, 8)
    assert on_imagenet(options) == dataclasses.replace(on_imagenet(parse('--model=resnet50')), data_path='D', run_dir='E',
                                                       resume='F', workers=8, clip_grad=float('inf'), accum=1)
    for model in RECIPES:
        name, *size = model.split(' at ')
        options = parse(f'--model={name}' + (' --img_size=384' if size else ''))
        assert on_imagenet(options).base_lr == RECIPES[model]['base_lr']


@pytest.mark.parametrize(('model', 'size', 'expected'), [
    ('convnext_small', 224, (4096, 400, 20, 'adamw', 2e-4, 0.7, 0.01, 0.8, 3, 0.3, 0.9999, 'ce')),
    ('convnext_base', 224, (4096, 400, 20, 'adamw', 1e-4, 0.7, 0.01, 0.8, 3, 0.4, 0.9999, 'ce')),
    ('convnext_large', 224, (4096, 200, 10, 'adamw', 1e-4, 0.7, 0.02, 0.8, 3, 0.5, 0.9999, 'ce')),
    ('convnext_large', 384, (1024, 200, 20, 'adamw', 6e-5, 0.7, 0.01, 0.8, 3, 0.5, 0.99995, 'ce')),
    ('resnet50', 224, (2048, 300, 5, 'lamb', 2e-3, 0.7, 0.02, 0.1, 0, 0.05, 0.9999, 'bce')),
    ('resnet200', 224, (2048, 300, 5, 'lamb', 1e-3, 0.8, 0.02, 0.1, 0, 0.2, 0.9999, 'bce')),
])
def test_the_recipes_of_the_paper(model, size, expected):
    o = on_imagenet(recommended(name='n', model=model, input_size=size))
    assert (o.batch_size, o.epochs, o.warmup, o.opt, o.base_lr, o.layer_decay, o.weight_decay, o.mixup, o.repeats, o.drop_path,
            o.ema, o.loss_name) == expected
    assert o.augmentation == ('v0' if size == 384 else 'trivial') and o.smoothing == 0.1 and o.cutmix == 1 and o.erase == 0.25
    assert recipe_of(model, size)[0].startswith(model)


def test_zero_is_a_value_and_short_runs_warm_up_shortly():
    options = on_imagenet(parse('--model=convnext_base --mixup=0 --dp=0 --ema=0 --rep_aug=0 --smoothing=0 --wp_ep=0 --wd=0'))
    assert (options.mixup, options.drop_path, options.ema, options.repeats, options.smoothing, options.warmup,
            options.weight_decay) == (0, 0, 0, 0, 0, 0, 0)
    lines = '--ep=20', '--ep=200', '--ep=20 --wp_ep=5', '--ep=2'
    assert [on_imagenet(parse(line)).warmup for line in lines] == [2, 5, 5, 0.2]
    assert parse('--opt=adamw').loss_name == 'ce' and parse('--opt=adamw').clipping == float('inf')
    assert parse('').clipping == 1 and parse('--official_lamb').clipping == float('inf') and parse('--clip=3').clipping == 3


def test_other_networks_take_the_recipe_of_a_relative():
    assert recipe_of('efficientnet_b0')[0] == 'resnet50' and recipe_of('convnextv2_tiny')[0] == 'convnext_small'
    assert recipe_of('nfnet_f0')[0] == 'convnext_small' and recipe_of('your_convnet') == (
        'resnet50', {**RECIPES['resnet50'], 'layer_decay': None, 'drop_path': None})
    assert parse('--model=densenet121').drop_path is None and parse('--model=resnet18').drop_path == 0.05


@pytest.mark.parametrize(('line', 'word'), [
    ('--model=resnet5O', 'the nearest names are'), ('--mixup=-1', 'mixup must be 0 or more'), ('--clip=0', 'inf or -1'),
    ('--ema=1', 'ema must be'), ('--label_fraction=0', 'label_fraction'), ('--opt=adamw --official_lamb', 'is for --opt=lamb'),
    ('--num_classes=1', 'num_classes'), ('--register=not.there', '--register=not.there'), ('--augment=rand', 'augment is'),
])
def test_mistakes_end_with_one_sentence_and_code_2(line, word, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(line)
    message = capsys.readouterr().err
    assert stop.value.code == 2 and word in message and message.count('\n') == 1


@pytest.mark.parametrize(('model', 'images', 'device', 'expected'), [
    ('resnet50', 32_768, 'cuda', ('paper', 2048, 300, 5, 0.016, 0.9999)),
    ('resnet50', 32_767, 'cuda', ('auto', 1024, 100, 5, 0.016, 0.996875)),
    ('resnet50', 2_000, 'cuda', ('auto', 64, 100, 5, 0.016, 0.996875)),
    ('resnet50', 2_000, 'cpu', ('auto', 32, 32, 3.2, 0.016, 0.995040)),
    ('resnet50', 150, 'cpu', ('auto', 8, 100, 5, 0.016, 0.994737)),
    ('convnext_small', 2_000, 'cuda', ('auto', 64, 100, 10, 4e-4, 0.996875)),
    ('resnet50', 14_000_000, 'cuda', ('auto', 2048, 27, 2.7, 0.016, 0.9999)),
    ('convnext_small', 65_536, 'cuda', ('paper', 4096, 400, 20, 3.2e-3, 0.9999))])
def test_what_is_chosen_for_a_number_of_images(model, images, device, expected):
    options, words = Recipe().settled(recommended(name='n', model=model), images, Ranks(0, 1, torch.device(device)))
    found = options.batch_size, options.epochs, options.warmup, options.peak_lr, options.ema
    assert found == pytest.approx(expected[1:], rel=1e-5) and options.recipe == expected[0]
    assert words.startswith(expected[0])


def test_a_run_that_goes_on_keeps_what_was_chosen():
    ranks = Ranks(0, 1, torch.device('cpu'))
    began, _ = Recipe().settled(recommended(name='n', model='resnet18'), 150, ranks)
    goes_on, words = Recipe().settled(recommended(name='n', model='resnet18'), 90_000, Ranks(0, 1, torch.device('cuda')),
                                      began.as_dict())
    assert goes_on == began and words == 'auto, as the run began'
