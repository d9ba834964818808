"""Hidden states of users behind kept texts: each text is read once, each user behind it costs their own tokens."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from prm.key_store import KeyStore, ids_key
from prm.keys import KeyTable, kept_batch, portions, read_keys
from prm.model import RewardModel
from prm.progress import Bar
from prm.tokens import Encoded, batches

_USER_TOKENS = 64  # behind one text at once: each of them is compared with all of them


@torch.no_grad()
def read_behind(
    model: RewardModel, sequences: Sequence[Encoded], max_tokens: int, bar: Bar, store: KeyStore | None = None
) -> Tensor:
    """h at the last token of each user, float32 [n, width]; equal texts are read once, equal sequences are not.

    Args:
        max_tokens: of texts that are held at once; bounds memory.
        bar: moved on by one for each sequence.
        store: of the backbone: what it holds is not read again, and nothing is written there.
    """
    tokens, device = model.user_tokens, model.standard_mean.device
    askers: dict[tuple[int, ...], list[int]] = {}
    for place, sequence in enumerate(sequences):
        askers.setdefault(tuple(sequence.ids[:-tokens]), []).append(place)
    found = torch.empty(len(sequences), model.width, device=device)
    for texts, tables in _read(model, list(askers), max_tokens, store):
        for items in _items([(len(text), askers[text]) for text in texts], max_tokens, max(1, _USER_TOKENS // tokens)):
            places = [place for _, group in items for place in group]
            users = torch.tensor([sequences[place].ids[-tokens:] for place in places]).view(len(items), -1, tokens)
            batch = kept_batch([tables[i] for i, _ in items], users, device)
            found[places] = model.pooled_behind(batch).flatten(0, 1)
            bar.update(len(places))
    return found


Text = tuple[int, ...]


def _read(
    model: RewardModel, texts: Sequence[Text], max_tokens: int, store: KeyStore | None
) -> Iterator[tuple[list[Text], list[tuple[KeyTable, int]]]]:
    """Portions of the texts, and where the keys of each are: those of the store first, mapped."""
    kept = {text: store.at(key) for text in texts if (key := ids_key(text)) in store} if store is not None else {}
    if kept:
        yield list(kept), list(kept.values())
    unread = [text for text in texts if text not in kept]
    for portion, _ in portions(unread, max_tokens):
        part = [unread[i] for i in portion]
        table = read_keys(model.backbone, part, max_tokens)
        yield part, [(table, i) for i in range(len(part))]


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
