"""`ukp_sample`: 200 comparisons by eight workers out of UKPConvArg1 that ship with the package.

Its text and its terms lie beside this file. Which workers they are was settled by a rule that looks at no label, see
`ukp_sample.LICENSE.txt`.
"""

from importlib import resources

from prm.data.sources.dataset_cards import Card
from prm.io.rows import Row
from prm.io.tables import read_table

CARD = Card(
    name="200 comparisons of UKPConvArg1",
    licence="CC BY 4.0",
    citation="Habernal and Gurevych, Which argument is more convincing?, ACL 2016",
    about="eight crowd workers on which of two arguments convinces more",
    counts={"comparisons": 200, "workers": 8},
)


def rows() -> list[Row]:
    """Its rows, as those of any log of pairs. Metadata: debate."""
    with resources.as_file(resources.files(__package__).joinpath("ukp_sample.jsonl")) as path:
        return list(read_table(str(path)))
