"""Hidden states of users behind kept texts: each text is read once, each user behind it costs their own tokens."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from prm.keys import kept_batch, portions, read_keys
from prm.model import RewardModel
from prm.progress import Bar
from prm.tokens import Encoded, batches

_USER_TOKENS = 64  # behind one text at once: each of them is compared with all of them


@torch.no_grad()
def read_behind(model: RewardModel, sequences: Sequence[Encoded], max_tokens: int, bar: Bar) -> Tensor:
    """h at the last token of each user, float32 [n, width]; equal texts are read once, equal sequences are not.

    Args:
        max_tokens: of texts that are held at once; bounds memory.
        bar: moved on by one for each sequence.
    """
    tokens, device = model.user_tokens, model.standard_mean.device
    askers: dict[tuple[int, ...], list[int]] = {}
    for place, sequence in enumerate(sequences):
        askers.setdefault(tuple(sequence.ids[:-tokens]), []).append(place)
    found, texts = torch.empty(len(sequences), model.width, device=device), list(askers)
    for portion, _ in portions(texts, max_tokens):
        part = [texts[i] for i in portion]
        table = read_keys(model.backbone, part, max_tokens)
        for items in _items([(len(text), askers[text]) for text in part], max_tokens, max(1, _USER_TOKENS // tokens)):
            places = [place for _, group in items for place in group]
            users = torch.tensor([sequences[place].ids[-tokens:] for place in places]).view(len(items), -1, tokens)
            batch = kept_batch([(table, i) for i, _ in items], users, device)
            found[places] = model.pooled_behind(batch).flatten(0, 1)
            bar.update(len(places))
    return found


Item = tuple[int, list[int]]  # a text of the portion, and who reads it in one go


def _items(texts: Sequence[tuple[int, list[int]]], max_tokens: int, most: int) -> Iterator[list[Item]]:
    """Batches of items with equally many readers, of at most `max_tokens` padded tokens; a longer text is one alone.

    Args:
        texts: length of each, and who reads it.
        most: readers of an item.
    """
    of_size: dict[int, list[Item]] = {}
    for i, (_, askers) in enumerate(texts):
        for first in range(0, len(askers), most):
            readers = askers[first : first + most]
            of_size.setdefault(len(readers), []).append((i, readers))
    for items in of_size.values():
        for chosen in batches([texts[i][0] for i, _ in items], max_tokens):
            yield [items[place] for place in chosen]
