"""Command lines from frozen dataclasses: each field is an option, with its help text, group and aliases beside it.

A wrong option is answered at once, so neither torch nor NumPy is imported here.
"""
import argparse
import dataclasses
import difflib
import importlib.util
import os
import select
import signal
import sys
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path

from common.about import About
from common.memory_errors import OutOfMemory, is_out_of_memory
from common.reliability.stopping import Ended, leave
from common.words import first_line

LAUNCHER = ('--ngpu_per_node', '--num_nodes', '--node_rank', '--master_address', '--master_port', '--max_restarts')


def option(default, help, group, aliases=(), parse=None, choices=None, may_change=False, replaces=None,
           by_recipe=False):
    """A dataclass field that is an option. may_change: it may change when a run is resumed.

    parse makes a value of its text; if not given, the type of the default does. `boolean` for an option whose
    default is None: --flag, --flag=True, --flag=False, --no_flag, or not given.
    replaces: {name of a boolean option that this one has replaced: {True: value, False: value}}. Command
    lines and saved runs may still have it.
    by_recipe: whether a recipe sets it on the command line where it is not given, so that the default is not told there.
    """
    if isinstance(default, bool):
        parse = boolean
    metadata = {'help': help, 'group': group, 'aliases': aliases, 'parse': parse or type(default), 'choices': choices,
                'may_change': may_change, 'replaces': replaces or {}, 'by_recipe': by_recipe}
    return dataclasses.field(default=default, metadata=metadata)


def boolean(text):
    """True, False, 1, 0, yes, no: the official form is --sbn=True."""
    values = {'true': True, '1': True, 'yes': True, 'false': False, '0': False, 'no': False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f'"{text}" is neither True nor False')
    return values[text.lower()]


def numbers(text, kind=float):
    """'0.5,0.5' -> (0.5, 0.5)."""
    try:
        return tuple(kind(part) for part in text.split(','))
    except ValueError:
        raise argparse.ArgumentTypeError(f'"{text}" is no number, nor numbers with commas between '
                                         'them') from None


def plain_fields(options):
    """{name: value} of a dataclass of options in plain Python types, as files and command lines have them.

    Lists become tuples, NumPy's numbers Python's, paths strings. ~ at the start of a text is the home folder:
    the shell leaves --data_path=~/images as it is. Raises ValueError for a value of another type.
    """
    plain = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        try:
            plain[field.name] = None if value is None and field.default is None else _as_plain(value, field.type)
        except TypeError:
            raise ValueError(f'{field.name} cannot be {value!r}: {field.metadata["help"]}') from None
    return plain


def _as_plain(value, kind):
    """The value as a plain one of the kind (a type, or a union of them: the first that fits). Raises TypeError."""
    if hasattr(value, 'tolist'):  # a number or an array of NumPy, or a tensor
        value = value.tolist()
    for one in getattr(kind, '__args__', (kind,)):
        if one is bool and isinstance(value, bool):
            return bool(value)
        if one is int and isinstance(value, Integral) and not isinstance(value, bool):
            return int(value)
        if one is float and isinstance(value, Real) and not isinstance(value, bool):
            return float(value)
        if one is str and isinstance(value, (str, os.PathLike)) and str(value):
            return os.path.expanduser(os.fspath(value))
        if one is tuple and isinstance(value, (tuple, list)):
            return tuple(_as_plain(part, int | float) for part in value)
    raise TypeError


def expanded(argv=None):
    """The arguments of a command line, the process's if not given, with ~ as the home folder after a flag's
    = as well.
    """
    argv = sys.argv[1:] if argv is None else argv
    parts = [arg.partition('=') if arg.startswith('--') else ('', '', arg) for arg in argv]
    return [flag + equals + os.path.expanduser(value) for flag, equals, value in parts]


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        for word in message.split():
            if message.startswith('unrecognized') and word.startswith('--'):
                message = self.unknown(word.split('=')[0])
                break
        self.exit(2, f'error: {message} (--help lists all flags)\n')

    def unknown(self, flag):
        """What is said of a flag that does not exist."""
        if flag in LAUNCHER:
            return f'{flag} is an option of main.sh, not of python -m {self.prog}'
        flags = [flag for action in self._actions for flag in action.option_strings]
        near = difflib.get_close_matches(flag, [*flags, *LAUNCHER], n=3)
        return f'unknown flag {flag}' + (f': did you mean {" or ".join(near)}?' if near else '')


def _formatter(prog):
    """argparse's formatter of --help, which keeps the lines of the description."""
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=36, width=112)


def parser_of(cls, program, about):
    """An argparse parser of the options of a dataclass. What is not given on the command line stays unset.

    about: an About, or only the description in it.
    """
    about = about if isinstance(about, About) else About(about)
    parser = _Parser(program, usage='%(prog)s [options]', description=about.text, allow_abbrev=False,
                     formatter_class=_formatter, add_help=False)
    groups = {}
    for title, field in about.grouped(dataclasses.fields(cls)):
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        add_option(groups[title], field)
    parser.add_argument_group('help').add_argument('-h', '--help', action='help', help='show this text')
    return parser


def add_option(group, field):
    """Add the flags of a field of a dataclass of options to a group of argparse."""
    about = field.metadata
    flags = [f'--{field.name}', *(f'--{alias}' for alias in about['aliases'])]
    shown = ','.join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    common = {'dest': field.name, 'default': argparse.SUPPRESS,
              'help': about['help'] + (f' (default: {shown})' if shown is not None and not about['by_recipe'] else '')}
    if about['parse'] is boolean:
        group.add_argument(*flags, nargs='?', const=True, type=boolean, metavar='True|False', **common)
        group.add_argument(f'--no_{field.name}', dest=field.name, action='store_const', const=False,
                           default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    else:
        group.add_argument(*flags, type=about['parse'], choices=about['choices'],
                           metavar=None if about['choices'] else field.name.upper(), **common)
    for name, values in about['replaces'].items():
        add_replaced(group, name, values, field.name)


def add_replaced(group, name, values, option):
    """Add the flags of a boolean option that another one has replaced, which --help does not show.

    values: {True: value, False: value} of the other one, which is called `option`.
    """
    def value(text):
        return values[boolean(text)]

    hidden = {'dest': option, 'default': argparse.SUPPRESS, 'help': argparse.SUPPRESS}
    group.add_argument(f'--{name}', nargs='?', const='True', type=value, **hidden)
    group.add_argument(f'--no_{name}', action='store_const', const=values[False], **hidden)


def parse(cls, program, about, argv=None, recipe=None):
    """The options of a command line: dataclass default < recipe(given options, a dict) < command line.

    program, about: as of parser_of. Exits with code 2 and one sentence on a flag or value that is wrong.
    """
    parser = parser_of(cls, program, about)
    with reader_may_leave():  # of --help
        given = vars(parser.parse_args(sys.argv[1:] if argv is None else argv))
    try:
        return cls(**{**(recipe(given) if recipe else {}), **given})
    except ValueError as error:
        parser.error(str(error))


def renewed(cls, given):
    """{name: value} of options, as a caller or a saved run gives them, with today's names and values."""
    given = dict(given)
    for field in dataclasses.fields(cls):
        for name, values in field.metadata['replaces'].items():
            if name in given:
                value = given.pop(name)
                given.setdefault(field.name, values.get(value, value))
    return given


def changes(options, saved, may_change):
    """(name, value now, value saved) of the options that differ from a saved run: those that may (may_change),
    or those not.

    An option that a run was saved without is younger than the run, which therefore had its default.
    """
    saved = renewed(options, saved)
    found = []
    for field in dataclasses.fields(options):
        now, then = getattr(options, field.name), saved.get(field.name, field.default)
        if field.metadata['may_change'] == may_change and now != then:
            found.append((field.name, now, then))
    return found


def folder_for(out):
    """Make a folder for what a command writes, if it is not there. Returns its path. Raises ValueError."""
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f'cannot make the folder {out} ({error.strerror}): name another with --out') from error
    return out


def needs(*modules):
    """Raise a ValueError that says how to install those of some packages that are missing."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f'this needs {" and ".join(missing)}: pip install {" ".join(missing)}')


@contextmanager
def reader_may_leave(ends=True):
    """Around a program that prints: a reader of stdout that is gone (`... | head -1`) ends it without a word.

    ends: with code 141, as SIGPIPE would by itself. False: with the code that it has anyway, for a run whose
    result is files.
    """
    try:
        try:
            yield
        finally:
            if sys.stdout is not None and not sys.stdout.closed:
                sys.stdout.flush()
    except BrokenPipeError as error:
        if not _reader_is_gone():  # some other pipe
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # else Python tries once more at its end, and tells of that
        os.close(nowhere)
        if not ends and isinstance(error.__context__, SystemExit):
            raise error.__context__ from None
        if ends:
            sys.exit(128 + signal.SIGPIPE)


def _reader_is_gone():
    """Whether stdout is a pipe that nobody reads any more."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (OSError, ValueError, AttributeError):  # stdout has no file
        return False


# What gloo and NCCL say of ranks that are gone, or that they have waited for in vain.
LOST = ('gloo', 'Connection closed by peer', 'Connection reset by peer', 'ncclRemoteError', 'remote process',
        'NCCL communicator was aborted')


def cause_in(text):
    """The line that says most of an error's text: the one that NCCL ends with, after `Last error:`, else the first one."""
    _, found, last = text.partition('Last error:')
    return first_line(last.strip()) if found and last.strip() else first_line(text)


@contextmanager
def errors_in_one_sentence(resumes=False):
    """Around a program started from the command line: exits with 1 and one sentence for what does not fit.

    resumes: whether it is a training run, which the same command resumes. A run that was stopped has its own codes
    (common/reliability/stopping.py).
    """
    speaks = int(os.environ.get('LOCAL_RANK', 0)) == 0  # all ranks of a node would say the same
    try:
        yield
    except Ended as error:
        leave(error.code)
    except ValueError as error:
        speaks = speaks or getattr(error, 'is_of_this_rank', False)
        lines = str(error).strip().splitlines() or [type(error).__name__]
        # A loading process hands its error on as a traceback in the message.
        message = lines[-1].removeprefix('ValueError: ') if lines[0].startswith('Caught ') else '\n'.join(lines)
        sys.exit(f'error: {message}' if speaks else 1)
    except OSError as error:
        if not resumes and isinstance(error, BrokenPipeError) and _reader_is_gone():
            raise  # reader_may_leave
        goes_on = '. Nothing that was saved is lost; the same command goes on from the last checkpoint' if resumes else ''
        speaks = speaks or isinstance(error, ConnectionError)  # the other ranks of the node may not have waited in vain
        sys.exit(f'error: {error}{goes_on}' if speaks else 1)
    except RuntimeError as error:
        if isinstance(error, OutOfMemory):
            sys.exit(f'error: {error}')
        if is_out_of_memory(error):
            sys.exit(f'error: out of GPU memory ({first_line(error)}): give a smaller --bs or --input_size')
        rank = f'rank {os.environ.get("RANK", 0)}'
        if any(word in str(error) for word in LOST):
            sys.exit(f'error: {rank} has lost the others: one of them ended, as it says itself, or its machine is gone. The '
                     f'same command goes on from the last checkpoint ({cause_in(str(error))})')
        if 'NCCL' in str(error):
            sys.exit(f'error: {rank}: the GPUs cannot work together, says NCCL: {cause_in(str(error))}. If the same command '
                     'ends in the same way, NCCL_DEBUG=INFO in front of it makes NCCL say more')
        raise
    except KeyboardInterrupt:
        goes_on = ': the same command goes on from the last checkpoint' if resumes else ''
        sys.stderr.write(f'interrupted{goes_on}\n' if speaks else '')
        sys.exit(130)
