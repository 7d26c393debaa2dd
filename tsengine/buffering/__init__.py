"""What a WriteBuffer is made of, apart from what its callers see (`tsengine.buffer`).

    arrivals.py         points in order of arrival, and the columns they become
    judging.py          what callers give, judged before it is taken
    acknowledgement.py  the future of a submitted point
    outbox.py           what is pending, who may commit it, and what became of it
    committing.py       a batch on its way: retried, divided, stored or rejected, each point once
    flushing.py         what the thread of a buffer does, and how others ask it to
    flusher.py          that thread, and how it sleeps
    keeping.py          what the process knows of its buffers: exit, fork, names of producers

All of it knows a handler, and no backend.
"""
