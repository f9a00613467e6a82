"""Words that messages share."""
from numbers import Integral


def counted(number, noun, plural=None):
    """A number with its noun: '1 image', '1,200 images', '0.5 epochs'. plural: noun + 's' if not given."""
    text = f'{number:,}' if isinstance(number, Integral) else f'{number:g}'
    return f'{text} {noun if number == 1 else plural or noun + "s"}'
