"""Is the learning rate of --recipe=auto a good one? Runs with it, with less and with more of it.

    python -m benchmarks.recipe DIR [--model=your_convnet --input_size=64 --decoder_width=64] [--factors 0.33 1 3] [--seeds 0]

DIR: images in folders of classes, train/ and val/. The labels are for the k-NN alone. Batch, epochs and rate are those
that the rule chooses for the images in train/ on this machine; the rate is multiplied by each factor. Printed are the
loss of the held-out images at the end, and the accuracy of a k-NN (k = 20) on the features. --folder: where the runs
go and stay, so that the same command goes on; a temporary folder if not given.
"""
import argparse
import tempfile
from pathlib import Path

from benchmarks.timing import machine
from common.distributed import this_process
from downstream_imagenet.features import Options
from downstream_imagenet.knn import knn
from pretrain.main import pretrain, training_images
from pretrain.methods import recommended
from pretrain.recipe import Recipe
from pretrain.results.read_log import read_log


def options_of(args, factor, seed, folder):
    """The options of a run, as the rule chooses them, the rate multiplied by a factor."""
    given = recommended(run_dir=str(folder / f'run_{factor:g}_{seed}'), data_path=args.data, model=args.model,
                        input_size=args.input_size, decoder_width=args.decoder_width, seed=seed, recipe='auto',
                        picture_every=0, val_every=10 ** 6)
    chosen, _ = Recipe().settled(given, len(training_images(given)), this_process())
    return recommended(**{**chosen.as_dict(), 'lr': chosen.lr * factor})


def result(args, options):
    """(held-out loss, top-1 of a k-NN in percent) of a run."""
    folder = pretrain(options)
    loss = read_log(folder).epochs[-1]['val_loss']
    features = Options(data_path=args.data, weights=str(folder / f'{args.model}_1kpretrained.pth'), model=args.model,
                       input_size=args.input_size)
    return loss, knn(features)[20][0]


def main(argv=None):
    parser = argparse.ArgumentParser('benchmarks.recipe', description=__doc__.split('\n')[0], allow_abbrev=False)
    parser.add_argument('data')
    parser.add_argument('--model', default='your_convnet')
    parser.add_argument('--input_size', type=int, default=64)
    parser.add_argument('--decoder_width', type=int, default=64)
    parser.add_argument('--factors', type=float, nargs='+', default=[0.33, 1, 3])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    parser.add_argument('--folder', type=Path)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        rows = []
        for seed in args.seeds:
            for factor in args.factors:
                options = options_of(args, factor, seed, args.folder or Path(temporary))
                rows.append((options, factor, *result(args, options)))
    print(f'\n{machine(this_process().device)}\n\nbatch  epochs  factor  rate     seed  held-out loss  k-NN top-1')
    for options, factor, loss, accuracy in rows:
        print(f'{options.batch_size:<6} {options.epochs:<7} {factor:<7g} {options.lr:<8.2g} {options.seed:<5} '
              f'{loss:<14.4f} {accuracy:.2f} %')


if __name__ == '__main__':
    main()
