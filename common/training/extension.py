"""Longer runs: a finished run that is given more epochs goes on.

Nothing changes of the steps that are done. From there on the learning rate rises again, linearly from its last value
to the peak, and falls along a new curve to its end at the new last step: re-warming and re-decaying (Ibrahim et al.
2024, "Simple and Scalable Strategies to Continually Pre-train Large Language Models"). `Run.along` computes
it. The weight decay stays at its last value.

A run that is not finished does not become longer: its learning rate has been falling towards another end.
"""
import dataclasses

from common.words import counted


def extended(run, saved, weights_option):
    """A Run as it goes on from a checkpoint: longer, if that is of a finished run and the options have more epochs.

    saved: the content of the checkpoint, of which all options but the epochs were compared. weights_option: the name
    of the option that starts another run from weights, for a message. Raises ValueError for fewer epochs than the run
    has, and for more epochs if it is not finished.
    """
    epochs = run.epochs_in(saved['config'])
    ended_at = tuple(saved.get('ended_at', ()))
    if run.epochs < epochs:
        raise ValueError(shorter(run.unit, saved, epochs, run.epochs))
    first_warmup = saved.get('first_warmup')
    if run.epochs > epochs:
        length = {run.unit.option: run.unit.number(epochs)}
        then = dataclasses.replace(run, images=saved['images'], options=dataclasses.replace(run.options, **length))
        if not is_finished(then, saved):
            raise ValueError(not_finished(run, saved, then, weights_option))
        ended_at += (saved['step'],)
        first_warmup = then.warmup_steps if first_warmup is None else first_warmup
    return dataclasses.replace(run, ended_at=ended_at, first_warmup=first_warmup)


def is_finished(run, saved):
    """Whether nothing is left to do of what was saved: no step, nor the evaluation after the last one."""
    return bool(saved) and saved['step'] >= run.steps and not epoch_is_open(saved)


def epoch_is_open(saved):
    """Whether steps were taken since the last line in the log."""
    return saved['sums'][2] + saved.get('skipped', 0) > 0


def shorter(unit, saved, epochs, fewer):
    """The message where a run is given fewer epochs than it has. unit: the Unit of both numbers."""
    now, then = unit.flag(fewer), unit.flag(epochs)
    if saved.get('ended_at'):
        return (f'{saved["path"]} is of a run that was finished and then given more {unit.option}, '
                f'{unit.number(epochs)} in all, and {now} is less: give {then}, with which it goes on')
    return (f'{saved["path"]} is of a run of {unit.length(epochs)}, and {now} is less: its '
            f'learning rate falls over all of them, so it cannot become shorter. Give {then}, with which '
            'it goes on, another name, or --fresh to start over')


def not_finished(run, saved, then, weights_option):
    """The message where a run that is not finished is given more epochs. then: the Run with the epochs it has."""
    options, unit = run.options, run.unit
    place = '--run_dir=ANOTHER_FOLDER' if options.run_dir else f'--name={options.name}_longer'
    return (f'{saved["path"]} is of step {saved["step"]:,} of {then.steps:,}: a run can be given more {unit.option} once '
            f'it is finished, since its learning rate falls over all of them. Finish it with {unit.flag(then.epochs)}, '
            f'and then give {unit.flag(run.epochs)}, with which it goes on; or start another run from its weights: '
            f'the same command with {place} --{weights_option}={saved["path"]}')


def how_to_go_on(run):
    """Which command gives a finished run more epochs, for a person."""
    unit = run.unit
    other = 'any other number' if unit.size == 1 else f'another multiple of {unit.size:,}'
    return (f'For more {unit.option}: the same command with {unit.flag(2 * run.epochs)}, or {other} above '
            f'{unit.number(run.epochs):,}.')


def described_extension(run):
    """What a run that became longer does, for a person."""
    begin = run.ended_at[-1]
    first, decay = run.schedule(begin)
    last, _ = run.schedule(run.steps - 1)
    rises = ''
    if run.warmup_of(begin):
        rises = f'rises from {first:.3g} to the peak in {counted(run.warmup_of(begin), "step")}, then it '
    return (f'This run was finished at step {begin:,}, and goes on to step {run.steps:,}: its learning rate {rises}falls '
            f'from {run.options.peak_lr:.3g} to {last:.3g}. The loss may be higher for a while. The weight decay stays at '
            f'{decay:.3g}.')
