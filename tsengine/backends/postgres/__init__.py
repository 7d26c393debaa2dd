"""The PostgreSQL backend, and `bulk_upsert` for any table of a PostgreSQL database.

connecting.py    a bounded number of sessions, transactions
session.py       a connection on which no wait is without end
location.py      which server and database a URL means
binary.py        columns as COPY and parameters take them
sqlstates.py     what an error of the server calls for
"""
