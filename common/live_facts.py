"""What a live line (common/live_line.py) says: facts, in as many words as the terminal has room for.

A fact is a tuple of texts that say the same, from the longest to the shortest; '' where it may be left out.
"""
BAR = (4, 30)  # cells of a bar, at least and at most
WIDE = 60  # columns from which on there is room for a bar


class Count:
    """How far a task has come that consists of equal parts, and how long the rest will take.

    what: the task, such as 'validation images'. total: the number of its parts; None if it is not known, or if the
    task has none. It may be set later. unit: what a part is called. now: the clock, in seconds.
    """

    def __init__(self, what, total, unit, now):
        self.unit = unit
        self.now = now
        self.start(what, total)

    def start(self, what, total=None):
        """Go over to another task, or to another part of it."""
        now = self.now()
        self.task = what, total, now, 0, now  # in one piece, since the thread that shows it may read it at any time

    def set_total(self, total):
        """Note how many parts there are, once that is known."""
        what, _, began, done, last = self.task
        self.task = what, total, began, done, last

    @property
    def done(self):
        """How many parts are done."""
        return self.task[3]

    def add(self, number=1):
        """Note that more parts are done."""
        what, total, began, done, _ = self.task
        self.task = what, total, began, done + number, self.now()

    def status(self, now):
        """As LiveLine shows it: (share that is done, facts)."""
        what, total, began, done, last = self.task
        elapsed = elapsed_of(now - began)
        if total is None:
            return None, [(what,), elapsed]
        done = min(done, total)  # the main rank of several counts for all of them
        share = done / total if total else 0.0
        facts = [(what,), (f'{done:,}/{total:,}', f'{done}/{total}', f'{100 * share:.0f}%')]
        if done and last > began:
            rate = done / (last - began)
            facts += [rate_of(rate, self.unit), left_of((total - done) / rate - (now - last))]
        return share, [*facts, elapsed]


def composed(share, facts, width, cells):
    """The facts in one line of at most `width` columns, with a bar after the first one where there is room.

    share: that the bar shows, None for no bar. cells: the characters of a full and of an empty cell.
    """
    least, most = BAR
    kept = 0 if share is None or width < WIDE else least + 1
    texts, gap = fitted(facts, width - kept)
    room = min(width - len(gap.join(texts)) - len(gap), most)
    if share is not None and room >= least:
        full = int(share * room)
        texts.insert(1, cells[0] * full + cells[1] * (room - full))
    return gap.join(texts)[:width]


def fitted(facts, width):
    """([the facts in as many words as fit into `width` columns], what stands between two of them).

    First the gaps become smaller. Then the facts take their second form, the last fact first; then their third;
    at last they are left out, the last one first.
    """
    texts = [forms[0] for forms in facts]
    if len('  '.join(texts)) <= width:
        return texts, '  '
    changes = [(place, form) for form in range(1, max(map(len, facts)))
               for place in reversed(range(len(facts))) if form < len(facts[place])]
    for place, form in changes:
        if len(' '.join(filter(None, texts))) <= width:
            break
        texts[place] = facts[place][form]
    texts = [text for text in texts if text]
    while len(texts) > 1 and len(' '.join(texts)) > width:
        texts.pop()
    return texts, ' '


def rate_of(rate, unit):
    """A fact: so many units a second."""
    digits = f'{rate:,.0f}' if rate >= 100 else f'{rate:.1f}' if rate >= 10 else f'{rate:.2f}'
    return f'{digits} {unit}s/s', f'{digits}/s', f'{digits}/s', ''


def left_of(seconds):
    """A fact: the time left."""
    return (f'{ticking_time(seconds)} left',)


def elapsed_of(seconds):
    """A fact: the time that has passed."""
    return f'{ticking_time(seconds)} elapsed', ''


def ticking_time(seconds):
    """'0:07', '12:03', '1:02:03', '2 d 03 h': a time that is seen to change each second, but for days."""
    minutes, rest = divmod(max(int(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours_of_day = divmod(hours, 24)
    if days:
        return f'{days} d {hours_of_day:02} h'
    return f'{hours}:{minutes:02}:{rest:02}' if hours else f'{minutes}:{rest:02}'
