"""Files in and out: CSV, JSON lines, Parquet and InfluxDB line protocol.

    importing.py        `Import`, a file into a store
    exporting.py        `export`, a store into a file
    files.py            names, compression, what is read
    output_files.py     what is written
    blocks.py           a stream of text in pieces of whole lines
    mapping.py          which column is the time, a label, a value
    times.py, values.py what texts mean, and how numbers are written
    columns.py, arrow_columns.py   rows told apart by series at the speed of arrays
    rows.py             rows one by one
    intake.py           judges points as the store will, with a reason for each that is bad
    rejects.py          bad rows, counted and written aside
    text_reading.py     blocks by a fast way, or row by row
    csv_reading.py, json_reading.py, line_protocol.py, line_reading.py, parquet_reading.py
    text_writing.py, parquet_writing.py

What `export` writes `Import` reads back, bit for bit. Nothing here knows of a backend.
"""

from tsengine.formats.exporting import ExportReport, export
from tsengine.formats.importing import Import, ImportOptions, ImportProgress, ImportReport
from tsengine.formats.mapping import Choices
from tsengine.formats.rejects import Reject
from tsengine.formats.values import ValueForm

__all__ = [
    "Choices",
    "ExportReport",
    "Import",
    "ImportOptions",
    "ImportProgress",
    "ImportReport",
    "Reject",
    "ValueForm",
    "export",
]
