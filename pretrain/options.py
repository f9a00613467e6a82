"""The options of each method of pretraining, by the name that --method gives.

Options are checked before torch is loaded, which takes seconds. So nothing here imports it; what a method
computes is in pretrain/methods.py.
"""
import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass

from common.about import About
from common.cli import parse, renewed
from pretrain import a2mim_options, convmae_options, mae_options, spark_options

MOST_USED = ('name', 'data_path', 'val_fraction', 'model', 'input_size', 'recipe', 'batch_size', 'epochs', 'lr', 'init')


@dataclass(frozen=True)
class MethodOptions:
    """What the command line has to know of a method.

    title: one line for --help. options: the class of its options, a frozen dataclass derived from
    PretrainingOptions. recipe: a function of the options that are given, a dictionary; it returns what the
    method's authors use for them, as a dictionary of options. small_model: a small network, for an example.
    """
    title: str
    options: type
    recipe: Callable
    small_model: str


OPTIONS = {
    spark_options.SPARK: MethodOptions(spark_options.TITLE, spark_options.SparKOptions, spark_options.recipe, 'resnet18'),
    a2mim_options.NAME: MethodOptions(a2mim_options.TITLE, a2mim_options.A2MIMOptions, a2mim_options.recipe, 'resnet18'),
    mae_options.NAME: MethodOptions(mae_options.TITLE, mae_options.MAEOptions, mae_options.recipe, 'vit_small_patch16_224'),
    convmae_options.NAME: MethodOptions(convmae_options.TITLE, convmae_options.ConvMAEOptions, convmae_options.recipe,
                                        'convvit_small'),
}
DEFAULT = spark_options.SPARK  # of --method, and of runs from before there was a choice


def options_of(name):
    """The MethodOptions of a method. Raises ValueError for one that is not known."""
    if name not in list(OPTIONS):  # a list: what a file says may be no text, and cannot be looked up then
        raise ValueError(f'method is one of {", ".join(OPTIONS)}, not {name}')
    return OPTIONS[name]


def recommended(**given):
    """Options from Python as the command line would have them.

    In rising order: the method's defaults, its recipe for the model, what is given. Raises ValueError.
    """
    method = options_of(given.get('method', DEFAULT))
    given = renewed(method.options, given)
    return method.options(**{**method.recipe(given), **given})


def parse_options(argv=None, program='pretraining'):
    """The options of a command line, of the method that it names. Exits with code 2 and one sentence if they are wrong.

    program: what the command is called in its help.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    name = named_method(argv)
    method = OPTIONS[name]
    about = About(method.title, examples_of(name), MOST_USED)
    return parse(method.options, program, about, argv, method.recipe)


def examples_of(name):
    """Pairs (command, what it does) for the --help of a method."""
    method = OPTIONS[name]
    model = method.options.__dataclass_fields__['model'].default
    named = '' if name == DEFAULT else f' --method={name}'
    return (
        (f'bash pretrain/main.sh my_run --data_path=DIR --model={model}{named}',
         'pretrain on the images of a folder; the same command again goes on where the run stopped'),
        (f'bash pretrain/main.sh small --data_path=DIR --model={method.small_model} --input_size=192 --bs=64 --ep=100{named}',
         'a small network on smaller images, of which each is seen 100 times'),
    )


def refuse_others(argv, name):
    """Exit with code 2 if a command line has an option that another method has, and the named one has not."""
    own = flags_of(OPTIONS[name].options)
    for word in argv:
        flag = word.partition('=')[0]
        others = [f'--method={other}' for other, method in OPTIONS.items() if flag in flags_of(method.options)]
        if others and flag not in own:
            sys.stderr.write(f'error: {flag} is an option of {" and ".join(others)}, and this is --method={name}\n')
            sys.exit(2)


def flags_of(options):
    """The flags by which the options of a class are given."""
    fields = dataclasses.fields(options)
    return {f'--{name}' for field in fields for name in (field.name, *field.metadata.get('aliases', ()))}


def named_method(argv):
    """The name of the method that a command line gives, or DEFAULT.

    Exits with code 2 if it is not known, or if an option of another method is given.
    """
    name = DEFAULT
    for flag, value in zip(argv, [*argv[1:], '']):
        if flag == '--method':
            name = value
        elif flag.startswith('--method='):
            name = flag.partition('=')[2]
    if name not in OPTIONS:
        sys.stderr.write(f'error: --method is one of {", ".join(OPTIONS)}, not {name or "empty"}\n')
        sys.exit(2)
    refuse_others(argv, name)
    return name
