"""The levels of the pyramid, chosen from the sizes of all feature maps; which images and cells fit them."""
from dataclasses import dataclass

from pretrain.sparse.notes import Note, NoteKind
from pretrain.sparse.refused import Refused

LARGEST_STRIDE = 32  # levels after it are left out where the image is no multiple of their stride
LEVELS = 4  # of the pyramid, at most


@dataclass(frozen=True)
class Levels:
    """The pyramid of a network.

    stride: the total stride. stop: number of feature maps after which the forward ends, None if it runs them
    all. reductions: strides of the levels, small to large. indices: their places in the list of all feature maps.
    """
    stride: int
    stop: int | None
    reductions: tuple
    indices: tuple
    notes: tuple = ()


def choose_levels(name, image, maps, cell_size=None):
    """The levels of a network: the last feature map of each of the last four strides.

    Args:
        name: of the network, for messages.
        image: (height, width) in pixels.
        maps: (height, width) of each feature map, large to small.
        cell_size: side of a cell in pixels if it is given.

    Raises ValueError if the sizes do not fit, Refused for a network whose maps make no pyramid.
    """
    notes = []
    stride, stop = total_stride(name, image, maps[-1]), None
    if stride > LARGEST_STRIDE and cell_size is None and any(side % stride for side in image):
        stop = next(i for i, size in enumerate(maps) if total_stride(name, image, size) > LARGEST_STRIDE)
        notes.append(Note(NoteKind.LEVEL_LEFT_OUT,
                          f'the level of stride {stride} is left out, since {image[0]}x{image[1]} is no '
                          f'multiple of {stride}: the layers after stride {LARGEST_STRIDE} are not '
                          'pretrained'))
        stride = LARGEST_STRIDE
    check_sizes(name, image, stride, cell_size or stride)
    strides = [stride_of(image, size) for size in maps][:stop]
    number = min(LEVELS, stride.bit_length() - 1)
    wanted = [stride // 2 ** i for i in reversed(range(number))]
    reductions = tuple(one for one in wanted if one in strides)
    if stride not in reductions:
        raise Refused(f'{name} has no feature map of stride {stride} at {image[0]}x{image[1]}: its maps are '
                      f'{maps}')
    if len(reductions) < len(wanted):
        missing = ', '.join(str(one) for one in wanted if one not in reductions)
        notes.append(Note(NoteKind.STRIDE_WITHOUT_MAP,
                          f'no feature map of stride {missing}: the decoder gets nothing from the encoder '
                          'there'))
    indices = tuple(max(i for i, one in enumerate(strides) if one == reduction) for reduction in reductions)
    return Levels(stride, stop, reductions, indices, tuple(notes))


def stride_of(image, size):
    """The stride of a feature map; None unless it divides the image, by the same number in both axes."""
    (height, width), (h, w) = image, size
    return height // h if height * w == width * h and not height % h else None


def total_stride(name, image, smallest):
    """The power of two that divides the image into its smallest map, rounded down or up. Raises Refused."""
    for stride in (2 ** i for i in range(1, 12)):
        down = tuple(side // stride for side in image)
        up = tuple(-(-side // stride) for side in image)
        if tuple(smallest) in (down, up):
            return stride
    raise Refused(f'{name} turns an image of {image[0]}x{image[1]} into a map of '
                  f'{smallest[0]}x{smallest[1]}: its total stride is no power of two, which the decoder '
                  'needs (it doubles)')


def check_sizes(name, image, stride, cell, notes=()):
    """Raise a ValueError if a cell does not fit a network's total stride, or an image a cell.

    notes: what is said of the network so far. One that tells why the cells are larger than the stride is repeated.
    """
    why = ''.join(f' ({note})' for note in notes if note.kind is NoteKind.LARGER_CELLS)
    if cell < 1 or cell % stride or not is_power_of_two(cell // stride):
        raise ValueError(f'cell_size {cell} does not fit {name}, whose total stride is {stride}: '
                         f'give {stride}, {2 * stride} or another {stride} times a power of two')
    for what, side in zip(('height', 'width'), image):
        if side % cell:
            nearest = sorted({max(side // cell, 1) * cell, (side // cell + 1) * cell})
            raise ValueError(f'input_size: the {what} {side} is no multiple of the cell, {cell} px{why}: '
                             f'give {" or ".join(map(str, nearest))}')
    if image[0] * image[1] < 2 * cell * cell:
        raise ValueError(f'an image of {image[0]}x{image[1]} is a single cell of {cell} px{why}, and one '
                         f'must be visible and one hidden: give input_size={2 * cell} or more')


def is_power_of_two(number):
    return number & (number - 1) == 0
