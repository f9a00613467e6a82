"""Words that messages share."""
import os
from numbers import Integral, Real
from pathlib import Path


def counted(number, noun, plural=None):
    """A number with its noun: '1 image', '1,200 images', '0.5 epochs'. plural: noun + 's' if not given.

    What is no number, as in a file that somebody else wrote, stands there as it is.
    """
    if isinstance(number, Integral):
        text = f'{number:,}'
    elif isinstance(number, Real):
        text = f'{number:g}'
    else:
        text = str(number)
    return f'{text} {noun if number == 1 else plural or noun + "s"}'


def described(lines):
    """What a run says at its start: a line 'word        text' of each (word, text); without a word the text
    as it is.
    """
    return '\n' + ''.join(f'{word:12}{text}\n' if word else text for word, text in lines)


def first_line(text):
    """The first line of a text, such as the message of an exception; '' if there is none."""
    return next(iter(str(text).splitlines()), '')


def printable(text):
    """A text or a path in one line, with escapes for what does not print: a file's name may hold anything."""
    return ''.join(letter if letter.isprintable() else letter.encode('unicode_escape').decode()
                   for letter in str(text))


def file_stem(path, most=150):
    """The name of a file without its ending, as a part of other files' names: cut to `most` bytes, since names have 255."""
    return os.fsdecode(os.fsencode(Path(path).stem)[:most])


def first_of(names, most=5):
    """The first of several names, with commas between them: 'a, b, c, d, e, ...'."""
    return ', '.join(map(printable, names[:most])) + ', ...' * (len(names) > most)


def number_and_first_of(names, most=4):
    """How many names there are, and the first of them: '5 (a, b, c, d, ...)', or '0'."""
    return f'{len(names)} ({first_of(names, most)})' if names else '0'
