"""The figures of semantic segmentation. All come from one table: how many pixels of each class were taken for which.

They are MMSegmentation's (mIoU, mAcc, aAcc), over the pixels of all images together.
"""
import torch

from common.words import printable
from downstream_ade20k.classes import IGNORE


class Confusion:
    """Counts pixels by their true class and by the class that was found. The counts are exact.

    counts: (K, K) int64, rows the truth, columns what was found. images: how many were added.
    """

    def __init__(self, classes, device='cpu'):
        self.counts = torch.zeros(classes, classes, dtype=torch.int64, device=device)
        self.images = 0

    def add(self, found, truth):
        """Count the pixels of an image but for those that are to be ignored.

        found: class numbers (H, W). truth: the same, IGNORE where a pixel does not count.
        """
        classes = len(self.counts)
        places = truth.long() * classes + found
        # What is ignored gets a place of its own at the end, which is cheaper than to pick out the others.
        places = torch.where(truth == IGNORE, classes ** 2, places)
        counted = torch.bincount(places.flatten(), minlength=classes ** 2 + 1)
        self.counts += counted[:-1].view(classes, classes)
        self.images += 1

    def reduce(self, ranks):
        """Add up what all ranks have counted, in place."""
        ranks.all_reduce(self.counts)
        self.images = int(ranks.all_reduce(torch.tensor(self.images, device=self.counts.device)))

    def metrics(self):
        """{'mIoU', 'mAcc', 'aAcc' in percent, 'images'}; None for what no pixel can tell.

        mIoU: intersection over union, the mean over the classes that are in the truth or were found. So a
            class that was found and is not in the truth counts as 0, and one that is neither is left out.
        mAcc: the share of a class's pixels that were found to be of it, the mean over the classes in the
            truth.
        aAcc: the share of all pixels whose class was found.
        """
        classes, pixels = self.of_classes(), int(self.counts.sum())
        right = int(self.counts.diagonal().sum())
        return {'mIoU': mean(classes['IoU']), 'mAcc': mean(classes['accuracy']),
                'aAcc': 100 * right / pixels if pixels else None, 'images': self.images}

    def of_classes(self):
        """{'IoU', 'accuracy', 'share' of all pixels in the truth}: a list of K percentages each.

        None where there is no pixel to tell: the IoU of a class that is neither in the truth nor found, and
        the accuracy of one that is not in the truth.
        """
        counts = self.counts.cpu()
        right, truth, found = counts.diagonal(), counts.sum(1), counts.sum(0)
        return {'IoU': percentages(right, truth + found - right), 'accuracy': percentages(right, truth),
                'share': percentages(truth, counts.sum().expand(len(counts)))}


def percentages(parts, wholes):
    """Two integer tensors (K,) as K percentages, None where the whole is 0."""
    return [100 * part / whole if whole else None for part, whole in zip(parts.tolist(), wholes.tolist())]


def mean(values):
    """The mean of the values that are not None; None if there are none."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def class_table(of_classes, names):
    """What Confusion.of_classes gives, as text: a line for each class, in the order of the names."""
    rows = [('class', 'IoU', 'accuracy', '% of pixels')]
    for name, *values in zip(names, of_classes['IoU'], of_classes['accuracy'], of_classes['share']):
        rows.append((printable(name), *('-' if value is None else f'{value:.2f}' for value in values)))
    name_width, *widths = (max(map(len, column)) for column in zip(*rows))
    lines = []
    for name, *cells in rows:
        aligned = [cell.rjust(width) for cell, width in zip(cells, widths)]
        lines.append('  '.join([name.ljust(name_width), *aligned]))
    return '\n'.join(lines)
