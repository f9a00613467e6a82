"""What the --help of a program begins with."""
from dataclasses import dataclass

MOST_USED = 'most used'  # the group of the options that --help shows first


@dataclass(frozen=True)
class About:
    """A program in a sentence, commands to start from, and the options that most users need.

    examples: pairs (command, what it does). most_used: names of options, which --help shows first, in this
    order; all others follow in their groups.
    """
    description: str
    examples: tuple = ()
    most_used: tuple = ()

    @property
    def text(self):
        """The description and the examples, as lines."""
        lines = [f'  {command}\n      {what}' for command, what in self.examples]
        return '\n'.join([self.description, *(['', 'examples:'] if lines else []), *lines])

    def grouped(self, fields):
        """[(title of the group, field)] of the fields of a dataclass of options, in the order of --help."""
        by_name = {field.name: field for field in fields}
        titles = list(dict.fromkeys(field.metadata['group'] for field in fields))
        first = [(MOST_USED, by_name.pop(name)) for name in self.most_used]
        others = [(field.metadata['group'], field) for field in by_name.values()]
        return first + sorted(others, key=lambda each: titles.index(each[0]))
