"""The backends: each a package that imports no other backend and no driver but its own."""
