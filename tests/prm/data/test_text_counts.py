"""Plain counts of texts, by hand."""

import numpy as np

from prm.data.text_counts import COLUMNS, text_counts


def test_counts_by_hand() -> None:
    """Thirteen words in three sentences on three lines, two of them items; a question; the numbers 2 and 3.5."""
    text = "Why not 2 cats?\n\n- The dog's 3.5 kilos.\n- No more said he.\n"
    found = dict(zip(COLUMNS, text_counts([text])[0].tolist(), strict=True))
    words = ["Why", "not", "2", "cats", "The", "dog's", "3", "5", "kilos", "No", "more", "said", "he"]
    syllables = [1, 1, 1, 1, 1, 1, 1, 1, 2, 1, 2, 1, 1]  # groups of vowels, at least one: ki-lo-s, mo-re
    assert found["words"] == np.log1p(len(words))
    np.testing.assert_allclose(found["word length"], sum(map(len, words)) / 13)
    np.testing.assert_allclose(found["sentence length"], np.log(13 / 3))
    assert found["lines"] == np.log1p(3)
    assert found["list items"] == np.log1p(2)
    assert found["questions"] == np.log1p(1)
    assert found["numbers"] == np.log1p(2)
    np.testing.assert_allclose(found["reading ease"], 206.835 - 1.015 * 13 / 3 - 84.6 * sum(syllables) / 13)


def test_texts_without_words_have_finite_counts() -> None:
    found = text_counts(["...", "\n", "日本語。", "", "x" * 5000])
    assert found.shape == (5, len(COLUMNS))
    assert np.isfinite(found).all()
    assert text_counts([]).shape == (0, len(COLUMNS))
