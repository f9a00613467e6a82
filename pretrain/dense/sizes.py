"""The total stride of a network, the cells of an image, and which of them fit together."""
import math

from pretrain.sparse.levels import total_stride
from pretrain.sparse.refused import Refused as NoPowerOfTwo

CELL = 32  # pixels, in all recipes of A2MIM (section 4 of the paper)


def near_stride(image, size):
    """The power of two that is the total stride if a last map (h, w) is that of an image rounded up or down, or None."""
    try:
        return total_stride('', image, size)
    except NoPowerOfTwo:
        return None


def no_multiple(name, image, stride):
    """The ValueError of an image that is no multiple of the total stride."""
    axis, side = next((axis, side) for axis, side in zip(('height', 'width'), image) if side % stride)
    return ValueError(f'input_size: the {axis} {side} is no multiple of {stride}, the total stride of {name}: '
                      f'give {either(multiples_around(side, stride))}')


def no_whole_share(name, image, size, other=None):
    """The ValueError of a network whose last map (h, w) is no whole share of the image, or is by chance.

    other: (height, width) of an image of which it is; None if no such image is known.
    """
    remedy = (f'give input_size {other[0]},{other[1]}' if other else
              'use a network that pads its convolutions, as Inception and PNASNet do not')
    return ValueError(f'the last map of {name} is {size[0]}x{size[1]} for an image of {image[0]}x{image[1]}, '
                      f'which is no share of the image that holds at other sizes as well: {remedy}')


def choose_cell(name, image, stride, cell_size=None):
    """The side of a cell in pixels: `cell_size`, or the smallest multiple of the stride that is at least 32.

    Raises ValueError, with what would fit, unless the cell is a multiple of the stride, the image one of the
    cell, and there are two cells at least: one is visible, and one is hidden.
    """
    cell = math.ceil(CELL / stride) * stride if cell_size is None else cell_size
    if cell < 1 or cell % stride:
        below, *above = multiples_around(max(cell, 1), stride)
        raise ValueError(f'cell_size {cell} is no multiple of {stride}, the total stride of {name}: give '
                         f'{either([below, *above])}')
    for axis, side in zip(('height', 'width'), image):
        if side % cell:
            fitting = fitting_cells(image, stride)
            other = f', or cell_size {either(fitting)}' if fitting else ''
            raise ValueError(f'input_size: the {axis} {side} is no multiple of the cell, {cell} px: give '
                             f'{either(multiples_around(side, cell))}{other}')
    if image[0] * image[1] < 2 * cell * cell:
        raise ValueError(f'an image of {image[0]}x{image[1]} is a single cell of {cell} px, and one must be '
                         f'visible and one hidden: give input_size {2 * cell} or more')
    return cell


def fitting_cells(image, stride):
    """Up to three cell sizes that fit an image of two cells or more, those nearest to 32 px."""
    common = math.gcd(*image)
    fitting = [cell for cell in range(stride, common + 1, stride)
               if common % cell == 0 and image[0] * image[1] >= 2 * cell * cell]
    return sorted(sorted(fitting, key=lambda cell: abs(cell - CELL))[:3])


def multiples_around(number, of):
    """The multiples of `of` next to a number, below and above; 0 is none."""
    return sorted({max(number // of, 1) * of, (number // of + 1) * of})


def either(numbers):
    return ' or '.join(map(str, numbers))
