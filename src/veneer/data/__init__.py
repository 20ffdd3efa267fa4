"""Files and hub data sets -> checked rows -> token ids; splits; preview.

`prepare(DataConfig(source="messages.csv"))` does all of the first part. The room knows no model and no task:
it gets a tokenizer as a function.
"""

from veneer.data.choices import Choice, Notes
from veneer.data.config import DataConfig
from veneer.data.labels import LabelSet
from veneer.data.prepare import Prepared, prepare
from veneer.data.reading import TextStream, labelled, read_texts
from veneer.data.rows import Columns, LabelForm, Split
from veneer.data.tables import Table, TableOptions, read_table
from veneer.data.tokens import TokenStore, tokenize

__all__ = [
    "Choice",
    "Columns",
    "DataConfig",
    "LabelForm",
    "LabelSet",
    "Notes",
    "Prepared",
    "Split",
    "Table",
    "TableOptions",
    "TextStream",
    "TokenStore",
    "labelled",
    "prepare",
    "read_table",
    "read_texts",
    "tokenize",
]
