"""The tables and the answers of docs/transfer.md, from the results of benchmarks.evidence.

Numbers are means over seeds with standard errors. None is quoted before all seeds are there, MIN_SEEDS at least: means that
were looked at after each seed would be found significant too often.
"""
import re
import statistics

import numpy as np

from benchmarks.evidence_figure import draw
from benchmarks.evidence_records import COSTS, runs_of, unpacked
from benchmarks.evidence_stages import ESTIMATED, HELD_OUT, QUESTIONS, SCALES, STARTS, TUNING_SEED, Plan

MIN_SEEDS = 3
PRIMARY = 'final_10'  # The measure by which a question is answered.
MEASURES = {'knn': 'k-NN', 'linear': 'linear probe', 'final_1': '1 % of labels', 'final_10': '10 % of labels',
            'final_100': 'all labels'}
# {question: the starts whose statistics of BatchNorm are shown}.
NORMS = {'a': ('scratch', 'sparse'), 'b': ('sparse', 'zeroed', 'zeroed_time')}
# {number of seeds: standard errors of a mean beyond which it differs from 0 at a level of 5 %} (Student's t, two-sided).
CRITICAL = {3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


class Results:
    """The results of one scale: a dict with 'seeds', 'images', 'validation' and 'stages', {name: record}."""

    def __init__(self, name, content):
        self.scale = SCALES[name]
        self.seeds = range(content['seeds'])
        self.validation = content['validation']
        self.stages = content['stages']
        self.plan = Plan(self.scale, content['seeds'], content['images'])
        self.planned = {stage.name: stage for stage in self.plan.stages()}

    def values(self, start, measure):
        """{seed: accuracy in percent} of a start; of the seeds that are there."""
        records = {seed: self.stages.get(f'{measure}_{start}_{seed}') for seed in self.seeds}
        return {seed: record['figures']['top1'] for seed, record in records.items() if record}

    def mean(self, start, measure):
        """(mean, standard error) over the seeds; None unless all are there."""
        return self.mean_and_error(self.values(start, measure).values())

    def mean_and_error(self, values):
        """(mean, standard error) of a value of each seed; None unless there are as many as seeds, MIN_SEEDS at least."""
        return mean_and_error(values) if len(values) >= self.num_needed else None

    @property
    def num_needed(self):
        return max(MIN_SEEDS, len(self.seeds))

    def is_planned(self, start, measure):
        return f'{measure}_{start}_0' in self.planned

    def difference(self, better, worse, measure):
        """(mean, standard error, the differences) of two starts, seed by seed; None unless all seeds are there."""
        first, second = self.values(better, measure), self.values(worse, measure)
        pairs = [first[seed] - second[seed] for seed in first if seed in second]
        found = self.mean_and_error(pairs)
        return found and (*found, pairs)

    def error_over_images(self, better, worse, measure):
        """The standard error over the validation images of the mean difference of two starts, in points.

        Both are measured on the same images, and for each image the difference is the mean over the seeds. None if it is not
        known of all seeds which images are classified correctly (benchmarks.evidence_images).
        """
        differences = []
        for seed in self.seeds:
            records = [self.stages.get(f'{measure}_{start}_{seed}') for start in (better, worse)]
            pair = [record and record['figures'].get('right') for record in records]
            if None in pair:
                return None
            first, second = (unpacked(text, self.validation).astype(float) for text in pair)
            differences.append(first - second)
        return 100 * np.mean(differences, 0).std(ddof=1).item() / self.validation ** 0.5

    def state(self, question):
        """'complete', 'not run', or 'not finished: 12 of 61 stages'."""
        names = [stage.name for stage in self.plan.stages((question,)) if stage.question == question]
        done = sum(name in self.stages for name in names)
        if done == len(names):
            return 'complete'
        return f'not finished: {done} of {len(names)} stages' if done else 'not run'


def mean_and_error(values):
    """(mean, standard error of the mean) of some values."""
    values = list(values)
    return statistics.mean(values), statistics.stdev(values) / len(values) ** 0.5


def verdict(mean, error, number):
    """What a mean of paired differences shows, in words.

    number: of the pairs. Two standard errors are the criterion that was set before the runs. With few seeds they are a weak
    one, so it is also said whether the difference is significant.
    """
    if abs(mean) <= 2 * error:
        return 'not shown'
    what = 'shown' if mean > 0 else 'the opposite is shown'
    if abs(mean) > CRITICAL[min(number, max(CRITICAL))] * error:
        return f'{what} (p < 0.05)'
    return f'{what} at two standard errors, but not at p < 0.05'


def row(*cells):
    return '| ' + ' | '.join(cells) + ' |'


def head(*titles):
    return [row(*titles), '|' + '---|' * len(titles)]


def cell(results, start, measure):
    """A cell of a table: mean and standard error over the seeds."""
    found = results.mean(start, measure)
    if found:
        return '{:.1f} +- {:.1f}'.format(*found)
    if not results.is_planned(start, measure):
        return ''
    number = len(results.values(start, measure))
    return f'not finished: {number} of {results.num_needed} seeds' if number else 'not run'


def table(results, pairs):
    """The accuracies of all starts of some pairs, and the differences of each pair."""
    starts = dict.fromkeys(start for pair in pairs for start in reversed(pair))
    lines = head('', *MEASURES.values())
    lines += [row(STARTS[start].label, *(cell(results, start, measure) for measure in MEASURES)) for start in starts]
    for better, worse in pairs:
        found = {measure: results.difference(better, worse, measure) for measure in MEASURES}
        if any(found.values()):
            cells = ['{:+.1f} +- {:.1f}'.format(*found[measure][:2]) if found[measure] else '' for measure in MEASURES]
            lines.append(row(f'*{STARTS[better].label} minus {STARTS[worse].label}*', *cells))
    return [*lines, '']


def section(results, letter):
    """A question with its hypothesis, state, table and answers."""
    question = QUESTIONS[letter]
    state = results.state(letter)
    lines = [f'### ({letter}) {question.text}', '', f'*Expected before the runs*: {question.hypothesis}', '',
             f'*State*: {state}.', '']
    if state == 'not run':
        return lines
    lines += table(results, question.beside + question.pairs)
    found = answer(results, question.pairs + question.beside)
    lines += [f'{found}.', ''] if found else []
    return lines + (norms(results, NORMS[letter]) if letter in NORMS else [])


def answer(results, pairs):
    """What some pairs show by the primary measure, in words; empty if nothing may be quoted yet."""
    found = []
    for better, worse in pairs:
        difference = results.difference(better, worse, PRIMARY)
        if difference:
            mean, error, pairs = difference
            each = ', '.join(f'{pair:+.1f}' for pair in pairs)
            over_images = results.error_over_images(better, worse, PRIMARY)
            images = '' if over_images is None else f'; +- {over_images:.1f} over the images'
            found.append(f'{STARTS[better].label} minus {STARTS[worse].label}, {MEASURES[PRIMARY]}: {mean:+.1f} +- {error:.1f} '
                         f'points ({each}{images}): {verdict(mean, error, len(pairs))}')
    return '; '.join(found)


def norms(results, starts):
    """What became of the statistics of BatchNorm, as lines; none if that is not measured with all seeds."""
    lines = []
    for start in starts:
        records = [results.stages.get(f'norms_{start}_{seed}') for seed in results.seeds]
        means = [record['figures']['mean'] for record in records if record]
        if len(means) < results.num_needed:
            continue
        figures = [mean_and_error([mean['by_layer'][key] for mean in means]) for key in ('mean_shift', 'log2_std_ratio')]
        probes = [cell(results, start, f'{kind}_{ESTIMATED}') for kind in ('knn', 'linear')]
        lines.append(row(STARTS[start].label, *('{:.2f} +- {:.2f}'.format(*each) for each in figures), *probes))
    if not lines:
        return []
    return ['How far the running statistics of BatchNorm are from those of whole images (`benchmarks.norm_shift`, by layer, '
            'means over all norms; random weights have those of their initialisation), and the probes once the statistics are '
            'estimated on whole images:', '',
            *head('', 'shift of the mean, in standard deviations', '\\|log2\\| of the ratio of standard deviations', 'k-NN',
                  'linear probe'), *lines, '']


def rates(results):
    """The learning rates of fine-tuning that were tried, as lines."""
    lines = []
    for start in STARTS.values():
        for percent in sorted(start.percents, key=int):
            tried = {rate: results.stages.get(f'tune_{percent}_{start.name}_{rate}') for rate in results.scale.rates}
            if not all(tried.values()):
                continue
            accuracies = {rate: record['figures']['top1'] for rate, record in tried.items()}
            best = max(accuracies, key=accuracies.get)
            at_edge = best in (results.scale.rates[0], results.scale.rates[-1])
            cells = [f'**{value:.1f}**' if rate == best else f'{value:.1f}' for rate, value in accuracies.items()]
            lines.append(row(f'{start.label}, {percent} % of labels', *cells, 'at the edge' if at_edge else ''))
    if not lines:
        return []
    return [f'Learning rates of fine-tuning, by one run each (seed {TUNING_SEED}, for pretrained weights those of seed 0), '
            f'on the {100 * HELD_OUT:.0f} % of the training images that this run did not see. The best is taken for all seeds:',
            '',
            *head('', *results.scale.rates, ''), *lines, '']


def cost(results):
    """What the runs cost, and on what."""
    runs = [run for record in results.stages.values() for run in runs_of(record)]
    hours, cpu_hours = (sum(run[key] or 0 for run in runs) / 3600 for key in COSTS)
    machines = dict.fromkeys(run['machine'] for run in runs)
    lines = [f'{len(runs)} runs took {hours:.1f} hours of wall-clock time, summed over programs, and {cpu_hours:.1f} '
             f'hours of CPU time, on: {"; ".join(machines)}.']
    num_unknown = sum(run['cpu_seconds'] is None for run in runs)
    if num_unknown:
        lines.append(f'Not in these sums are {num_unknown} runs whose time is not known.')
    again = [name for name, record in results.stages.items() if 'again' in record]
    if again:
        lines.append(f'Run again for their weights, which were lost: {", ".join(again)}.')
    unplanned = sorted(results.stages.keys() - results.planned.keys())
    if unplanned:
        lines.append(f'Run too, and not used: {", ".join(unplanned)}.')
    for name, stage in results.planned.items():
        if stage.equal_time and name.endswith('_0') and name in results.stages:  # Other seeds have the same number.
            epochs, = (word for word in results.stages[name]['command'] if word.startswith('--epochs='))
            lines.append(f'Equal time came to {epochs.partition("=")[2]} epochs in `{name}`.')
    return [' '.join(lines), '']


def page(content):
    """All tables of all scales, as Markdown. content: {name of a scale: results}."""
    lines = []
    for results in of_scales(content):
        lines += [f'## On a {results.scale.title}', '',
                  f'`{results.scale.model}`. Top-1 accuracy in percent on {results.validation:,} validation images, mean and '
                  'standard error over the seeds. Differences are taken seed by seed.', '']
        for letter in QUESTIONS:
            lines += section(results, letter)
        lines += ['### Learning rates and cost', '', *rates(results), *cost(results)]
    missing = [f'on a {scale.title}' for name, scale in SCALES.items() if name not in content]
    lines += [f'Not run: {"; ".join(missing)}.'] if missing else []
    return '\n'.join(lines).rstrip()


def of_scales(content):
    """Results of the scales that there are, the smallest first."""
    return [Results(name, content[name]) for name in SCALES if name in content]


def answers(content):
    """The questions with their shortest answers, one for each scale that has one, as a list in Markdown."""
    lines = []
    unanswered = []
    scales = of_scales(content)
    for letter, question in QUESTIONS.items():
        found = [(results.scale.title, answer(results, question.pairs)) for results in scales]
        found = [f'On a {title}: **{text}.**' for title, text in found if text]
        if found:
            lines.append(f'* ({letter}) {question.text} {" ".join(found)}')
        else:
            unanswered.append(f'  * ({letter}) {question.text}')
    if unanswered:
        lines += ['* Not measured with all seeds yet:', *unanswered]
    return '\n'.join(lines)


def replaced(text, first, last, replacement):
    """A text with a replacement between two comments of Markdown. Raises ValueError without them."""
    if f'<!-- {first} -->\n' not in text or f'<!-- {last} -->' not in text:
        raise ValueError(f'the page has no lines <!-- {first} --> and <!-- {last} -->')
    return re.sub(f'(<!-- {first} -->\n).*(<!-- {last} -->)', lambda match: f'{match[1]}{replacement}\n{match[2]}', text,
                  flags=re.S)


def filled(text, content, picture):
    """The text of a page with the results in it. picture: the name of the file of the figure."""
    tables = page(content)
    if any(points(results) for results in of_scales(content)):
        tables += f'\n\n![The accuracies of each seed, and their means]({picture})'
    return replaced(replaced(text, 'answers', 'end of answers', answers(content)), 'results', 'end', tables)


def points(results):
    """{(start, measure): accuracies} of questions (a), (b) and (t) that may be quoted."""
    starts = [start.name for start in STARTS.values() if start.question in 'abt']
    found = {(start, measure): results.values(start, measure) for start in starts for measure in MEASURES}
    return {key: list(values.values()) for key, values in found.items() if len(values) >= results.num_needed}


def write(content, page_file):
    """Put the results into a page that has places for them, and draw its figure beside it."""
    picture = page_file.with_suffix('.svg')
    panels = {f'{results.scale.model}, on a {results.scale.title}': points(results) for results in of_scales(content)}
    draw({title: shown for title, shown in panels.items() if shown}, MEASURES,
         {start.name: start.label for start in STARTS.values()}, picture)
    page_file.write_text(filled(page_file.read_text(), content, picture.name))
