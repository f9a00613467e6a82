"""Linear probe: how well a linear classifier tells the classes apart on frozen features.

    python -m downstream_imagenet.linear --data_path=DIR --model=resnet50 --weights=FILE     (or --random, or --timm)
    python -m downstream_imagenet.linear --mae --name=my_probe --data_path=DIR ...           the recipe of MAE, for ImageNet

By default features are computed once (centre crops), standardised, and a logistic regression is fitted; how strongly it is
regularised is chosen by cross-validation on the training images, so that the validation images stay unseen. --mae trains with
random crops, LARS and batches of 16384, as a fine-tuning run with all options of downstream_imagenet.main.
"""
import sys

import torch
import torch.nn.functional as F

from common.cli import errors_in_one_sentence, parse, reader_may_leave
from common.networks.create import USERS_NETWORKS, register
from downstream_imagenet import config
from downstream_imagenet.features import Options, accuracy, compute
from downstream_imagenet.main import fine_tune

PENALTIES = tuple(10.0 ** (-i / 2) for i in range(13))  # 1 to 1e-6, strong to weak
FOLDS, MANY = 5, 20_000  # above so many images one fold is enough
MAE = {'freeze': True, 'opt': 'lars', 'base_lr': 0.1, 'weight_decay': 0.0, 'epochs': 90, 'warmup_epochs': 10.0,
       'batch_size': 16384, 'augment': 'none', 'erase': 0.0, 'mixup': 0.0, 'cutmix': 0.0, 'smoothing': 0.0, 'ema': 0.0,
       'loss': 'ce', 'name': 'linear'}


def fit(x, y, number, penalties):
    """[(weight (K, C), bias (K,))] that minimise cross-entropy + penalty / 2 * |weight|^2, for each penalty in turn."""
    weight = x.new_zeros(number, x.shape[1]).requires_grad_()
    bias, found = x.new_zeros(number).requires_grad_(), []
    for penalty in penalties:  # each starts from the one before
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=300, tolerance_grad=1e-6, tolerance_change=1e-9,
                                      line_search_fn='strong_wolfe')

        def objective(penalty=penalty, optimizer=optimizer):
            optimizer.zero_grad()
            value = F.cross_entropy(x @ weight.T + bias, y) + penalty / 2 * weight.square().sum()
            value.backward()
            return value
        optimizer.step(objective)
        found.append((weight.detach().clone(), bias.detach().clone()))
    return found


def standardised(x, *others):
    """Tensors with the mean and deviation of the first taken out of all: BatchNorm without parameters."""
    mean, std = x.mean(0), x.std(0, correction=0) + 1e-6
    return [(tensor - mean) / std for tensor in (x, *others)]


def folds(y, seed):
    """[(training places, held-out places)], each class divided among them; none if a class has a single image."""
    count = min(FOLDS, int(torch.bincount(y)[torch.bincount(y) > 0].min()))
    if count < 2:
        return []
    generator, place = torch.Generator().manual_seed(seed), torch.zeros(len(y), dtype=torch.long)
    for label in y.unique().tolist():
        own = (y == label).nonzero().flatten()
        place[own] = torch.randperm(len(own), generator=generator) % count
    return [((place != i).nonzero().flatten(), (place == i).nonzero().flatten())
            for i in range(count if len(y) <= MANY else 1)]


def linear_probe(options, dataset=None, val_dataset=None, say=print):
    """(top-1, top-5) in percent on the validation images. Raises ValueError."""
    features = compute(options, dataset, val_dataset, say)
    x, y, number = features.x.double() if len(features.x) <= MANY else features.x, features.y, len(features.classes)
    right = torch.zeros(len(PENALTIES))
    divisions = folds(y.cpu(), options.seed)
    for inside, outside in divisions:
        train, held_out = standardised(x[inside], x[outside])
        for i, (weight, bias) in enumerate(fit(train, y[inside], number, PENALTIES)):
            right[i] += ((held_out @ weight.T + bias).argmax(1) == y[outside]).sum().item()
    chosen = int(right.argmax()) if divisions else len(PENALTIES) // 2
    train, val = standardised(x, features.val_x.to(x.dtype))
    weight, bias = fit(train, y, number, PENALTIES[:chosen + 1])[-1]
    top1, top5 = accuracy(val @ weight.T + bias, features.val_y)
    say(f'linear probe: top-1 {top1:.2f} %, top-5 {top5:.2f} % (penalty {PENALTIES[chosen]:.1g}, '
        + (f'chosen by {len(divisions)}-fold cross-validation on the training images)' if divisions else
           'not chosen: a class has a single image)'))
    return top1, top5


@reader_may_leave(ends=False)
def main(argv=None):
    argv = list(sys.argv[1:] if argv is None else argv)
    if '--mae' in argv:
        argv.remove('--mae')
        kinds = {word.split('=')[0] for word in argv} & {'--weights', '--finetune_from', '--random', '--timm'}
        if len(kinds) != 1:
            sys.exit('error: say which weights: one of --weights=FILE, --random and --timm')
        argv = ['--weights=timm' if word == '--timm' else word for word in argv if word != '--random']
        options = parse(config.Options, 'downstream_imagenet.linear --mae', 'Linear probe with the recipe of MAE.', argv,
                        mae_recipe)
        with errors_in_one_sentence(options.accum):
            fine_tune(options)
        return
    options = parse(Options, 'downstream_imagenet.linear', __doc__.splitlines()[0], argv)
    with errors_in_one_sentence():
        linear_probe(options)


def mae_recipe(given):
    """MAE's options, under those that are given."""
    register(given.get('register', USERS_NETWORKS))
    return {**MAE, 'warmup_epochs': min(10.0, given.get('epochs', 90) / 9)}


if __name__ == '__main__':
    main()
