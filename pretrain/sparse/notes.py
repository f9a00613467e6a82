"""Notes on a network that can be pretrained: what was chosen for it, or differs from its dense self."""
from dataclasses import dataclass
from enum import Enum


class NoteKind(Enum):
    """What a note is about."""
    ALIGNED_PADDING = 'aligned padding'  # windows without padding are padded by half their size
    LARGER_CELLS = 'larger cells'  # cells are a multiple of the total stride
    LEVEL_LEFT_OUT = 'level left out'  # the last level does not fit the image
    STRIDE_WITHOUT_MAP = 'stride without map'  # the decoder gets nothing from the encoder there
    NOT_PRETRAINED = 'not pretrained'  # modules run, but no feature map depends on them
    PADDING_MODE = 'padding mode'  # padding by reflection and the like is by zeros on strips
    PRECISION = 'precision'  # a module computes in a lower precision by itself


@dataclass(frozen=True)
class Note:
    """A sentence for the user, `str(note)`, and what it is about."""
    kind: NoteKind
    text: str

    def __str__(self):
        return self.text

    def __format__(self, spec):
        return format(self.text, spec)
