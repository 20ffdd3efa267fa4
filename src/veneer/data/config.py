"""What a person may say about their data: `DataConfig`.

It knows the names and the limits of the options, and reads no file.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import pydantic

from veneer.data.tables import TableOptions
from veneer.naming import setting
from veneer.strict import StrictModel

__all__ = ["DataConfig"]


class DataConfig(StrictModel):
    """Where the texts are, which columns to read, and how to split them. None means: infer, and say so.

    source               a file (csv, tsv, json, jsonl, parquet), a named data set ("example"; "sms-spam" and "sst2",
                         each also as "NAME:PATH" with a local copy), or a data set of the Hugging Face
                         hub ("owner/name")
    validation, test     files of the user's own; where one is missing it is split from `source`
    text_column          the column to read
    text_pair_column     a second text, for tasks on pairs
    label_column         the column to predict
    columns              further columns by what they hold, for tasks on other tables, such as {"question": "q"}
    label_separator      what stands between the labels where a cell holds several, such as "," or "|"
    multi_label          whether a text may have several labels
    format, delimiter, encoding, header, quoting    how the file is written (see `TableOptions`)
    validation_fraction, test_fraction    shares of all rows, in [0, 1); 0: no such part
    seed                 decides the split, and which rows `max_rows` keeps
    max_rows             at most so many rows of `source` are used, chosen by the seed; None: all
    on_missing_label     "error", or "drop": leave rows without a label out, counted
    on_empty_text        "drop": leave rows without a text out, counted, or "error"
    duplicates           "keep-together": equal texts are never on two sides of the split; "ignore": split
                         row by row
    variant              of a named source: sms-spam has "full" (the default) and "balanced"
    """

    place: ClassVar[str | None] = "data."

    source: str = pydantic.Field(min_length=1)
    validation: str | None = None
    test: str | None = None
    text_column: str | None = None
    text_pair_column: str | None = None
    label_column: str | None = None
    columns: dict[str, str] = pydantic.Field(default_factory=dict)
    label_separator: str | None = pydantic.Field(default=None, min_length=1)
    multi_label: bool | None = None
    format: Literal["csv", "tsv", "json", "jsonl", "parquet", "conll"] | None = None
    delimiter: str | None = pydantic.Field(default=None, min_length=1, max_length=1)
    encoding: str | None = None
    header: bool | None = None
    quoting: bool | None = None
    validation_fraction: float = pydantic.Field(default=0.1, ge=0, lt=1)
    test_fraction: float = pydantic.Field(default=0.2, ge=0, lt=1)
    seed: int = pydantic.Field(default=0, ge=0, lt=2**63)
    max_rows: int | None = pydantic.Field(default=None, ge=1)
    on_missing_label: Literal["error", "drop"] = "error"
    on_empty_text: Literal["drop", "error"] = "drop"
    duplicates: Literal["keep-together", "ignore"] = "keep-together"
    variant: str | None = None

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        shares = self.validation_fraction + self.test_fraction
        if shares >= 1:
            raise ValueError(
                f"{setting('data.validation_fraction')} and {setting('data.test_fraction')} add up to {shares:g}; "
                "they have to stay below 1 so that rows are left to train on."
            )
        columns = [c for c in (self.text_column, self.text_pair_column, self.label_column) if c is not None]
        if len(set(columns)) < len(columns):
            raise ValueError(
                f"{setting('data.text_column')}, {setting('data.text_pair_column')} and "
                f"{setting('data.label_column')} name one column twice: {', '.join(columns)}; "
                "give each a column of its own."
            )
        return self

    def table_options(self) -> TableOptions:
        """How the file is written, for the readers of `veneer.data.tables`."""
        return TableOptions(self.format, self.delimiter, self.encoding, self.header, self.quoting)
