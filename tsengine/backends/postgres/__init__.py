"""The PostgreSQL backend, and `bulk_upsert` for any table of a PostgreSQL database.

engine.py        PostgresEngine
schema.py        the tables of a store
catalogue.py     which series there are
writing.py       one transaction a commit
statements.py    what duplicate policies are in SQL
rows.py          the batches of a commit, sorted
marks.py         how far producers have got
reading.py       pages of rows
partitions.py    made ahead, and dropped by retention
packing.py       columns of points as parameters and COPY blocks
bulk.py          bulk_upsert: batches, retries, outcomes
upserting.py     a batch into a table, as SQL
row_source.py    what a caller gives, in batches
fields.py        Python values as the binary form of a column's type
tables.py        what a database says of a table
lending.py       transactions on connections of the caller
connecting.py    a bounded number of sessions, transactions
session.py       a connection on which no wait is without end
location.py      which server and database a URL means
binary.py        columns as COPY and parameters take them
sqlstates.py     what an error of the server calls for
"""

from tsengine.backends.postgres.bulk import bulk_upsert
from tsengine.backends.postgres.connecting import Database
from tsengine.backends.postgres.engine import PostgresEngine

__all__ = ["Database", "PostgresEngine", "bulk_upsert"]
