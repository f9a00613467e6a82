"""k-NN on frozen features (DINO's protocol): what a network's features say without any training.

    python -m downstream_imagenet.knn --data_path=DIR --model=resnet50 --weights=FILE        (or --random, or --timm)

Features are average pooled and divided by their length; the k nearest training images vote with exp(cosine / 0.07).
"""
import torch
import torch.nn.functional as F

from common.cli import errors_in_one_sentence, parse, reader_may_leave
from downstream_imagenet.features import Options, accuracy, compute

NEIGHBOURS = (10, 20, 100, 200)
TEMPERATURE = 0.07


def votes(features, number, chunk=2 ** 26):
    """{k: scores (N, K)} of the validation images, for each k of NEIGHBOURS that there are images for; `number` classes."""
    x, others = F.normalize(features.x), F.normalize(features.val_x)
    ks = [k for k in NEIGHBOURS if k <= len(x)] or [len(x)]
    scores = {k: [] for k in ks}
    for part in others.split(max(1, chunk // len(x))):
        cosine, index = (part @ x.T).topk(ks[-1], dim=1)
        weight, label = (cosine / TEMPERATURE).exp(), features.y[index]
        for k in ks:
            scores[k].append(weight.new_zeros(len(part), number).scatter_add(1, label[:, :k], weight[:, :k]))
    return {k: torch.cat(parts) for k, parts in scores.items()}


def knn(options, dataset=None, val_dataset=None, say=print):
    """{k: (top-1, top-5)} in percent. Raises ValueError."""
    features = compute(options, dataset, val_dataset, say)
    found = {k: accuracy(scores, features.val_y) for k, scores in votes(features, len(features.classes)).items()}
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
