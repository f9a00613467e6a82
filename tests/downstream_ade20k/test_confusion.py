"""mIoU, mAcc and aAcc."""
import pytest
import torch

from downstream_ade20k.classes import IGNORE
from downstream_ade20k.confusion import Confusion, class_table


def drawn(classes, *sizes, seed=0):
    """[(found int64, truth int16)] of random images; half of the pixels are right, some are to be ignored."""
    generator = torch.Generator().manual_seed(seed)
    images = []
    for size in sizes:
        found, other = (torch.randint(classes, size, generator=generator) for _ in range(2))
        truth = torch.where(torch.rand(size, generator=generator) < 0.5, found, other)
        truth[torch.rand(size, generator=generator) < 0.1] = IGNORE
        images.append((found, truth.to(torch.int16)))
    return images


def counted(images, classes):
    pixels = Confusion(classes)
    for found, truth in images:
        pixels.add(found, truth)
    return pixels


def test_by_hand():
    truth = torch.tensor([[0, 0, 0, 1], [1, 1, IGNORE, IGNORE]], dtype=torch.int16)
    found = torch.tensor([[0, 0, 1, 1], [1, 3, 2, 0]])
    pixels = counted([(found, truth)], 5)
    assert pixels.counts.tolist() == [[2, 1, 0, 0, 0], [0, 2, 0, 1, 0], [0] * 5, [0] * 5, [0] * 5]
    of_classes = pixels.of_classes()
    # class 3 was found and is nowhere; 2 is found where it is ignored alone; 4 is nowhere
    assert of_classes['IoU'] == pytest.approx([200 / 3, 50, None, 0, None])
    assert of_classes['accuracy'] == pytest.approx([200 / 3, 200 / 3, None, None, None])
    assert of_classes['share'] == [50, 50, 0, 0, 0]
    assert pixels.metrics() == {'mIoU': pytest.approx((200 / 3 + 50 + 0) / 3), 'mAcc': pytest.approx(200 / 3),
                                'aAcc': pytest.approx(400 / 6), 'images': 1}


@pytest.mark.parametrize('classes', [2, 7, 150, 300])
def test_by_the_definition(classes):
    images = drawn(classes, (20, 31), (40, 17), (1, 1), seed=classes)
    pixels = counted(images, classes)
    found, truth = (torch.cat([image[i].flatten().long() for image in images]) for i in (0, 1))
    found = found[truth != IGNORE]
    truth = truth[truth != IGNORE]
    intersections, unions, sizes = [], [], []
    for number in range(classes):
        intersections.append(((found == number) & (truth == number)).sum().item())
        unions.append(((found == number) | (truth == number)).sum().item())
        sizes.append((truth == number).sum().item())
    ious = [100 * a / b for a, b in zip(intersections, unions) if b]
    accuracies = [100 * a / b for a, b in zip(intersections, sizes) if b]
    assert pixels.metrics() == {
        'mIoU': pytest.approx(sum(ious) / len(ious)), 'mAcc': pytest.approx(sum(accuracies) / len(accuracies)),
        'aAcc': pytest.approx(100 * (found == truth).float().mean().item()), 'images': 3}
    assert int(pixels.counts.sum()) == len(truth)


def test_order_and_size_of_the_images_do_not_matter():
    images = drawn(4, (9, 9), (30, 5), (2, 70))
    one = counted(images, 4)
    joined = tuple(torch.cat([image[i].flatten() for image in images])[None] for i in (0, 1))
    assert torch.equal(one.counts, counted(images[::-1], 4).counts)
    assert torch.equal(one.counts, counted([joined], 4).counts)


def test_counts_stay_exact_where_floats_do_not():
    pixels = Confusion(2)
    pixels.counts[0, 0] = 2 ** 53
    pixels.add(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int16))
    assert pixels.counts.tolist() == [[2 ** 53 + 1, 0], [0, 0]]


def test_what_no_pixel_tells_is_not_measured():
    nothing = counted([(torch.zeros(3, 4, dtype=torch.int64), torch.full((3, 4), IGNORE, dtype=torch.int16))], 2)
    assert nothing.metrics() == {'mIoU': None, 'mAcc': None, 'aAcc': None, 'images': 1}
    assert nothing.of_classes()['IoU'] == [None, None]


def test_the_table_has_a_line_for_each_class():
    truth = torch.tensor([[0, 0, 1, 1]], dtype=torch.int16)
    pixels = counted([(torch.tensor([[0, 0, 0, 1]]), truth)], 3)
    table = class_table(pixels.of_classes(), ('sky', 'chest of drawers', 'a\nb')).splitlines()
    assert [line.split('  ')[0] for line in table] == ['class', 'sky', 'chest of drawers', 'a\\nb']
    assert [line.split()[-3:] for line in table[1:]] == [['66.67', '100.00', '50.00'], ['50.00', '50.00', '50.00'],
                                                         ['-', '-', '0.00']]
    assert len({len(line) for line in table}) == 1
