"""k-nearest-neighbour classification on frozen features (DINO's protocol), which needs no training.

    python -m downstream_imagenet.knn --data_path=DIR --model=resnet50 --weights=FILE        (or --random, or
    --timm)

Features are average pooled and divided by their length. The k nearest training images vote with the weight
exp(cosine / 0.07).
"""
from common.start import start_tool

if __name__ == '__main__':
    start_tool()

import torch
import torch.nn.functional as F

from common.cli import errors_in_one_sentence, parse, reader_may_leave
from common.live_line import LiveLine
from downstream_imagenet.features import Options, accuracy, compute

NEIGHBOURS = (10, 20, 100, 200)
TEMPERATURE = 0.07


def votes(features, number, chunk=2 ** 26, count=None):
    """The scores of the validation images, {k: (N, number)}, for each k of NEIGHBOURS that there are images for.

    features: a Features. number: of classes. chunk: the most similarities that are held in memory. count: a
    Count of the validation images, if given.
    """
    x = F.normalize(features.x)
    val_x = F.normalize(features.val_x)
    ks = [k for k in NEIGHBOURS if k <= len(x)] or [len(x)]
    scores = {k: [] for k in ks}
    for part in val_x.split(max(1, chunk // len(x))):
        cosine, index = (part @ x.T).topk(ks[-1], dim=1)
        weight = (cosine / TEMPERATURE).exp()
        label = features.y[index]
        for k in ks:
            empty = weight.new_zeros(len(part), number)
            scores[k].append(empty.scatter_add(1, label[:, :k], weight[:, :k]))
        if count:
            count.add(len(part))
    return {k: torch.cat(parts) for k, parts in scores.items()}


def knn(options, dataset=None, val_dataset=None, say=print):
    """{k: (top-1, top-5)} of the validation images, in percent. The arguments and ValueErrors are those of compute()."""
    features = compute(options, dataset, val_dataset, say)
    with LiveLine(say).counting('nearest neighbours', len(features.val_x)) as count:
        scores_of_k = votes(features, len(features.classes), count=count)
    found = {k: accuracy(scores, features.val_y) for k, scores in scores_of_k.items()}
    for k, (top1, top5) in found.items():
        say(f'k-NN, k = {k}: top-1 {top1:.2f} %, top-5 {top5:.2f} %')
    return found


@reader_may_leave()
def main(argv=None):
    options = parse(Options, 'downstream_imagenet.knn', 'k-NN on frozen features.', argv)
    with errors_in_one_sentence():
        knn(options)


if __name__ == '__main__':
    main()
