"""Whether a run that goes on is the one that was saved: what is raised if its options or its images are others."""
from common.cli import changes


def refuse_options(options, saved, length, chosen=(), facts=()):
    """Raise a ValueError that lists the options, and other facts, that differ from the run that was saved.

    saved: a dictionary with the entries 'config', the options then, and 'path' of the checkpoint.
    length: the name of the option that is the length of a run. More of it is no difference, and less of it alone is
        refused with another message (common/training/extension.py).
    chosen: names of options that a recipe chooses: None means not given, and is no difference.
    facts: (name, value now, value then) of what else must be the same.
    """
    wrong = changes(options, saved['config'], may_change=False)
    wrong = [(name, now, then) for name, now, then in wrong if not (now is None and name in chosen)
             and not (name == length and now > then)]
    wrong += [(name, now, then) for name, now, then in facts if now != then]
    if any(name != length for name, *_ in wrong):
        changed = '; '.join(f'{name} was {then} and is {now} now' for name, now, then in wrong)
        raise ValueError(f'{saved["path"]} is of another run: {changed}. Give what was given then, '
                         'another name, or --fresh to start over')


def refuse_other_model(options, then):
    """Raise a ValueError if --model is another network than that of the file which --eval names.

    then: the network of the file. The default of --model counts as not given.
    """
    if options.model not in (then, type(options).model):
        raise ValueError(f'--model={options.model}: the network of {options.eval} is {then}. Leave --model out')


def is_other_data(saved, images, fingerprint):
    """Whether the training images are not those of the run that was saved, as far as both know their fingerprint.

    saved: a dictionary with the entries 'images', their number, and perhaps 'fingerprint'. images, fingerprint: those of
    now.
    """
    both_known = saved.get('fingerprint') and fingerprint
    return images != saved['images'] or bool(both_known) and fingerprint != saved['fingerprint']


def refuse_other_data(saved, images, fingerprint, differ):
    """Raise a ValueError if the training images are not those of the run that was saved.

    The first three arguments are those of `is_other_data`; saved has the entry 'path' too. differ: as `data_differ` of a
    Run (common/training/run.py).
    """
    if not is_other_data(saved, images, fingerprint):
        return
    what = f'there were {saved["images"]:,} training images, and are {images:,} now' if images != saved['images'] else \
        f'the {images:,} training {differ} than then'
    raise ValueError(f'{saved["path"]} is of a run on other data: {what}. Give the data of then, another name, or '
                     '--fresh to start over; or go on with what is there now: --allow_changed_data')
