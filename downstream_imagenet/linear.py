"""Linear probe: the accuracy of a linear classifier on frozen features.

    python -m downstream_imagenet.linear --data_path=DIR --model=resnet50 --weights=FILE   # --random, --timm
    python -m downstream_imagenet.linear --mae --name=my_probe --data_path=DIR ...         # the recipe of MAE

By default features are computed once (of centre crops) and standardised, and a logistic regression is fitted
to them. Its regularisation is chosen by cross-validation on the training images, so that the validation
images stay unseen. With --mae it is a fine-tuning run, with random crops, LARS and batches of 16384, and all
options of downstream_imagenet.main.
"""
from common.start import start_tool

if __name__ == '__main__':
    start_tool()

import sys

import torch
import torch.nn.functional as F

from common.cli import errors_in_one_sentence, parse, reader_may_leave
from common.config import require
from common.live_line import LiveLine
from common.networks.users import USERS_NETWORKS, register
from downstream_imagenet import config
from downstream_imagenet.features import Options, accuracy, compute
from downstream_imagenet.main import fine_tune
from downstream_imagenet.published import NAMED

PENALTIES = tuple(10.0 ** (-i / 2) for i in range(13))  # 1 to 1e-6, strong to weak
FOLDS = 5
MANY = 20_000  # With more images one of the folds is enough, and float32.
# The paper's. --recipe=mae_probe (published.py) follows the authors' code in the crops and the ends of the schedule too.
MAE = {'freeze': True, 'opt': 'lars', 'base_lr': 0.1, 'weight_decay': 0.0, 'epochs': 90,
       'batch_size': 16384, 'augment': 'none', 'erase': 0.0, 'mixup': 0.0,
       'cutmix': 0.0, 'smoothing': 0.0, 'ema': 0.0, 'loss': 'ce', 'name': 'linear'}


def fit(x, y, number, penalties, count=None):
    """Fit logistic regressions: minimise cross-entropy + penalty / 2 * |weight|^2, for each penalty in turn.

    x: features (N, C). y: classes (N,). number: of classes. count: a Count of the regressions, if given.

    Returns [(weight (number, C), bias (number,))]. Each fit starts from the result of the one before.
    """
    weight = x.new_zeros(number, x.shape[1]).requires_grad_()
    bias = x.new_zeros(number).requires_grad_()
    fitted = []
    for penalty in penalties:
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=300, tolerance_grad=1e-6,
                                      tolerance_change=1e-9, line_search_fn='strong_wolfe')

        def objective(penalty=penalty, optimizer=optimizer):
            optimizer.zero_grad()
            value = F.cross_entropy(x @ weight.T + bias, y) + penalty / 2 * weight.square().sum()
            value.backward()
            return value

        optimizer.step(objective)
        fitted.append((weight.detach().clone(), bias.detach().clone()))
        if count:
            count.add()
    return fitted


def standardised(x, *others):
    """Tensors (N, C) normalised by the mean and the standard deviation of the first: BatchNorm without parameters."""
    mean = x.mean(0)
    std = x.std(0, correction=0) + 1e-6
    return [(tensor - mean) / std for tensor in (x, *others)]


def folds(y, seed):
    """Divide images for cross-validation, each class evenly.

    y: classes (N,), on the CPU.

    Returns [(indices to train on, indices that are held out)]; one fold if there are more than MANY images,
    none if a class has a single image.
    """
    class_sizes = torch.bincount(y)
    count = min(FOLDS, int(class_sizes[class_sizes > 0].min()))
    if count < 2:
        return []
    generator = torch.Generator().manual_seed(seed)
    fold_of = torch.zeros(len(y), dtype=torch.long)
    for label in y.unique().tolist():
        indices = (y == label).nonzero().flatten()
        fold_of[indices] = torch.randperm(len(indices), generator=generator) % count
    return [((fold_of != fold).nonzero().flatten(), (fold_of == fold).nonzero().flatten())
            for fold in range(count if len(y) <= MANY else 1)]


def linear_probe(options, dataset=None, val_dataset=None, say=print):
    """(top-1, top-5) of the validation images, in percent. The arguments and ValueErrors are those of compute()."""
    features = compute(options, dataset, val_dataset, say)
    x = features.x.double() if len(features.x) <= MANY else features.x
    y = features.y
    number = len(features.classes)
    num_right = torch.zeros(len(PENALTIES))
    divisions = folds(y.cpu(), options.seed)
    fits = len(divisions) * len(PENALTIES)
    with LiveLine(say).counting('cross-validation', fits, 'fit') as count:
        for inside, outside in divisions:
            train, held_out = standardised(x[inside], x[outside])
            for place, (weight, bias) in enumerate(fit(train, y[inside], number, PENALTIES, count)):
                predicted = (held_out @ weight.T + bias).argmax(1)
                num_right[place] += (predicted == y[outside]).sum().item()
        chosen = int(num_right.argmax()) if divisions else len(PENALTIES) // 2
        train, val = standardised(x, features.val_x.to(x.dtype))
        count.start('on all training images', chosen + 1)
        weight, bias = fit(train, y, number, PENALTIES[:chosen + 1], count)[-1]
    top1, top5 = accuracy(val @ weight.T + bias, features.val_y)
    how = 'not chosen: a class has a single image'
    if len(divisions) == 1:
        how = f'chosen on {len(divisions[0][1]):,} of the training images, which were held out for that'
    elif divisions:
        how = f'chosen by {len(divisions)}-fold cross-validation on the training images'
    say(f'linear probe: top-1 {top1:.2f} %, top-5 {top5:.2f} % (penalty {PENALTIES[chosen]:.1g}, {how})')
    return top1, top5


@reader_may_leave(ends=False)
def main(argv=None):
    argv = list(sys.argv[1:] if argv is None else argv)
    if '--mae' in argv:
        argv.remove('--mae')
        probe_by_fine_tuning(argv)
        return
    options = parse(Options, 'downstream_imagenet.linear', __doc__.splitlines()[0], argv)
    with errors_in_one_sentence():
        linear_probe(options)


def probe_by_fine_tuning(argv):
    """The linear probe of --mae, given the other words of the command line."""
    given = {word.split('=')[0] for word in argv}
    sources = given & {'--weights', '--finetune_from', '--random', '--timm'}
    needs_none = given & {'--help', '-h', '--eval', '--resume', '--resume_from'}
    if len(sources) != 1 and not needs_none:
        sys.exit('error: say which weights: one of --weights=FILE, --random and --timm')
    argv = ['--weights=timm' if word == '--timm' else word for word in argv if word != '--random']
    options = parse(config.Options, 'downstream_imagenet.linear --mae',
                    'Linear probe with the recipe of MAE.', argv,
                    mae_recipe)
    with errors_in_one_sentence(resumes=True):
        fine_tune(options)


def mae_recipe(given):
    """MAE's options as a dict, to be overridden by those in the dict `given`. Raises ValueError for another recipe."""
    register(given.get('register', USERS_NETWORKS))
    require(given.get('recipe') not in NAMED, f'--mae is a recipe, and --recipe={given.get("recipe")} another: give one of '
            'them; python -m downstream_imagenet.main takes the latter')
    return MAE


if __name__ == '__main__':
    main()
