"""Words that messages share."""
from numbers import Integral, Real


def counted(number, noun, plural=None):
    """A number with its noun: '1 image', '1,200 images', '0.5 epochs'. plural: noun + 's' if not given.

    What is no number, as in a file that somebody else wrote, stands there as it is.
    """
    text = f'{number:,}' if isinstance(number, Integral) else f'{number:g}' if isinstance(number, Real) else str(number)
    return f'{text} {noun if number == 1 else plural or noun + "s"}'
