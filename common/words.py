"""Words that messages share."""
from numbers import Integral, Real


def counted(number, noun, plural=None):
    """A number with its noun: '1 image', '1,200 images', '0.5 epochs'. plural: noun + 's' if not given.

    What is no number, as in a file that somebody else wrote, stands there as it is.
    """
    text = f'{number:,}' if isinstance(number, Integral) else f'{number:g}' if isinstance(number, Real) else str(number)
    return f'{text} {noun if number == 1 else plural or noun + "s"}'


def described(lines):
    """What a run says at its start: a line 'word        text' of each (word, text); without a word the text as it is."""
    return '\n' + ''.join(f'{word:12}{text}\n' if word else text for word, text in lines)
